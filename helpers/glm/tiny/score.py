"""How well the tiny GLM-4V sees: `python -m helpers.glm.tiny.score FOLDER`; `--card` writes the scores into its card.

New pictures are drawn, from seeds that the training never used and with handwritten digits that it never saw. The
model decodes greedily, turn by turn, and its own earlier answers are part of the prompt. An answer counts if it
matches the right one letter for letter.

`everyday.json` holds questions as people ask them, written by someone who had not seen `wordings`. The model was not
trained on any of them. There an answer counts if it names the colour or shape in question, and no other one.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from helpers.glm.tiny.scenes import COLOURS, SHAPES, draw, random_scene
from helpers.glm.tiny.talk import SMALL_TALK, ZH, conversation

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor
    from transformers import PreTrainedModel

    from helpers.glm.tiny.scenes import Scene, Thing

EVERYDAY = Path(__file__).with_name("everyday.json")

UNSEEN = 1_000_000  # seeds from here on are never used in training
LANGUAGES = ("en", "zh")
# The measurements of attention: (its name in the scores, its row in the card, shapes in the picture).
LOOKS = (("attention", "attention on the shape", 1), ("attention of two", "… on the right one of two shapes", 2))


def examination(seed: int, count: int) -> list[tuple[Any, str, list[tuple[str, str, str]]]]:
    """`count` scenes, with one conversation per scene and language: [(picture, language, turns)]."""
    dice = random.Random(UNSEEN + seed)
    scenes = [random_scene(dice, part="test") for _ in range(count)]
    return [(draw(scene), language, conversation(dice, scene, language)) for scene in scenes for language in LANGUAGES]


def answer_turns(model: PreTrainedModel, processor: Any, talks: list[Any], *, batch: int = 32) -> list[list[str]]:
    """The model's answers: [[text of turn 0, …] of talk 0, …]; `talks` are [(picture or None, questions)]."""
    histories = [[] for _ in talks]
    for turn in range(max(len(questions) for _, questions in talks)):
        open_talks = [index for index, (_, questions) in enumerate(talks) if turn < len(questions)]
        open_talks.sort(key=lambda index: sum(len(message["content"]) for message in histories[index]))
        for start in range(0, len(open_talks), batch):
            chosen = open_talks[start : start + batch]
            for index in chosen:
                picture, questions = talks[index]
                message = {"role": "user", "content": questions[turn]}
                histories[index].append(message | ({"image": picture} if turn == 0 and picture is not None else {}))
            inputs = processor.apply_chat_template(
                [histories[index] for index in chosen], add_generation_prompt=True, padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                output_ids = model.generate(**inputs, do_sample=False, max_length=None, max_new_tokens=80)
            for index, ids in zip(chosen, output_ids[:, inputs["input_ids"].shape[1] :], strict=True):
                text = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
                histories[index].append({"role": "assistant", "content": text})
    return [[m["content"] for m in history if m["role"] == "assistant"] for history in histories]


def score_answers(
    model: PreTrainedModel, processor: Any, *, seed: int = 0, count: int = 300
) -> tuple[dict[Any, tuple[int, int]], list[Any]]:
    """({(kind, language): (right, asked)}, [(language, question, wanted, got) of the wrong answers])."""
    talks = examination(seed, count)
    answers = answer_turns(model, processor, [(picture, [q for q, _, _ in turns]) for picture, _, turns in talks])
    right, asked, wrong = Counter(), Counter(), []
    for (_, language, turns), given in zip(talks, answers, strict=True):
        for (question, wanted, kind), got in zip(turns, given, strict=True):
            asked[kind, language] += 1
            right[kind, language] += got == wanted
            if got != wanted:
                wrong.append((language, question, wanted, got))
    return {key: (right[key], asked[key]) for key in sorted(asked)}, wrong


def everyday_questions(seed: int) -> list[tuple[str, str, Scene, str, str, list[str]]]:
    """[(kind, language, scene, question, words that the answer must name, words that it must not)]."""
    dice, asked = random.Random(UNSEEN + seed), []
    for kind, by_language in json.loads(EVERYDAY.read_text(encoding="utf-8")).items():
        for language, questions in by_language.items():
            for question in questions:
                scene, thing = scene_to_ask_about(dice, 2 if "{}" in question else 1)
                while len({shape.colour for shape in scene.things}) < len(scene.things):
                    scene, thing = scene_to_ask_about(dice, 2)
                attribute, given = ("colour", "kind") if kind == "colour" else ("kind", "colour")
                names = dict.fromkeys((*COLOURS, *SHAPES)) if language == "en" else ZH
                called = {name: name if language == "en" else ZH[name] for name in names}
                others = COLOURS if kind == "colour" else SHAPES
                wanted = getattr(thing, attribute)
                question = question.format(called[getattr(thing, given)])
                wrong = [called[name] for name in others if name != wanted]
                asked.append((kind, language, scene, question, called[wanted], wrong))
    return asked


def score_everyday(
    model: Any, processor: Any, *, seed: int = 0
) -> tuple[dict[tuple[str, str], tuple[int, int]], list[tuple[str, str, str, str]], int]:
    """({(kind, language): (right, asked)}, [(language, question, wanted, got) of the wrong answers], the number of
    broken characters)."""
    asked = everyday_questions(seed)
    answers = answer_turns(model, processor, [(draw(scene), [question]) for _, _, scene, question, _, _ in asked])
    right, total, wrong, broken = Counter(), Counter(), [], 0
    for (kind, language, _, question, wanted, others), (got,) in zip(asked, answers, strict=True):
        said = got.replace("橘色", "橙色")
        good = wanted in said and not any(other in said for other in others)
        total[kind, language] += 1
        right[kind, language] += good
        broken += got.count("\N{REPLACEMENT CHARACTER}")
        if not good:
            wrong.append((language, question, wanted, got))
    return {key: (right[key], total[key]) for key in sorted(total)}, wrong, broken


def score_small_talk(model: PreTrainedModel, processor: Any) -> tuple[int, int]:
    """(right, asked) for the turns that the model learned by heart."""
    talks = [turns for language in LANGUAGES for turns in SMALL_TALK[language]]
    answers = answer_turns(model, processor, [(None, [question for question, _ in turns]) for turns in talks])
    pairs = [
        got == wanted
        for turns, given in zip(talks, answers, strict=True)
        for (_, wanted), got in zip(turns, given, strict=True)
    ]
    return sum(pairs), len(pairs)


def score_attention(
    model: PreTrainedModel, processor: Any, *, seed: int = 0, count: int = 100, language: str = "en", shapes: int = 1
) -> Tensor:
    """[layer, head]: the fraction of pictures in which the two most attended patches lie on the shape asked about.

    The query is the position that predicts the answer's colour word ("The circle is" before " red"). With one shape
    it is enough to find what is not background; with `shapes=2`, of two kinds, a head has to find the right one.

    >>> from helpers.models.loading import load_model
    >>> from helpers.models.pretrained import load_processor
    >>> tiny, processor = load_model("tiny-glm4v", device="cpu"), load_processor("tiny-glm4v")
    >>> list(score_attention(tiny, processor, count=2).shape)
    [6, 6]
    """
    from helpers.inside.tracing import trace

    hits: Any = 0
    dice = random.Random(UNSEEN + seed)
    for _ in range(count):
        scene, asked = scene_to_ask_about(dice, shapes)
        kind = asked.kind if language == "en" else ZH[asked.kind]
        question = f"What colour is the {kind}?" if language == "en" else f"{kind}是什么颜色的？"
        begun = f"The {kind} is" if language == "en" else f"{kind}是"
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": question, "image": draw(scene)}, {"role": "assistant", "content": begun}],
            return_tensors="pt",
        )
        run = trace(
            model,
            processor.tokenizer,
            inputs["input_ids"],
            hidden_states=False,
            pixel_values=inputs["pixel_values"],
        )
        weights = run.attentions[:, :, -1, run.patch_index >= 0]
        top = weights.topk(2).indices
        on_shape = torch.from_numpy(covered_patches(replace(scene, things=(asked,)), weights.shape[-1]))
        hits = hits + on_shape[top].all(-1).float()
    return hits / count


