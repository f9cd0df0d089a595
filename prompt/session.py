"""What a line typed at the prompt means, and what is said to it; knows nothing of keys and screens."""

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from common.files import read_text
from data.documents import counted
from prompt.answers import NOT_FOUND
from prompt.display import isolated, one_line, show_span

BARE = "none"
LONG_TEXT = 100_000  # characters; an answer from a longer text takes a while, and this is said
SHOWN_CHARACTERS = 2_000  # of the text, by /context
TOP = 5


@dataclass(frozen=True, slots=True)
class Command:
    """A line that begins with `name`. usage: the name with what may follow it; help: what it does, for /help.

    act(session, rest) does it; rest is what follows the name, stripped. It returns False to leave.
    """

    name: str
    usage: str
    help: str
    act: Callable


def refuse_top(count, last):
    """Why /top cannot show `count` candidates (a text, "" for the usual number) of `last`; None when it can."""
    if count and not re.fullmatch("[1-9][0-9]{0,5}", count):
        return "/top takes a whole number above 0, as in /top 5"
    return "ask a question first" if last is None else None


class Session:
    """One conversation: a text, and the last question with its answer.

    ask(question, context) returns (Prediction, seconds). write(line) shows a line. null_threshold: above
    which null odds "no answer" is said, or None. adapters: names that /adapter knows, the last one in use;
    choose(name or None) takes another and returns its null_threshold. commands: further ones beside LISTED. `wants`
    says what the next line is taken for: "text", "question" or "paste". forget(): in a chat, where every line is a question
    and there is no text, what /clear does.
    """

    def __init__(
        self, ask, null_threshold, write, style, context=None, adapters=(), choose=None, commands=(), forget=None,
    ):
        self.ask, self.null_threshold, self.write, self.style = ask, null_threshold, write, style
        self.adapters, self.choose = [*adapters], choose
        self.adapter = self.adapters[-1] if self.adapters else None
        own = [command for command in LISTED if forget is None or command.name not in ABOUT_TEXTS]
        self.listed, self.commands, self.forget = (*own, *commands), table(*own, *commands), forget
        self.context, self.pasted, self.last, self.question = None if forget is None else "", None, None, None
        if context is not None:
            self.take_text(context)

    @property
    def wants(self):
        if self.pasted is not None:
            return "paste"
        return "text" if self.context is None else "question"

    def handle(self, line):
        """Act on a line (or on several, pasted at once); returns False when the user wants to leave."""
        if self.pasted is not None:
            self.continue_paste(line)
            return True
        stripped = line.strip()
        if re.search("[\ud800-\udfff]", line):
            self.write("this is not UTF-8 text, and was ignored")
        elif stripped.startswith("/") and "\n" not in stripped:
            return self.command(stripped)
        elif stripped and self.forget is None and (self.context is None or "\n" in stripped):
            self.take_text(line)
        elif stripped:
            self.answer(stripped)
        return True

    def command(self, line):
        name, _, rest = line.partition(" ")
        if name not in self.commands:
            (nearest,) = difflib.get_close_matches(name, self.commands, n=1, cutoff=0.0)
            self.write(f"there is no command {one_line(name)}; the nearest is {nearest} (/help shows all)")
            return True
        return self.commands[name].act(self, rest.strip()) is not False

    def clear(self):
        self.last = None
        if self.forget is not None:
            self.forget()
            self.write("forgotten; the next line begins a new conversation")
            return
        self.context = None
        self.write("forgotten; the next line is the new text")

    def begin_paste(self):
        self.pasted = []
        self.write("the text, please; a line with a single dot ends it")

    def continue_paste(self, line):
        """Collect one line, or several; a dot ends it."""
        *lines, last = line.split("\n")
        self.pasted += lines if last == "." else [*lines, last]
        if last == ".":
            self.end_paste()

    def end_paste(self):
        """What was pasted so far becomes the text."""
        text, self.pasted = "\n".join(self.pasted), None
        if re.search("[\ud800-\udfff]", text):
            self.write("this is not UTF-8 text, and was ignored")
        elif text.strip():
            self.take_text(text)
        else:
            self.write("nothing was pasted; the text stays as it was")

    def cancel(self):
        """Give up an unfinished paste; returns whether there was one."""
        was_pasting, self.pasted = self.pasted is not None, None
        return was_pasting

    def read_file(self, name):
        name = os.path.expanduser(name.strip("\"'"))
        if not name or "\0" in name:
            self.write("/file needs a path: /file PATH")
            return
        try:
            text = read_text(Path(name))
        except InputError as error:
            self.write(one_line(str(error)))
            return
        if text.strip():
            self.take_text(text)
        else:
            self.write(f"{one_line(name)}: holds no text")

    def take_adapter(self, name):
        """Switch to an adapter by its name, to the bare model by BARE, or list what there is."""
        if not self.adapters:
            self.write("no adapter is loaded: start with --adapter FOLDER")
            return
        if name and name != BARE and name not in self.adapters:
            (nearest,) = difflib.get_close_matches(name, [*self.adapters, BARE], n=1, cutoff=0.0)
            self.write(f"there is no adapter {one_line(name)}; the nearest is {nearest}")
            return
        if name:
            chosen = None if name == BARE else name
            try:
                self.null_threshold = self.choose(chosen)
            except InputError as error:
                self.write(one_line(str(error)))
                return
            self.adapter, self.last = chosen, None
        for one in [*self.adapters, BARE]:
            mark = "*" if one == (self.adapter or BARE) else " "
            self.write(f"{mark} {one_line(one)}")

    def take_text(self, text):
        self.context, self.last = text, None
        self.write(f"a text of {counted(len(text.split()), 'word')}: ask about it")

    def show_text(self):
        if self.context is None:
            self.write("there is no text yet; type one, or /file PATH")
            return
        for line in self.context[:SHOWN_CHARACTERS].splitlines():
            self.write(isolated(one_line(line), self.style))
        rest = len(self.context) - SHOWN_CHARACTERS
        if rest > 0:
            self.write(f"… and {counted(rest, 'character')} more")

    def answer(self, question):
        self.last = None
        if len(self.context) > LONG_TEXT:
            self.write("reading a long text; Ctrl-C cancels")
        prediction, seconds = self.ask(question, self.context)
        self.last, self.question = prediction, question
        span = prediction.answer(self.null_threshold)
        if span is not None:
            if span.start >= 0:
                self.write(show_span(self.context, span, self.style))
            else:
                self.write(isolated(one_line(span.text), self.style))
            outside = ", not in the text" if span.start < 0 and self.context else ""
            self.write(f"  {percent(span.probability)}, {seconds:.2f} s{outside}")
            return
        share = f"; {percent(prediction.null_probability)}, {seconds:.2f} s" if prediction.spans else ""
        self.write(f"(no answer) {prediction.reason or NOT_FOUND}{share}")

    def show_top(self, count):
        refusal = refuse_top(count, self.last)
        if refusal is not None:
            self.write(refusal)
        else:
            self.list_candidates(int(count) if count else TOP)

    def list_candidates(self, count):
        """The `count` best candidates, "no answer" among them where it is on offer."""
        rows = [(span.probability, span) for span in self.last.spans]
        if self.null_threshold is not None and not self.last.said_freely:
            rows.append((self.last.null_probability, None))
        rows.sort(key=lambda row: -row[0])
        if not rows:
            self.write(f"(no answer) {self.last.reason}")
        for number, (probability, span) in enumerate(rows[:count], 1):
            shown = "(no answer)" if span is None else isolated(one_line(span.text), self.style)
            self.write(f"{number:3}. {percent(probability):>7}  {shown}")


