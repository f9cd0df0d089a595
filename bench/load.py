"""A server under more load than it can bear: python -m bench.load --model FOLDER

Starts serve.py on loopback itself and asks nobody else. First a few clients that each wait for their answers find the rate
it can sustain; then questions are sent at `--factor` times that rate, whether or not answers come, for `--seconds`; then
the few clients come again, since a machine's own pace may change meanwhile. Said at the end: answers a second under the load
beside those before and after it, how many were refused with 503 and how quickly, whether each answer is the one that
the model gives alone, and the server's memory from beginning to end. Then, under the load again, the server is killed and
started anew: until it is back clients may see broken connections, and never a wrong answer. docs/results.md has the numbers.
"""

import argparse
import asyncio
import json
import math
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from common.errors import InputError
from common.memory import resident_bytes
from data.readers import read_dataset
from answering.reader import Reader

ROOT = Path(__file__).parents[1]
SAMPLE = [ROOT / "data" / "sample" / "train.json"]
START_SECONDS = 180
MAX_SECONDS = 3600
CLOSE = 0.02  # two candidates whose probabilities are this close may change places when the batch is another one
CLOSE_ODDS = 0.2  # likewise the null odds and the threshold
KILL_SECONDS = 5  # of load before the kill
ANSWERED, REFUSED, WRONG = "answered", "refused", "wrong"
BROKEN_CONNECTION = {"ConnectError", "ReadError", "RemoteProtocolError", "WriteError"}


@dataclass(frozen=True, slots=True)
class Expected:
    """What the model says alone. places, probabilities: of its best spans; nothing: by how much, in null odds, "no
    answer" wins: below 0 where it does not, infinite where only one of the two can be.
    """

    places: list
    probabilities: list
    nothing: float


def expected_answers(model, examples, precision):
    """{question id: Expected} of the model on its own."""
    reader = Reader.load(model, precision=precision, device="cpu")
    threshold = reader.settings.null_threshold
    return {
        prediction.id: Expected(
            [(s.start, s.end) for s in prediction.spans], [s.probability for s in prediction.spans],
            margin(prediction, threshold),
        )
        for prediction in reader.predict(examples)
    }


def margin(prediction, threshold):
    """Expected.nothing of a Prediction."""
    if not prediction.spans:
        return math.inf
    return -math.inf if threshold is None else prediction.null_odds - threshold


def is_right(reply, context, expected):
    """Whether an answer, or that there is none, is what the model says alone, or as good as that."""
    if reply["start"] is None:
        return reply["answer"] == "" and expected.nothing > -CLOSE_ODDS
    place = reply["start"], reply["end"]
    return (
        expected.nothing < CLOSE_ODDS and reply["answer"] == context[slice(*place)] and place in expected.places
        and expected.probabilities[expected.places.index(place)] >= expected.probabilities[0] - CLOSE
    )


class Tally:
    """What came of the requests of one phase. client_seconds: what asking took of a core, which the server lacked."""

    def __init__(self):
        self.client_seconds = 0.0
        self.outcomes, self.seconds = Counter(), {ANSWERED: [], REFUSED: []}

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
            try:
                right = is_right(reply.json(), example.context, expected[example.id])
            except (ValueError, KeyError, TypeError):  # half of an answer
                right = False
            self.outcomes[ANSWERED if right else WRONG] += 1
            self.seconds[ANSWERED].append(took)
        elif reply.status_code == 503 and "retry-after" in reply.headers:
            self.outcomes[REFUSED] += 1
            self.seconds[REFUSED].append(took)
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

    began, computed = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(one, range(clients)))
    tally.client_seconds = time.process_time() - computed
    return tally.outcomes[ANSWERED] / (time.perf_counter() - began), tally


async def overload(client, examples, expected, rate, goes_on):
    """Send `rate` questions a second, on time, while goes_on(seconds since the first); wait for what is still out.

    Gives (Tally, seconds until the last answer).
    """
    tally, out, began, number, computed = Tally(), set(), time.perf_counter(), 0, time.process_time()
    while goes_on(now := time.perf_counter() - began):
        while number < now * rate:
            task = asyncio.create_task(tally.ask(client, examples[number % len(examples)], expected))
            out.add(task)
            task.add_done_callback(out.discard)
            number += 1
        await asyncio.sleep(0.01)
    await asyncio.gather(*out)
    tally.client_seconds = time.process_time() - computed
    return tally, time.perf_counter() - began


def most_by_tenths(memory, seconds):
    """The largest size in each tenth of `seconds` that has one, of [(seconds since the beginning, size)]."""
    parts = {}
    for now, size in memory:
        part = min(int(10 * now / seconds), 9)
        parts[part] = max(size, parts.get(part, 0))
    return [parts[part] for part in sorted(parts)]


