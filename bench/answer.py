"""Answering timed beside transformers' pipeline and onnxruntime: python -m bench.answer --model FOLDER --data FILE

Each side is a process of its own that answers a piece (--block questions) when it is its turn, the same for all, after
two pieces that do not count. What is timed goes from texts to answers. What the sides are stands in bench/answerers.py.
`exact` is the fastest of ours whose F1 on these questions is that of fp32 within 0.05, `fastest` within 0.3.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.report import at_least, measuring
from common.errors import InputError

ROOT = Path(__file__).parents[1]
OLD_PYTHON = ROOT / ".venv-4.57" / "bin" / "python"
WAYS = ("fp32", "bf16", "int8+fp32", "int8+bf16")
EXACT = "fp32"
ALLOWED = {"exact": 0.05, "fastest": 0.3}  # F1 that a mode may be away from that of EXACT; fastest: below it
PIPELINE, ONNX = "pipeline 4.57", "onnxruntime int8"
PEERS = {"pipeline": PIPELINE, "onnxruntime": ONNX}
DETAILS = {  # of a peer's sides that are tried, from the sizes of batches
    "pipeline": lambda sizes: ("",), "onnxruntime": lambda sizes: [f"{size}{how}" for how in ("", ":lanes") for size in sizes],
}
CEILING_ROWS = 6144  # tokens of a full batch of ours


def parse(argv):
    """The command line; needs no torch."""
    parser = argparse.ArgumentParser(prog="python -m bench.answer", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER", help="a fine-tuned BERT's folder")
    add("--data", required=True, metavar="FILE", help="questions that all have an answer")
    add("--pairs", type=int, default=5, metavar="N", help="timed pieces of each side (default 5)")
    add("--block", type=int, default=800, metavar="N", help="questions of a piece (default 800)")
    add("--peer", nargs="+", choices=PEERS, default=list(PEERS), help="beside whom (default both)")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ours; fp32 is always there (default all)")
    add("--threads", type=int, nargs="+", metavar="N",
        help="tried for the peers, the fastest is taken; ours takes the largest (default: 1 and all cores)")
    add("--batch-tokens", type=int, nargs="+", default=[1536, 6144], metavar="N",
        help="tried for onnxruntime, one batch at a time and one on each core")
    add("--pipeline-python", type=Path, default=OLD_PYTHON, metavar="FILE", help="where transformers is 4.57")
    add("--seed", type=int, default=0, help="of the contexts that are drawn")
    add("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args(argv)
    at_least(1, pairs=options.pairs, block=options.block, threads=options.threads or 1, batch_tokens=options.batch_tokens)
    return options


def check_peers(options):
    """InputError where a peer is not installed."""
    from bench.report import require

    if "onnxruntime" in options.peer:
        require("transformers", "onnx", "onnxscript", "onnxruntime")
    if "pipeline" not in options.peer:
        return
    command = [options.pipeline_python, "-c", "import transformers; print(transformers.__version__)"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    except OSError:
        found = ""
    if not found.startswith("4.57."):
        there = f"transformers {found} is" if found else "no Python with transformers is"
        raise InputError(
            f"--pipeline-python {options.pipeline_python}: {there} there, and the pipeline is that of 4.57; "
            "bench/README.md says how to make that environment, and --peer onnxruntime leaves it out"
        )


def draw(examples, number, seed, source):
    """`number` questions of contexts drawn by the seed, each context's together; InputError if there are fewer."""
    examples = [example for example in examples if example.question.strip()]
    if len(examples) < number:
        raise InputError(f"{source}: {len(examples)} questions, and {number} are wanted; lower --block or --pairs")
    if any(not example.answers for example in examples):
        raise InputError(f"{source}: has questions without an answer, and F1 is by SQuAD v1.1's rules: all need one")
    contexts = {}
    for example in examples:
        contexts.setdefault(example.context, []).append(example)
    order = random.Random(seed).sample(sorted(contexts), len(contexts))
    return [example for context in order for example in contexts[context]][:number]


def commands(options, side, job, threads, details=("",)):
    """{name: (command, environment)} of one side at each number of threads and detail, for `fastest`."""
    python = options.pipeline_python.absolute() if side == "pipeline" else sys.executable
    base = [python, "-m", "bench.answerers"]
    return {
        (number, detail): ([*base, f"{side}:{detail}", job, number], {"OMP_NUM_THREADS": str(number)})
        for number in threads for detail in details if number > 1 or not detail.endswith(":lanes")
    }


