"""A folder of text, Markdown and HTML files as texts whose every character knows its place in its file."""

import bisect
import html
import os
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from common.errors import InputError
from common.files import read_text

TEXT_ENDINGS, HTML_ENDINGS = (".txt", ".md", ".markdown"), (".html", ".htm")
HIDDEN = {"script", "style", "noscript", "template", "svg", "math"}  # elements whose content nobody reads
INLINE = {
    "a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd", "label", "mark",
    "q", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr",
}


@dataclass(frozen=True, slots=True)
class Document:
    """One file. name: its path below the folder, with slashes. text: what is read of it.

    starts, sources, lengths: piece k of the text begins at starts[k] and is lengths[k] characters of the file, from
    sources[k]; a piece is the same text there, or one character that the file writes as an entity. newlines: where
    the file has line ends.
    """

    name: str
    text: str
    starts: list[int]
    sources: list[int]
    lengths: list[int]
    newlines: list[int]

    def place(self, start, end):
        """(line, start, end) in the file of text[start:end]; lines count from 1, offsets are code points from 0."""
        first, stop = self._source(start)[0], self._source(end - 1)[1]
        return bisect.bisect_left(self.newlines, first) + 1, first, stop

    def _source(self, index):
        """(start, end) in the file of one character of the text."""
        piece = bisect.bisect_right(self.starts, index) - 1
        following = self.starts[piece + 1] if piece + 1 < len(self.starts) else len(self.text)
        source, length = self.sources[piece], self.lengths[piece]
        if following - self.starts[piece] == length:
            source, length = source + index - self.starts[piece], 1
        return source, source + length


def plain_document(name, text):
    """A file that is read as it stands."""
    return Document(name, text, [0], [0], [len(text)], newlines(text))


def newlines(text):
    return [match.start() for match in re.finditer("\n", text)]


def html_document(name, source):
    """What a reader of an HTML file would read: no tags, no scripts, blocks parted by empty lines."""
    parser = _Reader(source)
    closed = source.rfind(">") + 1
    # behind the last > no tag ends, and the parser would look for that end from each tag that begins there
    begun = re.compile(r"<[a-zA-Z/!?]").search(source, closed)
    parser.feed(source[: begun.start()] if begun else source)
    if not parser.rawdata.startswith("<!--"):  # a comment that is never closed goes to the end, as in a browser
        parser.close()
    starts, sources, lengths, length = [], [], [], 0
    for piece, place, of_source in parser.pieces:
        starts.append(length)
        sources.append(place)
        lengths.append(of_source)
        length += len(piece)
    text = "".join(piece for piece, _, _ in parser.pieces)
    return Document(name, text, starts or [0], sources or [0], lengths or [0], newlines(source))


class _Reader(HTMLParser):
    """Collects (text, its place in the source, how long it is there)."""

    def __init__(self, source):
        super().__init__(convert_charrefs=False)  # an entity is longer in the file than what it stands for
        self.source, self.pieces, self.hidden = source, [], []
        self.line_starts = [0, *(place + 1 for place in newlines(source))]

    def here(self):
        line, column = self.getpos()
        return self.line_starts[line - 1] + column

    def parse_marked_section(self, i, report=1):
        """`<![…>` is a comment to a browser, and to the method that this one replaces often a reason to give up."""
        return self.parse_bogus_comment(i, report)

    def handle_starttag(self, tag, attributes):
        if tag in HIDDEN:
            self.hidden.append(tag)
        self.part(tag)

    def handle_startendtag(self, tag, attributes):
        self.part(tag)

    def handle_endtag(self, tag):
        if tag in self.hidden:
            del self.hidden[self.hidden.index(tag) :]
        self.part(tag)

    def part(self, tag):
        """Blocks are paragraphs of their own."""
        if tag not in INLINE and not self.hidden:
            self.pieces.append(("\n" if tag in ("br", "td", "th") else "\n\n", self.here(), 0))

    def handle_data(self, data):
        if not self.hidden:
            self.pieces.append((data, self.here(), len(data)))

    def handle_entityref(self, name):
        self.reference(f"&{name}")

    def handle_charref(self, name):
        self.reference(f"&#{name}")

    def reference(self, written):
        if self.source.startswith(written + ";", self.here()):
            written += ";"
        if not self.hidden:
            self.pieces.append((html.unescape(written), self.here(), len(written)))


def check_folder(folder):
    """It as a Path; InputError when there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: --docs wants a folder of text, Markdown and HTML files, and there is none")
    return folder


def read_folder(folder):
    """([Document], notices) of the files below a folder, in the order of their names; links are not followed.

    A file that is not UTF-8, or cannot be read, is left out with a notice. InputError when there is none to read.
    """
    folder = check_folder(folder)
    documents, notices = [], []
    for path in sorted(files_below(folder)):
        try:
            text = read_text(path)
        except InputError as error:
            notices.append(f"left out: {error}")
            continue
        name = path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()  # names are any bytes
        make = html_document if path.suffix.lower() in HTML_ENDINGS else plain_document
        documents.append(make(name, text))
    if not any(re.search(r"\w", document.text) for document in documents):
        endings = ", ".join((*TEXT_ENDINGS, *HTML_ENDINGS))
        raise InputError(f"{folder}: holds no text to read in files of these kinds: {endings}")
    return documents, notices


def files_below(folder):
    """Paths of the files with a known ending; hidden ones and folders, links and what is no file (pipes) left out."""
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root) / name
            known = path.suffix.lower() in (*TEXT_ENDINGS, *HTML_ENDINGS) and name[0] != "."
            if known and path.is_file() and not path.is_symlink():
                yield path
