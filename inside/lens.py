"""Span logit lens: the head that reads the last hidden state, applied to every layer's.

After the logit lens of nostalgebraist (2020, "interpreting GPT: the logit lens"). The head was trained on the last
state alone, so what it makes of earlier ones says what it could read there already, not what later blocks do with it.
"""

from dataclasses import dataclass

import torch

from data.decode import Span
from inside.hooks import recording_hidden


@dataclass(frozen=True, slots=True)
class LensLayer:
    """layer: number of the hidden state, 0 for the embeddings'. best: what the head would answer there.

    score, rank: of the final answer at this layer; rank 1 is best, None beyond the candidates that are kept.
    null: start + end logit of [CLS]. start_logits, end_logits: (T,) of every token.
    """

    layer: int
    best: Span
    score: float
    rank: int | None
    null: float
    start_logits: torch.Tensor
    end_logits: torch.Tensor


@dataclass(frozen=True, slots=True)
class Lens:
    """layers: one LensLayer per hidden state of the window. answer: the best span of that window at the last one.

    appears: the first layer from which on the answer is best. beaten: what was best one layer earlier, None for 0.
    """

    number: int
    layers: tuple[LensLayer, ...]
    answer: Span
    appears: int
    beaten: Span | None


def lens(case, number=None):
    """The Lens of a window, by default the one that won."""
    number = case.best.window if number is None else number
    with case.computing() as model, recording_hidden(model) as states:
        model(*case.inputs(number))
        logits = [model.span_logits(state) for state in states]  # (1, T) each
    predictions = [case.spans(number, *pair) for pair in logits]
    answer = predictions[-1].spans[0]
    layers = []
    for layer, ((start, end), prediction) in enumerate(zip(logits, predictions, strict=True)):
        places = [place(span) for span in prediction.spans]
        rank = places.index(place(answer)) + 1 if place(answer) in places else None
        score, null = case.score(answer, number, start, end), (start[0, 0] + end[0, 0]).item()
        layers.append(LensLayer(layer, prediction.spans[0], score, rank, null, start[0].cpu(), end[0].cpu()))
    appears = len(layers) - 1
    while appears and layers[appears - 1].rank == 1:
        appears -= 1
    return Lens(number, tuple(layers), answer, appears, layers[appears - 1].best if appears else None)


def place(span):
    """Where a span stands, which tells it from others."""
    return span.start, span.end
