"""adapter_config.json, PEFT's description of an adapter: from it to a LoraConfig, and back.

A layer is named there as the checkpoint's family names it. Most files name layers by their last parts (`query`), as
LoraConfig does; `LayerRules` reads the others: regular expressions, numbers of layers, and exceptions.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import InputError
from common.files import read_json
from model.lora import ALL_LINEAR, HEAD, LoraConfig, fits, linear_layers, spellings
from model.names import names_of

CONFIG_FILE = "adapter_config.json"
# Keys of peft that would change what is computed, with the values that leave LoRA as it is here.
NEUTRAL = {
    "bias": ("none",), "fan_in_fan_out": (False, None), "lora_bias": (False, None),
    "trainable_token_indices": (None, {}, []),
    "target_parameters": (None, []), "use_qalora": (False, None), "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []), "arrow_config": (None,), "use_bdlora": (False, None),
    "kasa_config": (None,), "monteclora_config": (None,), "ensure_weight_tying": (False, None),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None),
}
# Keys that say how an adapter was trained or made, and nothing about what it computes.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "megatron_config", "megatron_core",
    "peft_version", "task_type", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config",
    "qalora_group_size", "runtime_config",
}
READ = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "rank_pattern",
    "alpha_pattern", "modules_to_save", "layers_to_transform", "layers_pattern", "exclude_modules",
}


@dataclass(frozen=True, slots=True)
class Base:
    """What an adapter of any kind says of its base: name or path, revision."""

    base: str | None
    revision: str | None


def read_base(folder):
    """The Base of an adapter's folder."""
    path = Path(folder) / CONFIG_FILE
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object that describes an adapter")
    return base_in(values, path)


def base_in(values, path):
    """The Base that adapter_config.json or fusion.json names."""
    for key in ("base_model_name_or_path", "revision"):
        if not isinstance(values.get(key), (str, type(None))):
            raise InputError(f"{path}: {key}: expected a text or null, found {values[key]!r}")
    return Base(values.get("base_model_name_or_path") or None, values.get("revision") or None)


def read_values(values, path):
    """(LoraConfig, LayerRules or None, whether there is a head, notices) of what adapter_config.json holds.

    With LayerRules the LoraConfig names no layers: `LayerRules.resolve` does, when the model is there. InputError with
    file and key for what cannot be computed here.
    """
    for key, neutral in NEUTRAL.items():
        if key in values and values[key] not in neutral:
            raise InputError(f"{path}: {key} is {values[key]!r}, which changes what is computed and is unknown here")
    saved = values.get("modules_to_save") or []
    if not isinstance(saved, list) or any(name != HEAD for name in saved):
        raise InputError(f"{path}: modules_to_save is {saved!r}; only {HEAD!r} can be saved whole")
    unknown = [k for k in values if k not in READ | HARMLESS | set(NEUTRAL) and values[k] not in (None, False, {}, [])]
    notices = [f"{path}: {key} is unknown and was passed over" for key in unknown]
    rules = LayerRules.read(values, path)
    plain = rules.plain
    config = LoraConfig(
        rank=number(values, "r", int, path), alpha=number(values, "lora_alpha", float, path),
        dropout=number(values, "lora_dropout", float, path, usual=0.0),
        targets=tuple(sorted(rules.targets)) if plain else (),
        rslora=flag(values, "use_rslora", path), dora=flag(values, "use_dora", path),
        rank_pattern=rules.ranks if plain else {}, alpha_pattern=rules.alphas if plain else {},
    )
    return config, None if plain else rules, HEAD in saved, notices


def flag(values, key, path):
    """True or false of adapter_config.json; InputError otherwise."""
    value = values.get(key)
    if not isinstance(value, (bool, type(None))):
        raise InputError(f"{path}: {key}: expected true or false, found {value!r}")
    return bool(value)


