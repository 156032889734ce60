"""Train the tiny GLM-4V: `python -m helpers.glm.tiny.train FOLDER`. About two and a half hours on 2 cores.

Three stages, one after the other, all by one seed:

1. The tower learns to see: for each patch it sends to the language model, which kind of thing covers
   it, and in which colour. Two linear heads ask for that; they are thrown away afterwards.
2. The language model learns to talk about pictures of one shape, then of one to three, while the tower
   keeps its dense task beside it (so that what it sees stays readable).
3. The learning rate goes down to nothing.

Weights are saved in bfloat16, in the layout of the original checkpoints.
"""

import argparse
import base64
import json
import math
import random
import time
from pathlib import Path

import numpy
import torch
from torch import nn
from torch.nn import functional as F

from helpers.glm.tiny.scenes import COLOURS, SHAPES, draw, outline_points, random_scene
from helpers.glm.tiny.talk import conversation, small_talk

SIDE, PATCH, GRID = 96, 6, 8
KINDS = ("nothing", *SHAPES, *(f"digit {n}" for n in range(10)))
RANKS = 640
SPECIALS = (
    "<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|> "
    "<|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|>"
).split()
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


# ------------------------------------------------------------------------------------------ files


def write_tokenizer(folder, seed=0):
    """`tokenizer.model` (tiktoken ranks, byte-level BPE trained on the talk) and its config."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    from helpers.conversion import LLAMA3_PATTERN  # the same pattern as GLM-4's
    from helpers.prompts import byte_alphabet

    dice = random.Random(seed)
    texts = []
    for _ in range(6000):
        turns = conversation(dice, random_scene(dice)) if dice.random() < 0.9 else small_talk(dice)
        texts += [text for question, answer, _ in turns for text in (question, answer)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=RANKS, initial_alphabet=alphabet, show_progress=False)
    )
    bytes_of = byte_alphabet()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes(bytes_of[c] for c in token) for token, _ in vocabulary]
    singles = [token for token in tokens if len(token) == 1]
    ordered = sorted(singles) + [token for token in tokens if len(token) > 1]
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


def write_config(folder, ranks):
    """`config.json` and `generation_config.json` in the original layout."""
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
        "num_layers": 5,
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


def new_model(folder):
    """The untrained model. Its position table starts as two-dimensional sines and cosines."""
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
        nn.init.kaiming_normal_(vision.conv.weight)
        vision.linear_proj.dense_4h_to_h.weight.mul_(vision.config.scaling_factor)
    return model


def sines(grid, width):
    """[grid * grid, width]: a quarter each of sines and cosines of row and of column, at doubling wavelengths."""
    at = torch.arange(grid, dtype=torch.float32)
    frequencies = math.pi / grid * 2 ** torch.linspace(0, math.log2(grid), width // 4)
    waves = torch.cat([torch.sin(at[:, None] * frequencies), torch.cos(at[:, None] * frequencies)], dim=1)
    rows, columns = waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, width)


class DenseHeads(nn.Module):
    """What covers each patch, and in which colour, read off the tower's output by two linear maps."""

    def __init__(self, hidden):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.kind = nn.Linear(hidden, len(KINDS))
        self.colour = nn.Linear(hidden, len(COLOURS))

    def loss(self, features, kinds, colours):
        """`features [batch, patch, hidden]`, labels `[batch, patch]` (colour -100 where there is none)."""
        features = self.norm(features)
        logits = self.kind(features).flatten(0, 1)
        weight = torch.full((len(KINDS),), 1.0)
        weight[0] = 0.2
        self.accuracy = (logits.argmax(-1) == kinds.flatten())[kinds.flatten() > 0].float().mean().item()
        return F.cross_entropy(logits, kinds.flatten(), weight=weight) + 0.5 * F.cross_entropy(
            self.colour(features).flatten(0, 1), colours.flatten()
        )


