"""Hidden states set beside each other: what is computed from one run or from two."""

import pytest
import torch

from helpers.errors import BadInputError
from helpers.inside import logit_lens, steer, trace
from helpers.inside.changes import Change, all_changes
from helpers.inside.comparisons import (
    change_from_below,
    cosine,
    distance,
    nearest,
    opposite,
    overlap,
    run_prompt,
    writers_of,
)

IDS = torch.tensor([[3, 17, 5, 44, 9]])


def test_a_run_is_what_trace_and_lens_give(tiny, tokenizer):
    run = run_prompt(tiny, tokenizer, IDS)
    traced = trace(tiny, tokenizer, IDS)
    assert torch.allclose(run.stream[:-1], traced.hidden_states[:-1], atol=1e-5)
    assert torch.allclose(run.stream[-1], traced.last_residual, atol=1e-5)
    assert torch.equal(run.lens.token_ids, logit_lens(tiny, traced, top_k=10).token_ids)
    assert torch.allclose(run.logits, traced.logits[-1], atol=1e-5)
    assert run.shown == range(5) and run.labels == traced.tokens and run.no_lens == ""


def test_some_positions_of_a_long_prompt(tiny, tokenizer):
    whole = run_prompt(tiny, tokenizer, IDS)
    part = run_prompt(tiny, tokenizer, IDS, most=2, after=1)
    assert part.shown == range(2, 4) and len(part.labels) == 5
    assert torch.allclose(part.stream, whole.stream[:, 2:4], atol=1e-5)
    assert part.lens.token_ids.shape[1] == 2
    assert torch.allclose(part.logits, whole.logits, atol=1e-5), "what comes next is still said of the whole prompt"
    assert run_prompt(tiny, tokenizer, IDS, most=2, after=99).shown == range(2)


def test_changes_act_on_the_run_and_leave_the_model_as_it_was(tiny, tokenizer):
    before = run_prompt(tiny, tokenizer, IDS)
    direction = torch.arange(32.0) / 32
    changes = [Change("steer", layer=1, vector=direction, scale=3.0), Change("skip", layer=2, part="mlp")]
    changed = run_prompt(tiny, tokenizer, IDS, changes=changes)
    with steer(tiny, 1, direction, scale=3.0), Change("skip", layer=2, part="mlp").context(tiny):
        assert torch.allclose(changed.logits, trace(tiny, tokenizer, IDS).logits[-1], atol=1e-5)
    assert not torch.allclose(changed.logits, before.logits, atol=1e-3)
    assert torch.equal(run_prompt(tiny, tokenizer, IDS).logits, before.logits)


def test_a_change_that_cannot_be_done_takes_the_others_back(tiny, tokenizer):
    before = trace(tiny, tokenizer, IDS).logits
    with (
        pytest.raises(BadInputError, match="no layer 9"),
        all_changes(tiny, [Change("skip", layer=0, part="layer"), Change("skip", layer=9, part="layer")]),
    ):
        pass
    assert torch.equal(trace(tiny, tokenizer, IDS).logits, before)


@pytest.mark.parametrize(
    ("change", "text", "code"),
    [
        (
            Change("heads", heads=((0, 1), (2, 3))),
            "ablated: layer 0 head 1, layer 2 head 3",
            "ablate_heads(model, [(0, 1), (2, 3)])",
        ),
        (Change("skip", layer=4, part="attention"), "skipped: layer 4's attention", "skip_attention(model, 4)"),
        (
            Change("patch", layer=1, position=2, about="a value"),
            "patched: layer 1, position 2, from a value",
            "patch_hidden_state(model, 1, 2, value)",
        ),
        (
            Change("steer", layer=1, scale=-1.5, about="towards “a”"),
            "steered: layer 1, towards “a”",
            "steer(model, 1, direction, scale=-1.5)",
        ),
    ],
)
def test_a_change_in_words_and_as_code(change, text, code):
    assert change.text == text and change.code == code


def test_who_wrote_adds_up_to_the_logit(tiny, tokenizer):
    run = run_prompt(tiny, tokenizer, IDS)
    token = int(run.logits.argmax())
    direct = writers_of(tiny, tokenizer, run, 3, 4, token)
    assert direct.total == pytest.approx(float(run.logits[token]), abs=1e-3)
    assert direct.embedding + float(direct.attention.sum() + direct.mlp.sum()) == pytest.approx(direct.total, abs=1e-3)


def test_the_most_similar_states_of_a_layer(tiny, tokenizer):
    runs = [run_prompt(tiny, tokenizer, IDS), run_prompt(tiny, tokenizer, IDS[:, 1:])]
    likes = nearest(runs, 0, 2, 4, most=20)
    assert len(likes) == 8 and (0, 4) not in [(like.run, like.position) for like in likes]
    assert [like.cosine for like in likes] == sorted((like.cosine for like in likes), reverse=True)
    states = torch.cat([run.stream[2] for run in runs])
    best = likes[0]
    row = best.position + 5 * best.run
    assert best.cosine == pytest.approx(float(cosine(states[row], states[4])), abs=1e-5)
    mean = states.mean(0)
    assert best.centred == pytest.approx(float(cosine(states[row] - mean, states[4] - mean)), abs=1e-5)
    assert len(nearest(runs, 1, 2, 3, most=2)) == 2


def test_steps_and_distances():
    stream = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[6.0, 8.0], [0.0, 0.0]]])
    change = change_from_below(stream)
    assert change[0].isnan().all()
    assert change[1].tolist() == pytest.approx([0.5, 0.0]), "a state of zeros is no division by zero"
    assert distance(stream[0], stream[1]).tolist() == pytest.approx([5 / 7.5, 0.0])


def test_two_prompts_meet_at_their_ends(tiny, tokenizer):
    longer, shorter = run_prompt(tiny, tokenizer, IDS), run_prompt(tiny, tokenizer, IDS[:, :3])
    both = overlap(longer, shorter)
    assert (both.first, both.second) == (slice(2, 5), slice(0, 3))
    assert opposite(longer, shorter, 2) == 4 and opposite(shorter, longer, 0) == -2
    early = run_prompt(tiny, tokenizer, IDS, most=2, after=3)
    assert overlap(early, shorter) is None, "what is shown of the two does not meet"


def test_a_model_without_a_lens_is_run_all_the_same(tiny, tokenizer, monkeypatch):
    def refuse(*arguments, **settings):
        raise BadInputError("TinyModel has no final norm: there is no lens.")

    monkeypatch.setattr("helpers.inside.comparisons.logit_lens", refuse)
    run = run_prompt(tiny, tokenizer, IDS)
    assert run.lens is None and run.no_lens == "TinyModel has no final norm: there is no lens."
    assert run.stream.shape == (4, 5, 32)
