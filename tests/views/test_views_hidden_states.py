"""The panel over hidden states: what it shows, what its commands do, and that it leaves the model as it was."""

import json

import pytest
import torch

import helpers
from helpers.errors import BadInputError, HelpersError, PromptTooLongError
from helpers.inside.interventions import ablate_heads, patch_hidden_state, skip_mlp, steer
from helpers.inside.lens import logit_lens
from helpers.inside.tracing import trace
from helpers.views.hidden_states import MOST_POSITIONS, HiddenStates, hidden_state_explorer

GERMANY, FRANCE = "The capital of Germany is", "The capital of France is"


@pytest.fixture(scope="module")
def panel(model, tokenizer):
    return hidden_state_explorer(model, tokenizer, GERMANY)


@pytest.fixture
def states(tiny, tokenizer):
    """A panel over a tiny random model, Llama and GLM; ids, since its vocabulary is 64."""
    return HiddenStates(tiny, tokenizer, [3, 17, 5, 44, 9])


def best(model, ids):
    return model(torch.tensor([ids])).logits[0, -1]


def test_what_the_grid_shows(model, tokenizer, panel):
    view = panel.state.view()
    assert json.loads(json.dumps(view)) == view, "plain values, and no nan"
    grid, run = view["grids"][0], trace(model, tokenizer, GERMANY, attentions=False)
    lens = logit_lens(model, run, top_k=10)
    assert grid["tokens"] == list(run.tokens)
    assert len(grid["says"]) == 31 and grid["says"][-1][-1] == "·Berlin"
    assert grid["probability"][20][3] == pytest.approx(float(lens.probabilities[20, 3, 0]), rel=1e-3)
    assert grid["entropy"][20][3] == pytest.approx(float(lens.entropy[20, 3]), rel=1e-3)
    assert grid["norm"][20][3] == pytest.approx(float(run.hidden_states[20, 3].norm()), rel=1e-3)
    assert grid["norm"][30][3] == pytest.approx(float(run.last_residual[3].norm()), rel=1e-3)
    step = run.hidden_states[20, 3] - run.hidden_states[19, 3]
    assert grid["change"][20][3] == pytest.approx(float(step.norm() / run.hidden_states[20, 3].norm()), rel=1e-3)
    assert grid["change"][0] == [None] * 5
    assert view["difference"] is None and view["changes"] == [] and view["choices"] == [""]


def test_one_cell(model, tokenizer, panel):
    panel.do("look", grid=0, layer=30, position=4)
    cell = panel.state.view()["cell"]
    assert cell["top"][0]["label"] == "·Berlin" and len(cell["top"]) == 10
    logit = float(trace(model, tokenizer, GERMANY).logits[-1].max())
    assert cell["writers"]["total"] == pytest.approx(logit, abs=0.05)
    written = torch.tensor(cell["writers"]["table"])
    assert written.shape == (30, 10), "nine heads and the MLP"
    assert float(written.sum()) + cell["writers"]["embedding"] == pytest.approx(logit, abs=0.05)
    layer, column = cell["writers"]["best"][0]
    assert abs(float(written[layer, column])) == pytest.approx(float(written.abs().max()))
    stream = panel.state.panel.run.stream[30]
    cosines = torch.nn.functional.cosine_similarity(stream, stream[4:5])
    nearest = cosines[:4].argmax()
    assert cell["neighbours"][0]["position"] == int(nearest)
    assert cell["neighbours"][0]["cosine"] == pytest.approx(float(cosines[nearest]), abs=1e-3)
    assert panel.state.view()["grids"][0]["cosine"][30] == pytest.approx(cosines.tolist(), abs=1e-3)
    panel.do("look", grid=0, layer=12, position=2, token_id=7)
    cell = panel.state.view()["cell"]
    assert cell["asked"]["id"] == 7 and not torch.tensor(cell["writers"]["table"])[12:].any()


def test_two_prompts_and_their_difference(panel):
    panel.do("compare_with", text=FRANCE)
    view = panel.state.view()
    assert [grid["says"][-1][-1] for grid in view["grids"]] == ["·Berlin", "·Paris"]
    apart = torch.tensor(view["difference"]["token"])
    assert apart.shape == (31, 5) and not apart[:, :3].any() and (apart[:, 3] > 0.05).all() and apart[0, 4] == 0
    panel.do("look", grid=1, layer=8, position=3)
    assert panel.state.view()["cell"]["token"] == "·France"
    panel.do("compare_with", text="Paris")  # of another length: matched from the end
    assert torch.tensor(panel.state.view()["difference"]["token"]).shape[1] < 5
    assert panel.state.panel.cell.grid == 1, "the cell looked at is still in the second grid"
    panel.do("compare_with", text="")
    assert len(panel.state.view()["grids"]) == 1 and panel.state.panel.cell.grid == 0


