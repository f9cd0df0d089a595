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
    """part: whose states were swapped. answer, other: both runs' best spans of their windows.

    tokens: how many of the part; specials: those that went with them. threshold: above which null odds "no answer" is
    said, or None. says, other_says: the span that each run's window says, None for "no answer".
    flips: the layers where what is said becomes what the other says; for the text these are usually the last ones.
    """

    part: str
    answer: Span
    other: Span
    tokens: int
    specials: tuple[str, ...]
    layers: tuple[PatchedLayer, ...]
    threshold: float | None
    says: Span | None
    other_says: Span | None

    @property
    def flips(self):
        """Layers at which the swap brings what the other says; none where both say the same."""
        if place(self.says) == place(self.other_says):
            return ()
        wanted = place(self.other_says)
        return tuple(one.layer for one in self.layers if place(one.prediction.answer(self.threshold)) == wanted)


def place(span):
    """(start, end) of a span, None of none."""
    return span and (span.start, span.end)


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
    threshold = case.settings.null_threshold
    runs = case.spans(number, *case.logits(number)), donor.spans(theirs, *donor.logits(theirs))
    answer, other = (run.spans[0] for run in runs)
    patches = []
    for part in PARTS:
        pieces = case.pieces(number)
        into, source = matched(pieces, donor.pieces(theirs), part)
        specials = tuple(pieces[position].token for position in sorted(into) if pieces[position].part == SPECIAL)
        if len(into):
            layers = tuple(
                patched(case, number, layer, state, into, source, answer, other) for layer, state in enumerate(states)
            )
            said = [run.answer(threshold) for run in runs]
            patches.append(Patch(part, answer, other, len(into) - len(specials), specials, layers, threshold, *said))
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
