"""Wrong answers to the exercises of notebook 02, and what is then said."""

WRONG_ANSWERS = {
    "02.1": [
        ("answer_1 = model.num_parameters()", "the model as it is"),
        ("answer_1 = 134_515_008 + (2 * 128_256 - 49_152) * 576", "you counted two tables"),
        ("answer_1 = (128_256 - 49_152) * 576", "the new rows alone"),
        ("answer_1 = 180_000_000", "num_parameters()"),
        ('answer_1 = "180,078,912"', "should be a whole number"),
    ],
    "02.2": [
        (
            'def answer_2(name):\n    begin, end = header[name]["data_offsets"]\n'
            '    with open(file, "rb") as stream:\n        stream.seek(begin)\n        raw = stream.read(end - begin)\n'
            '    return torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(header[name]["shape"])',
            "8 + length bytes come before",
        ),
        ("answer_2 = lambda name: parameters[name].flatten()", 'The header gives its "shape"'),
        ("answer_2 = lambda name: norm[:5]", "Read end - begin bytes"),
        ("answer_2 = lambda name: name", "it should return a tensor"),
        ("answer_2 = norm", "should be a function"),
    ],
    "02.3": [
        ('answer_3 = {"llama-3-8b-instruct": 7, "glm-4-9b-chat": 15}', "The GPU has 24 GiB"),
        ('answer_3 = {"llama-3-8b-instruct": 10, "glm-4-9b-chat": 20}', "one too many"),
        ('answer_3 = {"llama-3-8b-instruct": 9, "glm-4-9b-chat": 9}', "not the largest batch"),
        ('answer_3 = {"llama": 9}', "needs these two names"),
    ],
    "02.4": [
        ("answer_4 = lambda x: (x.view(torch.int32) & -65536).view(torch.float32)", "cut off the lower 16 bits"),
        (
            "answer_4 = lambda x: ((x.view(torch.int32) + 0x8000) & -65536).view(torch.float32)",
            "goes to the neighbour whose last bit is 0",
        ),
        ("answer_4 = lambda x: x.bfloat16().float()", "that lets the library do it"),
        ("answer_4 = lambda x: x", "should become"),
        ("answer_4 = lambda x: x.view(torch.int32) >> 16", "should return float32"),
    ],
}
