"""LoRA (Hu et al. 2021, arXiv 2106.09685): a pass that gives Linear layers of a built model low-rank updates.

    y = x Wᵀ + b + s · (x Aᵀ) Bᵀ          section 4.1; s = α / r, or α / √r (rsLoRA, arXiv 2312.03732)

    N  inputs of the layer     M  outputs     r  rank     W  (M, N), frozen     A  (r, N)     B  (M, r)

With M = N = 384 and r = 8, W has 147,456 numbers and A and B together 6,144. B starts at zero, so a new update
changes nothing. The head is small and new for every task: each adapter has a whole copy of its own.

Where the pass has been, a Linear `query` is a LoraLinear whose `base` is that Linear. Several adapters stand side by
side under their names; the model's Switch says which of them takes part.
"""

import math
import re
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
import torch.nn as nn
import torch.nn.functional as F

from common.errors import InputError
from model.lora_product import learns_in_one_product, lora_product
from model.names import names_of
from model.quant import LINEAR, OUTPUTS, FourBitLinear, dense_weight

HEAD = "qa_outputs"
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """targets: names or last parts of names of Linear layers (`query`, `attention.output.dense`), or ALL_LINEAR.

    A layer also goes by its name in the files of the model's family: DistilBERT's `query` is `q_lin` too.

    rank_pattern, alpha_pattern: the same kind of name to a rank or alpha of its own; the first that fits counts.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "value")
    rslora: bool = False
    dora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def rank_of(self, *layer):
        """The rank of the layer with this name, or these (see `spellings`)."""
        return pattern_value(self.rank_pattern, layer, self.rank)

    def scale_of(self, *layer):
        """s of the layer with this name, or these."""
        rank, alpha = self.rank_of(*layer), pattern_value(self.alpha_pattern, layer, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def fits(name, layer):
    """Whether `name` is a layer's name or its last parts: `value` and `self.value` fit `….attention.self.value`."""
    return layer == name or layer.endswith("." + name)


def spellings(model, layer):
    """(our name of a layer, its name in the files of the model's family)."""
    return layer, names_of(model).layer(layer)


def pattern_value(patterns, names, usual):
    """The value of the first pattern that fits one of a layer's names, else `usual`."""
    return next((value for name, value in patterns.items() if any(fits(name, one) for one in names)), usual)


CHOSEN = ContextVar("adapters chosen in this context", default=(None, None))  # (switch, a name or one per row)


class Switch:
    """Which adapter takes part: `active`, unless this thread has chosen others by `using` or `rows`.

    known: the adapters' names, in the order they came. merged: the one that is in the weights, if any.
    """

    def __init__(self):
        self.known = []
        self.active = None
        self.merged = None

    def using(self, name):
        """A context in which every batch goes through adapter `name` (None: the bare base), whatever others switch."""
        return self._choose(name)

    def rows(self, names):
        """A context in which row k of each batch goes through adapter names[k]; None is the bare base.

        For answering: under gradient checkpointing the second forward pass may run outside the context.
        """
        return self._choose(tuple(names))

    @contextmanager
    def _choose(self, choice):
        asked = set(choice) if isinstance(choice, tuple) else {choice}
        if unknown := asked - {*self.known, None}:
            raise ValueError(f"there is no adapter {sorted(unknown)[0]!r}; known: {', '.join(self.known)}")
        if self.merged is not None and asked != {self.merged}:
            raise ValueError(f"adapter {self.merged!r} is merged into the weights; unmerge it first")
        token = CHOSEN.set((self, choice))
        try:
            yield
        finally:
            CHOSEN.reset(token)

    def groups(self, batch_size):
        """[(name, row indices or None for all rows)] of a batch."""
        switch, choice = CHOSEN.get()
        if switch is not self:
            return [(self.active, None)]
        if not isinstance(choice, tuple):
            return [(choice, None)]
        assert len(choice) == batch_size, f"{len(choice)} adapter names for a batch of {batch_size}"
        return [(name, [k for k, n in enumerate(choice) if n == name]) for name in dict.fromkeys(choice)]


