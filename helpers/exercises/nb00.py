"""Checks of notebook 00, start here."""

from helpers.exercises import exercise, require


@exercise("00.1", expects=int)
def _(answer):
    from helpers.catalog import find_card

    card = find_card("smollm2-135m")
    require(answer != card.num_attention_heads, "that is how many query heads each layer has.")
    require(answer != card.hidden_size, "that is how many numbers each layer hands on. How many layers are there?")
    require(answer == card.num_hidden_layers, f"not {answer}. Look at what section 2 prints about the model.")
    return "That is how a check answers. Hints and solutions are there when you want them, not before."


@exercise("00.2", expects=str)
def _(answer):
    import torch

    from helpers.loading import load_model, load_tokenizer

    tokenizer, model = load_tokenizer("smollm2-135m"), load_model("smollm2-135m", device="cpu")
    with torch.inference_mode():
        best = [
            tokenizer.decode(
                model(tokenizer(f"The capital of {country} is", return_tensors="pt").input_ids).logits[0, -1].argmax()
            )
            for country in ("Italy", "France")
        ]
    require(answer != best[1], "that is France's. Change the text, and run the cells from there on.")
    require(
        answer == best[0] or answer.strip("·") != best[0].strip(),
        f"nearly: the token is {best[0]!r}. The dot stands for a space, and the space belongs to the token.",
    )
    require(answer == best[0], f"{answer!r} is not the most likely one. Try tokenizer.decode(probabilities.argmax()).")
    return "The same numbers, another text, another winner; and a model that is less sure."
