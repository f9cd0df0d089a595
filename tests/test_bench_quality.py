"""python -m bench.quality: both sides read the same windows and labels; a tiny comparison from end to end."""

import json

import numpy as np
import pytest
import transformers

from bench import quality, run_qa
from data.readers import read_dataset
from data.tokenizer import load_tokenizer
from data.windows import WindowSet, WindowSettings
from tests.tiny_run import write_squad

LENGTH = 40


def test_the_peer_reads_the_windows_and_labels_that_ours_does(even_place):
    model, data = even_place
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    questions = run_qa.questions_of(data)
    features = run_qa.features_of(questions, tokenizer, LENGTH)
    windows = WindowSet(
        read_dataset([data]).examples, load_tokenizer(model), WindowSettings(LENGTH, overlap=LENGTH // 3), with_labels=True,
        references="first",
    )
    assert len(windows) == len(features["input_ids"])
    ours = windows.fill(np.arange(len(windows)))["input_ids"]
    assert np.array_equal(np.array(features["input_ids"])[:, : ours.shape[1]], ours)
    labels = run_qa.labels_of(features, questions)
    assert np.array_equal(labels, windows.label[:, 0]) and labels.any()


def test_the_best_span_keeps_order_length_and_bounds():
    start, end = np.zeros(50), np.zeros(50)
    start[[2, 10, 30]], end[[3, 9, 31, 48]] = (9, 5, 4), (9, 5, 4, 4.5)
    assert run_qa.best_span(start, end, 5, 49)[1:] == (10, 31)  # 2 and 3 are out of bounds, 10 to 9 runs backwards, 10 to 48 is too long
    assert run_qa.best_span(start, end, 2, 49) == (18, 2, 3)
    start[10] = 0
    assert run_qa.best_span(start, end, 5, 49)[1:] == (30, 48)


def test_a_tiny_comparison(even_place, tmp_path, capsys):
    model, data = even_place
    argv = ["--train", data, "--dev", data, "--model", model, "--windows", 17, "--window-length", LENGTH, "--out", tmp_path / "runs",
            "--json", tmp_path / "found.json"]
    assert quality.main(list(map(str, argv))) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["sides"]) == ["ours, the peer's settings", quality.PEER, "ours, train.py's defaults"]
    assert 17 <= found["windows"] < 25
    assert len(read_dataset([tmp_path / "runs/train.json"]).examples) < 25
    for row in found["sides"].values():
        assert row["seconds"] > 0.5 and 0 <= row["exact_match"] <= row["f1"] <= 100
    begun = json.loads((tmp_path / "runs/ours/config.json").read_text())["options"]
    assert (begun["batch_size"], begun["lr"], begun["warmup"], begun["epochs"]) == (12, 3e-5, 0.0, 1.0)
    assert set(json.loads((tmp_path / "runs/peer.json").read_text())) == {one.id for one in read_dataset([data]).examples}
    assert "| 1.000 |" in capsys.readouterr().out


@pytest.mark.parametrize("argv, sentence", [
    (["--windows", "0"], "--windows 0: expected a number of at least 1"),
    (["--out", "."], ".: is there already; choose another --out"),
    (["--json", "."], "cannot be written"),
    (["--train", "nowhere.json"], "nowhere.json"),
    (["--dev", "nowhere.json"], "nowhere.json"),
    (["--dev", "NULLS"], "has no answer, and the scores are SQuAD v1.1's"),
    (["--window-length", "200"], "--window-length 200: the model has 131 positions"),
])
def test_what_cannot_be_is_said_before_anything_is_timed(even_place, tmp_path, argv, sentence, capsys, monkeypatch):
    model, data = even_place
    write_squad(tmp_path / "nulls.json", range(3))
    argv = [str(tmp_path / "nulls.json") if one == "NULLS" else one for one in argv]
    monkeypatch.setattr(quality, "timed", lambda argv: pytest.fail("a side was started"))
    told = ["--train", data, "--dev", data, "--model", model, "--out", tmp_path / "runs", *argv]
    assert quality.main(list(map(str, told))) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("bench.quality: ")
