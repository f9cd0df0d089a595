"""Compare what --tune offers: python -m bench.methods --train FILE… --held-out FILE --score FILE --out DIR

Every row (full, head, bitfit, lora on query and value, lora on all linear layers, dora, qlora, prompt) is trained at
three learning rates; the rate is chosen on the held-out questions and that run alone is scored on a fixed sample of
--score. With --halve all three go half of the way, and only the one of the lowest training loss goes on. Runs are
ordinary runs of train.py under DIR: what is finished is not repeated, what was interrupted goes on, so rows may be
trained side by side by two of these. Then their times say nothing: --cost N takes seconds and memory from runs of N
steps of their own, one after the other.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from common.errors import InputError

ROOT = Path(__file__).parents[1]
LORA = ["--tune", "lora", "--lora-rank", "16", "--lora-alpha", "32"]
ALL = ["--lora-targets", "all-linear"]
ROWS = {  # name: flags, learning rates
    "full": (["--tune", "full"], (1e-4, 2e-4, 4e-4)),
    "head": (["--tune", "head"], (1e-3, 3e-3, 1e-2)),
    "bitfit": (["--tune", "bitfit"], (5e-4, 1e-3, 2e-3)),
    "lora-qv": (LORA, (5e-4, 1e-3, 2e-3)),
    "lora-all": ([*LORA, *ALL], (5e-4, 1e-3, 2e-3)),
    "dora-all": ([*LORA, *ALL, "--dora"], (5e-4, 1e-3, 2e-3)),
    "qlora-all": ([*LORA, *ALL, "--tune", "qlora"], (5e-4, 1e-3, 2e-3)),
    "prompt": (["--tune", "prompt"], (3e-3, 1e-2, 3e-2)),
}


def run_folder(options, row, rate):
    """Where the run of one row and rate lives."""
    return options.out / f"{row}-{rate:g}"


def losses(folder):
    """The training losses of a run so far, a step each."""
    log = folder / "log.jsonl"
    if not log.is_file():
        return []
    return [json.loads(line)["loss"] for line in log.read_text(encoding="utf-8").splitlines()]


def run(out, flags, steps, until=None):
    """Train the run `out` to its end, or to step `until` or a little beyond, or go on with it; its metrics or None.

    flags: of train.py, for a run that is not begun yet, beside what all runs have in common.
    """
    if not (out / "metrics.json").is_file():
        begun = (out / "config.json").is_file()
        fresh = ["--max-steps", steps, "--batch-size", 16, "--dropout", 0, "--attention-dropout", 0, *flags]
        argv = [sys.executable, ROOT / "train.py", "--out", out, "--resume", *([] if begun else fresh)]
        process = subprocess.Popen(list(map(str, argv)))
        while process.poll() is None:
            if until and len(losses(out)) >= until:
                process.terminate()  # which train.py answers with a checkpoint
                process.wait()
                return None
            time.sleep(0.1 if until else 1)
        if process.returncode:
            raise InputError(f"{out}: the training ended with exit code {process.returncode}; run this again to go on")
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def train(options, row, rate, until=None):
    """The run of a row and rate; see `run`. InputError when --out holds it with other steps or another seed."""
    out = run_folder(options, row, rate)
    if (out / "config.json").is_file():
        begun = json.loads((out / "config.json").read_text(encoding="utf-8"))["options"]
        if (begun["max_steps"], begun["seed"]) != (options.steps, options.seed):
            raise InputError(f"{out}: holds a run of other steps or seed; choose another --out")
    data = ["--train", *options.train, "--dev", options.held_out, "--eval-every", options.steps]
    return run(out, [*data, "--seed", options.seed, "--lr", rate, *ROWS[row][0]], options.steps, until)


def cost(options, row):
    """(seconds that --steps take, peak bytes) by a run of --cost steps; its first tenth, the warm-up, does not count."""
    out = options.out / f"cost-{row}"
    data = ["--train", *options.train, "--dev", options.held_out, "--max-dev-examples", 20]
    metrics = run(out, [*data, "--seed", options.seed, *ROWS[row][0]], options.cost)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    counted = [line["seconds"] for line in lines if line["updated"]][options.cost // 10 :]
    return options.steps * sum(counted) / len(counted), metrics["peak_memory_bytes"]


def best_at_half(options, row):
    """The rate whose mean loss from a third of the steps to half of them is the lowest, after training all so far."""
    half, found = options.steps // 2, {}
    for rate in ROWS[row][1]:
        out = run_folder(options, row, rate)
        if len(losses(out)) < half:
            train(options, row, rate, until=half)
        part = losses(out)[options.steps // 3 : half]
        found[rate] = sum(part) / len(part)
    print(json.dumps({"row": row, "loss_at_half": {f"{rate:g}": loss for rate, loss in found.items()}}), flush=True)
    return min(found, key=found.get)


def bytes_on_disk(folder):
    """Of the weights in a run's model/."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))


