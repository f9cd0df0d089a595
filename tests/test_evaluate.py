"""Scores, the threshold and the prediction files, on predictions made by hand."""

import math

import pytest

from data.decode import Prediction, Span
from data.examples import Answer, Example
from metrics import split_halves
from training.evaluate import (
    answer_text, evaluate, nbest_of, null_odds_of, prediction_files, references_of, score_at, tune_threshold,
)
from training.measure import LATENCY_QUESTIONS, latency


def example(number, text, context=None):
    """Question `number`; no text means that it has no answer."""
    context = context or f"Context {number} says {text}."
    answers = (Answer(text, context.index(text)),) if text else ()
    return Example(f"q{number}", "What?", context, answers, f"data[{number}]")


def prediction(number, text, odds, null=1.0):
    """A best span `text` and null odds `odds`; no text means no span at all."""
    if not text:
        return Prediction(f"q{number}", (), (null, 0.0), 1.0, "the context has no readable words")
    best = Span(text, 0, len(text), null - odds, 0.0, 0.75)
    return Prediction(f"q{number}", (best, Span("worse", 9, 14, -5.0, 0.5, 0.15)), (null, 0.0), 0.1)


class Fixed:
    """A reader that says what it was told to; `ask` takes the seconds of a list, in turn."""

    def __init__(self, predictions, seconds=()):
        self.predictions, self.seconds, self.asked, self.offered = predictions, list(seconds), [], None

    def predict(self, examples, *, offer_null, progress):
        self.offered = offer_null
        return iter(self.predictions)

    def ask(self, question, context):
        self.asked.append(context)
        return None, self.seconds[len(self.asked) - 1]


def test_answer_text_is_empty_only_above_the_threshold():
    said = prediction(1, "red", odds=2.0)
    assert [answer_text(said, t) for t in (None, 1.999, 2.0, 2.001)] == ["red", "", "red", "red"]
    assert answer_text(prediction(1, "", 0), None) == "" == answer_text(prediction(1, "", 0), 1e12)


def test_v1_scores_by_hand():
    examples = [example(1, "red"), example(2, "the green house"), example(3, "blue"), example(4, "grey")]
    said = [prediction(1, "Red!", 9), prediction(2, "green barn", 9), prediction(3, "no", 9), prediction(4, "", 0)]
    reader = Fixed(said)
    result = evaluate(reader, examples, may_lack_answer=False)
    assert result.scores == {"exact": 25.0, "f1": pytest.approx(100 * (1 + 0.5) / 4), "total": 4}
    assert (result.threshold, reader.offered, list(result.predictions)) == (None, False, said)
    assert result.texts() == {"q1": "Red!", "q2": "green barn", "q3": "no", "q4": ""}
    assert result.seconds >= 0


def halves_of(count):
    """Examples of `count` contexts, alternately with and without answer, and how they are split."""
    examples = [example(k, "red" if k % 2 else "") for k in range(count)]
    return examples, split_halves([e.context for e in examples])


def test_threshold_is_tuned_on_one_half_and_reported_on_the_other():
    examples, (tuned, reported) = halves_of(40)
    said = []
    for k, e in enumerate(examples):
        # on the tuned half a threshold between 2 and 3 is perfect; on the other all odds lie far above it
        odds = (2.0 if e.answers else 3.0) if k in tuned else 50.0
        said.append(prediction(k, "red", odds))
    threshold, halves = tune_threshold(examples, said)
    assert threshold == 2.5
    assert (halves["tuned_on"]["exact"], halves["tuned_on"]["total"]) == (100.0, len(tuned))
    none = sum(not examples[k].answers for k in reported)
    assert (halves["reported_on"]["total"], halves["reported_on"]["NoAns_total"]) == (len(reported), none)
    assert halves["reported_on"]["f1"] == pytest.approx(100 * none / len(reported))
    assert halves["reported_on"]["HasAns_f1"] == 0.0 and halves["reported_on"]["NoAns_f1"] == 100.0

    result = evaluate(Fixed(said), examples, may_lack_answer=True)
    assert (result.threshold, result.scores["threshold_halves"]) == (2.5, halves)
    assert result.scores["exact"] == score_at(examples, said, 2.5)["exact"]
    fixed = evaluate(Fixed(said), examples, may_lack_answer=True, tune=False, threshold=50.0)
    assert fixed.threshold == 50.0 and "threshold_halves" not in fixed.scores
    assert fixed.scores["HasAns_exact"] == 100.0