def dense_labels(scene):
    """(kinds, colours), each [GRID * GRID]: the thing that covers most of a patch, if that is a fifth of it."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(canvas)
    for number, thing in enumerate(scene.things, start=1):
        if thing.ink is None:
            pen.polygon([(x * SIDE, y * SIDE) for x, y in outline_points(thing)], fill=number)
        else:
            box = [(thing.x - 0.8 * thing.size) * SIDE, (thing.y - 0.9 * thing.size) * SIDE]
            pen.rectangle(
                [*box, *(2 * c * SIDE - b for c, b in zip((thing.x, thing.y), box, strict=True))], fill=number
            )
    cell = SIDE // GRID
    cells = numpy.asarray(canvas).reshape(GRID, cell, GRID, cell).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    shares = numpy.stack([(cells == n).mean(axis=1) for n in range(len(scene.things) + 1)], axis=1)
    shares[:, 0] = 0.2
    owners = shares.argmax(axis=1)
    kinds = numpy.array([0] + [KINDS.index(t.kind) for t in scene.things])
    colours = numpy.array([-100] + [COLOURS.index(t.colour) if t.colour else -100 for t in scene.things])
    return kinds[owners].astype("uint8"), colours[owners].astype("int64")


# ------------------------------------------------------------------------------------------- data


class Pictures:
    """A pool of drawn scenes with their pixels and dense labels."""

    def __init__(self, seed, count, **settings):
        dice = random.Random(seed)
        self.scenes = [random_scene(dice, **settings) for _ in range(count)]
        self.pixels = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
        self.kinds = torch.empty(count, GRID * GRID, dtype=torch.uint8)
        self.colours = torch.empty(count, GRID * GRID, dtype=torch.long)
        for index, scene in enumerate(self.scenes):
            self.pixels[index] = torch.from_numpy(numpy.array(draw(scene, SIDE))).permute(2, 0, 1)
            kinds, colours = dense_labels(scene)
            self.kinds[index], self.colours[index] = torch.from_numpy(kinds), torch.from_numpy(colours)

    def batch(self, indices):
        """pixel_values, kinds and colours of these pictures."""
        pixels = (self.pixels[indices].float() / 255 - MEAN) / STD
        return pixels, self.kinds[indices].long(), self.colours[indices]


class Encoder:
    """Conversations to ids and labels: only the assistant's words, and what ends its turn, are learned."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.id = tokenizer.convert_tokens_to_ids
        self.known = {}

    def text(self, text):
        if text not in self.known:
            self.known[text] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return self.known[text]

    def turns(self, turns, picture):
        """(ids, labels) of a conversation, with a picture in its first turn or without."""
        user, assistant, newline = [self.id("<|user|>")], [self.id("<|assistant|>")], self.text("\n")
        ids, labels = [self.id("[gMASK]"), self.id("<sop>")], [-100, -100]
        for index, (question, answer, _) in enumerate(turns):
            place = [self.id("<|begin_of_image|>"), self.id("<|endoftext|>"), self.id("<|end_of_image|>")]
            asked = user + newline + (place if picture and index == 0 else []) + self.text(question) + assistant
            said = newline + self.text(answer)
            # The <|user|> that begins the next turn is what ends this one, so it is learned too.
            labels += [user[0] if index else -100] + [-100] * (len(asked) - 1) + said
            ids += asked + said
        return ids + user, labels + user

    def batch(self, conversations, picture):
        """input_ids, attention_mask, labels, padded on the right."""
        rows = [self.turns(turns, picture) for turns in conversations]
        length = max(len(ids) for ids, _ in rows)
        pad = self.id("<|endoftext|>")
        ids = torch.tensor([row + [pad] * (length - len(row)) for row, _ in rows])
        labels = torch.tensor([row + [-100] * (length - len(row)) for _, row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row, _ in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


# --------------------------------------------------------------------------------------- training


class Clock:
    """Where the training stands: its share of the time it may take decides the learning rate."""

    def __init__(self, steps, peak, warmup=200):
        self.steps, self.peak, self.warmup = steps, peak, warmup

    def rate(self, step):
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, done))))


