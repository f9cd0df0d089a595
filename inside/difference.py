"""One question under two models or adapters, side by side."""

from dataclasses import dataclass

from data.decode import Span


@dataclass(frozen=True, slots=True)
class Side:
    """What one of the two says. answer: None for "no answer". null, null_probability: as in its Prediction."""

    answer: Span | None
    null: tuple[float, float]
    null_probability: float
    windows: int


@dataclass(frozen=True, slots=True)
class Row:
    """A place that is among the best of one side. Scores and probabilities of both, None where a side lacks it.

    score: start + end logit, also of a place beyond a side's n best, in the window where that side found its own best.
    """

    text: str
    start: int
    end: int
    scores: tuple[float | None, float | None]
    probabilities: tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Difference:
    """sides: both, in the order given. rows: the best places of both, best of the first side first."""

    sides: tuple[Side, Side]
    rows: tuple[Row, ...]

    @property
    def same(self):
        """Whether both give the same answer."""
        places = [side.answer and (side.answer.start, side.answer.end) for side in self.sides]
        return places[0] == places[1]


def difference(first, second, count=5):
    """The Difference of two Cases of one question and text, over the `count` best spans of each."""
    assert first.example.context == second.example.context and first.example.question == second.example.question
    cases = first, second
    places = {}
    for case in cases:
        for span in case.prediction.spans[:count]:
            places.setdefault((span.start, span.end), span)
    known = [{(span.start, span.end): span for span in case.prediction.spans} for case in cases]
    logits = [case.logits(case.best.window) for case in cases]
    rows = []
    for place, span in places.items():
        scores, probabilities = [], []
        for case, spans, pair in zip(cases, known, logits, strict=True):
            mine = spans.get(place)
            scores.append(mine.score if mine else case.score(span, case.best.window, *pair))
            probabilities.append(mine.probability if mine else None)
        rows.append(Row(span.text, *place, tuple(scores), tuple(probabilities)))
    sides = tuple(
        Side(case.answer(case.prediction), case.prediction.null, case.prediction.null_probability, len(case.windows))
        for case in cases
    )
    return Difference(sides, tuple(rows))