def percent(probability):
    return f"{100 * probability:.1f} %"


def table(*commands):
    """Commands by their names, sorted, as a mistyped one is compared with them."""
    return {command.name: command for command in sorted(commands, key=lambda command: command.name)}


def help_text(listed, chat=False):
    """What /help shows of these commands."""
    rows = (f"  {command.usage:11}  {command.help}" for command in listed)
    first = "The first line you type or paste is the text. Every further line is a question about it."
    return "\n".join(["Every line you type or paste is a question." if chat else first, *rows])


ABOUT_TEXTS = ("/file", "/paste", "/context")
LISTED = (  # in the order of /help
    Command("/file", "/file PATH", "take the text from a UTF-8 file", lambda session, rest: session.read_file(rest)),
    Command("/paste", "/paste", "type or paste a text of several lines; a line with a single dot ends it",
            lambda session, rest: session.begin_paste()),
    Command("/context", "/context", "show the text", lambda session, rest: session.show_text()),
    Command("/top", "/top [K]", "show the K best candidates for the last question (5)",
            lambda session, rest: session.show_top(rest)),
    Command("/adapter", "/adapter [NAME]", "answer with this adapter, or with the bare model (none); alone: show them",
            lambda session, rest: session.take_adapter(rest)),
    Command("/clear", "/clear", "forget all that was said; a text too, and the next line is the new one",
            lambda session, rest: session.clear()),
    Command("/help", "/help", "show this",
            lambda session, rest: session.write(help_text(session.listed, session.forget is not None))),
    Command("/quit", "/quit", "leave, as Ctrl-D does; Ctrl-C cancels what is going on", lambda session, rest: False),
)
COMMANDS = table(*LISTED)
HELP = help_text(LISTED)
