"""Mends a data set file: offsets, outer whitespace, ids, is_impossible; writes nested SQuAD JSON."""

import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError
from common.files import check_target, write_atomic
from data.documents import unique_id
from data.formats import read_document
from data.talks import is_talk

CHANGES = {
    "context stripped": "contexts freed of outer whitespace, their offsets moved along",
    "question stripped": "questions freed of outer whitespace",
    "answer stripped": "answers freed of outer whitespace, their offsets moved along",
    "offset moved": "offsets moved to the nearest place where the answer stands",
    "text replaced": "answers that differed in whitespace or case, replaced by the context's own characters",
    "denial emptied": "unanswerable questions freed of an empty answer",
    "impossible set": "is_impossible made to agree with the answers",
    "id changed": "ids made unique with a suffix such as #2",
    "id made": "ids given where there was none",
    "empty reference": "answers dropped for having no text",
    "lost reference": "answers dropped for not being in the context",
    "empty context": "questions dropped for having an empty context",
    "lost question": "questions dropped for having lost all their answers",
}


@dataclass(slots=True)
class Account:
    """What a repair changed: how many of each kind of `CHANGES`, and the places of dropped questions."""

    changes: Counter = field(default_factory=Counter)
    dropped: list[str] = field(default_factory=list)

    def lines(self):
        return [f"{text}: {self.changes[kind]:,}" for kind, text in CHANGES.items() if self.changes[kind]]


def locate(context, text, offset):
    """Find where `text` (without outer whitespace) stands in `context`, nearest to `offset`.

    Returns (start, end), or None. Exact occurrences come first; where there is none, occurrences
    that differ only in case or in the kind and amount of whitespace between words. Of two equally
    near the earlier is taken.

    >>> locate("a cat, a cat", "cat", 5)
    (2, 5)
    """
    if not text.strip():
        return None
    offset = min(max(offset, 0), len(context))
    exact = [
        context.rfind(text, 0, offset + len(text)),  # the last one that starts at offset or before
        context.find(text, offset),
    ]
    starts = [start for start in exact if start >= 0]
    if starts:
        start = min(starts, key=lambda start: abs(start - offset))
        return start, start + len(text)
    words = r"\s+".join(re.escape(word) for word in text.split())
    # The look-ahead lets occurrences overlap: "a a" stands twice in "A A A".
    spans = [match.span(1) for match in re.finditer(f"(?=({words}))", context, re.IGNORECASE)]
    return min(spans, key=lambda span: abs(span[0] - offset), default=None)


def repair(document):
    """Mend a Document in place and return the Account.

    Nothing is invented: a reference that cannot be found is dropped, and a question that loses
    all its references is dropped too, never turned into an unanswerable one.
    """
    account, taken = Account(), set()
    for article in document.articles:
        for paragraph in article.paragraphs:
            mend_context(paragraph, account)
            for question in paragraph.questions:  # those to be dropped too: the reader names them as well
                mend_id(question, taken, account)
            paragraph.questions = [
                question for question in paragraph.questions if mend_question(question, paragraph, account)
            ]
        article.paragraphs = [paragraph for paragraph in article.paragraphs if paragraph.context]
    return account


def mend_context(paragraph, account):
    context = paragraph.context
    if context == context.strip():
        return
    account.changes["context stripped"] += 1
    lead = len(context) - len(context.lstrip())
    for question in paragraph.questions:
        for reference in question.references or ():
            # Below 0 for an answer that begins with whitespace cut off here, until that is stripped too.
            change(reference, reference.start - lead, reference.text)
        move_plausible(question.extra.get("plausible_answers"), lead)
    paragraph.context = context.strip()


def move_plausible(answers, lead):
    """The official v2.0 file's plausible_answers have offsets into the same context."""
    for answer in answers if isinstance(answers, list) else ():
        if isinstance(answer, dict) and type(answer.get("answer_start")) is int:
            answer["answer_start"] -= lead


def mend_question(question, paragraph, account):
    """Mend a question; False when it has to be dropped."""
    if not paragraph.context:
        return drop(question, "empty context", account)
    if question.text != question.text.strip():
        account.changes["question stripped"] += 1
        question.text = question.text.strip()
    if question.denies_answers:
        account.changes["denial emptied"] += 1
        question.references = []
    if question.references:
        context, references = paragraph.context, question.references
        question.references = [each for each in references if mend_reference(each, context, account)]
        if not question.references:
            return drop(question, "lost question", account)
    if contradictory(question):
        account.changes["impossible set"] += 1
        question.is_impossible = not question.references
    return True


