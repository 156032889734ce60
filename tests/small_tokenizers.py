"""Tokenizers of other kinds than the course's own, and tiny models for them, made here in a moment."""

from copy import deepcopy

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
WORDS = "Hello world the capital of France is Paris I am fine 你好 café naïve señor".split()
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ[]/<>|_.,?!{}\":-'0123456789\n"


def sentencepiece_like(template=LLAMA2, *, special=()):
    """Llama-2's kind: `▁` for spaces, a space in front of the text, single bytes where a character has no token."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for token in [f"<0x{byte:02X}>" for byte in range(256)] + sorted({*LETTERS, *"".join(WORDS), "▁"}):
        vocabulary.setdefault(token, len(vocabulary))
    merges = []
    for word in [f"▁{word}" for word in WORDS] + WORDS:
        made = word[0]
        for letter in word[1:]:
            if (made, letter) not in merges:
                merges.append((made, letter))
            made += letter
            vocabulary.setdefault(made, len(vocabulary))
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = ("<unk>", "<s>", "</s>", *special)
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return _wrapped(backend, template, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def metaspace_like(template=LLAMA2):
    """Mistral's kind: as Llama-2's, but the space stands in front of the first word only."""
    tokenizer = sentencepiece_like(template)
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def unigram_like(template=LLAMA2):
    """T5's kind: a Unigram model, in whose vocabulary the control tokens are."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)] + [(letter, -3.0) for letter in "▁" + LETTERS]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return _wrapped(backend, template, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def wordpiece_like(template=LLAMA2):
    """BERT's kind: lower case, `##` within words."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[", "]", "cls", "sep", "hello", "##s", "inst", "/"]
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    names = {"unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]"}
    return _wrapped(backend, template, **names)


def with_added(tokenizer, *tokens, template=None, **settings):
    """A copy of a tokenizer with more added tokens, and perhaps another template."""
    changed = deepcopy(tokenizer)
    changed.add_tokens([AddedToken(token, normalized=False, **settings) for token in tokens])
    changed.chat_template = changed.chat_template if template is None else template
    return changed


def _wrapped(backend, template, **special):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = template
    return tokenizer


def tiny_llama(tokenizer, **changes):
    """A Llama with random weights for a tokenizer's vocabulary."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


def always(model, token_id):
    """The model, made to answer with one token only."""
    model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[token_id] = 5.0
    return model
