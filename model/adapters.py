"""Adapters as files, in the format of the PEFT library, and adapters made of others.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. A tensor's name in it is
`base_model.model.` + the layer + `.lora_A.weight`, `.lora_B.weight` or (DoRA) `.lora_magnitude_vector`; the head is
there whole. The file's metadata say of which base the adapter is: the weights' fingerprint of `model.weights`.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from common.errors import InputError
from common.files import read_json, write_json
from model.lora import (
    ALL_LINEAR, HEAD, LoraConfig, LoraLinear, adapter_names, add_lora, check_name, fits, heads_of, linear_layers,
    remove_adapter, set_adapter, spellings, switch_of, target_layers,
)
from model.names import names_of

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
SHIPPED = Path(__file__).parents[1] / "adapters" / "minilm-squad"  # comes with the project
FINGERPRINT = "base_fingerprint"
# Keys of peft that would change what is computed, with the values that leave LoRA as it is here.
NEUTRAL = {
    "bias": ("none",), "fan_in_fan_out": (False, None), "lora_bias": (False, None), "layers_to_transform": (None, []),
    "layers_pattern": (None, "", []), "exclude_modules": (None, [], ""), "trainable_token_indices": (None, {}, []),
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
    "alpha_pattern", "modules_to_save",
}


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """What an adapter's folder says, before any model is there.

    base, revision: the model it was trained on, by name or path. with_head: whether it brings a span head.
    """

    folder: Path
    config: LoraConfig
    base: str | None
    revision: str | None
    fingerprint: str | None
    with_head: bool
    notices: tuple[str, ...]


def is_adapter(folder):
    """Whether a folder holds an adapter rather than a model."""
    return (Path(folder) / CONFIG_FILE).is_file()


def adapter_name(path):
    """What an adapter is called: its folder's name, or its run's. runs/wiki/best/model is `wiki`."""
    path = Path(path).absolute()
    while path.name in ("model", "best") and path.parent.name:
        path = path.parent
    return path.name.replace(".", "_")


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


def read_adapter(folder):
    """The AdapterFile of a folder; InputError with file and key for one that cannot be computed here."""
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if not folder.is_dir() or not path.is_file():
        raise InputError(f"{folder}: no {CONFIG_FILE} in it, so this is not the folder of an adapter")
    values = read_json(path)
    kind = values.get("peft_type") if isinstance(values, dict) else None
    if kind == "PROMPT_TUNING":
        raise InputError(f"{folder}: virtual tokens, which cannot stand beside adapters; open them with --model")
    if kind != "LORA":
        raise InputError(f"{path}: peft_type: expected 'LORA', found {kind!r}")
    for key, neutral in NEUTRAL.items():
        if key in values and values[key] not in neutral:
            raise InputError(f"{path}: {key} is {values[key]!r}, which changes what is computed and is unknown here")
    saved = values.get("modules_to_save") or []
    if not isinstance(saved, list) or any(name != HEAD for name in saved):
        raise InputError(f"{path}: modules_to_save is {saved!r}; only {HEAD!r} can be saved whole")
    unknown = [k for k in values if k not in READ | HARMLESS | set(NEUTRAL) and values[k] not in (None, False, {}, [])]
    notices = [f"{path}: {key} is unknown and was passed over" for key in unknown]
    config = LoraConfig(
        rank=number(values, "r", int, path), alpha=number(values, "lora_alpha", float, path),
        dropout=number(values, "lora_dropout", float, path, usual=0.0), targets=targets_of(values, path),
        rslora=bool(values.get("use_rslora")), dora=bool(values.get("use_dora")),
        rank_pattern=pattern(values, "rank_pattern", int, path),
        alpha_pattern=pattern(values, "alpha_pattern", float, path),
    )
    base = base_in(values, path)
    with open_weights(folder) as file:
        fingerprint = (file.metadata() or {}).get(FINGERPRINT)
    if fingerprint is None:
        notices.append(f"{folder}: says nothing of its base's weights, so a wrong base cannot be told")
    return AdapterFile(folder, config, base.base, base.revision, fingerprint, HEAD in saved, tuple(notices))


def number(values, key, kind, path, usual=None):
    """A positive number (dropout: 0 to 1) of adapter_config.json; InputError otherwise."""
    value = values.get(key, usual)
    fits_kind = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    usable = fits_kind and (0 <= value < 1 if key == "lora_dropout" else 0 < value < 1e9)
    if not usable:
        wanted = "a positive number" if kind is float else "a positive whole number"
        wanted = "a number from 0 to below 1" if key == "lora_dropout" else wanted
        raise InputError(f"{path}: {key}: expected {wanted}, found {value!r}")
    return kind(value)


def pattern(values, key, kind, path):
    """`rank_pattern` or `alpha_pattern`: names of layers to numbers; peft's regular expressions are refused."""
    table = values.get(key) or {}
    if not isinstance(table, dict):
        raise InputError(f"{path}: {key}: expected an object of layer name to number")
    for name in table:
        if not all(part.isidentifier() or part.isdigit() for part in name.split(".")):
            raise InputError(f"{path}: {key}: {name!r} is a regular expression; only names of layers are read here")
    return {name: number(table, name, kind, f"{path}: {key}") for name in table}


def targets_of(values, path):
    """`target_modules` as a tuple of names."""
    targets = values.get("target_modules")
    if targets == ALL_LINEAR:
        return (ALL_LINEAR,)
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) and name for name in targets):
        raise InputError(f"{path}: target_modules: expected a list of layer names or {ALL_LINEAR!r}, found {targets!r}")
    return tuple(sorted(targets))


