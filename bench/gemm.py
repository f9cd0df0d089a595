"""The machine's matrix rate at a model's own shapes, and how much of it a program uses."""

import time

import torch
import torch.nn.functional as F


SHORTEST = 0.02  # seconds that a measurement takes at least


def layer_shapes(config):
    """(in, out, how often) of the matrix products of one block."""
    D, F = config.hidden_size, config.intermediate_size
    return ((D, D, 4), (D, F, 1), (F, D, 1))


def ceiling(config, tokens, precision, device="cpu", rounds=5):
    """FLOP/s of the block's products of `tokens` rows, one after the other and nothing else; the best of some rounds.

    precision: fp32, bf16, fp16 or int8; of the latter it is the operations per second that integers make.
    """
    device = torch.device(device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}.get(precision, torch.float32)
    pairs = [
        (numbers(tokens, size_in, dtype, device), numbers(size_out, size_in, dtype, device))
        for size_in, size_out, count in layer_shapes(config) for _ in range(count)
    ]
    work = sum(2 * tokens * size_in * size_out * count for size_in, size_out, count in layer_shapes(config))
    multiply = (lambda left, right: torch._int_mm(left, right.t())) if dtype == torch.int8 else F.linear
    best, times = float("inf"), 1
    with torch.inference_mode():
        done = 0
        while done <= rounds:  # the first warms up
            wait(device)
            began = time.perf_counter()
            for left, right in pairs * times:
                multiply(left, right)
            wait(device)
            seconds = time.perf_counter() - began
            if seconds < SHORTEST and times < 2**14:  # a GPU is done before its start and end count for nothing
                times *= 2
                continue
            best, done = min(best, seconds / times), done + 1
    return work / best


def numbers(rows, columns, dtype, device):
    """A random matrix."""
    return (torch.randn(rows, columns, device=device) * 10).to(dtype)


def wait(device):
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def encoder_flops(config, tokens, learning=True, frozen=False):
    """FLOPs of the encoder's weight products for `tokens` real tokens: 2 · tokens · Σ in · out over all products.

    learning: with the backward pass, which has two more products of the size of each (the gradients of its input and
    of its weight): three times as many. frozen: the weights learn nothing, as under LoRA, and need the first one alone;
    the first layer's query, key and value not even that, since nothing below them learns. Adapters' own products, those
    inside attention, the head and the embeddings are left out: some per cent at these lengths, so that a share of the
    ceiling is a lower bound. What is computed twice (checkpointing) counts once.
    """
    block = sum(2 * tokens * size_in * size_out * count for size_in, size_out, count in layer_shapes(config))
    whole = block * config.num_hidden_layers
    if not learning:
        return whole
    return 2 * whole - 3 * 2 * tokens * config.hidden_size**2 if frozen else 3 * whole
