"""Which part of a chat is the text and which the question; docs/serving.md tells it to users.

An extractive reader needs the two apart, and a chat has only messages. The first rule that fits counts:

1. The last user message has labels at the start of lines, `Question:` and a word for the text (`Context:`, `Text:`,
   `Document:`, `Passage:`), in either order: the text is what stands under its label.
2. It has several paragraphs and the last one ends with a question mark: that one asks, the others are the text.
3. There are system messages: they are the text, and the last user message asks.
4. There is an earlier user message: the first one is the text, less a question that closes it by rule 1 or 2.
5. It has several lines: the last one asks, the others are the text.
"""

import re

from common.errors import InputError

LABEL = re.compile(r"^[ \t]*(question|context|text|document|passage)[ \t]*:[ \t]*", re.IGNORECASE | re.MULTILINE)
BLANK_LINE = re.compile(r"\r?\n(?:[ \t]*\r?\n)+")
LINE_BREAK = re.compile(r"\r?\n|\r")
JOINT = "\n\n"  # between messages that are one text
QUESTION_MARKS = ("?", "\u061f", "\uff1f", "\u037e")  # of Latin, Arabic and Persian, Chinese, Greek
SYSTEM = ("system", "developer")


def find_question(messages):
    """(question, context) of [(role, text)]; InputError when the chat does not tell them apart."""
    said = [text for role, text in messages if role == "user" and text.strip()]
    if not said:
        raise InputError("there is no user message with text, and the last one should ask the question")
    last, earlier = said[-1], said[:-1]
    if found := labelled(last) or closing_question(last):
        return found
    asked = only_question(last)
    if systems := [text for role, text in messages if role in SYSTEM and text.strip()]:
        return asked, JOINT.join(systems)
    if earlier:
        _, context = labelled(earlier[0]) or closing_question(earlier[0]) or (None, earlier[0])
        return asked, context
    *_, cut = [None, *LINE_BREAK.finditer(last.strip())]
    if cut is None:
        raise InputError(
            "there is a question but no text to answer from: send it as the system message, or before the question "
            "in the same message, with an empty line between them"
        )
    return last.strip()[cut.end() :].strip(), last.strip()[: cut.start()].strip()


def in_message(messages, question, context, start, end):
    """(number of the message, start, end there) of `context[start:end]`, both being what `find_question` found.

    None for words that two messages share, of those that were put together.
    """
    spoken = [number for number, (_, text) in enumerate(messages) if text.strip()]
    users = [number for number in spoken if messages[number][0] == "user"]
    systems = [number for number in spoken if messages[number][0] in SYSTEM]
    for number in (users[-1], *systems, *users[:-1]):
        text = messages[number][1]
        place, asked = text.find(context), text.find(question) if number == users[-1] else -1
        if 0 <= asked <= place and place + len(context) <= asked + len(question):  # the question has these words too
            place = text.find(context, asked + len(question) - len(context) + 1)
        if place >= 0:
            return number, place + start, place + end
    before = 0
    for number, (role, text) in enumerate(messages):
        if role in SYSTEM and text.strip():
            if before <= start and end <= before + len(text):
                return number, start - before, end - before
            before += len(text) + len(JOINT)
    return None


def labelled(text):
    """(question, context) of a message with both labels, else None; a label used again belongs to the part it is in."""
    parts, starts = {}, []
    for match in LABEL.finditer(text):
        name = "question" if match[1].lower() == "question" else "context"
        if name not in [known for known, _, _ in starts]:
            starts.append((name, match.start(), match.end()))
    for number, (name, _, begin) in enumerate(starts):
        end = starts[number + 1][1] if number + 1 < len(starts) else len(text)
        parts[name] = text[begin:end].strip()
    if parts.get("question") and parts.get("context"):
        return parts["question"], parts["context"]
    return None


def closing_question(text):
    """(last paragraph, the ones before) of a message that ends by asking, else None."""
    text = text.rstrip()
    *_, gap = [None, *BLANK_LINE.finditer(text)]
    before, last = (text[: gap.start()], text[gap.end() :]) if gap else ("", text)
    if before.strip() and last.rstrip().endswith(QUESTION_MARKS):
        return last.strip(), before.strip()
    return None


def only_question(text):
    """A message without its `Question:` label, if it has one."""
    match = LABEL.match(text.strip())
    return text.strip()[match.end() :].strip() if match and match[1].lower() == "question" else text.strip()
