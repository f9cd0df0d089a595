"""Hold `train.py --plan` against reality: python -m bench.plans --train FILE --dev FILE --out DIR

Each of CONFIGURATIONS is planned in one process and then run in another; the table gives both, and their ratio. They were
written down before the first was measured, and nothing in training/plan.py was fitted to them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from bench.report import measuring
from common.errors import InputError
from data.readers import read_dataset

ROOT = Path(__file__).parents[1]
CALM = ["--dropout", "0", "--attention-dropout", "0"]
CONFIGURATIONS = {
    "full, 16 windows": ["--max-steps", "120", *CALM],
    "full with dropout, 8 windows, fp32": ["--max-steps", "120", "--batch-size", "8", "--precision", "fp32"],
    "full, 64 windows of 128 tokens": ["--max-steps", "90", "--batch-size", "64", "--window-length", "128", "--window-overlap",
                                       "64", *CALM],
    "LoRA on all linear layers, 32 windows, micro-batches of 2,048": [
        "--max-steps", "100", "--tune", "lora", "--lora-targets", "all-linear", "--lora-rank", "16", "--batch-size", "32",
        "--tokens-per-micro-batch", "2048", *CALM],
    "QLoRA, 16 windows": ["--max-steps", "120", "--tune", "qlora", *CALM],
    "head alone, 48 windows": ["--max-steps", "120", "--tune", "head", "--batch-size", "48", *CALM],
}


def run(argv):
    """(what train.py printed, seconds from start to end); InputError with what it said when it fails."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *argv], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise InputError(f"train.py {' '.join(argv)} ended with exit code {done.returncode}: {done.stderr[-2000:].strip()}")
    return done.stdout, time.perf_counter() - began


def seconds_of(text):
    """Seconds of "75.6 min", "3.2 s" or "2.1 h"."""
    number, unit = text.split()
    return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]


def foretold(printed):
    """(seconds in all, bytes) of a plan's text."""
    seconds = re.search(r"^time: ([\d.]+ (?:s|min|h)) in all", printed, re.M)[1]
    return seconds_of(seconds), float(re.search(r"^memory: ([\d.]+) GB", printed, re.M)[1]) * 1e9


@measuring("bench.plans")
def main(argv=None):
    """Plan and run each configuration, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.plans", description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=Path, required=True, metavar="FILE", help="questions to learn from")
    parser.add_argument("--dev", type=Path, required=True, metavar="FILE", help="questions to score on")
    parser.add_argument("--model", default="minilm", help="as train.py takes it (default minilm)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the runs; new")
    options = parser.parse_args(argv)
    if options.out.exists():
        raise InputError(f"{options.out}: is there already; choose another --out")
    for path in (options.train, options.dev):
        read_dataset([path])
    measure(options)
    return 0


def measure(options):
    """Print the table, a line when its configuration is done."""
    print("| configuration | foretold | took | ratio | memory foretold | took | ratio |\n|---|---|---|---|---|---|---|")
    for number, (name, flags) in enumerate(CONFIGURATIONS.items()):
        out = options.out / str(number)
        flags = ["--train", str(options.train), "--dev", str(options.dev), "--model", options.model, "--out", str(out), *flags]
        seconds, memory = foretold(run([*flags, "--plan"])[0])
        _, took = run(flags)
        held = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["peak_memory_bytes"]
        print(
            f"| {name} | {seconds:.0f} s | {took:.0f} s | {seconds / took:.2f} | {memory / 1e9:.2f} GB | {held / 1e9:.2f} GB | "
            f"{memory / held:.2f} |", flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
