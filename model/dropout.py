"""Dropout (Srivastava et al. 2014) whose masks are cheap on a CPU: random bits in bulk, compared as integers.

PyTorch draws a number of its own for every element, one after the other; making numbers of what was compared costs as
much again. Here numpy's SFC64 draws 64 bits at a time, which are seen as integers as wide as the numbers to be dropped,
and what is dropped is below zero: the sign is then the mask, and bits make the factor (docs/experiments.md).
"""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a number


def share_dropped(like, probability):
    """(how many, out of how many values) of an integer mean that a number is dropped."""
    values = 1 << 8 * like.element_size() - 1
    return round(probability * values), values


def kept_scale(like, probability):
    """What a number is multiplied by that was not dropped: 1 / (1 - the true share of those that are)."""
    dropped, values = share_dropped(like, probability)
    return values / (values - dropped) if dropped < values else 0.0


def draw_dropped(like, probability):
    """Integers as wide as the numbers of `like`, in its shape: below 0 with `probability`.

    In 16 bits, of the 32,768 values without a sign the lowest 0.1 · 32,768 = 3,277 are dropped (0.100006). Seeded by a
    draw from torch's default generator, so that a seed, or its state put back, gives the same again.
    """
    assert like.device.type == "cpu"
    dropped, values = share_dropped(like, probability)
    count, size = like.numel(), like.element_size()
    seed = torch.randint(2**63 - 1, ()).item()
    bits = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**64, -(-count * size // 8), dtype=np.uint64)
    draws = torch.from_numpy(bits.view(np.int64)).view(INTEGERS[size])[:count].view(like.shape)
    return draws.bitwise_and_(values - 1).add_(-dropped)


def draw_kept(like, probability):
    """A tensor of the shape and dtype of `like`: 0 with `probability`, else `kept_scale`."""
    draws = draw_dropped(like, probability)
    bits = torch.tensor(kept_scale(like, probability), dtype=like.dtype).view(draws.dtype).item()
    # shifted, the sign fills a dropped number's integer with ones and a kept one's with zeros
    return draws.bitwise_right_shift_(8 * like.element_size() - 1).bitwise_not_().bitwise_and_(bits).view(like.dtype)


class Dropout(nn.Module):
    """nn.Dropout, by `draw_kept` on a CPU."""

    def __init__(self, probability):
        super().__init__()
        self.p = probability

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * draw_kept(x, self.p)

    def extra_repr(self):
        return f"p={self.p}"
