"""4-bit products for a few rows at a time, as a decoder's next tokens are: bitsandbytes' fused kernel for CPUs.

To read a weight back costs the same for one row as for a thousand. The kernel looks the 16 code values up in a register
while it multiplies (AVX512-BF16), and so reads half a byte a number. It wants the weight in an order of its own and absmax
in bf16, which moves a block's numbers by at most 2⁻⁹ of themselves, as rounding them to bf16 does. Hence a copy: the layer
is not changed by being used, and takes twice its memory once it has spoken.
"""

from copy import copy
from functools import cache

import torch

MOST_ROWS = 64  # of more, reading the weight back costs less
OUTPUTS_TOGETHER = 32  # rows of a weight that the kernel's order puts side by side


@cache
def has_kernel():
    """Whether bitsandbytes brings the kernel (0.50 does), and this CPU its instructions."""
    from bitsandbytes import functional

    return hasattr(functional, "_convert_weight_packed_for_cpu") and bool(functional.has_avx512bf16())


class FewRows:
    """y = x Wᵀ of a weight in 4 bits, (M, N), for x of (R, N) in bf16."""

    def __init__(self, weight, state):
        """weight, state: as bitsandbytes holds them; neither is changed."""
        from bitsandbytes import functional

        self.weight, self.state = functional._convert_weight_packed_for_cpu(weight, copy(state))
        self.multiply = functional.gemv_4bit

    def __call__(self, x):
        return self.multiply(x.contiguous(), self.weight, state=self.state)


def fits(linear, x):
    """Whether the kernel can do the product of a FourBitLinear with x, for answering, and does it faster."""
    return (
        x.device.type == "cpu" and x.dtype == torch.bfloat16 and 0 < x.numel() <= MOST_ROWS * linear.in_features
        and not linear.in_features % linear.quantised.weight.quant_state.blocksize
        and not linear.out_features % OUTPUTS_TOGETHER and not torch.is_grad_enabled() and has_kernel()
    )
