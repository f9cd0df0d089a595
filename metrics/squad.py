"""Exact match and F1 to the last digit as SQuAD's evaluate-v1.1.py and evaluate-v2.0.py compute them.

The quirks of those scripts are kept on purpose, and said where they stand. Sums run over the questions in
file order and with the same mixture of ints and floats, because floating point addition depends on the
order, and `sum()` on the Python version.

Throughout, `references` is a sequence of (question id, list of reference texts) in file order, an empty
list meaning that the question has no answer; `predictions` maps ids to answer texts, "" meaning null.
"""

import re
import string
from collections import Counter

from common.errors import InputError

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text):
    """Return `text` lowered, without ASCII punctuation, without a/an/the, with single spaces.

    The order matters: punctuation goes before articles, so "A.N. Other" becomes "an other" and then "other".
    Only ASCII punctuation goes (curly quotes, «», ، stay), and ZWNJ is not white space.
    """
    bare = text.lower().translate(_DELETE_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction, reference):
    """Return 1 when both normalise to the same string (both to nothing included), else 0."""
    return int(normalize_answer(prediction) == normalize_answer(reference))


def _overlap_f1(predicted, expected):
    """F1 of two token lists as multisets; 0 when they share nothing.

    "the red red car" against "red car park" shares {red, car}: precision 2/3 ("the" is gone), recall 2/3.
    """
    shared = sum((Counter(predicted) & Counter(expected)).values())
    if shared == 0:
        return 0
    precision = shared / len(predicted)
    recall = shared / len(expected)
    return (2 * precision * recall) / (precision + recall)


def f1_v1(prediction, reference):
    """Return the token F1 (0..1) of v1.1: no shared token gives 0, so nothing against nothing is 0."""
    return _overlap_f1(normalize_answer(prediction).split(), normalize_answer(reference).split())


def f1_v2(prediction, reference):
    """Return the token F1 (0..1) of v2.0: where either side has no tokens, 1 if both have none, else 0."""
    predicted = normalize_answer(prediction).split()
    expected = normalize_answer(reference).split()
    if not predicted or not expected:
        return int(predicted == expected)
    return _overlap_f1(predicted, expected)


def evaluate_v1(references, predictions):
    """Return {"exact_match", "f1"} in percent over all questions, as evaluate-v1.1.py does.

    A question without a prediction counts 0; questions that share an id count once each. InputError when
    there are no questions, or one has no reference (v1.1 has no notion of a missing answer).
    """
    _require_questions(references)
    exact = f1 = 0
    for question, texts in references:
        if not texts:
            raise InputError(
                f'question "{question}" has no reference answer, which v1.1 scoring does not know; '
                f"score it as v2.0 data"
            )
        if question not in predictions:
            continue
        prediction = predictions[question]
        exact += max(exact_match(prediction, text) for text in texts)
        f1 += max(f1_v1(prediction, text) for text in texts)
    return {"exact_match": 100.0 * exact / len(references), "f1": 100.0 * f1 / len(references)}


def question_scores(references, predictions):
    """Return two dicts, id -> exact match and id -> F1 (0..1), of the predictions as they stand (v2.0 rules).

    References that normalise to nothing are dropped, and "" takes the place of none left. A repeated id
    keeps its first place and its last scores. InputError when a question has no prediction: the official
    script leaves it out of the total, which inflates the score, and then fails.
    """
    _require_questions(references)
    require_ids((question for question, _ in references), predictions, "no prediction")
    exact, f1 = {}, {}
    for question, texts in references:
        expected = [text for text in texts if normalize_answer(text)] or [""]
        prediction = predictions[question]
        exact[question] = max(exact_match(prediction, text) for text in expected)
        f1[question] = max(f1_v2(prediction, text) for text in expected)
    return exact, f1


def apply_null_threshold(scores, null_odds, has_answer, threshold):
    """Return `scores` with each question whose null odds exceed `threshold` scored as answered with null."""
    return {
        question: float(not has_answer[question]) if null_odds[question] > threshold else score
        for question, score in scores.items()
    }


def official_best_threshold(predictions, scores, null_odds, has_answer):
    """Return (best score in percent, its threshold) as find_best_thresh of evaluate-v2.0.py does.

    The walk starts from "all null" at threshold 0.0, whatever the odds are, and takes up the questions by
    rising odds: one with an answer adds its score, one without loses a point if its prediction is not "".
    Kept quirks: equal odds are not grouped, so the best prefix may end inside a tie and be out of reach for
    any threshold; odds of unknown ids are skipped; it should be fed predictions that are not yet null.
    """
    score = best_score = sum(1 for question in has_answer if not has_answer[question])
    threshold = 0.0
    for question in sorted(null_odds, key=null_odds.__getitem__):
        if question not in scores:
            continue
        if has_answer[question]:
            score += scores[question]
        elif predictions[question]:
            score -= 1
        if score > best_score:
            best_score, threshold = score, null_odds[question]
    return 100.0 * best_score / len(scores), threshold


def evaluate_v2(references, predictions, null_odds=None, null_threshold=1.0):
    """Return evaluate-v2.0.py's dict: percentages and counts under its keys, in its order.

    exact, f1, total; the same with HasAns_ and NoAns_ in front, each part only where it has questions; and
    with `null_odds` (id -> number) best_exact, best_exact_thresh, best_f1, best_f1_thresh. A prediction is
    replaced by null when its odds exceed `null_threshold`; without `null_odds` all odds are 0.0. Having
    references decides which part a question belongs to, even if they all normalise to nothing.
    InputError when there are no questions, or one lacks its prediction or its odds.
    """
    exact, f1 = question_scores(references, predictions)
    has_answer = {question: bool(texts) for question, texts in references}
    odds = dict.fromkeys(predictions, 0.0) if null_odds is None else null_odds
    require_ids(has_answer, odds, "no null odds")
    final_exact = apply_null_threshold(exact, odds, has_answer, null_threshold)
    final_f1 = apply_null_threshold(f1, odds, has_answer, null_threshold)
    result = _summary(final_exact, final_f1, has_answer)
    for part, wanted in (("HasAns", True), ("NoAns", False)):
        questions = [question for question, answerable in has_answer.items() if answerable == wanted]
        if questions:
            summary = _summary(final_exact, final_f1, questions)
            result.update((f"{part}_{key}", value) for key, value in summary.items())
    if null_odds is not None:
        for name, scores in (("exact", exact), ("f1", f1)):
            best, threshold = official_best_threshold(predictions, scores, null_odds, has_answer)
            result[f"best_{name}"], result[f"best_{name}_thresh"] = best, threshold
    return result


def _summary(exact, f1, questions):
    total = len(questions)
    return {
        "exact": 100.0 * sum(exact[question] for question in questions) / total,
        "f1": 100.0 * sum(f1[question] for question in questions) / total,
        "total": total,
    }


def _require_questions(references):
    if not references:
        raise InputError("there are no questions to score")


def require_ids(questions, given, what):
    """Raise InputError unless `given` has every id of `questions`; its sentence starts with `what`."""
    missing = [question for question in dict.fromkeys(questions) if question not in given]
    if missing:
        raise InputError(
            f'{what} for {len(missing)} of the questions, the first being "{missing[0]}"; '
            f"v2.0 scoring needs one for each"
        )
