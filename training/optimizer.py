"""AdamW's parameter groups and the learning rate of each step."""

import torch

NO_DECAY = ("bias", "LayerNorm.weight")


def make_optimizer(model, weight_decay):
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101) on what is trainable; no decay on biases and LayerNorm.

    The rate is set at each step by `training.step`. The fused kernels update all parameters in one pass.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if name.endswith(NO_DECAY) else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=True)


def learning_rate(step, total_steps, peak, warmup):
    """The rate of step `step` (0-based): linear from 0 up to `peak`, then linearly down to 0.

    warmup: the share of the steps that rise. With 100 steps, warmup 0.1 and peak 1, steps 0, 4, 9, 10, 55
    and 99 have rates 0.1, 0.5, 1.0, 1.0, 0.5 and 0.011: no step is taken at a rate of zero.
    """
    rising = round(warmup * total_steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * (total_steps - step) / max(1, total_steps - rising)
