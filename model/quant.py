"""4-bit weights (Dettmers et al. 2023, QLoRA, arXiv 2305.14314): a pass over the encoder's Linear layers.

A weight is cut into blocks of 64 numbers. Each block keeps its largest magnitude (absmax) and, for every number, the
index (4 bits) of the nearest of 16 code values times absmax: 64 numbers take 32 bytes + 4. Double quantisation stores
the absmax in 8 bits too, in blocks of 256 with one fp32 each: 0.127 bits a weight in place of 0.5.

The pass uses bitsandbytes' Linear4bit; `nf4_codes`, `quantise_blocks` and `dequantise_blocks` are the same in plain
torch, for study, and equal to it bit for bit.
"""

import torch
import torch.nn as nn

BLOCK = 64
KINDS = ("nf4", "fp4")


class FourBitLinear(nn.Module):
    """A Linear whose weight is held in 4 bits; the bias stays as it is.

    Around bitsandbytes' Linear4bit, to keep its habits out: it would take fp4 unless told, latch the dtype of
    its first input as the one to compute in, cast the bias in place, and on CPUs with AVX512-BF16 repack the
    weight in place at the first evaluation (which rounds absmax to bf16, so that a reader would change by being used).
    """

    def __init__(self, weight, bias, *, kind="nf4", double=True, compute_dtype=torch.float32):
        from bitsandbytes.nn import Linear4bit, Params4bit  # heavy, and not needed without 4 bits

        super().__init__()
        assert kind in KINDS
        M, N = weight.shape
        self.out_features, self.in_features = M, N
        self.kind, self.double = kind, double
        self.quantised = Linear4bit(
            N, M, bias=False, compute_dtype=compute_dtype, compress_statistics=double, quant_type=kind, device="meta"
        )
        self.quantised.support_avx512bf16_for_cpu = False
        self.quantised.weight = Params4bit(
            weight.detach(), requires_grad=False, compress_statistics=double, quant_type=kind, blocksize=BLOCK,
            module=self.quantised,
        ).to(weight.device)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)

    @property
    def weight(self):
        """The packed weight, two numbers a byte; `dense_weight` gives the matrix."""
        return self.quantised.weight

    def forward(self, x):
        y = self.quantised(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def dense_weight(linear):
    """The (M, N) weight of a Linear in fp32 as its forward pass uses it, dequantised if need be."""
    if not isinstance(linear, FourBitLinear):
        return linear.weight.detach().float()
    from bitsandbytes.functional import dequantize_4bit

    packed = linear.quantised.weight
    return dequantize_4bit(packed.data, packed.quant_state).float()


def quantise(model, *, kind="nf4", double=True, compute_dtype=torch.float32):
    """Put every Linear of the encoder into 4 bits, in place; embeddings, norms and the head stay. Returns the names."""
    done = []
    for name, parent in list(model.bert.encoder.named_modules()):
        for attribute, module in list(parent.named_children()):
            if isinstance(module, nn.Linear):
                setattr(parent, attribute, FourBitLinear(
                    module.weight, module.bias, kind=kind, double=double, compute_dtype=compute_dtype
                ))
                done.append(f"bert.encoder.{name}.{attribute}")
    return done
