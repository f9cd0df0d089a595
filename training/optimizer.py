"""AdamW's parameter groups and the learning rate of each step."""

import warnings

import torch

from common.errors import InputError

NO_DECAY = ("bias", "LayerNorm.weight", "layernorm.weight", ".norm.weight", "lora_magnitude_vector")


def make_optimizer(model, weight_decay, lora_plus_ratio=1.0, kind="adamw"):
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101) on what is trainable; no decay on biases and norms.

    The rate is set at each step by `training.step`, times a group's `scale`: LoRA's B learns `lora_plus_ratio`
    times as fast as the rest (LoRA+, Hayou et al. 2024, arXiv 2402.12354). kind: one of OPTIMIZERS; adamw's fused
    kernels update all parameters in one pass, the others are bitsandbytes' (Dettmers et al. 2021, arXiv 2110.02861),
    whose tensors of under 4,096 numbers keep fp32 moments. Raises InputError for paged moments without CUDA.
    """
    groups = {
        name: {"params": [], "weight_decay": decay, "scale": scale}
        for name, decay, scale in (
            ("decayed", weight_decay, 1.0), ("plain", 0.0, 1.0), ("lora_B", weight_decay, lora_plus_ratio),
        )
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = "plain" if name.endswith(NO_DECAY) else "lora_B" if name.endswith("lora_B") else "decayed"
            groups[group]["params"].append(parameter)
    groups = [group for group in groups.values() if group["params"]]
    settings = {"lr": 0.0, "betas": (0.9, 0.999), "eps": 1e-8}
    if kind == "adamw":
        return torch.optim.AdamW(groups, **settings, fused=True)
    if kind == "paged-adamw8bit" and groups[0]["params"][0].device.type != "cuda":
        raise InputError("--optimizer paged-adamw8bit: only a CUDA GPU's moments can be paged out; take adamw8bit here")
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")  # said of others too
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    return (AdamW8bit if kind == "adamw8bit" else PagedAdamW8bit)(groups, **settings)


def learning_rate(step, total_steps, peak, warmup):
    """The rate of step `step` (0-based): linear from 0 up to `peak`, then linearly down to 0.

    warmup: the share of the steps that rise. With 100 steps, warmup 0.1 and peak 1, steps 0, 4, 9, 10, 55
    and 99 have rates 0.1, 0.5, 1.0, 1.0, 0.5 and 0.011: no step is taken at a rate of zero.
    """
    rising = round(warmup * total_steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * (total_steps - step) / max(1, total_steps - rising)
