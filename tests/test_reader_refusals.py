"""Whatever a data file holds, it is read or refused in one sentence with file and place."""

import json

import pytest

from common.errors import InputError
from data.readers import read_dataset
from tests.test_readers import nested_articles, single, write


def in_nested(**changes):
    qa = {"id": "1", "question": "q", "answers": [{"text": "c", "answer_start": 0}]} | changes
    return {"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": [qa]}]}]}


QA = "data[0].paragraphs[0].qas[0]"
REFUSED = [
    ("", "the file is empty"),
    ("[]", "holds no questions"),
    ('{"data": []}', "holds no questions"),
    ('{"data": [{"paragraphs": []}]}', "holds no questions"),
    ("context,question\n", "holds no questions"),
    ("hello\nworld", "expected JSON, JSONL, or CSV whose header names context and question"),
    ("null", "expected JSON, JSONL, or CSV"),
    ('{"data": [', "truncated"),
    ('{"data": NaN}', "NaN"),
    ('{"data": {}}', "data: expected a list, found an object"),
    ('{"rows": []}', 'expected a list of articles under "data", found the keys "rows"'),
    ("[3]", "[0]: expected an object, found 3"),
    ('[{"a": 1}]', '[0]: expected "paragraphs", or "context" and "question", found the keys "a"'),
    ('[{"context": "c"}]', '[0]: "question" is missing'),
    ('[{"question": "q"}]', '[0]: "context" is missing'),
    ('[{"question": "q", "context": null}]', "[0].context: expected text, found null"),
    ('{"question": "q", "context": "c"}\n{"question": "q"', ": not JSON at line 2, column 17: "),
    ('{"question": "q", "context": "c"}\n{"n": NaN}', ": line 2: holds NaN"),
    ("{}", ': expected a list of articles under "data", found an empty object'),
    ("[{}]", ': [0]: expected "paragraphs", or "context" and "question", found an empty object'),
    ('{"n": ' + "9" * 5000 + "}", ": holds a number with too many digits to be read"),
    ('{"question": "q", "context": "c"}\n[]', ": line 2: expected an object, found a list"),
    ('{"question": "q", "context": "c"}\n{"question": 1, "context": "c"}',
     "line 2: question: expected text, found 1"),
    ('{"question": "\\ud83d", "context": "c"}', "question: holds half of a surrogate pair"),
    ({"data": [{"paragraphs": 3}]}, "data[0].paragraphs: expected a list, found 3"),
    ({"data": [{"paragraphs": []}, {"title": "t"}]}, 'data[1]: "paragraphs" is missing'),
    ({"data": [{"title": 1, "paragraphs": []}]}, "data[0].title: expected text, found 1"),
    ({"data": [{"paragraphs": [{"qas": []}]}]}, 'data[0].paragraphs[0]: "context" is missing'),
    ({"data": [{"paragraphs": [{"context": "c"}]}]}, 'data[0].paragraphs[0]: "qas" is missing'),
    ({"data": [{"paragraphs": [{"context": "c", "qas": ["x"]}]}]}, f'{QA}: expected an object, found "x"'),
    (in_nested(question=None), f"{QA}.question: expected text, found null"),
    (in_nested(id=1.5), f"{QA}.id: expected text or a whole number, found 1.5"),
    (in_nested(id=True), f"{QA}.id: expected text or a whole number, found true"),
    (in_nested(is_impossible="no"), f'{QA}.is_impossible: expected true or false, found "no"'),
    (in_nested(answers="x"), f'{QA}.answers: expected a list, found "x"'),
    (in_nested(answers=["x"]), f'{QA}.answers[0]: expected an object, found "x"'),
    (in_nested(answers=[{"text": "c"}]), f'{QA}.answers[0]: "answer_start" is missing'),
    (in_nested(answers=[{"text": None, "answer_start": 0}]),
     f"{QA}.answers[0].text: expected text, found null"),
    (in_nested(answers=[{"text": "c", "answer_start": "12"}]),
     f'{QA}.answers[0].answer_start: expected a whole number, found "12"'),
    (in_nested(answers=[{"text": "c", "answer_start": True}]),
     f"{QA}.answers[0].answer_start: expected a whole number, found true"),
    (in_nested(answers=[{"text": "c", "answer_start": 0.0}]),
     f"{QA}.answers[0].answer_start: expected a whole number, found 0.0"),
    ([single(answers={"text": ["a", "cat"], "answer_start": [0]})],
     '[0].answers: 2 in "text" but 1 in "answer_start"'),
    ([single(answers={"text": ["a", 5], "answer_start": [0, 0]})],
     "[0].answers.text[1]: expected text, found 5"),
    ([single(answer="cat")], '[0]: "answer_start" is missing'),
    ("context,question,context\na,b,c\n", 'line 1: two columns are called "context"'),
    ("context,question\na,b,c\n", "line 2: 3 fields, but the header has 2"),
    ('context,question\na,"b\n', "not CSV: unexpected end of data"),
    ("context,question,is_impossible\na,b,perhaps\n",
     'line 2: is_impossible: expected true or false, found "perhaps"'),
    ("context,question,answer,answer_start\na,b,a,two\n",
     'line 2: answer_start: expected a whole number, found "two"'),
    ("context,question,answer\na,b,a\n", "line 2: answer: expected"),
    ("context,question,answers\na,b,{1: {2}}\n", "line 2: answers: expected"),
    ("context,question,answers\na,b,12\n", "line 2: answers: expected a list, found 12"),
]
assert len(REFUSED) == 52


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_unusable_files_are_refused_with_file_and_place(tmp_path, number):
    content, sentence = REFUSED[number]
    path = write(tmp_path / "dev.json", content)
    with pytest.raises(InputError) as caught:
        read_dataset(path)
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04\x14\x00\x00\x00\x08\x00\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_dataset(tmp_path / "x.zip")
    with pytest.raises(InputError, match="there is no such file"):
        read_dataset([tmp_path / "none"])
    with pytest.raises(InputError, match="this is a folder"):
        read_dataset(tmp_path)
    with pytest.raises(InputError, match="no data file was given"):
        read_dataset([])


def test_every_replacement_of_a_value_is_read_or_refused(tmp_path):
    """Whatever stands anywhere in a file, the outcome is examples or InputError, nothing else."""
    original = {"version": "v2.0", "data": nested_articles()[:1]}

    def places(value, path=()):
        yield path
        if not isinstance(value, (dict, list)):
            return
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, path + (key,))

    tried = refused = 0
    for path in list(places(original)):
        for junk in (None, True, 3, 1.5, "x", [], {}, [None], {"text": []}):
            value = json.loads(json.dumps({"root": original}))
            spot, keys = value, ("root", *path)
            for key in keys[:-1]:
                spot = spot[key]
            spot[keys[-1]] = junk
            tried += 1
            try:
                assert read_dataset(write(tmp_path / "x", value["root"]), misaligned="keep").examples
            except InputError:
                refused += 1
    assert tried > 250 and 0 < refused < tried
