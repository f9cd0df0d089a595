"""Activations of a reader, layer by layer, and their comparison with those of another implementation.

Everything is named as it stands in the model: `hidden.0` is what leaves the embeddings, `hidden.3` what leaves block 2,
`attention.2` that block's probabilities, then `start_logits` and `end_logits`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError
from inside.hooks import recording_hidden

GOLDEN = Path(__file__).with_name("golden")  # a tiny model, and what transformers makes of it
ACTIVATIONS = "activations.safetensors"
SEED, BATCH = 0, 3


def probe(config):
    """A ragged batch for any model of this config, always the same: ids, token types and mask, (B, T) each."""
    random = np.random.default_rng(SEED)
    T = min(19, config.positions)
    lengths = [T, T // 2 + 1, 5]
    mask = np.arange(T)[None] < np.array(lengths)[:, None]
    words = random.integers(1, config.vocab_size, (BATCH, T))
    words[words == config.pad_token_id] = 0  # RoBERTa's: transformers counts positions by it, wherever it stands
    ids = np.where(mask, words, config.pad_token_id)
    types = np.where(mask & (np.arange(T)[None] >= 4), 1, 0)
    return torch.from_numpy(ids), torch.from_numpy(types), torch.from_numpy(mask)


@torch.inference_mode()
def activations(model, ids, types, mask):
    """{name: fp32 tensor} of one pass by eager attention, in the order they are computed."""
    with recording_hidden(model.eval()) as states:
        start, end, maps = model.attention_maps(ids, types, mask)
    found = {"hidden.0": states[0]}
    for layer, (probabilities, state) in enumerate(zip(maps, states[1:], strict=True)):
        found |= {f"attention.{layer}": probabilities, f"hidden.{layer + 1}": state}
    return found | {"start_logits": start, "end_logits": end}


@dataclass(frozen=True, slots=True)
class Layer:
    """largest: greatest |a − b| over real tokens. scale: greatest |b|, beside which it is to be seen."""

    name: str
    largest: float
    scale: float

    def diverges(self, tolerance):
        """Whether the difference is more than rounding: above tolerance times the scale (or 1, if that is more)."""
        return not self.largest <= tolerance * max(1.0, self.scale)


def compare(ours, theirs, mask):
    """A Layer for every activation, in order; rows and columns of padding do not count. InputError for other names."""
    if list(ours) != list(theirs):
        odd = next((name for name in [*ours, *theirs] if (name in ours) != (name in theirs)), "the order")
        raise InputError(f"the activations are not those of this model: {odd} is on one side only")
    layers = []
    for name, mine in ours.items():
        other = theirs[name]
        if mine.shape != other.shape:
            raise InputError(f"{name}: has shape {tuple(mine.shape)} here and {tuple(other.shape)} there")
        # attention rows of padding are anyone's business, and its columns are zero on both sides
        place = mask[:, None, :, None].expand_as(mine) if name.startswith("attention") else mask
        layers.append(Layer(name, (mine - other)[place].abs().max().item(), other[place].abs().max().item()))
    return layers


def first_divergence(layers, tolerance):
    """The first Layer that diverges, None when all agree."""
    return next((layer for layer in layers if layer.diverges(tolerance)), None)