def scene_to_ask_about(dice: random.Random, shapes: int) -> tuple[Scene, Thing]:
    """(a scene of `shapes` shapes, all of different kinds, and the one to ask about)."""
    while True:
        scene = random_scene(dice, count=shapes, with_digit=False)
        if len({thing.kind for thing in scene.things}) == shapes:
            return scene, scene.things[0]


def covered_patches(scene: Scene, patches: int) -> ndarray:
    """[patch]: whether a thing covers any of it.

    >>> bool(covered_patches(random_scene(random.Random(0), count=1, with_digit=False), 144).any())
    True
    """
    import numpy

    side = 96
    grid = int(patches**0.5)
    empty = draw(scene.__class__((), scene.background, 0.0), side)
    full = draw(scene.__class__(scene.things, scene.background, 0.0), side)
    changed = (numpy.asarray(full) != numpy.asarray(empty)).any(-1)
    return changed.reshape(grid, side // grid, grid, side // grid).any((1, 3)).flatten()


def scores(
    model: PreTrainedModel, processor: Any, *, seed: int = 0, count: int = 300
) -> tuple[dict[str, Any], list[Any]]:
    """All scores in one dictionary that can be saved as JSON, and the wrong answers."""
    answers, wrong = score_answers(model, processor, seed=seed, count=count)
    found: dict[str, Any] = {"seed": seed, "answers": {}, "everyday": {}}
    for (kind, language), (right, asked) in answers.items():
        found["answers"].setdefault(kind, {})[language] = {"right": right, "asked": asked}
    everyday, misread, broken = score_everyday(model, processor, seed=seed)
    for (kind, language), (right, asked) in everyday.items():
        found["everyday"].setdefault(kind, {})[language] = {"right": right, "asked": asked}
    found["broken characters"] = broken
    wrong += misread
    right, asked = score_small_talk(model, processor)
    found["by heart"] = {"right": right, "asked": asked}
    for name, _, shapes in LOOKS:
        found[name] = {}
        for language in LANGUAGES:  # the head is chosen on one set of pictures and measured on another
            choice = score_attention(model, processor, seed=seed + 1, language=language, shapes=shapes)
            layer, head = divmod(int(choice.argmax()), choice.shape[1])
            share = score_attention(model, processor, seed=seed, language=language, shapes=shapes)[layer, head].item()
            found[name][language] = {"layer": layer, "head": head, "share": round(share, 3)}
    return found, wrong


def card_table(found: dict[str, Any]) -> str:
    """The scores as a Markdown table."""
    lines = ["| question about | English | Chinese |", "|---|---|---|"]
    for kind, by_language in found["answers"].items():
        cells = [f"{100 * s['right'] / s['asked']:.1f}% of {s['asked']}" for s in map(by_language.get, LANGUAGES)]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    for kind, by_language in found["everyday"].items():
        cells = [f"{100 * s['right'] / s['asked']:.1f}% of {s['asked']}" for s in map(by_language.get, LANGUAGES)]
        lines.append(f"| {kind}, in everyday wording | {' | '.join(cells)} |")
    for name, row, _ in LOOKS:
        if name in found:
            looks = [found[name][language] for language in LANGUAGES]
            cells = [f"{100 * look['share']:.0f}% (layer {look['layer']}, head {look['head']})" for look in looks]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    heart = found["by heart"]
    lines += ["", f"Of the sentences learned by heart: {heart['right']} of {heart['asked']}. Broken characters in all"]
    return "\n".join([*lines, f"answers to everyday questions: {found['broken characters']}."])


def write_card(folder: Path, found: dict[str, Any]) -> None:
    """Write `scores.json`, and put the table between the marks in the folder's `README.md`."""
    (folder / "scores.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    before, begin, rest = (folder / "README.md").read_text(encoding="utf-8").partition("<!-- scores -->\n")
    _, end, after = rest.partition("<!-- end of scores -->")
    (folder / "README.md").write_text(before + begin + card_table(found) + "\n" + end + after, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Print the scores as a table and, if requested, the wrong answers."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.add_argument("--seed", type=int, default=0, help="the random seed of the pictures and questions")
    parser.add_argument(
        "--count", type=int, default=750, help="the number of pictures, each asked about in both languages"
    )
    parser.add_argument("--wrong", action="store_true", help="print each wrong answer")
    parser.add_argument("--card", action="store_true", help="write scores.json and the table in the folder's README.md")
    options = parser.parse_args(arguments)
    from helpers.models.loading import load_model
    from helpers.models.pretrained import load_processor

    model, processor = load_model(options.folder, dtype="float32"), load_processor(options.folder)
    found, wrong = scores(model, processor, seed=options.seed, count=options.count)
    print(card_table(found))
    for line in wrong if options.wrong else []:
        print(*line, sep=" | ")
    if options.card:
        write_card(options.folder, found)


if __name__ == "__main__":
    main()
