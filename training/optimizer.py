"""AdamW's parameter groups and the learning rate of each step."""

import torch

NO_DECAY = ("bias", "LayerNorm.weight", "lora_magnitude_vector")


def make_optimizer(model, weight_decay, lora_plus_ratio=1.0):
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101) on what is trainable; no decay on biases and LayerNorm.

    The rate is set at each step by `training.step`, times a group's `scale`: LoRA's B learns `lora_plus_ratio`
    times as fast as the rest (LoRA+, Hayou et al. 2024, arXiv 2402.12354). The fused kernels update all
    parameters in one pass.
    """
    groups = {
        name: {"params": [], "weight_decay": decay, "scale": scale}
        for name, decay, scale in (
            ("decayed", weight_decay, 1.0), ("plain", 0.0, 1.0), ("lora_B", weight_decay, lora_plus_ratio),
        )
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "plain" if name.endswith(NO_DECAY) else "lora_B" if name.endswith("lora_B") else "decayed"
            groups[kind]["params"].append(parameter)
    groups = [group for group in groups.values() if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=True)


def learning_rate(step, total_steps, peak, warmup):
    """The rate of step `step` (0-based): linear from 0 up to `peak`, then linearly down to 0.

    warmup: the share of the steps that rise. With 100 steps, warmup 0.1 and peak 1, steps 0, 4, 9, 10, 55
    and 99 have rates 0.1, 0.5, 1.0, 1.0, 0.5 and 0.011: no step is taken at a rate of zero.
    """
    rising = round(warmup * total_steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * (total_steps - step) / max(1, total_steps - rising)
