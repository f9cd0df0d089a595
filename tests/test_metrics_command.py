"""`python -m metrics`: what it prints, how it tells v1.1 from v2.0 data, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metrics.__main__ import main, read_references
from tests.test_metrics import V1_CASES, V2_CASES

ROOT = Path(__file__).resolve().parent.parent
ANSWERS = [{"text": "car", "answer_start": 0}]


def nested(*entries, **root):
    return {**root, "data": [{"title": "t", "paragraphs": [{"context": "car", "qas": list(entries)}]}]}


def question(name, answers=ANSWERS, **extra):
    return {"id": name, "question": "?", "answers": answers, **extra}


@pytest.fixture
def run(tmp_path, capsys):
    """Write the given values as files, run main() on them; return (exit code, stdout, stderr)."""

    def run(data, predictions, *flags, null_odds=None):
        paths = []
        for name, value in (("data.json", data), ("predictions.json", predictions), ("odds.json", null_odds)):
            if value is not None:
                path = tmp_path / name
                path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
                paths.append(str(path))
        if null_odds is not None:
            paths.insert(2, "--null-odds")
        code = main([*paths, *flags])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.replace(str(tmp_path) + "/", "")

    return run


def test_bleu_and_rouge_come_on_request(run):
    answers = [{"text": "a big red car of steel", "answer_start": 0}, {"text": "a car", "answer_start": 0}]
    for lacking in (False, True):
        questions = [question("a", answers), question("b", answers)]
        questions += [question("c", [], is_impossible=True)] if lacking else []
        predictions = {"a": "a big red car of wood", "b": "a big red car of steel", "c": "anything"}
        plain, more = (json.loads(run(nested(*questions), predictions, *flags)[1]) for flags in ((), ("--bleu",)))
        assert plain == {key: value for key, value in more.items() if key not in ("bleu", "rouge_l")}
        assert more["rouge_l"] == pytest.approx(100 * (5 / 6 + 1) / 2)
        assert 70 < more["bleu"] < 100
    nulls = nested(question("c", [], is_impossible=True))
    assert json.loads(run(nulls, {"c": ""}, "--bleu")[1])["bleu"] is None


@pytest.mark.parametrize("case", [V1_CASES[3], *V2_CASES[2:6]])
def test_command_prints_the_golden_scores(run, case):
    flags = [f"--null-threshold={case['null_threshold']}"] if "null_threshold" in case else []
    code, out, _ = run(case["data"], case["predictions"], *flags, null_odds=case.get("null_odds"))
    assert code == 0
    assert out == json.dumps(case["expected"]) + "\n"


def test_command_counts_missing_and_unknown_predictions_of_v1(run):
    data = nested(question("q"), question(7), question("q"), version="1.1")
    code, out, err = run(data, {"q": "car", "x": "", "y": ""})
    assert code == 0
    assert json.loads(out) == {"exact_match": 100.0 * 2 / 3, "f1": 100.0 * 2.0 / 3}
    assert err.splitlines() == [
        'note: 1 of 2 questions without a prediction, counted 0; the first is "7"',
        'note: 2 predictions for no question of the data, ignored; the first is "x"',
        "note: 1 question with the id of an earlier one; each counts, as in the official script",
    ]


def test_command_reads_integer_ids_and_makes_up_missing_ones(run):
    data = nested(question(5, answer_end=3), {"question": "?", "answers": ANSWERS}, question(None))
    code, out, err = run(data, {"5": "car", "data:2": "car", "data:3": "car"})
    assert (code, json.loads(out), err) == (0, {"exact_match": 100.0, "f1": 100.0}, "")


def test_command_says_what_the_default_threshold_replaces(run):
    data = nested(question("q"), question("r", []), question("s"))
    odds = {"q": 1.5, "r": 9.0, "s": 1, "unknown": 99.0}
    code, out, err = run(data, {"q": "car", "r": "", "s": "car"}, null_odds=odds)
    assert code == 0 and json.loads(out)["HasAns_exact"] == 50.0
    assert err == "note: 1 prediction replaced by null, the null odds being above 1.0\n"
    code, out, err = run(data, {"q": "car", "r": "", "s": "car"}, "--null-threshold", "-.5")
    assert code == 0 and json.loads(out)["HasAns_exact"] == 0.0
    assert err == "note: 2 predictions replaced by null, the null odds being above -0.5\n"


KINDS = {
    "1.1, all answered": (nested(question("q"), version="1.1"), False),
    "no version, all answered": (nested(question("q")), False),
    "another version": (nested(question("q"), version="c1"), False),
    "a date as version": (nested(question("q"), version="2020-01-01"), False),
    "v2.0, all answered": (nested(question("q"), version="v2.0"), True),
    "the number 2": (nested(question("q"), version=2), True),
    "some unanswered": (nested(question("q"), question("r", [])), True),
    "is_impossible somewhere": (nested(question("q"), question("r", is_impossible=False)), True),
    "1.1 with is_impossible": (nested(question("q", is_impossible=False), version="1.1"), True),
}


def test_kinds_are_all_there():
    assert len(KINDS) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_version_is_told_by_the_data(tmp_path, kind):
    data, is_v2 = KINDS[kind]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    assert read_references(path).is_v2 is is_v2


ROW = {"id": "q", "context": "a car", "question": "?", "answers": {"text": ["car"], "answer_start": [2]}}
NO_ROW = {**ROW, "id": "r", "answers": {"text": [], "answer_start": []}}
FLAT = {
    "list": json.dumps([ROW, NO_ROW]),
    "list under data": json.dumps({"version": "v2.0", "data": [ROW, NO_ROW]}),
    "lines": f"{json.dumps(ROW)}\n{json.dumps(NO_ROW)}\n",
    "table": 'id,context,question,answers\nq,a car,?,"{""text"": [""car""], ""answer_start"": [2]}"\n'
    'r,a car,?,"{""text"": [], ""answer_start"": []}"\n',
    "list of articles": json.dumps(nested(question("q"), question("r", []))["data"]),
}


def test_flat_formats_are_all_there():
    assert len(FLAT) == 5


@pytest.mark.parametrize("layout", FLAT)
def test_command_reads_flat_data(run, layout):
    code, out, err = run(FLAT[layout], {"q": "the car", "r": "x"})
    assert code == 0, err
    scores = json.loads(out)
    assert (scores["exact"], scores["HasAns_exact"], scores["NoAns_exact"]) == (50.0, 100.0, 0.0)


def test_flat_data_keep_misaligned_answers_and_need_references(run):
    code, out, _ = run([{**ROW, "answers": {"text": ["car"], "answer_start": [0]}}], {"q": "car"})
    assert (code, json.loads(out)) == (0, {"exact_match": 100.0, "f1": 100.0})
    code, out, err = run([{key: ROW[key] for key in ("id", "context", "question")}], {"q": "car"})
    assert (code, out) == (2, "")
    assert err == "data.json: [0]: has no reference answers, so it cannot be scored\n"


V1, V2 = nested(question("q"), version="1.1"), nested(question("q"), question("r", []), version="v2.0")
BOTH = {"q": "car", "r": ""}
PLACE = "data.json: data[0].paragraphs[0].qas[0]"
REFUSED = {
    "v1.1 with an unanswered question": (
        (nested(question("q", []), version="1.1"), {"q": ""}),
        f"{PLACE}: has no answers, although the file says version '1.1'; "
        'correct "version" or remove the question',
    ),
    "null odds for v1.1": (
        (V1, {"q": "car"}, "--null-threshold=0"),
        "data.json: v1.1 data (every question has an answer), where --null-threshold means nothing; "
        "leave it out",
    ),
    "missing predictions": (
        (V2, {"q": "car"}),
        'predictions.json: no prediction for 1 of the questions, the first being "r"; '
        "v2.0 scoring needs one for each",
    ),
    "predictions in a list": (
        (V2, ["car"]),
        "predictions.json: an object from question id to answer text is expected, and a list is found",
    ),
    "a prediction that is null": (
        (V2, {"q": "car", "r": None}),
        'predictions.json: a string as prediction of question "r" is expected, '
        "and nothing (or null) is found",
    ),
    "NaN": (
        (V2, '{"q": NaN}'),
        "predictions.json: holds NaN, which is not JSON; write a number or null instead",
    ),
    "no questions": ((nested(), {}), "data.json: holds no questions"),
    "no data": (
        ({"version": "1.1"}, {}),
        'data.json: a list "data" is expected, and nothing (or null) is found',
    ),
    "data a string": (({"data": "x"}, {}), 'data.json: a list "data" is expected, and a string is found'),
    "an article a number": (
        ({"data": [3]}, {}),
        "data.json: data[0]: an object is expected, and a number is found",
    ),
    "no qas": (
        ({"data": [{"paragraphs": [{"context": ""}]}]}, {}),
        'data.json: data[0].paragraphs[0]: a list "qas" is expected, and nothing (or null) is found',
    ),
    "a question a list": ((nested([]), {}), f"{PLACE}: an object is expected, and a list is found"),
    "an id true": (
        (nested(question(True)), {}),
        f'{PLACE}: a string or a whole number as "id" is expected, and true or false is found',
    ),
    "no answers": (
        (nested({"id": "q"}), {}),
        f'{PLACE}: a list "answers" is expected, and nothing (or null) is found',
    ),
    "an answer without text": (
        (nested(question("q", [*ANSWERS, {}])), {}),
        f'{PLACE}.answers[1]: a string "text" is expected, and nothing (or null) is found',
    ),
    "truncated": (
        ('{"data": [', {}),
        "data.json: not JSON at line 1, column 11: Expecting value; the file looks truncated",
    ),
    "empty": (("", {}), "data.json: the file is empty, and JSON is expected"),
}
REFUSED_ODDS = {
    "for v1.1": (
        V1,
        {"q": 0},
        "data.json: v1.1 data (every question has an answer), where --null-odds means nothing; leave it out",
    ),
    "a list": (V2, [], "odds.json: an object from question id to number is expected, and a list is found"),
    "missing": (
        V2,
        {"r": 0.5},
        'odds.json: no null odds for 1 of the questions, the first being "q"; '
        "v2.0 scoring needs one for each",
    ),
    "a string": (
        V2,
        {"q": "0.5"},
        'odds.json: a finite number as null odds of question "q" is expected, and a string is found',
    ),
    "true": (
        V2,
        {"q": True},
        'odds.json: a finite number as null odds of question "q" is expected, and true or false is found',
    ),
    "too large": (
        V2,
        '{"q": 1e999}',
        'odds.json: a finite number as null odds of question "q" is expected, and one out of range is found',
    ),
    "a long integer": (
        V2,
        {"q": -(10**400)},
        'odds.json: a finite number as null odds of question "q" is expected, and one out of range is found',
    ),
}


def test_refusals_are_all_there():
    assert (len(REFUSED), len(REFUSED_ODDS)) == (17, 7)


@pytest.mark.parametrize("fault", REFUSED)
def test_command_refuses(run, fault):
    arguments, sentence = REFUSED[fault]
    assert run(*arguments) == (2, "", sentence + "\n")


@pytest.mark.parametrize("fault", REFUSED_ODDS)
def test_command_refuses_null_odds(run, fault):
    data, odds, sentence = REFUSED_ODDS[fault]
    assert run(data, BOTH, null_odds=odds) == (2, "", sentence + "\n")


def test_command_refuses_missing_files_and_folders(tmp_path, capsys):
    assert main([str(tmp_path / "none.json"), "x"]) == 2
    assert capsys.readouterr() == ("", f"{tmp_path / 'none.json'}: there is no such file\n")
    assert main([str(tmp_path), "x"]) == 2
    assert capsys.readouterr() == ("", f"{tmp_path}: this is a folder, and a file is expected here\n")


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_command_line_faults_exit_with_2(arguments, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("command line: ") and err.count("\n") == 1


@pytest.mark.parametrize("text", ["nan", "x"])
def test_a_threshold_that_is_no_number(run, text):
    code, out, err = run(nested(question("q")), {"q": "car"}, "--null-threshold", text)
    assert (code, out, err) == (2, "", f"--null-threshold: expected a number, found '{text}'\n")


def test_as_a_program_without_torch(tmp_path):
    (tmp_path / "data.json").write_text("\ufeff" + json.dumps(V2), encoding="utf-8")
    (tmp_path / "predictions.json").write_text(json.dumps(BOTH), encoding="utf-8")
    # An empty torch.py that fails stands before the real one.
    (tmp_path / "torch.py").write_text("raise SystemExit('metrics must not import torch')", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "metrics", str(tmp_path / "data.json"), str(tmp_path / "predictions.json")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["exact"] == 100.0
