"""The tools behind the measurements: splits that share no context, moved questions, the table of methods."""

import json

import pytest

from bench import split, unanswerable
from tests.tiny_model import SAMPLE


def questions(path):
    """(id, context, question record) of a nested file."""
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield question["id"], paragraph["context"], question


def test_a_split_keeps_every_question_and_shares_no_context(tmp_path):
    for by in ("paragraph", "article"):
        kept, held = tmp_path / "kept.json", tmp_path / "held.json"
        argv = [str(SAMPLE / "train.json"), "--share", "0.3", "--by", by, "--out", str(kept), str(held)]
        assert split.main(argv) == 0
        parts = [list(questions(path)) for path in (kept, held)]
        whole = sorted(name for name, _, _ in questions(SAMPLE / "train.json"))
        assert sorted(name for part in parts for name, _, _ in part) == whole
        assert parts[0] and parts[1] and not {c for _, c, _ in parts[0]} & {c for _, c, _ in parts[1]}


def source(path):
    paragraphs = []
    for number in range(7):
        context = f"Chapter {number} tells of the lighthouse keeper. The keeper was called Name{number % 3}."
        answer = f"Name{number % 3}"
        paragraphs.append({"context": context, "qas": [
            {"id": f"q{number}", "question": f"What was the lighthouse keeper of chapter {number} called?",
             "answers": [{"text": answer, "answer_start": context.index(answer)}]},
            {"id": f"n{number}", "question": "Who was king?", "answers": [], "is_impossible": True},
        ]})
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "Lights", "paragraphs": paragraphs}]}))
    return path


def test_moved_questions_have_no_answer_where_they_stand(tmp_path):
    out = tmp_path / "mixed.json"
    assert unanswerable.main([str(source(tmp_path / "in.json")), "--share", "1", "--out", str(out)]) == 0
    found = list(questions(out))
    home = {q: (context, record) for q, context, record in found if not q.endswith("-moved")}
    moved = [(q.removesuffix("-moved"), context, record) for q, context, record in found if q.endswith("-moved")]
    assert len(home) == 14 and len(moved) == 7  # the unanswerable ones stay alone
    assert all(record["is_impossible"] is not bool(record["answers"]) for _, _, record in found)
    for name, context, record in moved:
        first, original = home[name]
        assert record["is_impossible"] is True and record["answers"] == [] and context != first
        assert record["question"] == original["question"] and original["is_impossible"] is False
        assert not any(answer["text"].lower() in context.lower() for answer in original["answers"])
    assert unanswerable.main([str(tmp_path / "none.json"), "--share", "1", "--out", str(out)]) == 2


def test_the_paragraph_that_shares_most_words_is_taken(tmp_path):
    texts = ["The comet was found in March.", "Nothing about it.", "The comet returned, and many saw the comet."]
    answer = {"text": "March", "answer_start": 23}
    question = {"id": "a", "question": "When was the comet found by many?", "answers": [answer]}
    paragraphs = [{"context": text, "qas": [question] if text is texts[0] else []} for text in texts]
    made, count = unanswerable.add_moved([{"title": "", "paragraphs": paragraphs}], 1.0, 0)
    assert count == 1 and [len(p["qas"]) for p in made[0]["paragraphs"]] == [1, 0, 1]
    again, none = unanswerable.add_moved([{"title": "", "paragraphs": paragraphs[:1]}], 1.0, 0)
    assert none == 0 and len(again[0]["paragraphs"][0]["qas"]) == 1


def test_methods_are_trained_chosen_and_scored(tmp_path, monkeypatch, capsys, tiny_encoder_folder):
    from bench import methods
    from tests.tiny_run import write_squad

    for name, numbers in (("train", range(9)), ("held", range(9, 12)), ("score", range(12, 15))):
        write_squad(tmp_path / f"{name}.json", numbers, with_null=False)
    base = ["--model", str(tiny_encoder_folder), "--window-length", "64", "--device", "cpu"]
    monkeypatch.setattr(methods, "ROWS", {"full": (base, (1e-3, 1e-2)), "lora": ([*base, "--tune", "lora"], (1e-2,))})
    argv = ["--train", "train.json", "--held-out", "held.json", "--score", "score.json", "--steps", "2"]
    argv = [str(tmp_path / a) if a.endswith("json") else a for a in argv]
    argv += ["--rows", "full", "lora", "--out", str(tmp_path / "out"), "--questions", "2"]
    assert methods.main(argv) == 0
    table = json.loads((tmp_path / "out/table.json").read_text())
    assert [row["row"] for row in table] == ["full", "lora"] and table[0]["questions"] == 2
    files = {rate: tmp_path / f"out/full-{rate}/metrics.json" for rate in ("0.001", "0.01")}
    held = {rate: json.loads(path.read_text())["f1"] for rate, path in files.items()}
    assert table[0]["held_out_f1"] == held and held[f"{table[0]['lr']:g}"] == max(held.values())
    assert table[1]["trainable_parameters"] < table[0]["trainable_parameters"]
    assert table[1]["bytes_on_disk"] < table[0]["bytes_on_disk"] / 5
    shown = capsys.readouterr().out
    assert "| lora | 0.01 |" in shown
    assert methods.main([*argv, "--cost", "3"]) == 0
    costly = json.loads((tmp_path / "out/table.json").read_text())
    assert [row["f1"] for row in costly] == [row["f1"] for row in table]
    for row in costly:
        lines = [json.loads(line) for line in (tmp_path / f"out/cost-{row['row']}/log.jsonl").read_text().splitlines()]
        assert row["train_seconds"] == pytest.approx(2 / 3 * sum(line["seconds"] for line in lines))
        assert row["peak_memory_bytes"] > 50_000_000
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.json")}
    assert methods.main(argv) == 0  # nothing is trained twice
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.json")} == stamps