class LoraUpdate(nn.Module):
    """A and B of one adapter on one layer, and DoRA's magnitudes (Liu et al. 2024, arXiv 2402.09353) if asked for."""

    def __init__(self, base, rank, scale, dropout=0.0, dora=False):
        super().__init__()
        M, N = base.out_features, base.in_features
        device = base.weight.device
        self.scale = scale
        self.lora_A = nn.Parameter(torch.empty(rank, N, device=device))
        self.lora_B = nn.Parameter(torch.zeros(M, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as nn.Linear, and as loralib
        self.dropout = nn.Dropout(dropout)
        self.lora_magnitude_vector = nn.Parameter(dense_weight(base).norm(dim=1)) if dora else None  # (M,)

    @property
    def rank(self):
        return self.lora_A.shape[0]

    def weight(self):
        """s · B A: what the update adds to W, (M, N) fp32 whatever autocast says; of DoRA see `dense`."""
        with torch.autocast(self.lora_B.device.type, enabled=False):
            return self.scale * (self.lora_B @ self.lora_A)

    def direction_scale(self, base):
        """DoRA's m / ‖W + s B A‖ over the inputs, (M, 1); the norm counts as a constant (section 4.3)."""
        with torch.no_grad():
            norm = (dense_weight(base) + self.weight()).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)  # rows of 0
        return (self.lora_magnitude_vector / norm)[:, None]

    def dense(self, base):
        """The whole weight of base and update together, (M, N) fp32."""
        whole = dense_weight(base) + self.weight()
        return whole if self.lora_magnitude_vector is None else self.direction_scale(base) * whole

    def forward(self, x, y, base):
        """What to add to y = base(x). x: (B, T, N). Returns (B, T, M)."""
        dropped = self.dropout(x)
        low = F.linear(F.linear(dropped, self.lora_A), self.lora_B) * self.scale  # (B, T, M)
        if self.lora_magnitude_vector is None:
            return low
        if dropped is x:
            product = y if base.bias is None else y - base.bias
        else:  # the update and W see the same dropped input
            product = F.linear(dropped, dense_weight(base).to(y.dtype))
        factor = self.direction_scale(base)[:, 0]
        return (factor - 1) * product + factor * low


class LoraLinear(nn.Module):
    """A Linear, 4-bit ones included, and the updates that adapters make to it."""

    def __init__(self, base, switch):
        super().__init__()
        self.base = base
        self.switch = switch
        self.updates = nn.ModuleDict()
        self.before_merge = None  # W as it was, while an update is merged into it

    def forward(self, x):
        if self.before_merge is not None:
            return self.base(x)
        groups = [group for group in self.switch.groups(len(x)) if group[0] in self.updates]
        if self.training and torch.is_grad_enabled() and [rows for _, rows in groups] == [None]:
            update = self.updates[groups[0][0]]
            if learns_in_one_product(self.base, update):
                return lora_product(x, self.base, update)
        y = self.base(x)
        for name, rows in groups:
            update = self.updates[name]
            if rows is None:
                return y + update(x, y, self.base).to(y.dtype)
            y = y.index_add(0, torch.tensor(rows, device=y.device), update(x[rows], y[rows], self.base).to(y.dtype))
        return y


class SwitchedHead(nn.Module):
    """The span head, one copy per adapter; `base` is the one the model came with."""

    def __init__(self, base, switch):
        super().__init__()
        self.base = base
        self.switch = switch
        self.heads = nn.ModuleDict()

    def forward(self, x):
        y = None
        for name, rows in self.switch.groups(len(x)):
            head = self.heads[name] if name in self.heads else self.base
            if rows is None:
                return head(x)
            part = head(x[rows])
            y = part.new_empty(len(x), *part.shape[1:]) if y is None else y
            y = y.index_copy(0, torch.tensor(rows, device=y.device), part)
        return y


def linear_layers(model):
    """Yield (name, parent, attribute, module) of each Linear or LoraLinear but the last layer's.

    Names are those of the model before the pass: `bert.encoder.layer.0.attention.self.query`.
    """
    for name, parent in list(model.named_modules()):
        if isinstance(parent, (LoraLinear, FourBitLinear, SwitchedHead)) or ".updates." in name:
            continue
        for attribute, module in parent.named_children():
            full = f"{name}.{attribute}".removeprefix(".")
            if isinstance(module, (*LINEAR, LoraLinear)) and full.split(".")[0] not in OUTPUTS:
                yield full, parent, attribute, module


def target_layers(model, targets):
    """The layers that `targets` name, as `linear_layers` gives them; InputError for a name that fits none."""
    layers = list(linear_layers(model))
    if ALL_LINEAR in targets:
        return layers
    for target in targets:
        if not any(fits(target, name) for layer in layers for name in spellings(model, layer[0])):
            known = sorted({re.split(r"\.\d+\.", layer[0], maxsplit=1)[-1] for layer in layers})
            fault = "lm_head takes no update here" if target == "lm_head" else f"no Linear layer is called {target!r}"
            raise InputError(f"{fault}; there are {', '.join(known)}, and {ALL_LINEAR}")
    return [layer for layer in layers if any(fits(t, name) for t in targets for name in spellings(model, layer[0]))]


def switch_of(model):
    """The model's Switch; None while it has no adapter."""
    return getattr(model, "switch", None)


def adapter_names(model):
    """Names of all adapters, in the order they came."""
    return [*model.switch.known] if switch_of(model) else []


def check_name(model, name):
    """Refuse a name that cannot be given to a new adapter, and any while one is merged; InputError."""
    if name in adapter_names(model):
        raise InputError(f"there is an adapter called {name!r} already; rename one of the folders")
    if not name or "." in name or name == "none" or hasattr(nn.ModuleDict(), name) or not name.isprintable():
        raise InputError(f"an adapter cannot be called {name!r}; rename its folder, or say infer.py --adapter NAME=FOLDER")
    switch = switch_of(model)
    if switch is not None and switch.merged is not None:
        raise ValueError(f"adapter {switch.merged!r} is merged into the weights; unmerge it before adding others")


def heads_of(model):
    """Adapter -> span head; empty for a model without one, a decoder."""
    return model.qa_outputs.heads if isinstance(getattr(model, HEAD, None), SwitchedHead) else {}


def begin_adapter(model, name):
    """Make `name` known to the model's Switch, and give it a copy of the span head if there is one; the Switch."""
    if switch_of(model) is None:
        model.switch = Switch()
        if hasattr(model, HEAD):
            model.qa_outputs = SwitchedHead(model.qa_outputs, model.switch)
    if hasattr(model, HEAD):
        base = model.qa_outputs.base
        head = nn.Linear(base.in_features, base.out_features, device=base.weight.device)
        head.load_state_dict(base.state_dict())
        model.qa_outputs.heads[name] = head
    model.switch.known.append(name)
    return model.switch


def add_lora(model, config, name, *, activate=True):
    """Give the layers that `config` names an update called `name`, zero for now, and the head a copy; switch it on.

    Returns the names of the layers. Raises InputError for a target that fits no layer or a name that cannot be.
    """
    check_name(model, name)
    layers = target_layers(model, config.targets)
    switch = begin_adapter(model, name)
    for layer, parent, attribute, module in layers:
        if not isinstance(module, LoraLinear):
            module = LoraLinear(module, switch)
            setattr(parent, attribute, module)
        names = spellings(model, layer)
        rank, scale = config.rank_of(*names), config.scale_of(*names)
        module.updates[name] = LoraUpdate(module.base, rank, scale, config.dropout, config.dora)
    model.lora_configs = {**getattr(model, "lora_configs", {}), name: config}
    if activate:
        switch.active = name
    return [layer for layer, *_ in layers]


def set_adapter(model, name):
    """Let adapter `name` take part from now on, or none of them (None: the bare base with its own head)."""
    if name is not None and name not in adapter_names(model):
        known = ", ".join(adapter_names(model)) or "none is loaded"
        raise ValueError(f"there is no adapter {name!r}; known: {known}")
    switch = switch_of(model)
    if switch is None:
        return
    if switch.merged is not None and name != switch.merged:
        raise ValueError(f"adapter {switch.merged!r} is merged into the weights; unmerge it first")
    switch.active = name


def remove_adapter(model, name):
    """Take an adapter out; the bare base is active when it was the active one. After the last the model is plain.

    Raises ValueError for one that is not there, merged, or part of a fusion.
    """
    switch, fusions = switch_of(model), getattr(model, "fusions", {})
    if name not in adapter_names(model) or switch.merged == name:
        raise ValueError(f"there is no adapter {name!r} that could be removed, or it is merged")
    if any(name in members for members in fusions.values()):
        raise ValueError(f"adapter {name!r} is part of a fusion; remove that first")
    if switch.active == name:
        switch.active = None
    switch.known.remove(name)
    for _, parent, attribute, module in list(linear_layers(model)):
        if isinstance(module, LoraLinear):
            if name in module.updates:
                del module.updates[name]
            if not module.updates:
                setattr(parent, attribute, module.base)
    if name in heads_of(model):
        del model.qa_outputs.heads[name]
    if not switch.known:
        model.switch = None
        if hasattr(model, HEAD):
            model.qa_outputs = model.qa_outputs.base
    model.lora_configs.pop(name, None)
    fusions.pop(name, None)
