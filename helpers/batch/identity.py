"""Identify a model and a tokenizer by their content and not by their names.

Two training runs both leave a `checkpoint-1000`, and a folder's weights can be replaced by newer ones: the answers of
one model must not be mistaken for those of another. So `run_batch` records a SHA-256 of model and tokenizer.
"""

import contextlib
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from helpers.models import store
from helpers.models.fitting import refusing_what_does_not_fit
from helpers.text.encoding import text_tokenizer

# Settings of a config that change no answer: where it was loaded from, and how it is computed.
NOT_COUNTED = ("_name_or_path", "name_or_path", "transformers_version", "_attn_implementation", "attn_implementation")
RULES = ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder")  # in a tokenizer.json
WORDS_AT_ONCE = 2**20  # words of eight bytes
SEED = 20_24  # for the numbers that weights are multiplied by


def model_sha256(model: Any) -> str:
    """A SHA-256 (in hexadecimal) of a model: its class, its config, and every weight and buffer as it is in memory now.

    A quantized model is identified by its folder's files, since its kernels may rearrange the packed weights when they
    first run.
    """
    config = {name: value for name, value in model.config.to_diff_dict().items() if name not in NOT_COUNTED}
    digest = hashlib.sha256(_as_text([type(model).__name__, config]))
    folder = getattr(model, "name_or_path", None)
    if getattr(model, "is_quantized", False) and folder and Path(folder).is_dir():
        digest.update(folder_sha256(Path(folder)).encode())
        return digest.hexdigest()
    seen = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.dtype)
        if place in seen:  # weights that are tied
            continue
        seen.add(place)
        needed = 2 * 8 * WORDS_AT_ONCE  # a product, and the numbers it is made with
        with refusing_what_does_not_fit("The checksum of the weights", needed, str(tensor.device), runs=False):
            sums = _checksums(tensor)
        digest.update(_as_text([name, list(tensor.shape), str(tensor.dtype), *sums]))
    return digest.hexdigest()


def _checksums(tensor: Any) -> list[int]:
    """Numbers that any change in a tensor's bytes changes: sums of its words, each multiplied by its own odd number.
    They are computed where the tensor is, as exact integers, so they are the same on every device."""
    import torch

    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if raw.device.type not in ("cpu", "cuda"):
        raw = raw.cpu()
    if raw.data_ptr() % 8 or raw.storage_offset() % 8:  # so that the words are aligned
        raw = raw.clone()
    factors = _odd_numbers(raw.device)
    whole = raw.numel() // 8 * 8
    words = raw[:whole].view(torch.int64) if whole else raw.new_zeros(0, dtype=torch.int64)
    sums = [(part * factors[: len(part)]).sum() for part in words.split(WORDS_AT_ONCE)]
    return [*map(int, sums), *raw[whole:].tolist()]


@functools.lru_cache(maxsize=8)
def _odd_numbers(device: Any) -> Any:
    """Random odd numbers `[WORDS_AT_ONCE]` (int64), the same on every device."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    numbers = torch.randint(-(2**62), 2**62, (WORDS_AT_ONCE,), generator=generator, device="cpu")
    return numbers.mul_(2).add_(1).to(device)


def tokenizer_sha256(tokenizer: Any) -> str:
    """A SHA-256 (in hexadecimal) of everything that decides how a tokenizer (or a processor's) encodes texts and chats:
    its vocabulary and rules, its special tokens and its chat template."""
    tokenizer = text_tokenizer(tokenizer)
    parts = [
        type(tokenizer).__name__,
        getattr(tokenizer, "chat_template", None),
        getattr(tokenizer, "special_tokens_map", None),
        {str(token): str(kind) for token, kind in getattr(tokenizer, "added_tokens_decoder", {}).items()},
        [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token", "add_prefix_space")],
    ]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(backend, "to_str"):  # vocabulary and rules; truncation and padding are set by each call
        rules = json.loads(backend.to_str())
        parts.append(
            [rules.get(name) for name in ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder")]
        )
    else:
        parts.append(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(_as_text(parts)).hexdigest()


def folder_sha256(folder: Path, *, weights: bool = True) -> str:
    """A SHA-256 (in hexadecimal) of the files in a model's folder; with `weights=False`, of the small ones alone.

    For a file that has not changed since the folder's manifest was written, the manifest's checksum is used.
    """
    digest = hashlib.sha256()
    known = _known_files(folder)
    for file in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        if file.name == store.MANIFEST or file.suffix == ".md" or (file.suffix == ".safetensors" and not weights):
            continue
        digest.update(_as_text([file.name, known.get(file.name) or store.sha256(file)]))
    return digest.hexdigest()


def _known_files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files that match the manifest."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        manifest = store.read_manifest(folder)
        changed = store.damaged_files(folder, manifest)
        return {name: file["sha256"] for name, file in manifest["files"].items() if name not in changed}
    return {}


def _as_text(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode("utf-8", "backslashreplace")
