"""How far our logits are from transformers' on real questions: one JSON object on stdout.

    python -m bench.parity --data squad-v1.1-dev.json --questions 200

The questions are spread evenly over the file, their windows shuffled into ragged padded batches, and both
models run them in fp32 on the CPU; only real tokens are compared. The two models read the same folder, each
with its own code; only a span head that the folder lacks is made by ours (seeded) and copied over. Theirs
runs twice: "sdpa" calls the same fused kernel as ours, "eager" computes attention step by step.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch

from common.errors import InputError
from data.batches import to_tensors
from data.readers import read_dataset
from data.tokenizer import load_tokenizer
from data.windows import WindowSet, WindowSettings
from model.source import resolve_model
from model.weights import load_model


def parse(argv):
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.parity", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, metavar="FILE", help="questions, in any format train.py reads")
    add("--questions", type=int, default=200, metavar="N", help="how many of them (default 200)")
    add("--model", default="minilm", help="as for train.py (default minilm)")
    add("--batch-size", type=int, default=8, metavar="N", help="windows in a batch (default 8)")
    add("--seed", type=int, default=0, help="of the windows' order and of a new head (default 0)")
    options = parser.parse_args(argv)
    for name in ("questions", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def both_models(folder, seed):
    """Ours and transformers' BertForQuestionAnswering from one folder, in fp32, with one head."""
    import transformers

    transformers.logging.set_verbosity_error()  # it would warn of the head that is copied below
    torch.manual_seed(seed)
    ours, report = load_model(folder)
    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.BertForQuestionAnswering.from_pretrained(folder, dtype=torch.float32)
    if report.head_is_new:
        theirs.qa_outputs.load_state_dict(ours.qa_outputs.state_dict())
    return ours.eval(), theirs.eval(), report


@torch.inference_mode()
def compare(ours, theirs, windows, order, batch_size):
    """Differences, sizes and agreement of both models' logits on the real tokens of all windows.

    order: indices of windows. Returns a dict of numbers; logits are compared as start and end, fp32.
    """
    worst, total, largest, real, padded, agreeing = 0.0, 0.0, 0.0, 0, 0, 0
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        arrays = windows.fill(chosen)
        batch, mask = to_tensors(arrays, "cpu"), torch.from_numpy(arrays["attention_mask"])
        inputs = {name: batch[name] for name in ("input_ids", "token_type_ids")}
        reference = theirs(**inputs, attention_mask=mask.long())
        ends = ours(**inputs, attention_mask=batch["attention_mask"])
        for mine, other in zip(ends, (reference.start_logits, reference.end_logits), strict=True):
            difference = (mine - other)[mask].abs()
            worst = max(worst, difference.max().item())
            total += difference.sum().item()
            largest = max(largest, other[mask].abs().max().item())
            best = [logits.masked_fill(~mask, float("-inf")).argmax(-1) for logits in (mine, other)]
            agreeing += int((best[0] == best[1]).sum())
        real += int(mask.sum())
        padded += mask.numel()
    return {
        "max_abs_difference": worst,
        "mean_abs_difference": total / (2 * real),
        "max_abs_logit": largest,
        "same_argmax": agreeing / (2 * len(order)),
        "tokens": real,
        "padding": 1 - real / padded,
    }


def main(argv=None):
    """Print the comparison; returns the exit code."""
    options = parse(argv)
    try:
        examples = read_dataset(options.data).examples
        source = resolve_model(options.model)
        ours, theirs, report = both_models(source.folder, options.seed)
        tokenizer = load_tokenizer(source.folder, ours.config.vocab_size)
        spread = np.linspace(0, len(examples), min(options.questions, len(examples)), endpoint=False)
        examples = [examples[int(k)] for k in spread]
        windows = WindowSet(examples, tokenizer, WindowSettings(), with_labels=False)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    import transformers

    order = np.random.default_rng(options.seed).permutation(len(windows))
    began = time.perf_counter()
    result = {}
    for attention in ("sdpa", "eager"):
        theirs.set_attn_implementation(attention)
        result[attention] = compare(ours, theirs, windows, order, options.batch_size)
    result |= {
        "max_abs_difference": max(result[attention]["max_abs_difference"] for attention in result),
        "questions": len(examples),
        "windows": len(windows),
        "batch_size": options.batch_size,
        "model": options.model,
        "head": "new" if report.head_is_new else "from the folder",
        "seconds": round(time.perf_counter() - began, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
