"""Scores: the official arithmetic and its quirks by hand, golden results, and the threshold searches."""

import json
import math
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import metrics
from common.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
ZWNJ = "\u200c"


def golden_cases(name):
    """Synthetic questions with what the official scripts' functions gave for them (Python 3.11).

    Only cases were kept whose sums do not depend on how `sum()` rounds, which Python 3.12 changed.
    """
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def references_of(document):
    return [
        (entry["id"], [answer["text"] for answer in entry["answers"]])
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for entry in paragraph["qas"]
    ]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat,\tsat!", "cat sat"),
        ("A.N. Other", "other"),  # punctuation goes first, so "an" becomes an article
        ("l'an", "lan"),
        ("theatre another", "theatre another"),
        ("an\u00a0apple\u2009tart", "apple tart"),
        ("«the book»", "« book»"),  # only ASCII punctuation goes, and the article is a word of its own
        ("“a”", "“ ”"),
        ("Straße İ", "straße i\u0307"),
        (f"می{ZWNJ}روم،", f"می{ZWNJ}روم،"),
        (ZWNJ, ZWNJ),
        ("a_the_b", "atheb"),
        ("-.'the", ""),
        ("", ""),
    ],
)
def test_normalize_answer(text, normal):
    assert metrics.normalize_answer(text) == normal


def test_f1_of_tokens_as_multisets():
    # Shared: red, car. Precision 2/3 ("the" is gone), recall 2/4.
    expected = (2 * (2 / 3) * 0.5) / (2 / 3 + 0.5)
    assert metrics.f1_v1("the red red car", "red car park now") == expected
    assert metrics.f1_v2("the red red car", "red car park now") == expected
    assert metrics.f1_v2("red red", "red red red") == (2 * 1.0 * (2 / 3)) / (1.0 + 2 / 3)
    assert metrics.f1_v1("car", "park") == metrics.f1_v2("car", "park") == 0


def test_nothing_against_nothing_differs_between_the_versions():
    assert metrics.exact_match("the", ".") == 1
    assert metrics.f1_v1("the", ".") == 0
    assert metrics.f1_v2("the", ".") == 1
    assert metrics.f1_v2("the", "car") == metrics.f1_v2("car", "!") == 0


def test_v1_counts_a_missing_prediction_as_zero_and_takes_each_maximum_by_itself():
    references = [("q1", ["car park", "car"]), ("q2", ["."]), ("q3", ["never asked"])]
    scores = metrics.evaluate_v1(references, {"q1": "a car park there", "q2": "", "other": "x"})
    assert scores == {"exact_match": 100.0 * 1 / 3, "f1": 100.0 * 0.8 / 3}
    assert list(scores) == ["exact_match", "f1"]


def test_v1_counts_questions_of_one_id_once_each():
    scores = metrics.evaluate_v1([("q", ["a1"]), ("q", ["b2"])], {"q": "b2"})
    assert scores == {"exact_match": 50.0, "f1": 50.0}


def test_v1_refuses_a_question_without_references():
    with pytest.raises(InputError, match='^question "q2" has no reference answer, which v1.1 scoring does'):
        metrics.evaluate_v1([("q1", ["x"]), ("q2", [])], {"q1": "x"})


@pytest.mark.parametrize("evaluate", [metrics.evaluate_v1, metrics.evaluate_v2])
def test_no_questions_are_refused(evaluate):
    with pytest.raises(InputError, match="^there are no questions to score$"):
        evaluate([], {})


def test_v2_has_the_official_keys_in_the_official_order():
    references = [("q1", ["car"]), ("q2", [])]
    scores = metrics.evaluate_v2(references, {"q1": "car", "q2": "x"}, {"q1": 0.25, "q2": 0.75})
    assert list(scores.items()) == [
        ("exact", 50.0),
        ("f1", 50.0),
        ("total", 2),
        ("HasAns_exact", 100.0),
        ("HasAns_f1", 100.0),
        ("HasAns_total", 1),
        ("NoAns_exact", 0.0),
        ("NoAns_f1", 0.0),
        ("NoAns_total", 1),
        ("best_exact", 100.0),
        ("best_exact_thresh", 0.25),
        ("best_f1", 100.0),
        ("best_f1_thresh", 0.25),
    ]