def test_f1_is_what_is_tuned():
    context = "One context for all: a red house, and nothing else."
    examples = [example(k, "red house", context) for k in range(3)] + [example(3, "", context), example(4, "", context)]
    # three answers of F1 0.5 and EM 0 with low odds; saying nothing gives 2 of 5, all 1.5 of 5, both 3.5 of 5
    said = [prediction(k, "red barn", 1.0) for k in range(3)] + [prediction(k, "red", 4.0) for k in (3, 4)]
    threshold, halves = tune_threshold(examples, said)
    assert threshold == 2.5
    assert halves["tuned_on"]["f1"] == pytest.approx(70.0) and halves["tuned_on"]["exact"] == 40.0
    assert "reported_on" not in halves  # one context makes one half


def test_an_answer_of_articles_alone_is_no_right_answer_to_an_unanswerable_question():
    """"the" normalises to nothing, as "no answer" does; a span is still a wrong answer there."""
    context = "The the the, and once more the."
    examples = [example(1, "", context), example(2, "once more", context)]
    said = [prediction(1, "the", 5.0), prediction(2, "once more", 1.0)]
    threshold, halves = tune_threshold(examples, said)
    assert 1.0 <= threshold < 5.0 and halves["tuned_on"]["exact"] == 100.0


@pytest.mark.parametrize("text", ["red", ""])
def test_questions_without_spans_are_no_answers(text):
    examples = [example(k, text) for k in range(6)]
    said = [prediction(k, "", 0) for k in range(6)]
    assert set(null_odds_of(said).values()) == {1e9}
    result = evaluate(Fixed(said), examples, may_lack_answer=True)
    assert result.scores["exact"] == (0.0 if text else 100.0)
    assert math.isfinite(result.threshold)
    assert set(result.texts().values()) == {""}


def test_no_null_in_nbest_where_none_is_offered():
    said = prediction(1, "red", odds=2.0)
    plain = nbest_of(said, offer_null=False)
    assert [list(record) for record in plain] == [["text", "probability", "start_logit", "end_logit"]] * 2
    assert [record["text"] for record in plain] == ["red", "worse"]
    offered = nbest_of(said, offer_null=True)
    assert [(r["text"], r["probability"]) for r in offered] == [("red", 0.75), ("worse", 0.15), ("", 0.1)]
    assert offered[2]["start_logit"] == 1.0
    assert nbest_of(prediction(1, "", 0), True) == [
        {"text": "", "probability": 1.0, "start_logit": 1.0, "end_logit": 0.0}
    ]


def test_prediction_files():
    said = [prediction(1, "red", 2.0), prediction(2, "", 0)]
    files = prediction_files(said, 1.0, offer_null=True)
    assert list(files["predictions.json"]) == [("q1", ""), ("q2", "")]
    assert [name for name, _ in files["nbest_predictions.json"]] == ["q1", "q2"]
    assert dict(files["null_odds.json"]) == {"q1": 2.0, "q2": 1e9}
    assert dict(prediction_files(said, None, offer_null=False)["null_odds.json"]) == {}
    assert references_of([example(1, "red"), example(2, "")]) == [("q1", ["red"]), ("q2", [])]


@pytest.mark.parametrize("count", [1, 2, 49, 50, 51, 99, 100, 1003])
def test_latency_asks_spread_questions_one_by_one(count):
    examples = [example(k, "red") for k in range(count)]
    asked = min(count, LATENCY_QUESTIONS)
    reader = Fixed([], [1000.0, *(float(k) for k in range(asked))])
    found = latency(reader, examples)
    assert len(reader.asked) == asked + 1  # the first warms up and is not counted
    assert reader.asked[0] == reader.asked[1] == examples[0].context
    assert len(set(reader.asked)) == asked
    assert reader.asked[-1] == examples[-1].context
    assert found == {"p50": pytest.approx((asked - 1) / 2), "p95": pytest.approx(0.95 * (asked - 1))}
