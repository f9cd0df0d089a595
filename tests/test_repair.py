"""The repair mends what the linter finds, without inventing anything."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from data.examples import Answer
from data.lint import KINDS, lint
from data.readers import read_dataset
from data.repair import locate, repair_file
from tests.test_lint import PERSIAN, first_paragraph, qa, write


def test_locate():
    assert locate("a cat, a cat", "cat", 5) == (2, 5)  # 3 away, the other 4
    assert locate("a cat, a cat", "cat", 6) == (9, 12)
    assert locate("aXaYa", "a", 1) == (0, 1)  # equally near: the earlier
    assert locate("aaaa", "aa", 1) == (1, 3)
    assert locate("a cat", "cat", -1000) == locate("a cat", "cat", 1000) == (2, 5)
    assert locate("A  A\nA", "a a", 3) == (3, 6)  # occurrences that overlap
    assert locate("A CAT cat", "cat", 0) == (6, 9)  # exact before near
    assert locate("a.c abc", "A.C", 4) == (0, 3)  # not a pattern
    assert locate("a cat", "dog", 0) is None
    assert locate("a cat", " ", 0) is None
    assert locate("", "a", 0) is None
    assert locate(PERSIAN, "کتاب‌های", 30) == (32, 40) and locate(PERSIAN, "کتابهای", 30) is None


def test_repair_mends_and_gives_account(tmp_path):
    source = tmp_path / "in.json"
    qas = [
        {"id": 1, "question": " who? ", "plausible_answers": [{"text": "x", "answer_start": 4}],
         "answers": [{"text": "cat", "answer_start": 5, "answer_end": 8}], "is_impossible": True},
        qa(1, "what?", [(" CAT ", 3), ("dog", 0), ("", 0)], note="kept"),
        qa("3", "lost?", [("dog", 0)]),
        {"question": "no answer?", "answers": []},
        qa("5", "denied?", [("", 0)], is_impossible=True),
        {"id": "6", "question": "not asked for?"},
    ]
    write(source, (" a cat sat ", qas), (" ", [qa("7")]), version="c1", licence="free")
    out = tmp_path / "out.json"
    account = repair_file(source, out)
    value = json.loads(out.read_text(encoding="utf-8"))
    assert value["version"] == "v2.0" and value["licence"] == "free"
    assert [paragraph["context"] for paragraph in value["data"][0]["paragraphs"]] == ["a cat sat"]
    assert first_paragraph(out)["qas"] == [
        {"id": 1, "question": "who?", "answers": [{"text": "cat", "answer_start": 2, "answer_end": 5}],
         "is_impossible": False, "plausible_answers": [{"text": "x", "answer_start": 3}]},
        {"id": "1#2", "question": "what?", "answers": [{"text": "cat", "answer_start": 2}],
         "is_impossible": False, "note": "kept"},
        {"id": "in:4", "question": "no answer?", "answers": [], "is_impossible": True},
        {"id": "5", "question": "denied?", "answers": [], "is_impossible": True},
        {"id": "6", "question": "not asked for?"},
    ]
    assert account.lines() == [
        "contexts freed of outer whitespace, their offsets moved along: 2",
        "questions freed of outer whitespace: 1",
        "answers freed of outer whitespace, their offsets moved along: 1",
        "offsets moved to the nearest place where the answer stands: 1",
        "answers that differed in whitespace or case, replaced by the context's own characters: 1",
        "unanswerable questions freed of an empty answer: 1",
        "is_impossible made to agree with the answers: 1",
        "ids made unique with a suffix such as #2: 1",
        "ids given where there was none: 1",
        "answers dropped for having no text: 1",
        "answers dropped for not being in the context: 2",
        "questions dropped for having an empty context: 1",
        "questions dropped for having lost all their answers: 1",
    ]
    assert account.dropped == ["data[0].paragraphs[0].qas[2]", "data[0].paragraphs[1].qas[0]"]
    assert lint(out).findings == []


def test_stripping_moves_the_offset(tmp_path):
    """The bug to be avoided: " کتاب" at 8 stripped to "کتاب" and left at 8."""
    context = "  سه کتاب خواند، و کتاب دیگر"
    path = write(tmp_path / "in", (context, [qa("1", "چه؟", [(" کتاب ", 4), (" سه", 1)])]))
    account = repair_file(path, tmp_path / "out")
    # Moved exactly, not lost and searched for again: of two occurrences that could be the wrong one.
    assert account.changes == {"context stripped": 1, "answer stripped": 2}
    mended = first_paragraph(tmp_path / "out")
    assert mended["context"] == context[2:]
    assert mended["qas"][0]["answers"] == [
        {"text": "کتاب", "answer_start": 3}, {"text": "سه", "answer_start": 0}
    ]


def test_stripping_keeps_to_the_same_occurrence(tmp_path):
    path = write(tmp_path / "in", ("    a, a    a", [qa("1", "q", [("a", 7), ("   a", 9)])]))
    repair_file(path, tmp_path / "out")
    answers = first_paragraph(tmp_path / "out")["qas"][0]["answers"]
    assert [answer["answer_start"] for answer in answers] == [3, 8]


def test_inclusive_answer_end_stays_inclusive(tmp_path):
    record = {"id": "1", "question": "q", "answers": [{"text": "cat ", "answer_start": 3, "answer_end": 6}]}
    repair_file(write(tmp_path / "in", (" a cat sat", [record])), tmp_path / "out")
    assert first_paragraph(tmp_path / "out")["qas"][0]["answers"] == [
        {"text": "cat", "answer_start": 2, "answer_end": 4}
    ]


def test_flat_files_become_nested(tmp_path):
    cat, dog = {"title": "t", "context": "a cat sat"}, {"title": "u", "context": "a dog"}
    rows = [
        {**cat, "question": "who?", "answer": "cat", "answer_start": 0, "n": 1},
        {**cat, "question": "why?", "answers": {"text": [], "answer_start": []}},
        {**dog, "question": "who?", "answers": {"text": ["dog"], "answer_start": [2]}},
    ]
    path = tmp_path / "pets.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    repair_file(path, tmp_path / "out.json")
    value = json.loads((tmp_path / "out.json").read_text())
    assert value == {"version": "v2.0", "data": [
        {"title": "t", "paragraphs": [{"context": "a cat sat", "qas": [
            {"id": "pets:1", "question": "who?", "answers": [{"text": "cat", "answer_start": 2}],
             "is_impossible": False, "n": 1},
            {"id": "pets:2", "question": "why?", "answers": [], "is_impossible": True},
        ]}]},
        {"title": "u", "paragraphs": [{"context": "a dog", "qas": [
            {"id": "pets:3", "question": "who?", "answers": [{"text": "dog", "answer_start": 2}],
             "is_impossible": False},
        ]}]},
    ]}


def test_answerable_data_stay_version_1(tmp_path):
    repair_file(write(tmp_path / "in", ("cat", [qa("1", "q", [("cat", 1)])])), tmp_path / "out")
    assert json.loads((tmp_path / "out").read_text())["version"] == "1.1"
    assert "is_impossible" not in first_paragraph(tmp_path / "out")["qas"][0]


def test_repair_refuses_its_input_as_output_and_empty_results(tmp_path):
    path = write(tmp_path / "in.json", ("cat", [qa("1", "q", [("dog", 1)])]))
    before = path.read_bytes()
    os.symlink(path, tmp_path / "link.json")
    os.link(path, tmp_path / "hard.json")
    for out in (path, tmp_path / "." / "in.json", tmp_path / "link.json", tmp_path / "hard.json"):
        for one, other in ((path, out), (out, path)):
            with pytest.raises(InputError, match="would write over its own input"):
                repair_file(one, other, overwrite=True)
    with pytest.raises(InputError, match="no question can be mended"):
        repair_file(path, tmp_path / "out")
    assert path.read_bytes() == before and not (tmp_path / "out").exists()


def test_repair_spares_what_exists(tmp_path):
    path = write(tmp_path / "in.json", ("cat", [qa("1", "q", [("cat", 1)])]))
    old, link = tmp_path / "old.json", tmp_path / "link.json"
    old.write_text("precious")
    os.symlink("old.json", link)
    for out in (old, link):
        with pytest.raises(InputError) as caught:
            repair_file(path, out)
        assert str(caught.value) == (
            f"{out}: this file exists; name another one, or add --overwrite to replace it"
        )
    assert old.read_text() == "precious"
    os.mkfifo(tmp_path / "fifo")
    for out, kind in ((tmp_path / "fifo", "not a regular file"), (tmp_path, "a folder"),
                      (os.devnull, "not a regular file")):
        for overwrite in (False, True):
            with pytest.raises(InputError) as caught:
                repair_file(path, out, overwrite)
            assert str(caught.value) == f"{out}: cannot be written (it is {kind}); name another file"
    assert (tmp_path / "fifo").is_fifo()
    repair_file(path, link, overwrite=True)
    assert link.is_symlink() and first_paragraph(old)["qas"][0]["answers"] == [
        {"text": "cat", "answer_start": 0}
    ]


def test_lone_surrogate_in_an_extra_key_is_refused(tmp_path):
    path = tmp_path / "in.json"
    path.write_text('[{"id": "1", "question": "q", "context": "c", "note": "\\ud83d"}]')
    with pytest.raises(InputError, match="an extra key holds half of a surrogate pair"):
        repair_file(path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["in.json"]


LETTERS = st.text(st.sampled_from("aAbß .\n\u200c\u00a0یک"), max_size=12)
REPAIRED_KINDS = set(KINDS) - {"duplicate question", "empty question", "shared context"}


@st.composite
def damaged(draw):
    """A context with answers cut from it, then shifted, padded or re-cased, or wholly made up."""
    context = draw(LETTERS)
    answers = []
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(context)))
        text = context[start:draw(st.integers(start, len(context)))]
        if draw(st.booleans()):
            text = draw(st.sampled_from([text.upper(), f" {text}", f"{text}\n", text.strip(), "", "zz"]))
        answers.append((text, start + draw(st.integers(-3, 3))))
    more = {"is_impossible": draw(st.booleans())} if draw(st.booleans()) else {}
    return context, [qa(draw(st.sampled_from("12")), draw(LETTERS), answers, **more), qa("kept")]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paragraphs=st.lists(damaged(), min_size=1, max_size=3))
def test_repair_of_random_damage_is_clean_and_final(tmp_path, paragraphs):
    path = write(tmp_path / "in.json", ("whole", [qa("whole", "q", [("whole", 0)])]), *paragraphs)
    out, again = tmp_path / "out.json", tmp_path / "again.json"
    repair_file(path, out, overwrite=True)
    assert not REPAIRED_KINDS & set(lint(out).totals())
    assert not repair_file(out, again, overwrite=True).changes
    assert again.read_bytes() == out.read_bytes()
    before, after = by_id(path), by_id(out)
    assert set(after) <= set(before)
    for name, old in before.items():
        real = [answer for answer in old.answers if answer.text.strip()]
        if name not in after:  # a question that said to be unanswerable goes only with its context
            assert old.answers or not old.context.strip()
            continue
        new = after[name]
        assert new.context == old.context.strip() and new.question == old.question.strip()
        assert bool(real) >= bool(new.answers) and (new.answers or not real)
        lead = len(old.context) - len(old.context.lstrip())
        for answer in real:
            cut = old.context[answer.start:answer.end] if answer.start >= 0 else None
            if answer.text == answer.text.strip() == cut:
                assert Answer(answer.text, answer.start - lead) in new.answers


def by_id(path):
    return {example.id: example for example in read_dataset(path, misaligned="keep").examples}


@settings(max_examples=200, deadline=None)
@given(context=LETTERS, text=LETTERS, offset=st.integers(-2, 14))
def test_locate_agrees_with_trying_every_place(context, text, offset):
    text = text.strip()
    spots = [i for i in range(len(context)) if text and context.startswith(text, i)]
    clamped = min(max(offset, 0), len(context))
    if spots:
        start = min(spots, key=lambda i: (abs(i - clamped), i))
        assert locate(context, text, offset) == (start, start + len(text))
    else:
        span = locate(context, text, offset)
        if span:
            same = context[slice(*span)].split(), text.split()
            assert same[0] != same[1] or context[slice(*span)] != text
            assert [word.casefold() for word in same[0]] == [word.casefold() for word in same[1]]
