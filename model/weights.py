"""Weights from and to Hugging Face folders: a literal map of names, every tensor accounted for.

A folder holds `config.json` and `model.safetensors` (or shards with `model.safetensors.index.json`).
Names are read with or without the prefix `bert.`, and with TensorFlow's `LayerNorm.gamma` / `.beta`.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from common.errors import InputError
from common.files import read_json, write_json
from model.bert import BertConfig, BertForQuestionAnswering
from model.quant import FourBit, FourBitLinear, quantise

# name in the file (its `bert.` taken off)               our parameter; {n} is the number of the block
NAME_MAP = {
    "embeddings.word_embeddings.weight": "bert.embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight": "bert.embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight": "bert.embeddings.token_type_embeddings.weight",
    "embeddings.LayerNorm.weight": "bert.embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias": "bert.embeddings.LayerNorm.bias",
    "encoder.layer.{n}.attention.self.query.weight": "bert.encoder.layer.{n}.attention.self.query.weight",
    "encoder.layer.{n}.attention.self.query.bias": "bert.encoder.layer.{n}.attention.self.query.bias",
    "encoder.layer.{n}.attention.self.key.weight": "bert.encoder.layer.{n}.attention.self.key.weight",
    "encoder.layer.{n}.attention.self.key.bias": "bert.encoder.layer.{n}.attention.self.key.bias",
    "encoder.layer.{n}.attention.self.value.weight": "bert.encoder.layer.{n}.attention.self.value.weight",
    "encoder.layer.{n}.attention.self.value.bias": "bert.encoder.layer.{n}.attention.self.value.bias",
    "encoder.layer.{n}.attention.output.dense.weight": "bert.encoder.layer.{n}.attention.output.dense.weight",
    "encoder.layer.{n}.attention.output.dense.bias": "bert.encoder.layer.{n}.attention.output.dense.bias",
    "encoder.layer.{n}.attention.output.LayerNorm.weight": "bert.encoder.layer.{n}.attention.output.LayerNorm.weight",
    "encoder.layer.{n}.attention.output.LayerNorm.bias": "bert.encoder.layer.{n}.attention.output.LayerNorm.bias",
    "encoder.layer.{n}.intermediate.dense.weight": "bert.encoder.layer.{n}.intermediate.dense.weight",
    "encoder.layer.{n}.intermediate.dense.bias": "bert.encoder.layer.{n}.intermediate.dense.bias",
    "encoder.layer.{n}.output.dense.weight": "bert.encoder.layer.{n}.output.dense.weight",
    "encoder.layer.{n}.output.dense.bias": "bert.encoder.layer.{n}.output.dense.bias",
    "encoder.layer.{n}.output.LayerNorm.weight": "bert.encoder.layer.{n}.output.LayerNorm.weight",
    "encoder.layer.{n}.output.LayerNorm.bias": "bert.encoder.layer.{n}.output.LayerNorm.bias",
    "qa_outputs.weight": "qa_outputs.weight",
    "qa_outputs.bias": "qa_outputs.bias",
}
# What other heads leave in a file, and a buffer of positions 0, 1, 2...: known, and not needed here.
LEFT_OUT = re.compile(r"(pooler\..*|cls\..*|classifier\..*|embeddings\.position_ids)")
HEAD = ("qa_outputs.weight", "qa_outputs.bias")
# What stands beside a weight that is stored in 4 bits: `query.weight` is bytes, and `query.weight.absmax` one of these.
PACKED = re.compile(
    r"(.+\.weight)(\.absmax|\.quant_map|\.nested_absmax|\.nested_quant_map|\.quant_state\.bitsandbytes__(?:nf4|fp4))"
)


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's tensors: names used, knowingly left out, and parameters newly made.

    fingerprint: SHA-256 over the encoder's numbers in fp32, the same however they were named, cut into files or
    padded with other heads; adapters carry it, to be refused on other weights.
    """

    used: tuple[str, ...]
    left_out: tuple[str, ...]
    new: tuple[str, ...]
    fingerprint: str = ""

    @property
    def head_is_new(self):
        """The file held no trained span head."""
        return bool(self.new)

    def __str__(self):
        parts = [f"{len(self.used)} tensors read"]
        if self.left_out:
            parts.append(f"{len(self.left_out)} left out ({', '.join(sorted(set(map(head_name, self.left_out))))})")
        if self.new:
            parts.append(f"newly made: {', '.join(self.new)}")
        return "; ".join(parts)


