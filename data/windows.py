"""Text to windows: `[CLS] question [SEP] slice [SEP]`, each short enough for the model.

RoBERTa's are `<s> question </s></s> slice </s>`: what stands around the two texts is the tokenizer's to say
(`data.tokenizer.pair_layout`), three or four tokens.

A context longer than a window is cut into overlapping slices. With the defaults (384 tokens, overlap 128)
and a question of 14 tokens a slice holds 384 - 14 - 3 = 367, and a new one starts every 367 - 128 = 239
tokens: a context of 1,000 tokens makes slices 0-367, 239-606, 478-845, 717-1000.

Everything is kept in flat numpy arrays, contexts once however many questions ask about them, and a batch of tensors is
cut from them when it is needed. For training the tokens stand in a temporary file: what is left in memory is some 40
bytes a window, however long the texts are.
"""

from array import array
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from data.texts import QuestionTexts
from data.tokenizer import pair_layout

SPECIALS = 3  # tokens around question and slice, in BERT
REFERENCES = ("all", "first")
NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """How texts are cut, in tokens.

    length: of a whole window. overlap: tokens that neighbouring slices share (Hugging Face's
    doc_stride). step: from one slice's start to the next, instead of overlap (Google's doc_stride).
    max_question: longer questions are cut.
    """

    length: int = 384
    overlap: int | None = 128
    step: int | None = None
    max_question: int = 64

    def check(self, specials=SPECIALS):
        """Raise InputError for a combination that cannot cover a text; returns self."""
        if (self.overlap is None) == (self.step is None):
            raise InputError("give either an overlap or a step of windows, not both")
        for name in ("length", "overlap", "step", "max_question"):
            value = getattr(self, name)
            least = 0 if name == "overlap" else 1
            if value is not None and (type(value) is not int or value < least):
                raise InputError(f"window {name} must be a whole number of at least {least}, not {value!r}")
        if self.longest_question(specials) < 1:
            used = f"an overlap of {self.overlap}" if self.step is None else f"a step of {self.step}"
            raise InputError(
                f"windows of {self.length} tokens with {used} leave no room for a question and a slice: "
                f"choose a longer window or a smaller {'overlap' if self.step is None else 'step'}"
            )
        return self

    def longest_question(self, specials=SPECIALS):
        """Tokens of a question that leave each slice its overlap and at least one new token (or its step)."""
        if self.step is not None:
            return min(self.max_question, self.length - specials - self.step)
        return min(self.max_question, (self.length - specials - self.overlap) // 2)

    def slices(self, question_tokens, context_tokens, specials=SPECIALS):
        """Yield (start, stop) of each slice of a context, in tokens; nothing for an empty context."""
        capacity = self.length - question_tokens - specials
        step = self.step if self.step is not None else capacity - self.overlap
        assert 0 < step <= capacity
        for start in range(0, context_tokens, step):
            stop = min(start + capacity, context_tokens)
            yield start, stop
            if stop == context_tokens:
                break


def label_tokens(offsets, start, end):
    """First and last token of an answer, the run of those that share a code point with it.

    offsets: (n, 2). start, end: code points of the answer. Returns (first, last), or None when no token
    touches the answer (it is all white space or characters the tokenizer drops).

    Worked example: "(1895-1943)" has tokens ( 1895 - 1943 ) with offsets 0-1 1-5 5-6 6-10 10-11; the
    answer "1895" is 1-5: the first token that ends after 1 is 1, the last that starts before 5 is 1.
    """
    touched = np.flatnonzero(np.minimum(offsets[:, 1], end) > np.maximum(offsets[:, 0], start))
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


class WindowSet:
    """All windows of a list of examples.

    Per window, arrays of length W: `example` (its index), `start` and `stop` (the slice, in tokens of the
    context), `length` (tokens with question and the three specials), `label` (W, R, 2): for each of up to R
    references the first and last token of the answer, counted within the window, or (0, 0), the [CLS], when
    the slice does not hold the whole answer or there is none (Devlin et al. 2018, section 4.3; also for
    SQuAD v1.1, as in both references); NO_LABEL where a question has fewer references.

    references: label "all", or only the "first", which is all that the reference implementations look at. layout: the
    special tokens, a PairLayout; unset: those of the tokenizer. with_words: let `words` tell which tokens are of one
    word. question_limit: tokens that longer questions are cut to; unset: by the settings' rule. on_disk: keep tokens in
    a temporary file; `examples` may then be emptied.
    """

    left_out = "no token touches their answer"

    def __init__(
        self, examples, tokenizer, settings, *, with_labels=False, references="all", layout=None, progress=None,
        with_words=False, question_limit=None, on_disk=False,
    ):
        self.layout = layout or pair_layout(tokenizer)
        settings.check(self.layout.specials)
        assert references in REFERENCES
        self.labelled_references = 0 if not with_labels else 1 if references == "first" else None  # None: no limit
        self.examples, self.settings = examples, settings
        self.question_limit = question_limit or settings.longest_question(self.layout.specials)
        self.texts = QuestionTexts(
            examples, tokenizer, self.question_limit, progress, trim=True, with_words=with_words,
            on_disk=on_disk,
        )
        self.cut_questions = self.texts.cut_questions
        self.unlabelled = []  # examples whose answer no token touches: nothing to learn from
        rows, labels, counts = array("i"), array("i"), array("i")  # of Python's own numbers each would be 28 bytes
        for number in range(len(examples)):
            for row, spans in self._example_rows(number):
                rows.extend(row)
                counts.append(len(spans))
                labels.extend(place for span in spans for place in span)
        self.example, self.start, self.stop = np.array(rows, np.int32).reshape(-1, 3).T
        counts = np.array(counts, np.int32)
        self.label = np.full((len(counts), max(counts, default=1), 2), NO_LABEL, np.int32)
        self.label[np.arange(self.label.shape[1]) < counts[:, None]] = np.array(labels, np.int32).reshape(-1, 2)
        self.length = self.stop - self.start + self.texts.question_lengths[self.example].astype(np.int32)
        self.length += self.layout.specials

    def __len__(self):
        return len(self.example)

    def units(self, windows):
        """What the loss of some windows is divided by: their number."""
        return len(windows)

    def offsets(self, window):
        """Offsets (n, 2) into the original context of the tokens of one window's slice."""
        return self.texts.offsets(self.example[window], self.start[window], self.stop[window])

    def words(self, window):
        """Numbers (n,) of the words that the tokens of one window's slice belong to."""
        return self.texts.words(self.example[window], self.start[window], self.stop[window])

    def prefix(self, window):
        """Tokens before the slice: [CLS] question [SEP]."""
        return int(self.texts.question_lengths[self.example[window]]) + self.layout.before

    def _example_rows(self, number):
        """((example, start, stop), list of labels) of each window of one example; one label at least."""
        question_tokens = int(self.texts.question_lengths[number])
        answers = (self.examples[number].answers or ())[: self.labelled_references]
        offsets = self.texts.offsets(number)
        spans = [span for answer in answers if (span := label_tokens(offsets, answer.start, answer.end))]
        if answers and not spans:
            self.unlabelled.append(number)
            return
        prefix = question_tokens + self.layout.before
        for begin, end in self.settings.slices(question_tokens, len(offsets), self.layout.specials):
            shift = prefix - begin
            null = prefix + end - begin + len(self.layout.last) - 1 if self.layout.null_last else 0
            labels = [(a + shift, b + shift) if begin <= a and b < end else (null, null) for a, b in spans]
            yield (number, begin, end), labels or [(null, null)]

    def fill(self, windows):
        """Arrays of a batch, padded to its longest window.

        windows: indices. Returns a dict of input_ids and token_type_ids (B, T) int64, attention_mask
        (B, T) bool (False on padding), answer_mask (B, T) bool (True where an answer may lie: the slice),
        label (B, R, 2) int64, null (B,) int64: the place of "no answer here". Token types are 0 on [CLS] question [SEP]
        and on padding, 1 on the rest.
        """
        B, T = len(windows), int(self.length[windows].max())
        opening, middle, last = self.layout.opening, self.layout.middle, self.layout.last
        batch = {
            "input_ids": np.full((B, T), self.layout.pad, np.int64),
            "token_type_ids": np.zeros((B, T), np.int64),
            "attention_mask": np.zeros((B, T), bool),
            "answer_mask": np.zeros((B, T), bool),
            "label": self.label[windows].astype(np.int64),
            "null": self.length[windows].astype(np.int64) - 1 if self.layout.null_last else np.zeros(B, np.int64),
        }
        for row, window in enumerate(windows):
            example = self.example[window]
            prefix, length = self.prefix(window), int(self.length[window])
            context = self.texts.context_ids(example, self.start[window], self.stop[window])
            parts = opening, self.texts.question_ids(example), middle, context, last
            batch["input_ids"][row, :length] = np.concatenate(parts)
            batch["token_type_ids"][row, prefix:length] = 1
            batch["attention_mask"][row, :length] = True
            batch["answer_mask"][row, prefix : length - len(last)] = True
        return batch