def score(reader, path, questions=None):
    """{"exact", "f1", "questions"} of a Reader on a file, or on so many of its questions, always the same ones."""
    from training.evaluate import evaluate
    from training.run import read_split

    examples = read_split([path], questions, 0, False, "scoring").examples
    lacking = any(not example.answers for example in examples)
    threshold = reader.settings.null_threshold
    scores = evaluate(reader, examples, may_lack_answer=lacking, threshold=threshold, tune=False).scores
    return {"exact": scores["exact"], "f1": scores["f1"], "questions": len(examples)}


def main(argv=None):
    """Train what is missing, print the table, write table.json; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description=__doc__.split("\n")[0])
    parser.add_argument("--train", nargs="+", type=Path, required=True, metavar="FILE")
    parser.add_argument("--held-out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--score", type=Path, required=True, metavar="FILE")
    parser.add_argument("--questions", type=int, default=2000, help="of --score, the same ones always")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--halve", action="store_true", help="stop two of three rates half-way")
    parser.add_argument("--cost", type=int, metavar="N", help="take seconds and memory from runs of N steps each")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(argv)
    try:
        show(options, compare(options))
    except InputError as error:
        print(f"bench.methods: {error}", file=sys.stderr)
        return 2
    return 0


def compare(options):
    """Train what is missing and score the chosen runs; returns the rows of the table."""
    from answering.reader import Reader
    from training.run import read_split

    for path in (*options.train, options.held_out, options.score):
        read_split([path], None, 0, False, "the comparison")  # a slip in the last file should not show after hours
    table = []
    for row in options.rows:
        rates = ROWS[row][1]
        if options.halve:
            rates = [best_at_half(options, row)]
        runs = {rate: train(options, row, rate) for rate in rates}
        best = max(runs, key=lambda rate: runs[rate]["f1"])
        folder, metrics = run_folder(options, row, best), runs[best]
        seconds, peak = metrics["train_seconds"], metrics["peak_memory_bytes"]
        if options.cost:
            seconds, peak = cost(options, row)
        scores = score(Reader.load(folder / "model"), options.score, options.questions)
        table.append({
            "row": row, "lr": best, **scores,
            "held_out_f1": {f"{rate:g}": run["f1"] for rate, run in runs.items()},
            "trainable_parameters": metrics["trainable_parameters"], "train_seconds": seconds,
            "peak_memory_bytes": peak, "bytes_on_disk": bytes_on_disk(folder / "model"),
        })
        print(json.dumps(table[-1]), flush=True)
    return table


def show(options, table):
    """Write table.json and print it as Markdown."""
    (options.out / "table.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print("| method | lr | EM | F1 | trainable | seconds | peak memory | on disk |\n|---|---|---|---|---|---|---|---|")
    for r in table:
        print(
            f"| {r['row']} | {r['lr']:g} | {r['exact']:.2f} | {r['f1']:.2f} | {r['trainable_parameters']:,} | "
            f"{r['train_seconds']:.0f} | {r['peak_memory_bytes'] / 1e9:.2f} GB | {r['bytes_on_disk'] / 1e6:.2f} MB |"
        )


if __name__ == "__main__":
    sys.exit(main())
