"""The prompt: how text is shown, what lines mean, and a real terminal."""

import io
import os
import re
import select
import sys
import time
from pathlib import Path

import pytest

import infer
from data.decode import Prediction, Span
from prompt.answers import describe
from prompt.display import Style, isolated, one_line, sentence_around, show_span, style_for
from prompt.session import HELP, COMMANDS, Session
from prompt.terminal import converse

ROOT = Path(__file__).resolve().parents[1]
PERSIAN = "BERT یک مدل زبانی است. برج در سال ۱۸۸۹ ساخته شد؟ آری."
LRI, RLI, PDI = "\u2066", "\u2067", "\u2069"


@pytest.mark.parametrize(
    "text, shown",
    [("a\r\n\n  b\tc", "a b c"), ("\x1b[2J", "␛[2J"), ("\x9b2J\x7f\x00", "\ufffd2J␡␀"),
     ("\u200f!", "\u200f!"),
     ("می\u200cشود", "می\u200cشود"), ("\u202eevil\u2069", "\ufffdevil\ufffd"), ("a\u2028b", "a b"),
     ("\udc80", "\ufffd"), (" a  b ", " a  b ")],
)
def test_nothing_a_terminal_obeys_is_shown(text, shown):
    assert one_line(text) == shown


@pytest.mark.parametrize(
    "text, mark",
    [("BERT یک مدل زبانی است", RLI), ("the word کتاب is Persian", LRI), ("۱۸۸۹", LRI), ("", LRI)],
)
def test_direction_goes_by_most_letters(text, mark):
    assert isolated(text, Style(isolates=True)) == f"{mark}{text}{PDI}"
    assert isolated(text, Style()) == text


def shown_sentence(context, answer):
    start = context.index(answer)
    first, stop, before, after = sentence_around(context, start, start + len(answer))
    assert 0 <= first <= start and start + len(answer) <= stop <= len(context)
    return "…" * before + context[first:stop] + "…" * after


@pytest.mark.parametrize(
    "context, answer, sentence",
    [("It rained. Pi is 3.14 here! Yes.", "3.14", "Pi is 3.14 here!"),
     ("One. “Two.” Three", "Two", "“Two.”"),
     ("By J. R. R. Tolkien, U.S. fans say. End.", "Tolkien", "By J. R. R. Tolkien, U.S. fans say."),
     (PERSIAN, "۱۸۸۹", "برج در سال ۱۸۸۹ ساخته شد؟"),
     ("title\n  first line\r\nsecond", "line", "first line"),
     ("aa. bb. cc.", "aa. bb", "aa. bb."),
     ("whole", "whole", "whole")],
)
def test_sentences(context, answer, sentence):
    assert shown_sentence(context, answer) == sentence


def test_long_sentences_are_cut_between_words():
    context = "left " * 400 + "middle " + "right " * 400
    shown = shown_sentence(context, "middle")
    assert re.fullmatch(r"…(left )+middle( right)+…", shown) and 280 < len(shown) <= 302
    assert re.fullmatch(r"left( left){45,}…", shown_sentence(context, "left"))
    assert re.fullmatch(r"…(right ){45,}x\.", shown_sentence(context + "x.", "x"))
    span = Span("y" * 5000, 3, 5003, 0.0, 0.0)
    shown = show_span("xx " + "y" * 5000 + " zz", span, Style())
    assert re.fullmatch(r"…?(xx )?\*\*y{150}…y{150}\*\*( zz)?…?", shown)


