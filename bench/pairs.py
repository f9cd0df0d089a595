"""Programs timed by turns, so that whatever else the machine does meets them all; and what is made of the seconds."""

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Worker:
    """A process of its own that does one piece of work each time it is told to; answers are JSON lines on its stdout.

    command: its arguments; it runs `serve` in the repository root. It says {"ready": true} when all is loaded; to
    "work" it answers with a dictionary after a piece, to "end" with a last one. As a context it is gone afterwards.
    """

    def __init__(self, command, environment=None):
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | (environment or {}), start_new_session=True,  # Ctrl-C is this process's business
        )
        self.listen()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """End it without a word."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def listen(self):
        line = self.process.stdout.readline()
        if not line:
            code, command = self.process.wait(), " ".join(self.process.args)
            raise SystemExit(f"a worker ended early with exit code {code}: {command}")
        return json.loads(line)

    def ask(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.listen()

    def end(self):
        """Its last words; the process is gone afterwards."""
        last = self.ask("end")
        self.process.communicate()
        return last


def serve(build):
    """The worker's side, until it is told to end or nobody is left who could tell it.

    build: called once, returns (work, last). work() does the next piece and returns what it did beside its seconds;
    last() returns the last words. What they print goes to stderr. Each answer also says how long the processors worked
    for this process while it should have been idle (`idle_cpu_seconds`), which would have slowed the others.
    """
    voice = sys.stdout

    def say(answer):
        print(json.dumps(answer), file=voice, flush=True)

    with redirect_stdout(sys.stderr):
        work, last = build()
        say({"ready": True})
        rested = time.process_time()
        for word in sys.stdin:
            if word.strip() == "end":
                say(last())
                return 0
            idle, began = time.process_time() - rested, time.perf_counter()
            done = work()
            say({"seconds": time.perf_counter() - began, "idle_cpu_seconds": idle, **done})
            rested = time.process_time()
    return 0


def fastest(commands, held, warm=2):
    """Start a Worker for each of {name: (command, environment)}; returns (name, Worker) of the fastest, the others end.

    Each does `warm` pieces, of which the last is what is compared; so does a single one, which stands as it is: all
    sides have then done the same pieces. held: an ExitStack that the Worker is given to.
    """
    best = None
    for name, (command, environment) in commands.items():
        worker = held.enter_context(Worker(command, environment))
        seconds = [worker.ask("work")["seconds"] for _ in range(warm)][-1]
        this = (seconds, name, worker)
        if best is None or seconds < best[0]:
            best, slower = this, best
        else:
            slower = this
        if slower:
            slower[2].stop()
    return best[1:]


def take_turns(sides, rounds, after=None):
    """[answers of each side] after `rounds` pieces of each, by turns. sides: what is called for a piece.

    Every round begins with the next side, so that none always comes after the same other. after: called at the end of
    each round with its number from 1 on.
    """
    found = [[] for _ in sides]
    for number in range(rounds):
        for place in range(len(sides)):
            side = (number + place) % len(sides)
            found[side].append(sides[side]())
        if after:
            after(number + 1)
    return found


def work_by_turns(workers, rounds, after=None):
    """{name: answers} of {name: Worker} after `rounds` pieces of each."""
    turns = take_turns([partial(worker.ask, "work") for worker in workers.values()], rounds, after)
    return dict(zip(workers, turns, strict=True))


def rate(answer):
    """Units of work per second of one piece."""
    return answer["units"] / answer["seconds"]


def compare(ours, peer):
    """What --json holds of two lists of answers: rates, and ours over the peer pair by pair."""
    ratios = [rate(one) / rate(other) for one, other in zip(ours, peer, strict=True)]
    return {
        "ratios": ratios,
        "ratio_median": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        "ours": statistics.median(map(rate, ours)),
        "peer": statistics.median(map(rate, peer)),
    }


def padding(answers):
    """The share of computed tokens that were padding."""
    real, padded = (sum(answer[key] for answer in answers) for key in ("tokens", "padded_tokens"))
    return 1 - real / padded
