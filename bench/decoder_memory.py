"""Memory of loading a LLaMA in 4 bits and of one QLoRA step: python -m bench.decoder_memory DIR

A process of its own, so that the peak is its own: resident memory over what it held after its imports (Linux), on a
GPU what torch allocated at most. The step is that of train.py: --tune qlora, checkpointing, one prompt of --tokens.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from common.memory import resident_bytes


def measure(options):
    """Load, learn once, and print what it took; runs in a process of its own."""
    import torch

    from model.lora import LoraConfig
    from model.precision import choose_device, choose_precision, make_scaler
    from model.quant import FourBit, bitsandbytes_layers, weight_bytes
    from model.tune import tune_lora
    from model.weights import load_model
    from training.optimizer import make_optimizer
    from training.step import train_step

    bitsandbytes_layers()
    torch.ops.bitsandbytes  # noqa: B018  the kernels, part of the imports
    device = choose_device(options.device)
    precision = choose_precision("auto", device)

    def peak():
        return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident_bytes(peak=True) - before

    before = resident_bytes()
    began = time.perf_counter()
    model, _ = load_model(
        options.folder, four_bit=FourBit.named("nf4", precision), keep_16_bits=precision != "fp32"
    )
    model.to(device)
    largest = max(p.numel() for p in model.model.embed_tokens.parameters())
    held = weight_bytes(model) + sum(
        p.numel() * p.element_size() for name, p in model.named_parameters() if ".quantised." not in name
    )
    result = {
        "device": str(device), "precision": precision, "linear_weights": weight_bytes(model), "weights": held,
        "largest_tensor_16_and_32": 6 * largest, "load_seconds": time.perf_counter() - began, "load_peak": peak(),
        "host_load_peak": resident_bytes(peak=True) - before,
    }
    result["load_allowed"] = held + 6 * largest + 500_000_000
    tune_lora(model, LoraConfig(8, 16.0, targets=("q_proj", "k_proj", "v_proj", "o_proj")))
    model.model.gradient_checkpointing = True
    optimizer, scaler = make_optimizer(model, 0.0), make_scaler(device, precision)
    prompts = OnePrompt(model.config.vocab_size, options.tokens)
    seconds = []
    for _ in range(options.steps):
        began = time.perf_counter()
        model.train()
        train_step(
            model, optimizer, scaler, prompts, prompts.all, learning_rate=1e-4, max_tokens=options.tokens, clip=1.0,
            device=device, precision=precision,
        )
        seconds.append(time.perf_counter() - began)
    result |= {"step_peak": peak(), "step_seconds": min(seconds), "tokens_per_second": options.tokens / min(seconds)}
    print(json.dumps(result))


class OnePrompt:
    """One prompt of random tokens, the last 16 to be said; of the shape of a PromptSet."""

    def __init__(self, vocabulary, tokens):
        import numpy as np

        self.ids = np.random.default_rng(0).integers(3, vocabulary, tokens)
        self.length, self.all = np.array([tokens]), np.array([0])

    def units(self, prompts):
        """Tokens to be said."""
        return 16.0

    def fill(self, prompts):
        """The batch."""
        from data.prompts import fill_left

        return fill_left([(self.ids[:-16].tolist(), self.ids[-16:].tolist())], [1.0], 0)


def main(argv=None):
    """Measure in a process of its own and print one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.decoder_memory", description=__doc__.split("\n")[0])
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.here:
        measure(options)
        return 0
    given = ["--tokens", str(options.tokens), "--steps", str(options.steps), "--device", options.device, "--here"]
    argv = [sys.executable, "-m", "bench.decoder_memory", options.folder, *given]
    return subprocess.run(argv, cwd=Path(__file__).parents[1]).returncode


if __name__ == "__main__":
    sys.exit(main())
