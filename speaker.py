"""A decoder that answers questions about texts: prompts in, exact spans or "no answer" out.

The counterpart of reader.py; both give the same Predictions, so that scoring and showing them know no difference. Of
each window the model says the likeliest run of the text's tokens (or freely, for comparison), and how likely it would
say the no-answer phrase instead; windows compete by the probability of what was said.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from data.batches import split_by_tokens
from data.decode import QuestionSpans
from data.examples import Example
from data.prompts import PromptSet
from model.generate import Prefix, SpanConstraint, go_on, sequence_log_probability
from model.precision import autocast

CHUNK_QUESTIONS = 256
TOKENS_PER_BATCH = 4096


@dataclass(frozen=True, slots=True)
class FreeAnswer:
    """What a decoder says when nothing binds it: text, its log-probability, and whether the context holds it."""

    text: str
    log_probability: float
    in_context: bool


def trimmed(context, start, end):
    """A place without the white space at its ends, which byte-level tokens carry; None when nothing else is there."""
    text = context[start:end]
    start, end = start + len(text) - len(text.lstrip()), end - (len(text) - len(text.rstrip()))
    return (start, end) if start < end else None


class Speaker:
    """Answers questions with a decoder. chat: a ChatFormat. settings: PromptSettings."""

    def __init__(self, model, tokenizer, chat, settings, *, device, precision):
        self.model = model.to(device)
        self.tokenizer, self.chat, self.settings = tokenizer, chat, settings.check()
        self.device, self.precision = device, precision
        self.pad = 0  # stands where the attention mask is False

    def predict(self, examples, *, offer_null=True, progress=None, tokens_per_batch=TOKENS_PER_BATCH):
        """Yield the Prediction of each example, in order; spans are exact substrings of their contexts.

        A span's start_logit is the log-probability of the whole answer, its end_logit 0; the null's likewise of the
        no-answer phrase, the least over the windows. progress: something with update(questions).
        """
        for first in range(0, len(examples), CHUNK_QUESTIONS):
            chunk = examples[first : first + CHUNK_QUESTIONS]
            prompts = PromptSet(chunk, self.tokenizer, self.chat, self.settings, pad=self.pad)
            firsts = np.searchsorted(prompts.example, np.arange(len(chunk)))
            found = [QuestionSpans() for _ in chunk]
            for batch in self._batches(prompts, tokens_per_batch):
                for prompt, (place, log_p, null) in zip(batch, self._speak(prompts, batch), strict=True):
                    number = prompts.example[prompt]
                    found[number].add_answer(int(prompt - firsts[number]), place, log_p, null)
            for example, spans in zip(chunk, found, strict=True):
                yield spans.prediction(example, 20, offer_null)
            if progress is not None:
                progress.update(len(chunk))

    def _batches(self, prompts, tokens_per_batch):
        """Prompts of similar length together."""
        if len(prompts) == 0:
            return []
        return split_by_tokens(prompts.length, np.argsort(prompts.length, kind="stable"), tokens_per_batch)

    @torch.inference_mode()
    def _speak(self, prompts, batch):
        """For each prompt ((start, end) in the context or None, log-probability, log-probability of no answer)."""
        layout, most = prompts.layout, self.settings.max_answer
        with autocast(self.device, self.precision):
            prefix = self._read(prompts, batch)
            nulls = sequence_log_probability(prefix, [*layout.phrase, layout.stop]).tolist()
            slices = [prompts.slice_ids(prompt).tolist() for prompt in batch]
            rows = [row for row, ids in enumerate(slices) if ids]  # an empty text has nothing to say
            constraints = [SpanConstraint(ids or [layout.stop], (), layout.stop) for ids in slices]
            said = go_on(prefix, max_new=most, stop={layout.stop}, constraints=constraints)
        results = [(None, 0.0, null) for null in nulls]
        for row in rows:
            (first, last), *_ = constraints[row].places(len(said[row].tokens)) or [(0, -1)]
            offsets = prompts.offsets(batch[row])
            if last >= first:
                context = prompts.examples[prompts.example[batch[row]]].context
                place = trimmed(context, int(offsets[first, 0]), int(offsets[last, 1]))
                results[row] = place, said[row].log_probability, nulls[row]
        return results

    def _read(self, prompts, batch):
        """The Prefix of some prompts, with room for the longest answer and for the phrase."""
        room = max(self.settings.max_answer, len(prompts.layout.phrase)) + 1
        return Prefix(self.model, [prompts.prompt_ids(prompt) for prompt in batch], room, self.pad)

    def speak_freely(self, examples, *, temperature=0.0, top_p=1.0, generator=None):
        """Yield a FreeAnswer to each example, of its likeliest window: what the model says when nothing binds it."""
        for example in examples:
            prompts = PromptSet([example], self.tokenizer, self.chat, self.settings, pad=self.pad)
            batch = np.arange(len(prompts))
            with torch.inference_mode(), autocast(self.device, self.precision):
                said = go_on(
                    self._read(prompts, batch), max_new=max(self.settings.max_answer, len(prompts.layout.phrase)),
                    stop={prompts.layout.stop}, temperature=temperature, top_p=top_p, generator=generator,
                )
            best = max(said, key=lambda one: one.log_probability)
            text = self.tokenizer.decode(list(best.tokens)).strip()
            yield FreeAnswer(text, best.log_probability, bool(text) and text in example.context)

    def ask(self, question, context):
        """The Prediction for one question about one text, and the seconds it took."""
        began = time.perf_counter()
        prediction = next(iter(self.predict([Example("question", question, context, None, "question")])))
        return prediction, time.perf_counter() - began
