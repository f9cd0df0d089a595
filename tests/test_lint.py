"""The linter finds what is wrong and where; the command prints it and repairs."""

import json
import os
import subprocess
import sys

import pytest

from common.errors import InputError
from data.__main__ import main
from data.lint import KINDS, lint, render, to_json

PERSIAN = "کتاب‌های خط فارسی را می‌نویسند؛ کتاب‌های تازه را هم."


def qa(name="1", question="q?", answers=(), **more):
    answers = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": question, "answers": answers, **more}


def write(path, *paragraphs, **root):
    paragraphs = [{"context": context, "qas": qas} for context, qas in paragraphs]
    value = {"data": [{"title": "t", "paragraphs": paragraphs}], **root}
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def found(*paths):
    return [(finding.kind, finding.where, finding.message) for finding in lint(*paths).findings]


def first_paragraph(path):
    return json.loads(path.read_text(encoding="utf-8"))["data"][0]["paragraphs"][0]


def test_clean_file_and_its_numbers(tmp_path):
    path = write(
        tmp_path / "x.json",
        ("a cat sat", [qa("1", "who sat?", [("cat", 2), ("a cat", 0)]), qa("2", "why?")]),
        (PERSIAN, [qa("3", "چه؟", [("کتاب‌های", 32)])]),
    )
    report = lint(path)
    assert report.findings == [] and report.totals() == {}
    summary = report.summaries[0]
    assert summary.counts == {
        "articles": 1, "paragraphs": 2, "distinct contexts": 2, "questions": 3, "unanswerable": 1,
        "without references": 0, "references": 3,
    }
    assert summary.references == {2: 1, 1: 1}
    assert summary.lengths["context", "characters"] == (9, 9, len(PERSIAN), len(PERSIAN))
    assert summary.lengths["answer", "words"] == (1, 1, 2, 2)
    assert render(report).endswith("clean: no findings")


def test_lengths_are_nearest_rank(tmp_path):
    questions = [qa(str(size), "x" * size) for size in range(100, 0, -1)]
    lengths = lint(write(tmp_path / "x", ("c", questions))).summaries[0].lengths
    assert lengths["question", "characters"] == (1, 50, 95, 100)
    assert ("answer", "words") not in lengths


def test_each_kind_is_found_at_its_place(tmp_path):
    path = write(
        tmp_path / "x.json",
        ("a cat, a Cat \n", [
            qa("1", " who?", [("cat", 3)]),
            qa("1", "what?", [(" cat", 1), ("dog", 0), ("", 0)]),
            qa("2", "who? ", [("A  CAT", 9), ("cat", -1), ("cat", 99)], is_impossible=True),
            qa("3", "   ", is_impossible=False),
        ]),
        ("", [qa("4", "")]),
    )
    p = "data[0].paragraphs[0]"
    q = f"{p}.qas"
    assert found(path) == [
        ("outer whitespace", f"{p}.context", '2 whitespace characters after "a cat, a Cat"'),
        ("outer whitespace", f"{q}[0].question", '1 whitespace character before "who?"'),
        ("misaligned answer", f"{q}[0].answers[0]",
         'the answer "cat" does not stand at 3, where the context has "at,"; it stands at 2'),
        ("duplicate id", f"{q}[1].id", f'"1" is also the id of {q}[0]'),
        ("outer whitespace", f"{q}[1].answers[0]", '1 whitespace character before "cat"'),
        ("misaligned answer", f"{q}[1].answers[1]",
         'the answer "dog" does not stand at 0, where the context has "a c"; it is nowhere in the context'),
        ("empty answer", f"{q}[1].answers[2]", "the answer text is empty"),
        ("outer whitespace", f"{q}[2].question", '1 whitespace character after "who?"'),
        ("duplicate question", f"{q}[2]", f"asks the same about the same context as {q}[0]"),
        ("contradictory is_impossible", f"{q}[2]", "is_impossible is true beside 3 answers"),
        ("misaligned answer", f"{q}[2].answers[0]",
         'the answer "A  CAT" does not stand at 9, where the context has "Cat \\n"; '
         'the nearest like it is "a Cat" at 7'),
        ("misaligned answer", f"{q}[2].answers[1]",
         'the answer "cat" does not stand at -1, which is before the context; it stands at 2'),
        ("misaligned answer", f"{q}[2].answers[2]",
         'the answer "cat" does not stand at 99, which is beyond the context\'s 14 characters; '
         'it stands at 2'),
        ("empty question", f"{q}[3].question", "the question is nothing but whitespace"),
        ("contradictory is_impossible", f"{q}[3]", "is_impossible is false beside 0 answers"),
        ("empty context", "data[0].paragraphs[1].context", "the context is empty"),
        ("empty question", "data[0].paragraphs[1].qas[0].question", "the question is empty"),
    ]
    assert set(lint(path).totals()) == set(KINDS) - {"shared context"}


