"""Runs that are really killed, stopped and continued end with the bits of one that never was."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import train
from tests.tiny_model import make_folder
from tests.tiny_run import ROOT, Nursery, arguments, read_log, results, write_squad

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and fork of POSIX")
STEPS = 30
# with a batch of 5 the last batch of an epoch is ragged; dropout makes random states matter
FLAGS = {"dropout": 0.1, "attention_dropout": 0.1, "eval_every": 7, "eval_first": True, "lr": 0.01, "seed": 6}


@pytest.fixture(autouse=True)
def one_thread():
    """In this process as in those of the nursery: bits are the same for the same number of threads only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Case:
    """A folder with data, an uninterrupted run in whole/ to compare with, and a way to start others."""

    def __init__(self, folder, model, nursery):
        self.folder, self.model, self.nursery = folder, model, nursery
        self.whole = folder / "whole"

    def argv(self, out, **changes):
        return arguments(self.folder, self.model, self.folder / out, **(FLAGS | changes))

    def start(self, out, kill=None):
        return self.nursery.start(self.argv(out), kill)

    def resume(self, out, kill=None):
        return self.nursery.run(self.resuming(out), kill)

    def resuming(self, out):
        """The flags that go on with a run; all of them when it was killed before it could write them down."""
        begun = (self.folder / out / "config.json").exists()
        return ["--resume", "--out", self.folder / out] if begun else self.argv(out, resume=True)

    def wait_for_steps(self, out, count):
        """Return as soon as log.jsonl holds `count` records."""
        log, deadline = self.folder / out / "log.jsonl", time.monotonic() + 60
        while not (log.exists() and log.read_bytes().count(b"\n") >= count):
            assert time.monotonic() < deadline, self.nursery.err.read_text(encoding="utf-8")
            time.sleep(0.001)

    def printed(self):
        return self.nursery.out.read_text(encoding="utf-8")

    def checkpoint(self, out):
        """The step of the newest complete checkpoint, or 0."""
        names = [p.name for p in (self.folder / out / "checkpoints").glob("step-*")]
        return max((int(name[5:]) for name in names), default=0)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    write_squad(folder / "train.json", range(11))
    write_squad(folder / "dev.json", range(5, 11))
    with Nursery(folder) as nursery:
        case = Case(folder, make_folder(folder / "model", initializer_range=0.05), nursery)
        assert nursery.run(case.argv("whole")) == 0, nursery.err.read_text()
        log = read_log(case.whole)
        assert len(log) == STEPS and {5} < {record["windows"] for record in log}
        # it learns, so that best/ is replaced more than once and model/ holds trained weights
        metrics = json.loads((case.whole / "metrics.json").read_text())
        scores = [evaluation["f1"] for evaluation in metrics["evaluations"]]
        assert scores[0] < scores[1] < max(scores)
        yield case


def assert_as_whole(case, out):
    run = case.folder / out
    found, wanted = results(run), results(case.whole)
    assert [record["step"] for record in read_log(run)] == list(range(1, STEPS + 1))
    assert found[1:] == wanted[1:]
    assert found[0] == wanted[0]
    assert not [path for path in run.rglob(".*")]
    shutil.rmtree(run)


def test_a_process_of_its_own_gives_the_same_bits(case):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *case.argv("process")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=case.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"ask it: python infer.py --model {case.folder / 'process' / 'model'}"
    assert_as_whole(case, "process")


@pytest.mark.parametrize("seed", [1, 2])
def test_sigkill_at_random_moments(case, seed):
    """Killed over and over, a little later each time, until a sitting comes to its end."""
    chance, out = random.Random(seed), f"random-{seed}"
    log = case.folder / out / "log.jsonl"
    kills, aim = 0, 0
    while True:
        before, held = case.checkpoint(out), None
        aim += chance.randint(1, 5)
        if log.exists():
            held = read_log(log.parent)[:before]
        pid = case.start(out) if kills == 0 else case.nursery.start(case.resuming(out))
        if aim <= STEPS:
            case.wait_for_steps(out, aim)
            time.sleep(chance.random() * 0.05)
            os.kill(pid, signal.SIGKILL)
        code = case.nursery.wait()
        if held:  # not a step that the checkpoint held was taken again
            assert read_log_whole(log)[:before] == held
            assert f"resuming after step {before}\n" in case.printed() or code == -9
        if code == 0:
            break
        assert code == -9
        kills += 1
    assert kills >= 3
    assert_as_whole(case, out)


