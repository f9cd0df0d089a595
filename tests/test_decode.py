"""Decoding against brute force: every pair of tokens weighed, every window kept."""

import math
import random
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.decode import DecodeSettings, Prediction, QuestionSpans, Span, best_spans
from data.examples import Example

calm = settings(deadline=None, derandomize=True, max_examples=200)
INF, NAN = math.inf, math.nan
# few values, so that ties are common; all exact in fp32, sums too
scores = st.sampled_from([-2.0, -1.0, 0.0, 0.25, 3.0]) | st.integers(-1000, 1000).map(lambda x: x / 8)
odd_scores = scores | st.sampled_from([-INF, INF, NAN])


def row(values):
    return torch.tensor([values], dtype=torch.float32)


def every_pair(starts, ends, mask, max_tokens, penalty=0.0):
    """(score, first, last) of all spans allowed, best first."""
    pairs = []
    for first, start in enumerate(starts):
        for last in range(first, min(first + max_tokens, len(ends))):
            if mask[first] and mask[last] and math.isfinite(start) and math.isfinite(ends[last]):
                pairs.append((start + (ends[last] - penalty * (last - first)), first, last))
    return sorted(pairs, key=lambda pair: -pair[0])


def check_candidates(starts, ends, mask, n_best, max_tokens, penalty=0.0):
    found = best_spans(row(starts), row(ends), torch.tensor([mask]), DecodeSettings(n_best, max_tokens, penalty))
    used = [c for c in zip(*(x[0].tolist() for x in found), strict=True) if c[2] != -INF]
    expected = every_pair(starts, ends, mask, max_tokens, penalty)
    assert [start + end for _, _, start, end in used] == [score for score, _, _ in expected[:n_best]]
    places = {(first, last) for _, first, last in expected}
    assert len({(c[0], c[1]) for c in used}) == len(used)
    for first, last, start, end in used:
        assert (first, last) in places and (start, end) == (starts[first], ends[last] - penalty * (last - first))


def test_a_penalty_prefers_the_shorter_answer():
    starts, ends = row([0.0, 5.0, 0.0, 0.0]), row([0.0, 0.0, 1.5, 1.75])
    for penalty, place, end in ((0.0, [1, 3], 1.75), (0.5, [1, 2], 1.0), (2.0, [1, 1], 0.0)):
        found = best_spans(starts, ends, torch.ones(1, 4, dtype=torch.bool), DecodeSettings(1, 9, penalty))
        assert [int(x[0][0]) for x in found[:2]] == place and float(found[3][0][0]) == end


@calm
@given(st.data(), st.integers(1, 14), st.integers(1, 25), st.integers(1, 20), st.sampled_from([0.0, 0.25, 2.0]))
def test_best_spans_are_the_best_of_all_pairs(data, tokens, n_best, max_tokens, penalty):
    logits = st.lists(odd_scores, min_size=tokens, max_size=tokens)
    mask = data.draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
    check_candidates(data.draw(logits), data.draw(logits), mask, n_best, max_tokens, penalty)


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 400])
def test_best_spans_of_a_real_size(max_tokens):
    torch.manual_seed(max_tokens)
    starts, ends = torch.randn(2, 384).tolist()
    mask = [14 <= k < 383 for k in range(384)]
    found = best_spans(row(starts), row(ends), torch.tensor([mask]), DecodeSettings(20, max_tokens))
    expected = every_pair(starts, ends, mask, max_tokens)[:20]
    assert list(zip(*(x[0].tolist() for x in found[:2]))) == [(first, last) for _, first, last in expected]


def test_rows_of_a_batch_do_not_mix():
    starts, ends = torch.randn(3, 9, generator=torch.Generator().manual_seed(0)), torch.ones(3, 9)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1] = False
    mask[2, 5:] = False
    together = best_spans(starts, ends, mask, DecodeSettings(4, 3))
    for k in range(3):
        alone = best_spans(starts[k : k + 1], ends[k : k + 1], mask[k : k + 1], DecodeSettings(4, 3))
        usable = alone[2][0] != -INF
        for many, one in zip(together, alone):
            assert many.shape == (3, 4) and np.array_equal(many[k][usable], one[0][usable])
    assert (together[2][1] == -INF).all() and together[1][2].max() < 5


