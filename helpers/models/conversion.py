"""From the file inside a packaged wheel to the folder that `transformers` loads from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SMOLLM2_CONTEXT = 8192
LLAMA3_CONTEXT = 8192
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# One header, the trimmed content and the end-of-turn token for each message.
LLAMA3_CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim }}{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def convert_smollm2(gguf_file: Path, folder: Path) -> None:
    """Convert SmolLM2-135M-Instruct from GGUF (4-bit weights, dequantized to float32) to a safetensors folder.

    Two things that the conversion of the tokenizer loses are restored: SmolLM2 splits numbers into
    single digits before anything else, and its context is 8,192 tokens.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {
        "gguf_file": gguf_file.name,
        "local_files_only": True,
    }  # local_files_only is saved with the tokenizer, so every run writes the same files
    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, **where)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = SMOLLM2_CONTEXT
    tokenizer.save_pretrained(folder)

    model = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.config._name_or_path = ""
    model.config.rms_norm_eps = 1e-5  # GGUF stores it as a float32, which is slightly off
    model.save_pretrained(folder, max_shard_size="2GB")
    for file in folder.iterdir():  # weights are written readable by their owner only
        os.chmod(file, 0o644)


def convert_llama3_tokenizer(ranks_file: Path, folder: Path) -> None:
    """Convert Llama-3's tokenizer from its 128,000 tiktoken ranks, and add its 256 control tokens.

    The end-of-text token is the tokenizer's eos, as in the base model; `<|eot_id|>` ends a turn.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converter = TikTokenConverter(
        vocab_file=str(ranks_file), pattern=LLAMA3_PATTERN, extra_special_tokens=llama3_control_tokens()
    )
    backend = converter.converted()
    bos = "<|begin_of_text|>"
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos} $B",
                special_tokens=[(bos, backend.token_to_id(bos))],
            ),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token="<|end_of_text|>",
        pad_token="<|end_of_text|>",
        model_max_length=LLAMA3_CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=LLAMA3_CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder)


def llama3_control_tokens() -> list[str]:
    """The control tokens with the ids 128000 to 128255, in order."""
    named = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
    reserved = iter(range(256))
    return [f"<|{named.get(i) or f'reserved_special_token_{next(reserved)}'}|>" for i in range(256)]
