"""Text to windows: `[CLS] question [SEP] slice [SEP]`, each short enough for the model.

RoBERTa's are `<s> question </s></s> slice </s>`: what stands around the two texts is the tokenizer's to say
(`data.tokenizer.pair_layout`), three or four tokens.

A context longer than a window is cut into overlapping slices. With the defaults (384 tokens, overlap 128)
and a question of 14 tokens a slice holds 384 - 14 - 3 = 367, and a new one starts every 367 - 128 = 239
tokens: a context of 1,000 tokens makes slices 0-367, 239-606, 478-845, 717-1000.

Everything is kept in flat numpy arrays, contexts once however many questions ask about them: 88,000
windows of SQuAD take some 60 MB, and a batch of tensors is cut from them when it is needed.
"""

import re
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from data.tokenizer import is_word_piece, pair_layout, specials_among_pieces

TOKENIZER_BATCH = 512  # texts handed to the tokenizer at once: enough to use every core
LONGEST_STRETCH = 50_000  # without white space: what is longer is Chinese or no language
PIECE_CHARACTERS = 200_000  # a book is tokenised in pieces of about this size, so that memory stays bounded
# What BERT's tokenizer takes for white space. Python's \s has seven more (\v, \f, U+001C to U+001F, U+0085),
# which the tokenizer deletes: "play\x1cing" is one word to it, so no text may be cut there.
GAP = re.compile("[ \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
SINGLE_SPACE = re.compile(r"(?<=\S) (?=\S)")  # what tokenizers that keep white space never join to the word before
METASPACE = "\u2581"  # how unigram tokenizers write a space
SPECIALS = 3  # tokens around question and slice, in BERT
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


class TextPool:
    """Tokenised texts, end to end in two arrays: ids (N,) and offsets (N, 2), int32.

    Text i has tokens bounds[i] to bounds[i + 1]; offsets are code points of that text. trim: leave white space out
    of the offsets (see `trim_offsets`). with_words: also `words` (N,), the number of each token's word in its text.
    """

    def __init__(self, tokenizer, texts, progress=None, *, trim=False, with_words=False):
        ids, offsets, words, lengths = [], [], [], []
        trim = trim and not is_word_piece(tokenizer)  # BERT's tokens hold no white space
        for first in range(0, len(texts), TOKENIZER_BATCH):
            batch = texts[first : first + TOKENIZER_BATCH]
            for text, (text_ids, text_offsets, *numbers) in zip(batch, encode(tokenizer, batch, with_words)):
                ids.append(text_ids)
                lone = text_ids == tokenizer.token_to_id(METASPACE) if trim else None
                offsets.append(trim_offsets(text, text_offsets, lone) if trim else text_offsets)
                words += numbers
                lengths.append(len(text_ids))
            if progress is not None:
                progress.update(len(batch))
        self.ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        self.offsets = np.concatenate(offsets) if offsets else np.zeros((0, 2), np.int32)
        self.words = np.concatenate(words) if words else None
        self.bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def split_long(text, gap=GAP):
    """Cut a text before white space into pieces of about PIECE_CHARACTERS; yields (offset, piece).

    BERT's tokenizer splits at white space first, so the pieces give the tokens of the whole; with SINGLE_SPACE as `gap`
    they do for tokenizers that put a space to the word behind it. A stretch of LONGEST_STRETCH without any is cut there:
    of Chinese that changes no token either, and of other letters only those of one endless word.
    """
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        last = start + PIECE_CHARACTERS + LONGEST_STRETCH
        found = gap.search(text, start + PIECE_CHARACTERS, last)
        if found is None and len(text) <= last:
            break
        stop = last if found is None else found.start()
        yield start, text[start:stop]
        start = stop
    yield start, text[start:]


def encode(tokenizer, texts, with_words=False):
    """Yield (ids int32 (n,), offsets int32 (n, 2)) of each text, without special tokens.

    with_words: and the numbers of the tokens' words, int32 (n,). Half a surrogate pair, which undecodable bytes of a
    command line become, goes to the tokenizer as U+FFFD: one character for one, so offsets stay.
    """
    texts = [SURROGATE.sub("\ufffd", text) for text in texts]
    specials, unknown = specials_among_pieces(tokenizer)
    gap = GAP if is_word_piece(tokenizer) else SINGLE_SPACE
    pieces = [(number, start, piece) for number, text in enumerate(texts) for start, piece in split_long(text, gap)]
    found = [([], [], []) for _ in texts]
    # a long text goes piece by piece: the tokenizer's own records are ten times the size of the arrays
    group = 1 if len(pieces) > len(texts) else len(pieces)
    for first in range(0, len(pieces), max(group, 1)):
        chunk = pieces[first : first + group]
        encodings = tokenizer.encode_batch([piece for _, _, piece in chunk], add_special_tokens=False)
        for (number, start, _), encoding in zip(chunk, encodings, strict=True):
            ids, offsets, words = found[number]
            ids.append(np.array(encoding.ids, np.int32))
            offsets.append(np.array(encoding.offsets, np.int32).reshape(-1, 2) + start)
            if with_words:
                before = words[-1][-1] + 1 if words and len(words[-1]) else 0
                words.append(np.array(encoding.word_ids, np.int32) + np.int32(before))
    for ids, offsets, words in found:
        ids = np.concatenate(ids)
        if specials:
            ids[np.isin(ids, specials)] = unknown
        rows = ids, np.concatenate(offsets)
        yield (*rows, np.concatenate(words)) if with_words else rows


def trim_offsets(text, offsets, lone):
    """Offsets (n, 2) without white space at their ends, so that a run of tokens is never a span that has any.

    lone: (n,) bool, tokens that are nothing but a space however wide their offsets are (a unigram tokenizer's, which
    gives the word's first letter to both). A token of white space alone begins where the next word does and ends where
    the last one did: as the first or last of a run it then adds nothing.

    Worked example: of "in  Paris" the tokens "in", " ", " Paris" have the offsets 0-2 2-3 3-9; trimmed 0-2 4-2 4-9.
    """
    space = np.array([character.isspace() for character in text] + [False])
    place = np.arange(len(text) + 1)
    # the next place that is no white space, and the end of the last such place before
    begins = np.minimum.accumulate(np.where(space, len(text), place)[::-1])[::-1]
    ends = np.concatenate([[0], np.maximum.accumulate(np.where(space[:-1], 0, place[1:]))])
    last = np.where(lone, offsets[:, 0], offsets[:, 1])
    return np.stack([begins[offsets[:, 0]], ends[last]], 1).astype(np.int32)


def label_tokens(offsets, start, end):
    """First and last token of an answer, the run of those that share a code point with it.

    offsets: (n, 2). start, end: code points of the answer. Returns (first, last), or None when no token
    touches the answer (it is all white space or characters the tokenizer drops).

    Worked example: "(1895-1943)" has tokens ( 1895 - 1943 ) with offsets 0-1 1-5 5-6 6-10 10-11; the
    answer "1895" is 1-5: the first token that ends after 1 is 1, the last that starts before 5 is 1.
    """
    touched = np.flatnonzero(np.minimum(offsets[:, 1], end) > np.maximum(offsets[:, 0], start))
    return (int(touched[0]), int(touched[-1])) if len(touched) else None


class QuestionTexts:
    """The tokens of a list of examples: each distinct context once, and each question, cut to `max_question`.

    question_lengths: (examples,) after cutting. cut_questions: how many were too long. trim, with_words: of the
    contexts, as for TextPool.
    """

    def __init__(self, examples, tokenizer, max_question, progress=None, *, trim=False, with_words=False):
        contexts = list(dict.fromkeys(example.context for example in examples))
        numbers = {context: number for number, context in enumerate(contexts)}
        self.context_number = np.array([numbers[example.context] for example in examples], np.int32)
        self.contexts = TextPool(tokenizer, contexts, progress, trim=trim, with_words=with_words)
        self.questions = TextPool(tokenizer, [example.question for example in examples], progress)
        whole = np.diff(self.questions.bounds)
        self.question_lengths = np.minimum(whole, max_question)
        self.cut_questions = int((whole > max_question).sum())

    def context_run(self, example, start=0, stop=None):
        """The slice of the pool that holds tokens start to stop (None: all) of an example's context."""
        first, end = self.contexts.bounds[self.context_number[example] :][:2]
        return slice(first + start, end if stop is None else first + stop)

    def context_ids(self, example, start=0, stop=None):
        """Ids (n,) of tokens start to stop of an example's context."""
        return self.contexts.ids[self.context_run(example, start, stop)]

    def offsets(self, example, start=0, stop=None):
        """Their offsets (n, 2) into the original context."""
        return self.contexts.offsets[self.context_run(example, start, stop)]

    def words(self, example, start=0, stop=None):
        """Numbers (n,) of the words that they belong to."""
        return self.contexts.words[self.context_run(example, start, stop)]

    def question_ids(self, example):
        """Ids of an example's question, cut."""
        first = self.questions.bounds[example]
        return self.questions.ids[first : first + self.question_lengths[example]]


class WindowSet:
    """All windows of a list of examples.

    Per window, arrays of length W: `example` (its index), `start` and `stop` (the slice, in tokens of the
    context), `length` (tokens with question and the three specials), `label` (W, R, 2): for each of up to R
    references the first and last token of the answer, counted within the window, or (0, 0), the [CLS], when
    the slice does not hold the whole answer or there is none (Devlin et al. 2018, section 4.3; also for
    SQuAD v1.1, as in both references); NO_LABEL where a question has fewer references.

    references: label "all", or only the "first", which is all that the reference implementations look at. layout: the
    special tokens, a PairLayout; unset: those of the tokenizer. with_words: let `words` tell which tokens are of one
    word. question_limit: tokens that longer questions are cut to; unset: by the settings' rule.
    """

    left_out = "no token touches their answer"

    def __init__(
        self, examples, tokenizer, settings, *, with_labels=False, references="all", layout=None, progress=None,
        with_words=False, question_limit=None,
    ):
        self.layout = layout or pair_layout(tokenizer)
        settings.check(self.layout.specials)
        assert references in REFERENCES
        self.labelled_references = 0 if not with_labels else 1 if references == "first" else None  # None: no limit
        self.examples, self.settings = examples, settings
        self.question_limit = question_limit or settings.longest_question(self.layout.specials)
        self.texts = QuestionTexts(
            examples, tokenizer, self.question_limit, progress, trim=True, with_words=with_words
        )
        self.cut_questions = self.texts.cut_questions
        self.unlabelled = []  # examples whose answer no token touches: nothing to learn from
        rows, labels = [], []
        for number in range(len(examples)):
            for row, spans in self._example_rows(number):
                rows.append(row)
                labels.append(spans)
        self.example, self.start, self.stop = np.array(rows, np.int32).reshape(-1, 3).T
        R = max(map(len, labels), default=1)
        self.label = np.full((len(rows), R, 2), NO_LABEL, np.int32)
        for window, spans in enumerate(labels):
            self.label[window, : len(spans)] = spans
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
