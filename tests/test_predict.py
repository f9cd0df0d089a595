"""`python infer.py --predict`: the files it writes, what it measures and refuses."""

import json

import pytest

import infer
from metrics.__main__ import main as metrics_main
from tests.test_infer import PERSIAN, TEXT, make_run
from tests.tiny_model import SAMPLE

FILES = ["metrics.json", "nbest_predictions.json", "null_odds.json", "predictions.json"]


@pytest.fixture
def run(tiny_folder, capsys):
    """main() with the tiny model (unless the flags name another): (exit code, stdout, stderr)."""

    def run(*flags):
        code = infer.main(["--model", str(tiny_folder), *map(str, flags)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def data_file(path, *, impossible=True, strip=0):
    """Five passages of the sample's dev part; the first `strip` questions lose their references."""
    articles = json.loads((SAMPLE / "dev.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [p for article in articles for p in article["paragraphs"]]
    paragraphs = sorted(paragraphs, key=lambda p: len(p["context"]))[:5]
    for paragraph in paragraphs:
        paragraph["qas"] = [qa for qa in paragraph["qas"] if qa["answers"] or impossible]
        for qa in paragraph["qas"]:
            if not impossible:
                qa.pop("is_impossible", None)
    questions = [qa for paragraph in paragraphs for qa in paragraph["qas"]]
    for qa in questions[:strip]:
        qa.pop("answers"), qa.pop("is_impossible", None)
    version = "v2.0" if impossible else "1.1"
    text = json.dumps({"version": version, "data": [{"title": "t", "paragraphs": paragraphs}]})
    path.write_text(text, encoding="utf-8")
    return [qa["id"] for qa in questions]


def read_out(folder):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    return [json.loads((folder / name).read_text(encoding="utf-8")) for name in FILES]


@pytest.mark.parametrize("impossible, threshold", [(False, None), (True, 0.0), (True, 1.0)])
def test_predict_agrees_with_metrics(run, tmp_path, capsys, impossible, threshold):
    data, out = tmp_path / "data.json", tmp_path / "deep" / "out"
    ids = data_file(data, impossible=impossible)
    flags = [] if not threshold else ["--null-threshold", threshold]
    code, printed, err = run("--predict", data, "--out", out, *flags)
    assert code == 0, err
    metrics, nbest, odds, predictions = read_out(out)
    assert list(predictions) == list(nbest) == ids and list(odds) == (ids if impossible else [])
    assert metrics_main([str(data), str(out / "predictions.json")]) == 0
    official = json.loads(capsys.readouterr().out)
    assert metrics["exact"] == official["exact" if impossible else "exact_match"]
    assert metrics["f1"] == official["f1"] and metrics["total"] == metrics["questions"] == len(ids)
    shared = {name: value for name, value in metrics.items() if name[:5] in ("HasAn", "NoAns")}
    assert shared == {name: value for name, value in official.items() if name[:5] in ("HasAn", "NoAns")}
    assert len(shared) == (6 if impossible else 0)
    assert f"exact match {metrics['exact']:.2f}, F1 {metrics['f1']:.2f} on {len(ids)} questions" in printed
    assert ("taking 0.0" in err) == (impossible and not threshold)
    assert metrics["null_threshold"] == threshold
    for name in ids:
        assert sum(record["probability"] for record in nbest[name]) == pytest.approx(1)
        assert set(nbest[name][0]) == {"text", "probability", "start_logit", "end_logit"}
        assert any(record["text"] == "" for record in nbest[name]) == impossible
        best = next(record["text"] for record in nbest[name] if record["text"])
        assert predictions[name] == ("" if impossible and odds[name] > threshold else best)


def test_predict_measures(run, tmp_path):
    data_file(tmp_path / "data.json")
    run("--predict", tmp_path / "data.json", "--out", tmp_path / "out")
    metrics = read_out(tmp_path / "out")[0]
    for name in ("windows", "eval_seconds", "windows_per_second", "tokens_per_second", "peak_memory_bytes",
                 "total_parameters"):
        assert metrics[name] > 0, name
    assert metrics["windows_per_second"] == metrics["windows"] / metrics["eval_seconds"]
    assert metrics["trainable_parameters"] == 0 and metrics["train_seconds"] is None
    assert 0 < metrics["seconds_per_question"]["p50"] <= metrics["seconds_per_question"]["p95"]
    assert metrics["tokens_per_second"] * metrics["eval_seconds"] <= 131 * metrics["windows"]


def test_predict_without_and_with_some_references(run, tmp_path):
    data = tmp_path / "data.json"
    total = len(data_file(data, strip=10_000))
    code, printed, _ = run("--predict", data, "--out", tmp_path / "none")
    metrics, nbest, odds, predictions = read_out(tmp_path / "none")
    assert code == 0 and "no references in the data, so nothing to score" in printed
    assert "exact" not in metrics and odds == {} and all(predictions.values()) and len(predictions) == total
    run("--predict", data, "--out", tmp_path / "null", "--null-threshold=-1e9")
    _, _, odds, predictions = read_out(tmp_path / "null")
    assert len(odds) == total and not any(predictions.values())
    data_file(data, impossible=False, strip=3)
    code, printed, _ = run("--predict", data, "--out", tmp_path / "some")
    metrics = read_out(tmp_path / "some")[0]
    assert metrics["total"] == metrics["questions"] - 3
    assert f"on {metrics['total']} questions (the other 3 have no references)" in printed


def test_predict_answers_what_cannot_be_read(run, tmp_path):
    rows = [("a", "q?", ""), ("b", "", TEXT), ("c", "q?", "\u200c"), (7, "کی؟", PERSIAN)]
    text = "\n".join(json.dumps({"id": i, "question": q, "context": c}) for i, q, c in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    code, _, err = run("--predict", tmp_path / "rows.jsonl", "--out", tmp_path / "out")
    metrics, nbest, _, predictions = read_out(tmp_path / "out")
    assert code == 0 and predictions["7"] in PERSIAN
    assert predictions == {"a": "", "b": "", "c": "", "7": predictions["7"]} and nbest["a"] == []
    for reason in ("the context is empty", "the question is empty", "the context has no readable words"):
        assert f"note: 1 of 4 questions has no answer because {reason} (first: " in err
    assert predictions["7"] in (tmp_path / "out" / "predictions.json").read_text(encoding="utf-8")


def test_predict_leaves_other_results_alone(run, tmp_path, tiny_folder):
    data, out = tmp_path / "data.json", tmp_path / "out"
    data_file(data, impossible=False)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "predictions.json").write_text("{}")
    code, _, err = run("--predict", data, "--out", out)
    assert code == 2 and "already holds predictions.json; add --overwrite" in err
    assert (out / "predictions.json").read_text() == "{}"
    code, _, err = run("--predict", data, "--out", out, "--overwrite")
    assert code == 0 and len(list(out.iterdir())) == 5 and (out / "notes.txt").read_text() == "mine"
    make_run(tmp_path / "run", tiny_folder)
    code, _, err = run("--predict", data, "--out", tmp_path / "run", "--overwrite")
    assert code == 2 and "is the folder of a run or a model" in err
    code, _, err = run("--predict", data, "--out", data)
    assert code == 2 and "--out wants a folder" in err


def no_answering(*_, **__):
    raise AssertionError("--out was to be refused before a question is answered")


def test_predict_tries_out_before_it_answers(run, tmp_path, monkeypatch):
    data, out = tmp_path / "data.json", tmp_path / "out"
    data_file(data)
    (out / "predictions.json").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr(infer, "load", no_answering)
    before = sorted(tmp_path.rglob("*"))
    for folder, sentence in (
        (out, "predictions.json is a folder"),
        (tmp_path / "link", "cannot be written (Not a directory)"),
        (tmp_path / "new" / ("n" * 250), "cannot be written (File name too long)"),
        (tmp_path / ("n" * 300) / "x", "cannot be written (File name too long)"),
        ("/proc/new/out", "cannot be written (No such file or directory)"),
    ):
        code, printed, err = run("--predict", data, "--out", folder, "--overwrite")
        assert (code, printed) == (2, "") and sentence in err and err.count("\n") == 1, err
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("exists", [False, True])
def test_predict_finds_a_full_disk_before_it_answers(run, tmp_path, monkeypatch, exists):
    def full(_):
        raise OSError(28, "No space left on device")

    data, out = tmp_path / "data.json", tmp_path / "new" / "out"
    data_file(data)
    if exists:
        out.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(infer, "load", no_answering)
    monkeypatch.setattr("os.fsync", full)
    code, _, err = run("--predict", data, "--out", out)
    assert code == 2 and "cannot be written (No space left on device); choose another --out\n" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_one_question_is_not_questions(run, tmp_path):
    data = tmp_path / "data.json"
    answers = [{"text": "The", "answer_start": 0}]
    row = {"id": "a", "question": "why " * 5000, "context": TEXT, "answers": answers}
    data.write_text(json.dumps(row))
    code, printed, err = run("--predict", data, "--out", tmp_path / "out")
    assert code == 0 and " on 1 question\n" in printed and "\n1 question in " in printed
    assert "note: 1 question is longer than 42 tokens and was cut" in err


@pytest.mark.parametrize(
    "content, flags, sentence",
    [(None, [], "there is no such file"), ("{", [], "not JSON"), ('{"data": []}', [], "holds no questions"),
     ("data", ["--null-threshold", "1"], "--null-threshold: every question of these data has an answer"),
     ("data", ["--model", "no/such/model"], "no/such/model: there is no such folder")],
)
def test_predict_refuses_and_writes_nothing(run, tmp_path, content, flags, sentence):
    data = tmp_path / "data.json"
    if content == "data":
        data_file(data, impossible=False)
    elif content is not None:
        data.write_text(content)
    code, out, err = run("--predict", data, "--out", tmp_path / "out", *flags)
    assert (code, out) == (2, "") and sentence in err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_while_answering_a_file(run, tmp_path, monkeypatch):
    from answering.reader import Reader

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    data_file(tmp_path / "data.json")
    monkeypatch.setattr(Reader, "predict", interrupted)
    code, out, err = run("--predict", tmp_path / "data.json", "--out", tmp_path / "out")
    assert (code, out) == (130, "") and err.endswith("infer.py: interrupted\n")
    assert not (tmp_path / "out").exists()


def test_misaligned_references_stop_scoring_or_are_left_out(run, tmp_path):
    data, out = tmp_path / "data.json", tmp_path / "out"
    data_file(data, impossible=False)
    document = json.loads(data.read_text(encoding="utf-8"))
    answers = document["data"][0]["paragraphs"][1]["qas"][0]["answers"]
    for answer in answers:
        answer["answer_start"] += 1
    total = sum(len(paragraph["qas"]) for paragraph in document["data"][0]["paragraphs"])
    data.write_text(json.dumps(document), encoding="utf-8")
    code, _, err = run("--predict", data, "--out", out)
    assert code == 2 and not out.exists()
    assert "data[0].paragraphs[1].qas[0].answers[0]" in err and "--repair" in err and "--skip-misaligned" in err
    code, _, err = run("--predict", data, "--out", out, "--skip-misaligned")
    assert code == 0, err
    assert read_out(out)[0]["total"] == total - 1