def test_v2_leaves_out_a_part_without_questions():
    answered, unanswered = (metrics.evaluate_v2([("q", texts)], {"q": "x"}) for texts in (["x"], []))
    assert list(answered)[3:] == ["HasAns_exact", "HasAns_f1", "HasAns_total"]
    assert list(unanswered)[3:] == ["NoAns_exact", "NoAns_f1", "NoAns_total"]


def test_v2_drops_blank_references_but_having_them_decides_the_part():
    # "." is dropped and "" takes its place, so "the" is right, yet the question counts as answerable.
    scores = metrics.evaluate_v2([("q", ["."]), ("r", [".", "car"])], {"q": "the", "r": ""})
    assert scores["HasAns_total"] == 2
    assert (scores["HasAns_exact"], scores["HasAns_f1"]) == (50.0, 50.0)
    # Turned into null by the threshold it is wrong, although null is its only right answer.
    assert metrics.evaluate_v2([("q", ["."])], {"q": ""}, {"q": 2.0})["exact"] == 0.0


def test_v2_repeated_ids_collapse_to_the_last_scores():
    references = [("q", ["first"]), ("r", ["x"]), ("q", [])]
    scores = metrics.evaluate_v2(references, {"q": "first", "r": "x"})
    assert (scores["total"], scores["HasAns_total"], scores["NoAns_total"]) == (2, 1, 1)
    assert (scores["exact"], scores["NoAns_exact"]) == (50.0, 0.0)


def test_v2_threshold_is_strict_and_defaults_to_one():
    references = [("q", ["x"]), ("r", [])]
    predictions = {"q": "x", "r": "y"}
    assert metrics.evaluate_v2(references, predictions, {"q": 1, "r": 1.0})["exact"] == 50.0
    assert metrics.evaluate_v2(references, predictions, {"q": 1, "r": 1.5})["exact"] == 100.0
    assert metrics.evaluate_v2(references, predictions, {"q": 1.5, "r": 1.5})["exact"] == 50.0
    assert metrics.evaluate_v2(references, predictions, {"q": 1.5, "r": 1.5}, 1.5)["NoAns_exact"] == 0.0
    # Without odds they are all 0.0, so only a negative threshold changes anything.
    assert metrics.evaluate_v2(references, predictions, None, -0.1)["NoAns_exact"] == 100.0
    assert metrics.evaluate_v2(references, predictions, None, 0.0)["NoAns_exact"] == 0.0


def test_v2_says_how_many_predictions_or_odds_are_missing():
    references = [("q1", ["x"]), ("q2", []), ("q3", []), ("q3", [])]
    with pytest.raises(InputError, match='^no prediction for 2 of the questions, the first being "q2"; v2.0'):
        metrics.evaluate_v2(references, {"q1": "x"})
    with pytest.raises(InputError, match='^no null odds for 1 of the questions, the first being "q1"; v2.0'):
        metrics.evaluate_v2(references, {"q1": "x", "q2": "", "q3": ""}, {"q2": 0, "q3": 1})


def test_official_search_starts_from_all_null_at_zero():
    has_answer = {"q": True, "r": False}
    args = {"q": "wrong", "r": ""}, {"q": 0, "r": 1}, {"q": -5.0, "r": -4.0}
    assert metrics.official_best_threshold(*args, has_answer) == (50.0, 0.0)


def test_official_search_does_not_group_ties():
    # Both at 3: the best prefix ends between them, at a score that no threshold reaches.
    has_answer = {"q": True, "r": False}
    predictions, scores = {"q": "x", "r": "y"}, {"q": 1, "r": 0}
    official = metrics.official_best_threshold(predictions, scores, {"q": 3, "r": 3}, has_answer)
    assert official == (100.0, 3) and type(official[1]) is int
    # The order of the file of odds decides: now the loss comes first.
    assert metrics.official_best_threshold(predictions, scores, {"r": 3, "q": 3}, has_answer) == (50.0, 0.0)
    assert metrics.best_threshold({"q": 3, "r": 3}, scores, has_answer) == (2.0, 0.5)


