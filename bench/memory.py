"""Resident memory of loading, in full and in 4 bits, and of ten adapters: python -m bench.memory

Each row is a process of its own. `loaded` and `at most` are what the process holds in the end and held at most, less
what it held after its imports. The BERT-base is one of random weights, written to a temporary folder.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common.memory import resident_bytes

ROWS = {  # name: model, quant, adapters
    "MiniLM, fp32": ("minilm", None, 0),
    "MiniLM, nf4": ("minilm", "nf4", 0),
    "MiniLM, fp32, ten adapters": ("minilm", None, 10),
    "BERT-base, fp32": ("base", None, 0),
    "BERT-base, nf4": ("base", "nf4", 0),
}


def measure(folder, quant, adapters):
    """Load a model and its adapters and report; runs in a process of its own."""
    import torch

    from model.adapters import adapter_tensors
    from model.lora import LoraConfig, add_lora
    from model.quant import FourBit, bitsandbytes_layers, weight_bytes
    from model.weights import load_model

    if quant:
        bitsandbytes_layers()
        torch.ops.bitsandbytes  # noqa: B018  the kernels, part of the imports
    before = resident_bytes()
    model, _ = load_model(folder, four_bit=FourBit.named(quant) if quant else None)
    for number in range(adapters):
        add_lora(model, LoraConfig(rank=8), f"adapter{number}")
    size = 0
    if adapters:
        size = sum(tensor.numel() * 4 for tensor in adapter_tensors(model, "adapter0").values())
    print(json.dumps({
        "loaded": resident_bytes() - before, "peak": resident_bytes(peak=True) - before, "linear_weights": weight_bytes(model),
        "adapter": size,
    }))


def write_base(folder):
    """A BERT-base of random weights as a model folder."""
    from model.bert import BertConfig, BertForQuestionAnswering
    from model.saving import save_weights

    save_weights(BertForQuestionAnswering(BertConfig(vocab_size=30522)), folder)


def main(argv=None):
    """Measure every row and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.row:
        folder, quant, adapters = options.row
        measure(folder, quant or None, int(adapters))
        return 0
    from model.source import resolve_model

    print("| what | loaded | at most | Linear weights | one adapter |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as base:
        write_base(base)
        for name, (model, quant, adapters) in ROWS.items():
            folder = base if model == "base" else resolve_model(model).folder
            argv = [sys.executable, "-m", "bench.memory", "--row", str(folder), quant or "", str(adapters)]
            done = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
            row = json.loads(done.stdout.splitlines()[-1])
            print("| " + " | ".join([name, *(f"{value / 1e6:.1f} MB" for value in row.values())]) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
