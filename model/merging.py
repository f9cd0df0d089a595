"""Adapters put into the weights themselves, so that they cost nothing, and taken out again."""

import torch
import torch.nn as nn

from common.pages import give_pages_back
from model.lora import (
    HEAD, LoraLinear, LoraUpdate, SwitchedHead, adapter_names, linear_layers, set_adapter, switch_of,
)
from model.quant import dense_weight


def merge(model, name):
    """Add the update to the weights themselves, so that it costs nothing; a second call changes nothing.

    W as it was is kept aside, and `unmerge` puts it back, bit for bit. Raises ValueError on a 4-bit base, whose
    weights cannot take the sum exactly (see merge.py), and while another adapter is merged.
    """
    if name is None or name not in adapter_names(model):
        raise ValueError(f"there is no adapter {name!r} to merge")
    switch = switch_of(model)
    if switch.merged == name:
        return
    set_adapter(model, name)
    touched = [m for *_, m in linear_layers(model) if isinstance(m, LoraLinear) and name in m.updates]
    if not all(isinstance(module.updates[name], LoraUpdate) for module in touched):
        raise ValueError(f"{name!r} is a fusion, whose mix depends on the text; it cannot be merged")
    if not all(isinstance(module.base, nn.Linear) for module in touched):
        raise ValueError("an update cannot be merged into rounded weights in place; merge.py offers three ways")
    with torch.no_grad():
        for module in touched:
            module.before_merge = module.base.weight.data
            module.base.weight.data = module.updates[name].dense(module.base).to(module.before_merge.dtype)
    switch.merged = name


def unmerge(model):
    """Undo `merge`; without one nothing changes."""
    switch = switch_of(model)
    if switch is None or switch.merged is None:
        return
    for *_, module in linear_layers(model):
        if isinstance(module, LoraLinear) and module.before_merge is not None:
            module.base.weight.data, module.before_merge = module.before_merge, None
    switch.merged = None


def merged_model(model, name, rounded=False):
    """Take all passes off, in place: plain Linear layers with adapter `name` inside them; returns the model.

    The sum is taken in fp32. rounded: it is kept in the format that its base has, one of 4 bits in that of the word vectors;
    where all matrices are in the same 16 bits, norms and biases are too. A head that learned stays as it is.
    """
    unmerge(model)
    set_adapter(model, name)
    if name in getattr(model, "fusions", {}):
        raise ValueError(f"{name!r} is a fusion, whose mix depends on the text; it cannot be merged")
    words = next(p.dtype for p in model.parameters() if p.dim() == 2 and p.is_floating_point())
    for _, parent, attribute, module in list(linear_layers(model)):
        base = module.base if isinstance(module, LoraLinear) else module
        plain = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        with torch.no_grad():
            plain.weight = nn.Parameter(dense_weight(base))
            if isinstance(module, LoraLinear) and name in module.updates:
                plain.weight = nn.Parameter(module.updates[name].dense(plain))
            if rounded:
                dtype = base.weight.dtype if isinstance(base, nn.Linear) else words
                plain.weight = nn.Parameter(plain.weight.to(dtype))
            if base.bias is not None:
                plain.bias = nn.Parameter(base.bias.detach().clone())
        setattr(parent, attribute, plain)
        give_pages_back()  # what sums in fp32 leave free would come to as much as a model in 16 bits
    if isinstance(getattr(model, HEAD, None), SwitchedHead):
        model.qa_outputs = model.qa_outputs.heads[name] if name is not None else model.qa_outputs.base
    model.switch, model.lora_configs, model.fusions = None, {}, {}
    rest = [(part, p) for part, p in model.named_parameters() if not part.startswith(f"{HEAD}.") and p.is_floating_point()]
    kinds = {p.dtype for _, p in rest if p.dim() == 2}
    if rounded and len(kinds) == 1:
        for _, parameter in rest:
            parameter.data = parameter.data.to(*kinds)
    return model
