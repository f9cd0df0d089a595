"""Training timed beside transformers on the same windows: python -m bench.train --data FILE --recipe tuned

Each side is a process of its own that trains a piece (--steps steps) when it is its turn: ours, peer, peer, ours, …
after two pieces that do not count. Both begin from the same weights, head included, take the same windows in the same
batches (those of recipe `shipped` in random order) at the same rates, and at the end say their loss on the same
held-out windows. What the two recipes of the peer are stands in bench/learners.py.
"""

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from bench.report import at_least, measuring
from common.errors import InputError

BATCH = {"shipped": 12, "tuned": 32}  # as run_qa.py's README has it, and what suits two cores
RATE = {"shipped": 3e-5, "tuned": 1e-4}  # of full fine-tuning
ADAPTER_RATE = 1e-3
SHAPES = {  # of random weights: hidden size, layers, heads, feed-forward size
    "bert-base": (768, 12, 12, 3072),
    "bert-large": (1024, 24, 16, 4096),
}
NEEDED = {"full": (), "lora": ("peft",), "qlora": ("peft", "bitsandbytes", "accelerate")}
SQUAD_WINDOWS, SQUAD_LENGTH = 88_524, 384  # that run_qa.py makes of train-v1.1.json
BARE = "ours, no attention dropout"


