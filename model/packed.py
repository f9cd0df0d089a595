"""Linears laid out for answering in bf16 on a CPU: a pass over a model that will only answer from now on.

Under autocast F.linear rounds an fp32 weight to bf16 and brings it into oneDNN's blocked order at every call. Here both
are done once; of rows that lie one after the other the products are the same, bit for bit. The operators are those that
torch.compile's code for CPUs calls.
"""

import torch
import torch.nn as nn

from model.lora import LoraLinear
from model.quant import plain_linears


class PackedLinear(nn.Module):
    """y = x Wᵀ + b in bf16, without a gradient. W is held in oneDNN's order alone, two bytes a number."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # neither a Parameter nor a buffer: no file could hold it
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(torch.bfloat16))
        self.bias = None if linear.bias is None else linear.bias.detach().to(torch.bfloat16)

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), self.packed, self.bias, "none", [], "")


def can_pack():
    """Whether this torch was built with the operators."""
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in operators)


def pack_linears(model, device, precision):
    """Put every Linear of a model that computes on a CPU in bf16 into oneDNN's order, in place; how many.

    Those in 4 or 8 bits stay, those whose weight DoRA asks for at every call, a span head, which computes in fp32, and an
    output layer whose weight is that of the word vectors.
    """
    if device.type != "cpu" or precision != "bf16" or not can_pack():
        return 0
    done = 0
    for _, parent, attribute, linear in plain_linears(model):
        updates = parent.updates.values() if isinstance(parent, LoraLinear) else ()
        if all(update.lora_magnitude_vector is None for update in updates):
            setattr(parent, attribute, PackedLinear(linear))
            done += 1
    last = getattr(model, "lm_head", None)
    if type(last) is nn.Linear and last.weight is not model.model.embed_tokens.weight:
        model.lm_head = PackedLinear(last)
        done += 1
    return done
