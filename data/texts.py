"""Texts to tokens, end to end in flat arrays: contexts once however many questions ask about them.

For training the arrays stand in a temporary file, so that memory does not grow with the texts.
"""

import re
from array import array

import numpy as np

from common.spill import ArrayFile
from data.tokenizer import is_word_piece, specials_among_pieces

TOKENIZER_BATCH = 512  # texts handed to the tokenizer at once: enough to use every core
LONGEST_STRETCH = 50_000  # without white space: what is longer is Chinese or no language
PIECE_CHARACTERS = 200_000  # a book is tokenised in pieces of about this size, so that memory stays bounded
# What BERT's tokenizer takes for white space. Python's \s has seven more (\v, \f, U+001C to U+001F, U+0085),
# which the tokenizer deletes: "play\x1cing" is one word to it, so no text may be cut there.
GAP = re.compile("[ \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
SINGLE_SPACE = re.compile(r"(?<=\S) (?=\S)")  # what tokenizers that keep white space never join to the word before
METASPACE = "\u2581"  # how unigram tokenizers write a space
SURROGATE = re.compile("[\ud800-\udfff]")  # halves of pairs, which a Python string may hold and UTF-8 may not


class TextPool:
    """Tokenised texts, end to end in two arrays: ids (N,) and offsets (N, 2), int32.

    Text i has tokens bounds[i] to bounds[i + 1]; offsets are code points of that text. trim: leave white space out
    of the offsets (see `trim_offsets`). with_words: also `words` (N,), the number of each token's word in its text.
    on_disk: ids and offsets are ArrayFiles, of which slices can be read.
    """

    def __init__(self, tokenizer, texts, progress=None, *, trim=False, with_words=False, on_disk=False):
        ids, offsets = (ArrayFile(np.int32), ArrayFile(np.int32, (2,))) if on_disk else ([], [])
        words, lengths = [], array("q")
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
        if not on_disk:
            ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)
            offsets = np.concatenate(offsets) if offsets else np.zeros((0, 2), np.int32)
        self.ids, self.offsets = ids, offsets
        self.words = np.concatenate(words) if words else None
        self.bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


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


class QuestionTexts:
    """The tokens of a list of examples: each distinct context once, and each question, cut to `max_question`.

    question_lengths: (examples,) after cutting. cut_questions: how many were too long. trim, with_words (of the
    contexts), on_disk: as for TextPool.
    """

    def __init__(
        self, examples, tokenizer, max_question, progress=None, *, trim=False, with_words=False, on_disk=False
    ):
        contexts = list(dict.fromkeys(example.context for example in examples))
        numbers = {context: number for number, context in enumerate(contexts)}
        self.context_number = np.array([numbers[example.context] for example in examples], np.int32)
        self.contexts = TextPool(tokenizer, contexts, progress, trim=trim, with_words=with_words, on_disk=on_disk)
        questions = [example.question for example in examples]
        self.questions = TextPool(tokenizer, questions, progress, on_disk=on_disk)
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
