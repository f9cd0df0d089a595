"""Every format and shape of data reads to the same examples, and every fault is named with its place."""

import csv
import io
import json
import subprocess
import sys

import pytest

from common.errors import InputError
from data.examples import Answer
from data.readers import read_dataset

# A line separator is no end of a line in JSONL, nor is CR LF inside quotes in CSV.
RIVER = "The Aras rises in Turkey.\r\nIt joins the Kura, and\u2028reaches the Caspian Sea."
PERSIAN = "نیم‌فاصله را در نوشته‌های فارسی نگه می‌دارند."
ROWS = [
    ("a", "Rivers", RIVER, "Where does the Aras rise?", [("Turkey", 18)]),
    ("b", "Rivers", RIVER, "What does it join, \"exactly\"?", [("the Kura", 36), ("Kura", 40)]),
    ("c", "Rivers", RIVER, "Who crossed it first?", []),
    ("d", "خط", PERSIAN, "چه چیزی را نگه می‌دارند؟", [("نیم‌فاصله", 0)]),
]


def references(answers):
    return [{"text": text, "answer_start": start} for text, start in answers]


def columns(answers):
    return {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]}


def nested_articles():
    articles = []
    for name, title, context, question, answers in ROWS:
        if not articles or articles[-1]["title"] != title:
            articles.append({"title": title, "paragraphs": [{"context": context, "qas": []}]})
        qa = {"id": name, "question": question, "answers": references(answers), "is_impossible": not answers}
        articles[-1]["paragraphs"][0]["qas"].append(qa)
    return articles


def flat_rows(shape=columns):
    return [
        {"id": name, "title": title, "context": context, "question": question, "answers": shape(answers)}
        for name, title, context, question, answers in ROWS
    ]


def csv_text(rows, render, delimiter=",", line_end="\n"):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end)
    writer.writerow(rows[0])
    for row in rows:
        cells = row.values()
        writer.writerow([render(cell) if isinstance(cell, (dict, list)) else cell for cell in cells])
    return file.getvalue()


FORMATS = {
    "nested": lambda: json.dumps({"version": "v2.0", "data": nested_articles()}, ensure_ascii=False),
    "nested escaped, indented, CRLF": lambda: json.dumps(
        {"data": nested_articles()}, indent=2).replace("\n", "\r\n"),
    "bare list of articles": lambda: json.dumps(nested_articles()),
    "an article a line": lambda: "\n".join(json.dumps(article) for article in nested_articles()),
    "flat list": lambda: json.dumps(flat_rows()),
    "flat list under data": lambda: json.dumps({"data": flat_rows(references)}, indent=1),
    "JSONL": lambda: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in flat_rows()),
    "JSONL, CRLF and blank lines": lambda: "\r\n\r\n".join(json.dumps(row) for row in flat_rows(references)),
    "CSV of JSON": lambda: csv_text(flat_rows(), json.dumps),
    "CSV of Python literals": lambda: csv_text(flat_rows(), repr, line_end="\r\n"),
    "CSV with semicolons": lambda: csv_text(flat_rows(references), repr, delimiter=";"),
    "TSV": lambda: csv_text(flat_rows(references), json.dumps, delimiter="\t"),
    "byte order mark": lambda: "\ufeff" + json.dumps({"version": "v2.0", "data": nested_articles()}),
    "CSV with a mark": lambda: "\ufeff" + csv_text(flat_rows(), json.dumps),
}
assert len(FORMATS) == 14


def write(path, content):
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    path.write_bytes(text.encode("utf-8"))
    return path


def facts(dataset):
    return [(e.id, e.title, e.context, e.question, e.answers) for e in dataset.examples]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_the_same_content_reads_alike(tmp_path, name):
    # The name of the file says nothing of its format.
    dataset = read_dataset(write(tmp_path / "some.data", FORMATS[name]()))
    assert facts(dataset) == [
        (id_, title, context, question, tuple(Answer(*answer) for answer in answers))
        for id_, title, context, question, answers in ROWS
    ]
    assert dataset.may_lack_answer
    for example in dataset.examples:
        for answer in example.answers:
            assert example.context[answer.start:answer.end] == answer.text
    assert dataset.examples[0].context is dataset.examples[1].context is dataset.examples[2].context


