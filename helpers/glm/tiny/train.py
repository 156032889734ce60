"""Train the tiny GLM-4V: `python -m helpers.glm.tiny.train FOLDER`. This takes a night on a CPU, minutes on a GPU.

There are four stages, one after the other, and one seed determines them all:

1. "see": only the tower is trained. For each patch that it sends to the language model it learns to tell which kind of
   thing covers it, in which colour, in which region that thing has its centre, whether the centre is here, what the
   thing's whole silhouette looks like, and how many shapes there are in all. Linear heads read these answers from the
   tower's vectors and are thrown away afterwards. (The silhouette teaches the most: it has 64 answers, the name of the
   shape only one.)
2. "look closer": the same on other pictures, most of them with a digit, since ten digits take longer than four shapes.
3. "speak": only the language model is trained, to talk about what the tower sees. It takes long until it finds the
   right one of several shapes, and longer until it understands every way of asking: `wordings` can ask the same
   question in thousands of ways. Occasionally a token of a question is replaced by another one, so that the model can
   cope with a word it has never seen.
4. "refer back": a little more of the same, mostly on pictures with two shapes of the same kind. There the model has to
   answer "Where is it?" by going back to the colour in the previous question.

The weights after each stage are kept in `FOLDER/stages`, so a training run that was stopped continues with the
stage it was in. The final model is saved in bfloat16, in the layout of the original checkpoints.

With `--tower OTHER` the tower is taken from a model that was trained before, and training begins at stage 3. The
shipped model was made that way on one GPU, with the tower of its predecessor, in two sessions that its card
describes. On a CPU the same commands work with smaller batches and more patience: 8,000 steps of 32 pictures take three
hours on one core, after which the model understands the plain questions; the many ways of asking take about ten times
as many steps.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import math
import random
import shutil
import time
from functools import cache
from multiprocessing import Pool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from helpers.glm.tiny.scenes import COLOURS, REGIONS, SHAPES, draw, outline_points, random_scene
from helpers.glm.tiny.talk import CHARACTERS, STRANGERS, conversation, small_talk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedModel

    from helpers.glm.tiny.scenes import Scene, Thing

SIDE, PATCH, GRID = 96, 8, 6
SILHOUETTE = 8  # cells along the side of a silhouette
MOST_THINGS = 4
WINDOW = 4  # the side of the crops that the tower sees first, in patches of the language model
KINDS = ("nothing", *SHAPES, *(f"digit {n}" for n in range(10)))
ENGLISH_RANKS = 1400
MARKS = "，。？！、：；“”…"
TYPING_ERRORS = 0.02  # the fraction of a question's tokens that are replaced while training
SPECIALS = (
    "<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|> "
    "<|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|>"
).split()
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


# ------------------------------------------------------------------------------------------ files


def write_tokenizer(folder: Path, seed: int = 0) -> int:
    """Write `tokenizer.model` (tiktoken ranks) and its config; returns the number of ranks.

    For English it is byte-level BPE trained on the conversations. Each Chinese character in daily use is one token: its
    three bytes are merged in two steps, as BPE would do. No answer is therefore ever made of parts of characters.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    from helpers.models.conversion import LLAMA3_PATTERN  # the same pattern as GLM-4's
    from helpers.text.tokens import byte_alphabet

    dice = random.Random(seed)
    texts = [" ".join(STRANGERS["en"])]
    for _ in range(12_000):
        turns = conversation(dice, random_scene(dice), "en") if dice.random() < 0.9 else small_talk(dice)
        texts += [text for question, answer, _ in turns for text in (question, answer) if text.isascii()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=ENGLISH_RANKS, initial_alphabet=alphabet, show_progress=False)
    )
    bytes_of = byte_alphabet()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes(bytes_of[c] for c in token) for token, _ in vocabulary]
    singles = [token for token in tokens if len(token) == 1]
    characters = [character.encode() for character in CHARACTERS + MARKS]
    firsts = sorted({character[:2] for character in characters})
    ordered = sorted(singles) + firsts + characters + [token for token in tokens if len(token) > 1]
    lines = [b"%s %d" % (base64.b64encode(token), rank) for rank, token in enumerate(ordered)]
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    added = {
        str(len(ordered) + index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for index, token in enumerate(SPECIALS)
    }
    settings = {
        "added_tokens_decoder": added,
        "additional_special_tokens": SPECIALS,
        "clean_up_tokenization_spaces": False,
        "do_lower_case": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 1024,
        "padding_side": "left",
        "remove_space": False,
        "tokenizer_class": "ChatGLM4Tokenizer",
        "image_size": SIDE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return len(ordered)


def write_config(folder: Path, ranks: int) -> None:
    """Write `config.json` and `generation_config.json` in the original layout; `ranks` is the number of text tokens."""
    ids = {token: ranks + index for index, token in enumerate(SPECIALS)}
    stops = [ids["<|endoftext|>"], ids["<|user|>"], ids["<|observation|>"]]
    config = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "ffn_hidden_size": 448,
        "hidden_size": 192,
        "kv_channels": 32,
        "layernorm_epsilon": 1e-5,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 6,
        "num_layers": 6,
        "original_rope": True,
        "padded_vocab_size": math.ceil((ranks + len(SPECIALS)) / 64) * 64,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 1024,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "eos_token_id": stops,
        "pad_token_id": stops[0],
        "boi_token_id": ids["<|begin_of_image|>"],
        "eoi_token_id": ids["<|end_of_image|>"],
        "vision_config": {
            "dropout_prob": 0.0,
            "hidden_act": "gelu",
            "in_channels": 3,
            "num_hidden_layers": 5,
            "hidden_size": 128,
            "patch_size": PATCH,
            "num_heads": 4,
            "intermediate_size": 384,
            "layer_norm_eps": 1e-6,
            "num_positions": (SIDE // PATCH) ** 2 + 1,
            "image_size": SIDE,
            "scaling_factor": 8,
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    generation = {"eos_token_id": stops, "pad_token_id": stops[0], "do_sample": False, "max_length": 1024}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2), encoding="utf-8")


# ------------------------------------------------------------------------------------------ model


def new_model(folder: Path) -> Any:
    """The untrained model. Its position embeddings start as two-dimensional sines and cosines.

    >>> from helpers.models.locate import model_folder
    >>> type(new_model(model_folder("tiny-glm4v"))).__name__
    'ChatGLMForConditionalGeneration'
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    import helpers.glm  # noqa: F401  registers the architecture

    config = AutoConfig.from_pretrained(folder)
    config.initializer_range = 0.03
    model = AutoModelForCausalLM.from_config(config).float()
    vision = model.model.vision
    with torch.no_grad():
        table = vision.patch_embedding.position_embedding.weight
        table[1:] = sines(SIDE // PATCH, table.shape[1])
        nn.init.normal_(vision.patch_embedding.proj.weight, std=0.1)
        for linear in (m for m in vision.modules() if isinstance(m, nn.Linear)):
            nn.init.xavier_uniform_(linear.weight)
        for layer in vision.transformer["layers"]:
            start_like_a_trained_one(layer.attention)
        nn.init.kaiming_normal_(vision.conv.weight)
        vision.linear_proj.dense_4h_to_h.weight.mul_(vision.config.scaling_factor)
    return model


def start_like_a_trained_one(attention: Any) -> None:
    """Make queries and keys alike at the start, so that patches attend to patches that are near and similar.

    Follows Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers" (2023).
    """
    width = attention.query_key_value.in_features
    query, key, _ = attention.query_key_value.weight.split(width)
    for rows in range(0, width, width // attention.config.num_heads):
        directions = torch.linalg.qr(torch.randn(width, width // attention.config.num_heads))[0].T
        query[rows : rows + len(directions)] = key[rows : rows + len(directions)] = 0.7 * directions


def sines(grid: int, width: int) -> torch.Tensor:
    """[grid * grid, width]: sines and cosines of the row and of the column, a quarter of the width each, at
    geometrically spaced frequencies."""
    at = torch.arange(grid, dtype=torch.float32)
    frequencies = math.pi / grid * 2 ** torch.linspace(0, math.log2(grid), width // 4)
    waves = torch.cat([torch.sin(at[:, None] * frequencies), torch.cos(at[:, None] * frequencies)], dim=1)
    rows, columns = waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, width)


class DenseHeads(nn.Module):
    """Linear maps that read from each of the tower's output vectors what it should tell."""

    def __init__(self, hidden: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        sizes = {"kind": len(KINDS), "colour": len(COLOURS), "region": len(REGIONS), "centre": 2}
        sizes |= {f"count {number}": 4 for number in range(1 + len(SHAPES))}
        self.maps = nn.ModuleDict({name: nn.Linear(hidden, size) for name, size in sizes.items()})
        self.silhouette = nn.Linear(hidden, SILHOUETTE**2)
        self.mask = nn.Linear(hidden, 16)
        self.accuracy = {}

    def loss(self, features: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """The summed loss of all heads. `features` is [batch, patch, hidden]; `labels`, by name, are [batch, patch],
        -100 where there is none."""
        features = self.norm(features)
        total: Any = 0.0
        for name, linear in self.maps.items():
            if name not in labels:
                continue
            logits, wanted = linear(features).flatten(0, 1), labels[name].flatten()
            rare = logits.new_tensor([0.3] + [1.0] * (len(KINDS) - 1)) if name == "kind" else None
            share = 0.2 if name.startswith("count") else 1.0
            total = total + share * F.cross_entropy(logits, wanted, weight=rare)
            asked = wanted > 0 if name in ("kind", "centre") else wanted >= 0
            self.accuracy[name] = (logits.argmax(-1) == wanted)[asked].float().mean().item()
        covered = labels["owner"] > 0
        pictures, patches = covered.nonzero(as_tuple=True)
        wanted = labels["silhouettes"][pictures, labels["owner"][pictures, patches] - 1].float()
        guess = self.silhouette(features[pictures, patches])
        self.accuracy["silhouette"] = ((guess > 0) == (wanted > 0.5)).float().mean().item()
        mask = F.binary_cross_entropy_with_logits(self.mask(features), labels["mask"].float())
        return total + 3.0 * F.binary_cross_entropy_with_logits(guess, wanted) + 2.0 * mask


def dense_labels(scene: Scene) -> dict[str, Any]:
    """The labels of each patch, by name, each [GRID * GRID]: see `DenseHeads`.

    A patch belongs to the thing that covers most of it, if that is at least a fifth of the patch. `owner` is that
    thing's number, counted from 1; `silhouettes` [MOST_THINGS, SILHOUETTE**2] shows the things; `mask`
    [GRID * GRID, 16] says which sixteenths of each patch are covered.
    """
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(canvas)
    for number, thing in enumerate(scene.things, start=1):
        if thing.ink is None:
            pen.polygon([(x * SIDE, y * SIDE) for x, y in outline_points(thing)], fill=number)
        else:
            left, top = (thing.x - 0.8 * thing.size) * SIDE, (thing.y - 0.9 * thing.size) * SIDE
            pen.rectangle([left, top, 2 * thing.x * SIDE - left, 2 * thing.y * SIDE - top], fill=number)
    cell = SIDE // GRID
    cells = numpy.asarray(canvas).reshape(GRID, cell, GRID, cell).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    shares = numpy.stack([(cells == n).mean(axis=1) for n in range(len(scene.things) + 1)], axis=1)
    shares[:, 0] = 0.2
    owners = shares.argmax(axis=1)
    labels = {
        "kind": numpy.array([0] + [KINDS.index(t.kind) for t in scene.things])[owners],
        "colour": numpy.array([-100] + [COLOURS.index(t.colour) if t.colour else -100 for t in scene.things])[owners],
        "region": numpy.array([-100] + [REGIONS.index(t.region) for t in scene.things])[owners],
        "centre": numpy.zeros(GRID * GRID, dtype="int64"),
        "owner": owners,
        "mask": (cells > 0).reshape(GRID * GRID, 4, cell // 4, 4, cell // 4).mean((2, 4)).reshape(GRID * GRID, 16)
        > 0.5,
        "silhouettes": numpy.zeros((MOST_THINGS, SILHOUETTE**2)),
    }
    for number, thing in enumerate(scene.things):
        labels["silhouettes"][number] = silhouette(thing)
    for thing in scene.things:
        labels["centre"][int(thing.y * GRID) * GRID + int(thing.x * GRID)] = 1
    shapes = [thing.kind for thing in scene.things if thing.colour]
    for number, count in enumerate([len(shapes), *map(shapes.count, SHAPES)]):
        labels[f"count {number}"] = numpy.full(GRID * GRID, count)
    return labels


def silhouette(thing: Thing) -> Any:
    """[SILHOUETTE**2]: 1 where the thing is, in a frame of its own size."""
    from PIL import Image, ImageDraw

    if thing.ink is not None:
        return (numpy.asarray(thing.ink).flatten() > 7).astype("int8")
    big = 8 * SILHOUETTE
    canvas = Image.new("L", (big, big))
    corners = [((x - thing.x) / thing.size, (y - thing.y) / thing.size) for x, y in outline_points(thing)]
    ImageDraw.Draw(canvas).polygon([(big / 2 * (1 + x / 1.3), big / 2 * (1 + y / 1.3)) for x, y in corners], fill=255)
    return (numpy.asarray(canvas.reduce(8)).flatten() > 127).astype("int8")


# ------------------------------------------------------------------------------------------- data


def drawn_and_labelled(scene: Scene) -> tuple[numpy.ndarray, dict[str, numpy.ndarray]]:
    """A scene's pixels [SIDE, SIDE, 3] and its dense labels."""
    return numpy.array(draw(scene, SIDE)), dense_labels(scene)


class Pictures:
    """A pool of drawn scenes with their pixels and dense labels."""

    def __init__(self, seed: int, count: int, *, digits: float = 0.25, workers: int = 0) -> None:
        dice = random.Random(seed)
        self.scenes = [random_scene(dice, with_digit=dice.random() < digits) for _ in range(count)]
        self.pixels = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
        self.labels = {}
        with Pool(workers) if workers else contextlib.nullcontext() as pool:
            drawn = pool.imap(drawn_and_labelled, self.scenes, chunksize=100) if workers else None
            for index, (pixels, labels) in enumerate(drawn or map(drawn_and_labelled, self.scenes)):
                self.pixels[index] = torch.from_numpy(pixels).permute(2, 0, 1)
                for name, values in labels.items():
                    everyone = self.labels.setdefault(name, torch.empty(count, *values.shape, dtype=torch.int8))
                    everyone[index] = torch.from_numpy(values)

    def batch(self, indices: Any, device: str | torch.device = "cpu") -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`pixel_values` [picture, channel, SIDE, SIDE] and labels of these pictures, on the device."""
        pixels = (self.pixels[indices].float() / 255 - MEAN) / STD
        return pixels.to(device), {name: labels[indices].long().to(device) for name, labels in self.labels.items()}


class Encoder:
    """Turns conversations into ids and labels: only the assistant's words, and the token that ends its turn, are
    learned."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids_of = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIALS}
        self.ordinary = min(self.ids_of.values())  # ids below it are text

    def id(self, token: str) -> int:
        """The id of a control token."""
        return self.ids_of[token]

    def text(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def misspelt(self, ids: list[int], dice: random.Random) -> list[int]:
        """A question with a few tokens replaced by random ones."""
        return [dice.randrange(self.ordinary) if dice.random() < TYPING_ERRORS else token for token in ids]

    def turns(
        self, turns: Sequence[tuple[str, str, str]], picture: bool, dice: random.Random | None = None
    ) -> tuple[list[int], list[int]]:
        """(ids, labels) of a conversation, with or without a picture in its first turn; `dice` adds typing errors."""
        user, assistant, newline = [self.id("<|user|>")], [self.id("<|assistant|>")], self.text("\n")
        ids, labels = [self.id("[gMASK]"), self.id("<sop>")], [-100, -100]
        for index, (question, answer, kind) in enumerate(turns):
            spoken = self.text(question)
            if dice is not None and kind not in ("can't tell", "yes/no", "talk"):  # in these, every word matters
                spoken = self.misspelt(spoken, dice)
            place = [self.id("<|begin_of_image|>"), self.id("<|endoftext|>"), self.id("<|end_of_image|>")]
            asked = user + newline + (place if picture and index == 0 else []) + spoken + assistant
            said = newline + self.text(answer)
            # The <|user|> that begins the next turn is what ends this one, so it is learned too.
            labels += [user[0] if index else -100] + [-100] * (len(asked) - 1) + said
            ids += asked + said
        return ids + user, labels + user

    def batch(self, rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and `labels` [row, position] of rows of `turns`, padded on the right."""
        length = max(len(ids) for ids, _ in rows)
        pad = self.id("<|endoftext|>")
        ids = torch.tensor([row + [pad] * (length - len(row)) for row, _ in rows])
        labels = torch.tensor([row + [-100] * (length - len(row)) for _, row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row, _ in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


# --------------------------------------------------------------------------------------- training


class Training:
    """One stage: which parameters are trained, and at which learning rate. It warms up, then decays along a cosine."""

    def __init__(self, modules: list[nn.Module], *, steps: int, peak: float, warmup: int = 200) -> None:
        from transformers import get_cosine_with_min_lr_schedule_with_warmup

        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=peak, weight_decay=0.05, betas=(0.9, 0.98))
        self.schedule = get_cosine_with_min_lr_schedule_with_warmup(self.optimizer, warmup, steps, min_lr_rate=0.02)

    def step(self, loss: torch.Tensor) -> None:
        """One step of the optimizer along the gradient of this loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()


def cut_out(
    vision: Any, pixels: torch.Tensor, labels: dict[str, torch.Tensor], dice: random.Random
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The tower's vectors and the labels for a window of each picture, around one of the patches that a thing covers.

    A window has far fewer patches than a picture, so the tower sees more shapes in the same time. Its patches keep the
    positions that they have in the picture.
    """
    fine, side = 2 * WINDOW, SIDE // PATCH
    rows, patches, places = [], [], []
    for covered in labels["owner"] > 0:
        row, column = divmod(dice.choice(covered.nonzero().flatten().tolist()), GRID)
        top, left = (min(max(0, at - dice.choice((1, 2))), GRID - WINDOW) for at in (row, column))
        rows.append((top, left))
        patches.append(torch.arange(GRID**2).view(GRID, GRID)[top : top + WINDOW, left : left + WINDOW].flatten())
        places.append(1 + torch.arange(side**2).view(side, side)[2 * top :, 2 * left :][:fine, :fine].flatten())
    size = WINDOW * SIDE // GRID
    corners = [(top * SIDE // GRID, left * SIDE // GRID) for top, left in rows]
    windows = torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(pixels, corners, strict=True)])
    embedding = vision.patch_embedding
    hidden_states = embedding.proj(windows).flatten(2).transpose(1, 2) + embedding.position_embedding(
        torch.stack(places)
    )
    for layer in vision.transformer["layers"]:
        hidden_states, _ = layer(hidden_states)
    grid = hidden_states.transpose(1, 2).unflatten(2, (fine, fine))
    features = vision.linear_proj(vision.conv(grid).flatten(2).transpose(1, 2)) / vision.config.scaling_factor
    among = torch.stack(patches)
    cut = {name: labels[name].gather(1, among) for name in ("kind", "colour", "region", "centre", "owner")}
    cut["mask"] = labels["mask"].gather(1, among[..., None].expand(-1, -1, 16))
    return features, cut | {"silhouettes": labels["silhouettes"]}


def see(
    model: Any,
    heads: DenseHeads,
    pictures: Pictures,
    *,
    windows: float,
    peak: float,
    steps: int,
    batch: int,
    seed: int,
    log: Log,
) -> None:
    """Stages 1 and 2: only the dense task. The first steps (a fraction `windows` of them) use crops of the pictures."""
    vision, dice = model.model.vision, random.Random(seed)
    training = Training([vision, heads], steps=steps, peak=peak)
    for step in range(steps):
        cut = step < steps * windows
        chosen = dice.sample(range(len(pictures.scenes)), 2 * batch if cut else batch)
        pixels, labels = pictures.batch(chosen, model.device)
        if cut:
            features, labels = cut_out(vision, pixels, labels, dice)
        else:
            features = vision(pixels).last_hidden_state[:, 1:-1]
        loss = heads.loss(features, labels)
        training.step(loss)
        log("see", step, steps, loss=loss.item(), **heads.accuracy)


@torch.no_grad()
def looked_at(vision: Any, pictures: Pictures, device: str | torch.device, batch: int = 64) -> torch.Tensor:
    """The tower's vectors for all pictures [picture, 1 + patch + 1, hidden], computed once: stage 3 does not change the
    tower."""
    indices = torch.arange(len(pictures.scenes)).split(batch)
    return torch.cat([vision(pictures.batch(chosen, device)[0]).last_hidden_state for chosen in indices])


def several(scene: Scene) -> bool:
    return len(scene.things) > 1


def twins(scene: Scene) -> bool:
    return len({thing.kind for thing in scene.things}) < len(scene.things)


class Talks(IterableDataset):
    """An endless stream of batches: (numbers of pictures, conversations about them as the model sees them), and every
    eighth time small talk.

    A fraction `share` of the pictures is drawn from those whose scene is `hard`, in addition to those that are hard by
    chance. Conversations of similar length are batched together, to keep padding low. Each worker of a `DataLoader` has
    its own random numbers.
    """

    def __init__(
        self,
        model: Any,
        pictures: Pictures,
        encoder: Encoder,
        *,
        batch: int,
        hard: Callable[[Scene], bool],
        share: float,
        seed: int,
    ) -> None:
        self.expand, self.scenes, self.encoder = model.model.expand_inputs, pictures.scenes, encoder
        self.batch, self.share, self.seed = batch, share, seed
        self.hard = [index for index, scene in enumerate(self.scenes) if hard(scene)]

    def __iter__(self) -> Iterator[tuple[torch.Tensor | None, dict[str, torch.Tensor]]]:
        worker = get_worker_info()
        dice = random.Random(self.seed if worker is None else 1000 * self.seed + worker.id)
        while True:
            chosen = dice.choices(self.hard, k=round(self.share * 7 * self.batch))
            chosen += dice.choices(range(len(self.scenes)), k=7 * self.batch - len(chosen))
            talks = [(i, self.encoder.turns(conversation(dice, self.scenes[i]), True, dice)) for i in chosen]
            talks.sort(key=lambda talk: len(talk[1][0]))
            for start in dice.sample(range(0, len(talks), self.batch), 7):
                indices, rows = zip(*talks[start : start + self.batch], strict=True)
                seen = self.expand(pixel_values=True, **self.encoder.batch(list(rows)))
                yield torch.tensor(indices), vars(seen) | {"picture_mask": seen.picture_mask}
            small = [self.encoder.turns(small_talk(dice), False) for _ in range(max(8, self.batch // 4))]
            yield None, self.encoder.batch(small)


def speak(
    model: Any,
    pictures: Pictures,
    encoder: Encoder,
    *,
    steps: int,
    batch: int,
    seed: int,
    log: Log,
    peak: float,
    hard: Callable[[Scene], bool],
    share: float,
    workers: int,
) -> None:
    """Stages 3 and 4: answers about pictures; only the language model is trained."""
    device = model.device
    features = looked_at(model.model.vision, pictures, device)
    talks = Talks(model, pictures, encoder, batch=batch, hard=hard, share=share, seed=seed)
    batches = DataLoader(talks, batch_size=None, num_workers=workers, prefetch_factor=8 if workers else None)
    training = Training(
        [*model.model.layers, model.model.embed_tokens, model.model.norm, model.lm_head], steps=steps, peak=peak
    )
    for step, (chosen, seen) in zip(range(steps), batches, strict=False):
        seen = {name: value.to(device, non_blocking=True) for name, value in seen.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            if chosen is None:
                loss = model(**seen, use_cache=False).loss
            else:
                words = model.model.embed_tokens(seen["input_ids"])
                picture = seen["picture_mask"][..., None]
                loss = model(
                    inputs_embeds=words.masked_scatter(picture, features[chosen.to(device)].to(words)),
                    attention_mask=seen["attention_mask"],
                    position_ids=seen["position_ids"],
                    labels=seen["labels"],
                    use_cache=False,
                ).loss
        training.step(loss)
        if step % 10 == 0 or step == steps - 1:  # reading a number from a GPU makes the program wait
            log("speak", step, steps, talk=loss.item())


class Log:
    """Prints running means every hundred steps."""

    def __init__(self) -> None:
        self.started, self.means = time.monotonic(), {}

    def __call__(self, stage: str, step: int, steps: int, **numbers: float) -> None:
        for name, value in numbers.items():
            if value == value:  # the mean over nothing is NaN
                self.means[name] = 0.98 * self.means.get(name, value) + 0.02 * value
        if step % 100 == 0 or step == steps - 1:
            shown = ", ".join(f"{name} {self.means[name]:.3f}" for name in numbers if name in self.means)
            print(f"{time.monotonic() - self.started:6.0f} s  {stage} {step:5} of {steps}: {shown}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Train and save. The defaults are for a CPU; the shipped model's card says how that one was trained."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where the model and its stages are saved")
    parser.add_argument("--seed", type=int, default=0, help="the random seed of all stages")
    parser.add_argument("--peak", type=float, default=2e-3, help="the highest learning rate of stage 3")
    parser.add_argument("--pictures", type=int, default=20_000, help="the number of pictures to draw")
    parser.add_argument("--see-steps", type=int, default=5000, help="training steps of stage 1")
    parser.add_argument("--closer-steps", type=int, default=4000, help="training steps of stage 2")
    parser.add_argument("--speak-steps", type=int, default=8000, help="training steps of stage 3")
    parser.add_argument("--refer-steps", type=int, default=700, help="training steps of stage 4")
    parser.add_argument("--batch", type=int, default=32, help="pictures per step in stages 1 and 2")
    parser.add_argument("--speak-batch", type=int, default=32, help="pictures per step in stages 3 and 4")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw pictures and make up conversations")
    parser.add_argument("--tower", help="a model whose vision tower is used unchanged: training begins at stage 3")
    parser.add_argument("--weights", help="a model of the same sizes to continue from: training begins at stage 3")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="the device to train on"
    )
    options = parser.parse_args(arguments)
    folder, log = options.folder, Log()
    (folder / "stages").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    if options.weights:
        for file in ("tokenizer.model", "tokenizer_config.json", "config.json", "generation_config.json"):
            shutil.copyfile(Path(options.weights) / file, folder / file)
    else:
        write_config(folder, write_tokenizer(folder, options.seed))

    from safetensors.torch import load_model, save_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = new_model(folder).train()
    heads = DenseHeads(model.config.hidden_size)
    if options.tower:
        model.model.vision.load_state_dict(
            AutoModelForCausalLM.from_pretrained(options.tower).model.vision.state_dict()
        )
    if options.weights:
        model.load_state_dict(AutoModelForCausalLM.from_pretrained(options.weights).float().state_dict())
    model.to(options.device), heads.to(options.device)
    encoder = Encoder(AutoTokenizer.from_pretrained(folder))
    print(f"{model.num_parameters():,} parameters, {options.pictures:,} pictures", flush=True)
    seed, count, workers = options.seed, options.pictures, options.workers

    @cache
    def drawn(seed: int, digits: float = 0.25) -> Pictures:
        return Pictures(seed, count, digits=digits, workers=workers)

    common = {"batch": options.batch, "log": log}
    spoken = {"batch": options.speak_batch, "log": log, "workers": workers}
    stages = {
        "see": lambda: see(
            model,
            heads,
            drawn(seed),
            windows=0.5,
            peak=1.5e-3,
            steps=options.see_steps,
            seed=seed + 1,
            **common,
        ),
        "look closer": lambda: see(
            model,
            heads,
            drawn(seed + 1, 0.6),
            windows=0.7,
            peak=1e-3,
            steps=options.closer_steps,
            seed=seed + 2,
            **common,
        ),
        "speak": lambda: speak(
            model,
            drawn(seed),
            encoder,
            hard=several,
            share=0.4,
            peak=options.peak,
            steps=options.speak_steps,
            seed=seed + 3,
            **spoken,
        ),
        "refer back": lambda: speak(
            model,
            drawn(seed),
            encoder,
            hard=twins,
            share=0.5,
            peak=5e-4,
            steps=options.refer_steps,
            seed=seed + 4,
            **spoken,
        ),
    }
    whole = nn.ModuleDict({"model": model, "heads": heads})
    for name in list(stages)[2:] if options.tower or options.weights else stages:
        stage = stages[name]
        done = folder / "stages" / f"{name}.safetensors"
        if done.exists():
            load_model(whole, done)
        else:
            stage()
            save_model(whole, str(done))
    save(model, folder)


def save(model: PreTrainedModel, folder: Path) -> None:
    """Save the weights in bfloat16, in shards, readable by everyone."""
    model.eval().cpu().bfloat16().save_pretrained(folder, max_shard_size="3MB")
    for file in folder.iterdir():  # save_pretrained makes weights readable by their owner only
        if file.is_file():
            file.chmod(0o644)


if __name__ == "__main__":
    main()