def head_name(name):
    """The first part of a left-out tensor's name, enough to tell what it was for."""
    name = name.removeprefix("bert.")
    return name if name.startswith("embeddings.") else name.split(".")[0] + ".*"


def canonical_name(name):
    """A file's name as NAME_MAP spells it, with the block's number: ('encoder.layer.{n}.…', '3')."""
    name = name.removeprefix("bert.")
    name = re.sub(r"(?<=LayerNorm\.)gamma$", "weight", name)
    name = re.sub(r"(?<=LayerNorm\.)beta$", "bias", name)
    number = re.match(r"encoder\.layer\.(\d+)\.", name)
    if number:
        name = name.replace(number[0], "encoder.layer.{n}.", 1)
    return name, number[1] if number else ""


def read_config(folder):
    """The BertConfig of a model folder; InputError when there is none or it cannot be used."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such model folder")
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no config.json in it, so this is not a model folder")
    return BertConfig.from_dict(read_json(path), str(path))


def weight_files(folder):
    """The safetensors files of a model folder, shards in order; a pickle alone is refused."""
    folder = Path(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        table = read_json(index)
        if not isinstance(table, dict) or not isinstance(table.get("weight_map"), dict):
            raise InputError(f"{index}: weight_map: expected an object of tensor name to file name")
        names = list(table["weight_map"].values())
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise InputError(f"{index}: weight_map: expected an object of tensor name to file in this folder")
        return [folder / name for name in sorted(set(names))]
    if (folder / "pytorch_model.bin").is_file():
        raise InputError(
            f"{folder}: only pytorch_model.bin, a pickle, which can run code when read; convert it where transformers "
            f"is installed: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True), or "
            f"AutoModelForQuestionAnswering likewise when it is fine-tuned to answer"
        )
    raise InputError(f"{folder}: no model.safetensors in it")


def read_tensors(folder):
    """Yield (file, name, tensor) one by one, so that a file is never held twice."""
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt", backend="pread") as file:  # mapped pages would count as memory held
                for name in file.keys():
                    yield path, name, file.get_tensor(name)
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such file, and the model's index names it") from None
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path}: not a whole safetensors file ({error}); fetch or copy it again"
            ) from None


def slots(model):
    """Parameter name -> (module, attribute, shape) of everything that a checkpoint fills."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, FourBitLinear):
            found[f"{name}.weight"] = module, "weight", (module.out_features, module.in_features)
        for attribute, parameter in module.named_parameters(recurse=False):
            found.setdefault(f"{name}.{attribute}", (module, attribute, tuple(parameter.shape)))
    return {name: slot for name, slot in found.items() if ".quantised." not in name}


def place(slot, tensor):
    """Put a tensor where it belongs, in fp32 or, in a FourBitLinear, in 4 bits."""
    module, attribute, _ = slot
    if isinstance(module, FourBitLinear) and attribute == "weight":
        module.fill(tensor)
    elif getattr(module, attribute).is_meta:
        setattr(module, attribute, nn.Parameter(tensor))
    else:
        getattr(module, attribute).copy_(tensor)