class Windows:
    """Windows of one text of single-letter tokens, collected in the order given."""

    def __init__(self, text, spans):
        self.text, self.spans, self.number = text, spans, count()

    def add(self, start, candidates, null=(0.0, 0.0), keep=20, number=None):
        """candidates: (first, last, start logit, end logit), tokens counted in the window; prefix is 2."""
        tokens = np.arange(start, len(self.text))
        offsets = np.stack([tokens, tokens + 1], 1)
        rows = zip(*candidates) if candidates else ((), (), (), ())
        columns = [np.array(column) for column in rows]
        number = next(self.number) if number is None else number
        self.spans.add(number, offsets, 2, columns, np.array(null, np.float32), keep)


def collect(text="abcdefghij"):
    spans = QuestionSpans()
    return spans, Windows(text, spans), Example("id", "q?", text, None, "here")


def test_one_place_in_two_windows_counts_once():
    spans, windows, example = collect()
    windows.add(0, [(6, 7, 1.0, 1.0), (2, 2, 0.0, 0.5)])  # "ef" and "a"
    windows.add(3, [(3, 4, 2.0, 1.5), (4, 4, 0.0, 0.25)])  # "ef" again, better, and "f"
    windows.add(4, [(2, 3, 1.0, 0.0)])  # "ef" once more, worse
    found = spans.prediction(example, 20, True).spans
    assert [(s.text, s.start, s.end, s.score, s.window) for s in found] == [
        ("ef", 4, 6, 3.5, 1), ("a", 0, 1, 0.5, 0), ("f", 5, 6, 0.25, 1)
    ]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_order_of_windows_does_not_matter(order):
    spans, windows, example = collect()
    for number in order:
        shared = 2 + 5 - number  # "f" in each of them
        windows.add(number, [(shared, shared, 1.0, 1.0), (2, 2, 0.0, 1.0)], (number, -1.0), number=number)
    found = spans.prediction(example, 20, True)
    assert [(s.text, s.window) for s in found.spans] == [("f", 0), ("a", 0), ("b", 1), ("c", 2)]
    assert found.null == (0.0, -1.0) and found.windows == 3


def test_the_null_is_the_least_of_all_windows():
    spans, windows, example = collect()
    for null in ((1.0, 2.0), (3.0, -4.0), (0.5, 0.25)):
        windows.add(0, [(2, 3, 1.0, 0.5)], null)
    found = spans.prediction(example, 20, True)
    assert found.null == (3.0, -4.0) and found.null_odds == -2.5
    exponents = [math.exp(1.5), math.exp(-1.0)]
    assert found.spans[0].probability == pytest.approx(exponents[0] / sum(exponents))
    assert found.null_probability == pytest.approx(exponents[1] / sum(exponents))


@calm
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), scores, scores), min_size=1, max_size=60),
       st.integers(1, 30), st.booleans(), scores)
def test_predictions_are_whole(candidates, n_best, offer_null, null):
    spans, windows, example = collect()
    best = {}
    for first, last, start, end in candidates:
        first, last = sorted((first, last))
        windows.add(0, [(first + 2, last + 2, start, end)], (null, null), n_best)
        place = (first, last + 1)
        best[place] = max(best.get(place, -INF), start + end)
    found = spans.prediction(example, n_best, offer_null)
    expected = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:n_best]
    assert [((s.start, s.end), s.score) for s in found.spans] == expected
    assert all(example.context[s.start : s.end] == s.text != "" for s in found.spans)
    total = math.fsum(s.probability for s in found.spans) + found.null_probability
    assert total == pytest.approx(1, abs=1e-12) and (found.null_probability > 0 or not offer_null)
    probabilities = [s.probability for s in found.spans]
    assert probabilities == sorted(probabilities, reverse=True) and found.reason is None