def number(values, key, kind, path, usual=None):
    """A positive number (dropout: 0 to 1) of adapter_config.json; InputError otherwise."""
    value = values.get(key, usual)
    fits_kind = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    usable = fits_kind and (0 <= value < 1 if key == "lora_dropout" else 0 < value < 1e9)
    if not usable:
        wanted = "a number above 0 and below 1e9" if kind is float else "a whole number from 1 to 999999999"
        wanted = "a number from 0 to below 1" if key == "lora_dropout" else wanted
        raise InputError(f"{path}: {key}: expected {wanted}, found {value!r}")
    return kind(value)


def is_plain_name(name):
    """Whether a text names layers as LoraConfig does, `query` or `layer.5.output.dense`; else it is a regular expression."""
    return bool(name) and all(part.isidentifier() or part.isdecimal() for part in name.split("."))


@dataclass(frozen=True, slots=True)
class LayerRules:
    """Which layers a file means, and ranks and alphas of some, as peft 0.21 reads it (tuners/tuners_utils.py).

    targets: a regular expression for whole names, or names and last parts. exclude: the same, taken away. indexes:
    numbers of layers, all where empty; index_parts: what stands before the number. ranks, alphas: by regular expressions
    for last parts; the first that fits counts.
    """

    targets: str | tuple[str, ...]
    exclude: str | tuple[str, ...]
    indexes: tuple[int, ...]
    index_parts: tuple[str, ...]
    ranks: dict[str, int]
    alphas: dict[str, float]

    @classmethod
    def read(cls, values, path):
        """From adapter_config.json; InputError for what is no such rule."""
        targets = values.get("target_modules")
        if not isinstance(targets, (str, list)) or not targets:
            raise InputError(
                f"{path}: target_modules: expected a list of layer names, a regular expression or {ALL_LINEAR!r}, found "
                f"{targets!r}"
            )
        indexes = values.get("layers_to_transform")
        indexes = [indexes] if type(indexes) is int else indexes or []
        parts = values.get("layers_pattern") or []
        parts = [parts] if isinstance(parts, str) else parts
        if not isinstance(indexes, list) or not all(type(one) is int for one in indexes):
            raise InputError(f"{path}: layers_to_transform: expected numbers of layers, found {indexes!r}")
        tables = []
        for key, kind in (("rank_pattern", int), ("alpha_pattern", float)):
            table = values.get(key) or {}
            if not isinstance(table, dict):
                raise InputError(f"{path}: {key}: expected an object of layer name to number")
            tables.append({name: number(table, name, kind, f"{path}: {key}") for name in table})
        rules = cls(
            (ALL_LINEAR,) if targets == ALL_LINEAR else names_or_pattern(targets, path, "target_modules"),
            names_or_pattern(values.get("exclude_modules") or [], path, "exclude_modules"), tuple(indexes),
            names_or_pattern(parts, path, "layers_pattern"), *tables,
        )
        for key, text in rules.expressions():
            try:
                re.compile(text)
            except re.error as error:
                raise InputError(f"{path}: {key}: {text!r} is no regular expression ({error})") from None
        return rules

    def expressions(self):
        """(key, regular expression) of all that are there."""
        yield from (("target_modules", self.targets),) if isinstance(self.targets, str) else ()
        yield from (("exclude_modules", self.exclude),) if isinstance(self.exclude, str) else ()
        for key, names in (("layers_pattern", self.index_parts), ("rank_pattern", self.ranks), ("alpha_pattern", self.alphas)):
            yield from ((key, name) for name in names)

    @property
    def plain(self):
        """Whether names and last parts of names are all that is there, so that a LoraConfig says the same."""
        names = [*self.ranks, *self.alphas]
        return not (isinstance(self.targets, str) or self.exclude or self.indexes) and all(map(is_plain_name, names))

    def means(self, layer):
        """Whether a layer, by its whole name in the family's files, is among those meant."""
        if named(self.exclude, layer):
            return False
        if isinstance(self.targets, str) or layer in self.targets or ALL_LINEAR in self.targets:
            return named(self.targets, layer) or ALL_LINEAR in self.targets
        if not named(self.targets, layer) or not self.indexes:
            return named(self.targets, layer)
        before = self.index_parts or (r"[^.]*",)
        found = filter(None, (re.match(rf"(?:^|.*?\.){part}\.(?P<index>\d+)\.", layer) for part in before))
        first = next(found, None)
        return first is not None and int(first["index"]) in self.indexes

    def resolve(self, model, config):
        """`config` with this model's layers, each by its whole name; InputError when there is none."""
        layers = {ours: theirs for ours, theirs in (spellings(model, layer) for layer, *_ in linear_layers(model))}
        meant = {ours: theirs for ours, theirs in layers.items() if self.means(theirs)}
        if not meant:
            raise InputError(f"target_modules: {self.targets!r} fits no Linear layer of this model")
        tables = [
            {ours: table[found] for ours, theirs in meant.items() if (found := first_match(table, theirs)) is not None}
            for table in (self.ranks, self.alphas)
        ]
        return replace(config, targets=tuple(sorted(meant)), rank_pattern=tables[0], alpha_pattern=tables[1])


