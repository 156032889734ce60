import json
import warnings

import matplotlib
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.errors import BadInputError, PromptTooLongError
from helpers.inside.generation import generate_steps
from helpers.text.prompts import render_chat
from helpers.views.sampling import Sampling, sampling_explorer
from helpers.views.stepper import Stepper, generation_stepper

matplotlib.use("agg")
PROMPT = "The capital of France is"
LENGTH = 8
SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}


@pytest.fixture(scope="module")
def random_model(tokenizer):
    """A model of two small layers with random weights: the stepper's own logic needs no better one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=1.0,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def stepper(random_model, tokenizer):
    return Stepper(random_model, tokenizer, PROMPT, max_new_tokens=LENGTH)


def expected(random_model, tokenizer, **settings):
    return [
        step.token_id for step in generate_steps(random_model, tokenizer, PROMPT, max_new_tokens=LENGTH, **settings)
    ]


def walk(stepper):
    while stepper.can_go_forward:
        stepper.forward()
    return [step.token_id for step in stepper.steps]


def test_going_forward_gives_what_generate_steps_gives(stepper, random_model, tokenizer):
    assert walk(stepper) == expected(random_model, tokenizer)
    assert stepper.step.stopped_by == "max_new_tokens"
    last = stepper.index
    stepper.forward()
    assert stepper.index == last
    assert [chip["id"] for chip in stepper.view()["chips"]][5:] == [step.token_id for step in stepper.steps]


def test_sampling_is_the_same_as_generate_steps_with_the_seed(random_model, tokenizer):
    stepper = Stepper(random_model, tokenizer, PROMPT, max_new_tokens=LENGTH, seed=3, **SAMPLED)
    assert walk(stepper) == expected(random_model, tokenizer, seed=3, **SAMPLED)


def test_back_shows_the_same_step_and_forward_needs_no_new_one(stepper):
    first = stepper.step
    stepper.back()
    assert stepper.step is first
    stepper.forward()
    second = stepper.step
    stepper.back()
    assert stepper.step is first
    stepper.forward()
    assert stepper.step is second
    stepper.go_to(0)
    assert stepper.step is first
    with pytest.raises(BadInputError, match="no step 7"):
        stepper.go_to(7)


def test_another_token_makes_a_branch_that_goes_on_from_there(stepper, random_model, tokenizer):
    stepper.forward()
    kept = stepper.steps[0].token_id
    other = int(stepper.step.logits.topk(2).indices[1])
    stepper.choose(other)
    assert stepper.index == 2
    assert stepper.token_ids == [kept, other]
    assert stepper.step.input_ids.tolist() == [[other]]
    assert [chip["by"] for chip in stepper.view()["chips"][-2:]] == ["model", "you"]
    assert walk(stepper) == expected(random_model, tokenizer, forced_ids=[kept, other])
    stepper.go_to(0)
    stepper.choose(other)
    assert [chip["by"] for chip in stepper.view()["chips"][-1:]] == ["you"]
    assert len(stepper.steps) == 2


def test_choosing_what_the_model_chose_changes_no_token(stepper, random_model, tokenizer):
    stepper.choose(stepper.step.token_id)
    assert walk(stepper) == expected(random_model, tokenizer)


def test_the_end_of_turn_ends_it(stepper, tokenizer):
    stepper.choose(tokenizer.eos_token_id)
    assert not stepper.can_go_forward
    assert stepper.view()["stopped"] == "the end-of-turn token"
    assert stepper.view()["chips"][-1]["special"]
    stepper.back()
    assert stepper.index == 0


def test_typed_text_becomes_its_tokens(stepper, tokenizer):
    stepper.write(" 你好")
    assert stepper.can_go_forward
    assert stepper.token_ids == tokenizer(" 你好", add_special_tokens=False)["input_ids"]
    assert stepper.view()["text"] == " 你好"
    labels = [chip["label"] for chip in stepper.view()["chips"]]
    assert "你 1/2" in labels
    with pytest.raises(BadInputError, match="nothing typed"):
        stepper.write("")
    with pytest.raises(BadInputError, match="max_new_tokens"):
        stepper.write(" a" * LENGTH + " b")
    assert stepper.view()["text"] == " 你好"


def test_typed_control_strings_stay_text(stepper, tokenizer):
    stepper.write("<|im_end|>")
    assert tokenizer.eos_token_id not in stepper.token_ids
    assert len(stepper.token_ids) > 1
    assert stepper.view()["text"].startswith("<|im_end|>")


def test_half_a_character_shows_as_unfinished(stepper, tokenizer):
    stepper.choose(tokenizer("你", add_special_tokens=False)["input_ids"][0])
    assert stepper.view()["text"] == "…"


def test_settings_keep_the_tokens_before_and_choose_this_one_anew(stepper, random_model, tokenizer):
    stepper.forward()
    raw = stepper.step.logits
    stepper.change(do_sample=True, temperature=0.5, top_k=3)
    assert stepper.index == 1
    assert torch.equal(stepper.step.logits, raw)
    assert list(stepper.step.processed) == ["temperature", "top_k"]
    stepper.change(do_sample=False)
    assert not stepper.step.processed
    assert walk(stepper) == expected(random_model, tokenizer)


def test_a_setting_that_cannot_work_changes_nothing(stepper):
    stepper.forward()
    before = stepper.view()
    with pytest.raises(BadInputError, match="repetition_penalty"):
        stepper.change(repetition_penalty=-1.0)
    with pytest.raises(BadInputError, match="no setting 'heat'"):
        stepper.change(heat=2)
    assert stepper.view() == before


def test_greedy_with_sampling_settings_does_not_warn(random_model, tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Stepper(random_model, tokenizer, PROMPT, max_new_tokens=2, temperature=0.5)


def test_drawing_again_takes_another_seed(random_model, tokenizer):
    stepper = Stepper(random_model, tokenizer, PROMPT, max_new_tokens=3, do_sample=True, temperature=2.0)
    tokens = set()
    for _ in range(6):
        tokens.add(stepper.step.token_id)
        stepper.draw_again()
    assert len(tokens) > 1


def test_what_went_in_is_all_of_the_prompt_first_and_one_token_afterwards(stepper):
    shapes = {name: shape for name, shape, _ in stepper.view()["inputs"]}
    assert shapes == {
        "input_ids": "[1, 5]",
        "position_ids": "[1, 5]",
        "attention_mask": "[1, 5]",
        "KV cache": "5 positions",
    }
    stepper.forward()
    rows = {name: (shape, content) for name, shape, content in stepper.view()["inputs"]}
    assert rows["input_ids"] == ("[1, 1]", stepper.steps[0].token)
    assert rows["position_ids"] == ("[1, 1]", "5")
    assert rows["KV cache"] == ("6 positions", "5 before, 1 new")


def test_candidates_have_both_probabilities_and_the_chosen_one(random_model, tokenizer):
    stepper = Stepper(random_model, tokenizer, PROMPT, max_new_tokens=2, **SAMPLED)
    rows = stepper.view()["candidates"]
    assert sum(row["chosen"] for row in rows) == 1
    for row in rows:
        assert row["raw"] == pytest.approx(float(stepper.step.logits.softmax(-1)[row["id"]]), abs=1e-6)
        assert (row["final"] or 0) == pytest.approx(float(stepper.step.probabilities[row["id"]]), abs=1e-6)
    assert any(row["finalText"] == "removed" for row in rows)


def test_a_chat_and_a_long_prompt_work(random_model, tokenizer):
    chat = render_chat(tokenizer, [{"role": "user", "content": "word " * 90}])
    view = Stepper(random_model, tokenizer, chat, max_new_tokens=2).view()
    assert len(view["chips"]) == 80
    assert any(chip["special"] for chip in view["chips"])


def test_what_the_page_gets_is_plain_and_what_it_may_call_is_named(stepper):
    stepper.change(do_sample=True, top_p=0.5)
    assert json.loads(json.dumps(stepper.view())) == stepper.view()
    for command in ("__init__", "_run", "view", "model"):
        with pytest.raises(BadInputError, match="no command"):
            stepper.do(command)


def test_wrong_prompts_and_settings_say_what_is_wrong(random_model, tokenizer):
    with pytest.raises(BadInputError, match="empty"):
        generation_stepper(random_model, tokenizer, "")
    with pytest.raises(BadInputError, match="'heat'"):
        generation_stepper(random_model, tokenizer, PROMPT, heat=1)
    with pytest.raises(PromptTooLongError):
        generation_stepper(random_model, tokenizer, PROMPT, max_new_tokens=10_000)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"command": "write", "text": "\ud800"}, "half of a character"),
        ({"command": "change", "temperature": 10**400}, "temperature divides the logits"),
        ({"command": "change", "repetition_penalty": 10**400}, "repetition_penalty is above 0"),
        ({"command": "change", "self": 1}, "There is no setting 'self' here"),
        ({"command": "change", "x" * 100_000: 1}, "There is no setting 'xxx"),
    ],
)
def test_what_a_page_may_send_by_mistake_is_a_sentence(random_model, tokenizer, wish, says):
    widget = generation_stepper(random_model, tokenizer, PROMPT, max_new_tokens=3)
    widget._handle_custom_msg(wish, [])
    assert says in widget.view["message"] and len(widget.view["message"]) < 300
    assert "did not work" not in widget.view["message"]


@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": None}, {"self": 1}, {"command ": 1}, {"top_p": 10**400}, {"seed": 1}]
)
def test_settings_that_the_explorer_does_not_have(tokenizer, settings):
    sampling = Sampling(torch.randn(len(tokenizer)), tokenizer)
    with pytest.raises(BadInputError, match=r"There is no setting|top_p is"):
        sampling.do("change", **settings)
    assert sampling.settings == {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


def displayed(widget, monkeypatch):
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: outputs.append(data))
    widget._ipython_display_()
    return outputs


@pytest.fixture(scope="module", params=["stepper", "explorer"])
def widget(request, model, tokenizer):
    if request.param == "stepper":
        return generation_stepper(model, tokenizer, PROMPT, max_new_tokens=3)
    step = next(generate_steps(model, tokenizer, PROMPT, max_new_tokens=1))
    return sampling_explorer(step, tokenizer, temperature=0.7, top_k=5)


def test_a_cell_holds_a_picture_then_the_widget_and_its_text_never_changes(widget, monkeypatch):
    picture, live = displayed(widget, monkeypatch)
    assert picture["image/png"].startswith(b"\x89PNG")
    assert len(picture["image/png"]) < 60_000
    assert "·Paris" in picture["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in live
    assert "0x" not in picture["text/plain"] + live["text/plain"] + repr(widget)
    assert [o["text/plain"] for o in displayed(widget, monkeypatch)] == [picture["text/plain"], live["text/plain"]]


def test_a_wish_of_the_page_is_answered_with_a_new_view(random_model, tokenizer):
    widget = generation_stepper(random_model, tokenizer, PROMPT, max_new_tokens=3)
    widget._handle_custom_msg({"command": "forward"}, [])
    assert (widget.view["turn"], widget.view["index"], widget.view["message"]) == (1, 1, "")
    widget._handle_custom_msg({"command": "write", "text": ""}, [])
    assert (widget.view["turn"], widget.view["index"]) == (2, 1)
    assert "nothing typed" in widget.view["message"]
    widget._handle_custom_msg({"command": "back"}, [])
    assert (widget.view["turn"], widget.view["message"]) == (3, "")


def test_nothing_is_loaded_from_outside(widget):
    for text in (widget._esm, widget._css):
        assert "http" not in str(text)
        assert "import " not in str(text)
        assert "innerHTML" not in str(text)


def test_the_explorers_numbers_are_those_of_generation(random_model, tokenizer):
    settings = {"temperature": 0.6, "top_k": 7, "top_p": 0.9}
    step = next(generate_steps(random_model, tokenizer, PROMPT, max_new_tokens=1, do_sample=True, seed=0, **settings))
    sampling = Sampling(step.logits, tokenizer)
    assert not sampling.step.processed
    sampling.change(**settings)
    assert list(sampling.step.processed) == list(step.processed)
    for name, scores in sampling.step.processed.items():
        assert torch.equal(scores, step.processed[name])


def test_the_explorer_keeps_its_settings_when_one_cannot_work(tokenizer):
    sampling = Sampling(torch.randn(len(tokenizer)), tokenizer)
    for wrong in ({"temperature": 0.0}, {"top_k": -1}, {"top_p": 1.5}):
        with pytest.raises(BadInputError, match=next(iter(wrong))):
            sampling.change(**wrong)
    assert sampling.settings == {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


def test_a_slider_reaches_settings_outside_its_usual_range(tokenizer):
    shown = Sampling(torch.randn(len(tokenizer)), tokenizer, top_k=500).view()["sliders"]
    assert next(s for s in shown if s["name"] == "top_k")["max"] == 500


@pytest.mark.parametrize("wrong", ["text", torch.zeros(2, 3), None])
def test_the_explorer_says_what_it_takes(wrong, tokenizer):
    with pytest.raises(BadInputError, match="logits"):
        sampling_explorer(wrong, tokenizer)
