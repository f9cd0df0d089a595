"""Bytes per step on the wire and predicted efficiency, as docs/scaling.md has them: python -m bench.scaling

Shapes are BERT-base's, weights random; nothing is timed. --step-seconds says how long one GPU takes for its windows.
"""

import argparse
import sys

from bench.report import at_least, measuring

SIZES = (1, 8, 64, 512)


def methods():
    """Name -> model with what learns marked, on no memory: full, LoRA, QLoRA."""

    from model.bert import BertConfig, BertForQuestionAnswering
    from model.lora import LoraConfig
    from model.quant import FourBit, quantise
    from model.tune import tune_full, tune_lora

    for name in ("full", "LoRA r 8", "QLoRA r 8"):
        model = BertForQuestionAnswering(BertConfig(vocab_size=30522))
        if name.startswith("QLoRA"):
            quantise(model, FourBit.named("nf4"))
        tune_full(model) if name == "full" else tune_lora(model, LoraConfig(8, 16.0))
        yield name, model


@measuring("bench.scaling")
def main(argv=None):
    """Print two tables; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.split("\n")[0])
    parser.add_argument("--step-seconds", type=float, default=0.1, help="one GPU's step on its windows (default 0.1)")
    parser.add_argument("--between", type=float, default=50e9, help="bytes per second and GPU between machines")
    options = parser.parse_args(argv)
    at_least(1e-9, step_seconds=options.step_seconds, between=options.between)
    from training.wire import Cluster, efficiency, held_bytes, learning_bytes, sent_bytes, sent_bytes_sharded

    cluster = Cluster(between=options.between)
    print("| what | gradients | each rank sends, N = 2 | N = 8 | N = 64 | N = 512 | with --shard, N = 8 |")
    print("|---|---|---|---|---|---|---|")
    found = {}
    for name, model in methods():
        found[name] = gradients = learning_bytes(model)
        sent = " | ".join(f"{sent_bytes(gradients, ranks) / 1e6:.2f} MB" for ranks in (2, 8, 64, 512))
        sharded = "refused" if name.startswith("Q") else f"{sent_bytes_sharded(held_bytes(model), gradients, 8) / 1e6:.1f} MB"
        print(f"| {name} | {gradients / 1e6:.2f} MB | {sent} | {sharded} |")
    print(f"\n| GPUs, {options.step_seconds:g} s a step | " + " | ".join(found) + " |\n|---|" + "---|" * len(found))
    for ranks in SIZES:
        row = (f"{100 * efficiency(ranks, gradients, options.step_seconds, cluster):.1f} %" for gradients in found.values())
        print(f"| {ranks} | " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