def single(**changes):
    row = {"id": "q", "context": "a cat sat", "question": "who?"} | changes
    return {key: value for key, value in row.items() if value is not None}


SHAPES = {
    "object of lists": {"answers": {"text": ["cat"], "answer_start": [2]}},
    "list of objects": {"answers": [{"text": "cat", "answer_start": 2}]},
    "one object": {"answer": {"text": "cat", "answer_start": 2, "answer_end": 5}},
    "one object as answers": {"answers": {"text": "cat", "answer_start": 2}},
    "text beside start": {"answer": "cat", "answer_start": 2},
}
assert len(SHAPES) == 5


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_references(tmp_path, name):
    dataset = read_dataset(write(tmp_path / "x.json", [single(**SHAPES[name])]))
    assert [example.answers for example in dataset.examples] == [(Answer("cat", 2),)]
    assert not dataset.may_lack_answer


def test_csv_with_an_answer_column_blank_means_unanswerable(tmp_path):
    for name in ("answer", "text"):
        text = f"context,question,{name},answer_start\na cat sat,who?,cat,2.0\na cat sat,why?,,\n"
        dataset = read_dataset(write(tmp_path / "pets.csv", text))
        assert [(e.id, e.answers, e.where) for e in dataset.examples] == [
            ("pets:1", (Answer("cat", 2),), "line 2"), ("pets:2", (), "line 3")
        ]
        assert "1 question with a blank answer among answered ones; unanswerable" in dataset.notices[-1]


def test_csv_of_questions_only_and_huge_field(tmp_path):
    limit = csv.field_size_limit()
    context = "a long story, " * 20_000
    text = csv_text([{"context": context, "question": "who?", "answer": "", "answer_start": ""}], str)
    dataset = read_dataset(write(tmp_path / "x", text))
    assert [(e.context, e.answers) for e in dataset.examples] == [(context, None)]
    assert csv.field_size_limit() == limit


def test_place_of_csv_rows_counts_lines_inside_quotes(tmp_path):
    text = 'context,question\n"one\ntwo",q1\n\nthree,q2\n'
    assert [e.where for e in read_dataset(write(tmp_path / "x", text)).examples] == ["line 2", "line 5"]


def test_missing_answers_is_not_unanswerable(tmp_path):
    qas = [
        {"id": "1", "question": "a?"},
        {"id": "2", "question": "b?", "answers": None},
        {"id": "3", "question": "c?", "is_impossible": True},
        {"id": "4", "question": "d?", "answers": []},
        {"id": "5", "question": "e?", "is_impossible": False},
    ]
    dataset = read_dataset(write(tmp_path / "x", [{"paragraphs": [{"context": "c", "qas": qas}]}]))
    assert [example.answers for example in dataset.examples] == [None, None, (), (), None]


def test_oddities_are_noticed_once_with_their_count(tmp_path):
    qas = [
        {"id": number, "question": "q", "answers": [{"text": "c", "answer_start": 0, "answer_end": 1}] * 2}
        for number in range(1200)
    ]
    qas.append({"question": "made", "answers": [{"text": "c", "answer_start": 0}], "is_impossible": True})
    qas.append({"id": "x", "question": "none", "answers": [], "is_impossible": False})
    qas[-1]["plausible_answers"] = []
    text = json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": qas}]}]}, indent=1)
    path = write(tmp_path / "odd.json", "\ufeff" + text.replace("\n", "\r\n"))
    dataset = read_dataset(path)
    assert dataset.notices == [f"{path}: {sentence}" for sentence in (
        "starts with a byte order mark, left out",
        "lines end in CR LF",
        'no "version"',
        "1,200 integer ids read as text",
        "1 question without an id got one such as odd:1",
        "1,200 questions with two or more references",
        "1,200 questions without is_impossible, which others have",
        "1 question with is_impossible true beside answers; the answers count",
        "1 question with is_impossible false and no answers; unanswerable",
        "extra keys left unread: answer_end (2,400)",
    )]
    assert [example.id for example in dataset.examples[-3:]] == ["1199", "odd:1201", "x"]
    assert dataset.examples[-2].answers == (Answer("c", 0),)


