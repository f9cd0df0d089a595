"""4-bit products for a few rows at a time, as a decoder's next tokens are: bitsandbytes' fused kernel for CPUs.

To read a weight back costs the same for one row as for a thousand. The kernel looks the 16 code values up in a register
while it multiplies (AVX512-BF16), and so reads half a byte a number. It wants the weight in an order of its own and absmax
in bf16, which moves a block's numbers by at most 2⁻⁹ of themselves, as rounding them to bf16 does. Hence a copy: the layer
is not changed by being used, and takes twice its memory once it has spoken.
"""

from copy import copy
from ctypes import CFUNCTYPE, c_int64, c_void_p
from functools import cache

import torch

MOST_ROWS = 64  # of more, reading the weight back costs less
KERNEL = "gemv_4bit_inference_cpu_{}_bf16"
OUTPUTS_TOGETHER = 32  # rows of a weight that the kernel's order puts side by side


@cache
def has_kernel():
    """Whether bitsandbytes brings the kernel (0.50 does), and this CPU its instructions."""
    from bitsandbytes import functional

    known = hasattr(functional, "_convert_weight_packed_for_cpu")
    known = known and all(hasattr(library(), KERNEL.format(kind)) for kind in ("nf4", "fp4"))
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
        self.absmax, self.kind, self.blocksize = state.absmax, state.quant_type, state.blocksize
        self.outputs, self.inputs = state.shape

    def __call__(self, x):
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.outputs)
        sizes = x.numel() // self.inputs, self.outputs, self.inputs
        places = (tensor.data_ptr() for tensor in (x, self.weight, self.absmax, y))  # asked now: a copy of this has its own
        steps = self.blocksize, self.inputs, self.outputs  # the last two from a row of x, and of y, to the next
        kernel(self.kind)(*sizes, *places, *steps)
        return y


@cache
def kernel(kind):
    """The function of bitsandbytes' library for "nf4" or "fp4", taking plain integers; theirs is not changed."""
    takes = CFUNCTYPE(None, *[c_int64] * 3, *[c_void_p] * 4, *[c_int64] * 3)
    return takes((KERNEL.format(kind), library()))


def fits(linear, x):
    """Whether the kernel can do the product of a FourBitLinear with x, for answering, and does it faster."""
    return (
        x.device.type == "cpu" and x.dtype == torch.bfloat16 and 0 < x.numel() <= MOST_ROWS * linear.in_features
        and not linear.in_features % linear.quantised.weight.quant_state.blocksize
        and not linear.out_features % OUTPUTS_TOGETHER and not torch.is_grad_enabled() and has_kernel()
    )
