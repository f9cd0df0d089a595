"""The corpus that comes with the project keeps what is promised of it."""

import json
import re
import string
from collections import Counter

import pytest

from data.lint import lint
from data.readers import read_dataset
from data.tokenizer import load_tokenizer
from data.texts import encode
from metrics.squad import normalize_answer
from model.source import resolve_model
from tests.tiny_model import SAMPLE

FILES = (SAMPLE / "train.json", SAMPLE / "dev.json")
PERSIAN = re.compile("[\u0600-\u06ff]")
ZWNJ = "\u200c"


@pytest.fixture(scope="module")
def parts():
    return [read_dataset([path]).examples for path in FILES]


@pytest.fixture(scope="module")
def examples(parts):
    return parts[0] + parts[1]


@pytest.fixture(scope="module")
def passages(examples):
    return list(dict.fromkeys(example.context for example in examples))


def is_persian(text):
    return len(PERSIAN.findall(text)) > len(text) / 2


def test_the_sizes(examples, passages):
    assert len(passages) == 69 and sum(map(is_persian, passages)) == 15
    assert len(examples) == 611
    assert sum(example.answers == () for example in examples) == 150
    assert sum(len(example.answers) > 1 for example in examples) == 148
    assert all(2 <= sum(not e.answers for e in examples if e.context == passage) <= 4 for passage in passages)


def test_train_and_dev_share_nothing(parts):
    train, dev = ({example.context for example in part} for part in parts)
    assert (len(train), len(dev)) == (51, 18) and not train & dev
    assert sum(map(is_persian, train)) == 11 and sum(map(is_persian, dev)) == 4
    titles = [{example.title for example in part} for part in parts]
    assert not titles[0] & titles[1] and sum(map(len, titles)) == 69
    for part in parts:
        assert {bool(example.answers) for example in part} == {True, False}


def test_some_passages_are_longer_than_a_window(passages, minilm_tokenizer):
    lengths = [len(ids) for ids, _ in encode(minilm_tokenizer, passages)]
    assert sum(length > 512 for length in lengths) >= 6
    english = [length for length, passage in zip(lengths, passages) if not is_persian(passage)]
    assert sum(length > 512 for length in english) == 6 and max(english) > 800


@pytest.fixture(scope="module")
def minilm_tokenizer():
    return load_tokenizer(resolve_model("minilm", offline=True).folder)


def test_the_linter_finds_nothing():
    report = lint(*FILES)
    assert report.findings == [] and len(report.summaries) == 2
    assert [summary.counts["questions"] for summary in report.summaries] == [443, 168]


def test_ids_and_answers(examples):
    assert len({example.id for example in examples}) == len(examples)
    for example in examples:
        assert re.fullmatch(r"sample-\d\d-\d\d", example.id)
        for answer in example.answers:
            assert example.context[answer.start : answer.end] == answer.text
            assert normalize_answer(answer.text), example.id  # nothing but "the" could not be scored
        texts = [answer.text for answer in example.answers]
        assert len(set(texts)) == len(texts) and len(texts) <= 4


def test_is_impossible_and_plausible_answers_fit():
    plausible = 0
    for path in FILES:
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    assert question["is_impossible"] == (not question["answers"])
                    for answer in question.get("plausible_answers", []):
                        start = answer["answer_start"]
                        assert paragraph["context"][start : start + len(answer["text"])] == answer["text"]
                        assert question["is_impossible"]
                        plausible += 1
    assert plausible > 100


def words(text):
    """Lower-case words without punctuation, Persian too."""
    return re.sub(f"[{re.escape(string.punctuation)}؟،؛«»“”’]", " ", text.lower()).split()


def test_no_question_is_asked_twice(examples):
    counts = Counter(" ".join(words(example.question)) for example in examples)
    assert [question for question, times in counts.items() if times > 1] == []


def test_no_two_questions_differ_by_a_slot(examples):
    """Of any two questions at least four words in ten are different, and they begin in many ways."""
    bags = [(example.id, set(words(example.question))) for example in examples]
    for number, (one, bag) in enumerate(bags):
        for other, second in bags[number + 1 :]:
            assert len(bag & second) < 0.6 * len(bag | second), f"{one} and {other}"
    beginnings = Counter(" ".join(words(example.question)[:3]) for example in examples)
    assert beginnings.most_common(1)[0][1] < 0.05 * len(examples)


def test_no_passage_restates_another(passages):
    runs = [{tuple(text[k : k + 6]) for k in range(len(text) - 5)} for text in map(words, passages)]
    for number, one in enumerate(runs):
        for other in runs[number + 1 :]:
            assert len(one & other) <= 1


def test_the_subjects_asked_for(examples):
    titles = " | ".join({example.title for example in examples})
    for subject in ("Machine learning", "Deep learning", "BERT", "The transformer", "Quantization"):
        assert subject in titles


def test_persian_keeps_its_half_spaces(examples):
    persian = [example for example in examples if is_persian(example.context)]
    answers = [answer.text for example in persian for answer in example.answers]
    assert len(persian) == 133 and all(PERSIAN.search(example.question) for example in persian)
    assert sum(ZWNJ in text for text in answers) >= 30
    assert all(text == text.strip(ZWNJ + " ") for text in answers)
    assert any("۰" <= mark <= "۹" for text in answers for mark in text)  # Persian digits
    assert any("\u064b" <= mark <= "\u0654" for text in answers for mark in text)  # vowel signs, hamza above