def contradictory(question):
    """Whether is_impossible says the opposite of the references."""
    if question.is_impossible is None or question.references is None:
        return False
    return question.is_impossible == bool(question.references)


def drop(question, kind, account):
    account.changes[kind] += 1
    account.dropped.append(question.where)
    return False


def mend_reference(reference, context, account):
    """Mend a reference; False when its text cannot be found."""
    text = reference.text.strip()
    if not text:
        account.changes["empty reference"] += 1
        return False
    if text != reference.text:
        account.changes["answer stripped"] += 1
        # " cat" at 2 becomes "cat" at 3: whoever strips without moving makes the offset wrong.
        before = len(reference.text) - len(reference.text.lstrip())
        change(reference, reference.start + before, text)
    if not reference.fault(context):
        return True
    span = locate(context, text, reference.start)
    if span is None:
        account.changes["lost reference"] += 1
        return False
    found = context[slice(*span)]
    account.changes["offset moved" if found == text else "text replaced"] += 1
    change(reference, span[0], found)
    return True


def change(reference, start, text):
    """Set start and text; a stated answer_end follows, exclusive or inclusive as it was."""
    end = reference.extra.get("answer_end")
    if type(end) is int:
        inclusive = end == reference.start + len(reference.text) - 1
        reference.extra["answer_end"] = start + len(text) - inclusive
    reference.start, reference.text = start, text


def mend_id(question, taken, account):
    name = unique_id(question.id, taken)
    if question.file_id is None:
        account.changes["id made"] += 1
        question.file_id = name
    elif name != question.id:
        account.changes["id changed"] += 1
        question.file_id = name
    question.id = name


def to_squad(document):
    """Return a Document as nested SQuAD JSON: v2.0 when any question is unanswerable, else v1.1."""
    unanswerable = any(question.references == [] for _, _, question in document.questions())
    articles = [
        {
            "title": article.title,
            "paragraphs": [
                {
                    "context": paragraph.context,
                    "qas": [question_to_squad(question, unanswerable) for question in paragraph.questions],
                    **paragraph.extra,
                }
                for paragraph in article.paragraphs
            ],
            **article.extra,
        }
        for article in document.articles
    ]
    return {"version": "v2.0" if unanswerable else "1.1", "data": articles, **document.extra}


def question_to_squad(question, unanswerable):
    record = {"id": question.id if question.file_id is None else question.file_id, "question": question.text}
    if question.references is not None:
        record["answers"] = [
            {"text": reference.text, "answer_start": reference.start, **reference.extra}
            for reference in question.references
        ]
        if unanswerable or question.is_impossible is not None:
            record["is_impossible"] = not question.references
    elif question.is_impossible is not None:
        record["is_impossible"] = question.is_impossible
    return {**record, **question.extra}


def repair_file(path, out, overwrite=False):
    """Mend the file `path` (any format) into the file `out`, whole or not at all.

    Returns the Account. InputError when `out` is `path` itself (under whatever name, through links
    too), is no regular file, or exists and `overwrite` is not set; when nothing would be left; or
    when `path` is no data set.
    """
    path, out = Path(path), Path(out)
    same = os.path.realpath(path) == os.path.realpath(out)
    exists = os.path.exists(out)
    if same or (exists and os.path.exists(path) and out.samefile(path)):
        raise InputError(f"{out}: --repair would write over its own input; name another file")
    check_target(out)
    if exists and not overwrite:
        raise InputError(f"{out}: this file exists; name another one, or add --overwrite to replace it")
    if is_talk(path):
        raise InputError(f"{path}: questions without texts hold no places that could be mended")
    document = read_document(path)
    account = repair(document)
    if next(document.questions(), None) is None:
        raise InputError(f"{path}: no question can be mended, so {out} was not written")
    text = json.dumps(to_squad(document), ensure_ascii=False, indent=1) + "\n"
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{path}: an extra key holds half of a surrogate pair, not a character") from None
    write_atomic(out, data)
    return account
