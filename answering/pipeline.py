"""A drop-in for the question-answering pipeline that transformers removed in 5.3, with the numbers of its 4.57.

    from bareqa import pipeline                                   # was: from transformers import pipeline
    qa = pipeline("question-answering", model="runs/mine/model")
    qa(question="When did it open?", context="The observatory opened in 1912.")
    {'score': 0.98, 'start': 26, 'end': 30, 'answer': '1912'}

A layer over Reader that decodes as that pipeline did, which is not how Reader does: probabilities are those within one
window (of the windows of a long text the most confident wins, whatever it saw), spans are widened to whole words, and
candidates that read alike are one answer, whose scores are added up. docs/from-transformers.md has the differences.
"""

from dataclasses import dataclass, fields, replace
from types import GeneratorType

import numpy as np
import torch

from answering.reader import Reader
from answering.settings import ReaderSettings
from common.errors import InputError
from data.decode import DecodeSettings, best_spans
from data.examples import Example
from data.windows import WindowSet, WindowSettings
from model.adapters import SHIPPED, is_adapter
from model.prompts import room
from model.source import resolve_model

TASK = "question-answering"
NO_EFFECT = {"batch_size", "num_workers", "padding"}  # of the answers: batches are made by tokens here
FORMS = "give question= and context=, as texts or lists of texts, or dicts with both"


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """The call's keywords, with transformers' defaults.

    top_k: answers. In tokens: max_answer_len; max_seq_len, of a window (None: 384, or what the model can take);
    doc_stride, which neighbouring windows share (None: 128, half a window at most); max_question_len.
    handle_impossible_answer: let "" compete. align_to_words: widen answers to whole words.
    """

    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def changed(self, values):
        """With some values replaced, None for "as it is"; InputError for unknown names and impossible values."""
        known = {field.name for field in fields(self)}
        for name in sorted(set(values) - known - NO_EFFECT):
            raise InputError(f"{name} is no option of this pipeline; there are {', '.join(sorted(known))}")
        values = {k: int(v) if isinstance(v, np.integer) else v for k, v in values.items()}
        changed = replace(self, **{k: v for k, v in values.items() if k in known and v is not None})
        for name in ("top_k", "max_answer_len", "max_question_len", "max_seq_len"):
            value = getattr(changed, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"{name} should be a whole number of at least 1, not {value!r}")
        if changed.doc_stride is not None and (type(changed.doc_stride) is not int or changed.doc_stride < 0):
            raise InputError(f"doc_stride should be a whole number of at least 0, not {changed.doc_stride!r}")
        for name in ("handle_impossible_answer", "align_to_words"):
            if type(getattr(changed, name)) is not bool:
                raise InputError(f"{name} should be True or False, not {getattr(changed, name)!r}")
        return changed

    def windows(self, longest):
        """The WindowSettings; longest: tokens that the model can take."""
        length = self.max_seq_len if self.max_seq_len is not None else min(384, longest)
        if length > longest:
            raise InputError(f"max_seq_len {length} is more than this model's {longest} positions")
        overlap = self.doc_stride if self.doc_stride is not None else min(length // 2, 128)
        return WindowSettings(length, overlap, max_question=self.max_question_len).check()


class QuestionAnsweringPipeline:
    """Calls give {"score", "start", "end", "answer"}, or a list of them, as transformers' class of this name did.

    model: what --model takes (a folder, a hub id, "minilm") or a Reader. options: those of PipelineOptions, as the
    calls' defaults. Threads may share a pipeline. Raises InputError, a ValueError, for what cannot be used.
    """

    def __init__(self, model, *, device="auto", precision="fp32", **options):
        if not isinstance(model, Reader):
            model = Reader.load(resolve_model(str(model)).folder, device=device, precision=precision)
            if not model.trained:
                raise InputError("this model has no span head that was trained to answer; train it first")
        if not isinstance(model.settings, ReaderSettings):
            raise InputError("this pipeline scores starts and ends of spans, and a decoder says its answers")
        self.reader = model
        self.options = PipelineOptions().changed(options)

    def __call__(self, *inputs, question=None, context=None, **options):
        """Answer questions.

        question, context: texts, or lists of as many, or a list of questions about one text; or one positional dict
        with both keys, or a list or generator of such. Returns, for one question (a list of one, too, as it was), a
        dict or with more than one answer a list of dicts, best first; for several a list of these; for a generator a
        generator.
        """
        options = self.options.changed(options)
        pairs = pairs_of(inputs, question, context)
        if isinstance(pairs, GeneratorType):
            return (self._answers([pair_of(one)], options)[0] for one in pairs)
        found = []
        size = self.reader.way.chunk_questions
        for first in range(0, len(pairs), size):
            found += self._answers(pairs[first : first + size], options)
        return found[0] if len(found) == 1 else found

    def _answers(self, pairs, options):
        """What the call returns for each (question, context)."""
        examples = [Example(str(number), *pair, None, "question") for number, pair in enumerate(pairs)]
        settings, layout = options.windows(room(self.reader.model)), self.reader.way.layout
        # all that leaves each slice one new token, where the settings would leave the slice half
        most = settings.length - settings.overlap - layout.specials - 1
        windows = WindowSet(
            examples, self.reader.tokenizer, settings, layout=layout, with_words=options.align_to_words,
            question_limit=min(options.max_question_len, most),
        )
        scored = [None] * len(windows)
        for batch, *logits in self.reader.logits(windows):
            for window, candidates in zip(batch, score_windows(*logits, options), strict=True):
                scored[window] = candidates
        of_example = [[] for _ in examples]
        for window, example in enumerate(windows.example):
            of_example[example].append((window, scored[window]))
        return [
            merged(example.context, [(places(windows, w, c, options), n) for w, (c, n) in found], options)
            for example, found in zip(examples, of_example, strict=True)
        ]


def pipeline(task=TASK, model=None, tokenizer=None, device=None, **options):
    """A QuestionAnsweringPipeline by the call that transformers.pipeline took; InputError for any other task.

    model: None is the adapter that comes with the project. device: -1 for the CPU, the number of a GPU, or a name;
    None: a GPU where there is one.
    """
    if task != TASK:
        raise InputError(f"the task {task!r} is not known here, only {TASK!r}")
    if model is None and not is_adapter(SHIPPED):
        raise InputError("name a model: a folder, or the id of a hub repository")
    model = SHIPPED if model is None else model
    if tokenizer is not None and str(tokenizer) != str(model):
        raise InputError(f"tokenizer {tokenizer!r}: a model is read with the tokenizer in its folder")
    if isinstance(device, int) and not isinstance(device, bool):
        device = "cpu" if device < 0 else f"cuda:{device}"
    return QuestionAnsweringPipeline(model, device=str(device or "auto"), **options)


def pairs_of(inputs, question, context):
    """[(question, context)] of a call's inputs, or its generator as it is; InputError for other forms."""
    if not inputs:
        if isinstance(question, list) and isinstance(context, str):
            context = [context] * len(question)
        if isinstance(question, str) and isinstance(context, str):
            question, context = [question], [context]
        if not isinstance(question, list) or not isinstance(context, list):
            raise InputError(FORMS)
        if len(question) != len(context):
            raise InputError(f"{len(question)} questions and {len(context)} contexts do not make pairs")
        return [pair_of({"question": q, "context": c}) for q, c in zip(question, context, strict=True)]
    if len(inputs) == 2 and all(isinstance(one, str) for one in inputs) and question is context is None:
        return [pair_of({"question": inputs[0], "context": inputs[1]})]
    if question is not None or context is not None:
        raise InputError(f"{FORMS}; not both ways at once")
    given = inputs[0] if len(inputs) == 1 else list(inputs)
    if isinstance(given, GeneratorType):
        return given
    if not isinstance(given, (dict, list, tuple)):
        raise InputError(FORMS)
    return [pair_of(one) for one in ([given] if isinstance(given, dict) else given)]


def pair_of(one):
    """(question, context) of a dict; InputError when one is missing, empty or no text."""
    if not isinstance(one, dict):
        raise InputError(FORMS)
    for key in ("question", "context"):
        if not isinstance(one.get(key), str) or not one[key]:
            raise InputError(f"`{key}` should be a text that is not empty, found {one.get(key)!r}")
    return one["question"], one["context"]


@torch.inference_mode()
def score_windows(start, end, answer_mask, null, options):
    """For each window of a batch ([(first token, last token, score)], best first, and the null's score).

    start, end: logits (B, T) fp32. answer_mask: (B, T) bool. null: (B,) the token that stands for it. A score is
    p(start) · p(end), each a softmax over the window's slice and the null's token.
    """
    # more than are asked for: widening to words lets some become the same
    n_best = 2 * options.top_k + 10 if options.align_to_words else options.top_k
    null = null[:, None]
    weighed = answer_mask.scatter(1, null, True)
    totals = [x.masked_fill(~weighed, float("-inf")).cpu().double().logsumexp(1) for x in (start, end)]  # (B,) each
    first, last, start_logit, end_logit = best_spans(
        start, end, answer_mask, DecodeSettings(n_best, options.max_answer_len)
    )
    total = sum(totals).numpy()
    scores = np.exp(start_logit.astype(np.float64) + end_logit - total[:, None])  # (B, n)
    nulls = np.exp((start.gather(1, null).double() + end.gather(1, null).double())[:, 0].cpu().numpy() - total)
    found = []
    for row, null in enumerate(nulls):
        kept = np.flatnonzero(np.isfinite(start_logit[row]))
        found.append(([(first[row, k], last[row, k], float(scores[row, k])) for k in kept], float(null)))
    return found


def places(windows, window, candidates, options):
    """[(start, end, score)] in code points of a window's candidates, widened to whole words if that is wanted."""
    offsets, prefix, found = windows.offsets(window), windows.prefix(window), []
    words = windows.words(window) if options.align_to_words else None
    for first, last, score in candidates:
        first, last = first - prefix, last - prefix
        if words is not None:  # words are numbered in rising order
            first = np.searchsorted(words, words[first])
            last = np.searchsorted(words, words[last], side="right") - 1
        start, end = int(offsets[first, 0]), int(offsets[last, 1])
        if start < end:
            found.append((start, end, score))
    return found


def merged(context, windows, options):
    """What the call returns for one question: the best answers of its windows, [([(start, end, score)], null)]."""
    answers = {}
    for candidates, _ in windows:
        for start, end, score in candidates:
            text = context[start:end]
            one = answers.setdefault(text.lower(), {"score": 0.0, "start": start, "end": end, "answer": text})
            one["score"] += score
    found = list(answers.values())
    nothing = {"start": 0, "end": 0, "answer": ""}
    if options.handle_impossible_answer:
        found.append({"score": min((null for _, null in windows), default=1.0), **nothing})
    found = sorted(found, key=lambda answer: -answer["score"])[: options.top_k] or [{"score": 0.0, **nothing}]
    return found[0] if len(found) == 1 else found
