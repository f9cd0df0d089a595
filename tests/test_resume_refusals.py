"""What --resume leaves alone, refuses, and makes of a run that has lost something."""

import json
import shutil
from pathlib import Path

import pytest

import train
from tests.tiny_run import arguments, results, write_squad


class Case:
    """A folder with data and a finished run in whole/."""

    def __init__(self, folder, model):
        self.folder, self.model, self.whole = folder, model, folder / "whole"

    def argv(self, out, **changes):
        return arguments(self.folder, self.model, self.folder / out, **({"dropout": 0.1, "eval_first": True} | changes))


@pytest.fixture(scope="module")
def case(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("resume")
    write_squad(folder / "train.json", range(6))
    write_squad(folder / "dev.json", range(20, 23))
    case = Case(folder, tiny_folder)
    assert train.main(case.argv("whole")) == 0
    return case


def state_of(folder):
    paths = [folder, *folder.rglob("*")]
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths}


@pytest.mark.parametrize("extra", [[], ["--seed", "0"], ["--precision", "fp32", "--eval-first"]])
def test_a_finished_run_stays_as_it_is(case, capsys, extra):
    before = state_of(case.whole)
    assert train.main(["--resume", "--out", str(case.whole), *extra]) == 0
    assert capsys.readouterr().out == f"{case.whole}: this run is finished; nothing to do\n"
    assert state_of(case.whole) == before


def refusal(capsys, argv):
    assert train.main(list(map(str, argv))) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("train.py: ")
    return lines[0].removeprefix("train.py: ")


@pytest.fixture
def stopped(case, tmp_path):
    """A copy of the whole run that lacks nothing but its last file."""
    copy = Path(shutil.copytree(case.whole, tmp_path / "stopped"))
    (copy / "metrics.json").unlink()
    return copy


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--seed", "3"], "seed was 0"),
        (["--lr", "0.1", "--batch-size", "9"], "batch_size was 5, lr was 0.002"),
        (["--window-step", "9"], "window_step was None"),
        (["--max-steps", "99"], "max_steps was None"),
        (["--no-eval-first"], "eval_first was True"),
    ],
)
def test_other_options_are_refused_by_name(capsys, stopped, flags, named):
    before = state_of(stopped)
    said = refusal(capsys, ["--resume", "--out", stopped, *flags])
    assert said.startswith(f"{stopped}: holds a different run ({named}); ")
    assert state_of(stopped) == before


def test_changed_files_are_refused(case, capsys, stopped):
    path = case.folder / "dev.json"
    kept = path.read_bytes()
    try:
        path.write_bytes(kept + b"\n")
        said = refusal(capsys, ["--resume", "--out", stopped])
    finally:
        path.write_bytes(kept)
    assert said.startswith(f"{stopped / 'config.json'}: the data files of this run changed since it began")
    config = json.loads((stopped / "config.json").read_text())
    assert set(config["model_files"]) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    config["model_files"]["tokenizer.json"] = "0" * 64
    (stopped / "config.json").write_text(json.dumps(config))
    assert "the model's config.json or tokenizer of this run changed" in refusal(capsys, ["--resume", "--out", stopped])


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_another_format_is_refused(capsys, stopped, number):
    config = json.loads((stopped / "config.json").read_text()) | {"format": number}
    (stopped / "config.json").write_text(json.dumps(config))
    said = refusal(capsys, ["--resume", "--out", stopped])
    assert said == f"{stopped / 'config.json'}: format {number!r} is unknown here; this version reads format 1"


def test_options_of_another_version_are_refused(capsys, stopped):
    config = json.loads((stopped / "config.json").read_text())
    config["options"]["lora_flavour"] = 4
    (stopped / "config.json").write_text(json.dumps(config))
    assert "options.lora_flavour: unknown to this version" in refusal(capsys, ["--resume", "--out", stopped])


def test_a_folder_with_something_else_is_left_alone(case, capsys, stopped, tmp_path):
    before = state_of(stopped)
    said = refusal(capsys, case.argv(stopped))
    advice = "add --resume to continue it, or choose another --out, or remove the folder"
    assert said == f"{stopped}: already holds a run; {advice}"
    assert state_of(stopped) == before
    assert refusal(capsys, case.argv("whole")).startswith(f"{case.whole}: already holds a finished run; add --resume")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / ".notes.old").write_text("mine")
    (foreign / "thesis.partial").write_text("mine")
    before = state_of(foreign)
    for argv in (case.argv(foreign), case.argv(foreign, resume=True)):
        said = refusal(capsys, argv)
        assert said == f"{foreign}: already holds other files; choose another --out, or remove the folder"
    assert state_of(foreign) == before


def test_a_damaged_checkpoint_can_be_removed(case, capsys, stopped):
    newest = max((stopped / "checkpoints").iterdir())
    (newest / "training.pt").write_bytes(b"PK")
    said = refusal(capsys, ["--resume", "--out", stopped])
    assert said.startswith(f"{newest}: this checkpoint is damaged")
    shutil.rmtree(newest)
    assert train.main(["--resume", "--out", str(stopped)]) == 0
    assert results(stopped) == results(case.whole)


def test_a_run_that_is_not_there_is_not_guessed(case, capsys):
    said = refusal(capsys, ["--resume", "--out", case.folder / "typo"])
    assert said.startswith(f"{case.folder / 'typo'}: there is no run to resume; check --out, or start one there with")
    assert not (case.folder / "typo").exists()
    assert train.main(case.argv("typo", resume=True, max_steps=1, dev=None)) == 0
    assert capsys.readouterr().out.startswith(f"{case.folder / 'typo'}: no run to resume there; starting one\n")


def test_without_a_checkpoint_it_starts_over_and_says_so(case, capsys, stopped):
    shutil.rmtree(stopped / "checkpoints")
    assert train.main(["--resume", "--out", str(stopped)]) == 0
    assert "no complete checkpoint: starting over\n" in capsys.readouterr().out
    assert results(stopped) == results(case.whole)
