"""Runs small enough to be repeated many times: a few dozen windows, and a process that starts runs quickly."""

import json
import os
import subprocess
import sys
from pathlib import Path

from data.examples import Answer, Example

ROOT = Path(__file__).parents[1]
WINDOW = 64

# Imports torch once (and _dynamo, which its optimizers import late); every line on stdin then becomes a process of
# its own that runs train.main, where {"kill": [module, function, n]} asks for SIGKILL in place of the n-th call; with
# {"ranks": N} it becomes N of them, as torchrun starts them, and the last is the one that is killed.
# Answers with the list of process ids, then with that of exit codes, a line each.
NURSERY = """
import importlib, json, os, signal, socket, sys
import torch._dynamo, tqdm, train, training.evaluate, training.folder, training.measure, training.progress, training.run, training.setup, training.state, training.step, training.sharding
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
for line in sys.stdin:
    job = json.loads(line)
    pids, port, size = [], free_port(), job["ranks"]
    for rank in range(size):
        pid = os.fork()
        pids.append(pid)
        if pid:
            continue
        for number, name in ((0, os.devnull), (1, job["stdout"]), (2, job["stderr"])):
            mark = f".{rank}" if rank and number else ""
            os.dup2(os.open(name + mark, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        if size > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if job["kill"] and rank == size - 1:
            module, function, left = job["kill"]
            module = importlib.import_module(module)
            def killing(*arguments, original=getattr(module, function), left=[left], **options):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **options)
            setattr(module, function, killing)
        module, _, function = job["call"].partition(":")
        try:
            code = getattr(importlib.import_module(module), function)(job["argv"])
        except SystemExit as end:
            code = end.code
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        os._exit(code)
    print(json.dumps(pids), flush=True)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps(codes), flush=True)
"""


class Nursery:
    """Starts runs without waiting for torch's import. Use as a context; one run at a time."""

    def __init__(self, folder):
        self.out, self.err = folder / "stdout", folder / "stderr"

    def __enter__(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            cwd=self.out.parent,
        )
        return self

    def __exit__(self, *_):
        self.process.communicate()

    def start(self, argv, kill=None, ranks=1, call="train:main"):
        """Begin a run, or another function's; returns its process id, that of the first rank."""
        job = {"argv": list(map(str, argv)), "kill": kill, "stdout": str(self.out), "stderr": str(self.err),
               "ranks": ranks, "call": call}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())[0]

    def wait(self):
        """The exit code of the run begun last, -9 after SIGKILL; a list of them for several ranks."""
        codes = json.loads(self.process.stdout.readline())
        return codes if len(codes) > 1 else codes[0]

    def run(self, argv, kill=None, ranks=1, call="train:main"):
        """Begin a run and wait for its exit code or codes."""
        self.start(argv, kill, ranks, call)
        return self.wait()

    def errors(self, ranks=1):
        """What each rank wrote on stderr."""
        paths = [self.err, *(self.err.with_name(f"{self.err.name}.{rank}") for rank in range(1, ranks))]
        return [path.read_text(encoding="utf-8") for path in paths]


def paragraph(number):
    """A context of 20 to 110 words with an answer near its end."""
    answer = f"{number * 3 + 5} years"
    context = "The river runs past the old mill. " * (2 + number * 7 % 11) + f"A miller lived there for {answer}."
    return context, answer


def squad(numbers, with_null=True):
    """A SQuAD file's contents: for each number a paragraph and a question, and one without an answer."""
    paragraphs = []
    for number in numbers:
        context, answer = paragraph(number)
        questions = [{
            "id": f"has-{number}", "question": "How long did the miller live there?",
            "answers": [{"text": answer, "answer_start": context.index(answer)}],
        }]
        if with_null:
            questions.append({"id": f"no-{number}", "question": "Who was king?", "answers": [], "is_impossible": True})
        paragraphs.append({"context": context, "qas": questions})
    return {"version": "test", "data": [{"title": "Mills", "paragraphs": paragraphs}]}


def write_squad(path, numbers, with_null=True):
    """Write `squad` to a file; returns its path."""
    path.write_text(json.dumps(squad(numbers, with_null)), encoding="utf-8")
    return path


def examples(numbers):
    """The answerable questions of `squad` as Examples."""
    for number in numbers:
        context, answer = paragraph(number)
        references = (Answer(answer, context.index(answer)),)
        yield Example(f"has-{number}", "How long did the miller live there?", context, references, f"data[{number}]")


def arguments(folder, model, out, /, **changes):
    """Flags of a run on train.json and dev.json of `folder`; a change of None takes a flag out."""
    flags = {
        "train": folder / "train.json", "dev": folder / "dev.json", "model": model, "out": out, "precision": "fp32",
        "device": "cpu", "window_length": WINDOW, "batch_size": 5, "lr": 0.002, "save_every": 3,
        "tokens_per_micro_batch": 200,
    } | changes
    argv = []
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        argv += [] if value is None else [flag] if value is True else [flag, str(value)]
    return argv


def read_log(run):
    """The records of a run's log.jsonl."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def results(run):
    """What must be the same: weights and the other files of model/, predictions, scores, losses."""
    metrics = json.loads((run / "metrics.json").read_text())
    timed = {"train_seconds", "eval_seconds", "windows_per_second", "tokens_per_second", "peak_memory_bytes",
             "seconds_per_question"}
    evaluations = [{k: v for k, v in e.items() if k not in timed} for e in metrics.pop("evaluations")]
    log = [{k: v for k, v in record.items() if k != "seconds"} for record in read_log(run)]
    last = run / "checkpoints" / f"step-{metrics['steps']:08d}" / "model.safetensors"
    paths = [*(run / "model").iterdir(), *run.glob("*_*.json"), run / "predictions.json", last]
    files = {str(path.relative_to(run)): path.read_bytes() for path in paths}
    assert len(files) == 5 + 3 + 1 and "model/model.safetensors" in files
    return files, {k: v for k, v in metrics.items() if k not in timed}, evaluations, log
