"""4-bit weights (Dettmers et al. 2023, QLoRA, arXiv 2305.14314), and 8-bit products: passes over the encoder's Linears.

A weight is cut into blocks of 64 numbers. Each block keeps its largest magnitude (absmax) and, for every number, the
index (4 bits) of the nearest of 16 code values times absmax: 64 numbers take 32 bytes + 4. Double quantisation stores
the absmax in 8 bits too, in blocks of 256 with one fp32 each: 0.127 bits a weight in place of 0.5.

The pass uses bitsandbytes; `model.nf4` is the same in plain torch, for study.
"""

import logging
from copy import copy
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from common.choices import QUANTS
from common.errors import InputError
from model import few_rows

BLOCK = 64
ROWS = 512  # of an 8-bit product that are worked on at a time
OUTPUTS = ("qa_outputs", "lm_head")  # the last layers, which keep their full precision


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

    @property
    def name(self):
        """The one of QUANTS."""
        return self.kind if self.double else f"{self.kind}-single"

    def to_dict(self):
        """`quantization_config` of a config.json, as transformers writes it."""
        return {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": self.kind,
            "bnb_4bit_use_double_quant": self.double, "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_compute_dtype": str(self.compute_dtype).removeprefix("torch."),
            "llm_int8_skip_modules": [*OUTPUTS],
        }

    @classmethod
    def from_dict(cls, values, source, precision="fp32"):
        """From a `quantization_config`; InputError, naming `source`, for what is not 4 bits by bitsandbytes."""
        known = isinstance(values, dict) and values.get("load_in_4bit") is True
        kind = values.get("bnb_4bit_quant_type", "fp4") if known else None
        if kind not in ("nf4", "fp4") or values.get("bnb_4bit_quant_storage", "uint8") != "uint8":
            raise InputError(f"{source}: quantization_config: only bitsandbytes' nf4 and fp4 in uint8 can be read here")
        return cls.named(kind if values.get("bnb_4bit_use_double_quant") else f"{kind}-single", precision)


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
    first evaluation, which rounds absmax to bf16: a reader would change by being used (`FewRows` repacks a copy, where
    that saves time). On a CPU it reads back wrong numbers where a row ends within a block (see `dequantised`);
    `FourBitProduct` multiplies there.
    """

    def __init__(self, in_features, out_features, bias, four_bit):
        """bias: the Parameter or None. The weight comes with `fill`, so that it need never be there in full."""
        super().__init__()
        self.in_features, self.out_features, self.four_bit = in_features, out_features, four_bit
        self.quantised = self.for_few_rows = None
        self.bias = bias

    def empty_layer(self):
        """bitsandbytes' layer before it has a weight."""
        layer = bitsandbytes_layers()[0](
            self.in_features, self.out_features, bias=False, compute_dtype=self.four_bit.compute_dtype,
            compress_statistics=self.four_bit.double, quant_type=self.four_bit.kind, device="meta",
        )
        layer.support_avx512bf16_for_cpu = False
        return layer

    def fill(self, weight):
        """Quantise `weight`, (M, N), on the device where it is."""
        assert weight.shape == (self.out_features, self.in_features)
        Params4bit, layer = bitsandbytes_layers()[1], self.empty_layer()
        layer.weight = Params4bit(
            weight.detach(), requires_grad=False, compress_statistics=self.four_bit.double,
            quant_type=self.four_bit.kind, blocksize=BLOCK, module=layer,
        ).to(weight.device)
        self.quantised, self.for_few_rows = layer, None

    def packed_tensors(self):
        """Suffix of the weight's name in a file -> tensor, as bitsandbytes and transformers store it."""
        parts = self.weight.quant_state.as_dict(packed=True)
        return {"": self.weight.data} | {f".{part}": tensor for part, tensor in parts.items()}

    def check_packed(self, tensors):
        """Refuse tensors of other counts or number formats, before kernels that trust them see them; ValueError."""
        count = self.out_features * self.in_features
        blocks = -(-count // BLOCK)
        wanted = {"": ((count + 1) // 2, torch.uint8), ".quant_map": (16, torch.float32)}
        if self.four_bit.double:
            wanted |= {
                ".absmax": (blocks, torch.uint8), ".nested_absmax": (-(-blocks // 256), torch.float32),
                ".nested_quant_map": (256, torch.float32),
            }
        else:
            wanted[".absmax"] = blocks, torch.float32
        state = f".quant_state.bitsandbytes__{self.four_bit.kind}"
        for suffix in sorted(set(tensors) ^ {*wanted, state}):
            there = "there" if suffix in tensors else "missing"
            raise ValueError(f"not a weight in {self.four_bit.name}: {suffix or 'the weight itself'} is {there}")
        for suffix, (numbers, dtype) in wanted.items():
            tensor = tensors[suffix]
            if tensor.numel() != numbers or tensor.dtype != dtype or not tensor.float().isfinite().all():
                raise ValueError(f"{suffix or 'the packed weight'} should be {numbers} finite numbers in {dtype}")

    def fill_packed(self, tensors):
        """The inverse of `packed_tensors`. Raises ValueError when the tensors are not of such a weight."""
        self.check_packed(tensors)
        Params4bit = bitsandbytes_layers()[1]
        layer = self.empty_layer()
        parts = {suffix[1:]: tensor for suffix, tensor in tensors.items() if suffix}
        try:
            layer.weight = Params4bit.from_prequantized(tensors[""], parts, device="cpu", module=layer)
            state = layer.weight.quant_state
            fits = (state.quant_type, bool(state.nested), tuple(state.shape), state.blocksize) == (
                self.four_bit.kind, self.four_bit.double, (self.out_features, self.in_features), BLOCK
            )
        except (KeyError, ValueError, AttributeError, TypeError, IndexError, UnicodeDecodeError) as error:
            raise ValueError(f"not a weight in 4 bits ({type(error).__name__}: {error})") from None
        if not fits:
            raise ValueError(f"not a weight of {self.out_features} x {self.in_features} in {self.four_bit.name}")
        self.quantised, self.for_few_rows = layer, None

    @property
    def weight(self):
        """The packed weight, two numbers a byte; `dense_weight` gives the matrix."""
        return self.quantised.weight

    def dequantised(self):
        """The (M, N) weight as it is rounded, in the dtype it came in.

        bitsandbytes' kernel for CPUs (0.50) counts blocks row by row: of 352 inputs a row takes 5.5 blocks, and from the
        second row on it multiplies by the wrong absmax. Read as one row the numbers are right; of odd length they take
        its slow way, so the half byte that is left over counts too.
        """
        from bitsandbytes.functional import dequantize_4bit

        weight, state, count = self.weight.data, self.weight.quant_state, self.out_features * self.in_features
        if weight.device.type == "cpu":
            state = copy(state)
            state.shape = torch.Size((1, count + count % 2))
        return dequantize_4bit(weight, state).flatten()[:count].view(self.out_features, self.in_features)

    def forward(self, x):
        x = x.to(self.four_bit.compute_dtype)
        if few_rows.fits(self, x):
            self.for_few_rows = self.for_few_rows or few_rows.FewRows(self.weight.data, self.weight.quant_state)
            y = self.for_few_rows(x)
        elif x.device.type == "cpu" and self.in_features % BLOCK:
            y = FourBitProduct.apply(x, self)
        else:
            y = self.quantised(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class FourBitProduct(torch.autograd.Function):
    """y = x Wᵀ of a FourBitLinear, whose weight is read back once more for the gradient instead of being kept."""

    @staticmethod
    def forward(ctx, x, linear):
        ctx.linear = linear
        return F.linear(x, linear.dequantised().to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient @ ctx.linear.dequantised().to(gradient.dtype), None


class Int8Linear(nn.Module):
    """A Linear that multiplies in 8 bits, for answering on a CPU that has instructions for it (VNNI).

    Weights are rounded row by row once, inputs token by token as they come: with s_w[m] = max |W[m]| / 127 and
    s_x[t] = max |x[t]| / 127, y[t, m] = s_x[t] · s_w[m] · Σ x̂[t, n] ŵ[m, n] + b[m], the sum in exact int32. By
    torch._int_mm: torch.ao's dynamic quantisation, which did this before, is announced for deletion. Row block by row
    block, so that what stands around the product stays in the cache, and in fp32 alone: operations on two dtypes at once
    take two to five times as long (docs/experiments.md).
    """

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-30) / 127  # (M,)
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))  # (M, N)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        rows = x.reshape(-1, self.in_features)  # (R, N)
        y = torch.empty(len(rows), self.out_features, dtype=dtype)  # (R, M)
        for first in range(0, len(rows), ROWS):
            part = rows[first : first + ROWS].float()
            scale = part.abs().amax(1, keepdim=True).clamp_(min=1e-30) / 127  # (n, 1)
            rounded = (part / scale).round_().to(torch.int8)
            total = torch._int_mm(rounded, self.weight.t()).float().mul_(scale).mul_(self.scale)  # (n, M)
            y[first : first + ROWS] = total if self.bias is None else total.add_(self.bias)
        return y.view(*x.shape[:-1], self.out_features)


LINEAR = (nn.Linear, FourBitLinear, Int8Linear)


def plain_linears(model):
    """[(name, parent, attribute, Linear)] of all but the last layer, adapters' own and those inside a FourBitLinear."""
    found = []
    for name, parent in model.named_modules():
        if isinstance(parent, FourBitLinear) or ".updates." in f"{name}." or name.split(".")[0] in OUTPUTS:
            continue
        for attribute, module in parent.named_children():
            full = f"{name}.{attribute}".removeprefix(".")
            # what pruning left of a feed-forward half (model/pruning.py) holds no weights that could be rounded
            if isinstance(module, nn.Linear) and module.weight.numel() and full not in OUTPUTS:
                found.append((full, parent, attribute, module))
    return found


def multiply_in_int8(model):
    """Let every Linear but the last multiply in 8 bits, in place; norms and embeddings stay."""
    for _, parent, attribute, module in plain_linears(model):
        setattr(parent, attribute, Int8Linear(module))


def dense_weight(linear):
    """The (M, N) weight of a Linear in fp32, dequantised if need be."""
    if isinstance(linear, Int8Linear):
        return linear.weight.float() * linear.scale[:, None]
    if not isinstance(linear, FourBitLinear):
        return linear.weight.detach().float()
    return linear.dequantised().float()


def quantise(model, four_bit):
    """Put every Linear but the last into 4 bits, in place; embeddings and norms stay. Returns the names.

    Of a model on the meta device, which holds no numbers, the layers wait for `fill`.
    """
    done = plain_linears(model)
    for _, parent, attribute, module in done:
        packed = FourBitLinear(module.in_features, module.out_features, module.bias, four_bit)
        if not module.weight.is_meta:
            packed.fill(module.weight)
        setattr(parent, attribute, packed)
    return [name for name, *_ in done]


def weight_bytes(model):
    """Bytes of the Linear weights but the last as they are held, absmax and its scales included."""
    parts = [module.weight for *_, module in plain_linears(model)]
    for module in model.modules():
        if isinstance(module, FourBitLinear):
            state = module.weight.quant_state
            parts += [module.weight.data, state.absmax]
            if state.nested:  # beside these, code books of 1 KiB that do not grow with the layer
                parts += [state.state2.absmax, state.offset]
    return sum(part.numel() * part.element_size() for part in parts)
