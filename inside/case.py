"""One question about one text, as a reader sees it: what every part of this package looks at."""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import itemgetter

import numpy as np
import torch

from common.errors import InputError
from data.batches import to_tensors
from data.decode import QuestionSpans, best_spans
from data.examples import Example, is_blank
from data.windows import WindowSet
from model.lora import switch_of
from model.precision import autocast
from answering.spans import TOKENS_PER_BATCH

SPECIAL, QUESTION, TEXT = "special", "question", "text"
ACTIVE = object()  # the adapter that is in use, whichever it is


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of a window. part: SPECIAL, QUESTION or TEXT. start, end: code points in that part; None in specials."""

    position: int
    id: int
    token: str
    type: int
    part: str
    start: int | None = None
    end: int | None = None


def can_be_seen(reader):
    """Whether its model is a BERT or a relative of it: of those alone this package knows the parts."""
    return hasattr(reader.model, "bert")


def check_encoder(reader):
    """InputError for a reader that cannot be seen into."""
    if not can_be_seen(reader):
        raise InputError("a decoder cannot be looked into, only a BERT or one of its relatives")


class Case:
    """A question, its text, and the reader with one adapter, by default the one that is active now (None: the base).

    Raises InputError when there is nothing to look at: an empty question, or a text without readable words; and for a
    decoder.
    Windows are numbered from 0; one is `number` below.
    """

    def __init__(self, reader, question, context, *, adapter=ACTIVE, tokens_per_batch=TOKENS_PER_BATCH):
        check_encoder(reader)
        self.reader, self.adapter = reader, reader.adapter if adapter is ACTIVE else adapter
        self.settings = reader.all_settings[self.adapter]
        self.example = Example("question", question, context, None, "question")
        self.windows = WindowSet([self.example], reader.tokenizer, self.settings.windows)
        self.tokens_per_batch = tokens_per_batch
        if len(self.windows) == 0 or is_blank(question):
            raise InputError(QuestionSpans().no_span(self.example))

    @property
    def model(self):
        return self.reader.model

    @property
    def offers_null(self):
        return self.settings.null_threshold is not None

    @contextmanager
    def computing(self, *, gradients=False, precise=False):
        """A context for running the model as it answers. precise: in fp32 whatever the reader computes in."""
        self.model.eval()
        switch, device = switch_of(self.model), self.reader.device
        precision = "fp32" if precise else self.reader.precision
        with (
            nullcontext() if gradients else torch.inference_mode(),
            autocast(device, precision),
            switch.using(self.adapter) if switch else nullcontext(),
        ):
            yield self.model

    def inputs(self, number):
        """(input_ids, token_type_ids) of one window, (1, T) each: alone it needs no padding and no mask."""
        batch = self.batch(number)
        return batch["input_ids"], batch["token_type_ids"]

    def batch(self, number):
        """All tensors of one window, as `WindowSet.fill` names them."""
        return to_tensors(self.windows.fill(np.array([number])), self.reader.device)

    def logits(self, number):
        """Start and end logits of one window, (1, T) each."""
        with self.computing() as model:
            return model(*self.inputs(number))

    def spans(self, number, start, end):
        """The Prediction that these logits (1, T) of one window amount to, the other windows left out."""
        candidates = best_spans(start, end, self.batch(number)["answer_mask"], self.settings.decode)
        return self.window_prediction(number, [part[0] for part in candidates], (start[0, 0].item(), end[0, 0].item()))

    def _add(self, found, number, candidates, null):
        offsets, prefix = self.windows.offsets(number), self.windows.prefix(number)
        found.add(int(number), offsets, prefix, candidates, null, self.settings.decode.n_best)

    def scores(self):
        """Yield, a forward pass a time, [(number, its rows of `best_spans`, its null logits)] of windows in any order."""
        for batch in self.reader.way.batches(self.windows, self.tokens_per_batch):
            candidates, nulls = self.reader.way.score(self.windows, batch, self.adapter, self.settings.decode)
            yield [
                (int(number), [part[row] for part in candidates], nulls[row]) for row, number in enumerate(batch)
            ]

    def predict(self, scores=None):
        """The Prediction over all windows, computed now: under hooks it is the changed model's. scores: as `scored`."""
        found = QuestionSpans()
        for number, candidates, null in chain.from_iterable(self.scores()) if scores is None else scores:
            self._add(found, number, candidates, null)
        return found.prediction(self.example, self.settings.decode.n_best, self.offers_null)

    def window_prediction(self, number, candidates, null):
        """The Prediction of one window, from what `scores` gave of it."""
        found = QuestionSpans()
        self._add(found, number, candidates, null)
        return found.prediction(self.example, self.settings.decode.n_best, self.offers_null)

    def scoring(self):
        """A generator that computes `scored`, a forward pass a step."""
        found = []
        for some in self.scores():
            found += some
            yield
        self.scored = sorted(found, key=itemgetter(0))

    @cached_property
    def scored(self):
        """What `scores` gives of all windows, by number; kept, as it takes a pass over the whole text."""
        return sorted(chain.from_iterable(self.scores()), key=itemgetter(0))

    @cached_property
    def prediction(self):
        """The Prediction that the reader gives."""
        return self.predict(self.scored)

    @cached_property
    def best(self):
        """The best span, also where "no answer" is said; InputError when no window could be scored."""
        if not self.prediction.spans:
            raise InputError(self.prediction.reason)
        return self.prediction.spans[0]

    def answer(self, prediction):
        """The span that a Prediction says, or None for "no answer"."""
        return prediction.answer(self.settings.null_threshold)

    def tokens_of(self, span, number):
        """(first, last) position in a window of the tokens of a span that came out of it."""
        offsets, prefix = self.windows.offsets(number), self.windows.prefix(number)
        first = int(np.flatnonzero(offsets[:, 0] == span.start)[0])
        last = int(np.flatnonzero(offsets[:, 1] == span.end)[-1])
        return prefix + first, prefix + last

    def score(self, span, number, start, end):
        """Score of a span by a window's logits (1, T); None where no token of it begins or ends as the span does."""
        offsets = self.windows.offsets(number)
        if span.start not in offsets[:, 0] or span.end not in offsets[:, 1]:
            return None
        first, last = self.tokens_of(span, number)
        return (start[0, first] + end[0, last]).item() - self.settings.decode.length_penalty * (last - first)

    def pieces(self, number):
        """The Pieces of one window, by position."""
        batch = {name: array[0] for name, array in self.windows.fill(np.array([number])).items()}
        prefix, slice_offsets = self.windows.prefix(number), self.windows.offsets(number)
        first = len(self.windows.layout.opening)  # of the question
        after, asked = first + int(self.windows.texts.question_lengths[0]), self.windows.texts.questions.offsets
        pieces = []
        for position, (code, kind) in enumerate(zip(batch["input_ids"], batch["token_type_ids"], strict=True)):
            part, place = SPECIAL, (None, None)
            if first <= position < after:
                part, place = QUESTION, asked[position - first]
            elif batch["answer_mask"][position]:
                part, place = TEXT, slice_offsets[position - prefix]
            place = [None if value is None else int(value) for value in place]
            token = self.reader.tokenizer.id_to_token(int(code))
            pieces.append(Piece(position, int(code), token, int(kind), part, *place))
        return pieces
