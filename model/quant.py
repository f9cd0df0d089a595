"""4-bit weights (Dettmers et al. 2023, QLoRA, arXiv 2305.14314): a pass over the encoder's Linear layers.

A weight is cut into blocks of 64 numbers. Each block keeps its largest magnitude (absmax) and, for every number, the
index (4 bits) of the nearest of 16 code values times absmax: 64 numbers take 32 bytes + 4. Double quantisation stores
the absmax in 8 bits too, in blocks of 256 with one fp32 each: 0.127 bits a weight in place of 0.5.

The pass uses bitsandbytes; `model.nf4` is the same in plain torch, for study.
"""

import logging
from dataclasses import dataclass

import torch
import torch.nn as nn

from common.choices import QUANTS

BLOCK = 64


@dataclass(frozen=True, slots=True)
class FourBit:
    """kind: "nf4" or "fp4". double: 8-bit absmax. compute_dtype: of the products, and of what a layer returns."""

    kind: str = "nf4"
    double: bool = True
    compute_dtype: torch.dtype = torch.float32

    @classmethod
    def named(cls, name, precision="fp32"):
        """From one of QUANTS and one of the precisions fp32, bf16, fp16."""
        assert name in QUANTS
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        return cls(name.removesuffix("-single"), not name.endswith("-single"), dtype)


def bitsandbytes_layers():
    """(Linear4bit, Params4bit), imported when they are needed; the library's note on a missing CPU kernel is silenced.

    Without the hub's `kernels` it dequantises and multiplies, which is what is wanted here.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from bitsandbytes.nn import Linear4bit, Params4bit

    return Linear4bit, Params4bit


class FourBitLinear(nn.Module):
    """A Linear whose weight is held in 4 bits, by bitsandbytes' Linear4bit; the bias stays as it is.

    Around that layer, to keep its habits out: it would take fp4 unless told, latch the dtype of its first input as
    the one to compute in, cast the bias in place, and on CPUs with AVX512-BF16 repack the weight in place at the
    first evaluation, which rounds absmax to bf16: a reader would change by being used.
    """

    def __init__(self, in_features, out_features, bias, four_bit):
        """bias: the Parameter or None. The weight comes with `fill`, so that it need never be there in full."""
        super().__init__()
        self.in_features, self.out_features, self.four_bit = in_features, out_features, four_bit
        self.quantised = None
        self.bias = bias

    def fill(self, weight):
        """Quantise `weight`, (M, N), on the device where it is."""
        Linear4bit, Params4bit = bitsandbytes_layers()
        assert weight.shape == (self.out_features, self.in_features)
        layer = Linear4bit(
            self.in_features, self.out_features, bias=False, compute_dtype=self.four_bit.compute_dtype,
            compress_statistics=self.four_bit.double, quant_type=self.four_bit.kind, device="meta",
        )
        layer.support_avx512bf16_for_cpu = False
        layer.weight = Params4bit(
            weight.detach(), requires_grad=False, compress_statistics=self.four_bit.double,
            quant_type=self.four_bit.kind, blocksize=BLOCK, module=layer,
        ).to(weight.device)
        self.quantised = layer

    @property
    def weight(self):
        """The packed weight, two numbers a byte; `dense_weight` gives the matrix."""
        return self.quantised.weight

    def forward(self, x):
        y = self.quantised(x.to(self.four_bit.compute_dtype))
        return y if self.bias is None else y + self.bias.to(y.dtype)


def dense_weight(linear):
    """The (M, N) weight of a Linear in fp32, dequantised if need be."""
    if not isinstance(linear, FourBitLinear):
        return linear.weight.detach().float()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(linear.weight.data, linear.weight.quant_state).float()


def quantise(model, four_bit):
    """Put every Linear of the encoder into 4 bits, in place; embeddings, norms and the head stay. Returns the names.

    Of a model on the meta device, which holds no numbers, the layers wait for `fill`.
    """
    done = []
    for name, parent in list(model.bert.encoder.named_modules()):
        for attribute, module in list(parent.named_children()):
            if isinstance(module, nn.Linear):
                packed = FourBitLinear(module.in_features, module.out_features, module.bias, four_bit)
                if not module.weight.is_meta:
                    packed.fill(module.weight)
                setattr(parent, attribute, packed)
                done.append(f"bert.encoder.{name}.{attribute}")
    return done


def weight_bytes(model):
    """Bytes of the encoder's Linear weights as they are held, absmax and its scales included."""
    parts = []
    for name, module in model.bert.encoder.named_modules():
        if isinstance(module, FourBitLinear):
            state = module.weight.quant_state
            parts += [module.weight.data, state.absmax]
            if state.nested:  # beside these, code books of 1 KiB that do not grow with the layer
                parts += [state.state2.absmax, state.offset]
        elif isinstance(module, nn.Linear) and not name.endswith(".quantised"):
            parts.append(module.weight)
    return sum(part.numel() * part.element_size() for part in parts)
