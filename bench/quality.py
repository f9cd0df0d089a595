"""Seconds to a score, from start to end, beside transformers: python -m bench.quality --train FILE… --dev FILE --out DIR

Both sides are whole processes: they start, read and tokenise, learn one epoch of the first --windows windows, answer the development set and
score it. Both begin from the same weights, head included. The peer is bench/run_qa.py; ours is train.py twice: with the peer's settings (rate, batch
size, dropout), before the peer's run, and with its own defaults, after it, so that a machine whose pace changes shows.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench.report import at_least, measuring, require
from common.errors import InputError
from common.files import check_target, read_json, write_json

ROOT = Path(__file__).parents[1]
THEIRS = ["--batch-size", "12", "--lr", "3e-5", "--warmup", "0", "--weight-decay", "0", "--references", "first"]
PEER = "transformers, run_qa.py's settings"


def parse(argv):
    """The command line; needs no torch."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__.split("\n")[0])
    parser.add_argument("--train", nargs="+", required=True, metavar="FILE", help="questions to learn from, SQuAD-like")
    parser.add_argument("--dev", required=True, metavar="FILE", help="questions to score on, as SQuAD v1.1 has them")
    parser.add_argument("--windows", type=int, default=8000, metavar="N", help="learned from, the first ones (default 8000)")
    parser.add_argument("--window-length", type=int, default=384, metavar="N", help="tokens (default 384)")
    parser.add_argument("--model", metavar="FOLDER", help="a BERT's folder instead of MiniLM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the runs; new")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    return parser.parse_args(argv)


def read_both(options):
    """(examples to learn from, examples to score on); InputError where one has no answer."""
    from data.readers import read_dataset
    from training.run import read_split

    examples = read_split(options.train, None, 0, False, "training").examples, read_dataset([options.dev], misaligned="keep").examples
    for path, part in zip((options.train[0], options.dev), examples, strict=True):
        if lacking := [one for one in part if not one.answers]:
            raise InputError(f"{path}: {lacking[0].where}: has no answer, and the scores are SQuAD v1.1's: all need one")
    return examples


def first_windows(options, examples, start):
    """(the first examples that make --windows windows, how many they make)."""
    from data.tokenizer import load_tokenizer
    from data.windows import WindowSet, WindowSettings

    settings = WindowSettings(options.window_length, overlap=min(128, options.window_length // 3))
    windows = WindowSet(examples, load_tokenizer(start), settings, with_labels=True, references="first")
    last = int(windows.example[: options.windows][-1])
    return examples[: last + 1], int((windows.example <= last).sum())


def write_squad(examples, path):
    """Write examples as a file that both sides read."""
    paragraphs = [
        {"context": one.context, "qas": [{
            "id": one.id, "question": one.question,
            "answers": [{"text": answer.text, "answer_start": answer.start} for answer in one.answers],
        }]}
        for one in examples
    ]
    write_json(path, {"version": "1.1", "data": [{"title": "", "paragraphs": paragraphs}]})


def timed(argv):
    """Seconds that a program took as a whole; InputError when it fails."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, argv)], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    if done.returncode:
        raise InputError(f"{' '.join(map(str, argv))} ended with exit code {done.returncode}")
    return time.perf_counter() - began


def our_side(options, start, train, dev, out, flags):
    """(seconds, {id: answer}) of train.py."""
    overlap = min(128, options.window_length // 3)
    seconds = timed([
        "train.py", "--train", train, "--dev", dev, "--model", start, "--epochs", 1, "--seed", options.seed,
        "--window-length", options.window_length, "--window-overlap", overlap, "--device", "cpu", "--out", out, *flags,
    ])
    return seconds, read_json(out / "predictions.json")


def peer_side(options, start, train, dev, out):
    """(seconds, {id: answer}) of the peer."""
    seconds = timed(["-m", "bench.run_qa", start, train, dev, out, options.seed, options.window_length])
    return seconds, read_json(out)


def score(examples, predictions):
    """(exact match, F1) by the official arithmetic, the same for all sides."""
    from metrics import evaluate_v1
    from training.evaluate import references_of

    scores = evaluate_v1(references_of(examples), predictions)
    return scores["exact_match"], scores["f1"]


def compare(options):
    """The rows of all sides, in the order they ran: {side: {seconds, exact_match, f1}}, and the number of windows."""
    from bench.train import write_start

    learned, asked = read_both(options)
    start, train, dev = (options.out / name for name in ("start", "train.json", "dev.json"))
    start.mkdir(parents=True)
    options.shape = "minilm"
    try:
        write_start(options, start)
    except InputError:
        shutil.rmtree(options.out)
        raise
    learned, windows = first_windows(options, learned, start)
    write_squad(learned, train)
    write_squad(asked, dev)
    sides = {
        "ours, the peer's settings": lambda: our_side(options, start, train, dev, options.out / "ours", THEIRS),
        PEER: lambda: peer_side(options, start, train, dev, options.out / "peer.json"),
        "ours, train.py's defaults": lambda: our_side(options, start, train, dev, options.out / "defaults", []),
    }
    rows = {}
    for name, side in sides.items():
        seconds, predictions = side()
        exact, f1 = score(asked, predictions)
        rows[name] = {"seconds": seconds, "exact_match": exact, "f1": f1}
        print(f"{name}: {seconds:,.0f} s, exact match {exact:.2f}, F1 {f1:.2f}", file=sys.stderr, flush=True)
    return rows, windows


@measuring("bench.quality")
def main(argv=None):
    """Compare, print the table, write --json; returns the exit code."""
    options = parse(argv)
    require("transformers")
    at_least(1, windows=options.windows, window_length=options.window_length)
    if options.out.exists():
        raise InputError(f"{options.out}: is there already; choose another --out")
    if options.json:
        check_target(options.json)
    rows, windows = compare(options)
    peer = rows[PEER]["seconds"]
    print(f"{windows:,} windows, one epoch\n| side | seconds | of the peer's | EM | F1 |\n|---|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['seconds']:,.0f} | {row['seconds'] / peer:.3f} | {row['exact_match']:.2f} | {row['f1']:.2f} |")
    if options.json:
        write_json(options.json, {"windows": windows, "sides": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
