"""How text from anywhere is shown on a terminal: harmless, in reading order, an answer inside its sentence.

Three dangers are met here. A text may hold escape sequences, which a terminal would obey. Persian runs from
right to left, and beside Latin words and numbers a terminal mixes up the order of the parts unless each is
isolated (Unicode Standard Annex 9, section 2.4). A text without full stops would fill the screen.
"""

import re
import unicodedata
from dataclasses import dataclass

LRI, RLI, PDI = "\u2066", "\u2067", "\u2069"  # left-to-right isolate, right-to-left isolate, their end
SENTENCE_CHARACTERS = 300  # longer ones are cut around the answer
REACH = 1000  # characters looked through on each side for the ends of a sentence

LINE_BREAK = re.compile("[ \t]*[\t\n\v\f\r\x85\u2028\u2029]+[ \t]*")
# Controls, and the embeddings and isolates that would reorder what we print after them. The marks that
# Persian needs (ZWNJ, the left-to-right and right-to-left marks) are not among them.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# An end is not a full stop inside a number (3.14) or after a single letter (J. Smith, U.S.).
SENTENCE_END = re.compile(r"""(?:[!?؟۔。…]|(?<!\b[^\W\d_])\.)+["'»”’)\]]*(?=\s)|[\n\r\u2028\u2029]""")


@dataclass(frozen=True, slots=True)
class Style:
    """open, close: what stands around an answer in its sentence. isolates: whether directions are marked."""

    open: str = "**"
    close: str = "**"
    isolates: bool = False


def style_for(stream, environ):
    """Reverse video on a terminal unless NO_COLOR is set (https://no-color.org) or it is a dumb one."""
    if not stream.isatty():
        return Style()
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return Style(isolates=True)
    return Style("\x1b[1;7m", "\x1b[0m", isolates=True)


def one_line(text):
    """The text on one line, without a character that a terminal obeys: ESC becomes ␛, an override �."""
    return UNSAFE.sub(_picture, LINE_BREAK.sub(" ", text))


def _picture(match):
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"


def is_right_to_left(text):
    """Whether most of its letters are written from right to left.

    The first letter alone, which terminals go by, is wrong for a Persian sentence that begins with "BERT".
    """
    directions = [unicodedata.bidirectional(character) for character in text]
    return sum(d in ("R", "AL") for d in directions) > directions.count("L")


def isolated(text, style):
    """`text` with marks of its direction around it, where the style asks for them."""
    if not style.isolates:
        return text
    return f"{RLI if is_right_to_left(text) else LRI}{text}{PDI}"


def sentence_around(context, start, end):
    """The sentence that holds context[start:end], cut when it is long: (first, stop, cut before, cut after).

    first and stop are code points of the context, with first <= start and end <= stop.
    """
    first = left = max(0, start - REACH)
    for match in SENTENCE_END.finditer(context, left, start):
        first = match.end()
    stop = right = min(len(context), end + REACH)
    if match := SENTENCE_END.search(context, end, right):
        stop = match.end()
    first += len(context[first:start]) - len(context[first:start].lstrip())
    stop -= len(context[end:stop]) - len(context[end:stop].rstrip())
    cut_before, cut_after = first == left > 0, stop == right < len(context)
    if stop - first <= SENTENCE_CHARACTERS:
        return first, stop, cut_before, cut_after
    room = max(0, SENTENCE_CHARACTERS - (end - start))
    after = min(stop - end, max(room // 2, room - (start - first)))
    before = min(start - first, room - after)
    if before < start - first:
        first, cut_before = _word_start(context, start - before, start), True
    if after < stop - end:
        stop, cut_after = _word_stop(context, end, end + after), True
    return first, stop, cut_before, cut_after


def _word_start(context, first, start):
    gap = re.compile(r"\s+").search(context, first, start)
    return gap.end() if gap else first


def _word_stop(context, end, stop):
    while stop > end and not context[stop - 1].isspace():
        stop -= 1
    return end + len(context[end:stop].rstrip())


def show_span(context, span, style):
    """One line: the sentence of a span with the span marked, "…" where it is cut."""
    first, stop, cut_before, cut_after = sentence_around(context, span.start, span.end)
    inside = one_line(context[span.start : span.end])
    if len(inside) > SENTENCE_CHARACTERS:
        half = SENTENCE_CHARACTERS // 2
        inside = f"{inside[:half]}…{inside[-half:]}"
    before = "…" * cut_before + one_line(context[first : span.start])
    after = one_line(context[span.end : stop]) + "…" * cut_after
    return isolated(f"{before}{style.open}{inside}{style.close}{after}", style)
