"""Adapters made of other adapters, by weights."""

import math

import torch

from model.lora import LoraConfig, LoraLinear, adapter_names, add_lora, heads_of, linear_layers


def combine(model, name, weights, method="linear", rank=None):
    """Make adapter `name` of others: weights maps their names to numbers. Not for DoRA, whose updates do not add up.

    linear: A and B are summed, each times √(weight · s), as in peft; exact for one adapter, else an approximation
    that keeps the rank, and needs equal ranks. cat: A and B side by side, exactly Σ weight · s · B A; the rank is
    the sum of the ranks. svd: the best approximation of that sum by rank `rank` (default: the largest there is).
    The head is the mean of the heads by the weights. Raises ValueError when the adapters do not allow it.
    """
    make = {"linear": linear_sum, "cat": side_by_side, "svd": best_of_rank}.get(method)
    if make is None:
        raise ValueError(f"{method!r} is no way to combine: linear, cat and svd are")
    if rank is not None and method != "svd":
        raise ValueError(f"a rank can be chosen for svd, not for {method}")
    for other in weights:
        if other not in adapter_names(model) or other not in model.lora_configs:
            raise ValueError(f"there is no adapter {other!r} to combine")
        if model.lora_configs[other].dora:
            raise ValueError(f"adapter {other!r} is DoRA, whose updates do not add up")
    total = sum(weights.values())
    if not weights or not math.isfinite(total) or total == 0:
        raise ValueError("the weights of a combination must be finite and have a sum other than 0")
    parts = {}  # layer -> [(weight, update)]
    for layer, _, _, module in linear_layers(model):
        if isinstance(module, LoraLinear):
            found = [(weight, module.updates[n]) for n, weight in weights.items() if n in module.updates]
            if found:
                parts[layer] = found
    made = {layer: make(found, rank) for layer, found in parts.items()}
    ranks = {layer: len(A) for layer, (A, B) in made.items()}
    most = max(ranks.values())
    config = LoraConfig(  # alpha = rank everywhere: s is 1, and the scale is inside A and B
        rank=most, alpha=most, targets=tuple(sorted(made)),
        rank_pattern={k: r for k, r in ranks.items() if r != most},
        alpha_pattern={k: r for k, r in ranks.items() if r != most},
    )
    add_lora(model, config, name)
    heads = heads_of(model)
    with torch.no_grad():
        for layer, _, _, module in linear_layers(model):
            if layer in made:
                module.updates[name].lora_A.copy_(made[layer][0])
                module.updates[name].lora_B.copy_(made[layer][1])
        for part, parameter in heads[name].named_parameters() if name in heads else ():
            parameter.copy_(sum(w / total * heads[n].get_parameter(part) for n, w in weights.items()))


def linear_sum(parts, rank):
    """(A, B) of the linear combination of [(weight, update)]."""
    if len({update.rank for _, update in parts}) > 1:
        raise ValueError("a linear combination needs adapters of one rank; take cat or svd")
    A = B = 0
    for weight, update in parts:
        root = math.sqrt(abs(weight * update.scale))
        A = A + math.copysign(root, weight * update.scale) * update.lora_A.detach()
        B = B + root * update.lora_B.detach()
    return A, B


def side_by_side(parts, rank):
    """(A, B) whose product is the sum of the updates: [B1 B2] [A1; A2] = B1 A1 + B2 A2."""
    A = torch.cat([weight * update.scale * update.lora_A.detach() for weight, update in parts])  # (r1 + r2, N)
    return A, torch.cat([update.lora_B.detach() for _, update in parts], 1)  # (M, r1 + r2)


def best_of_rank(parts, rank):
    """(A, B) nearest to the sum of the updates among those of a rank (Eckart & Young 1936)."""
    rank = max(update.rank for _, update in parts) if rank is None else rank
    if type(rank) is not int or rank < 1:
        raise ValueError(f"a rank is a whole number above 0, not {rank!r}")
    A, B = side_by_side(parts, None)
    U, S, V = torch.linalg.svd(B.double() @ A.double(), full_matrices=False)  # (M, k), (k,), (k, N)
    return V[:rank].float(), (U * S)[:, :rank].float()
