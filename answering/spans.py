"""Answering with a span head: windows in, logits of starts and ends out, the best spans kept.

One of a Reader's two ways to answer; the other is speaker.py.
"""

from contextlib import nullcontext

import numpy as np
import torch

from answering.lanes import in_lanes
from common.errors import InputError
from data.batches import QuestionCount, split_by_tokens, to_tensors
from data.decode import QuestionSpans, best_spans
from data.tokenizer import PairLayout, pair_layout
from data.windows import WindowSet
from model.lora import switch_of
from model.precision import autocast

TOKENS_PER_BATCH = 6144


def decoder_layout(tokenizer, tokenizer_config):
    """The PairLayout of a decoder, question first: begin, question, end, slice, end. "No answer" is the last token's.

    InputError when the tokenizer names no tokens of begin and end.
    """
    ids = []
    for key in ("bos_token", "eos_token"):
        token = tokenizer_config.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        number = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if number is None:
            raise InputError(f"tokenizer_config.json: {key}: a span head needs one that the vocabulary holds")
        ids.append(number)
    begin, end = ids
    return PairLayout((begin,), (end,), (end,), pad=0, null_last=True)


def refuse_talks(examples):
    """InputError for questions that are not about texts: there is no span to find."""
    if examples and examples[0].context is None:
        raise InputError(
            f"{examples[0].where}: a question without a text, which only a decoder answers (a LLaMA, without --head span)"
        )


class SpanReading:
    """The way of a model whose head gives each token a logit of being an answer's start, and of its end."""

    chunk_questions = 2048  # asked together: enough to sort lengths, few enough to keep memory flat
    side_by_side = True  # whether passes in threads of their own are sooner done than one after the other

    def __init__(self, model, tokenizer, device, precision, layout=None):
        """layout: of a decoder, what stands in place of an encoder's special tokens; see `decoder_layout`."""
        self.model, self.tokenizer, self.device, self.precision = model, tokenizer, device, precision
        self.layout = layout or pair_layout(tokenizer)

    def check(self, settings):
        """Refuse settings whose windows cannot cover a text."""
        settings.windows.check(self.layout.specials)

    def question_limit(self, settings):
        """Tokens that a question may have; of a longer one the rest is cut."""
        return settings.windows.longest_question(self.layout.specials)

    def windows(self, examples, settings, progress=None, **more):
        """What a model reads of some examples, as a WindowSet. more: further options of it."""
        refuse_talks(examples)
        return WindowSet(
            examples, self.tokenizer, settings.windows, layout=self.layout, progress=progress, **more
        )

    def training_set(self, examples, settings, references="all", progress=None):
        """The same with labels."""
        return self.windows(examples, settings, progress, with_labels=True, references=references, on_disk=True)

    def sharing(self, adapter, settings):
        """See Reader.sharing: rows of a batch may go through different adapters, but are cut and decoded alike."""
        return settings.windows, settings.decode

    def steps(self, examples, settings, *, adapters, offer_nulls, tokens_per_batch, lanes=1):
        """A generator that answers, one forward pass a step; see Reader.steps. adapters, offer_nulls: of each example.

        lanes: passes at the same time.
        """
        windows = self.windows(examples, settings)
        first_windows = np.searchsorted(windows.example, np.arange(len(examples)))
        found = [QuestionSpans() for _ in examples]
        count = QuestionCount(windows.example, len(examples))
        yield count.finished
        n_best = settings.decode.n_best

        def score(batch):
            names = [adapters[example] for example in windows.example[batch]]
            return self.score(windows, batch, names if len(set(names)) > 1 else names[0], settings.decode)

        tokens = tokens_per_batch or TOKENS_PER_BATCH
        batches = self.batches(windows, tokens // lanes)  # together as large as one, so memory does not grow by lanes
        if len(batches) < 2 * lanes:  # a few are done sooner with all cores on each
            batches, lanes = self.batches(windows, tokens), 1
        for batch, (candidates, nulls) in in_lanes(score, batches, lanes):
            for row, window in enumerate(batch):
                example = windows.example[window]
                found[example].add(
                    int(window - first_windows[example]), windows.offsets(window), windows.prefix(window),
                    [x[row] for x in candidates], nulls[row], n_best,
                )
            yield count.done(batch)
        return [
            spans.prediction(example, n_best, offer_null)
            for example, spans, offer_null in zip(examples, found, offer_nulls, strict=True)
        ]

    def batches(self, windows, tokens_per_batch=None):
        """Windows of similar length together, in mixed order so that the progress bar's rate is honest."""
        if len(windows) == 0:
            return []
        ordered = np.argsort(windows.length, kind="stable")
        runs = split_by_tokens(windows.length, ordered, tokens_per_batch or TOKENS_PER_BATCH)
        return [runs[k] for k in np.random.default_rng(0).permutation(len(runs))]

    @torch.inference_mode()
    def logits(self, windows, batch, adapter):
        """Start and end logits (B, T) fp32 of a batch of windows, and the batch as tensors, all on the device.

        adapter: the one for all of them, or a list with one for each.
        """
        self.model.eval()
        tensors = to_tensors(windows.fill(batch), self.device)
        choose = nullcontext
        if (switch := switch_of(self.model)) is not None:
            choose = switch.rows if isinstance(adapter, list) else switch.using
        with autocast(self.device, self.precision), choose(adapter):
            start, end = self.model(tensors["input_ids"], tensors["token_type_ids"], tensors["attention_mask"])
        return start, end, tensors

    @torch.inference_mode()
    def score(self, windows, batch, adapter, decode):
        """Candidates (see `best_spans`) and null logits (B, 2) of a batch of windows, as numpy."""
        start, end, tensors = self.logits(windows, batch, adapter)
        candidates = best_spans(start, end, tensors["answer_mask"], decode)
        null = tensors["null"][:, None]
        return candidates, torch.cat([start.gather(1, null), end.gather(1, null)], 1).cpu().numpy()