def test_changes_are_the_librarys_interventions(tiny, states):
    ids = [3, 17, 5, 44, 9]
    before = best(tiny, ids)
    value, direction = torch.ones(32), torch.arange(32.0) / 32
    states.toggle_head(1, 2)
    states.toggle_head(2, 0)
    states.skip(0, "mlp")
    states.patch(1, 3, value=value)
    states.steer(2, vector=direction, scale=2)
    with (
        ablate_heads(tiny, [(1, 2), (2, 0)]),
        skip_mlp(tiny, 0),
        patch_hidden_state(tiny, 1, 3, value),
        steer(tiny, 2, direction, scale=2),
    ):
        expected = best(tiny, ids)
    assert torch.allclose(states.panel.changed.logits, expected, atol=1e-4)
    assert torch.equal(states.panel.run.logits, before) and torch.equal(best(tiny, ids), before)
    with states.interventions():
        assert torch.allclose(best(tiny, ids), expected, atol=1e-4)
    assert torch.equal(best(tiny, ids), before)
    view = states.view()
    assert view["beside"] == "changed" and len(view["grids"]) == 2 and len(view["changes"]) == 4
    assert view["ablated"] == [[1, 2], [2, 0]]
    for part in ("ablate_heads(model, [(1, 2), (2, 0)])", "skip_mlp(model, 0)", "steer(model, 2, direction, scale=2)"):
        assert part in view["code"]
    states.change(3, scale=-1.5)
    assert not torch.allclose(states.panel.changed.logits, expected, atol=1e-3)
    states.toggle_head(1, 2)
    states.toggle_head(2, 0)
    assert [change.kind for change in states.panel.changes] == ["skip", "patch", "steer"]
    states.remove(1)
    states.look(1, 3, 4)
    assert states.view()["cell"]["writers"]["put_in"] != 0, "what steering added is told apart"
    states.clear()
    assert states.panel.changed is None and states.view()["beside"] == "" and states.view()["code"] == ""


def test_patched_from_the_second_prompt(panel):
    panel.do("type", text=GERMANY)
    panel.do("compare_with", text=FRANCE)
    panel.do("patch", layer=30, position=4)
    candidates = panel.state.view()["candidates"]
    paris = next(row for row in candidates if row["label"] == "·Paris")
    assert paris["p"][1] > 0.5 > paris["p"][0]
    assert "from ·is of the second prompt" in panel.state.panel.changes[0].text
    panel.do("patch", layer=30, position=4)
    assert len(panel.state.panel.changes) == 1, "the same place is not patched twice"
    panel.do("steer", layer=12, towards="I love it", away="I hate it")
    panel.do("type", text="你好")
    assert [change.kind for change in panel.state.panel.changes] == ["steer"], "a patch belonged to the old prompt"
    panel.do("write_on")
    assert len(panel.state.panel.texts) == 2 and all(panel.state.panel.texts)
    panel.do("clear")
    panel.do("compare_with", text="")