def test_plain_official_files_give_no_notices(tmp_path):
    article = {"title": "t", "paragraphs": [{"context": "c", "qas": [
        {"id": "1", "question": "q", "answers": [{"text": "c", "answer_start": 0}]}]}]}
    assert read_dataset(write(tmp_path / "y", {"version": "1.1", "data": [article]})).notices == []


def test_repeated_ids_are_never_lost(tmp_path):
    one = write(tmp_path / "one.json", [single(id=7), single(id="7#2"), single(id=7)])
    two = write(tmp_path / "two.json", [single(id="7"), single(id=None)])
    dataset = read_dataset([one, two])
    assert [example.id for example in dataset.examples] == ["7", "7#2", "7#3", "7#4", "two:2"]
    assert [example.where for example in dataset.examples][2:4] == [f"{one}: [2]", f"{two}: [0]"]
    assert sum("suffix such as #2" in notice for notice in dataset.notices) == 2
    assert dataset.examples[0].context is dataset.examples[4].context


def misaligned_file(tmp_path):
    qas = [
        {"id": "1", "question": "a", "answers": [{"text": "cat", "answer_start": 2}]},
        {"id": "2", "question": "b", "answers": [{"text": "cat", "answer_start": 2},
                                                 {"text": "sat", "answer_start": 5}]},
        {"id": "3", "question": "c", "answers": [{"text": "a", "answer_start": -9}]},
        {"id": "4", "question": "d", "answers": []},
        {"id": "5", "question": "e", "answers": [{"text": "", "answer_start": 0}]},
    ]
    article = {"title": "", "paragraphs": [{"context": "a cat sat", "qas": qas}]}
    return write(tmp_path / "my dev.json", {"version": "1.1", "data": [article]})


def test_misaligned_answers_stop_with_place_and_remedy(tmp_path):
    path = misaligned_file(tmp_path)
    with pytest.raises(InputError) as caught:
        read_dataset(path)
    assert str(caught.value) == (
        f'{path}: data[0].paragraphs[0].qas[1].answers[1]: the answer "sat" does not stand at 5, where the '
        f"context has \" sa\" (2 other answers at fault too); mend the file with "
        f"`python -m data '{path}' --repair OUT`, or leave such answers out with --skip-misaligned"
    )


def test_misaligned_answers_are_skipped_or_kept(tmp_path):
    path = misaligned_file(tmp_path)
    dataset = read_dataset([path], misaligned="skip")
    assert [(e.id, e.answers) for e in dataset.examples] == [
        ("1", (Answer("cat", 2),)), ("2", (Answer("cat", 2),)), ("4", ())
    ]
    assert dataset.notices[-1].startswith(f"3 misaligned answers left out, the first at {path}: data[0]")
    assert dataset.notices[-1].endswith("2 questions had no other and went with them")
    kept = read_dataset(path, misaligned="keep")
    assert [len(example.answers) for example in kept.examples] == [1, 2, 1, 0, 1]
    with pytest.raises(ValueError, match="misaligned must be one of"):
        read_dataset(path, misaligned="mend")


def test_skipping_everything_is_refused(tmp_path):
    path = write(tmp_path / "x.json", [single(answer={"text": "dog", "answer_start": 40})])
    with pytest.raises(InputError, match="the context's 9 characters .the only one.*no question is left"):
        read_dataset(path, misaligned="skip")


def test_denied_empty_answer_is_unanswerable(tmp_path):
    row = single(answers=[{"text": "", "answer_start": -1}], is_impossible=True)
    path = write(tmp_path / "x.json", [row])
    assert [example.answers for example in read_dataset(path).examples] == [()]
    assert "with is_impossible true and only an empty answer" in read_dataset(path).notices[0]


def test_readers_need_no_torch():
    code = "import sys, data.readers, data.lint, data.repair, data.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
