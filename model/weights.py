"""Weights from Hugging Face folders: every tensor accounted for (the maps of names are in names.py, writing in saving.py).

A folder holds `config.json` and `model.safetensors` (or shards with `model.safetensors.index.json`).
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode

from common.errors import InputError
from common.files import read_json
from common.pages import give_pages_back
from model.bert import BertConfig, BertForQuestionAnswering
from model.llama import LlamaConfig, LlamaForCausalLM
from model.llama_span import LlamaForQuestionAnswering
from model.names import BERT, NAMES, names_of
from model.pruning import KEY, check_shape, shape_as
from model.quant import FourBit, FourBitLinear, quantise

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
    for names in NAMES.values():
        name = name.removeprefix(names.prefix)
    return name if name.startswith("embeddings.") else name.split(".")[0] + ".*"


def read_config(folder):
    """The BertConfig or LlamaConfig of a model folder; InputError when there is none or it cannot be used."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such model folder")
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no config.json in it, so this is not a model folder")
    values = read_json(path)
    llama = isinstance(values, dict) and values.get("model_type") == "llama"
    if isinstance(values, dict) and "model_type" not in values and "rms_norm_eps" in values:  # no BERT has such norms
        raise InputError(f"{path}: model_type is missing; of a LLaMA it is \"llama\"")
    return (LlamaConfig if llama else BertConfig).from_dict(values, str(path))


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
    return {
        name: slot for name, slot in found.items()
        if ".quantised." not in name and not (is_tied(model) and name == "lm_head.weight")
    }


def is_tied(model):
    """Whether a decoder's output layer is its word vectors, so that files need not hold it."""
    return isinstance(model, LlamaForCausalLM) and model.config.tie_word_embeddings


def place(slot, tensor):
    """Put a tensor where it belongs, in fp32 or, in a FourBitLinear, in 4 bits."""
    module, attribute, _ = slot
    if isinstance(module, FourBitLinear) and attribute == "weight":
        module.fill(tensor)
    elif getattr(module, attribute).is_meta:
        setattr(module, attribute, nn.Parameter(tensor))
    else:
        getattr(module, attribute).copy_(tensor)


class Intake:
    """Puts the tensors of a folder into a model's slots, one by one, and keeps account of them.

    keep_16_bits: matrices that the file holds in 16 bits stay so; otherwise all become fp32.
    """

    def __init__(self, model, folder, names=BERT, keep_16_bits=False):
        self.folder, self.names, self.slots, self.keep_16_bits = folder, names, slots(model), keep_16_bits
        self.used, self.left_out, self.digests = [], [], []
        self.tied = is_tied(model)
        self.filled, self.packed = set(), {}  # packed: our name -> what is there of a weight stored in 4 bits

    def take(self, path, name, tensor):
        """Place one tensor; InputError where it does not fit."""
        whole, suffix = match.groups() if (match := PACKED.fullmatch(name)) else (name, "")
        ours = self.names.ours(whole)
        if ours is None:
            self.left_out.append(name)
            return
        if ours == "lm_head.weight" and self.tied:  # some tools write the word vectors a second time
            self.left_out.append(name)
            return
        if ours not in self.slots:
            raise InputError(f"{path}: tensor {name} has no place in a {self.names.family} of this config.json")
        self.used.append(name)
        if suffix or tensor.dtype == torch.uint8:
            if not isinstance(self.slots[ours][0], FourBitLinear):
                raise InputError(f"{path}: tensor {name} belongs to a weight in 4 bits, and config.json names none")
            parts = self.packed.setdefault(ours, {})
            if suffix in parts or ours in self.filled:
                raise InputError(f"{path}: tensor {name} stands for {ours}{suffix}, which came already")
            parts[suffix] = tensor
            self.note(ours + suffix, tensor)
            return
        if ours in self.filled:
            raise InputError(f"{path}: tensor {name} stands for {ours}, which came already")
        wide = checked(path, name, tensor, self.slots[ours][2])
        self.filled.add(ours)
        self.note(ours, wide)
        keep = self.keep_16_bits and tensor.dim() == 2 and not isinstance(self.slots[ours][0], FourBitLinear)
        place(self.slots[ours], tensor if keep else wide)

    def note(self, ours, tensor):
        """Let a tensor take part in the fingerprint; heads do not."""
        if ours not in self.names.head:
            digest = hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy()).hexdigest()
            self.digests.append(f"{ours} {tuple(tensor.shape)} {digest}")

    def finish(self):
        """Unpack what came in 4 bits, and refuse a model with anything but its head missing; returns a LoadReport."""
        for ours, tensors in self.packed.items():
            try:
                self.slots[ours][0].fill_packed(tensors)
            except ValueError as error:
                raise InputError(f"{self.folder}: {ours}: {error}; get the files again") from None
            self.filled.add(ours)
        missing = [name for name in self.slots if name not in self.filled]
        if missing and set(missing) != set(self.names.head):
            lost = [name for name in missing if name not in self.names.head] or missing
            raise InputError(
                f"{self.folder}: the weights lack {lost[0]}{f' and {len(lost) - 1} more' if lost[1:] else ''}, which "
                f"config.json asks for"
            )
        fingerprint = hashlib.sha256("\n".join(sorted(self.digests)).encode()).hexdigest()
        return LoadReport(tuple(self.used), tuple(self.left_out), tuple(missing), fingerprint)


