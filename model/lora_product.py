"""LoRA while it learns: one product with W + s B A in place of three, and the gradient written out.

    W' = W + s B A        y = x W'ᵀ + b        N inputs, M outputs, rank r, R = B·T rows: x (R, N), y (R, M)

W' costs M·N·r multiplications, y costs R·M·N: at r = 32 and 3,000 rows a hundredth. What it saves are the update's
own two thin products, the scaling and the sum, each of which writes R·M numbers. With G = dL/dy,

    dL/dx = G W'        dL/dA = s (G B)ᵀ x        dL/dB = s Gᵀ (x Aᵀ)

so dL/dW (M, N), which full fine-tuning needs, is never formed. In 16 bits W' is rounded once, as W is by autocast: the
difference to the sum of two products is that of rounding (tests/test_lora_product.py).
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from model.quant import FourBitLinear, dense_weight


def updated_weight(base, A, B, scale, dtype):
    """W + s B A, (M, N) in `dtype`; the sum in fp32."""
    return torch.addmm(dense_weight(base), B.float(), A.float(), alpha=scale).to(dtype)


class LoraProduct(torch.autograd.Function):
    """y of the equation above; `base` is a Linear or FourBitLinear that does not learn. x: (…, N), y: (…, M)."""

    @staticmethod
    def forward(ctx, x, A, B, scale, base, dtype):
        x, bias = x.to(dtype), None if base.bias is None else base.bias.to(dtype)
        weight = updated_weight(base, A, B, scale, dtype)
        ctx.base, ctx.scale = base, scale
        # beside 4-bit weights it is made again in the backward pass: holding it would undo them
        ctx.save_for_backward(x, A, B, None if isinstance(base, FourBitLinear) else weight)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, A, B, weight = ctx.saved_tensors
        by_x = None
        if ctx.needs_input_grad[0]:
            if weight is None:
                weight = updated_weight(ctx.base, A, B, ctx.scale, x.dtype)
            by_x = gradient @ weight
        rows, by_y = x.flatten(0, -2), gradient.flatten(0, -2)  # (R, N), (R, M)
        low = by_y @ B.to(x.dtype)  # (R, r)
        by_A = (low.t() @ rows).to(A.dtype) * ctx.scale
        by_B = (by_y.t() @ (rows @ A.to(x.dtype).t())).to(B.dtype) * ctx.scale
        return by_x, by_A, by_B, None, None, None


def learns_in_one_product(base, update):
    """Whether `LoraProduct` can stand for base(x) plus an update: no dropout of its own, no DoRA, W and b frozen."""
    if type(base) not in (nn.Linear, FourBitLinear) or not hasattr(update, "lora_A"):  # a fusion has none
        return False
    if update.lora_magnitude_vector is not None or update.dropout.p:
        return False
    return update.lora_A.requires_grad and not any(p.requires_grad for p in base.parameters())


def lora_product(x, base, update):
    """base(x) with `update`, a LoraUpdate, as one product in autocast's dtype, or in that of x; differentiable."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        return LoraProduct.apply(x, update.lora_A, update.lora_B, update.scale, base, dtype)
