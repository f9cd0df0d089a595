"""Losses recorded in training, across an interruption, and what they say of a mislabelled question."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

import train
from data.__main__ import main as lint_command
from inside import data as command
from inside.difficulty import EASY, HARD, LEARNED, SUSPECT, Question, difficulties
from data.examples import Example
from training.folder import RunFolder
from training.losses import LossFile, read_losses
from training.step import span_loss, span_losses
from tests.tiny_run import arguments, read_log, results, squad, write_squad


def test_losses_of_windows_sum_to_the_loss():
    torch.manual_seed(0)
    start, end = torch.randn(3, 7, requires_grad=True), torch.randn(3, 7)
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[:, 2:6] = True
    label = torch.tensor([[[2, 3], [3, 3]], [[0, 0], [-1, -1]], [[4, 5], [-1, -1]]])
    each = span_losses(start, end, mask, label)
    assert each.shape == (3,) and not each.requires_grad
    torch.testing.assert_close(each.sum(), span_loss(start, end, mask, label).detach())


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_encoder_folder):
    """Data with one wrong label, and two finished runs: with the losses recorded and without."""
    folder = tmp_path_factory.mktemp("losses")
    document = squad(range(6), with_null=False)
    wrong = document["data"][0]["paragraphs"][2]
    wrong["qas"][0]["answers"] = [{"text": "past", "answer_start": wrong["context"].index("past")}]
    (folder / "train.json").write_text(json.dumps(document))
    write_squad(folder / "dev.json", range(6, 8), with_null=False)
    for name, changes in (("with", {"record_losses": True}), ("without", {})):
        assert train.main(arguments(folder, tiny_encoder_folder, folder / name, epochs=3, **changes)) == 0
    return folder


def test_recording_changes_nothing_and_means_are_the_logged_losses(place):
    (files, metrics, evaluations, log), plain = results(place / "with"), results(place / "without")
    assert (metrics, evaluations, log) == plain[1:]
    assert files["model/model.safetensors"] == plain[0]["model/model.safetensors"]
    records = read_losses(RunFolder(place / "with").losses)
    for line in read_log(place / "with"):
        mine = records[records["step"] == line["step"]]
        assert len(mine) == line["windows"] and set(mine["epoch"]) == {line["epoch"]}
        assert mine["loss"].mean() == pytest.approx(line["loss"], rel=1e-4)
    assert not RunFolder(place / "without").losses.exists()


def test_a_resumed_run_goes_on_with_its_file(place, tmp_path, tiny_encoder_folder, monkeypatch):
    from training import losses

    original, left = losses.LossFile.write, [4]

    def failing(self, step, epoch):
        original(self, step, epoch)
        left[0] -= 1
        if not left[0]:
            with open(self.path, "ab") as file:
                file.write(b"torn")
            raise KeyboardInterrupt

    argv = arguments(place, tiny_encoder_folder, tmp_path / "run", epochs=3, record_losses=True, save_every=3)
    monkeypatch.setattr(losses.LossFile, "write", failing)
    assert train.main(argv) == 130
    monkeypatch.undo()
    assert train.main([*argv, "--resume"]) == 0
    assert (tmp_path / "run/losses.bin").read_bytes() == (place / "with/losses.bin").read_bytes()


def test_the_command_tells_the_places(place, capsys):
    assert command.main([str(place / "with"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["totals"].values()) == 6
    assert command.main([str(place / "with"), "--top", "1"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("6 questions: ") and "train.json: data[0].paragraphs[" in text
    (question, *_) = difficulties(place / "with")
    assert len(question.confidence) == 3 and all(0 < one <= 1 for one in question.confidence)


def at(value, where):
    """What stands in a JSON value at a place such as data[0].paragraphs[2]."""
    for step in re.findall(r"\w+", where):
        value = value[int(step) if step.isdigit() else step]
    return value


def test_the_linter_lists_them_beside_its_own(place, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(place / "with", run)
    (run / "losses.bin").unlink()
    file = LossFile(run / "losses.bin", np.arange(6))
    for epoch, (never, forgotten) in enumerate([(9.0, 0.5), (4.0, 2.0)]):
        file.take(np.arange(6), torch.tensor([0.1, forgotten, never, 0.1, 3.0 - 2.9 * epoch, 0.1]))
        file.write(epoch + 1, epoch)
    mine = tmp_path / "mine.json"  # the same bytes under another name
    mine.write_bytes((place / "train.json").read_bytes())
    other = tmp_path / "other.json"
    other.write_text('[{"question": "who? ", "context": "me"}]')
    assert lint_command([str(mine), str(other), "--losses", str(run), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    own, suspect, hard = report["findings"]
    assert (own["kind"], own["file"]) == ("outer whitespace", str(other))
    assert suspect["file"] == hard["file"] == str(mine)
    assert (suspect["kind"], hard["kind"]) == (SUSPECT, HARD) == ("probably mislabelled", "hard")
    assert report["totals"] == {"outer whitespace": 1, SUSPECT: 1, HARD: 1}
    document = json.loads(mine.read_text())
    wrong = at(document, suspect["where"])
    assert wrong["answers"][0]["text"] == "past" and wrong is at(document, "data[0].paragraphs[2].qas[0]")
    assert suspect["message"].endswith('labelled "past"; confidence by epoch 0.000, 0.018')
    assert at(document, hard["where"]) is at(document, "data[0].paragraphs[1].qas[0]")
    assert hard["message"].endswith("confidence by epoch 0.607, 0.135")
    assert lint_command([str(place / "dev.json"), str(place / "train.json"), "--losses", str(run)]) == 1
    assert f"probably mislabelled: 1 finding\n  {place / 'train.json'}: {suspect['where']}: " in capsys.readouterr().out
    assert command.main([str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == [
        one | {"file": str(place / "train.json")} for one in (suspect, hard)
    ]
    for argv, words in (
        ([place / "dev.json", "--losses", run], f"this run learned from other files: {place / 'train.json'}"),
        ([mine, "--losses", run, "--repair", tmp_path / "x.json"], "--losses goes with the report alone"),
        ([mine, "--losses", place / "without"], "recorded no losses"),
    ):
        assert lint_command([*map(str, argv)]) == 2
        assert words in capsys.readouterr().err


def test_kinds():
    example = Example("1", "q", "c", (), "data[0]")
    kinds = {(0.9, 0.8): EASY, (0.01, 0.7): LEARNED, (0.6, 0.1): HARD, (0.01, 0.02): SUSPECT, (0.01,): HARD}
    assert {confidence: Question(example, "f", confidence).kind for confidence in kinds} == kinds
    assert Question(example, "f", (0.01, 0.02), telling=False).kind == HARD


def test_a_run_that_learned_nothing_accuses_nobody(place, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(place / "with", run)
    for guess, suspects in ((3.3, 0), (0.1, 1)):  # 0.037 of each, as of a guess among 27 words; or only of the first
        (run / "losses.bin").unlink()
        file = LossFile(run / "losses.bin", np.arange(6))
        for epoch in range(2):
            file.take(np.arange(6), torch.tensor([3.3] + [guess] * 5))
            file.write(epoch + 1, epoch)
        assert command.main([str(run)]) == 0
        text = capsys.readouterr().out
        assert f"{suspects} probably mislabelled" in text and ("it has learned too little" in text) == (not suspects)
    (run / "losses.bin").write_bytes(b"torn")
    assert command.main([str(run)]) == 2
    assert capsys.readouterr().err.endswith("losses.bin: holds no losses: the run stopped before its first step\n")


def test_a_question_is_judged_by_its_worst_window(place, tmp_path):
    path = tmp_path / "losses.bin"
    file = LossFile(path, np.array([0, 0, 1]))
    file.take(np.array([2, 0]), torch.tensor([0.25, 0.5]))
    file.take(np.array([1]), torch.tensor([3.0]))
    file.write(1, 0)
    records = read_losses(path)
    assert records["example"].tolist() == [1, 0, 0] and records["loss"].tolist() == [0.25, 0.5, 3.0]
    file.take(np.array([1]), torch.tensor([1.0]))
    file.write(2, 0)
    file.cut(1)
    assert read_losses(path)["step"].tolist() == [1, 1, 1]


def test_refusals(place, tmp_path, capsys):
    for folder, words in ((tmp_path, "this is not a run's folder"), (place / "without", "recorded no losses")):
        assert command.main([str(folder)]) == 2
        assert words in capsys.readouterr().err
    changed = tmp_path / "changed"
    changed.mkdir()
    config = json.loads((place / "with/config.json").read_text())
    config["data"]["train"][0]["sha256"] = "0"
    config["data"]["train"].append({"path": "gone.json", "sha256": "0"})
    (changed / "config.json").write_text(json.dumps(config))
    (changed / "losses.bin").write_bytes(b"")
    assert command.main([str(changed)]) == 2
    assert "changed or moved since this run" in capsys.readouterr().err
