"""Checkpoints: everything comes back bit by bit, and no failure leaves a broken one as the newest."""

import builtins
import errno
import json
import os
import random
import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from common.errors import InputError
from tests.tiny_model import make_model
from tests.tiny_run import arguments, read_log, write_squad
from training.optimizer import make_optimizer
from model.precision import make_scaler
from training.folder import RunFolder
from training.state import LoopState, complete_checkpoints, load_checkpoint, save_checkpoint, sweep_leftovers

CPU = torch.device("cpu")
NAMES = ("model.safetensors", "state.json", "training.pt")


class Sitting:
    """Model, optimizer and scaler that have taken a few steps."""

    def __init__(self, seed=0, precision="fp32", steps=0):
        self.model = make_model(61, seed, num_hidden_layers=1)
        self.optimizer, self.scaler = make_optimizer(self.model, 0.01), make_scaler(CPU, precision)
        self.state = LoopState()
        for _ in range(steps):
            self.step()

    def step(self):
        """A step whose gradient comes from all three generators."""
        for parameter in self.model.parameters():
            noise = random.random() + np.random.random()
            parameter.grad = torch.randn_like(parameter) * noise
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01
        self.scaler.step(self.optimizer)
        self.scaler.update() if not self.scaler.is_enabled() else None
        self.state.step += 1

    def save(self, folder, keep=2):
        save_checkpoint(folder, self.state, self.model, self.optimizer, self.scaler, keep)

    def load(self, path):
        self.state = load_checkpoint(path, self.model, self.optimizer, self.scaler)

    def tensors(self):
        state = self.optimizer.state_dict()["state"]
        moments = [value for number in sorted(state) for _, value in sorted(state[number].items())]
        return [tensor.clone() for tensor in [*self.model.state_dict().values(), *moments]]


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_round_trip_is_bit_identical_and_goes_on_alike(tmp_path):
    first = Sitting(steps=3)
    first.state = LoopState(3, 1, 2, 1.5, 1.25, 40, 900, [{"step": 2, "f1": 61.25}], 2, 61.25, 2, 1)
    first.save(tmp_path)
    held = first.tensors()
    draws = random.random(), np.random.random(), np.random.standard_normal(), torch.rand(3)
    random.seed(8), np.random.seed(8), torch.manual_seed(8)

    second = Sitting(seed=1)
    second.load(tmp_path / "step-00000003")
    assert second.state == first.state
    assert same(second.tensors(), held)
    again = random.random(), np.random.random(), np.random.standard_normal(), torch.rand(3)
    assert again[:3] == draws[:3] and torch.equal(again[3], draws[3])

    second.load(tmp_path / "step-00000003")
    second.step(), second.step()
    first.load(tmp_path / "step-00000003")
    first.step(), first.step()
    assert same(first.tensors(), second.tensors()) and not same(first.tensors(), held)


def test_generators_come_back_in_the_middle_of_a_pair(tmp_path):
    sitting = Sitting(steps=1)
    random.gauss(0, 1), np.random.standard_normal()  # both keep the second value of a pair for the next call
    sitting.save(tmp_path)
    wanted = random.gauss(0, 1), np.random.standard_normal()
    sitting.load(tmp_path / "step-00000001")
    assert (random.gauss(0, 1), np.random.standard_normal()) == wanted


def test_scaler_comes_back(tmp_path):
    sitting = Sitting(precision="fp16")
    sitting.scaler.scale(torch.ones(()))  # the scale is made at the first use
    sitting.scaler.update(3.5)
    sitting.save(tmp_path)
    other = Sitting(precision="fp16", seed=2)
    other.load(tmp_path / "step-00000000")
    assert other.scaler.get_scale() == 3.5
    with pytest.raises(InputError, match="this checkpoint is damaged"):
        Sitting(precision="fp32").save(tmp_path)
        other.load(tmp_path / "step-00000000")


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_are_kept(tmp_path, keep):
    sitting = Sitting()
    for _ in range(4):
        sitting.step()
        sitting.save(tmp_path, keep)
    names = [path.name for path in complete_checkpoints(tmp_path)]
    assert names == [f"step-{n:08d}" for n in range(1, 5)][-keep:]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all(tuple(sorted(p.name for p in path.iterdir())) == NAMES for path in complete_checkpoints(tmp_path))


class Crash(BaseException):
    """Stands for the end of the process: nothing in the code may catch it."""


OPERATIONS = ((os, "rename"), (os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "rmdir"), (os, "unlink"),
              (os, "open"), (builtins, "open"), (Path, "write_bytes"), (Path, "mkdir"))


def fail_at(monkeypatch, number, raised):
    """Make the `number`-th file system call from now raise; returns the list of calls made."""
    calls = []
    for owner, name in OPERATIONS:
        def failing(*args, original=getattr(owner, name), name=name, **kwargs):
            calls.append(name)
            if len(calls) == number or (len(calls) > number and raised is Crash):
                raise raised if raised is Crash else raised(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, failing)
    return calls