def named(names, layer):
    """Whether `names`, a regular expression for whole names or names and last parts, fit a layer."""
    if isinstance(names, str):
        return bool(re.fullmatch(names, layer))
    return any(fits(name, layer) for name in names)


def first_match(table, layer):
    """The first key of a table, each a regular expression for last parts, that fits a layer; None without one."""
    return next((key for key in table if re.match(rf"(.*\.)?({key})$", layer)), None)


def names_or_pattern(value, path, key):
    """A text as it is, a list of texts as a tuple; InputError otherwise."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise InputError(f"{path}: {key}: expected a list of names or a regular expression, found {value!r}")
    return tuple(value)


def family_names(model, name):
    """What peft has to match for the layers that `name` fits: it may be our name for them, and not the files'.

    Of DistilBERT `query` is ["attention.q_lin"], and `layer.1.output.dense` the whole name of a lin2.
    """
    ours = [spellings(model, layer) for layer, *_ in linear_layers(model) if fits(name, layer)]
    if all(fits(name, theirs) for _, theirs in ours):
        return [name]
    return sorted({theirs if re.search(r"\.\d+\.", name) else last_parts(theirs) for _, theirs in ours})


def in_family_names(model, config):
    """A LoraConfig as the files' names say it."""
    def renamed(table):
        return {theirs: value for name, value in table.items() for theirs in family_names(model, name)}

    targets = config.targets
    if ALL_LINEAR in targets:  # peft leaves a head out of "all-linear" only where it knows the model; names are certain
        targets = {last_parts(names_of(model).layer(layer)) for layer, *_ in linear_layers(model)}
    return replace(
        config, targets=tuple(sorted({theirs for name in targets for theirs in family_names(model, name)})),
        rank_pattern=renamed(config.rank_pattern), alpha_pattern=renamed(config.alpha_pattern),
    )


def peft_config(config, base, revision, with_head):
    """The contents of adapter_config.json. config: a LoraConfig in the family's names. with_head: of a reader."""
    return {
        "peft_type": "LORA", "task_type": "QUESTION_ANS" if with_head else "CAUSAL_LM",
        "base_model_name_or_path": base, "revision": revision, "inference_mode": True, "r": config.rank,
        "lora_alpha": whole(config.alpha), "lora_dropout": config.dropout,
        "target_modules": list(config.targets), "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True,
        "use_rslora": config.rslora, "use_dora": config.dora, "modules_to_save": [HEAD] if with_head else None,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": {name: whole(value) for name, value in config.alpha_pattern.items()},
    }


def last_parts(layer):
    """A layer's name within its block: `attention.self.query` of `bert.encoder.layer.0.attention.self.query`."""
    return re.split(r"\.\d+\.", layer, maxsplit=1)[-1]


def whole(value):
    """16.0 as 16, which is how peft writes an alpha."""
    return int(value) if float(value).is_integer() else value