def open_weights(folder):
    """The opened adapter_model.safetensors; InputError when it is missing or damaged."""
    path = Path(folder) / WEIGHTS_FILE
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise InputError(f"{folder}: no {WEIGHTS_FILE} in it") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); fetch or copy it again") from None


def adapter_tensors(model, name):
    """Name in the file -> parameter, of everything that adapter `name` owns: its updates and its head."""
    tensors = {}
    for layer, _, _, module in linear_layers(model):
        if isinstance(module, LoraLinear) and name in module.updates:
            update, key = module.updates[name], PREFIX + names_of(model).layer(layer)
            tensors[f"{key}.lora_A.weight"] = update.lora_A
            tensors[f"{key}.lora_B.weight"] = update.lora_B
            if update.lora_magnitude_vector is not None:
                tensors[f"{key}.lora_magnitude_vector"] = update.lora_magnitude_vector
    if name in heads_of(model):
        for part, parameter in heads_of(model)[name].named_parameters():
            tensors[f"{PREFIX}{HEAD}.{part}"] = parameter
    return tensors


def load_adapter(model, folder, name, fingerprint=None, *, activate=True):
    """Put the adapter of a folder beside those the model has, as `name`, and switch it on; returns its AdapterFile.

    fingerprint: of the model's base weights (LoadReport.fingerprint), held against the one the adapter carries.
    Raises InputError for another base, and for keys or shapes that do not fit exactly; the model is then as before.
    """
    described = read_adapter(folder)
    if fingerprint and described.fingerprint and fingerprint != described.fingerprint:
        raise InputError(
            f"{folder}: this adapter was trained on other weights ({described.base or 'unnamed'}) than this model's"
        )
    check_name(model, name)
    with open_weights(folder) as file:
        check_ranks(file, Path(folder) / WEIGHTS_FILE, described.config, model)
        add_lora(model, described.config, name, activate=False)
        try:
            fill(adapter_tensors(model, name), file, Path(folder) / WEIGHTS_FILE, described.with_head)
        except BaseException:
            remove_adapter(model, name)
            raise
    if activate:
        set_adapter(model, name)
    return described


def check_ranks(file, path, config, model):
    """Hold the ranks that the config names against the file's, before memory is asked for; InputError."""
    known = set(file.keys())
    for layer, _, _, module in target_layers(model, config.targets):
        names = spellings(model, layer)
        key = f"{PREFIX}{names[1]}.lora_A.weight"
        base = module.base if isinstance(module, LoraLinear) else module
        wanted = [config.rank_of(*names), base.in_features]
        if key in known and file.get_slice(key).get_shape() != wanted:
            found = tuple(file.get_slice(key).get_shape())
            raise InputError(f"{path}: tensor {key} has shape {found}, and {tuple(wanted)} is wanted")


@torch.no_grad()
def fill(wanted, file, path, with_head):
    """Copy the opened file's tensors into the parameters of the same names, all of them; InputError for a misfit."""
    if not with_head:
        wanted = {key: value for key, value in wanted.items() if not key.startswith(f"{PREFIX}{HEAD}.")}
    known = set(file.keys())
    for key in sorted(known ^ set(wanted)):
        place = "has no place in" if key in known else "is missing for"
        raise InputError(f"{path}: tensor {key} {place} what {CONFIG_FILE} describes on this model")
    for key, parameter in wanted.items():
        tensor = file.get_tensor(key)
        found, shape = tuple(tensor.shape), tuple(parameter.shape)
        if found != shape:
            raise InputError(f"{path}: tensor {key} has shape {found}, and {shape} is wanted")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise InputError(f"{path}: tensor {key} is not of finite floating-point numbers")
        parameter.copy_(tensor)


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


def save_adapter(model, name, folder, *, base, revision=None, fingerprint=None, dtype=torch.float32):
    """Fill a folder that `load_adapter` and peft open. base: what to load under it, as `--model` takes it.

    What was written is read back and compared. Not atomic by itself: see `common.files.write_folder`.
    Raises ValueError while an adapter is merged: the base would no longer be the one that is named.
    """
    if switch_of(model) is None or name not in adapter_names(model):
        raise ValueError(f"there is no adapter {name!r} to save")
    if switch_of(model).merged is not None:
        raise ValueError(f"adapter {switch_of(model).merged!r} is merged into the weights; unmerge it before saving")
    folder, config = Path(folder), model.lora_configs[name]
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in adapter_tensors(model, name).items()}
    # one key: the library writes several in an order that changes from run to run
    metadata = {FINGERPRINT: fingerprint} if fingerprint else {"format": "pt"}
    write_tensors(folder / WEIGHTS_FILE, tensors, metadata)
    with_head = name in heads_of(model)
    write_json(folder / CONFIG_FILE, peft_config(in_family_names(model, config), base, revision, with_head))


def write_tensors(path, tensors, metadata):
    """Write a safetensors file, read it back and compare; InputError when it is not what was written."""
    path.write_bytes(to_safetensors(tensors, metadata=metadata))
    with safe_open(path, framework="pt") as file:
        same = set(file.keys()) == set(tensors) and all(torch.equal(file.get_tensor(k), v) for k, v in tensors.items())
    if not same:
        raise InputError(f"{path}: reads back otherwise than it was written; is the disk sound?")