def load_weights(model, folder):
    """Put a folder's tensors into `model`, in place, as fp32; returns a LoadReport.

    Tensors come one by one, so a model on the meta device with 4-bit layers is never there in full precision.

    Raises InputError when a tensor is unknown, twice there, of the wrong shape, not of floating point or
    not finite, or when any but the head's parameters stays without one.
    """
    parameters = slots(model)
    used, left_out, filled, digests, packed = [], [], set(), [], {}
    with torch.no_grad():
        for path, name, tensor in read_tensors(folder):
            whole, suffix = match.groups() if (match := PACKED.fullmatch(name)) else (name, "")
            canonical, number = canonical_name(whole)
            if LEFT_OUT.fullmatch(canonical):
                left_out.append(name)
                continue
            ours = NAME_MAP.get(canonical, "").replace("{n}", number)
            if ours not in parameters:
                raise InputError(f"{path}: tensor {name} has no place in a BERT of this config.json")
            if isinstance(parameters[ours][0], FourBitLinear) and (suffix or tensor.dtype == torch.uint8):
                packed.setdefault(ours, {})[suffix] = tensor
                used.append(name)
                digests.append(f"{ours}{suffix} {hashlib.sha256(tensor.contiguous().numpy()).hexdigest()}")
                continue
            if suffix or tensor.dtype == torch.uint8:
                raise InputError(f"{path}: tensor {name} belongs to a weight in 4 bits, and config.json names none")
            if ours in filled:
                raise InputError(f"{path}: tensor {name} stands for {ours}, which came already")
            shape = parameters[ours][2]
            if tensor.shape != shape:
                raise InputError(
                    f"{path}: tensor {name} has shape {tuple(tensor.shape)}, and config.json asks for {shape}"
                )
            if not tensor.is_floating_point():
                raise InputError(f"{path}: tensor {name} is {tensor.dtype}, and floating point is expected")
            tensor = tensor.float()
            if not tensor.isfinite().all():
                raise InputError(f"{path}: tensor {name} holds NaN or infinity; get it again")
            filled.add(ours)
            used.append(name)
            if ours not in HEAD:
                digests.append(f"{ours} {shape} {hashlib.sha256(tensor.contiguous().numpy()).hexdigest()}")
            place(parameters[ours], tensor)
        for ours, tensors in packed.items():
            try:
                parameters[ours][0].fill_packed(tensors)
            except ValueError as error:
                raise InputError(f"{folder}: {ours}: {error}; get the files again") from None
            filled.add(ours)
        missing = [name for name in parameters if name not in filled]
        if missing and set(missing) != set(HEAD):
            lost = [name for name in missing if name not in HEAD] or missing
            raise InputError(f"{folder}: the weights lack {lost[0]} and {len(lost) - 1} more that config.json asks for")
        if missing and model.qa_outputs.weight.is_meta:
            model.qa_outputs.to_empty(device="cpu")
            model.initialise(model.qa_outputs)
    fingerprint = hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
    return LoadReport(tuple(used), tuple(left_out), tuple(missing), fingerprint)


def check_size(config, folder):
    """Refuse a config.json that describes far more than the files hold, before memory is asked for."""
    D, F = config.hidden_size, config.intermediate_size
    rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    least = rows * D + config.num_hidden_layers * (4 * D * D + 2 * D * F)
    held = sum(path.stat().st_size for path in weight_files(folder) if path.is_file())
    if least > max(held, 2**31):  # no format spends less than a byte on a parameter; smaller misfits show by shape
        raise InputError(
            f"{folder}: config.json describes {least:,} parameters and the weights are {held:,} bytes long: "
            f"they do not belong together"
        )


def stored_quant(folder, precision="fp32"):
    """The FourBit of a folder whose weights are stored so, else None."""
    path = Path(folder) / "config.json"
    values = read_json(path)
    stored = values.get("quantization_config") if isinstance(values, dict) else None
    return None if stored is None else FourBit.from_dict(stored, str(path), precision)


def load_model(folder, *, dropout=None, attention_dropout=None, four_bit=None):
    """Build the model a folder describes and fill it; returns (model, LoadReport).

    dropout, attention_dropout: probabilities that replace those of config.json. four_bit: a FourBit, to hold the
    encoder's Linear layers so; of a folder stored in 4 bits it has to be that one, or None for it.
    """
    values = read_config(folder).to_dict()
    if dropout is not None:
        values["hidden_dropout_prob"] = dropout
    if attention_dropout is not None:
        values["attention_probs_dropout_prob"] = attention_dropout
    config = BertConfig.from_dict(values)
    check_size(config, folder)
    with torch.device("meta"):  # shapes without numbers: they come from the files
        model = BertForQuestionAnswering(config)
    stored = stored_quant(folder)
    if stored is not None and four_bit is not None and four_bit.name != stored.name:
        raise InputError(f"{folder}: its weights are stored in {stored.name} and cannot be had in {four_bit.name}")
    if four_bit or stored:
        quantise(model, four_bit or stored)
    return model, load_weights(model, folder)


def save_weights(model, folder):
    """Write `config.json` and `model.safetensors` under the names of Hugging Face checkpoints.

    Weights in 4 bits stay so, in bitsandbytes' layout.
    Not atomic by itself: the caller fills a temporary folder (`common.files.write_folder`).
    """
    folder = Path(folder)
    tensors, values = {}, model.config.to_dict()
    for name, (module, attribute, _) in slots(model).items():
        if isinstance(module, FourBitLinear) and attribute == "weight":
            tensors |= {name + suffix: tensor for suffix, tensor in module.packed_tensors().items()}
            values["quantization_config"] = module.four_bit.to_dict()
        else:
            tensors[name] = getattr(module, attribute)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # not save_file, which reports a full disk as an error of the format
    (folder / "model.safetensors").write_bytes(to_safetensors(tensors, metadata={"format": "pt"}))
    write_json(folder / "config.json", values)