def parse(argv):
    """The command line; needs no torch."""
    parser = argparse.ArgumentParser(prog="python -m bench.train", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="FILE", help="questions to learn from")
    add("--held-out", metavar="FILE", help="questions for the loss at the end; unset: taken out of --data")
    add("--held-out-windows", type=int, default=512, metavar="N", help="of them (default 512)")
    add("--questions", type=int, default=6000, metavar="N", help="of --data, drawn by the seed (default 6000)")
    add("--tune", choices=("full", "lora", "qlora"), default="full", help="lora: rank 8 on query and value")
    add("--recipe", choices=("shipped", "tuned"), default="tuned", help="of the peer (default tuned)")
    add("--pairs", type=int, default=7, metavar="N", help="timed pieces of each side (default 7)")
    add("--steps", type=int, default=8, metavar="N", help="optimizer steps of a piece (default 8)")
    add("--threads", type=int, nargs="+", metavar="N",
        help="tried for the peer, the fastest is taken; ours takes the largest (default: 1 and all cores)")
    add("--batch-size", type=int, metavar="N", help="windows of a step (default 12 for shipped, 32 for tuned)")
    add("--window-length", type=int, default=384, metavar="N", help="tokens (default 384)")
    add("--lr", type=float, help="peak rate (default 3e-5 shipped, 1e-4 tuned, 1e-3 for adapters)")
    add("--dropout", type=float, default=0.1, help="of hidden values and of attention, both sides (default 0.1)")
    add("--without-attention-dropout", action="store_true", help=f"a further side, \"{BARE}\", and its row")
    add("--shape", choices=("minilm", *SHAPES), default="minilm", help="MiniLM's weights, or random ones of that shape")
    add("--model", metavar="FOLDER", help="a BERT's folder instead of --shape")
    add("--device", default="cpu", help="cpu (default) or cuda")
    add("--seed", type=int, default=0)
    add("--ours", default="", metavar="FLAGS", help="train.py's flags for our side, so: --ours=\"--no-checkpointing\"")
    add("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args(argv)
    counts = ("pairs", "steps", "questions", "held_out_windows", "batch_size", "window_length", "threads")
    at_least(1, **{name: value for name in counts if (value := getattr(options, name)) is not None})
    return options


def write_start(options, folder):
    """Fill a folder with the model that both sides start from, its span head by the seed; returns its config."""
    import torch

    from answering.reader import Reader
    from data.tokenizer import load_tokenizer, save_tokenizer
    from model.bert import BertConfig, BertForQuestionAnswering
    from model.source import resolve_model
    from model.saving import save_weights

    torch.manual_seed(options.seed)
    source = resolve_model(options.model or "minilm").folder
    if options.model or options.shape == "minilm":
        reader = Reader.load(source, device="cpu", precision="fp32")
        config = reader.model.config
        if getattr(config, "model_type", "llama") != "bert" or reader.adapter is not None:
            raise InputError(f"{options.model}: both sides train a BERT here, and this is no folder of one")
        if options.window_length > config.positions:
            raise InputError(f"--window-length {options.window_length}: the model has {config.positions} positions")
        reader.save(folder)
        return config
    tokenizer = load_tokenizer(source)
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = BertConfig(tokenizer.get_vocab_size(), **dict(zip(sizes, SHAPES[options.shape], strict=True)))
    save_weights(BertForQuestionAnswering(config), folder)
    save_tokenizer(tokenizer, folder)
    return config


def make_job(options, start):
    """The Job that the options describe."""
    from bench.learners import Job

    rate = RATE[options.recipe] if options.tune == "full" else ADAPTER_RATE
    return Job(
        start=str(start), data=[str(Path(path).resolve()) for path in options.data],
        held_out=options.held_out and str(Path(options.held_out).resolve()), questions=options.questions,
        held_out_windows=options.held_out_windows, tune=options.tune, recipe=options.recipe,
        batch_size=options.batch_size or BATCH[options.recipe], steps=options.steps, pieces=2 + options.pairs,
        window_length=options.window_length, lr=options.lr or rate, dropout=options.dropout,
        attention_dropout=options.dropout, device=options.device, seed=options.seed, ours=options.ours,
    )


def commands(job, side, threads, folder):
    """{name: (command, environment)} of one side at each number of threads, for `fastest`."""
    path = folder / f"{side}-{job.attention_dropout}.json"
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")
    base = [sys.executable, "-m", "bench.learners", side, path]
    return {number: ([*base, number], {"OMP_NUM_THREADS": str(number)}) for number in threads}


def check_same_work(answers):
    """Refuse to compare sides that did not learn from the same windows: a fault of the benchmark."""
    done = {name: [(one["units"], one["tokens"]) for one in given] for name, given in answers.items()}
    assert len({str(work) for work in done.values()}) == 1, f"the sides did different work: {done}"


def measure(options, job, config, folder):
    """Time all sides; returns (answers by side, last words by side, {precision: FLOP/s})."""
    import torch

    from bench.gemm import ceiling
    from bench.learners import ours_options, split_examples
    from bench.pairs import fastest, work_by_turns
    from bench.report import cores, round_said
    from model.precision import choose_device, choose_precision

    told = ours_options(job)  # a slip in --ours shows before anything is started
    learned, _ = split_examples(job)
    threads = sorted({*(options.threads or (1, cores()))})
    torch.set_num_threads(threads[-1])
    peer = f"transformers, {options.recipe}"
    jobs = {"ours": job} | ({BARE: replace(job, attention_dropout=0.0)} if options.without_attention_dropout else {})
    precisions = {job.peer_precision, choose_precision(told.precision, choose_device(told.device))}
    rows = min(6144, job.batch_size * min(job.window_length, 176))
    rates = {precision: 0.0 for precision in sorted(precisions)}
    said = round_said([*jobs, peer], options.pairs)

    def after(number):
        for precision in rates:
            rates[precision] = max(rates[precision], ceiling(config, rows, precision, options.device, rounds=3))
        said(number)

    print(f"{len(learned)} questions; warming up", file=sys.stderr, flush=True)
    with ExitStack() as held:
        workers, used = {}, {}
        for name, one in jobs.items():
            used[name], workers[name] = fastest(commands(one, "ours", threads[-1:], folder), held)
        used[peer], workers[peer] = fastest(commands(job, "peer", threads, folder), held)
        answers = work_by_turns(workers, options.pairs, after)
        check_same_work(answers)
        last = {name: worker.end() | {"threads": used[name]} for name, worker in workers.items()}
    return answers, last, rates


@measuring("bench.train")
def main(argv=None):
    """Compare, print the table, write --json; returns the exit code."""
    options = parse(argv)
    from bench.report import require

    require("transformers", *NEEDED[options.tune])
    from common.files import check_target

    if options.json:
        check_target(options.json)
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name:
        folder = Path(name)
        (folder / "start").mkdir()
        config = write_start(options, folder / "start")
        job = make_job(options, folder / "start")
        report(options, job, config, *measure(options, job, config, folder))
    return 0


def report(options, job, config, answers, last, rates):
    """Print the table and the ratios, and write --json."""
    from bench.gemm import encoder_flops
    from bench.pairs import rate
    from bench.report import describe, ratio_line, row, table, whole
    from common.files import write_json

    sides, frozen = {}, options.tune != "full"
    for name, given in answers.items():
        flops = encoder_flops(config, sum(one["tokens"] for one in given), frozen=frozen)
        sides[name] = describe(given, last[name], flops, rates[last[name]["precision"]])
    peer = list(sides)[-1]
    rows = [row(f"{name} beside {peer}", name, peer, answers, sides) for name in sides if name != peer]
    medians = {name: statistics.median(map(rate, given)) for name, given in answers.items()}
    columns = {
        "threads": lambda side: side["threads"], "precision": lambda side: side["precision"],
        "held-out loss": lambda side: f"{side['held_out_loss']:.4f}",
    }
    print(f"--tune {options.tune}, batches of {job.batch_size}, dropout {job.dropout:g}, {options.pairs} pairs of "
          f"{job.steps} steps, {job.total_steps} steps of each side in all")
    print("\n".join(table("windows", medians, sides, columns)))
    print("\n".join(map(ratio_line, rows)))
    if options.window_length == SQUAD_LENGTH:
        print("; ".join(f"{name}: {2 * SQUAD_WINDOWS / median / 60:.1f} min" for name, median in medians.items())
              + f", for two epochs of SQuAD v1.1 ({SQUAD_WINDOWS:,} windows each) if these windows were like its own")
    print("matrix rate: " + ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in rates.items()))
    if options.json:
        write_json(options.json, whole(rows, job=asdict(job), matrix_flops_per_second=rates))


if __name__ == "__main__":
    sys.exit(main())
