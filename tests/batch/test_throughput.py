"""helpers.batch.throughput: what batches bring and take."""

import pytest

from helpers.batch import throughput
from helpers.batch.throughput import measure_batch_sizes
from helpers.errors import PromptTooLongError


class Numbers:
    eos_token_id = 63
    added_tokens_decoder, special_tokens_map = {}, {}
    all_special_ids, all_special_tokens = (), ()

    def __len__(self):
        return 64

    def get_vocab(self):
        return {}

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def test_each_size_is_measured_on_the_same_prompts_with_the_same_answers(tiny):
    prompts = [[5, 6, 7], [9], [8, 9]]
    one, three = measure_batch_sizes(tiny, Numbers(), prompts, (1, 3), do_sample=False, max_new_tokens=4)
    assert (one.batch_size, three.batch_size) == (1, 3)
    assert one.answers == three.answers and len(one.answers) == 3
    assert one.prompts_per_second > 0 and one.peak_bytes >= 0


def test_sizes_take_turns_and_the_fastest_round_counts(tiny, monkeypatch):
    # (seconds, peak) of each run: sizes 1 and 2, three times in turn
    runs = iter([(4.0, 10), (2.0, 30), (3.0, 20), (1.0, 10), (5.0, 5), (9.0, 10)])
    order = []

    def measured(engine, prompts, settings):
        order.append(engine.batch_size)
        return *next(runs), ["a", "b"]

    monkeypatch.setattr(throughput, "_measure", measured)
    one, two = measure_batch_sizes(tiny, Numbers(), [[5], [6]], (1, 2), do_sample=False, max_new_tokens=1)
    assert order == [1, 2, 1, 2, 1, 2]
    assert (one.prompts_per_second, two.prompts_per_second) == (2 / 3, 2.0)
    assert (one.peak_bytes, two.peak_bytes) == (20, 30)


def test_a_prompt_that_fails_is_no_measurement(tiny):
    tiny.config.max_position_embeddings = 6
    with pytest.raises(PromptTooLongError, match="context of 6"):
        measure_batch_sizes(tiny, Numbers(), [[5] * 4], (1,), do_sample=False, max_new_tokens=4)