def read_log_whole(path):
    """The records of a log whose last line a kill may have torn."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


MOMENTS = [
    *(("os", "fsync", n) for n in (1, 4, 20, 37)),  # while files of results and checkpoints are written
    *(("os", "rename", n) for n in (1, 2, 4, 6)),  # between the renames of best/ and of checkpoints
    *(("os", "replace", n) for n in (1, 2, 9)),  # config.json; a settings file within a folder
    ("shutil", "rmtree", 8),
    ("answering.spans", "best_spans", 3),  # in the midst of an evaluation
    ("training.setup", "write_atomic", 2),  # from here on in the finish: the prediction files,
    ("training.setup", "latency", 1),
    ("training.setup", "parameter_counts", 2),  # and after model/, before metrics.json
    ("training.step", "span_loss", 30),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: "-".join(map(str, moment)))
def test_sigkill_at_chosen_moments(case, moment):
    case.start("chosen", moment)
    assert case.nursery.wait() == -9
    before = case.checkpoint("chosen")
    held = read_log_whole(case.folder / "chosen" / "log.jsonl")[:before] if before else []
    assert case.resume("chosen") == 0, case.nursery.err.read_text()
    said = case.printed()
    assert said.startswith(f"{case.folder / 'chosen'}: no run to resume there; starting one\n") == (moment[1:] in (
        ("fsync", 1), ("replace", 1)))
    assert "resuming after step" in said or "no complete checkpoint: starting over\n" in said
    assert read_log(case.folder / "chosen")[: len(held)] == held
    assert_as_whole(case, "chosen")


def test_moments():
    assert len(MOMENTS) == len(set(MOMENTS)) == 17


def test_killed_again_and_again_in_the_same_replacement(case):
    """Kills between the two renames of best/, first while it is replaced, then while that is mended."""
    case.start("again", ("os", "rename", 3))
    assert case.nursery.wait() == -9
    for number in (1, 2, 3):
        assert case.resume("again", ("os", "rename", number)) in (-9, 0)
    assert case.resume("again") == 0
    assert_as_whole(case, "again")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_polite_signal_saves_and_says_how_to_go_on(case, number, code):
    log = case.folder / "polite" / "log.jsonl"
    pid = case.start("polite")
    case.wait_for_steps("polite", 4)
    os.kill(pid, number)
    assert case.nursery.wait() == code
    step = len(read_log(log.parent))
    assert 4 <= step < STEPS and case.checkpoint("polite") == step
    command = f"python train.py --resume --out {case.folder / 'polite'}"
    assert case.printed().splitlines()[-1] == f"stopped after step {step}; continue with: {command}"
    assert "Traceback" not in case.nursery.err.read_text()
    held = read_log(log.parent)
    assert case.resume("polite") == 0
    assert f"resuming after step {step}\n" in case.printed()
    assert read_log(log.parent)[:step] == held
    assert_as_whole(case, "polite")


def interrupting(monkeypatch, target, number, signal_number=signal.SIGINT):
    """Let the `number`-th call of `target` ("module.function") send a signal to this process first."""
    import importlib

    module, name = target.rsplit(".", 1)
    module = importlib.import_module(module)
    original, calls = getattr(module, name), []

    def signalling(*arguments, **options):
        calls.append(name)
        if len(calls) == number:
            signal.raise_signal(signal_number)
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, signalling)


@pytest.mark.parametrize(
    "target, number, step",
    [
        ("answering.spans.best_spans", 1, 0),  # in the evaluation before the first step
        ("training.step.span_loss", 1, 1),
        ("training.setup.save_best", 2, 7),
        ("training.state.save_checkpoint", 3, 6),
        ("training.step.clip", STEPS, STEPS),  # in the last step: the last evaluation is still to come
    ],
)
def test_signals_at_chosen_moments(case, monkeypatch, capsys, target, number, step):
    if target == "training.step.clip":
        target = "torch.nn.utils.clip_grad_norm_"
    with monkeypatch.context() as patch:
        interrupting(patch, target, number, signal.SIGTERM)
        assert train.main(case.argv("signal")) == 143
    assert f"stopped after step {step}; " in capsys.readouterr().out
    assert case.checkpoint("signal") == step
    assert case.resume("signal") == 0
    assert_as_whole(case, "signal")


@pytest.mark.parametrize("target", ["data.texts.encode", "training.setup.latency"])
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_outside_the_loop_end_in_a_sentence(case, monkeypatch, capsys, target, number, code):
    with monkeypatch.context() as patch:
        interrupting(patch, target, 1, number)
        assert train.main(case.argv("outside", max_steps=2)) == code
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("train.py: stopped; a run that had begun goes on with")
    if target == "data.texts.encode":
        assert not (case.folder / "outside").exists()
    else:
        assert train.main(["--resume", "--out", str(case.folder / "outside")]) == 0
        shutil.rmtree(case.folder / "outside")


def test_two_processes_do_not_share_a_folder(case, capsys):
    pid = case.start("shared")
    case.wait_for_steps("shared", 1)
    os.kill(pid, signal.SIGSTOP)
    try:
        for argv in (["--resume", "--out", str(case.folder / "shared")], case.argv("shared")):
            assert train.main(argv) == 2
            wanted = f"train.py: {case.folder / 'shared'}: another train.py is at work in it; "
            assert capsys.readouterr().err.startswith(wanted)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert case.nursery.wait() == 0
    assert_as_whole(case, "shared")
