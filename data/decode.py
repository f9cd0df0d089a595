"""Logits to answers: the n best spans of every window, then of every question.

Exists once: training's evaluation, the prompt and everything that serves answers call it. A window is
reduced to its few best spans on the device, at once, so no logits are kept however long a text is.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from data.examples import is_blank


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """n_best: spans kept per question. max_answer_tokens: longest answer, in tokens.

    length_penalty: taken off a span's end logit for each token after its first. Start and end are scored apart, so a
    far pair may win that neither would choose knowing the other; of what a good value is, held-out questions tell.
    """

    n_best: int = 20
    max_answer_tokens: int = 30
    length_penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """A candidate: context[start:end] == text. Its score is start_logit + end_logit.

    Only what a decoder says freely may stand nowhere; then start and end are -1.
    """

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float
    probability: float = 0.0
    window: int = 0  # number of the window, within its question, that scored the span highest

    @property
    def score(self):
        """Sum of the two logits, the quantity that spans are ranked by."""
        return self.start_logit + self.end_logit


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says to one question.

    spans: best first, without two of the same place. null: (start, end) logits of [CLS] in the window
    where their sum is least; None when no window could be scored, and then there are no spans, or when
    an answer was said freely, and then it stands.
    null_probability: beside the spans' probabilities, 0.0 where no null is offered. reason: why there is no
    span, if there is none. windows: how many the text made.
    """

    id: str
    spans: tuple[Span, ...]
    null: tuple[float, float] | None
    null_probability: float
    reason: str | None = None
    windows: int = 0

    @property
    def said_freely(self):
        """Whether an answer was said freely, so that there is no null to weigh it against."""
        return self.null is None and bool(self.spans)

    @property
    def null_odds(self):
        """Null score less the best span's (a difference of logits); None when either is missing."""
        if self.null is None or not self.spans:
            return None
        return sum(self.null) - self.spans[0].score

    def answer(self, null_threshold):
        """The best span, or None for "no answer": when null_odds exceed the threshold.

        null_threshold None means that no null is offered.
        """
        odds = self.null_odds
        if not self.spans or (null_threshold is not None and odds is not None and odds > null_threshold):
            return None
        return self.spans[0]


def best_spans(start_logits, end_logits, answer_mask, settings):
    """The n best (start, end) of each window, exactly: every pair within the length limit is weighed.

    start_logits, end_logits: (B, T) fp32. answer_mask: (B, T) bool, where an answer may lie. Returns numpy
    arrays (B, n): first token, last token, start logit, end logit; unused places have a start logit of
    -inf. A token whose logit is not finite is no candidate. The references weigh only the 20 best starts
    against the 20 best ends; this is the same list whenever theirs is complete, and never comes out empty
    for a window with a context and finite logits.
    """
    B, T = start_logits.shape
    L = min(settings.max_answer_tokens, T)
    lowest = float("-inf")
    # topk would take NaN for the greatest
    starts = start_logits.masked_fill(~answer_mask | ~start_logits.isfinite(), lowest)
    ends = end_logits.masked_fill(~answer_mask | ~end_logits.isfinite(), lowest)
    # ends_after[b, t, k] is the end logit of token t + k
    ends_after = torch.nn.functional.pad(ends, (0, L - 1), value=lowest).unfold(1, L, 1)  # (B, T, L)
    if settings.length_penalty:
        ends_after = ends_after - settings.length_penalty * torch.arange(L, device=ends.device)  # (B, T, L)
    scores = (starts[:, :, None] + ends_after).flatten(1)  # (B, T * L)
    top, place = scores.topk(min(settings.n_best, T * L), dim=1)  # (B, n)
    first = place // L
    last = first + place % L
    start_logit = starts.gather(1, first).masked_fill(top == lowest, lowest)
    end_logit = ends_after.flatten(1).gather(1, place)
    return tuple(x.cpu().numpy() for x in (first, last, start_logit, end_logit))


class QuestionSpans:
    """Collects the spans of one question's windows; the same place from two windows counts once.

    absolute: scores are the logarithms of probabilities, as a decoder's are, and not logits that mean something beside
    each other alone.
    """

    def __init__(self, absolute=False):
        self.absolute = absolute
        self.spans = {}  # (start, end) in code points -> (start logit, end logit, window)
        self.null = None
        self.windows = 0

    def add(self, window, offsets, prefix, candidates, null, keep):
        """Take in one window; they may come in any order.

        window: its number within the question. offsets: (n, 2) of the slice's tokens. prefix: tokens before
        the slice. candidates: its rows of `best_spans`. null: (start, end) logits of [CLS]; where they are
        not finite the whole window is passed over. keep: how many spans are enough.
        """
        self.windows += 1
        null = tuple(map(float, null))
        if not all(map(math.isfinite, null)):
            return
        for first, last, start_logit, end_logit in zip(*(x.tolist() for x in candidates), strict=True):
            if start_logit == -math.inf:
                continue
            place = (int(offsets[first - prefix, 0]), int(offsets[last - prefix, 1]))
            if place[0] >= place[1]:  # tokens without width, as some tokenizers make
                continue
            known = self.spans.get(place)
            rank = (start_logit + end_logit, -window)  # the earliest window, when two give the same score
            if known is None or rank > (known[0] + known[1], -known[2]):
                self.spans[place] = (start_logit, end_logit, window)
        if self.null is None or sum(null) < sum(self.null):
            self.null = null
        if len(self.spans) > 8 * keep:  # a book has thousands of windows
            self.spans = dict(self.ranked()[:keep])

    def add_answer(self, window, place, log_probability, null):
        """Take in one window of a decoder: the place (start, end) of what it said, or None; log-probabilities."""
        self.windows += 1
        if place is not None and place[0] < place[1] and math.isfinite(log_probability):
            known = self.spans.get(place)
            if known is None or log_probability > known[0]:
                self.spans[place] = (log_probability, 0.0, window)
        if self.null is None or null < sum(self.null):
            self.null = (null, 0.0)

    def ranked(self):
        """(place, (start logit, end logit, window)), best first; ties go to the earlier, shorter place."""
        return sorted(self.spans.items(), key=lambda item: (-(item[1][0] + item[1][1]), item[0]))

    def prediction(self, example, n_best, offer_null):
        """The finished Prediction; probabilities: as the scores have them, or one softmax over the n best of all windows
        and the null."""
        best = self.ranked()[:n_best] if not is_blank(example.question) else []
        if not best:
            certain = 1.0 if offer_null else 0.0
            if self.absolute and self.null is not None:
                certain *= math.exp(sum(self.null))
            return Prediction(example.id, (), self.null, certain, self.no_span(example), self.windows)
        scores = [start + end for _, (start, end, _) in best]
        if offer_null:
            scores.append(sum(self.null))
        probabilities = np.exp(np.array(scores, np.float64) - (0.0 if self.absolute else max(scores)))
        if not self.absolute:
            probabilities /= probabilities.sum()
        spans = tuple(
            Span(example.context[a:b], a, b, start, end, float(probability), window)
            for ((a, b), (start, end, window)), probability in zip(best, probabilities, strict=False)
        )
        null_probability = float(probabilities[-1]) if offer_null else 0.0
        return Prediction(example.id, spans, self.null, null_probability, windows=self.windows)

    def no_span(self, example):
        """Why there is no answer to `example`."""
        if not example.context.strip():
            return "the context is empty"
        if is_blank(example.question):
            return "the question is empty"
        if self.windows == 0:
            return "the context has no readable words"
        return "the model's scores are not finite numbers"
