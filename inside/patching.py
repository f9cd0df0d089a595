"""Activation patching: hidden states of one run put into another, layer by layer (Meng et al. 2022, arXiv 2202.05262).

Two questions are asked of one text. At each hidden state the text's tokens of the second run (or the question's, where
both have as many) replace those of the first, and the rest is computed on. Where putting in the text's states brings
the other answer, the text's tokens know the question already; before that it has not reached them.
"""

from dataclasses import dataclass

import numpy as np

from data.decode import Prediction, Span
from inside.case import QUESTION, SPECIAL, TEXT
from inside.hooks import changing_hidden, recording_hidden

PARTS = (TEXT, QUESTION)


@dataclass(frozen=True, slots=True)
class PatchedLayer:
    """What hidden state `layer`, swapped, does. answer_score, other_score: start + end logit of both runs'
    answers, None where the window does not hold one."""

    layer: int
    prediction: Prediction
    answer_score: float | None
    other_score: float | None


@dataclass(frozen=True, slots=True)
class Patch:
    """part: whose states were swapped. answer, other: both runs' best spans of their windows. tokens: how many.

    flips: the layers where the best span becomes `other`; for the text these are usually the last ones.
    """

    part: str
    answer: Span
    other: Span
    tokens: int
    layers: tuple[PatchedLayer, ...]

    @property
    def flips(self):
        """Layers at which the swap brings the other answer; none where both answers are the same."""
        if (self.answer.start, self.answer.end) == (self.other.start, self.other.end):
            return ()
        other = (self.other.start, self.other.end)
        return tuple(
            one.layer for one in self.layers
            if one.prediction.spans and (one.prediction.spans[0].start, one.prediction.spans[0].end) == other
        )


def patch(case, donor):
    """A Patch for each part that can be swapped, from the Case `donor` into `case`; both are about one text.

    The window is the one where `case` found its answer, and in a long text the donor's window that shares most with
    it; tokens that only one of them has stay as they are.
    """
    assert case.example.context == donor.example.context and case.reader is donor.reader
    number = case.best.window
    theirs = most_shared(case, donor, number)
    with donor.computing() as model, recording_hidden(model) as states:
        model(*donor.inputs(theirs))
    answer = case.spans(number, *case.logits(number)).spans[0]
    other = donor.spans(theirs, *donor.logits(theirs)).spans[0]
    patches = []
    for part in PARTS:
        into, source = matched(case.pieces(number), donor.pieces(theirs), part)
        if len(into):
            layers = tuple(
                patched(case, number, layer, state, into, source, answer, other) for layer, state in enumerate(states)
            )
            patches.append(Patch(part, answer, other, len(into), layers))
    return patches


def most_shared(case, donor, number):
    """The donor's window that shares most tokens of the text with a window of `case`."""
    first, stop = case.windows.start[number], case.windows.stop[number]
    shared = np.minimum(donor.windows.stop, stop) - np.maximum(donor.windows.start, first)
    return int(shared.argmax())


def matched(pieces, donor_pieces, part):
    """Positions (into, source) of the same tokens in both windows.

    Tokens of the text belong together by their place in it, those of questions one by one when there are as many. With
    the text go the [SEP] behind it and [CLS], where "no answer" is read; with the question the [SEP] behind it.
    """
    if part == TEXT:
        places = {(piece.start, piece.end): piece.position for piece in donor_pieces if piece.part == TEXT}
        pairs = [(p.position, places[p.start, p.end]) for p in pieces if p.part == TEXT and (p.start, p.end) in places]
        specials = [[p.position for p in one if p.part == SPECIAL] for one in (pieces, donor_pieces)]
        pairs += [(specials[0][k], specials[1][k]) for k in (0, -1)]
    else:
        ours, theirs = ([p.position for p in one if p.part == QUESTION] for one in (pieces, donor_pieces))
        pairs = list(zip(ours, theirs, strict=True)) if len(ours) == len(theirs) else []
        pairs += [(ours[-1] + 1, theirs[-1] + 1)] if pairs else []
    return [into for into, _ in pairs], [source for _, source in pairs]


def patched(case, number, layer, state, into, source, answer, other):
    """The PatchedLayer of one swap. state: the donor's hidden state (1, T', D)."""

    def change(x):
        x = x.clone()
        x[:, into] = state[:, source].to(x.dtype)
        return x

    with changing_hidden(case.model, layer, change):
        start, end = case.logits(number)
    scores = [case.score(span, number, start, end) for span in (answer, other)]
    return PatchedLayer(layer, case.spans(number, start, end), *scores)
