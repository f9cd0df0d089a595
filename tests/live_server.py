"""Servers for tests, on loopback and a free port: serve.py as a process of its own, or an application in a thread."""

import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from serving.app import create_app
from serving.queue import AnswerQueue
from serving.run import listen
from serving.service import Service

ROOT = Path(__file__).parents[1]
WAIT_SECONDS = 120  # for a process to listen; torch alone may take many seconds to import on a busy machine


class GatedReader:
    """A Reader whose forward passes wait while `gate` is closed.

    passes: steps begun, those that find nothing left to do included. sizes: questions of each call of `steps`.
    A question "break" raises a ValueError that repeats its context.
    """

    def __init__(self, reader):
        self.reader, self.passes, self.sizes = reader, 0, []
        self.gate, self.begun = threading.Event(), threading.Semaphore(0)

    def __getattr__(self, name):
        return getattr(self.reader, name)

    def steps(self, examples, **options):
        self.sizes.append(len(examples))
        for example in examples:
            if example.question == "break":
                raise ValueError(example.context)
        steps = self.reader.steps(examples, **options)
        yield next(steps)
        while True:
            self.passes += 1
            self.begun.release()
            assert self.gate.wait(WAIT_SECONDS)
            try:
                finished = next(steps)
            except StopIteration as end:
                return end.value
            yield finished


@contextmanager
def live(reader, *, capacity=64, tokens_per_batch=6144, lanes=1, seconds=60.0, documents=None, **guard):
    """The application around `reader` in a thread; yields (url, queue)."""
    queue = AnswerQueue(reader, capacity=capacity, tokens_per_batch=tokens_per_batch, lanes=lanes)
    service = Service(reader, queue, name="tiny", seconds=seconds, max_top_k=20)
    app = create_app(service, documents=documents, version="test", **{"max_bytes": 1_000_000} | guard)
    socket = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}", queue
    finally:
        server.should_exit = True
        thread.join()
        queue.close()


class Process:
    """serve.py with some flags. Use as a context; `url` is where it listens, `output` a file of all that it wrote."""

    def __init__(self, output, *flags, port=0):
        self.output = output
        self.command = [sys.executable, ROOT / "serve.py", "--device", "cpu", "--precision", "fp32", "--port", port, *flags]

    def __enter__(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with open(self.output, "wb") as file:
            self.process = subprocess.Popen(
                list(map(str, self.command)), stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment
            )
        done = threading.Event()
        timer = threading.Timer(WAIT_SECONDS, done.set)
        timer.start()
        while not (found := re.search(r"listening on (http://\S+:(\d+))", self.output.read_text())):
            if done.wait(0.05) or self.process.poll() is not None:
                self.process.kill()
                raise AssertionError(f"serve.py does not listen:\n{self.output.read_text()}")
        timer.cancel()
        self.url, self.port = found[1], int(found[2])
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