def test_official_search_skips_unknown_ids_and_takes_only_the_empty_string_for_null():
    has_answer = {"q": True, "r": False}
    odds = {"stranger": -9.0, "r": 0.5, "q": 0.75}
    scores = {"q": 1, "r": 1}
    assert metrics.official_best_threshold({"q": "x", "r": ""}, scores, odds, has_answer) == (100.0, 0.75)
    # A blank costs a point on the way, although it scores as null.
    assert metrics.official_best_threshold({"q": "x", "r": " "}, scores, odds, has_answer) == (50.0, 0.0)


V1_CASES = golden_cases("metrics_v1.json")
V2_CASES = golden_cases("metrics_v2.json")


def test_golden_files_are_whole():
    assert (len(V1_CASES), len(V2_CASES)) == (5, 10)
    assert sum(len(case["predictions"]) for case in V1_CASES + V2_CASES) > 350


@pytest.mark.parametrize("case", V1_CASES)
def test_v1_golden(case):
    scores = metrics.evaluate_v1(references_of(case["data"]), case["predictions"])
    assert json.dumps(scores) == json.dumps(case["expected"])


@pytest.mark.parametrize("case", V2_CASES)
def test_v2_golden(case):
    references = references_of(case["data"])
    scores = metrics.evaluate_v2(references, case["predictions"], case["null_odds"], case["null_threshold"])
    assert json.dumps(scores) == json.dumps(case["expected"])


QUESTIONS = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([-1.5, 0, 0.0, 1, 2.25]), st.floats(-1e6, 1e6)),
        st.sampled_from([0, 0.4, 2 / 3, 1.0, 1]),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


def mean_at(threshold, questions):
    """The mean score by definition, exactly."""
    scores = [not has_answer if odds > threshold else score for odds, score, has_answer in questions]
    return sum(map(Fraction, scores)) / len(questions)


def columns(questions):
    """The three dicts id -> value that the searches take."""
    return tuple({f"q{i}": row[column] for i, row in enumerate(questions)} for column in range(3))


@given(QUESTIONS, st.randoms(use_true_random=False))
def test_best_threshold_against_brute_force(questions, shuffle):
    threshold, mean = metrics.best_threshold(*columns(questions))
    levels = sorted({float(odds) for odds, _, _ in questions})
    # Each level is a threshold of the interval that starts at it; one below them all makes all null.
    starts = [-math.inf, *levels]
    best = max(mean_at(start, questions) for start in starts)
    assert mean_at(threshold, questions) == best and mean == float(best)

    ends = [*levels, math.inf]
    winners = [(end - start, -start) for start, end in zip(starts, ends) if mean_at(start, questions) == best]
    start = -max(winners)[1]
    end = ends[starts.index(start)]
    assert start <= threshold < end
    if start == -math.inf:
        assert threshold == end - 1
    elif end == math.inf:
        assert threshold == start + 1
    else:
        assert threshold == pytest.approx((start + end) / 2)

    odds, scores, has_answer = columns(questions)
    ids = list(scores)
    shuffle.shuffle(ids)
    assert metrics.best_threshold(odds, {name: scores[name] for name in ids}, has_answer) == (threshold, mean)


@given(QUESTIONS, st.data())
def test_official_search_against_every_prefix(questions, data):
    odds, scores, has_answer = columns(questions)
    predictions = {name: data.draw(st.sampled_from(["", "x"])) for name in odds}
    ranked = [name for _, _, name in sorted((odds[name], i, name) for i, name in enumerate(odds))]
    totals = [float(sum(not value for value in has_answer.values()))]
    for name in ranked:
        gain = scores[name] if has_answer[name] else -bool(predictions[name])
        totals.append(totals[-1] + gain)
    first_best = totals.index(max(totals))
    expected = 100.0 * max(totals) / len(questions), odds[ranked[first_best - 1]] if first_best else 0.0
    assert metrics.official_best_threshold(predictions, scores, odds, has_answer) == expected


