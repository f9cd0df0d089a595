"""What 4 bits do to a model: the error of each layer and block of numbers, the drift of logits, answers that flip."""

from dataclasses import dataclass

import torch

from inside.case import Case
from model.quant import BLOCK, FourBitLinear, dense_weight, plain_linears


@dataclass(frozen=True, slots=True)
class LayerError:
    """relative: ‖W − Ŵ‖ / ‖W‖. worst: the same of the worst block of 64 numbers. largest: greatest |W − Ŵ|."""

    layer: str
    relative: float
    worst: float
    largest: float


def layer_errors(whole, rounded):
    """The LayerError of every Linear of two models, in full and in 4 bits; `rounded` says which those are."""
    plain = {name: module for name, *_, module in plain_linears(whole)}
    found = []
    for name, module in rounded.named_modules():
        if isinstance(module, FourBitLinear):
            weight, error = dense_weight(plain[name]), dense_weight(plain[name]) - dense_weight(module)
            norms, errors = (blocks_of(x).norm(dim=1) for x in (weight, error))
            worst = (errors / norms.clamp(min=1e-30)).max().item()
            found.append(LayerError(name, (error.norm() / weight.norm()).item(), worst, error.abs().max().item()))
    return found


def blocks_of(weight):
    """The numbers of a weight in blocks of 64, row by row as they are rounded; the last one padded with zeros."""
    flat = weight.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


@dataclass(frozen=True, slots=True)
class Drift:
    """One question. largest: greatest change of a start or end logit, [CLS] and text of the window that won in full.

    margin: by how much the answer won in full: over the best other span, and the null where that is on offer (or, when
    "no answer" won, over the best span). flipped: whether 4 bits answer otherwise.
    """

    id: str
    where: str
    largest: float
    margin: float
    answer: str
    rounded_answer: str

    @property
    def flipped(self):
        return self.answer != self.rounded_answer


def drift(whole, rounded, examples, progress=None):
    """A Drift for each example that has an answer to look at. whole, rounded: Readers with the same windows."""
    found = []
    for example in examples:
        case = Case(whole, example.question, example.context)
        other = Case(rounded, example.question, example.context)
        if case.prediction.spans and other.prediction.spans:
            number = case.best.window
            mask = case.batch(number)["answer_mask"]
            mask[:, 0] = True
            pairs = zip(case.logits(number), other.logits(number), strict=True)
            largest = max((a - b)[mask].abs().max().item() for a, b in pairs)
            texts = [answer_text(one) for one in (case, other)]
            found.append(Drift(example.id, example.where, largest, margin(case), *texts))
        if progress is not None:
            progress.update(1)
    return found


def answer_text(case):
    """The answer of a Case, "" for none."""
    span = case.answer(case.prediction)
    return span.text if span is not None else ""


def margin(case):
    """By how much the answer of a Case won, in logits."""
    spans, threshold = case.prediction.spans, case.settings.null_threshold
    odds = None if threshold is None else threshold - case.prediction.null_odds  # above 0: a span is the answer
    if odds is not None and odds < 0:
        return -odds
    second = spans[0].score - spans[1].score if len(spans) > 1 else float("inf")
    return second if odds is None else min(second, odds)
