"""Where heads look: the probabilities of the eager attention, which the model has beside its fused one.

An attention weight is what a token takes from another's value before the output projection. It is no proof of
importance (Jain and Wallace 2019, arXiv 1902.10186); ablation.py asks for that.
"""

from dataclasses import dataclass

import torch

from common.errors import InputError
from inside.hooks import blocks, virtual_tokens


@dataclass(frozen=True, slots=True)
class Look:
    """What one head does in one window. answer: (T,) mean over the answer's tokens of where they look; cls: [CLS].

    to_virtual: share of the answer's look that goes to virtual tokens, which are not among the T.
    """

    layer: int
    head: int
    number: int
    answer: torch.Tensor
    cls: torch.Tensor
    to_virtual: float


def attention_maps(case, number=None):
    """A list over layers of their heads' probabilities, (H, T, T) fp32 on the CPU: row t says where token t looks.

    With virtual tokens rows sum to less than 1: what goes to them is left out.
    """
    number = case.best.window if number is None else number
    P = virtual_tokens(case.model)
    with case.computing() as model:
        _, _, maps = model.attention_maps(*case.inputs(number))
    return [one[0, :, P:, P:].float().cpu() for one in maps]


def check_head(case, layer, head):
    """InputError for a head that this model does not have; layers and heads are counted from 0."""
    heads = [block.attention.self.num_heads for block in blocks(case.model)]
    if not 0 <= layer < len(heads):
        raise InputError(f"there is no layer {layer}; this model's are 0 to {len(heads) - 1}")
    if not 0 <= head < heads[layer]:
        raise InputError(f"there is no head {layer}.{head}; those of layer {layer} are 0 to {heads[layer] - 1}")


def look(case, layer, head):
    """The Look of one head, at the best span's tokens in the window that won; InputError where there is none."""
    check_head(case, layer, head)
    number = case.best.window
    first, last = case.tokens_of(case.best, number)
    rows = attention_maps(case, number)[layer][head]  # (T, T)
    answer = rows[first : last + 1].mean(0)  # (T,)
    return Look(layer, head, number, answer, rows[0], max(0.0, 1 - answer.sum().item()))