def test_contexts_shared_between_files(tmp_path):
    paragraphs = ("one", [qa()]), ("a cat\n sat", [qa("2")]), ("one", [qa("3", "r")])
    train = write(tmp_path / "train.json", *paragraphs)
    dev = write(tmp_path / "dev.json", ("two", [qa()]), (" a  cat sat", [qa("2")]), ("a cat sat", [qa("3")]))
    assert [finding for finding in found(train, dev) if finding[0] == "shared context"] == [
        ("shared context", "data[0].paragraphs[1].context",
         f"the same context is in {train}: data[0].paragraphs[1]")
    ]
    assert "shared context" not in lint(dev).totals()
    assert lint(train, train).totals() == {"shared context": 2}


def test_unusable_files_are_refused_as_by_the_reader(tmp_path):
    path = write(tmp_path / "x", ("c", [{"id": 1, "question": 5}]))
    with pytest.raises(InputError, match=r"qas\[0\].question: expected text, found 5"):
        lint(path)


def test_one_is_singular(tmp_path):
    path = write(tmp_path / "x", ("c", [qa(1, "q", [("c", 3)])]))
    assert "beyond the context's 1 character; it stands at 0" in found(path)[0][2]
    assert f"{path}: 1 integer id read as text" in lint(path).summaries[0].notices


def test_command_exit_codes_and_limits(tmp_path, capsys):
    clean = write(tmp_path / "clean.json", ("cat", [qa()]))
    assert main([str(clean)]) == 0
    assert capsys.readouterr().out.endswith("clean: no findings\n")
    dirty = write(tmp_path / "dirty.json", ("cat", [qa(str(n), f"{n} ") for n in range(23)]))
    assert main([str(dirty)]) == 1
    text = capsys.readouterr().out
    assert text.count("1 whitespace character after") == 20 and "… and 3 more (--all shows them)" in text
    assert main([str(dirty), "--all"]) == 1
    assert capsys.readouterr().out.count("1 whitespace character after") == 23
    assert main([str(dirty), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report == to_json(lint(dirty)) and report["totals"] == {"outer whitespace": 23}
    assert main([str(clean), str(tmp_path / "none.json")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == f"{tmp_path / 'none.json'}: there is no such file\n"


def test_repair_command(tmp_path, capsys):
    dirty = write(tmp_path / "dirty.json", (PERSIAN, [qa("1", "؟ ", [("فارسی", 0)])]))
    out = tmp_path / "out.json"
    assert main([str(dirty), "--repair", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"wrote {out}:\n  questions freed of outer whitespace: 1\n" in text
    assert text.endswith("clean: no findings\n")
    assert main([str(dirty), "--repair", str(out)]) == 2
    sentence = f"{out}: this file exists; name another one, or add --overwrite to replace it\n"
    assert capsys.readouterr() == ("", sentence)
    assert main([str(dirty), "--repair", str(out), "--overwrite", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["repair"]["changes"] == {"question stripped": 1, "offset moved": 1}
    assert len(result["before"]["findings"]) == 2 and result["after"]["findings"] == []
    assert main([str(out), "--repair", str(out), "--overwrite"]) == 2
    assert "would write over its own input" in capsys.readouterr().err
    assert main([str(out), str(dirty), "--repair", "x"]) == 2
    assert capsys.readouterr().err == "--repair mends one file at a time, and 2 were given\n"
    assert main([str(dirty), "--overwrite"]) == 2
    assert capsys.readouterr().err == "--overwrite goes with --repair OUT, which was not given\n"
    twice = write(tmp_path / "twice.json", ("cat", [qa("1"), qa("2")]))
    # A question asked twice is left to its owner.
    assert main([str(twice), "--repair", str(out), "--overwrite"]) == 1


def test_module_runs_on_a_console_without_persian_letters(tmp_path):
    path = write(tmp_path / "x.json", (PERSIAN + " ", [qa()]))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = subprocess.run([sys.executable, "-m", "data", str(path)], env=environment, capture_output=True)
    assert result.returncode == 1 and result.stderr == b""
    text = result.stdout.decode("ascii")
    assert "outer whitespace: 1 finding" in text and "\\u06a9" in text
