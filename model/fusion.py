"""AdapterFusion (Pfeiffer et al. 2021, arXiv 2005.00247) over LoRA: per token, a learned mix of frozen adapters.

    α_i = softmax over i of (Q y) · (K u_i)         y + Σ α_i V u_i        section 3.2, equation 5

    y    (B, T, M)  what the layer itself gives      u_i  (B, T, M)  the update of adapter i
    Q, K (E, M)     query and key, E = min(M, 64)    V    (M, M)     value, the identity at first

A fusion stands among a layer's updates under a name of its own, like an adapter, and has a head of its own; only these
learn. Its folder holds `fusion.json`, `fusion.safetensors` and the adapters' folders.
"""

from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.errors import InputError
from common.files import read_json, write_json
from model.adapters import load_adapter, save_adapter, write_tensors
from model.lora import (
    HEAD, LoraLinear, adapter_names, begin_adapter, check_name, heads_of, linear_layers, remove_adapter, set_adapter,
    switch_of,
)
from model.peft_config import base_in

CONFIG_FILE, WEIGHTS_FILE, ADAPTERS = "fusion.json", "fusion.safetensors", "adapters"
FORMAT = 1
WIDTH = 64


class FusedUpdate(nn.Module):
    """The mix of several adapters' updates on one layer; called as a LoraUpdate is."""

    def __init__(self, updates, size):
        """updates: the LoraUpdates of the layer, which stay where they are registered."""
        super().__init__()
        object.__setattr__(self, "members", list(updates))  # not as submodules: they belong to their adapters
        device = self.members[0].lora_A.device
        self.query = nn.Linear(size, min(size, WIDTH), bias=False, device=device)
        self.key = nn.Linear(size, min(size, WIDTH), bias=False, device=device)
        self.value = nn.Parameter(torch.eye(size, device=device))

    def shares(self, y, updates):
        """α. y: (B, T, M). updates: (B, T, n, M). Returns (B, T, n), of sum 1."""
        scores = (self.key(updates) @ self.query(y)[..., None])[..., 0]  # (B, T, n)
        return scores.float().softmax(-1)

    def forward(self, x, y, base):
        updates = torch.stack([member(x, y, base) for member in self.members], 2)  # (B, T, n, M)
        mixed = (self.shares(y, updates).to(updates.dtype)[..., None] * updates).sum(2)  # (B, T, M)
        return nn.functional.linear(mixed, self.value)


def add_fusion(model, name, members):
    """Fuse the adapters `members` as `name` and switch it on; layers that only one of them adapts are mixed too.

    The head begins as the mean of theirs. Raises ValueError for an adapter that is not there or fewer than two.
    """
    plain = [known for known in adapter_names(model) if known in model.lora_configs]
    if len(set(members)) < 2 or not set(members) <= set(plain):
        raise ValueError(f"a fusion takes at least two adapters of {', '.join(plain) or 'none'}")
    check_name(model, name)
    for _, _, _, module in linear_layers(model):
        if isinstance(module, LoraLinear):
            updates = [module.updates[member] for member in members if member in module.updates]
            if updates:
                module.updates[name] = FusedUpdate(updates, module.base.out_features)
    begin_adapter(model, name)
    heads = heads_of(model)
    with torch.no_grad():
        for part, parameter in heads[name].named_parameters() if name in heads else ():
            parameter.copy_(sum(heads[member].get_parameter(part) for member in members) / len(members))
    model.fusions = {**getattr(model, "fusions", {}), name: tuple(members)}
    set_adapter(model, name)


def is_fusion(folder):
    """Whether a folder holds a fusion."""
    return (Path(folder) / CONFIG_FILE).is_file()


def fusion_parameters(model, name):
    """Name in the file -> parameter of all that the fusion `name` learns."""
    found = {}
    if name in heads_of(model):
        found = {f"{HEAD}.{part}": value for part, value in heads_of(model)[name].named_parameters()}
    for layer, _, _, module in linear_layers(model):
        if isinstance(module, LoraLinear) and name in module.updates:
            found |= {f"{layer}.{part}": value for part, value in module.updates[name].named_parameters()}
    return found


def save_fusion(model, name, folder, *, base, revision=None, fingerprint=None):
    """Fill a folder that `load_fusion` opens: the fusion and every adapter it mixes."""
    folder, members = Path(folder), model.fusions[name]
    for member in members:
        place = folder / ADAPTERS / member
        place.mkdir(parents=True)
        save_adapter(model, member, place, base=base, revision=revision, fingerprint=fingerprint)
    tensors = {k: v.detach().cpu().contiguous() for k, v in fusion_parameters(model, name).items()}
    write_tensors(folder / WEIGHTS_FILE, tensors, {"format": "pt"})
    write_json(folder / CONFIG_FILE, {
        "format": FORMAT, "base_model_name_or_path": base, "revision": revision, "adapters": list(members),
    })


def read_fusion(folder):
    """(Base, adapters' names) of a fusion's folder; InputError for another format."""
    path = Path(folder) / CONFIG_FILE
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f"{path}: expected a fusion of format {FORMAT}")
    members = values.get("adapters")
    if not isinstance(members, list) or not all(isinstance(m, str) and Path(m).name == m for m in members):
        raise InputError(f"{path}: adapters: expected a list of folder names")
    if len(set(members)) != len(members):
        raise InputError(f"{path}: adapters: a name is there twice")
    return base_in(values, path), members


def load_fusion(model, folder, name, fingerprint=None):
    """Put a folder's adapters and their fusion into a model; InputError when anything does not fit."""
    folder = Path(folder)
    _, members = read_fusion(folder)
    loaded = []
    try:
        for member in members:
            load_adapter(model, folder / ADAPTERS / member, member, fingerprint, activate=False)
            loaded.append(member)
        fill_fusion(model, folder, name, members)
    except BaseException:
        for done in [name] * (name in adapter_names(model)) + loaded:
            remove_adapter(model, done)
        raise
    set_adapter(model, name)


def fill_fusion(model, folder, name, members):
    """Add the fusion and copy its file's tensors into it; InputError when they do not fit."""
    path = folder / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from None
    try:
        add_fusion(model, name, members)
    except ValueError as error:
        raise InputError(f"{folder / CONFIG_FILE}: {error}") from None
    wanted = fusion_parameters(model, name)
    for key in sorted(set(tensors) ^ set(wanted)):
        raise InputError(f"{path}: tensor {key} {'has no place' if key in tensors else 'is missing'}")
    with torch.no_grad():
        for key, parameter in wanted.items():
            if tensors[key].shape != parameter.shape or not tensors[key].isfinite().all():
                raise InputError(f"{path}: tensor {key} is not of the shape or numbers wanted")
            parameter.copy_(tensors[key])


def tune_fusion(model):
    """The pass of `--tune fusion`: the active fusion and its head learn, adapters and base do not."""
    learning = {id(parameter) for parameter in fusion_parameters(model, switch_of(model).active).values()}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(id(parameter) in learning)
