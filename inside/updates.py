"""What LoRA adapters did to their base: size and shape of each update, which layers matter, how two of them overlap."""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from common.errors import InputError
from model.lora import LoraLinear, LoraUpdate, linear_layers
from model.quant import dense_weight


@dataclass(frozen=True, slots=True)
class Update:
    """ΔW of one layer. singular: its singular values, the greatest first, as many as its rank (all of them with DoRA).

    effective_rank: exp of the entropy of the singular values as shares (Roy and Vetterli 2007): 1 when one direction
    does all, r when r do as much each. norm, base_norm: Frobenius norms of ΔW and W.
    """

    layer: str
    singular: tuple[float, ...]
    effective_rank: float
    norm: float
    base_norm: float


def adapted_layers(model, name):
    """{layer: LoraLinear} of an adapter; InputError for a fusion, which has no update of its own."""
    found = {
        layer: module for layer, *_, module in linear_layers(model)
        if isinstance(module, LoraLinear) and name in module.updates
    }
    if not found or not all(isinstance(module.updates[name], LoraUpdate) for module in found.values()):
        raise InputError(f"{name}: has no low-rank updates of its own to look at")
    return found


def decomposed(module, name):
    """(U, σ, V) of an adapter's ΔW in fp64, cut to its rank: U (M, r), σ (r,), V (N, r)."""
    update = module.updates[name]
    with torch.no_grad():
        change = update.dense(module.base).double() - dense_weight(module.base).double()  # (M, N)
    U, sigma, Vh = torch.linalg.svd(change, full_matrices=False)
    rank = len(sigma) if update.lora_magnitude_vector is not None else update.rank
    return U[:, :rank], sigma[:rank], Vh[:rank].T


def updates(model, name):
    """The Update of each layer of an adapter, in the model's order."""
    found = []
    for layer, module in adapted_layers(model, name).items():
        sigma = decomposed(module, name)[1]
        norm = sigma.norm().item()
        base_norm = dense_weight(module.base).norm().item()
        found.append(Update(layer, tuple(sigma.tolist()), effective_rank(sigma), norm, base_norm))
    return found


def effective_rank(sigma):
    """exp(entropy) of singular values; 0.0 for an update that changes nothing."""
    if sigma.sum() == 0:
        return 0.0
    share = sigma[sigma > 0] / sigma.sum()
    return math.exp(-(share * share.log()).sum().item())


def overlap(model, first, second):
    """{layer: (of outputs, of inputs)} of two adapters on the layers that both change.

    Mean cos² of the principal angles between the spaces that the ΔW write to (U) and read from (V), which is the φ of
    Hu et al. 2021, section 7.2: 1 when the smaller space lies within the larger, 0 when they have nothing in common.
    Two random spaces of rank r among N directions have r / N.
    """
    theirs = adapted_layers(model, second)
    found = {}
    for layer, module in adapted_layers(model, first).items():
        if layer in theirs:
            (U1, s1, V1), (U2, s2, V2) = decomposed(module, first), decomposed(theirs[layer], second)
            found[layer] = shared(U1[:, s1 > 0], U2[:, s2 > 0]), shared(V1[:, s1 > 0], V2[:, s2 > 0])
    return found


def shared(first, second):
    """‖Aᵀ B‖² / the smaller number of columns, of two matrices with orthonormal columns; 0.0 where one has none."""
    fewest = min(first.shape[1], second.shape[1])
    return ((first.T @ second).square().sum() / fewest).item() if fewest else 0.0


@contextmanager
def dropped(model, name, layer):
    """A context in which one layer does without an adapter's update."""
    module = adapted_layers(model, name)[layer]
    kept = dict(module.updates.items())
    update = module.updates.pop(name)
    try:
        yield
    finally:
        module.updates[name] = update
        for other in [key for key in kept if key != name]:  # the order they came in
            module.updates[other] = module.updates.pop(other)
