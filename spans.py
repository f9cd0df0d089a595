"""Answering with a span head: windows in, logits of starts and ends out, the best spans kept.

One of a Reader's two ways to answer; the other is speaker.py.
"""

from contextlib import nullcontext

import numpy as np
import torch

from data.batches import split_by_tokens, to_tensors
from data.decode import QuestionSpans, best_spans
from data.windows import WindowSet
from model.lora import switch_of
from model.precision import autocast

TOKENS_PER_BATCH = 6144


class SpanReading:
    """The way of a model whose head gives each token a logit of being an answer's start, and of its end."""

    chunk_questions = 2048  # asked together: enough to sort lengths, few enough to keep memory flat

    def __init__(self, model, tokenizer, device, precision):
        self.model, self.tokenizer, self.device, self.precision = model, tokenizer, device, precision

    def windows(self, examples, settings, progress=None):
        """What a model reads of some examples, as a WindowSet."""
        return WindowSet(examples, self.tokenizer, settings.windows, progress=progress)

    def training_set(self, examples, settings, references="all", progress=None):
        """The same with labels."""
        return WindowSet(
            examples, self.tokenizer, settings.windows, with_labels=True, references=references, progress=progress
        )

    def steps(self, examples, settings, *, adapter, offer_null, tokens_per_batch):
        """A generator that answers, one forward pass a step; see Reader.steps."""
        windows = self.windows(examples, settings)
        first_windows = np.searchsorted(windows.example, np.arange(len(examples)))
        found = [QuestionSpans() for _ in examples]
        remaining = np.bincount(windows.example, minlength=len(examples))
        yield int((remaining == 0).sum())
        n_best = settings.decode.n_best
        for batch in self.batches(windows, tokens_per_batch or TOKENS_PER_BATCH):
            candidates, nulls = self.score(windows, batch, adapter, settings.decode)
            for row, window in enumerate(batch):
                example = windows.example[window]
                found[example].add(
                    int(window - first_windows[example]), windows.offsets(window), windows.prefix(window),
                    [x[row] for x in candidates], nulls[row], n_best,
                )
            np.subtract.at(remaining, windows.example[batch], 1)
            yield int((remaining[np.unique(windows.example[batch])] == 0).sum())
        return [spans.prediction(example, n_best, offer_null) for example, spans in zip(examples, found, strict=True)]

    def batches(self, windows, tokens_per_batch):
        """Windows of similar length together, in mixed order so that the progress bar's rate is honest."""
        if len(windows) == 0:
            return []
        ordered = np.argsort(windows.length, kind="stable")
        runs = split_by_tokens(windows.length, ordered, tokens_per_batch)
        return [runs[k] for k in np.random.default_rng(0).permutation(len(runs))]

    @torch.inference_mode()
    def score(self, windows, batch, adapter, decode):
        """Candidates (see `best_spans`) and null logits (B, 2) of a batch of windows, as numpy."""
        self.model.eval()
        tensors = to_tensors(windows.fill(batch), self.device)
        switch = switch_of(self.model)
        with autocast(self.device, self.precision), switch.using(adapter) if switch else nullcontext():
            start, end = self.model(tensors["input_ids"], tensors["token_type_ids"], tensors["attention_mask"])
        candidates = best_spans(start, end, tensors["answer_mask"], decode)
        return candidates, torch.stack([start[:, 0], end[:, 0]], 1).cpu().numpy()
