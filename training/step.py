"""One optimizer step: many micro-batches, one division, one update."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from data.batches import to_tensors
from data.prompts import IGNORED
from data.windows import NO_LABEL
from model.precision import autocast
from training.distributed import Ranks

ALONE = Ranks()


class NonFinite(ArithmeticError):
    """Loss or gradient is not a finite number; nothing was updated."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """loss: mean over the step's windows. grad_norm: before clipping. tokens: real ones; padded: with padding."""

    loss: float
    grad_norm: float
    windows: int
    tokens: int
    padded_tokens: int
    updated: bool


def span_loss(start_logits, end_logits, answer_mask, label, null=None):
    """Sum over windows of (CE(start) + CE(end)) / 2 (Devlin et al. 2018, section 4.2).

    start_logits, end_logits: (B, T) fp32; answer_mask: (B, T) bool, the slice; label: (B, R, 2) int64, the
    places of up to R references. The target is their mean: where two annotators start at token 7 and one at
    9, CE(start) = -(2 log p(7) + log p(9)) / 3. With one reference it is the cross entropy of the paper.
    null: (B,) int64, the place of "no answer here"; None: a BERT's [CLS], the first.
    The softmax runs over that and the slice. The references run it over question and padding too; then
    the loss of a window would depend on how far its neighbours in the batch made it be padded.
    """
    if null is None:
        null = torch.zeros(len(label), dtype=torch.long, device=label.device)
    allowed = answer_mask.scatter(1, null[:, None], True)
    given = (label[..., 0] != NO_LABEL).float()  # (B, R)
    share = given / given.sum(1, keepdim=True)  # (B, R)
    loss = 0.0
    for logits, place in ((start_logits, label[..., 0]), (end_logits, label[..., 1])):
        log_p = logits.masked_fill(~allowed, float("-inf")).log_softmax(-1)  # (B, T)
        place = torch.where(place == NO_LABEL, null[:, None], place)  # of no share, and always finite there
        loss = loss - (share * log_p.gather(1, place)).sum() / 2
    return loss


def answer_loss(logits, labels, share):
    """Sum of share · CE over the tokens to be said. logits: (n, V) fp32. labels: (n,) int64. share: (n,) fp32."""
    return (F.cross_entropy(logits, labels, reduction="none") * share).sum()


def span_losses(*batch):
    """What each window adds to `span_loss`, (B,) and without a gradient; arguments as there."""
    rows = zip(*(part.detach().split(1) for part in batch), strict=True)
    return torch.stack([span_loss(*row) for row in rows])


def batch_loss(model, batch, device, precision, record=None):
    """The summed loss of a batch, of spans or of answers to be said, as its labels are.

    record: called with the losses (B,) of a batch of spans.
    """
    with autocast(device, precision):
        if "labels" in batch:
            said = batch["labels"] != IGNORED  # (B, T); the output layer, of a whole vocabulary, is needed there alone
            logits = model(batch["input_ids"], batch["attention_mask"], where=said)
        else:
            start, end = model(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    if "labels" in batch:
        share = batch["share"][:, None].expand_as(said)[said]
        return answer_loss(logits, batch["labels"][said], share)
    if record is not None:
        record(span_losses(start, end, batch["answer_mask"], batch["label"], batch["null"]))
    return span_loss(start, end, batch["answer_mask"], batch["label"], batch["null"])


def accumulate(
    model, window_set, windows, max_tokens, *, device, precision, scaler, ranks=ALONE, record=None
):
    """Add the gradients of the mean loss over `windows` to the parameters; returns (loss, tokens, padded).

    window_set: a WindowSet, whose mean is over windows, or a PromptSet, whose mean is over the tokens to be said.
    record: called with the indices of some windows and their losses, where a file of losses is kept.
    The sum of each micro-batch's loss is divided by the count of the whole step, so any way of splitting
    gives the gradient of the whole batch. With means per micro-batch a ragged last one would weigh too much:
    for windows of loss 1, 1, 1, 4 split 3 + 1, mean of means is 2.5 and the true mean 1.75. The same holds over
    ranks: each has its part of `windows`, and gradients, loss and padded are sums over all of them.
    """
    total = torch.zeros((), device=device)
    padded = 0
    parts = ranks.parts(window_set.length, windows, max_tokens)
    for number, (part, counts) in enumerate(parts, start=1):
        batch = to_tensors(window_set.fill(part), device)
        note = None if record is None else partial(record, part)
        with ranks.accumulating(model, last=number == len(parts)):
            loss = batch_loss(model, batch, device, precision, note) / window_set.units(windows)
            weight = ranks.divided if counts else 0
            scaler.scale(loss if weight == 1 else loss * weight).backward()
        total += loss.detach() if counts else 0
        padded += batch["input_ids"].numel()
    loss, padded = ranks.sums(total.item(), padded)
    return loss, int(window_set.length[windows].sum()), int(padded)


def train_step(
    model, optimizer, scaler, window_set, windows, *, learning_rate, max_tokens, clip, device, precision, ranks=ALONE,
    record=None,
):
    """Learn from `windows` once; returns a StepResult.

    model: what `ranks.learner` gave. learning_rate: for this step, times each parameter group's `scale`. clip: largest
    norm of the whole gradient. record: as for `accumulate`. Raises NonFinite before the update when loss or gradient is
    not finite; with fp16 a gradient that overflowed is the scaler's business: the step is left out and the scale
    halved, and only a scale that has fallen below 1 stops the run.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("scale", 1.0)
    optimizer.zero_grad(set_to_none=True)
    loss, tokens, padded = accumulate(
        model, window_set, windows, max_tokens, device=device, precision=precision, scaler=scaler, ranks=ranks,
        record=record,
    )
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = ranks.whole_tensor(torch.nn.utils.clip_grad_norm_(parameters, clip)).item()
    finite = torch.isfinite(torch.tensor([loss, grad_norm])).tolist()
    if not finite[0]:
        raise NonFinite(f"the loss is {loss}")
    if not finite[1] and not scaler.is_enabled():
        raise NonFinite(f"the norm of the gradient is {grad_norm}")
    scaler.step(optimizer)
    scaler.update()
    if scaler.is_enabled() and scaler.get_scale() < 1.0:
        raise NonFinite("the loss scale fell below 1, so every gradient overflows")
    return StepResult(loss, grad_norm, len(windows), tokens, padded, finite[1])
