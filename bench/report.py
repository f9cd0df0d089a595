"""What bench's commands share: refusals, and what bench.train and bench.answer say of their sides, as a table and as JSON."""

import importlib.util
import os
import platform
import sys

from bench.pairs import compare, padding
from common.errors import InputError
from common.output import in_a_sentence


def measuring(program):
    """`in_a_sentence` for a command that keeps nothing of what it has measured."""
    return in_a_sentence(program, "interrupted; what was measured so far is lost")


def at_least(least, **numbers):
    """InputError for an option below `least`, or that is no number."""
    for name, values in numbers.items():
        for value in values if isinstance(values, (list, tuple)) else [values]:
            if not least <= value < float("inf"):
                raise InputError(f"--{name.replace('_', '-')} {value:g}: expected a number of at least {least:g}")


def require(*packages):
    """InputError where a peer is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"{package} is not installed here, and the comparison needs it: "
                "python -m pip install -c constraints.txt -e '.[bench]'"
            )


def cores():
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def describe(answers, last, flops, ceiling):
    """A side's numbers. flops: of all timed pieces' real tokens. ceiling: FLOP/s of the machine in its precision."""
    seconds = sum(answer["seconds"] for answer in answers)
    return last | {
        "tokens_per_second": sum(answer["tokens"] for answer in answers) / seconds, "padding": padding(answers),
        "gemm_share": flops / seconds / ceiling, "idle_cpu_seconds": max(one["idle_cpu_seconds"] for one in answers),
    }


def row(what, ours, peer, answers, sides):
    """One comparison as JSON: ratios and rates, and of each side what `describe` gave. answers, sides: by name."""
    found = {"what": what} | compare(answers[ours], answers[peer])
    described = {"ours": sides[ours], "peer": sides[peer]}
    keys = [key for key in sides[ours] if key in sides[peer]]
    return found | {key: {side: values[key] for side, values in described.items()} for key in keys}


def ratio_line(row):
    """The row for a person."""
    low, high = row["ratio_spread"]
    return f"{row['what']}: {row['ratio_median']:.2f} times ({low:.2f} to {high:.2f} over {len(row['ratios'])} pairs)"


def table(unit, rates, sides, columns):
    """Lines of Markdown, a side each. rates: side -> units per second. columns: title -> function of a side."""
    titles = ["side", f"{unit}/s", "tokens/s", "peak memory", "padding", "of the matrix rate", *columns]
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "---|" * len(titles)
    for name, side in sides.items():
        cells = [
            name, f"{rates[name]:.2f}", f"{side['tokens_per_second']:,.0f}", f"{side['peak_bytes'] / 1e9:.2f} GB",
            f"{side['padding']:.1%}", f"{side['gemm_share']:.1%}", *(str(column(side)) for column in columns.values()),
        ]
        yield "| " + " | ".join(cells) + " |"


def whole(rows, **common):
    """What --json writes: the first row at the top, further ones in `more_rows`, and what is common to them."""
    machine = {"python": platform.python_version(), "platform": platform.platform(), "cores": cores()}
    return {**rows[0], "more_rows": rows[1:], **common, "machine": machine}


def round_said(sides, pairs):
    """For `take_turns`: a line on stderr after each round."""
    return lambda number: print(f"round {number} of {pairs}: {', '.join(sides)}", file=sys.stderr, flush=True)
