"""Adapters as files, in the format of the PEFT library; its description of them is read in peft_config.py.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. A tensor's name in it is
`base_model.model.` + the layer + `.lora_A.weight`, `.lora_B.weight` or (DoRA) `.lora_magnitude_vector`; the head is
there whole. The file's metadata say of which base the adapter is: the weights' fingerprint of `model.weights`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from common.errors import InputError
from common.files import read_json, write_json
from model.lora import (
    HEAD, LoraConfig, LoraLinear, SwitchedHead, adapter_names, add_lora, check_name, heads_of, linear_layers,
    remove_adapter, set_adapter, spellings, switch_of, target_layers,
)
from model.names import names_of
from model.peft_config import CONFIG_FILE, LayerRules, base_in, in_family_names, peft_config, read_values

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
SHIPPED = Path(__file__).parents[1] / "adapters" / "minilm-squad"  # comes with the project
FINGERPRINT = "base_fingerprint"


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """What an adapter's folder says, before any model is there.

    rules: what says which layers are meant, where `config` alone cannot. base, revision: the model it was trained on, by
    name or path. with_head: whether it brings a span head.
    """

    folder: Path
    config: LoraConfig
    rules: LayerRules | None
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
    config, rules, with_head, notices = read_values(values, path)
    base = base_in(values, path)
    with open_weights(folder) as file:
        fingerprint = (file.metadata() or {}).get(FINGERPRINT)
    if fingerprint is None:
        notices.append(f"{folder}: says nothing of its base's weights, so a wrong base cannot be told")
    return AdapterFile(folder, config, rules, base.base, base.revision, fingerprint, with_head, tuple(notices))


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
    try:
        config = described.rules.resolve(model, described.config) if described.rules else described.config
        layers = target_layers(model, config.targets)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    with open_weights(folder) as file:
        check_shapes(file, Path(folder) / WEIGHTS_FILE, expected_shapes(model, layers, config, described.with_head))
        try:
            add_lora(model, config, name, activate=False)
            fill(adapter_tensors(model, name), file, Path(folder) / WEIGHTS_FILE)
        except BaseException:
            if name in adapter_names(model):
                remove_adapter(model, name)
            raise
    if activate:
        set_adapter(model, name)
    return described


def expected_shapes(model, layers, config, with_head):
    """Name in the file -> shape, of all that an adapter of this LoraConfig on these layers has there."""
    shapes = {}
    for layer, _, _, module in layers:
        base = module.base if isinstance(module, LoraLinear) else module
        names = spellings(model, layer)
        rank, key = config.rank_of(*names), PREFIX + names[1]
        shapes[f"{key}.lora_A.weight"] = (rank, base.in_features)
        shapes[f"{key}.lora_B.weight"] = (base.out_features, rank)
        if config.dora:
            shapes[f"{key}.lora_magnitude_vector"] = (base.out_features,)
    if with_head and hasattr(model, HEAD):
        head = getattr(model, HEAD)
        head = head.base if isinstance(head, SwitchedHead) else head
        shapes |= {f"{PREFIX}{HEAD}.{part}": tuple(parameter.shape) for part, parameter in head.named_parameters()}
    return shapes


def check_shapes(file, path, wanted):
    """Hold the opened file's names and shapes against those wanted, before memory is asked for; InputError."""
    known = set(file.keys())
    for key in sorted(known ^ set(wanted)):
        place = "has no place in" if key in known else "is missing for"
        raise InputError(f"{path}: tensor {key} {place} what {CONFIG_FILE} describes on this model")
    for key, shape in wanted.items():
        found = tuple(file.get_slice(key).get_shape())
        if found != shape:
            raise InputError(f"{path}: tensor {key} has shape {found}, and {shape} is wanted")


@torch.no_grad()
def fill(wanted, file, path):
    """Copy the opened file's tensors into the parameters of the same names, those it has; InputError for other numbers."""
    for key in file.keys():
        tensor = file.get_tensor(key)
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise InputError(f"{path}: tensor {key} is not of finite floating-point numbers of 32 bits or less")
        wanted[key].copy_(tensor)


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
