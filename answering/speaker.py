"""Answering with a decoder: prompts in, runs of the text's tokens out, or whatever it says when nothing binds it.

One of a Reader's two ways to answer; the other is spans.py. Of each window the model says the likeliest run of the
text's tokens, and how likely it would say the no-answer phrase instead; windows compete by the probability of what
was said. A slice of a text that several questions are about is read once, and continued by each of them.
"""

from contextlib import ExitStack

import numpy as np
import torch

from common.errors import InputError
from data.batches import QuestionCount, split_by_tokens
from data.chat import FORMATS
from data.decode import Prediction, QuestionSpans, Span
from data.examples import is_blank
from data.prompts import PromptLayout, PromptSet, TalkSet
from model.generate import Prefix, SpanConstraint, go_on, sequence_log_probability
from model.lora import switch_of
from model.precision import autocast

TOKENS_PER_BATCH = 4096
PAD = 0  # stands where the attention mask is False


def trimmed(context, start, end):
    """A place without the white space at its ends, which byte-level tokens carry; None when nothing else is there."""
    text = context[start:end]
    start, end = start + len(text) - len(text.lstrip()), end - (len(text) - len(text.rstrip()))
    return (start, end) if start < end else None


def visible_tokens(prompts, prompt):
    """Places, within the slice that a prompt shows, of tokens that are more than white space: where an answer may begin."""
    context = prompts.examples[prompts.example[prompt]].context
    return [k for k, (start, end) in enumerate(prompts.offsets(prompt).tolist()) if context[start:end].strip()]


def talks(examples):
    """Whether these are questions without texts; a file has one kind only."""
    return bool(examples) and examples[0].context is None


def ends_of(model, stop):
    """Tokens that end what is said freely: the chat format's `stop`, and those that the checkpoint's config names.

    Llama 3.1 Instruct names three, of which <|eot_id|> alone ends a turn; one that was tuned elsewhere may end by another.
    """
    named = model.config.token_ids.get("eos_token_id", [])
    return {stop, *(named if isinstance(named, list) else [named])}


class SpokenAnswers:
    """The way of a decoder that says its answers. Settings are SpeakerSettings with a chat format."""

    chunk_questions = 256  # asked together: enough to share texts and sort lengths
    side_by_side = False  # each would read all weights for every token

    def __init__(self, model, tokenizer, device, precision):
        self.model, self.tokenizer, self.device, self.precision = model, tokenizer, device, precision

    def check(self, settings):
        """Refuse settings that no prompt can be made by."""
        settings.prompts.check()

    def question_limit(self, settings):
        """Tokens that a question may have; of a longer one the rest is cut."""
        try:
            return PromptLayout(self.tokenizer, FORMATS[settings.chat], settings.prompts).question_limit
        except InputError:  # no prompt about a text can be so short; questions without one are cut here
            return settings.prompts.max_question

    def windows(self, examples, settings, progress=None, **labels):
        """What a model reads of some examples, as a PromptSet, or of questions without texts as a TalkSet."""
        return (TalkSet if talks(examples) else PromptSet)(
            examples, self.tokenizer, FORMATS[settings.chat], settings.prompts, pad=PAD, progress=progress, **labels
        )

    def training_set(self, examples, settings, references="all", progress=None, inputs=False):
        """The same with what is to be said after each. inputs: whether the prompts themselves are learned too."""
        place = {} if talks(examples) else {"on_disk": True}
        return self.windows(
            examples, settings, progress, with_labels=True, references=references, inputs=inputs, **place
        )

    def sharing(self, adapter, settings):
        """See Reader.sharing: prompts share what was read of their text, through one adapter."""
        return adapter, settings

    def steps(self, examples, settings, *, adapters, offer_nulls, tokens_per_batch, lanes=1):
        """A generator that answers, one batch a step; see Reader.steps. adapters, offer_nulls: of each example.

        lanes: not used, as sampling draws in order.

        Bound to the text, a span's start_logit is the log-probability of the whole answer and its end_logit 0; the
        null's likewise of the no-answer phrase, the least over the windows; each probability is that of saying just this.
        Unbound there is one span and no null: the likeliest thing said that is not the phrase, placed where the text has
        it first, or nowhere (start -1).
        """
        free = settings.decoding.way != "span" or talks(examples)
        generator = torch.Generator(self.device).manual_seed(settings.decoding.seed)
        prompts = self.windows(examples, settings)
        firsts = np.searchsorted(prompts.example, np.arange(len(examples)))
        found = [Said() if free else QuestionSpans(absolute=True) for _ in examples]
        count = QuestionCount(prompts.example, len(examples))
        yield count.finished
        for batch, shared in batches_of(prompts, tokens_per_batch or TOKENS_PER_BATCH):
            with torch.inference_mode(), self.computing(adapters[prompts.example[batch[0]]]):
                prefix = self.read(prompts, batch, shared)
                if free:
                    results = self.speak(prefix, prompts, batch, settings, generator)
                else:
                    results = self.speak_spans(prefix, prompts, batch)
            for prompt, result in zip(batch, results, strict=True):
                number = prompts.example[prompt]
                found[number].add_answer(int(prompt - firsts[number]), *result)
            yield count.done(batch)
        n_best = settings.n_best
        return [
            said.prediction(example, n_best, offer_null)
            for example, said, offer_null in zip(examples, found, offer_nulls, strict=True)
        ]

    def computing(self, adapter):
        """A context in which the model computes as it was loaded to, through one adapter."""
        switch, contexts = switch_of(self.model), ExitStack()
        contexts.enter_context(autocast(self.device, self.precision))
        if switch is not None:
            contexts.enter_context(switch.using(adapter))
        return contexts

    def read(self, prompts, batch, shared):
        """The Prefix of some prompts, with room for the longest answer and the phrase. shared: all about one slice."""
        room = prompts.settings.max_answer + 1
        if isinstance(prompts, PromptSet):
            room = max(room, len(prompts.layout.phrase) + 1)
        if not shared:
            return Prefix(self.model, [prompts.prompt_ids(prompt) for prompt in batch], room, PAD)
        opening = Prefix(self.model, [prompts.opening_ids(batch[0])], 0, PAD)
        return Prefix(self.model, [prompts.closing_ids(prompt) for prompt in batch], room, PAD, after=opening)

    def speak_spans(self, prefix, prompts, batch):
        """For each prompt ((start, end) in the context or None, log-probability, log-probability of no answer)."""
        layout = prompts.layout
        nulls = sequence_log_probability(prefix, [*layout.phrase, layout.stop]).tolist()
        starts = [visible_tokens(prompts, prompt) for prompt in batch]
        constraints = [
            # a text with nothing to be seen has nothing to say but the end
            SpanConstraint(prompts.slice_ids(prompt).tolist(), (), layout.stop, places) if places
            else SpanConstraint([layout.stop], (), layout.stop)
            for prompt, places in zip(batch, starts, strict=True)
        ]
        said = go_on(prefix, max_new=prompts.settings.max_answer, stop={layout.stop}, constraints=constraints)
        results = [(None, 0.0, null) for null in nulls]
        for row, visible in enumerate(starts):
            places = constraints[row].places(len(said[row].tokens))
            if visible and places:
                first, last = places[0]
                offsets = prompts.offsets(batch[row])
                context = prompts.examples[prompts.example[batch[row]]].context
                place = trimmed(context, int(offsets[first, 0]), int(offsets[last, 1]))
                results[row] = place, said[row].log_probability, nulls[row]
        return results

    def speak(self, prefix, prompts, batch, settings, generator):
        """For each prompt (text, log-probability), the text "" where the no-answer phrase was said."""
        decoding, most = settings.decoding, settings.prompts.max_answer
        stop = ends_of(self.model, prompts.stop if isinstance(prompts, TalkSet) else prompts.layout.stop)
        if isinstance(prompts, PromptSet):
            most = max(most, len(prompts.layout.phrase))
        said = go_on(
            prefix, max_new=most, stop=stop, top_p=decoding.top_p, generator=generator,
            temperature=decoding.temperature if decoding.way == "sample" else 0.0,
        )
        texts = [self.tokenizer.decode(list(one.tokens)).strip() for one in said]
        if isinstance(prompts, PromptSet):
            texts = ["" if text == settings.prompts.no_answer.strip() else text for text in texts]
        return [(text, one.log_probability) for text, one in zip(texts, said, strict=True)]


