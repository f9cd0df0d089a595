"""Dropout (Srivastava et al. 2014) whose masks are cheap on a CPU: four of them from every 64-bit draw."""

import torch
import torch.nn as nn
import torch.nn.functional as F

LEVELS = 2**16


def draw_kept(like, probability):
    """A tensor of the shape, device and dtype of `like`: 0 with `probability`, else 1 / (1 - probability).

    PyTorch draws a number of its own for every element, one after the other, which takes two to three times as long
    (docs/experiments.md). Here 16 bits decide: of the 65,536 values the lowest `probability` · 65,536 (6,554 for 0.1,
    so 0.100006) mean 0, and the others are scaled by the true share. Draws from torch's default generator.
    """
    dropped = round(probability * LEVELS)
    draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    draws.random_(-(2**63), None)  # all 64 bits; the default range leaves the sign out
    values = draws.view(torch.int16)[: like.numel()].view(like.shape)
    scale = LEVELS / (LEVELS - dropped) if dropped < LEVELS else 0.0
    return (values >= dropped - LEVELS // 2).to(like.dtype).mul_(scale)


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
