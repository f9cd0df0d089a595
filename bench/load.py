"""A server under more load than it can bear: python -m bench.load --model FOLDER

Starts serve.py on loopback itself and asks nobody else. First a few clients that each wait for their answers find the rate
it can sustain; then questions are sent at `--factor` times that rate, whether or not answers come, for `--seconds`. Said
at the end: answers a second then and before, how many were refused with 503 and how quickly, whether each answer is
the one that the model gives alone, and the server's memory from beginning to end. docs/results.md has the numbers.
"""

import argparse
import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np

from common.errors import InputError
from data.readers import read_dataset
from answering.reader import Reader

ROOT = Path(__file__).parents[1]
SAMPLE = [ROOT / "data" / "sample" / "train.json"]
START_SECONDS = 180
MAX_SECONDS = 3600
CLOSE = 0.02  # two candidates whose probabilities are this close may change places when the batch is another one


def expected_answers(model, examples, precision):
    """{question id: (places of the best spans, their probabilities)} of the model on its own."""
    reader = Reader.load(model, precision=precision, device="cpu")
    return {
        prediction.id: ([(s.start, s.end) for s in prediction.spans], [s.probability for s in prediction.spans])
        for prediction in reader.predict(examples)
    }


def is_right(reply, expected):
    """Whether an answer is the best one, or as good as the best one."""
    places, probabilities = expected
    place = reply["start"], reply["end"]
    return place in places and probabilities[places.index(place)] >= probabilities[0] - CLOSE


class Tally:
    """What came of the requests of one phase."""

    def __init__(self):
        self.outcomes, self.seconds = Counter(), {"answered": [], "refused": []}

    async def ask(self, client, example, expected):
        """One request, from sending to tallying."""
        began = time.perf_counter()
        try:
            reply = await client.post("/api/qa", json={"question": example.question, "context": example.context})
        except httpx.TransportError as error:
            self.outcomes[type(error).__name__] += 1
            return
        took = time.perf_counter() - began
        if reply.status_code == 200:
            self.outcomes["answered" if is_right(reply.json(), expected[example.id]) else "wrong"] += 1
            self.seconds["answered"].append(took)
        elif reply.status_code == 503 and "retry-after" in reply.headers:
            self.outcomes["refused"] += 1
            self.seconds["refused"].append(took)
        else:
            self.outcomes[f"status {reply.status_code}"] += 1

    def percentiles(self, outcome):
        values = self.seconds[outcome]
        if not values:
            return "none"
        return ", ".join(f"p{p} {np.percentile(values, p):.3f} s" for p in (50, 95, 99))


async def sustainable(client, examples, expected, clients, seconds):
    """Answers a second that `clients` get who each wait for their answer before they ask again."""
    tally, end = Tally(), time.perf_counter() + seconds

    async def one(number):
        while time.perf_counter() < end:
            await tally.ask(client, examples[number % len(examples)], expected)
            number += clients

    began = time.perf_counter()
    await asyncio.gather(*map(one, range(clients)))
    return tally.outcomes["answered"] / (time.perf_counter() - began), tally


async def overload(client, examples, expected, rate, seconds, sample_memory):
    """Send `rate` questions a second for `seconds`, on time; wait for what is still out. Gives (Tally, seconds)."""
    tally, out, began, number = Tally(), set(), time.perf_counter(), 0
    while (now := time.perf_counter() - began) < seconds:
        while number < now * rate:
            task = asyncio.create_task(tally.ask(client, examples[number % len(examples)], expected))
            out.add(task)
            task.add_done_callback(out.discard)
            number += 1
        sample_memory(now)
        await asyncio.sleep(0.01)
    await asyncio.gather(*out)
    return tally, time.perf_counter() - began


def resident_bytes(pid):
    """Memory that a process has in RAM (Linux)."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


def start_server(options, output):
    """(process, url) of a serve.py that listens."""
    command = [
        sys.executable, ROOT / "serve.py", "--model", options.model, "--port", "0", "--queue", str(options.queue),
        "--precision", options.precision, "--device", "cpu",
    ]
    process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        output.seek(0)
        if found := re.search(rb"listening on (http://127\.0\.0\.1:\d+)", output.read()):
            return process, found[1].decode()
        time.sleep(0.1)
    process.kill()
    process.wait()
    output.seek(0)
    last = output.read().decode(errors="replace").strip().rpartition("\n")[2]
    raise InputError(f"the server does not listen; the last it said: {last}")


async def measure(options, url, pid, examples, expected):
    """Print what happens; the number of things that should not have happened."""
    memory = []

    def sample_memory(now):
        if not memory or now - memory[-1][0] >= 1:
            memory.append((now, resident_bytes(pid)))

    limits = httpx.Limits(max_connections=options.queue + 200)
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=120, limits=limits) as client:
        warm = min(options.warm_seconds, options.seconds)
        rate, before = await sustainable(client, examples, expected, options.clients, warm)
        print(f"sustained: {rate:.1f} answers a second, {options.clients} clients, {before.percentiles('answered')}", flush=True)
        tally, took = await overload(
            client, examples, expected, options.factor * rate, options.seconds, sample_memory
        )
    answered = tally.outcomes["answered"] / took
    print(f"at {options.factor:g} times that for {options.seconds:g} s: {answered:.1f} answers a second; {dict(tally.outcomes)}")
    print(f"answered in {tally.percentiles('answered')}; refused in {tally.percentiles('refused')}")
    settled = [size for now, size in memory if now >= 0.1 * options.seconds]
    print(f"memory: {memory[0][1] / 1e6:.0f} MB at first, then {min(settled) / 1e6:.0f} to {max(settled) / 1e6:.0f}, "
          f"{settled[-1] / 1e6:.0f} at the end")
    expected_outcomes = {"answered", "refused"}
    return sum(n for phase in (before, tally) for what, n in phase.outcomes.items() if what not in expected_outcomes)


def main(argv=None):
    """Run it; exit code 0, 1 when an answer was wrong or a request failed otherwise than by 503, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of a reader")
    parser.add_argument("--data", nargs="+", default=SAMPLE, metavar="FILE", help="questions to ask")
    parser.add_argument("--questions", type=int, default=200, help="different ones")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--warm-seconds", type=float, default=60, help="to find the sustainable rate")
    parser.add_argument("--factor", type=float, default=4)
    parser.add_argument("--clients", type=int, default=16, help="that wait for their answers, in the first phase")
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args(argv)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped then too
    try:
        if not 0 < options.seconds <= MAX_SECONDS:
            raise InputError(f"--seconds: expected more than 0 and at most {MAX_SECONDS}")
        examples = read_dataset(options.data).examples[: options.questions]
        expected = expected_answers(options.model, examples, options.precision)
        with tempfile.NamedTemporaryFile(prefix="bareqa-load-", suffix=".log") as output:
            process, url = start_server(options, output)
            try:
                faults = asyncio.run(measure(options, url, process.pid, examples, expected))
            finally:
                process.send_signal(signal.SIGTERM)
                code = process.wait(120)
        print(json.dumps({"faults": faults, "server_exit_code": code}))
        return 1 if faults or code else 0
    except InputError as error:
        print(f"bench.load: {error}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