def train_tower(model, heads, pictures, *, steps, batch, seed, log):
    """Stage 1: the dense task alone."""
    vision = model.model.vision
    parameters = [*vision.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    clock, dice = Clock(steps, 1.5e-3), random.Random(seed)
    for step in range(steps):
        pixels, kinds, colours = pictures.batch(dice.sample(range(len(pictures.scenes)), batch))
        with torch.autocast("cpu", torch.bfloat16):
            features = vision(pixels).last_hidden_state[:, 1:-1]
            loss = heads.loss(features.float(), kinds, colours)
        _step(optimizer, loss, parameters, clock.rate(step))
        log(step, steps, tower=loss.item(), patches=heads.accuracy)


def train_talk(model, heads, pictures, encoder, *, steps, batch, seed, log, peak=1e-3):
    """Stages 2 and 3: the whole model learns to answer; every eighth step is talk without a picture."""
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.05, betas=(0.9, 0.98))
    clock, dice = Clock(steps, peak), random.Random(seed)
    seen = []
    model.model.vision.register_forward_hook(lambda module, arguments, output: seen.append(output.last_hidden_state))
    simple = [index for index, scene in enumerate(pictures.scenes) if len(scene.things) == 1]
    for step in range(steps):
        picture = step % 8 != 7
        if picture:
            among = simple if step < 0.15 * steps else range(len(pictures.scenes))
            chosen = dice.sample(among, batch)
            pixels, kinds, colours = pictures.batch(chosen)
            talks = [conversation(dice, pictures.scenes[index]) for index in chosen]
            inputs = encoder.batch(talks, True) | {"pixel_values": pixels}
        else:
            inputs = encoder.batch([small_talk(dice) for _ in range(8)], False)
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            loss = talk = model(**inputs, use_cache=False).loss
            if picture:
                loss = loss + 0.3 * heads.loss(seen[0][:, 1:-1].float(), kinds, colours)
        _step(optimizer, loss, parameters, clock.rate(step))
        if picture:
            log(step, steps, talk=talk.item(), patches=heads.accuracy)


def _step(optimizer, loss, parameters, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def main(arguments=None):
    """Train and save. The defaults are those of the shipped model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--tower-steps", type=int, default=2500)
    parser.add_argument("--talk-steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.set_num_threads(2)
    write_config(options.folder, write_tokenizer(options.folder, options.seed))
    started, last = time.monotonic(), {}

    def log(step, steps, **numbers):
        for name, value in numbers.items():
            last[name] = 0.98 * last.get(name, value) + 0.02 * value
        if step % 100 == 0:
            shown = ", ".join(f"{name} {last[name]:.3f}" for name in numbers)
            print(f"{time.monotonic() - started:6.0f} s  step {step:5} of {steps}: {shown}", flush=True)

    from transformers import AutoTokenizer

    model = new_model(options.folder).train()
    print(f"{model.num_parameters():,} parameters", flush=True)
    heads = DenseHeads(model.config.hidden_size)
    pictures = Pictures(options.seed, options.pictures)
    print(f"{time.monotonic() - started:6.0f} s  {options.pictures} pictures drawn", flush=True)
    common = {"batch": options.batch, "seed": options.seed, "log": log}
    train_tower(model, heads, pictures, steps=options.tower_steps, **common)
    encoder = Encoder(AutoTokenizer.from_pretrained(options.folder))
    train_talk(model, heads, pictures, encoder, steps=options.talk_steps, **common)
    model.eval().bfloat16().save_pretrained(options.folder, max_shard_size="3MB")
    for file in options.folder.iterdir():  # weights are written readable for their owner only
        file.chmod(0o644)


if __name__ == "__main__":
    main()
