"""Two programs timed by turns, A B A B, so that whatever else the machine does meets both; and what is made of the seconds."""

import json
import os
import statistics
import subprocess
import sys
import time


class Worker:
    """A process of its own that does one piece of work each time it is told to; answers are JSON lines on its stdout.

    command: its arguments. It says {"ready": true} when all is loaded; to "warm" and "work" it answers with a
    dictionary after a piece, to "end" with a last one.
    """

    def __init__(self, command, environment=None):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | (environment or {})
        )
        self.listen()

    def listen(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended early with exit code {self.process.wait()}: {' '.join(self.process.args)}")
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


def serve(work, last):
    """The worker's side: call `work()` at each word, which returns what it did beside its seconds; `last()` at the end."""
    print(json.dumps({"ready": True}), flush=True)
    for word in sys.stdin:
        if word.strip() == "end":
            print(json.dumps(last()), flush=True)
            return 0
        began = time.perf_counter()
        done = work()
        print(json.dumps({"seconds": time.perf_counter() - began, **done}), flush=True)
    return 0


def alternate(ours, peer, pairs, warm=1):
    """([answer of ours, …], [of peer, …]): `warm` pieces each that do not count, then `pairs` pairs by turns.

    Every second pair begins with the peer, so that neither always comes after the other.
    """
    for _ in range(warm):
        ours("warm"), peer("warm")
    found = ([], [])
    for pair in range(pairs):
        order = ((ours, 0), (peer, 1)) if pair % 2 == 0 else ((peer, 1), (ours, 0))
        for run, side in order:
            found[side].append(run("work"))
    return found


def rate(answer):
    """Units of work per second of one piece."""
    return answer["units"] / answer["seconds"]


def compare(ours, peer):
    """What --json holds of two lists of answers: rates, and ours over the peer's, pair by pair, above 1 when ours is faster."""
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


def peak_bytes():
    """Most memory this process held."""
    import torch

    from training.measure import peak_memory_bytes

    return peak_memory_bytes(torch.device("cpu"))