def test_styles(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert style_for(io.StringIO(), {}) == Style("**", "**", False)
    assert style_for(Terminal(), {}) == Style("\x1b[1;7m", "\x1b[0m", True)
    for environ in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert style_for(Terminal(), environ) == Style("**", "**", True)


def prediction(context, *places, null=0.25):
    share = (1 - null) / max(1, len(places))
    spans = tuple(Span(context[a:b], a, b, 1.0, 1.0, share) for a, b in places)
    return Prediction("q", spans, (2.0, 2.0), null, None if spans else "the context is empty")


@pytest.fixture
def talk():
    """Pass lines to a Session that always finds the same places; returns what it says."""

    def talk(*lines, places=((4, 7),), null_threshold=None):
        said, asked = [], []

        def ask(question, context):
            asked.append((question, context))
            null = 0.0 if null_threshold is None else 0.25
            return prediction(context, *places, null=null), 0.125

        session = Session(ask, null_threshold, said.append, Style("<", ">"))
        results = [session.handle(line) for line in lines]
        assert all(results[:-1])
        return said, asked, results[-1], session

    return talk


def test_a_text_then_questions(talk):
    said, asked, _, _ = talk("", "The sun is far. So.", "  what? ", "", "why?")
    assert asked == [("what?", "The sun is far. So."), ("why?", "The sun is far. So.")]
    assert said == ["a text of 5 words: ask about it", *["The <sun> is far.", "  100.0 %, 0.12 s"] * 2]


def test_no_answer_says_why(talk):
    said, _, _, _ = talk("The sun.", "what?", null_threshold=1.0)
    assert said[1:] == ["(no answer) the model finds no answer in this text; 25.0 %, 0.12 s"]
    said, _, _, _ = talk("The sun.", "what?", "/top", places=())
    assert said[1:] == ["(no answer) the context is empty"] * 2


def test_top_lists_candidates(talk):
    places = ((4, 7), (0, 7), (0, 3))
    said, _, _, _ = talk("/top", "The sun is", "what?", "/top 2", places=places, null_threshold=9.0)
    assert said[0] == "ask a question first"
    assert said[-2:] == ["  1.  25.0 %  sun", "  2.  25.0 %  The sun"]
    said, _, _, _ = talk("The sun is", "what?", "/top", "/top x", "/top 0", places=places, null_threshold=9.0)
    assert said[-3] == "  4.  25.0 %  (no answer)"
    assert said[-2:] == ["/top takes a whole number above 0, as in /top 5"] * 2
    assert talk("a text here", "what?", "other\ntext", "/top")[0][-1] == "ask a question first"


def test_texts_of_several_lines(talk):
    _, _, _, session = talk("/paste", "one", "", "/not a command", ".")
    assert session.context == "one\n\n/not a command"
    said, _, _, session = talk("old text", "/paste", ".")
    assert session.context == "old text" and said[-1] == "nothing was pasted; the text stays as it was"
    assert talk("old text", "new text\nin two lines")[3].context == "new text\nin two lines"
    assert talk("/paste", "a\nb\n.")[3].context == "a\nb"


def test_files(talk, tmp_path):
    path = tmp_path / "a text.txt"
    path.write_bytes("پیش\r\nپس".encode())
    assert talk(f"/file '{path}'")[3].context == "پیش\r\nپس"
    assert talk(f"/file {path}", "/clear")[3].context is None
    path.write_text(" \n")
    cases = {
        f"/file {path}": "holds no text", "/file": "/file needs a path", "/file a\0b": "/file needs a path",
        "/file no\x1b[2J.txt": "no␛[2J.txt: there is no such file", f"/file {tmp_path}": "this is a folder",
        "/file " + "x" * 5000: "cannot be read (File name too long)",
    }
    for line, sentence in cases.items():
        said, _, _, session = talk("the text", line)
        assert sentence in said[-1] and session.context == "the text"


def test_commands(talk):
    said, _, _, _ = talk("/help")
    assert said == [HELP] and all(command in HELP for command in COMMANDS)
    assert talk("/quit")[2] is False
    assert talk("/contxt")[0] == ["there is no command /contxt; the nearest is /context (/help shows all)"]
    assert talk("/context")[0] == ["there is no text yet; type one, or /file PATH"]
    said = talk("a\x1b\nb" + "c" * 5000, "/context")[0]
    assert said[1:] == ["a␛", "b" + "c" * 1996, "… and 3,004 characters more"]
    assert talk("caf\udce9")[0] == ["this is not UTF-8 text, and was ignored"]


class Script:
    """Lines as a terminal gives them; an exception class stands for a key."""

    is_terminal = True

    def __init__(self, *events):
        self.events, self.remembered = list(events), []

    def read(self, wants):
        event = self.events.pop(0) if self.events else EOFError
        if isinstance(event, type):
            raise event
        return event

    def remember(self, line):
        self.remembered.append(line)


def test_keys():
    said, ctrl_c = [], KeyboardInterrupt

    def ask(question, context):
        if question == "slow?":
            raise KeyboardInterrupt
        return prediction(context, (0, 1)), 0.0

    def play(*events):
        said.clear()
        script = Script(*events)
        session = Session(ask, None, said.append, Style())
        assert converse(session, script, said.append) == 0
        return session, script

    play(ctrl_c, ctrl_c, "text", ctrl_c)
    assert said == ["", "", "leave with Ctrl-D or /quit", "a text of 1 word: ask about it", "", ""]
    _, script = play("text", "slow?", ctrl_c, "fast?", "/quit", "never read")
    assert said[1:4] == ["", "cancelled", ""] and said[-2].startswith("**t**ext")
    assert script.remembered == ["slow?", "fast?", "/quit"] and script.events == ["never read"]
    session, _ = play("/paste", "a", ctrl_c, "b")
    assert "cancelled" in said and session.context == "b"
    session, _ = play("/paste", "a", "b", EOFError, "q?")
    assert session.context == "a\nb" and said[-2] == "  75.0 %, 0.00 s"


def test_a_piped_script(tiny_folder, tmp_path, monkeypatch, capsys):
    script = f"{PERSIAN}\nکی؟\n/top 2\n\x1b]0;title\x07?\n/contxt\n".encode() + b"caf\xe9\nlast?"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(script)))
    monkeypatch.setenv("BAREQA_CACHE", str(tmp_path))
    assert infer.main(["--model", str(tiny_folder)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "a text of 12 words: ask about it"
    assert lines[1].count("**") == 2 and re.fullmatch(r"  \d+\.\d %, \d\.\d\d s", lines[2])
    assert lines[3].startswith("  1. ") and lines[4].startswith("  2. ")
    assert lines[7] == "there is no command /contxt; the nearest is /context (/help shows all)"
    assert lines[8] == "this is not UTF-8 text, and was ignored"
    assert len(lines) == 11 and not set(captured.out) & set("\x1b\u2066\u2067\u2069>")
    assert list(tmp_path.iterdir()) == []  # a history is for people


class Terminal:
    """infer.py on a pseudo-terminal of its own."""

    def __init__(self, *flags, **environ):
        import pty

        environ = {"TERM": "xterm", "OMP_NUM_THREADS": "1", **environ}
        command = [sys.executable, str(ROOT / "infer.py"), *map(str, flags)]
        unwanted = ("NO_COLOR", "INPUTRC")
        environ = {k: v for k, v in os.environ.items() if k not in unwanted} | environ
        self.unread = b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            try:
                os.execve(sys.executable, command, environ)
            finally:
                os._exit(127)

    def until(self, text, seconds=60):
        """What is shown up to and including `text`, line ends as \\n."""
        wanted, deadline = text.encode(), time.monotonic() + seconds
        while wanted not in self.unread:
            assert time.monotonic() < deadline, f"no {text!r} after {seconds} s in {self.unread.decode()!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.unread += self.read()
        shown, _, self.unread = self.unread.partition(wanted)
        return (shown + wanted).decode().replace("\r", "")

    def read(self):
        try:
            return os.read(self.master, 65536)
        except OSError:  # Linux says so when the other side is closed
            raise EOFError("the program has ended") from None

    def type(self, text):
        os.write(self.master, text.encode())

    def wait(self):
        """The exit code, once everything shown was taken."""
        try:
            while self.read():
                pass
        except EOFError:
            pass
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = None
        return code

    def close(self):
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        os.close(self.master)


@pytest.fixture
def terminal(tiny_folder, tmp_path):
    pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    opened = []

    def terminal(*flags, **environ):
        environ.setdefault("BAREQA_CACHE", str(tmp_path / "cache"))
        opened.append(Terminal("--model", tiny_folder, *flags, **environ))
        return opened[-1]

    yield terminal
    for each in opened:
        each.close()


def test_a_real_terminal(terminal, tmp_path):
    screen = terminal()
    assert "/help shows more" in screen.until("text> ")
    screen.type(f"{PERSIAN}\r")
    screen.until("question> ")
    screen.type("کی؟\r")
    shown = screen.until("question> ")
    answer = re.search(f"[{LRI}{RLI}]([^{PDI}]*){PDI}\n  [0-9.]+ %, ", shown)
    assert answer and "\x1b[1;7m" in answer[1] and answer[1].count("\x1b[0m") == 1
    screen.type("/top 20\r")
    rows = re.findall(f"  [0-9.]+ %  ([{LRI}{RLI}])[^\n]+{PDI}\n", screen.until("question> "))
    assert len(rows) == 20 and RLI in rows
    screen.type("half a question")
    screen.until("half a question")
    time.sleep(0.5)  # a Ctrl-C that comes while readline is still busy with a key waits for the next one
    screen.type("\x03")
    assert "leave with" not in screen.until("question> ")
    screen.type("\x03")
    assert "leave with Ctrl-D or /quit" in screen.until("question> ")
    screen.type("evil \x16\x1b[31m?\r")  # Ctrl-V takes the next key as it is
    assert "[31m" not in screen.until("%, ").split("\n", 1)[1]
    screen.until("question> ")
    screen.type("\x04")
    assert screen.wait() == 0
    history = (tmp_path / "cache" / "history").read_text(encoding="utf-8").splitlines()
    assert [line for line in history if line in ("کی؟", "/top 20", PERSIAN)] == ["کی؟", "/top 20"]


def test_persian_is_typed_in_any_locale(terminal, tmp_path):
    screen = terminal(LC_ALL="C", LANG="C")
    screen.until("text> ")
    screen.type("برج می‌آیدx\x7fد\x7f\r")  # two letters too many, of one byte and of two
    screen.until("question> ")
    screen.type("/context\r")
    assert "برج می‌آید" + PDI in screen.until("question> ")
    screen.type("کیی\x7f؟\r")
    screen.until("%, ")
    screen.until("question> ")
    screen.type("\x04")
    assert screen.wait() == 0
    history = (tmp_path / "cache" / "history").read_text(encoding="utf-8").splitlines()
    assert history[-1] == "کی؟"


def test_ctrl_c_cancels_an_answer_and_troubles_are_said_once(terminal, tmp_path):
    book, no_folder = tmp_path / "book.txt", tmp_path / "file"
    book.write_text("some words\n" * 100_000)
    no_folder.write_text("")
    environ = {"BAREQA_CACHE": str(no_folder), "NO_COLOR": "1"}
    screen = terminal("--context-file", book, "--precision", "fp32", **environ)
    assert "history" in (shown := screen.until("question> ")) and "cannot be read (Not a directory)" in shown
    screen.type("how many?\r")
    screen.until("Ctrl-C cancels")
    time.sleep(0.2)
    screen.type("\x03")
    assert "cancelled" in screen.until("question> ", 10)
    screen.type("\x1b[200~A short text.\rIn two lines.\x1b[201~\r")
    assert "a text of 6 words" in screen.until("question> ")
    screen.type("which?\r")
    shown = screen.until("%, ")
    assert shown.count("**") == 2 and LRI in shown and "\x1b[1;7m" not in shown
    screen.until("question> ")
    screen.type("/quit\r")
    assert screen.wait() == 0


def test_in_a_chat_every_line_is_a_question_and_clear_forgets_it():
    """/clear used to say that it forgot, keep the conversation, and take the next question for a text."""
    said, asked, history = [], [], []

    def ask(question, context):
        asked.append((question, context, len(history)))
        history.append(question)
        return Prediction("a", (), None, 0.0, "the model says that there is none"), 0.1

    session = Session(ask, None, said.append, Style(), forget=history.clear)
    for line in ("Who?", "one line\nand another", "/clear", "Why?"):
        assert session.handle(line) and session.wants == "question"
    assert asked == [("Who?", "", 0), ("one line\nand another", "", 1), ("Why?", "", 0)]
    assert "forgotten; the next line begins a new conversation" in said
    for name in ("/file x", "/paste", "/context"):
        session.handle(name)
        assert said[-1].startswith("there is no command")
    session.handle("/help")
    assert said[-1].startswith("Every line you type or paste is a question.") and "/paste" not in said[-1]


def test_an_answer_said_freely_stands_against_no_null():
    """/top used to list "(no answer)" with 0.0 % beside what a decoder said without a text."""
    said, freely = [], Prediction("a", (Span("By the river.", -1, -1, -0.5, 0.0, 0.6),), None, 0.0)
    session = Session(lambda question, context: (freely, 0.1), 1.0, said.append, Style(), forget=list)
    session.handle("Where?")
    session.handle("/top")
    assert said[-1] == "  1.  60.0 %  By the river." and "(no answer)" not in "".join(said)
    assert "null_probability" not in describe(freely, 1.0, 0.1, 5)
