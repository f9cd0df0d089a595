"""4-bit products for a few rows at a time, as a decoder's next tokens are: bitsandbytes' fused kernel for CPUs.

To read a weight back costs the same for one row as for a thousand. The kernel looks the 16 code values up in a register
while it multiplies (AVX512-BF16), and so reads half a byte a number. It wants the weight in an order of its own and absmax
in bf16, which moves a block's numbers by at most 2⁻⁹ of themselves, as rounding them to bf16 does. Hence a copy: the layer
is not changed by being used, and takes twice its memory once it has spoken.
"""

from copy import copy
from ctypes import c_int64, c_void_p
from functools import cache

import torch

MOST_ROWS = 64  # of more, reading the weight back costs less
OUTPUTS_TOGETHER = 32  # rows of a weight that the kernel's order puts side by side


@cache
def has_kernel():
    """Whether bitsandbytes brings the kernel (0.50 does), and this CPU its instructions."""
    from bitsandbytes import functional

    kernels = (f"gemv_4bit_inference_cpu_{kind}_bf16" for kind in ("nf4", "fp4"))
    known = hasattr(functional, "_convert_weight_packed_for_cpu") and all(hasattr(library(), kernel) for kernel in kernels)
    return known and bool(functional.has_avx512bf16())


def library():
    """bitsandbytes' own functions, as ctypes finds them."""
    from bitsandbytes.cextension import lib

    return getattr(lib, "_lib", None)  # around it stands a class that has every name


class FewRows:
    """y = x Wᵀ of a weight in 4 bits, (M, N), for x of (R, N) in bf16.

    The function of bitsandbytes' library is called as it is: what its `gemv_4bit` does around it takes as long as the
    product of a small layer.
    """

    def __init__(self, weight, state):
        """weight, state: as bitsandbytes holds them; neither is changed."""
        from bitsandbytes import functional

        self.weight, state = functional._convert_weight_packed_for_cpu(weight, copy(state))
        self.absmax, (self.outputs, self.inputs) = state.absmax, state.shape
        self.multiply = getattr(library(), f"gemv_4bit_inference_cpu_{state.quant_type}_bf16")
        self.sizes = c_int64(self.outputs), c_int64(self.inputs)
        self.held = c_void_p(self.weight.data_ptr()), c_void_p(self.absmax.data_ptr())
        self.steps = c_int64(state.blocksize), *reversed(self.sizes)  # from a row of x, and of y, to the next

    def __call__(self, x):
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.outputs)
        rows, here, there = c_int64(x.numel() // self.inputs), c_void_p(x.data_ptr()), c_void_p(y.data_ptr())
        self.multiply(rows, *self.sizes, here, *self.held, there, *self.steps)
        return y


def fits(linear, x):
    """Whether the kernel can do the product of a FourBitLinear with x, for answering, and does it faster."""
    return (
        x.device.type == "cpu" and x.dtype == torch.bfloat16 and 0 < x.numel() <= MOST_ROWS * linear.in_features
        and not linear.in_features % linear.quantised.weight.quant_state.blocksize
        and not linear.out_features % OUTPUTS_TOGETHER and not torch.is_grad_enabled() and has_kernel()
    )