def checked(path, name, tensor, shape):
    """The tensor in fp32; InputError unless it has this shape and holds finite numbers."""
    if tensor.shape != shape:
        raise InputError(f"{path}: tensor {name} has shape {tuple(tensor.shape)}, and config.json asks for {shape}")
    if not tensor.is_floating_point():
        raise InputError(f"{path}: tensor {name} is {tensor.dtype}, and floating point is expected")
    tensor = tensor.float()
    if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():  # NaN is both; takes no second tensor
        raise InputError(f"{path}: tensor {name} holds NaN or infinity; get it again")
    return tensor


@torch.no_grad()
def load_weights(model, folder, keep_16_bits=False):
    """Put a folder's tensors into `model`, in place, as fp32; returns a LoadReport. keep_16_bits: see Intake.

    Tensors come one by one, so a model on the meta device with 4-bit layers is never there in full precision.

    Raises InputError when a tensor is unknown, twice there, of the wrong shape, not of floating point or
    not finite, or when any but the head's parameters stays without one.
    """
    intake = Intake(model, folder, names_of(model), keep_16_bits)
    rounding = any(isinstance(module, FourBitLinear) for module in model.modules())
    for path, name, tensor in read_tensors(folder):
        intake.take(path, name, tensor)
        if rounding:
            give_pages_back()  # what lies free between the small weights that stay would come to more than they
    report = intake.finish()
    if isinstance(model, LlamaForCausalLM):
        model.tie()
    if report.new and model.qa_outputs.weight.is_meta:
        for name, parameter in model.qa_outputs.named_parameters():  # to_empty would import sympy, half a second
            setattr(model.qa_outputs, name, nn.Parameter(torch.empty(parameter.shape, device="cpu")))
        model.initialise(model.qa_outputs)
    return report


def check_size(config, folder):
    """Refuse a config.json that describes far more than the files hold, before memory is asked for."""
    D, F = config.hidden_size, config.intermediate_size
    least = config.vocab_size * getattr(config, "word_size", D) + config.num_hidden_layers * 2 * D * F  # attention besides
    held = sum(path.stat().st_size for path in weight_files(folder) if path.is_file())
    if least > max(2 * held, 2**31):  # no format here spends less than 4 bits; smaller misfits show by shape
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


class Uninitialised(TorchFunctionMode):
    """A context in which torch.nn.init does nothing; on meta tensors normal_ would import the compiler, two seconds."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def plain_model(config, attention=None):
    """The model of a config, without any pass over it. attention: see `load_model`."""
    if attention is not None:
        return LlamaForQuestionAnswering(config, causal=attention == "causal")
    return LlamaForCausalLM(config) if isinstance(config, LlamaConfig) else BertForQuestionAnswering(config)


def load_model(folder, *, dropout=None, attention_dropout=None, four_bit=None, keep_16_bits=False, attention=None):
    """Build the model a folder describes and fill it; returns (model, LoadReport).

    dropout, attention_dropout: probabilities that replace those of config.json. four_bit: a FourBit, to hold the
    encoder's Linear layers so; of a folder stored in 4 bits it has to be that one, or None for it. keep_16_bits: of a
    model that is only used or stays frozen, under autocast: matrices of 16-bit numbers in the file take no more here.
    attention: "causal" or "bidirectional", of a LLaMA that gets a span head instead of its output layer.
    """
    folder = Path(folder)
    config = read_config(folder)
    if isinstance(config, BertConfig):
        keys = config.family.keys
        changes = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": attention_dropout}
        changes |= {"qa_dropout": dropout} if "qa_dropout" in keys else {}
        given = {keys[name]: value for name, value in changes.items() if value is not None}
        config = BertConfig.from_dict(config.to_dict() | given)
    check_size(config, folder)
    with torch.device("meta"), Uninitialised():  # shapes without numbers: they come from the files
        model = plain_model(config, attention)
    pruned = read_json(folder / "config.json").get(KEY)
    if pruned is not None:
        shape_as(model, check_shape(pruned, config, str(folder / "config.json")))
    stored = stored_quant(folder)
    if stored is not None and four_bit is not None and four_bit.name != stored.name:
        raise InputError(f"{folder}: its weights are stored in {stored.name} and cannot be had in {four_bit.name}")
    if four_bit or stored:
        quantise(model, four_bit or stored)
    return model, load_weights(model, folder, keep_16_bits)