def test_best_threshold_worked_example():
    odds = {"right": 1, "none": 3, "right too": 4}
    scores = {"right": 1.0, "none": 0.0, "right too": 1.0}
    has_answer = {"right": True, "none": False, "right too": True}
    assert metrics.best_threshold(odds, scores, has_answer) == (5.0, 2 / 3)
    # Where the outer ones are worse, the middle of the inner interval.
    scores["right too"] = 0.0
    assert metrics.best_threshold(odds, scores, has_answer) == (2.0, 2 / 3)


def test_best_threshold_prefers_the_wider_then_the_lower_interval():
    # Odds 0 good, 1 bad, 3 good, 4 bad, 7 bad: answering up to 0 and up to 3 are equally good,
    # (0, 1) is 1 wide and (3, 4) too; with 4 moved to 5 the second is 2 wide.
    good = {0: True, 1: False, 3: True, 4: False, 7: False}
    scores = {level: float(answer) for level, answer in good.items()}
    assert metrics.best_threshold({level: level for level in good}, scores, good) == (0.5, 4 / 5)
    moved = {level: 5 if level == 4 else level for level in good}
    assert metrics.best_threshold(moved, scores, good) == (4.0, 4 / 5)


def test_best_threshold_where_floats_run_out():
    # The middle of these neighbours rounds to the upper one, which must turn null.
    lower = math.nextafter(1.0, 2.0)
    upper = math.nextafter(lower, 2.0)
    odds, has_answer = {"q": lower, "r": upper}, {"q": True, "r": False}
    assert lower / 2 + upper / 2 == upper
    assert metrics.best_threshold(odds, {"q": 1.0, "r": 0.0}, has_answer) == (lower, 1.0)
    # Here - 1 and + 1 round away; the extremes must still do what they say.
    for level in (1e300, -1e300):
        assert metrics.best_threshold({"q": level}, {"q": 0.0}, {"q": False})[0] < level
        assert metrics.best_threshold({"q": level}, {"q": 1.0}, {"q": True})[0] >= level
    wide = {"q": -1.7e308, "r": 1.7e308}
    assert metrics.best_threshold(wide, {"q": 1.0, "r": 0.0}, has_answer) == (0.0, 1.0)


def test_best_threshold_takes_the_questions_of_scores():
    odds, has_answer = {"q": 1.0, "r": 5.0, "s": 9.0}, {"q": True, "r": False, "s": False}
    assert metrics.best_threshold(odds, {"q": 1.0, "r": 0.0}, has_answer) == (3.0, 1.0)


def test_best_threshold_without_questions_is_refused():
    with pytest.raises(InputError, match="^there are no questions to tune the no-answer threshold on; give"):
        metrics.best_threshold({}, {}, {})


def test_split_halves_keeps_groups_together_and_balances():
    rng = random.Random(7)
    keys = [f"context {rng.randrange(31)}" for _ in range(217)]
    first, second = metrics.split_halves(keys)
    assert sorted(first + second) == list(range(217)) and first == sorted(first) and second == sorted(second)
    assert not {keys[i] for i in first} & {keys[i] for i in second}
    assert abs(len(first) - len(second)) <= max(keys.count(key) for key in keys)
    # Neither the order of the questions nor of the run decides on a group.
    backward = metrics.split_halves(keys[::-1])
    assert {keys[::-1][i] for i in backward[0]} == {keys[i] for i in first}


def test_split_halves_is_fixed():
    # SHA-256 begins with 2e7d, 3e23, ca97 for "c", "b", "a", so they are dealt out in this order.
    assert metrics.split_halves(["a", "b", "c"]) == ([0, 2], [1])


def test_split_halves_small():
    assert metrics.split_halves([]) == ([], [])
    assert metrics.split_halves(["x", "x"]) == ([0, 1], [])
    assert [len(half) for half in metrics.split_halves(["x", "x", "\ud800"])] in ([1, 2], [2, 1])