def _hooks(model):
    """How many each module has. (`transformers` itself leaves some once it was asked for hidden states.)"""
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_the_model_is_bit_for_bit_as_before(model, tokenizer, panel, monkeypatch):
    hooks = _hooks(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = trace(model, tokenizer, GERMANY).logits
    panel.do("skip", layer=4)

    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("helpers.inside.comparisons.logit_lens", interrupted)
    with monkeypatch.context() as patched:
        patched.setattr(model.model.layers[7].mlp, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            panel.do("skip", layer=5)
    assert len(panel.state.panel.changes) == 1, "a run that did not end changes nothing"
    assert _hooks(model) == hooks
    assert torch.equal(trace(model, tokenizer, GERMANY).logits, logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    monkeypatch.undo()
    panel.do("clear")


@pytest.fixture(scope="module")
def small(new_tiny, tokenizer):
    """A random model that knows the tokenizer's ids: windows are the same for any model."""
    return new_tiny("Llama", vocab_size=len(tokenizer), num_hidden_layers=8)


def test_a_long_prompt_shows_its_end(small, tokenizer):
    states = HiddenStates(small, tokenizer, list(range(100, 100 + MOST_POSITIONS + 20)))
    grid = states.view()["grids"][0]
    assert grid["first"] == 20 and len(grid["tokens"]) == MOST_POSITIONS and grid["length"] == MOST_POSITIONS + 20
    with pytest.raises(BadInputError, match="no cell at layer 3, position 19"):
        states.look(0, 3, 19)


@pytest.fixture(scope="module")
def long(small, tokenizer):
    return HiddenStates(small, tokenizer, list(range(100, 120 + MOST_POSITIONS)))


def test_earlier_positions_of_a_long_prompt(small, tokenizer, long):
    assert long.view()["window"] == {"size": MOST_POSITIONS, "after": 0, "farthest": 20}
    best, candidates = long.panel.run.logits, long.view()["candidates"]
    long.do("window", after=15)
    view, whole = long.view(), trace(small, tokenizer, list(range(100, 120 + MOST_POSITIONS)), attentions=False)
    grid = view["grids"][0]
    assert grid["first"] == 5 and grid["tokens"] == list(whole.tokens[5 : 5 + MOST_POSITIONS])
    assert all(len(row) == MOST_POSITIONS for row in grid["says"])
    assert torch.allclose(long.panel.run.stream[7], whole.hidden_states[7, 5 : 5 + MOST_POSITIONS], atol=1e-3)
    assert torch.allclose(long.panel.run.logits, best, atol=1e-3), "the next token is still that of the whole prompt"
    assert [row["id"] for row in view["candidates"]] == [row["id"] for row in candidates]
    assert long.panel.cell.position == 100, "the cell looked at is the nearest that is shown"
    long.look(0, 3, 5)
    long.do("compare_with", text=list(range(100, 110 + MOST_POSITIONS)))  # shorter by 10: as far back as it reaches
    view = long.view()
    assert [grid["first"] for grid in view["grids"]] == [5, 0]
    apart = torch.tensor(view["difference"]["token"])
    assert apart.shape[1] == MOST_POSITIONS - 5, "only what both show, matched from the end"
    one, two = trace(small, tokenizer, long.panel.run.input_ids).hidden_states, long.panel.other.stream
    far = (one[4, 10] - two[4, 0]).norm() / ((one[4, 10].norm() + two[4, 0].norm()) / 2)
    assert apart[4, 0] == pytest.approx(float(far), rel=0.01)
    long.do("skip", layer=2)
    assert long.view()["grids"][1]["first"] == 5, "a change keeps the part that is shown"
    for after in (21, -1, True, "3", None):
        with pytest.raises(BadInputError, match="from 0 to 20"):
            long.window(after)
    long.do("type", text="short")
    view = long.view()
    assert view["window"]["after"] == 0 and view["window"]["farthest"] == 10, "the second prompt is still long"
    long.do("beside", what="other")
    assert long.view()["grids"][1]["first"] == 10
    long.do("window", after=10)
    assert [grid["first"] for grid in long.view()["grids"]] == [0, 0]
    assert long.view()["difference"] is None, "these parts do not meet"


def test_a_patch_goes_opposite_the_cell_whatever_the_lengths(model, tokenizer):
    longer = "I ask you: the capital of Germany is"
    for prompt, other in ((longer, FRANCE), (FRANCE, longer)):
        states = HiddenStates(model, tokenizer, prompt, other=other)
        end, end_of_other = len(states.panel.run.labels) - 1, len(states.panel.other.labels) - 1
        states.look(1, 10, end_of_other)
        place = states.view()["cell"]["patch"]
        assert place == {"position": end, "token": "·is"}
        states.do("patch", layer=10, position=place["position"])
        assert torch.equal(states.panel.changes[0].vector, states.panel.other.stream[10, -1])
        states.look(0, 10, end)
        assert states.view()["cell"]["patch"]["position"] == end
        states.clear()
    assert states.view()["grids"][1]["length"] > states.view()["grids"][0]["length"]
    states.look(1, 10, 0)
    assert states.view()["cell"]["patch"] is None, "nothing of the prompt is opposite the longer one's beginning"
    states.compare_with("")
    assert states.view()["cell"]["patch"] is None


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("type", {"text": ""}, "The prompt is empty"),
        ("look", {"grid": 1, "layer": 0, "position": 0}, "no grid 1"),
        ("look", {"grid": 0, "layer": 4, "position": 0}, "no cell at layer 4"),
        ("look", {"grid": 0, "layer": 0, "position": 0, "token_id": 64}, "no token id 64"),
        ("toggle_head", {"layer": 0, "head": 4}, "no head 4"),
        ("skip", {"layer": 3}, "no layer 3"),
        ("skip", {"layer": 0, "part": "norm"}, "not 'norm'"),
        ("patch", {"layer": 0, "position": 1}, "set a second prompt first"),
        ("patch", {"layer": 0, "position": 9, "value": torch.ones(32)}, "no position 9"),
        ("steer", {"layer": 1}, "needs a direction"),
        ("steer", {"layer": 9, "towards": "a"}, "no hidden state 9"),
        ("steer", {"layer": 1, "vector": torch.ones(3)}, "this vector is"),
        ("steer", {"layer": 1, "vector": torch.ones(32), "scale": float("nan")}, "strength of steering is a number"),
        ("change", {"index": 0, "scale": 1}, "no change 0"),
        ("remove", {"index": True}, "no change True"),
        ("beside", {"what": "other"}, "set a second prompt"),
        ("figure", {}, "no command 'figure'"),
    ],
)
def test_what_cannot_work_changes_nothing(states, command, arguments, message):
    before = states.view()
    with pytest.raises(BadInputError, match=message):
        states.do(command, **arguments)
    assert states.view() == before


def test_a_sentence_in_the_panel_instead_of_a_traceback(panel):
    turn, prompt = panel.view["turn"], panel.view["prompt"]
    panel._answer(panel, {"command": "type", "text": "word " * 9000}, [])
    assert "the model's context is 8192" in panel.view["message"]
    assert panel.view["turn"] == turn + 1 and panel.view["prompt"] == prompt
    panel._answer(panel, {"command": "look", "grid": 0}, [])
    assert "missing" in panel.view["message"] and panel.view["turn"] == turn + 2, "an incomplete wish has its answer"
    with pytest.raises(PromptTooLongError):
        panel.do("type", text="word " * 9000)
    with pytest.raises(HelpersError):
        hidden_state_explorer(panel.state.model, panel.state.tokenizer, "")


def test_chinese_fragments_and_markup_are_labels(panel):
    panel.do("type", text="<b>星期</b>")
    tokens = panel.view["grids"][0]["tokens"]
    assert any(token.endswith("1/2") for token in tokens) and "<" in tokens[0]
    assert "\ufffd" not in json.dumps(panel.view, ensure_ascii=False)
    panel.do("type", text="a\x1b[0mb\x0c\nc")
    assert panel.view["prompt"] == "a\x1b[0mb\x0c\nc", "what is typed comes back as it is"
    assert panel.view["title"] == "a<U+001B>[0mb<U+000C>⏎c", "no XML can hold control characters"


def test_without_a_kernel_there_is_a_picture(panel):
    assert helpers.hidden_state_explorer is hidden_state_explorer
    assert panel.picture().startswith(b"\x89PNG")
    assert repr(panel).startswith("hidden_state_explorer: 31 rows")
    assert set(panel.state.commands) <= set(dir(panel.state))


def _refusing(monkeypatch, name, sentence):
    def refuse(*arguments, **settings):
        raise BadInputError(sentence)

    monkeypatch.setattr(f"helpers.inside.comparisons.{name}", refuse)


def test_without_a_lens_the_other_parts_work_and_this_one_says_why(tiny, tokenizer, monkeypatch):
    _refusing(monkeypatch, "logit_lens", "TinyModel has no final norm: there is no logit lens.")
    states = HiddenStates(tiny, tokenizer, [3, 17, 5, 44, 9], other=[3, 17, 5, 44, 8])
    view = states.view()
    assert json.loads(json.dumps(view)) == view
    why = "TinyModel has no final norm: there is no logit lens."
    assert view["no_lens"] == view["cell"]["no_top"] == view["cell"]["no_writers"] == why
    grid = view["grids"][0]
    assert grid["says"] is None and grid["probability"] is None and view["cell"]["top"] == []
    assert len(grid["norm"]) == 4 and len(grid["cosine"]) == 4 and len(view["candidates"]) == 10
    assert view["difference"]["says"] is None and view["difference"]["norm"][3][0] == 0
    assert view["cell"]["neighbours"] and view["cell"]["asked"] == {"id": None, "label": ""}
    states.look(0, 3, 4, token_id=7)
    assert states.view()["cell"]["writers"] is not None, "a token that is asked for has its writers"
    states.skip(1)
    assert len(states.view()["changes"]) == 1
    assert "next token" in states.figure().get_title()
    assert states.describe().startswith("hidden_state_explorer: 4 rows")


def test_without_contributions_the_other_parts_work_and_this_one_says_why(tiny, tokenizer, monkeypatch):
    _refusing(monkeypatch, "residual_contributions", "The parts of TinyModel do not add up.")
    states = HiddenStates(tiny, tokenizer, [3, 17, 5, 44, 9])
    cell = states.view()["cell"]
    assert cell["writers"] is None and cell["no_writers"] == "The parts of TinyModel do not add up."
    assert len(cell["top"]) == 10 and cell["asked"]["id"] == cell["top"][0]["id"]
    monkeypatch.undo()
    states.look(0, 2, 2)
    assert states.view()["cell"]["writers"]["table"] and states.view()["cell"]["no_writers"] == ""


def test_a_view_is_drawn_without_running_the_model(states, monkeypatch):
    states.compare_with([3, 17, 5, 44, 8])
    monkeypatch.setattr(states.model, "forward", None)
    assert states.view() == states.view()
    assert states.figure() is not None and states.describe()
