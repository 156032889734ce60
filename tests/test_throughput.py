"""helpers.throughput: what batches bring and take."""

import pytest
import torch

from helpers.errors import PromptTooLongError
from helpers.throughput import measure_batch_sizes, peak_memory


class Numbers:
    eos_token_id = 63

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


def test_a_prompt_that_fails_is_no_measurement(tiny):
    tiny.config.max_position_embeddings = 6
    with pytest.raises(PromptTooLongError, match="context of 6"):
        measure_batch_sizes(tiny, Numbers(), [[5] * 4], (1,), do_sample=False, max_new_tokens=4)


def test_peak_memory_sees_what_was_there_in_between():
    with peak_memory() as peak:
        large = torch.ones(20_000_000)  # 80 MB
        torch.linalg.norm(large)
        del large
    assert 60e6 < peak.bytes < 200e6
    with peak_memory() as peak:
        pass
    assert peak.bytes < 40e6