def measure(options, job, config):
    """Time all sides; returns (answers by side, last words by side, {precision: FLOP/s})."""
    import torch

    from bench.gemm import ceiling
    from bench.pairs import fastest, work_by_turns
    from bench.report import cores, round_said

    threads = sorted({*(options.threads or (1, cores()))})
    torch.set_num_threads(threads[-1])
    ways = [EXACT, *(way for way in options.ways if way != EXACT)]
    candidates = {f"ours, {way}": commands(options, "ours", job, threads[-1:], [way]) for way in ways}
    for peer in options.peer:
        candidates[PEERS[peer]] = commands(options, peer, job, threads, DETAILS[peer](options.batch_tokens))
    precisions = {way.split("+")[0] for way in ways} | {"fp32"} | ({"int8"} if "onnxruntime" in options.peer else set())
    rates, said = dict.fromkeys(sorted(precisions), 0.0), round_said(candidates, options.pairs)

    def after(number):
        for precision in rates:
            rates[precision] = max(rates[precision], ceiling(config, CEILING_ROWS, precision, rounds=3))
        said(number)

    with ExitStack() as held:
        used, workers = {}, {}
        for name, choices in candidates.items():
            print(f"warming up {name}", file=sys.stderr, flush=True)
            used[name], workers[name] = fastest(choices, held)
        answers = work_by_turns(workers, options.pairs, after)
        last = {name: worker.end() | {"threads": used[name][0]} for name, worker in workers.items()}
        if ONNX in last:
            last[ONNX]["batches"] = used[ONNX][1]
    return answers, last, rates


def scores(examples, answers):
    """EM and F1 of one side's timed answers."""
    from metrics import evaluate_v1
    from training.evaluate import references_of

    texts = {name: text for piece in answers for name, text in piece["answers"].items()}
    found = evaluate_v1(references_of([example for example in examples if example.id in texts]), texts)
    return {"exact_match": found["exact_match"], "f1": found["f1"]}


def choose(mode, sides, rates):
    """Name of the fastest of ours whose F1 is not further from the exact one's than the mode allows."""
    exact, allowed = sides[f"ours, {EXACT}"]["f1"], ALLOWED[mode]
    gaps = {name: exact - side["f1"] for name, side in sides.items() if name.startswith("ours")}
    near = [name for name, gap in gaps.items() if gap <= allowed and (mode == "fastest" or -gap <= allowed)]
    return max(near, key=rates.get)


def report(options, config, examples, answers, last, rates):
    """Print the table and the ratios, and write --json."""
    from bench.gemm import encoder_flops
    from bench.pairs import rate
    from bench.report import describe, ratio_line, row, table, whole
    from common.files import write_json

    sides = {
        name: describe(
            given, last[name] | scores(examples, given),
            encoder_flops(config, sum(one["tokens"] for one in given), learning=False), rates[last[name]["precision"]],
        )
        for name, given in answers.items()
    }
    medians = {name: statistics.median(map(rate, given)) for name, given in answers.items()}
    exact, best = (choose(mode, sides, medians) for mode in ALLOWED)
    wanted = [("exact", exact, PIPELINE), ("fastest", best, PIPELINE), ("fastest", best, ONNX)]
    rows = [
        row(f"{mode} ({name}) beside {peer}", name, peer, answers, sides)
        for mode, name, peer in wanted if peer in sides
    ]
    columns = {
        "threads": lambda side: side["threads"], "EM": lambda side: f"{side['exact_match']:.2f}",
        "F1": lambda side: f"{side['f1']:.2f}",
    }
    print(f"{options.pairs} pieces of {options.block} questions")
    print("\n".join(table("questions", medians, sides, columns)))
    print("\n".join(map(ratio_line, rows)))
    print("matrix rate: " + ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in rates.items()))
    if options.json:
        setup = {"questions": options.pairs * options.block, "block": options.block, "seed": options.seed}
        write_json(options.json, whole(rows, setup=setup, sides=sides, rates=medians, matrix_flops_per_second=rates))


@measuring("bench.answer")
def main(argv=None):
    """Compare, print the table, write --json; returns the exit code."""
    options = parse(argv)
    check_peers(options)
    from bench.export import export_int8
    from common.files import check_target
    from data.readers import read_dataset
    from model.weights import read_config

    if options.json:
        check_target(options.json)
    config = read_config(options.model)
    dataset = read_dataset(options.data, misaligned="keep").examples
    examples = draw(dataset, (2 + options.pairs) * options.block, options.seed, options.data)
    with tempfile.TemporaryDirectory(prefix="bench-answer-") as name:
        job = {
            "model": str(Path(options.model).resolve()), "block": options.block, "onnx": str(Path(name) / "int8.onnx"),
            "questions": [(example.id, example.question, example.context) for example in examples],
        }
        if "onnxruntime" in options.peer:
            export_int8(Path(options.model), job["onnx"])
        path = Path(name) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        report(options, config, examples, *measure(options, path, config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
