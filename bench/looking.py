"""What looking inside costs those who do not look: python -m bench.looking

Processes of their own answer the same questions by turns, A B A B (bench/pairs.py), and are held against the first:

    plain     a reader that nobody looked into
    again     another such: how far two equal programs are apart on this machine
    looked    one on which all of inside/ was used before
    eager     one that answers by the attention that looking uses, instead of the fused one

Looking must cost nothing afterwards: `looked` should differ from `plain` no more than `again` does.
"""

import argparse
import hashlib
import json
import sys
from functools import partial
from pathlib import Path

from bench.pairs import Worker, compare, serve, work_by_turns
from common.errors import InputError
from common.pages import keep_pages

KINDS = ("plain", "again", "looked", "eager")
SAMPLE = Path(__file__).parents[1] / "data/sample/dev.json"


def look_everywhere(reader, example):
    """Use everything of inside/ that puts hooks on a model, on one question."""
    from inside.ablation import Unit, predict_without, rank_heads
    from inside.attention import look
    from inside.case import Case
    from inside.difference import difference
    from inside.explain import explain
    from inside.patching import patch
    from inside.trace import trace

    case = Case(reader, example.question, example.context)
    explain(case)  # why, lens, saliency, attention and times
    rank_heads(case), predict_without(case, [Unit(0, 0), Unit(0)]), look(case, 0, 0), trace(case)
    patch(case, Case(reader, "Who?", example.context)), difference(case, case)


def prepare(reader, kind, example):
    """Make of a fresh Reader what KINDS says."""
    if kind == "looked":
        look_everywhere(reader, example)
    elif kind == "eager":
        from model.attention import eager_attention

        reader.model.bert.forward = partial(reader.model.bert.forward, attention=eager_attention)


def hooks(model):
    """How many forward hooks are on a model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def work_as(kind, options):
    """The worker's side: answer all questions at each word."""
    from inside.command import open_reader, read_sample

    def build():
        keep_pages()  # as `infer.py --predict` does; looking would otherwise teach the allocator to, and seem to help
        examples = read_sample([options.data], options.questions, 0)
        reader = open_reader(options)
        prepare(reader, kind, examples[0])
        answers = []

        def work():
            predictions = list(reader.predict(examples))
            answers[:] = [(span.start, span.end) for one in predictions for span in one.spans[:1]]
            return {"units": len(examples)}

        def last():
            return {"answers": hashlib.sha256(json.dumps(answers).encode()).hexdigest(), "hooks": hooks(reader.model)}

        return work, last

    return serve(build)


def worker(kind, options):
    """A process that does what KINDS says."""
    common = [options.data, "--questions", options.questions, "--device", options.device, "--precision", options.precision]
    common += [] if options.model is None else ["--model", options.model]
    return Worker([sys.executable, "-m", "bench.looking", *map(str, common), "--as", kind])


def measure(options):
    """{kind: `compare` of it over plain, with what both said at their end}."""
    with worker("plain", options) as plain:
        found = {}
        for kind in KINDS[1:]:
            with worker(kind, options) as ours:
                work_by_turns({kind: ours, "plain": plain}, 1)  # which does not count
                done = work_by_turns({kind: ours, "plain": plain}, options.pairs)
                found[kind] = compare(done[kind], done["plain"]) | {"last": ours.end()}
        end = plain.end()
    return {kind: one | {"plain": end} for kind, one in found.items()}


def main(argv=None):
    """Print a line for each kind; returns the exit code, 1 when looking left something behind."""
    parser = argparse.ArgumentParser(prog="python -m bench.looking", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("data", nargs="?", type=Path, default=SAMPLE, metavar="FILE", help="questions; unset: the sample's dev set")
    add("--model", help="a run's folder, a model folder, a hub id; unset: as infer.py chooses")
    add("--questions", type=int, default=100, help="of FILE, answered in each piece of work (default 100)")
    add("--pairs", type=int, default=12, help="of pieces, after one each that does not count (default 12)")
    add("--device", default="auto")
    add("--precision", default="auto")
    add("--json", action="store_true", help="print one JSON object")
    add("--as", dest="kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    try:
        if options.kind is not None:
            return work_as(options.kind, options)
        found = measure(options)
    except InputError as error:
        print(f"bench.looking: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(found))
    else:
        for kind, one in found.items():
            low, high = one["ratio_spread"]
            print(f"{kind:7} {one['ratio_median']:.3f} of plain's rate, {low:.3f} to {high:.3f} in {options.pairs} pairs; "
                  f"{one['ours']:.1f} and {one['peer']:.1f} questions/s")
    left = found["looked"]
    if left["last"]["hooks"] or left["last"]["answers"] != left["plain"]["answers"]:
        print(f"looking left something behind: {left['last']}, and plain has {left['plain']}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
