"""train.py from its command line to the files of a run."""

import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import train
from data.windows import WindowSet
from answering.reader import Reader
from tests.tiny_model import make_folder
from tests.tiny_run import ROOT, arguments, paragraph, read_log, squad, write_squad
from training.state import complete_checkpoints

METRICS = {
    "exact", "f1", "total", "windows", "train_seconds", "eval_seconds", "windows_per_second", "tokens_per_second",
    "seconds_per_question", "peak_memory_bytes", "trainable_parameters", "total_parameters",
}


@pytest.fixture
def case(tmp_path, tiny_encoder_folder):
    """Makes the flags of a run on 8 training and 4 dev paragraphs, whose folder is run/."""
    write_squad(tmp_path / "train.json", range(8))
    write_squad(tmp_path / "dev.json", range(20, 24))
    return lambda out="run", **changes: arguments(tmp_path, tiny_encoder_folder, tmp_path / out, **changes)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def score(tmp_path, run, *more):
    """What `python -m metrics` says of a run's predictions."""
    command = [sys.executable, "-m", "metrics", str(tmp_path / "dev.json"), str(run / "predictions.json"), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_that_may_say_no_answer(case, tmp_path, capsys):
    assert train.main(case(eval_first=True)) == 0
    printed, run = capsys.readouterr().out, tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        "best", "checkpoints", "config.json", "log.jsonl", "metrics.json", "model", "nbest_predictions.json",
        "null_odds.json", "predictions.json",
    ]
    assert sorted(path.name for path in (run / "model").iterdir()) == [
        "config.json", "model.safetensors", "reader.json", "tokenizer.json", "tokenizer_config.json",
    ]
    metrics, config = read(run / "metrics.json"), read(run / "config.json")
    assert METRICS <= set(metrics) and set(metrics["seconds_per_question"]) == {"p50", "p95"}
    official = score(tmp_path, run)
    assert {key: metrics[key] for key in official} == official and "HasAns_f1" in official and "NoAns_f1" in official
    assert metrics["total_parameters"] == metrics["trainable_parameters"] > 80_000
    assert all(metrics[key] > 0 for key in METRICS - {"exact", "f1", "seconds_per_question"})

    settings = read(run / "model" / "reader.json")
    assert settings["null_threshold"] == metrics["null_threshold"]
    assert (settings["windows"]["length"], settings["windows"]["overlap"]) == (64, 21)
    odds, said = read(run / "null_odds.json"), read(run / "predictions.json")
    assert set(odds) == set(said) and len(said) == 8
    assert all((said[name] == "") == (odds[name] > metrics["null_threshold"]) for name in said)
    halves = metrics["threshold_halves"]
    assert halves["tuned_on"]["total"] + halves["reported_on"]["total"] == 8
    for name, records in read(run / "nbest_predictions.json").items():
        assert [list(record) for record in records] == [["text", "probability", "start_logit", "end_logit"]] * 21
        assert [r["probability"] for r in records] == sorted((r["probability"] for r in records), reverse=True)
        assert math.isclose(sum(r["probability"] for r in records), 1.0, rel_tol=1e-9)
        assert [r["text"] for r in records].count("") == 1
        assert said[name] in ("", next(r["text"] for r in records if r["text"]))

    log = read_log(run)
    steps = metrics["steps"]
    assert [record["step"] for record in log] == list(range(1, steps + 1)) and steps >= 14
    assert [record["epoch"] for record in log] == [0] * (steps // 2) + [1] * (steps // 2)
    assert len({sum(r["windows"] for r in log if r["epoch"] == epoch) for epoch in (0, 1)}) == 1
    assert [e["step"] for e in metrics["evaluations"]] == [0, steps // 2, steps]
    best = max(metrics["evaluations"], key=lambda e: (e["f1"], e["step"]))  # of equals the later
    assert (metrics["best_step"], metrics["f1"]) == (best["step"], best["f1"])
    assert config["format"] == 1 and config["environment"]["threads"] == torch.get_num_threads()
    assert config["options"]["lr"] == 0.002 and config["options"]["window_overlap"] == 21
    assert "newly made: qa_outputs.weight, qa_outputs.bias" in printed and "computing in fp32 on cpu" in printed
    assert printed.splitlines()[-1] == f"ask it: python infer.py --model {run / 'model'}"
    assert f"exact match {metrics['exact']:.2f}, F1 {metrics['f1']:.2f} on 8 questions (before training: " in printed

    again = Reader.load(run / "model", device="cpu", precision="fp32")
    prediction, _ = again.ask("How long did the miller live there?", paragraph(20)[0])
    assert (prediction.answer(metrics["null_threshold"]) is None) == (said["has-20"] == "")
    records = read(run / "nbest_predictions.json")["has-20"]
    assert prediction.spans[0].text == next(record["text"] for record in records if record["text"])


def test_a_run_whose_questions_all_have_answers(case, tmp_path):
    write_squad(tmp_path / "train.json", range(8), with_null=False)
    write_squad(tmp_path / "dev.json", range(20, 24), with_null=False)
    assert train.main(case(max_steps=2)) == 0
    run = tmp_path / "run"
    metrics = read(run / "metrics.json")
    data = read(tmp_path / "dev.json") | {"version": "1.1"}
    (tmp_path / "dev.json").write_text(json.dumps(data))
    assert score(tmp_path, run) == {"exact_match": metrics["exact"], "f1": metrics["f1"]}
    assert not any("HasAns" in key or "threshold_halves" == key for key in metrics)
    assert metrics["null_threshold"] is None is read(run / "model" / "reader.json")["null_threshold"]
    assert read(run / "null_odds.json") == {} and all(read(run / "predictions.json").values())
    for records in read(run / "nbest_predictions.json").values():
        assert len(records) == 20 and all(record["text"] for record in records)
        assert math.isclose(sum(r["probability"] for r in records), 1.0, rel_tol=1e-9)


def test_it_learns(case, tmp_path):
    """A tiny model with ordinary initial weights finds most answers of texts it was trained on."""
    make_folder(tmp_path / "fresh", initializer_range=0.05)
    write_squad(tmp_path / "dev.json", range(8))
    assert train.main(case(model=tmp_path / "fresh", lr=0.01, max_steps=60, eval_first=True)) == 0
    metrics = read(tmp_path / "run" / "metrics.json")
    log = read_log(tmp_path / "run")
    assert metrics["evaluations"][0]["f1"] <= 60 < 85 <= metrics["f1"]
    assert sum(r["loss"] for r in log[-5:]) < sum(r["loss"] for r in log[:5]) / 5


def test_without_a_dev_set(case, tmp_path, capsys):
    assert train.main(case(dev=None, max_steps=4, eval_first=True)) == 0
    run = tmp_path / "run"
    metrics = read(run / "metrics.json")
    assert "f1" not in metrics and metrics["evaluations"] == [] and metrics["steps"] == 4
    assert metrics["windows_per_second"] is None  # four steps are all warming up
    assert not (run / "predictions.json").exists() and not (run / "best").exists()
    assert "none to score" in capsys.readouterr().out
    newest = complete_checkpoints(run / "checkpoints")[-1]
    saved, trained = load_file(run / "model" / "model.safetensors"), load_file(newest / "model.safetensors")
    assert newest.name == "step-00000004" and set(saved) == set(trained)
    assert all(torch.equal(saved[name], trained[name]) for name in saved)


def test_lengths_of_runs(case, tmp_path, monkeypatch):
    monkeypatch.setattr("training.setup.write_results", lambda *_: None)
    assert train.main(case("a", dev=None, epochs=0.5)) == 0
    assert train.main(case("b", dev=None)) == 0
    half, whole = read_log(tmp_path / "a"), read_log(tmp_path / "b")
    assert len(half) == round(len(whole) / 4)
    assert [record["windows"] for record in half] == [record["windows"] for record in whole[: len(half)]]
    assert len({record["loss"] for record in whole}) == len(whole)


def test_subsets_are_seeded(case, tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr("training.setup.write_results", lambda *_: None)

    class Spy(WindowSet):
        def __init__(self, examples, *arguments, **options):
            chosen.append([example.id for example in examples])
            super().__init__(examples, *arguments, **options)

    monkeypatch.setattr("answering.spans.WindowSet", Spy)
    for number, seed in enumerate((0, 0, 1)):
        argv = case(str(number), dev=None, max_steps=1, max_train_examples=5, seed=seed)
        assert train.main(argv) == 0
    assert len(chosen[0]) == 5 and chosen[0] == chosen[1] != chosen[2]
    order = [q["id"] for p in squad(range(8))["data"][0]["paragraphs"] for q in p["qas"]]
    assert all(sorted(ids, key=order.index) == ids for ids in chosen)
    assert train.main(case("all", dev=None, max_steps=1, max_train_examples=16)) == 0
    assert chosen[3] == order


def scripted_scores(monkeypatch, f1):
    """Let evaluations have the F1 scores of a list, in turn."""
    import training.evaluate

    left, original = list(f1), training.evaluate.evaluate

    def evaluate(*arguments, **options):
        result = original(*arguments, **options)
        result.scores["f1"] = left.pop(0)
        return result

    monkeypatch.setattr(training.evaluate, "evaluate", evaluate)


def test_patience_stops_early_and_the_best_is_kept(case, tmp_path, monkeypatch, capsys):
    scripted_scores(monkeypatch, [10.0, 30.0, 30.0, 20.0, 99.0])
    assert train.main(case(eval_every=2, patience=2, max_steps=20)) == 0
    metrics = read(tmp_path / "run" / "metrics.json")
    assert [e["step"] for e in metrics["evaluations"]] == [2, 4, 6, 8]
    assert (metrics["steps"], metrics["best_step"], metrics["f1"]) == (8, 6, 30.0)  # of equals the later
    printed = capsys.readouterr().out
    assert printed.count(", the best so far") == 3
    # the best weights are those of step 6, not the last
    newest = load_file(complete_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "model.safetensors")
    best = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not torch.equal(newest["qa_outputs.weight"], best["qa_outputs.weight"])


def test_fp16_overflow_is_logged_as_json(case, tmp_path):
    assert train.main(case(dev=None, precision="fp16", max_steps=3)) == 0
    log = read_log(tmp_path / "run")
    assert all(record["updated"] == (record["grad_norm"] is not None) for record in log)


def test_a_loss_that_is_no_number_names_the_step(case, tmp_path, capsys):
    assert train.main(case(dev=None, lr=1e30, warmup=0, max_steps=9)) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("train.py: step 2: the loss is nan, and nothing was updated; ")
    assert [record["step"] for record in read_log(tmp_path / "run")] == [1]
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_the_real_command_prints_one_sentence(case, tmp_path):
    (tmp_path / "train.json").write_text('{"version": "v2.0", "data": [')
    command = [sys.executable, str(ROOT / "train.py"), *case()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"train.py: {tmp_path / 'train.json'}: ") and done.stderr.count("\n") == 1


def test_print_config_and_recipes(case, tmp_path, capsys):
    assert train.main([*case(), "--print-config"]) == 0
    first = capsys.readouterr().out
    assert "lr = 0.002  # command line\n" in first and "seed = 0  # default\n" in first
    assert not (tmp_path / "run").exists()
    (tmp_path / "recipe.toml").write_text(first)
    assert train.main(["--recipe", str(tmp_path / "recipe.toml"), "--lr", "0.5", "--print-config"]) == 0
    second = capsys.readouterr().out
    assert "lr = 0.5  # command line\n" in second and f"batch_size = 5  # recipe {tmp_path / 'recipe.toml'}\n" in second
    for recipe in sorted((ROOT / "recipes").glob("*.toml")):
        assert train.main(["--recipe", str(recipe), "--print-config"]) == 0


def test_relative_paths_are_recorded_absolute(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(case(train="train.json", dev="dev.json", max_steps=1, out="run")) == 0
    assert read(tmp_path / "run" / "config.json")["options"]["train"] == [str(tmp_path / "train.json")]
    (tmp_path / "run" / "metrics.json").unlink()
    monkeypatch.chdir("/")
    assert train.main(["--resume", "--out", str(tmp_path / "run")]) == 0


def test_misaligned_answers_can_be_left_out(case, tmp_path, capsys):
    data = squad(range(8))
    data["data"][0]["paragraphs"][3]["qas"][0]["answers"][0]["answer_start"] += 1
    (tmp_path / "train.json").write_text(json.dumps(data))
    assert train.main(case(max_steps=1)) == 2
    said = capsys.readouterr().err
    assert "data[0].paragraphs[3].qas[0]" in said and "--repair" in said and "--skip-misaligned" in said
    assert not (tmp_path / "run").exists()
    assert train.main(case(max_steps=1, skip_misaligned=True)) == 0
    printed = capsys.readouterr().out
    assert "note: 1 misaligned answer left out" in printed and "15 questions" in printed


def test_windows_too_long_for_a_micro_batch_are_said(tmp_path, tiny_encoder_folder, capsys):
    write_squad(tmp_path / "train.json", range(3))
    changes = {"max_steps": 1, "tokens_per_micro_batch": 10, "dev": None}
    assert train.main(arguments(tmp_path, tiny_encoder_folder, tmp_path / "out", **changes)) == 0
    assert "tokens go alone, in micro-batches of more than the 10 asked for" in capsys.readouterr().out
