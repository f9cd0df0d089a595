"""Weights to Hugging Face folders, as one file or in shards: what model/weights.py reads."""

from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from common.files import write_json
from model.bert import BertForQuestionAnswering
from model.llama_span import LlamaForQuestionAnswering
from model.names import names_of
from model.pruning import KEY, is_pruned, shape_of
from model.quant import FourBitLinear
from model.weights import Uninitialised, plain_model, slots

SHARD = 2 * 10**9  # bytes of a file, which stands in memory twice more while it is written


def save_weights(model, folder):
    """Write `config.json` and `model.safetensors` under the names of Hugging Face checkpoints.

    Weights in 4 bits stay so, in bitsandbytes' layout.
    Not atomic by itself: the caller fills a temporary folder (`common.files.write_folder`). Raises ValueError for a
    model with adapters or other passes on it, whose parameters are not all that it computes with.
    """
    span = isinstance(model, LlamaForQuestionAnswering)
    with torch.device("meta"), Uninitialised():
        plain = plain_model(model.config, "causal" if span else None)
    if set(slots(model)) != set(slots(plain)):
        raise ValueError("a model with adapters, virtual tokens or 8-bit layers cannot be saved whole; merge it first")
    folder = Path(folder)
    tensors, values, kinds = {}, model.config.to_dict(), set()
    if span:
        values["architectures"] = ["LlamaForQuestionAnswering"]
    if isinstance(model, BertForQuestionAnswering) and is_pruned(model):
        values[KEY] = shape_of(model)
    for ours, (module, attribute, _) in slots(model).items():
        name = names_of(model).theirs(ours)
        if isinstance(module, FourBitLinear) and attribute == "weight":
            tensors |= {name + suffix: tensor for suffix, tensor in module.packed_tensors().items()}
            values["quantization_config"] = module.four_bit.to_dict()
        else:
            tensors[name] = getattr(module, attribute)
            kinds.add(tensors[name].dtype)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    if kinds != {torch.float32}:  # where they are mixed, who opens it all in one format should lose nothing
        values["dtype"] = "float32" if len(kinds) > 1 else str(*kinds).removeprefix("torch.")
    write_shards(tensors, folder)
    write_json(folder / "config.json", values)


def write_shards(tensors, folder):
    """Write name -> tensor as `model.safetensors`, or as several files of at most SHARD bytes and their index."""
    shards, room = [{}], SHARD
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = SHARD
        shards[-1][name] = tensor
        room -= tensor.nbytes
    files = [f"model-{k:05d}-of-{len(shards):05d}.safetensors" for k in range(1, len(shards) + 1)]
    files = files if shards[1:] else ["model.safetensors"]
    for file, shard in zip(files, shards, strict=True):
        # not save_file, which reports a full disk as an error of the format
        (folder / file).write_bytes(to_safetensors(shard, metadata={"format": "pt"}))
    if shards[1:]:
        places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})
