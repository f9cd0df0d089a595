"""Batches: everything once an epoch, in an order that can be continued, with little padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batches import POOL_BATCHES, epoch_batches, split_by_tokens, to_tensors

calm = settings(deadline=None, derandomize=True, max_examples=100)
token_counts = st.integers(1, 384)


def squad_like_lengths(count, seed=0):
    """Lengths of windows as SQuAD's fall: a long tail to the right, one in twelve windows full."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(165), 0.38, count), 30, 383).astype(np.int32)
    lengths[random.random(count) < 1 / 12] = 384
    return lengths


def padding(lengths, runs):
    """Share of the padded tokens that are padding."""
    padded = sum(len(run) * int(lengths[run].max()) for run in runs)
    return 1 - sum(int(lengths[run].sum()) for run in runs) / padded


@calm
@given(st.lists(token_counts, max_size=300), st.integers(1, 20), st.integers(0, 2**40), st.integers(0, 9))
def test_each_window_once_an_epoch(lengths, batch_size, seed, epoch):
    lengths = np.array(lengths, np.int32)
    batches = epoch_batches(lengths, batch_size, seed, epoch)
    assert sorted(window for batch in batches for window in batch.tolist()) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert sum(len(batch) != batch_size for batch in batches) <= 1


@pytest.mark.parametrize("count", [1, 15, 16, 17, 16 * POOL_BATCHES, 16 * POOL_BATCHES + 1, 5003])
def test_the_order_is_a_function_of_seed_and_epoch(count):
    lengths = squad_like_lengths(count)
    one = epoch_batches(lengths, 16, 7, 3)
    np.random.seed(1)  # no state outside of the arguments takes part
    torch.manual_seed(1)
    epoch_batches(lengths, 16, 8, 3)
    again = epoch_batches(lengths.copy(), 16, 7, 3)
    assert len(one) == len(again) and all(map(np.array_equal, one, again))
    for position in (0, len(one) // 2, len(one) - 1):  # what a resumed run takes
        assert all(map(np.array_equal, epoch_batches(lengths, 16, 7, 3)[position:], one[position:]))


def test_epochs_and_seeds_differ_in_order_and_in_company():
    lengths = squad_like_lengths(3000)
    together = lambda batches: {frozenset(batch.tolist()) for batch in batches}  # noqa: E731
    first = epoch_batches(lengths, 16, 0, 0)
    for seed, epoch in ((0, 1), (1, 0), (1, 1)):
        other = epoch_batches(lengths, 16, seed, epoch)
        assert len(together(first) & together(other)) < 0.1 * len(first)
    assert together(epoch_batches(lengths, 16, 0, 1)) != together(epoch_batches(lengths, 16, 1, 0))


def test_batches_do_not_come_by_length():
    lengths = squad_like_lengths(20_000)
    longest = [lengths[batch].max() for batch in epoch_batches(lengths, 16, 0, 0)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.1


@pytest.mark.parametrize("batch_size", [8, 16, 48])
@pytest.mark.parametrize("seed", [0, 1])
def test_little_padding_on_lengths_like_squad_s(batch_size, seed):
    lengths = squad_like_lengths(25_000, seed)
    assert 150 < np.median(lengths) < 190 and lengths.max() == 384
    batches = epoch_batches(lengths, batch_size, seed, 0)
    assert padding(lengths, batches) < 0.02
    runs = [run for batch in batches for run in split_by_tokens(lengths, batch, 6144)]
    assert padding(lengths, runs) < 0.02
    blind = np.array_split(np.random.default_rng(seed).permutation(len(lengths)), len(batches))
    assert padding(lengths, blind) > 0.3  # what sorting saves


def test_little_padding_even_for_a_small_set():
    lengths = squad_like_lengths(700)
    assert padding(lengths, epoch_batches(lengths, 16, 0, 0)) < 0.05


@calm
@given(st.lists(token_counts, min_size=1, max_size=120), st.integers(1, 2000), st.randoms(use_true_random=False))
def test_runs_stay_within_the_tokens(lengths, max_tokens, random):
    lengths = np.array(lengths, np.int32)
    windows = np.array(random.sample(range(len(lengths)), random.randint(1, len(lengths))))
    runs = split_by_tokens(lengths, windows, max_tokens)
    assert sorted(np.concatenate(runs).tolist()) == sorted(windows.tolist())
    for run in runs:
        assert len(run) == 1 or len(run) * lengths[run].max() <= max_tokens
    longest = [lengths[run].max() for run in runs]
    assert longest == sorted(longest, reverse=True)
    for run in runs[:-1]:  # none is cut short of what fits
        assert (len(run) + 1) * lengths[run].max() > max_tokens


def test_runs_of_a_known_batch():
    lengths = np.array([10, 50, 20, 50, 30, 7])
    runs = split_by_tokens(lengths, np.array([5, 0, 1, 2, 3]), 100)  # window 4 belongs to another batch
    assert [run.tolist() for run in runs] == [[1, 3], [2, 0, 5]]
    assert [run.tolist() for run in split_by_tokens(lengths, np.array([1, 4]), 1)] == [[1], [4]]
    assert split_by_tokens(lengths, np.array([], np.int64), 100) == []


def test_tensors_and_the_mask_that_is_not_needed():
    mask = np.array([[True, True], [True, False]])
    batch = {"input_ids": np.array([[5, 6], [7, 0]]), "attention_mask": mask}
    tensors = to_tensors(batch, torch.device("cpu"))
    assert tensors["input_ids"].dtype == torch.int64 and tensors["attention_mask"].dtype == torch.bool
    assert torch.equal(tensors["attention_mask"], torch.tensor([[True, True], [True, False]]))
    batch["attention_mask"][:] = True
    tensors = to_tensors(batch, torch.device("cpu"))
    assert tensors["attention_mask"] is None and tensors["input_ids"].tolist() == [[5, 6], [7, 0]]
