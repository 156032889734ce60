"""Models of the walkthroughs' sizes with random weights, made right on the device: they say how fast and how large,
not how well a model speaks. Nothing is downloaded and nothing is written to disk."""

import copy
import json
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[2]
GLM = ROOT / "tests" / "fixtures" / "glm"
SMOL = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "rope_theta": 100_000.0,
}
LLAMA3_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "rope_theta": 500_000.0,
}
GLM4V_9B = {
    "padded_vocab_size": 151_552,
    "hidden_size": 4096,
    "ffn_hidden_size": 13_696,
    "num_layers": 40,
    "num_attention_heads": 32,
    "multi_query_group_num": 2,
    "kv_channels": 128,
    "layernorm_epsilon": 1.5625e-07,
    "add_qkv_bias": True,
    "seq_length": 8192,
    "tie_word_embeddings": False,
}
GLM4V_VISION = {
    "image_size": 1120,
    "patch_size": 14,
    "in_channels": 3,
    "hidden_size": 1792,
    "num_hidden_layers": 63,
    "num_heads": 16,
    "intermediate_size": 15_360,
    "num_positions": 6401,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "scaling_factor": 8,
    "dropout_prob": 0.0,
}
SHRUNK = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


def llama(sizes, device, dtype, small=False):
    """A Llama of these sizes; `small` keeps its shape and shrinks it, for a dry run on a CPU."""
    sizes = sizes | SHRUNK | {"num_hidden_layers": 4, "vocab_size": 960} if small else sizes
    config = LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.05)
    return _made(LlamaForCausalLM, config, device, dtype)


def glm4v(device, dtype, small=False):
    """GLM-4V-9B."""
    from helpers.glm import ChatGLMConfig, ChatGLMForConditionalGeneration

    fixture = json.loads((GLM / "glm4v-a" / "checkpoint" / "config.json").read_text())
    ids = {key: fixture[key] for key in ("boi_token_id", "eoi_token_id", "eos_token_id", "pad_token_id")}
    sizes, vision = GLM4V_9B, GLM4V_VISION
    if small:
        few = {"hidden_size": 64, "ffn_hidden_size": 120, "num_layers": 4, "num_attention_heads": 8, "kv_channels": 8}
        sizes = sizes | few | {"padded_vocab_size": fixture["padded_vocab_size"]}
        few = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "intermediate_size": 64}
        vision = vision | few | {"image_size": 112, "num_positions": 65}
    config = ChatGLMConfig(**sizes, **ids, vision_config=vision)
    return _made(ChatGLMForConditionalGeneration, config, device, dtype)


def _made(model_class, config, device, dtype):
    usual = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = model_class(config)
    finally:
        torch.set_default_dtype(usual)
    return model.eval().requires_grad_(False)


def twin(model, implementation):
    """The same weights in a second model, which computes attention in another way."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, shared)
    other.set_attn_implementation(implementation)
    return other


def tokenizer():
    """One of the fixtures': its ids lie in the vocabulary of each of these models."""
    from helpers.models.pretrained import load_tokenizer

    return load_tokenizer(str(GLM / "glm4-chat-a" / "checkpoint"))


def bytes_tokenizer():
    """One that any tool loads from a folder: a token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    known = [*special.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(known)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def prompt(length, device="cpu"):
    """Ids `[1, length]` of ordinary tokens."""
    ids = torch.randint(3, 390, (1, length), generator=torch.Generator().manual_seed(length))
    return ids.to(device)


@contextmanager
def released(device):
    """Memory of what was made inside is given back to the device afterwards."""
    import gc

    try:
        yield
    finally:
        gc.collect()
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
