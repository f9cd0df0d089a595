"""Which words carried the answer: integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365).

    a[t] = (x[t] − x'[t]) · ∫₀¹ ∂F / ∂x[t] at x' + α (x − x') dα          equation 1, summed over the vector

F is the answer's start logit plus its end logit; x are the word vectors, and x' the same with [PAD]'s vector in
place of every word; [CLS] and [SEP], positions and token types stay. The integral is taken by the midpoint rule. All
a[t] together should make F(x) − F(x') ("completeness"); by how much they miss it is told.
"""

from dataclasses import dataclass

import torch

from common.errors import InputError
from answering.reader import run_steps
from inside.case import SPECIAL
from inside.hooks import changing_words, embeddings
from model.quant import Int8Linear

STEPS = 32
STEPS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Saliency:
    """attributions: (T,) fp32. score, baseline: F(x) and F(x'). missing: F(x) − F(x') less all attributions."""

    number: int
    attributions: torch.Tensor
    score: float
    baseline: float
    steps: int

    @property
    def missing(self):
        return self.score - self.baseline - self.attributions.sum().item()


def saliency(case, steps=STEPS):
    """The Saliency of the best span in the window that won, in fp32. InputError for 8-bit layers: no gradient."""
    return run_steps(saliency_steps(case, steps))


def saliency_steps(case, steps=STEPS):
    """The work of `saliency` as a generator, STEPS_AT_ONCE gradients a step; what it returns is the Saliency."""
    if any(isinstance(module, Int8Linear) for module in case.model.modules()):
        raise InputError("8-bit layers round, and what rounds has no gradient: start without --quant int8")
    number = case.best.window
    first, last = case.tokens_of(case.best, number)
    ids, types = case.inputs(number)
    table = embeddings(case.model).word_embeddings
    words = table(ids).detach()  # (1, T, D)
    fixed = torch.tensor([piece.part == SPECIAL for piece in case.pieces(number)], device=ids.device)
    empty = torch.where(fixed[None, :, None], words, table.weight[case.windows.layout.pad].detach())  # (1, T, D)
    alphas = (torch.arange(steps, device=ids.device) + 0.5) / steps
    total = torch.zeros_like(words[0])
    for part in alphas.split(STEPS_AT_ONCE):
        points = (empty + part[:, None, None] * (words - empty)).requires_grad_()  # (S, T, D)
        with case.computing(gradients=True, precise=True), changing_words(case.model, lambda _, x=points: x):
            score = target(case.model, ids, types, len(part), first, last).sum()
        total += torch.autograd.grad(score, points)[0].sum(0)
        yield
    with case.computing(precise=True) as model:
        scores = []
        for point in (words, empty):
            with changing_words(model, lambda _, x=point: x):
                scores.append(target(model, ids, types, 1, first, last).item())
    attributions = ((words - empty)[0] * total / steps).sum(-1)  # (T,)
    return Saliency(number, attributions.cpu(), *scores, steps)


def target(model, ids, types, rows, first, last):
    """F of `rows` copies of the window: (rows,)."""
    start, end = model(ids.expand(rows, -1), types.expand(rows, -1))
    return start[:, first] + end[:, last]
