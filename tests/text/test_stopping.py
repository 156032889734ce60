"""Where an answer ends: alike in a conversation, step by step and in a batch."""

import pytest
from small_tokenizers import CHATML, PHI3, always, sentencepiece_like, tiny_llama, with_added

from helpers.batch.engines import GenerationSettings, Prompt, TransformersEngine
from helpers.conversation import Conversation
from helpers.inside.generation import generate_steps
from helpers.text.prompts import render_chat
from helpers.text.stopping import terminator_ids

HI = [{"role": "user", "content": "hi"}]


def _cases(tokenizer, llama3):
    phi3 = with_added(tokenizer, "<|user|>", "<|assistant|>", "<|end|>", template=PHI3, special=True, rstrip=True)
    chatml = with_added(tokenizer, template=CHATML)
    chatml.eos_token = "<|endoftext|>"
    turns = "{% for m in messages %}{{ m.role ~ ' ' ~ m.content|trim ~ ' \n<turn>\n' }}{% endfor %}"
    gemma = with_added(tokenizer, "<turn>", template=turns)
    return {
        "Llama-3 whose config names end_of_text": (llama3, 128001, "<|eot_id|>"),
        "ChatML whose config names another": (tokenizer, 0, "<|im_end|>"),
        "ChatML whose tokenizer names another, too": (chatml, 0, "<|im_end|>"),
        "a turn's end that only the template knows": (phi3, 0, "<|end|>"),
        "after white space": (gemma, 0, "<turn>"),
        "SentencePiece": (sentencepiece_like(), 1, "</s>"),
    }


NAMES = [
    "Llama-3 whose config names end_of_text",
    "ChatML whose config names another",
    "ChatML whose tokenizer names another, too",
    "a turn's end that only the template knows",
    "after white space",
    "SentencePiece",
]


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_ends_at_the_end_of_the_turn(tokenizer, llama3_tokenizer, name):
    used, configured, end = _cases(tokenizer, llama3_tokenizer)[name]
    end_id = used.convert_tokens_to_ids(end)
    model = always(tiny_llama(used, eos_token_id=configured), end_id)
    reply = Conversation(model, used).ask("hi", max_new_tokens=5)
    assert (reply.text, reply.stopped_by, reply.output_ids) == ("", "end_of_turn", [end_id])
    steps = list(generate_steps(model, used, render_chat(used, HI), max_new_tokens=5))
    assert [step.stopped_by for step in steps] == ["end_of_turn"]
    settings = GenerationSettings(do_sample=False, max_new_tokens=5)
    ((_, answer),) = TransformersEngine(model, used).generate(iter([Prompt(0, "", messages=HI)]), settings)
    assert answer == ""
    assert set(terminator_ids(used, model)) >= {configured, end_id}


def test_a_template_that_writes_nothing_after_an_answer_adds_no_terminator(tokenizer):
    plain = with_added(tokenizer, template="{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert terminator_ids(plain) == [tokenizer.eos_token_id]
    refusing = with_added(tokenizer, template="{{ raise_exception('no') }}")
    assert terminator_ids(refusing) == [tokenizer.eos_token_id]


def test_terminators_that_are_given_are_the_only_ones(tokenizer, llama3_tokenizer):
    used, configured, end = _cases(tokenizer, llama3_tokenizer)["ChatML whose config names another"]
    model = always(tiny_llama(used, eos_token_id=configured), used.convert_tokens_to_ids(end))
    steps = list(generate_steps(model, used, "hi", max_new_tokens=3, eos_token_id=[]))
    assert [step.stopped_by for step in steps] == [None, None, "max_new_tokens"]