class Said:
    """Collects what was said freely to one question, window by window."""

    def __init__(self):
        self.best, self.windows = None, 0  # (log-probability, text, window)
        self.refused = None  # the least log-probability of saying that there is none

    def add_answer(self, window, text, log_probability):
        """Take in one window: the text, "" for no answer."""
        self.windows += 1
        if not text:
            self.refused = log_probability if self.refused is None else min(self.refused, log_probability)
        elif self.best is None or log_probability > self.best[0]:
            self.best = log_probability, text, window

    def prediction(self, example, n_best, offer_null):
        """The finished Prediction, of one span or none; its probability is that of saying just this."""
        reason = "the model says that there is none"
        if is_blank(example.question):
            self.best, reason = None, "the question is empty"
        elif example.context is not None and is_blank(example.context):
            self.best, reason = None, "the context is empty"
        if self.best is None:
            sure = 0.0 if self.refused is None else float(np.exp(self.refused))
            return Prediction(example.id, (), None, sure, reason, self.windows)
        log_probability, text, window = self.best
        start = -1 if example.context is None else example.context.find(text)
        end = start + len(text) if start >= 0 else -1
        span = Span(text, start, end, log_probability, 0.0, float(np.exp(log_probability)), window)
        return Prediction(example.id, (span,), None, 0.0, windows=self.windows)


def batches_of(prompts, tokens_per_batch):
    """[(prompts, whether all are about one slice of a text)]: those together, others with some of similar length."""
    order = np.argsort(prompts.length, kind="stable")
    alone, runs = [], []
    if isinstance(prompts, PromptSet):
        same = {}
        for prompt in order.tolist():
            number = prompts.texts.context_number[prompts.example[prompt]]
            same.setdefault((number, prompts.start[prompt], prompts.stop[prompt]), []).append(prompt)
        for members in same.values():
            if len(members) == 1:
                alone += members
            else:
                runs += [(run, True) for run in split_by_tokens(prompts.length, np.array(members), tokens_per_batch)]
    else:
        alone = order.tolist()
    if alone:
        runs += [(run, False) for run in split_by_tokens(prompts.length, np.array(alone), tokens_per_batch)]
    return runs