class Server:
    """serve.py on a free port of loopback, as a process of its own. output: a file for all that it says."""

    def __init__(self, options, output):
        self.options, self.output, self.port = options, output, 0
        self.start()

    def start(self):
        """Start it, again on the same port, and wait until it listens; InputError when it does not."""
        options, began = self.options, self.output.seek(0, 2)
        command = [
            sys.executable, ROOT / "serve.py", "--model", options.model, "--port", self.port, "--queue", options.queue,
            "--precision", options.precision, "--device", "cpu",
        ]
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=self.output, stderr=self.output, stdin=subprocess.DEVNULL
        )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            if found := re.search(rb"listening on (http://127\.0\.0\.1:(\d+))", self.said(began)):
                self.url, self.port = found[1].decode(), int(found[2])
                return
            time.sleep(0.1)
        self.kill()
        last = self.said(began).decode(errors="replace").strip().rpartition("\n")[2]
        raise InputError(f"the server does not listen; the last it said: {last}")

    def said(self, began):
        with open(self.output.name, "rb") as file:
            file.seek(began)
            return file.read()

    def kill(self):
        """SIGKILL: nothing is finished, nothing is said."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


async def killed(server, client, examples, expected, rate):
    """(Tally of the load while the server is killed in the middle of it and comes back, seconds that it was away)."""
    away = []

    async def kill_and_start():
        await asyncio.sleep(KILL_SECONDS)
        began = time.perf_counter()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        away.append(time.perf_counter() - began)

    task = asyncio.create_task(kill_and_start())
    tally, _ = await overload(client, examples, expected, rate, lambda now: not task.done())
    await task
    return tally, away[0]


async def measure(options, server, examples, expected):
    """Print what happens; the number of things that should not have happened."""
    memory = []

    def goes_on(now):
        if not memory or now - memory[-1][0] >= 1:
            memory.append((now, resident_bytes(pid=server.process.pid)))
        return now < options.seconds

    limits = httpx.Limits(max_connections=options.queue + 200)
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=120, limits=limits) as client:
        warm = min(options.warm_seconds, options.seconds)
        rate, before = await sustainable(client, examples, expected, options.clients, warm)
        print(f"sustained: {rate:.1f} answers a second, {options.clients} clients, {before.percentiles(ANSWERED)}", flush=True)
        rate = max(rate, 1 / warm)  # where nothing was answered in time
        tally, took = await overload(client, examples, expected, options.factor * rate, goes_on)
        answered = tally.outcomes[ANSWERED] / took
        again, later = await sustainable(client, examples, expected, options.clients, warm)
        print(f"at {options.factor:g} times that for {options.seconds:g} s: {answered:.1f} answers a second; then "
              f"{again:.1f} sustained again; kept: {100 * kept(answered, rate, again):.0f} %; {dict(tally.outcomes)}")
        print(f"answered in {tally.percentiles(ANSWERED)}; refused in {tally.percentiles(REFUSED)}; the asking itself took "
              f"{tally.client_seconds / took:.2f} of a core, {before.client_seconds / warm:.2f} before")
        print(f"memory in MB: {memory[0][1] / 1e6:.0f} at first; most in each tenth of the time: "
              f"{', '.join(f'{size / 1e6:.0f}' for size in most_by_tenths(memory, options.seconds))}", flush=True)
        during, away = await killed(server, client, examples, expected, options.factor * rate)
        print(f"killed under that load, and back after {away:.1f} s: {dict(during.outcomes)}", flush=True)
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=120) as client:
        _, after = await sustainable(client, examples, expected, options.clients, warm / 4)
        print(f"after that: {dict(after.outcomes)}")
    return (
        faults(before, {ANSWERED}) + faults(tally, {ANSWERED, REFUSED}) + faults(later, {ANSWERED})
        + faults(after, {ANSWERED}) + faults(during, {ANSWERED, REFUSED, *BROKEN_CONNECTION})
    )


def kept(loaded, before, after):
    """The share of a rate that is left under load: beside the mean of the rates before and after."""
    mean = (before + after) / 2
    return loaded / mean if mean else 0.0


def faults(tally, allowed):
    """How many requests ended in another way."""
    return sum(count for outcome, count in tally.outcomes.items() if outcome not in allowed)


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
            server = Server(options, output)
            try:
                found = asyncio.run(measure(options, server, examples, expected))
            finally:
                code = server.stop()
        print(json.dumps({"faults": found, "server_exit_code": code}))
        return 1 if found or code else 0
    except InputError as error:
        print(f"bench.load: {error}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