def test_extreme_scores_give_probabilities():
    spans, windows, example = collect()
    windows.add(0, [(2, 2, 3e38, 3e38), (3, 3, -3e38, -3e38)], (-3e38, 0.0))
    found = spans.prediction(example, 20, True)
    assert [s.probability for s in found.spans] == [1.0, 0.0] and found.null_probability == 0.0


@pytest.mark.parametrize("n_best", [1, 3, 20])
def test_thousands_of_windows_keep_the_true_best(n_best):
    text = "x" * 7001
    spans, windows, example = collect(text)
    source, best, most = random.Random(n_best), {}, 0
    for window in range(3000):
        start = 2 * window  # neighbours see the same places, with scores of their own
        candidates = []
        for _ in range(n_best):
            first = source.randrange(5)
            last, score = first + source.randrange(3), float(source.randrange(300))
            candidates.append((first + 2, last + 2, score, 0.5))
            place = (start + first, start + last + 1)
            best[place] = max(best.get(place, -INF), score + 0.5)
        windows.text = text[: start + 40]
        windows.add(start, candidates, keep=n_best)
        most = max(most, len(spans.spans))
    found = spans.prediction(example, n_best, False)
    expected = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:n_best]
    assert [((s.start, s.end), s.score) for s in found.spans] == expected
    assert most <= 8 * n_best < len(best) and found.windows == 3000


@pytest.mark.parametrize("candidates, null", [
    ([(2, 3, -INF, 1.0)], (0.0, 0.0)),  # nothing was allowed
    ([(2, 3, 1.0, 1.0)], (NAN, NAN)),
    ([(2, 3, 1.0, 1.0)], (0.0, INF)),
    ([], (0.0, 0.0)),
])
@pytest.mark.parametrize("offer_null", [True, False])
def test_scores_that_are_no_numbers_give_null_with_a_reason(candidates, null, offer_null):
    spans, windows, example = collect()
    windows.add(0, candidates, null)
    found = spans.prediction(example, 20, offer_null)
    assert found.spans == () and found.reason == "the model's scores are not finite numbers"
    assert found.answer(None) is found.answer(-1e9) is None and found.null_odds is None
    assert found.null_probability == float(offer_null) and found.windows == 1


def test_a_window_without_numbers_leaves_the_others_alone():
    spans, windows, example = collect()
    windows.add(0, [(2, 2, 9.0, 9.0)], (NAN, 0.0))
    windows.add(0, [(3, 3, 1.0, 1.0)], (0.5, 0.0))
    found = spans.prediction(example, 20, True)
    assert [s.text for s in found.spans] == ["b"] and found.null == (0.5, 0.0)


@pytest.mark.parametrize("context, reason", [
    ("", "the context is empty"), (" \n\t", "the context is empty"),
    ("\u200c\u200d", "the context has no readable words"),
])
def test_no_windows_no_spans(context, reason):
    found = QuestionSpans().prediction(Example("id", "q", context, None, "here"), 20, True)
    assert (found.spans, found.null, found.null_probability, found.reason) == ((), None, 1.0, reason)


def test_an_answer_needs_null_odds_strictly_above_the_threshold():
    best, other = Span("a", 0, 1, 2.0, 1.0), Span("b", 1, 2, 1.0, 1.0)
    prediction = Prediction("id", (best, other), (2.5, 1.5), 0.1)
    assert prediction.null_odds == 1.0
    assert prediction.answer(1.0) is best and prediction.answer(None) is best and prediction.answer(2) is best
    assert prediction.answer(0.999) is None and prediction.answer(-5.0) is None
    assert Prediction("id", (), (2.5, 1.5), 1.0).answer(99.0) is None
    assert Prediction("id", (), None, 1.0, "why").null_odds is None