def test_domains_are_cut_by_title_and_their_adapters_compared(tmp_path, capsys, tiny_encoder_folder):
    from bench import fusion
    from tests.tiny_run import write_squad

    files = {"new": (0, 1, 2, 9), "old": (3, 4, 10), "train": range(6), "held": range(9, 12), "score": (12, 13, 14)}
    for name, numbers in files.items():
        write_squad(tmp_path / f"{name}.json", numbers, with_null=False)
    out = tmp_path / "out"
    argv = ["--domains", "new", "old", "--train", "train", "--held-out", "held", "--score", "score"]
    argv = [a if a.startswith("--") else str(tmp_path / f"{a}.json") for a in argv]
    argv += ["--questions", "2", "--steps", "2", "--out", str(out), "--flags", "--model", str(tiny_encoder_folder)]
    argv += ["--window-length", "64", "--device", "cpu", "--precision", "fp32"]
    assert fusion.main(argv) == 0
    titles = {
        part: [article["title"] for article in json.loads((out / f"{part}.json").read_text())["data"]]
        for part in ("new-train", "new-held", "old-train", "old-held")
    }
    source = {name: [a["title"] for a in json.loads((tmp_path / f"{name}.json").read_text())["data"]] for name in files}
    for domain in ("new", "old"):
        assert titles[f"{domain}-train"] == [t for t in source["train"] if t in source[domain]] != []
        assert titles[f"{domain}-held"] == [t for t in source["held"] if t in source[domain]] != []
    table = json.loads((out / "table.json").read_text())
    assert [row["adapter"] for row in table] == ["new", "old", "mixture", "fusion", "mean"]
    assert all(set(row) == {"adapter", "new", "old", "score"} for row in table)
    steps = {name: len((out / name / "log.jsonl").read_text().splitlines()) for name in ("new", "mixture", "fusion")}
    assert steps == {"new": 2, "mixture": 4, "fusion": 2}
    assert "| mean | " in capsys.readouterr().out
    argv[argv.index("--domains") + 2 : argv.index("--domains") + 3] = []
    assert fusion.main(argv) == 2 and "two or more files" in capsys.readouterr().err


def test_with_halve_the_worse_rates_stop_half_way(tmp_path, monkeypatch, capsys, tiny_encoder_folder):
    from bench import methods
    from tests.tiny_run import write_squad

    for name, articles in (("train", range(9)), ("dev", range(9, 12))):
        write_squad(tmp_path / f"{name}.json", articles)
    base = ["--model", str(tiny_encoder_folder), "--window-length", "64", "--device", "cpu", "--precision", "fp32"]
    monkeypatch.setattr(methods, "ROWS", {"full": (base, (1e-9, 1e-2))})
    dev = str(tmp_path / "dev.json")
    argv = ["--train", str(tmp_path / "train.json"), "--held-out", dev, "--score", dev, "--steps", "120", "--halve"]
    argv += ["--out", str(tmp_path / "out")]
    assert methods.main(argv) == 0
    better, worse = (tmp_path / "out" / f"full-{rate}" for rate in ("0.01", "1e-09"))
    assert len(methods.losses(better)) == 120 and 60 <= len(methods.losses(worse)) < 120
    assert not (worse / "metrics.json").exists()
    table = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
    assert [(row["row"], row["lr"]) for row in table] == [("full", 0.01)]
    assert json.loads(capsys.readouterr().out.splitlines()[0])["loss_at_half"].keys() == {"1e-09", "0.01"}


