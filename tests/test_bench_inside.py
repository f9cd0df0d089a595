"""The tools behind docs/lens.md and behind "looking costs nothing afterwards"."""

import json

import pytest

from answering.reader import Reader
from bench import lens, looking
from data.readers import read_dataset
from tests.copy_model import copy_reader
from tests.tiny_model import SAMPLE

NAMES = [("one", "bob", "lima ada paris bob rome cleo", "rome"), ("one", "ada", "cleo ada oslo lima dan", "oslo"),
         ("two", "cleo", "dan cleo rome paris", "paris"), ("three", "dan", "lima dan paris ada", "paris")]


def test_lens_tells_the_layer_of_ten_and_counts_over_more(tmp_path, capsys):
    copy_reader(tmp_path / "copy")
    articles = [
        {"title": title, "paragraphs": [{"context": context, "qas": [
            {"id": str(number), "question": question, "answers": [{"text": a, "answer_start": context.index(a)}]},
        ]}]} for number, (title, question, context, a) in enumerate(NAMES)
    ]
    (tmp_path / "dev.json").write_text(json.dumps({"data": articles}))
    argv = [str(tmp_path / "dev.json"), "--model", str(tmp_path / "copy"), "--device", "cpu", "--count", "9"]
    assert lens.main([*argv, "--articles", "2"]) == 0
    text = capsys.readouterr().out
    assert text.count("references: ") == 2 and "ada\n" not in text  # never the second question of an article
    assert lens.main([*argv, "--articles", "9"]) == 0
    text = capsys.readouterr().out
    assert "1. one: bob\n   references: rome; F1 100\n" in text and "2. two: cleo\n   references: paris; F1 0\n" in text
    assert "rome is best from block 1 on; before it was lima" in text
    found = json.loads(text.splitlines()[-1])
    assert lens.main([*argv, "--json"]) == 0 and json.loads(capsys.readouterr().out) == found
    assert found["questions"] == 4 and found["f1"][-1] == 75.0 and found["f1"][0] == 0.0
    assert found["appears_right"] == [0, 0, 3, 0] and sum(found["appears_wrong"]) == 1
    assert found["right_earlier_then_lost"] == sum(found["lost_after"])
    assert lens.main([str(tmp_path / "none.json")]) == 2 and "there is no such file" in capsys.readouterr().err


def test_looking_everywhere_leaves_nothing(tiny_folder):
    reader = Reader.load(tiny_folder, device="cpu", precision="fp32")
    (example, *_) = read_dataset([SAMPLE / "dev.json"]).examples
    before = reader.ask(example.question, example.context)[0]
    looking.prepare(reader, "looked", example)
    assert looking.hooks(reader.model) == 0 and reader.ask(example.question, example.context)[0] == before
    looking.prepare(reader, "eager", example)
    seen = []
    handle = reader.model.bert.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    after = reader.ask(example.question, example.context)[0]
    handle.remove()
    assert seen and all(maps is not None for layer in seen for maps in layer)
    assert (after.spans[0].start, after.spans[0].end) == (before.spans[0].start, before.spans[0].end)


def test_the_measurement_runs(tiny_folder, capsys, monkeypatch):
    monkeypatch.setattr(looking, "KINDS", ("plain", "looked"))  # each is a process that imports torch
    argv = ["--model", str(tiny_folder), "--questions", "3", "--pairs", "2", "--device", "cpu", "--precision", "fp32"]
    assert looking.main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (one,) = found.values()
    assert len(one["ratios"]) == 2 and one["ratio_median"] > 0
    assert one["last"] == one["plain"] and one["plain"]["hooks"] == 0


@pytest.mark.parametrize("left", [{"hooks": 1, "answers": "a"}, {"hooks": 0, "answers": "b"}])
def test_what_is_left_behind_is_an_error(left, monkeypatch, capsys):
    one = {"ratio_median": 1.0, "ratio_spread": [1.0, 1.0], "ours": 1.0, "peer": 1.0}
    one |= {"last": left, "plain": {"hooks": 0, "answers": "a"}}
    monkeypatch.setattr(looking, "measure", lambda options: {"looked": one})
    assert looking.main([]) == 1
    assert "looking left something behind" in capsys.readouterr().err
