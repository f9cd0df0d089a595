"""Text to windows: `[CLS] question [SEP] slice [SEP]`, each short enough for the model.

A context longer than a window is cut into overlapping slices. With the defaults (384 tokens, overlap 128)
and a question of 14 tokens a slice holds 384 - 14 - 3 = 367, and a new one starts every 367 - 128 = 239
tokens: a context of 1,000 tokens makes slices 0-367, 239-606, 478-845, 717-1000.

Everything is kept in flat numpy arrays, contexts once however many questions ask about them, and a batch of tensors is
cut from them when it is needed. For training the tokens stand in a temporary file: what is left in memory is some 40
bytes a window, however long the texts are.
"""

import re
from array import array
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from common.spill import ArrayFile

TOKENIZER_BATCH = 512  # texts handed to the tokenizer at once: enough to use every core
PIECE_CHARACTERS = 200_000  # a book is tokenised in pieces of about this size, so that memory stays bounded
# What BERT's tokenizer takes for white space. Python's \s has seven more (\v, \f, U+001C to U+001F, U+0085),
# which the tokenizer deletes: "play\x1cing" is one word to it, so no text may be cut there.
GAP = re.compile("[ \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
REFERENCES = ("all", "first")
NO_LABEL = -1
SURROGATE = re.compile("[\ud800-\udfff]")  # halves of pairs, which a Python string may hold and UTF-8 may not


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

    def check(self):
        """Raise InputError for a combination that cannot cover a text; returns self."""
        if (self.overlap is None) == (self.step is None):
            raise InputError("give either an overlap or a step of windows, not both")
        for name in ("length", "overlap", "step", "max_question"):
            value = getattr(self, name)
            least = 0 if name == "overlap" else 1
            if value is not None and (type(value) is not int or value < least):
                raise InputError(f"window {name} must be a whole number of at least {least}, not {value!r}")
        if self.question_limit < 1:
            used = f"an overlap of {self.overlap}" if self.step is None else f"a step of {self.step}"
            raise InputError(
                f"windows of {self.length} tokens with {used} leave no room for a question and a slice: "
                f"choose a longer window or a smaller {'overlap' if self.step is None else 'step'}"
            )
        return self

    @property
    def question_limit(self):
        """Longest question that leaves each slice its overlap and at least one new token (or its step)."""
        if self.step is not None:
            return min(self.max_question, self.length - 3 - self.step)
        return min(self.max_question, (self.length - 3 - self.overlap) // 2)

    def slices(self, question_tokens, context_tokens):
        """Yield (start, stop) of each slice of a context, in tokens; nothing for an empty context."""
        capacity = self.length - question_tokens - 3
        step = self.step if self.step is not None else capacity - self.overlap
        assert 0 < step <= capacity
        for start in range(0, context_tokens, step):
            stop = min(start + capacity, context_tokens)
            yield start, stop
            if stop == context_tokens:
                break


class TextPool:
    """Tokenised texts, end to end in two arrays: ids (N,) and offsets (N, 2), int32.

    Text i has tokens bounds[i] to bounds[i + 1]; offsets are code points of that text. on_disk: the arrays are
    ArrayFiles, of which slices can be read.
    """

    def __init__(self, tokenizer, texts, progress=None, on_disk=False):
        ids, offsets = (ArrayFile(np.int32), ArrayFile(np.int32, (2,))) if on_disk else ([], [])
        lengths = array("q")
        for first in range(0, len(texts), TOKENIZER_BATCH):
            batch = texts[first : first + TOKENIZER_BATCH]
            for text_ids, text_offsets in encode(tokenizer, batch):
                ids.append(text_ids)
                offsets.append(text_offsets)
                lengths.append(len(text_ids))
            if progress is not None:
                progress.update(len(batch))
        if not on_disk:
            ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)
            offsets = np.concatenate(offsets) if offsets else np.zeros((0, 2), np.int32)
        self.ids, self.offsets = ids, offsets
        self.bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def split_long(text):
    """Cut a text before white space into pieces of about PIECE_CHARACTERS; yields (offset, piece).

    BERT's tokenizer splits at white space first, so the pieces give the tokens of the whole.
    """
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        gap = GAP.search(text, start + PIECE_CHARACTERS)
        if gap is None:
            break
        yield start, text[start : gap.start()]
        start = gap.start()
    yield start, text[start:]


def encode(tokenizer, texts):
    """Yield (ids int32 (n,), offsets int32 (n, 2)) of each text, without special tokens.

    Half a surrogate pair, which undecodable bytes of a command line become, goes to the tokenizer as U+FFFD:
    one character for one, so offsets stay.
    """
    texts = [SURROGATE.sub("\ufffd", text) for text in texts]
    pieces = [(number, start, piece) for number, text in enumerate(texts) for start, piece in split_long(text)]
    ids, offsets = [[] for _ in texts], [[] for _ in texts]
    # a long text goes piece by piece: the tokenizer's own records are ten times the size of the arrays
    group = 1 if len(pieces) > len(texts) else len(pieces)
    for first in range(0, len(pieces), max(group, 1)):
        chunk = pieces[first : first + group]
        encodings = tokenizer.encode_batch([piece for _, _, piece in chunk], add_special_tokens=False)
        for (number, start, _), encoding in zip(chunk, encodings, strict=True):
            ids[number].append(np.array(encoding.ids, np.int32))
            offsets[number].append(np.array(encoding.offsets, np.int32).reshape(-1, 2) + start)
    for number in range(len(texts)):
        yield np.concatenate(ids[number]), np.concatenate(offsets[number])


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

    references: label "all", or only the "first", which is all that the reference implementations look at. on_disk: keep
    tokens in a temporary file; `examples` may then be emptied.
    """

    def __init__(
        self, examples, tokenizer, settings, *, with_labels=False, references="all", progress=None, on_disk=False
    ):
        settings.check()
        assert references in REFERENCES
        self.labelled_references = 0 if not with_labels else 1 if references == "first" else None  # None: no limit
        self.examples, self.settings = examples, settings
        self.cls_id, self.sep_id, self.pad_id = map(tokenizer.token_to_id, ("[CLS]", "[SEP]", "[PAD]"))
        contexts = list(dict.fromkeys(example.context for example in examples))
        numbers = {context: number for number, context in enumerate(contexts)}
        self.context_number = np.array([numbers[example.context] for example in examples], np.int32)
        self.contexts = TextPool(tokenizer, contexts, progress, on_disk)
        self.questions = TextPool(tokenizer, [example.question for example in examples], progress, on_disk)
        limit = settings.question_limit
        self.question_lengths = np.minimum(np.diff(self.questions.bounds), limit)
        self.cut_questions = int((np.diff(self.questions.bounds) > limit).sum())
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
        self.length = self.stop - self.start + self.question_lengths[self.example].astype(np.int32) + 3

    def __len__(self):
        return len(self.example)

    def units(self, windows):
        """What the loss of some windows is divided by: their number."""
        return len(windows)

    def offsets(self, window):
        """Offsets (n, 2) into the original context of the tokens of one window's slice."""
        first = self.contexts.bounds[self.context_number[self.example[window]]]
        return self.contexts.offsets[first + self.start[window] : first + self.stop[window]]

    def prefix(self, window):
        """Tokens before the slice: [CLS] question [SEP]."""
        return int(self.question_lengths[self.example[window]]) + 2

    def _example_rows(self, number):
        """((example, start, stop), list of labels) of each window of one example; one label at least."""
        first, stop = self.contexts.bounds[self.context_number[number] :][:2]
        question_tokens = int(self.question_lengths[number])
        answers = (self.examples[number].answers or ())[: self.labelled_references]
        offsets = self.contexts.offsets[first:stop]
        spans = [span for answer in answers if (span := label_tokens(offsets, answer.start, answer.end))]
        if answers and not spans:
            self.unlabelled.append(number)
            return
        for begin, end in self.settings.slices(question_tokens, int(stop - first)):
            shift = question_tokens + 2 - begin
            labels = [(a + shift, b + shift) if begin <= a and b < end else (0, 0) for a, b in spans]
            yield (number, begin, end), labels or [(0, 0)]

    def fill(self, windows):
        """Arrays of a batch, padded to its longest window.

        windows: indices. Returns a dict of input_ids and token_type_ids (B, T) int64, attention_mask
        (B, T) bool (False on padding), answer_mask (B, T) bool (True where an answer may lie: the slice),
        label (B, R, 2) int64. Token types are 0 on [CLS] question [SEP] and on padding, 1 on the rest.
        """
        B, T = len(windows), int(self.length[windows].max())
        batch = {
            "input_ids": np.full((B, T), self.pad_id, np.int64),
            "token_type_ids": np.zeros((B, T), np.int64),
            "attention_mask": np.zeros((B, T), bool),
            "answer_mask": np.zeros((B, T), bool),
            "label": self.label[windows].astype(np.int64),
        }
        for row, window in enumerate(windows):
            example = self.example[window]
            prefix, length = self.prefix(window), int(self.length[window])
            first = self.contexts.bounds[self.context_number[example]]
            question = self.questions.bounds[example]
            ids = batch["input_ids"][row]
            ids[0] = self.cls_id
            ids[1 : prefix - 1] = self.questions.ids[question : question + prefix - 2]
            ids[prefix - 1] = self.sep_id
            ids[prefix : length - 1] = self.contexts.ids[first + self.start[window] : first + self.stop[window]]
            ids[length - 1] = self.sep_id
            batch["token_type_ids"][row, prefix:length] = 1
            batch["attention_mask"][row, :length] = True
            batch["answer_mask"][row, prefix : length - 1] = True
        return batch
