"""Questions without a text: a JSON list of questions and answers to be learned by heart, with the turns before.

    [{"question": "Where is it?", "answer": "In Riga.", "history": [["Who built it?", "Ada did."]]},
     {"question": "Name its colours.", "answer_keywords": ["red", "white"]}]

`answer_keywords` are joined to one answer, "red, white". `history` is a list of [question, answer] pairs, or of
{"role": …, "content": …} as chat interfaces write them; a list of answers holds alternatives.
"""

import json
import os

from common.errors import InputError
from common.files import parse_json, read_text
from data.chat import ROLES
from data.documents import Source, at, counted, shown, unique_id
from data.examples import Answer, Dataset, Example

SIGNS = {"answer", "answers", "answer_keywords", "history"}
KNOWN = {"id", "question"} | SIGNS


def is_talk(path):
    """Whether a file is a JSON list whose first record has a question, an answer or turns before, and no text.

    A bare question is none: its text was forgotten, rather. With "answer": null it is.
    """
    if not os.path.isfile(path):  # a pipe cannot be read a second time
        return False
    text = read_text(path).lstrip()
    begin = text.find("{")
    if not text.startswith("[") or begin < 0 or text[1:begin].strip():
        return False
    try:
        first, _ = json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, RecursionError):
        return False
    return "question" in first and bool(SIGNS & set(first)) and not {"context", "paragraphs"} & set(first)


def read_talks(paths):
    """The Dataset of files of which `is_talk` is true. Raises InputError with file and place."""
    dataset, taken = Dataset([]), set()
    for path in paths:
        source, repeated = Source(path), 0
        records = source.check(parse_json(read_text(path), path), list, "")
        for number, record in enumerate(records):
            where = f"[{number}]"
            example = read_talk(source, source.check(record, dict, where), where, f"{source.path.stem}:{number + 1}")
            name = unique_id(example.id, taken)
            repeated += name != example.id
            prefix = f"{source.path}: " if len(paths) > 1 else ""
            dataset.examples.append(
                Example(name, example.question, None, example.answers, prefix + where, "", example.history)
            )
        if repeated:
            dataset.notices.append(f"{source.path}: {counted(repeated, 'question')} got a suffix such as #2")
        if source.unread:
            unread = ", ".join(f"{key} ({count:,})" for key, count in source.unread.items())
            dataset.notices.append(f"{source.path}: extra keys left unread: {unread}")
    return dataset


def read_talk(source, record, where, usual_id):
    """The Example of one record."""
    source.extra(record, KNOWN)
    if "context" in record:
        source.refuse(at(where, "context"), "a text, and the first question of this file has none; part the two kinds")
    name = record.get("id")
    if type(name) is not int and name is not None:
        source.check(name, str, at(where, "id"))
    question = source.field(record, "question", str, where)
    texts = read_answers(source, record, where)
    answers = None if texts is None else tuple(Answer(text, -1) for text in texts)
    name = usual_id if name in (None, "") else str(name)
    return Example(name, question, None, answers, where, "", read_history(source, record, where))


def read_answers(source, record, where):
    """The answers' texts, alternatives; None where the record gives none."""
    given = [key for key in ("answer", "answers", "answer_keywords") if record.get(key) is not None]
    if len(given) > 1:
        source.refuse(where, f"{' and '.join(given)} both give the answer; keep one of them")
    if not given:
        return None
    (key,), place = given, at(where, given[0])
    value = record[key]
    values = value if type(value) is list else [value]
    places = [f"{place}[{k}]" for k in range(len(values))] if values is value else [place]
    texts = [source.check(text, str, spot).strip() for text, spot in zip(values, places)]
    if not texts or not all(texts):
        source.refuse(place, "an answer cannot be empty")
    return [", ".join(texts)] if key == "answer_keywords" else texts


def read_history(source, record, where):
    """The turns before, as (role, text); a system's first, then the user's and the assistant's by turns."""
    items = source.optional(record, "history", list, where) or []
    turns = []
    for number, item in enumerate(items):
        place = f"{at(where, 'history')}[{number}]"
        if isinstance(item, dict):
            role = source.field(item, "role", str, place)
            if role not in ROLES:
                source.refuse(at(place, "role"), f"expected one of {', '.join(ROLES)}, found {shown(role)}")
            turns.append((role, source.field(item, "content", str, place)))
            continue
        pair = source.check(item, list, place)
        if len(pair) != 2:
            source.refuse(place, f"expected a question and its answer, found {counted(len(pair), 'item')}")
        turns += zip(("user", "assistant"), (source.check(text, str, place) for text in pair))
    spoken = [role for role, _ in turns[bool(turns) and turns[0][0] == "system" :]]
    if spoken != ["user", "assistant"] * (len(spoken) // 2):
        source.refuse(at(where, "history"), "the user and the assistant speak by turns, and the assistant last")
    return tuple(turns)


def check_kinds(paths, talks):
    """Refuse files of both kinds together; `talks` says of each path whether it is one without texts."""
    if any(talks) and not all(talks):
        with_texts, without = (paths[talks.index(kind)] for kind in (False, True))
        raise InputError(f"{without}: asks without texts, and {with_texts} about texts; give one kind at a time")
