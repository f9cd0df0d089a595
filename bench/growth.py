"""Memory and time as the data grow: python -m bench.growth

Each row is a run of train.py (reading, tokenising, windows, and --steps steps) or of infer.py --predict on as many questions, each
about a text of its own that makes one window; in a process of its own, whose peak is what metrics.json says of it. Training takes
--model; answering takes a tiny random model with the same tokenizer, since its memory does not depend on the weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.report import at_least, measuring
from common.errors import InputError
from common.files import check_target, read_json, write_json

ROOT = Path(__file__).parents[1]
SIZES = (1000, 3000, 10_000, 30_000, 100_000)
WORDS = 110  # of a text
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


def corpus_words():
    """All words of the sample corpus's texts, in order."""
    texts = (
        paragraph["context"] for article in read_json(ROOT / "data/sample/train.json")["data"]
        for paragraph in article["paragraphs"]
    )
    return [word for text in texts for word in text.split()]


def write_questions(path, count, seed=0):
    """A SQuAD file of `count` questions about as many texts of WORDS words, drawn from the sample corpus; row by row."""
    words, random = corpus_words(), np.random.default_rng(seed)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"version": "growth", "data": [{"title": "", "paragraphs": [')
        for number in range(count):
            drawn = [words[k] for k in random.integers(0, len(words), WORDS)]
            answer, start = " ".join(drawn[60:63]), len(" ".join(drawn[:60])) + 1
            row = {"context": " ".join(drawn), "qas": [{
                "id": f"q{number}", "question": " ".join(drawn[50:58]) + "?",
                "answers": [{"text": answer, "answer_start": start}],
            }]}
            file.write((", " if number else "") + json.dumps(row, ensure_ascii=False))
        file.write("]}]}")


def write_tiny_reader(folder, model):
    """A reader of random weights, quick to run, with the tokenizer of `model`."""
    import torch

    from data.tokenizer import load_tokenizer, save_tokenizer
    from model.bert import BertConfig, BertForQuestionAnswering
    from model.source import resolve_model
    from model.saving import save_weights

    tokenizer = load_tokenizer(resolve_model(model).folder)
    torch.manual_seed(0)
    folder.mkdir()
    save_weights(BertForQuestionAnswering(BertConfig(tokenizer.get_vocab_size(), **TINY)), folder)
    save_tokenizer(tokenizer, folder)


def run(program, arguments):
    """Run one of the entry points and return its seconds; InputError with what it said when it fails."""
    began = time.perf_counter()
    command = [sys.executable, str(ROOT / program), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise InputError(f"it ended with exit code {done.returncode}: {done.stderr.strip()}")
    return time.perf_counter() - began


def training_row(folder, data, options):
    """A training on `data`: its peak, its seconds before the first step, and per window of its steps."""
    out = folder / "run"
    seconds = run("train.py", [
        "--train", data, "--model", options.model, "--max-steps", options.steps, "--batch-size", options.batch_size, "--out", out,
        "--save-every", options.steps, "--device", "cpu", "--window-length", options.window_length,
    ])
    metrics = read_json(out / "metrics.json")
    steps = metrics["train_seconds"]
    return {
        "peak_bytes": metrics["peak_memory_bytes"], "preparation_seconds": seconds - steps,
        "milliseconds_per_window": 1000 / metrics["windows_per_second"] if metrics["windows_per_second"] else None,
    }


def answering_row(folder, data, reader):
    """Answering all of `data`: its peak, and its time per question."""
    seconds = run("infer.py", ["--model", reader, "--predict", data, "--out", folder / "said", "--device", "cpu"])
    metrics = read_json(folder / "said" / "metrics.json")
    return {
        "peak_bytes": metrics["peak_memory_bytes"], "preparation_seconds": seconds - metrics["eval_seconds"],
        "milliseconds_per_window": 1000 / metrics["windows_per_second"],
    }


def parse(argv):
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of windows")
    parser.add_argument("--steps", type=int, default=200, help="steps at each size (default 200)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--window-length", type=int, default=384)
    parser.add_argument("--model", default="minilm", help="trained, and gives its tokenizer to both (default minilm)")
    parser.add_argument("--only", choices=("training", "answering"), help="one of the two curves")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    return parser.parse_args(argv)


@measuring("bench.growth")
def main(argv=None):
    """Print a row for each size, memory and time relative to the first; returns the exit code."""
    options = parse(argv)
    at_least(1, sizes=options.sizes, steps=options.steps, batch_size=options.batch_size)
    if options.json:
        check_target(options.json)
    curves = measure(options)
    if options.json:
        write_json(options.json, curves)
    return 0


def measure(options):
    """Both curves, {"training" or "answering": rows}, each row printed when it is there."""
    curves = {"training": [], "answering": []}
    print("| what | windows | peak memory | of the first | ms a window | of the first | before and after, s |\n" + "|---" * 7 + "|")
    for kind, rows in curves.items():
        if options.only not in (None, kind):
            continue
        for size in options.sizes:
            with tempfile.TemporaryDirectory(prefix="growth-") as name:
                folder = Path(name)
                write_questions(folder / "data.json", size)
                if kind == "training":
                    row = training_row(folder, folder / "data.json", options)
                else:
                    write_tiny_reader(folder / "reader", options.model)
                    row = answering_row(folder, folder / "data.json", folder / "reader")
            rows.append({"windows": size, **row})
            print(line(kind, rows), flush=True)
    return curves


def line(kind, rows):
    """The newest row as a line of the table."""
    now, first = rows[-1], rows[0]
    memory, pace = now["peak_bytes"] / first["peak_bytes"], now["milliseconds_per_window"]
    paces = "|" if pace is None else f"{pace:.2f} | {pace / first['milliseconds_per_window']:.2f}"
    return (
        f"| {kind} | {now['windows']:,} | {now['peak_bytes'] / 1e6:,.0f} MB | {memory:.2f} | {paces} | "
        f"{now['preparation_seconds']:.1f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