def full_disk(name):
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("raised", [Crash, full_disk], ids=["crash", "full disk"])
@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step"])
def test_whatever_fails_the_newest_checkpoint_is_whole(tmp_path, monkeypatch, raised, again):
    """Every file system call of a save in turn; afterwards the one before or the new one loads, never a third."""
    reference = Sitting(steps=2)
    number, reached = 0, set()
    while True:
        number += 1
        folder = tmp_path / str(number)
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        sitting = Sitting(steps=1)
        sitting.save(folder, keep=1)
        before = sitting.tensors()
        sitting.step()
        sitting.state.step -= again
        after = sitting.tensors()
        with monkeypatch.context() as patch:
            calls = fail_at(patch, number, raised)
            try:
                sitting.save(folder, keep=1)
            except (Crash, InputError) as error:
                if isinstance(error, InputError):
                    assert "(No space left on device)" in str(error)
        newest = complete_checkpoints(folder)[-1]
        sweep_leftovers(folder)
        for path in complete_checkpoints(folder):  # the newest last
            reference.load(path)
        assert same(reference.tensors(), before) or same(reference.tensors(), after)
        reached.add("old" if same(reference.tensors(), before) else "new")
        assert complete_checkpoints(folder)[-1] == newest
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        sitting.save(folder, keep=1)  # and the next one succeeds
        assert [path.name for path in complete_checkpoints(folder)] == [f"step-{sitting.state.step:08d}"]
        if number > len(calls):
            break
    assert number > 15 and reached == {"old", "new"}


def test_a_failed_save_leaves_nothing_on_a_full_disk(tmp_path, monkeypatch):
    sitting = Sitting(steps=1)
    sitting.save(tmp_path)
    sitting.step()
    for number in range(1, 12):
        with monkeypatch.context() as patch:
            fail_at(patch, number, full_disk)
            try:
                sitting.save(tmp_path)
            except InputError:
                assert not list(tmp_path.glob(".*.partial"))


def test_leftovers_are_swept_and_a_replaced_folder_comes_back(tmp_path):
    for name in (".step-00000004.partial", ".step-00000002.doomed", ".best.old", ".model.old", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / ".metrics.json.77.partial").write_text("{")
    (tmp_path / ".other").write_text("not ours")
    sweep_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other", "best", "model"]
    assert (tmp_path / "model" / "file").read_text() == "model"
    assert complete_checkpoints(tmp_path / "nowhere") == []


def damage(path, how):
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.write_bytes(bytes(b ^ 0x55 for b in whole[:200]) + whole[200:])


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "scrambled"])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_checkpoint_is_named(tmp_path, name, how):
    sitting = Sitting(steps=1)
    sitting.save(tmp_path)
    path = tmp_path / "step-00000001"
    damage(path / name, how)
    with pytest.raises(InputError) as caught:
        sitting.load(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and len(sentence) < 600
    assert sentence.startswith(f"{path}: this checkpoint is damaged (")
    assert sentence.endswith("); remove its folder to start over, as it is the only one")
    sitting.save(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/step-00000001").rename(tmp_path / "step-00000000")
    with pytest.raises(InputError, match=r"\); remove its folder to go on from the one before$"):
        sitting.load(path)


@pytest.mark.parametrize("change", [{"steps": 4}, {"step": "4"}, {"position": None}, {"evaluations": 3}])
def test_a_checkpoint_with_a_strange_state_is_named(tmp_path, change):
    sitting = Sitting(steps=1)
    sitting.save(tmp_path)
    path = tmp_path / "step-00000001" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="this checkpoint is damaged"):
        sitting.load(path.parent)


@pytest.fixture
def case(tmp_path, tiny_folder):
    write_squad(tmp_path / "train.json", range(6))
    write_squad(tmp_path / "dev.json", range(20, 23))
    return lambda out="run", **changes: arguments(tmp_path, tiny_folder, tmp_path / out, **changes)


def test_a_disk_that_fills_up_ends_in_a_sentence_and_can_be_resumed(case, tmp_path, monkeypatch, capsys):
    assert train.main(case("whole", max_steps=7)) == 0
    original = os.fsync

    def fsync(handle):
        if list((tmp_path / "run" / "checkpoints").glob(".step-00000006.partial")):
            raise full_disk("")
        return original(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert train.main(case(max_steps=7)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: ") and error.endswith("cannot be written (No space left on device)")
    run = RunFolder(tmp_path / "run")
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000003"]
    assert train.main(["--resume", "--out", str(run.root)]) == 0
    assert "resuming after step 3\n" in capsys.readouterr().out
    assert [record["step"] for record in read_log(run.root)] == list(range(1, 8))
    whole = (tmp_path / "whole" / "model" / "model.safetensors").read_bytes()
    assert (run.model / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("part", ["log.jsonl", "best", "model", "metrics.json"])
def test_a_full_disk_elsewhere_ends_in_a_sentence_too(case, tmp_path, monkeypatch, capsys, part):
    original = builtins.open

    def opening(file, mode="r", *arguments, **options):
        if "r" not in mode and f"run/{part}" in str(file).replace("/.", "/"):
            raise full_disk("")
        return original(file, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", opening)
        assert train.main(case(max_steps=2)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: ") and error.endswith("(No space left on device)")
    assert train.main(["--resume", "--out", str(tmp_path / "run")]) == 0


def test_a_small_disk_is_refused_before_the_training(case, tmp_path, monkeypatch, capsys):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 10**6))
    assert train.main(case()) == 2
    error = capsys.readouterr().err
    assert re.search(r"the disk has 1\.0 MB free and the run needs \d+\.\d MB for 3 checkpoints", error), error
    assert not (tmp_path / "run").exists()


def test_room_that_a_run_holds_already_counts_when_it_resumes(case, tmp_path, monkeypatch, capsys):
    assert train.main(case(max_steps=4)) == 0
    (tmp_path / "run" / "metrics.json").unlink()
    held = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*"))
    needed = 4 * 84_266 * (3 * 3 + 2)
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, needed - held // 2))
    assert train.main(["--resume", "--out", str(tmp_path / "run")]) == 0
