"""The machine's matrix rate at a model's own shapes, and how much of it a program uses."""

import time

import torch


def layer_shapes(config):
    """(in, out, how often) of the matrix products of one block."""
    D, F = config.hidden_size, config.intermediate_size
    return ((D, D, 4), (D, F, 1), (F, D, 1))


def ceiling(config, tokens, precision, device="cpu", rounds=5):
    """FLOP/s of the block's products of `tokens` rows, one after the other and nothing else; the best of some rounds."""
    device = torch.device(device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    pairs = [
        (torch.randn(tokens, size_in, dtype=dtype, device=device), torch.randn(size_out, size_in, dtype=dtype, device=device))
        for size_in, size_out, count in layer_shapes(config) for _ in range(count)
    ]
    work = sum(2 * tokens * size_in * size_out * count for size_in, size_out, count in layer_shapes(config))
    best = float("inf")
    with torch.inference_mode():
        for _ in range(rounds + 1):  # the first warms up
            wait(device)
            began = time.perf_counter()
            for left, right in pairs:
                torch.nn.functional.linear(left, right)
            wait(device)
            best = min(best, time.perf_counter() - began)
    return work / best


def wait(device):
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def encoder_flops(config, tokens, learning=True):
    """FLOPs of the encoder's weight products for `tokens` real tokens; forward and backward are three times the forward.

    Attention's own products, the head and the embeddings are left out: some per cent at these lengths, and the share
    is a lower bound for it.
    """
    block = sum(2 * tokens * size_in * size_out * count for size_in, size_out, count in layer_shapes(config))
    return block * config.num_hidden_layers * (3 if learning else 1)
