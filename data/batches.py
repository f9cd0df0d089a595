"""Which windows go into which batch: similar lengths together, in an order that can be continued anywhere."""

import numpy as np
import torch

POOL_BATCHES = 64  # batches whose windows are sorted by length together


def epoch_batches(lengths, batch_size, seed, epoch):
    """The batches of one epoch: a list of index arrays of `batch_size` windows (the last may be smaller).

    lengths: (W,) tokens of each window. The result depends on nothing but the arguments, so a run that
    resumes at position p of epoch e takes epoch_batches(…, e)[p:]. Windows are shuffled, cut into pools of
    POOL_BATCHES batches, sorted by length within a pool, and the batches shuffled: each batch is of one
    length or nearly (little padding), and neighbours in a pool still differ from epoch to epoch.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    batches = []
    for first in range(0, len(order), pool := POOL_BATCHES * batch_size):
        members = order[first : first + pool]
        members = members[np.argsort(lengths[members], kind="stable")]
        batches += [members[k : k + batch_size] for k in range(0, len(members), batch_size)]
    return [batches[k] for k in random.permutation(len(batches))]


def split_by_tokens(lengths, windows, max_tokens):
    """Cut a batch into runs whose padded size, count times longest, stays within `max_tokens`.

    lengths: (W,) of all windows; windows: indices of this batch. Longest first, so the largest run comes
    first and a batch that does not fit in memory says so at once. A window longer than `max_tokens` goes
    alone.
    """
    ordered = windows[np.argsort(-lengths[windows], kind="stable")]
    runs, first = [], 0
    while first < len(ordered):
        count = max(1, max_tokens // int(lengths[ordered[first]]))
        runs.append(ordered[first : first + count])
        first += count
    return runs


class QuestionCount:
    """Counts questions as their last windows are done. example: (W,) question of each window.

    finished: how many questions have no window, and so are done at once.
    """

    def __init__(self, example, questions):
        self.example = example
        self.remaining = np.bincount(example, minlength=questions)
        self.finished = int((self.remaining == 0).sum())

    def done(self, windows):
        """These windows, each once, are done; returns the number of questions that they finish."""
        np.subtract.at(self.remaining, self.example[windows], 1)
        return int((self.remaining[np.unique(self.example[windows])] == 0).sum())


def to_tensors(batch, device):
    """A batch of numpy arrays as tensors on `device`; attention_mask becomes None where nothing is padded."""
    tensors = {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in batch.items()}
    if batch["attention_mask"].all():
        tensors["attention_mask"] = None
    return tensors
