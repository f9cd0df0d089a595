"""From the command line to an answer: python -m bench.startup

Whole processes by turns, wall clock, beside a bare `import torch`; the first of each does not count.
"""

import argparse
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from bench.pairs import take_turns
from bench.report import at_least, measuring
from common.errors import InputError

ROOT = Path(__file__).parents[1]
BARE, ANSWER = 'python -c "import torch"', "python infer.py --question … --context …"
PROCESSES = {
    BARE: ["-c", "import torch"],
    ANSWER: ["infer.py", "--question", "Who built the mill?", "--context",
             "The mill was built by Ada Stone in 1807. It stands in Riga."],
    "python infer.py --help": ["infer.py", "--help"],
    "python train.py --help": ["train.py", "--help"],
}


def seconds_of(arguments):
    """Wall-clock seconds of one process; InputError when it fails."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{' '.join(arguments[:2])} ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return time.perf_counter() - began


@measuring("bench.startup")
def main(argv=None):
    """Print the table and what an answer takes more than the import; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="of each process (default 7)")
    options = parser.parse_args(argv)
    at_least(1, rounds=options.rounds)
    turns = take_turns([partial(seconds_of, arguments) for arguments in PROCESSES.values()], options.rounds + 1)
    taken = {name: seconds[1:] for name, seconds in zip(PROCESSES, turns, strict=True)}
    print("| process | median | least and greatest |\n|---|---|---|")
    for name, seconds in taken.items():
        print(f"| `{name}` | {statistics.median(seconds):.2f} s | {min(seconds):.2f} to {max(seconds):.2f} |")
    more = [answer - bare for bare, answer in zip(taken[BARE], taken[ANSWER], strict=True)]
    print(f"an answer takes {statistics.median(more):.2f} s more than the import ({min(more):.2f} to {max(more):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
