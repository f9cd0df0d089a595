"""NF4 by the book, in plain torch, for study; `model.quant` computes with bitsandbytes, and equals this bit for bit.

Dettmers et al. 2023 (QLoRA, arXiv 2305.14314), section 3. A block of 64 numbers keeps its largest magnitude, absmax,
and for each number the index of the code value nearest to number / absmax. The 16 code values are quantiles of the
normal distribution, as weights are nearly normal. Example, a block that starts
0.02, -0.05, 0.01 with absmax 0.05: divided 0.4, -1, 0.2; nearest codes 0.4407, -1, 0.1609; indices 12, 0, 9; read back
as 0.0220, -0.05, 0.0080. Two indices go into a byte, the first in the upper half.
"""

from dataclasses import dataclass
from statistics import NormalDist

import torch

BLOCK = 64
OUTERMOST = 0.9677083  # section 3: half-way between the quantiles 1 - 1/30 and 1 - 1/32
ABSMAX_BLOCK = 256
GRID = 65535


def nf4_codes():
    """The 16 code values in ascending order, (16,) fp32: 8 quantiles below zero, zero, 7 above, scaled into [-1, 1].

    The points are float32 and the inverse of the normal distribution is taken of exactly those.
    """
    inverse = NormalDist().inv_cdf
    above = [inverse(p) for p in torch.linspace(OUTERMOST, 0.5, 9)[:-1].tolist()]
    below = [-inverse(p) for p in torch.linspace(OUTERMOST, 0.5, 8)[:-1].tolist()]
    values = torch.tensor(sorted([*above, 0.0, *below]), dtype=torch.float32)
    return values / values.max()


def dynamic_codes():
    """The 256 code values of 8 bits with a dynamic exponent (Dettmers 2016, arXiv 1511.04561), (256,) fp32, ascending.

    Seven decades; decade i holds 2^i means of equal parts of [0.1, 1] on either side of zero.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        means = (10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        values += means + [-value for value in means]
    return torch.tensor(sorted(values), dtype=torch.float32)


@dataclass(frozen=True)
class Packed:
    """A weight in 4 bits. indices: (ceil(n / 2),) uint8. absmax: (blocks,) fp32, or with double quantisation uint8.

    offset, absmax_scale: of double quantisation, the mean that was taken off absmax, and one fp32 per 256 of them.
    """

    indices: torch.Tensor
    absmax: torch.Tensor
    shape: tuple
    offset: torch.Tensor | None = None
    absmax_scale: torch.Tensor | None = None


def quantise_nf4(weight, double=True):
    """A weight of any shape as Packed."""
    flat = weight.reshape(-1).float()
    whole = len(flat) - len(flat) % BLOCK
    blocks = flat[:whole].view(-1, BLOCK)
    absmax = blocks.abs().amax(1)  # (blocks,)
    scaled = (blocks * (1 / absmax.clamp(min=1e-38))[:, None]).reshape(-1)  # a block of zeros stays zeros
    if whole < len(flat):  # the last, shorter block is divided, not multiplied by the inverse: one more exact bit
        last = flat[whole:].abs().max().clamp(min=1e-38)
        absmax, scaled = torch.cat([absmax, last[None]]), torch.cat([scaled, flat[whole:] / last])
    codes = nf4_codes()
    indices = torch.bucketize(scaled.clamp(-1, 1), (codes[:-1] + codes[1:]) / 2).to(torch.uint8)
    if len(indices) % 2:
        indices = torch.cat([indices, indices.new_full((1,), 7)])  # 7 stands for zero
    packed = indices[::2] << 4 | indices[1::2]
    if not double:
        return Packed(packed, absmax, tuple(weight.shape))
    offset = absmax.mean()
    eight_bits, scale = quantise_8_bits(absmax - offset)
    return Packed(packed, eight_bits, tuple(weight.shape), offset, scale)


def dequantise_nf4(packed):
    """The weight that a Packed stands for, fp32."""
    absmax = packed.absmax
    if packed.offset is not None:
        absmax = dequantise_8_bits(absmax, packed.absmax_scale) + packed.offset
    indices = torch.stack([packed.indices >> 4, packed.indices & 15], 1).reshape(-1).long()
    count = torch.Size(packed.shape).numel()
    values = nf4_codes()[indices[:count]]
    return (values * absmax.repeat_interleave(BLOCK)[:count]).view(packed.shape)


def quantise_8_bits(values):
    """(n,) fp32 to (indices uint8 (n,), absmax fp32 per block of 256): the nearest of `dynamic_codes` times absmax.

    Nearest to the number's place among GRID steps from -1 to 1, which is how bitsandbytes looks it up on a CPU.
    """
    blocks = values.split(ABSMAX_BLOCK)
    absmax = torch.stack([block.abs().max() for block in blocks])
    scaled = torch.cat([block * (1 / top) for block, top in zip(blocks, absmax, strict=True)])  # 0 / 0 in one of zeros
    step = ((scaled.clamp(-1, 1) + 1) * (GRID / 2) + 0.5).floor()
    codes = dynamic_codes()
    indices = torch.bucketize(step * (2 / GRID) - 1, (codes[:-1] + codes[1:]) / 2)
    return torch.where(scaled.isnan(), 0, indices).to(torch.uint8), absmax


def dequantise_8_bits(indices, absmax):
    """The inverse of `quantise_8_bits` up to rounding."""
    return dynamic_codes()[indices.long()] * absmax.repeat_interleave(ABSMAX_BLOCK)[: len(indices)]
