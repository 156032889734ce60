"""Wrong answers to the exercises of notebook 06."""

_DIFFERENCE = "(model.lm_head.weight[paris] - model.lm_head.weight[london])"
_FROM_POSITIONS = (
    "def answer_4(layer, head):\n"
    '    name = f"model.layers.{{layer}}.self_attn.v_proj"\n'
    "    one = trace(model, tokenizer, english, hidden_states=False, layers=layer, outputs_of=name)\n"
    "    values = one.outputs[name].view(5, 3, 64)[:, {}]\n"
    "    columns = model.model.layers[layer].self_attn.o_proj.weight.view(576, 9, 64)[:, head]\n"
    "    return one.attentions[0, head, -1] * (values @ columns.T @ ({}))\n"
)

WRONG_ANSWERS = {
    "06.1": [
        ("answer_1 = [30]", "more row(s) have 5 at the top"),
        ("answer_1 = list(range(24, 31))", "another token is ahead of 5"),
        ("answer_1 = 24", "should be a list"),
    ],
    "06.2": [
        ("answer_2 = [(4, 23), (29, 1), (29, 2)]", "the right way round"),
        ("answer_2 = [(29, 1), (23, 4), (0, 0)]", "Did you subtract Paris?"),
        ("answer_2 = [23, 4, 29]", "three pairs"),
    ],
    "06.3": [
        ("answer_3 = without - intact", "that is the change with zeros"),
        ("answer_3 = 1.33", "it falls"),
        ("answer_3 = -0.5", "one vector [head_dim]"),
    ],
    "06.4": [
        ("answer_4 = lambda layer, head: 2.66", "one number per token"),
        (
            "def answer_4(layer, head):\n"
            "    return trace(model, tokenizer, english, hidden_states=False, layers=layer).attentions[0, head, -1]",
            "these are the attention weights",
        ),
        (_FROM_POSITIONS.format("head // 3", "direction"), "the logit of Paris alone"),
        (_FROM_POSITIONS.format("head % 3", _DIFFERENCE + " * model.model.norm.weight / divisor"), "of another group"),
        (_FROM_POSITIONS.format("head // 3", _DIFFERENCE), "the final norm is missing"),
    ],
    "06.5": [
        ("answer_5 = lambda head: moved_by_head[head]", "keep the Germany prompt's own values"),
        ("answer_5 = lambda head: None", "should return a number"),
    ],
}