def test_what_is_shipped_is_rounded_and_its_threshold_is_its_own(tmp_path, place, capsys):
    import torch
    from safetensors.torch import load_file

    import train
    from bench import ship
    from answering.reader import Reader
    from tests.tiny_run import arguments
    from training.evaluate import evaluate
    from training.run import read_split

    folder, encoder = place
    assert train.main(arguments(folder, encoder, tmp_path / "run", tune="lora", max_steps=3)) == 0
    out, card = tmp_path / "shipped", "What this is."
    out.mkdir()
    (out / "README.md").write_text(card)
    argv = [str(tmp_path / "run/model"), "--dev", str(folder / "dev.json"), "--length-penalty", "0.25"]
    capsys.readouterr()
    assert ship.main([*argv, "--out", str(out)]) == 0
    said = json.loads(capsys.readouterr().out)
    tensors = load_file(out / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    exact = load_file(tmp_path / "run/model/adapter_model.safetensors")
    assert all(torch.equal(exact[name].bfloat16(), tensor) for name, tensor in tensors.items())
    reader = Reader.load(out)
    assert reader.settings.decode.length_penalty == 0.25 and reader.settings.null_threshold == said["null_threshold"]
    examples = read_split([folder / "dev.json"], None, 0, False, "scoring").examples
    scores = evaluate(reader, examples, may_lack_answer=True, threshold=said["null_threshold"], tune=False).scores
    assert scores["f1"] == said["f1"] and (out / "README.md").read_text() == card
    assert ship.main([str(encoder), *argv[1:], "--out", str(tmp_path / "no")]) == 2
    assert "not an adapter" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_growth_runs_both_curves(tmp_path, tiny_folder, capsys):
    from bench import growth

    argv = ["--sizes", "9", "31", "--steps", "7", "--batch-size", "3", "--window-length", "120", "--model", tiny_folder,
            "--json", tmp_path / "rows.json"]
    assert growth.main([str(item) for item in argv]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["windows"] for row in rows["training"]] == [row["windows"] for row in rows["answering"]] == [9, 31]
    assert all(row["peak_bytes"] > 10_000_000 for curve in rows.values() for row in curve)
    shown = capsys.readouterr().out
    assert "| training | 31 |" in shown and "| answering | 31 |" in shown


def test_growth_writes_answers_where_they_stand(tmp_path):
    from bench.growth import write_questions
    from data.readers import read_dataset

    write_questions(tmp_path / "data.json", 5)
    examples = read_dataset(tmp_path / "data.json").examples
    assert len({example.context for example in examples}) == 5
    assert all(e.context[a.start : a.end] == a.text for e in examples for a in e.answers)


def test_the_readme_lists_every_command():
    from tests.tiny_run import ROOT

    text = (ROOT / "bench/README.md").read_text(encoding="utf-8")
    parts = {"learners", "answerers", "run_qa"}  # sides of a comparison, started by it
    named = {
        path.stem for path in (ROOT / "bench").glob("*.py") if "\ndef main(" in path.read_text(encoding="utf-8")
    } - parts
    assert len(named) >= 18
    assert not [name for name in sorted(named) if f"`python -m bench.{name}`" not in text]


def test_startup_is_measured_by_turns(capsys, monkeypatch):
    from bench import startup

    clock, order = [0.0], []

    def run(arguments):
        order.append(arguments[0])
        clock[0] += 1
        return {"-c": 2.0, "infer.py": 2.5 + 0.1 * (len(order) > 4)}.get(arguments[0], 0.1)

    monkeypatch.setattr(startup, "seconds_of", run)
    assert startup.main(["--rounds", "3"]) == 0
    assert len(order) == 4 * 4 and "an answer takes 0.60 s more than the import (0.60 to 0.60)" in capsys.readouterr().out
    assert startup.main(["--rounds", "0"]) == 2
    assert capsys.readouterr().err == "bench.startup: --rounds 0: expected a number of at least 1\n"
    monkeypatch.undo()
    assert startup.seconds_of(["-c", "pass"]) > 0
    monkeypatch.setattr(startup, "PROCESSES", {startup.BARE: ["-c", "raise SystemExit(3)"]})
    assert startup.main(["--rounds", "1"]) == 2
    assert "ended with exit code 3" in capsys.readouterr().err


@pytest.mark.parametrize("command, argv, sentence", [
    ("scaling", ["--step-seconds", "0"], "--step-seconds 0: expected a number of at least 1e-09"),
    ("scaling", ["--between", "nan"], "--between nan"), ("scaling", ["--step-seconds", "inf"], "--step-seconds inf"),
    ("growth", ["--sizes", "5", "0"], "--sizes 0: expected"), ("growth", ["--steps", "0"], "--steps 0: expected"),
    ("plans", ["--train", "none.json", "--dev", "none.json", "--out", "new"], "none.json: there is no such file"),
    ("plans", ["--train", "none.json", "--dev", "none.json", "--out", "."], ".: is there already"),
])
def test_numbers_and_files_that_cannot_be_are_refused_first(command, argv, sentence, capsys):
    import importlib

    assert importlib.import_module(f"bench.{command}").main(argv) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"bench.{command}: ") and sentence in said.err and said.out == ""


def test_an_interruption_is_a_sentence(capsys):
    from bench.report import measuring

    @measuring("bench.x")
    def stopped(argv=None):
        raise KeyboardInterrupt

    assert stopped() == 130 and capsys.readouterr().err.startswith("bench.x: interrupted")
