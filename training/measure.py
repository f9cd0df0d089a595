"""What a run costs: parameters, memory, seconds per question."""

import numpy as np
import torch

from common.memory import resident_bytes
from model.quant import FourBitLinear

LATENCY_QUESTIONS = 50
PARTS = (
    (".updates.", "adapters"), (".prompt", "virtual tokens"), ("qa_outputs", "head"), ("lm_head", "output layer"),
    (".encoder.", "encoder"), (".layers.", "decoder"),
)


def parameter_counts(model):
    """(trainable, total) parameters; a 4-bit weight counts as the numbers it stands for."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    packed = [m for m in model.modules() if isinstance(m, FourBitLinear)]
    hidden = sum(m.out_features * m.in_features - m.weight.numel() for m in packed)
    return trainable, sum(p.numel() for p in model.parameters()) + hidden


def parameter_groups(model):
    """Part of the model -> {number format: count}, in the order of the model; a 4-bit weight counts as in full."""
    groups = {}
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0].removesuffix(".quantised"))
        part = next((part for mark, part in PARTS if mark in name), "embeddings")
        kind, count = str(parameter.dtype).removeprefix("torch."), parameter.numel()
        if isinstance(module, FourBitLinear) and name.endswith(".quantised.weight"):
            kind, count = module.four_bit.name, module.out_features * module.in_features
        formats = groups.setdefault(part, {})
        formats[kind] = formats.get(kind, 0) + count
    return groups


def latency(reader, examples):
    """Seconds per question at batch 1, median and 95th percentile, over LATENCY_QUESTIONS spread questions."""
    places = np.linspace(0, len(examples) - 1, min(len(examples), LATENCY_QUESTIONS)).astype(int)
    chosen = [examples[place] for place in places]
    reader.ask(chosen[0].question, chosen[0].context)  # the first call pays for warming up
    seconds = [reader.ask(example.question, example.context)[1] for example in chosen]
    return {"p50": float(np.percentile(seconds, 50)), "p95": float(np.percentile(seconds, 95))}


def peak_memory_bytes(device):
    """Most memory this process held: on the GPU when there is one, else resident; None where unknown."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes(peak=True)
