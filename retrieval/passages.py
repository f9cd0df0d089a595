"""Texts to passages: whole paragraphs, short ones together, long ones in parts."""

import re
from dataclasses import dataclass

PASSAGE_CHARACTERS = 1_000  # about 230 tokens of English: a window of the reader, and what the vectors look at
GAP = re.compile(r"\r?\n[ \t]*\r?\n\s*")
SENTENCE_END = re.compile(r"[.!?\u061f\u06d4\u3002\u2026][\"'\u00bb\u201d)\]]*\s+")


@dataclass(frozen=True, slots=True)
class Passage:
    """documents[document].text[start:end]."""

    document: int
    start: int
    end: int


def passages_of(document, text):
    """The passages of one text, in order; none is longer than PASSAGE_CHARACTERS or without a letter or digit.

    Paragraphs that follow one another are put together while they fit, so a heading stays with what it heads.
    """
    found = None  # (start, end) of the passage that still may grow
    for start, end in paragraphs(text):
        if found and end - found[0] <= PASSAGE_CHARACTERS:
            found = found[0], end
            continue
        if found:
            yield Passage(document, *found)
        *whole, found = parts(text, start, end)
        for piece in whole:
            yield Passage(document, *piece)
    if found:
        yield Passage(document, *found)


def paragraphs(text):
    """(start, end) of each paragraph with a letter or digit, without the white space around it."""
    start = 0
    for gap in (*GAP.finditer(text), None):
        end = gap.start() if gap else len(text)
        words = text[start:end]
        if re.search(r"\w", words):
            yield start + len(words) - len(words.lstrip()), start + len(words.rstrip())
        start = gap.end() if gap else end


def parts(text, start, end):
    """Cut a paragraph that is too long: after a sentence, else at white space, else anywhere."""
    while end - start > PASSAGE_CHARACTERS:
        limit = start + PASSAGE_CHARACTERS
        ends = [match.end() for match in SENTENCE_END.finditer(text, start, limit)]
        cut = ends[-1] if ends and ends[-1] > start + PASSAGE_CHARACTERS // 2 else None
        if cut is None:
            gap = max(text.rfind(" ", start, limit), text.rfind("\n", start, limit))
            cut = gap + 1 if gap > start else limit
        yield start, start + len(text[start:cut].rstrip())
        start = cut + len(text[cut:end]) - len(text[cut:end].lstrip())
    yield start, end
