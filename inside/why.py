"""Why this answer: the logits of every window, its runners-up and its null, beside those that won."""

from dataclasses import dataclass

from data.decode import Prediction, Span


@dataclass(frozen=True, slots=True)
class WindowView:
    """What one window said. first, last: tokens of the context, as `context[start:end]` in code points.

    spans: its candidates, best first, with probabilities among themselves (and its null, where that is on offer).
    null: (start, end) logits of [CLS].
    """

    number: int
    first: int
    last: int
    start: int
    end: int
    spans: tuple[Span, ...]
    null: tuple[float, float]
    null_probability: float


@dataclass(frozen=True, slots=True)
class Why:
    """prediction: over all windows. winner: number of the window with the best span; null_window: with the least null.

    threshold: null odds above which "no answer" is said, None where that is not on offer.
    """

    prediction: Prediction
    windows: tuple[WindowView, ...]
    winner: int
    null_window: int
    threshold: float | None

    @property
    def answer(self):
        """The span that is answered, or None."""
        return self.prediction.answer(self.threshold)


def why(case):
    """The Why of a Case; InputError when no window could be scored."""
    views = tuple(look(case, *one) for one in case.scored)
    winner = case.best.window
    finite = [view for view in views if view.spans]
    null_window = min(finite, key=lambda view: (sum(view.null), view.number)).number
    return Why(case.prediction, views, winner, null_window, case.settings.null_threshold)


def look(case, number, candidates, null):
    """The WindowView of one window, from what `Case.scored` has of it."""
    prediction = case.window_prediction(number, candidates, null)
    offsets, windows = case.windows.offsets(number), case.windows
    return WindowView(
        number, int(windows.start[number]), int(windows.stop[number]) - 1, int(offsets[0, 0]), int(offsets[-1, 1]),
        prediction.spans, tuple(map(float, null)), prediction.null_probability,
    )
