"""A data set file as one tree, whatever its format: articles, paragraphs, questions, references.

The types are as declared here (data/formats.py has checked them); what the strings and offsets
say is left exactly as the file has it, for the reader, the linter and the repair to judge.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError

KINDS = {str: "text", int: "a whole number", list: "a list", dict: "an object", bool: "true or false"}
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class Reference:
    """An answer as the file has it: `text` is said to stand at code point `start`."""

    where: str
    text: str
    start: int
    extra: dict = field(default_factory=dict)

    def fault(self, context):
        """Say why this is not an answer cut from `context`, or return None when it is."""
        if not self.text.strip():
            return "the answer text is empty"
        said = f"the answer {shown(self.text)} does not stand at {self.start}"
        if self.start < 0:
            return f"{said}, which is before the context"
        if context.startswith(self.text, self.start):
            return None
        there = context[self.start:self.start + len(self.text)]
        if not there:
            return f"{said}, which is beyond the context's {counted(len(context), 'character')}"
        return f"{said}, where the context has {shown(there)}"


@dataclass(slots=True)
class Question:
    """`references` is None when the file gives none; `file_id` is its own id (int, str or None)."""

    where: str
    id: str
    file_id: object
    text: str
    references: list[Reference] | None
    is_impossible: bool | None
    extra: dict

    @property
    def denies_answers(self):
        """is_impossible is true and the only answers are empty texts: some files mark no-answer so."""
        texts = [reference.text.strip() for reference in self.references or ()]
        return bool(self.is_impossible and texts and not any(texts))


@dataclass(slots=True)
class Paragraph:
    where: str
    context: str
    questions: list[Question] = field(default_factory=list)
    extra: dict = field(default_factory=dict)


@dataclass(slots=True)
class Article:
    title: str
    paragraphs: list[Paragraph] = field(default_factory=list)
    extra: dict = field(default_factory=dict)


@dataclass(slots=True)
class Document:
    """One file; `notices` has a sentence for each kind of oddity that was tolerated."""

    path: Path
    articles: list[Article]
    notices: list[str]
    extra: dict

    def paragraphs(self):
        return (paragraph for article in self.articles for paragraph in article.paragraphs)

    def questions(self):
        """Yield (article, paragraph, question) in file order."""
        for article in self.articles:
            for paragraph in article.paragraphs:
                for question in paragraph.questions:
                    yield article, paragraph, question


def shown(value, limit=40):
    """A value as it looks in JSON, cut to `limit` characters, for messages."""
    if isinstance(value, (list, dict)):
        return KINDS[type(value)]
    text = json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= limit else f"{text[:limit - 1]}…"
    return SURROGATE.sub("\ufffd", text)


def counted(number, noun):
    """`counted(1, "question")` is "1 question", `counted(2000, "question")` is "2,000 questions"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def unique_id(wanted, taken):
    """Return `wanted`, or `wanted#2`, `wanted#3`, … when it is in the set `taken`; adds it there."""
    new, number = wanted, 2
    while new in taken:
        new, number = f"{wanted}#{number}", number + 1
    taken.add(new)
    return new


def at(where, key):
    """The place of `key` inside `where`: `data[3].context`, but `line 7: context`."""
    if not where:
        return key
    return f"{where}: {key}" if where[-1].isdigit() else f"{where}.{key}"


class Source:
    """One file being read: refuses with its name and the place, counts what is odd."""

    def __init__(self, path):
        self.path = Path(path)
        self.odd = Counter()
        self.unread = Counter()
        self.questions = 0

    def refuse(self, where, message):
        raise InputError(f"{self.path}: {where}: {message}" if where else f"{self.path}: {message}")

    def check(self, value, kind, where):
        """Return `value` if its type is exactly `kind` (so true is no whole number); else refuse."""
        if type(value) is not kind:
            self.refuse(where, f"expected {KINDS[kind]}, found {shown(value)}")
        if kind is str and not value.isascii() and SURROGATE.search(value):
            self.refuse(where, "holds half of a surrogate pair (\\ud800 to \\udfff), not a character")
        return value

    def field(self, row, key, kind, where):
        if key not in row:
            self.refuse(where, f'"{key}" is missing')
        return self.check(row[key], kind, at(where, key))

    def optional(self, row, key, kind, where):
        return None if row.get(key) is None else self.check(row[key], kind, at(where, key))

    def objects(self, row, key, where):
        """The (place, object) pairs of a list of objects."""
        items = self.field(row, key, list, where)
        places = (f"{at(where, key)}[{number}]" for number in range(len(items)))
        return [(place, self.check(item, dict, place)) for place, item in zip(places, items)]

    def extra(self, row, known):
        rest = {key: value for key, value in row.items() if key not in known}
        # plausible_answers is part of the official v2.0 format, and nothing to wonder at.
        self.unread.update(key for key in rest if key != "plausible_answers")
        return rest
