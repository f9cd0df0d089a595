"""Reading lines for a Session: from a terminal with history, or from a pipe; Ctrl-C and Ctrl-D."""

import locale
import os
import sys

try:
    import readline
except ImportError:  # Windows
    readline = None

HISTORY_LINES = 1000
PROMPTS = {"text": "text> ", "question": "question> ", "paste": "... "}


class Lines:
    """Lines of standard input: on a terminal with a prompt, otherwise silently."""

    def __init__(self, history_file, say):
        if hasattr(sys.stdin, "reconfigure"):  # what is not UTF-8 is the session's to refuse, no exception
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        self.is_terminal = sys.stdin.isatty()
        if self.is_terminal and readline:
            edit_in_utf8()
        self.history = History(history_file, say) if self.is_terminal and readline else None

    def read(self, wants):
        """The next line, without its end; EOFError when there is none, KeyboardInterrupt on Ctrl-C."""
        if not self.is_terminal:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line.rstrip("\r\n")
        prompt = PROMPTS[wants]
        if not sys.stdout.isatty():  # answers are being saved, and the prompt is not one of them
            print(prompt, end="", file=sys.stderr, flush=True)
            prompt = ""
        return input(prompt)

    def remember(self, line):
        """Let the arrow keys find the line again."""
        if self.history is not None:
            self.history.add(line)

    def close(self):
        if self.history is not None:
            self.history.save()


def edit_in_utf8():
    """Have readline take keys for UTF-8, as stdin is read, where the locale says something else (LC_ALL=C).

    readline asks the environment at each line, so what locale.setlocale alone changes would not last.
    """
    try:
        locale.setlocale(locale.LC_CTYPE, "")
        if locale.nl_langinfo(locale.CODESET).upper() == "UTF-8":
            return
    except locale.Error:  # the environment names a locale that this system lacks
        pass
    for name in ("C.UTF-8", "en_US.UTF-8", "UTF-8"):
        try:
            locale.setlocale(locale.LC_CTYPE, name)
        except locale.Error:
            continue
        os.environ.pop("LC_ALL", None)  # it would stand above LC_CTYPE
        os.environ["LC_CTYPE"] = name
        break
    if "libedit" not in (readline.__doc__ or ""):  # settled when readline was loaded, by the locale of then
        for setting in ("input-meta on", "output-meta on", "convert-meta off"):
            readline.parse_and_bind(f"set {setting}")


class History:
    """readline's history in a file. A file that cannot be used is said once, and nothing else is lost."""

    def __init__(self, path, say):
        self.path, self.say, self.usable = path, say, True
        readline.set_auto_history(False)  # texts do not belong there, only questions and commands
        if "libedit" not in (readline.__doc__ or ""):
            # several lines pasted at once arrive as one input, and are not taken for questions
            readline.parse_and_bind("set enable-bracketed-paste on")
        readline.clear_history()
        readline.set_history_length(HISTORY_LINES)
        try:
            readline.read_history_file(path)
        except FileNotFoundError:
            pass  # the first session
        except OSError as error:
            self.give_up("read", error)

    def add(self, line):
        last = readline.get_history_item(readline.get_current_history_length())
        if line.strip() and line != last:
            readline.add_history(line)

    def save(self):
        if not self.usable:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(self.path)
        except OSError as error:
            self.give_up("written", error)

    def give_up(self, what, error):
        self.usable = False
        reason = error.strerror or error
        self.say(f"note: the history {self.path} cannot be {what} ({reason}); doing without it")


def converse(session, lines, write):
    """Pass lines to the session until the user leaves; returns the exit code 0.

    Ctrl-C gives up the line, the paste or the answer it comes in; a second one in a row at the prompt says
    how to leave. Ctrl-D ends a paste, otherwise the conversation.
    """
    interrupts = 0
    while True:
        reading = True
        try:
            wants = session.wants
            line = lines.read(wants)
            interrupts, reading = 0, False
            if wants == "question" and "\n" not in line or line.startswith("/"):
                lines.remember(line)
            if not session.handle(line):
                return 0
        except EOFError:
            if lines.is_terminal:
                write("")
            if session.wants != "paste":
                return 0
            session.end_paste()
        except KeyboardInterrupt:
            interrupts += reading
            write("")
            if session.cancel() or not reading:
                write("cancelled")
            elif interrupts > 1:
                write("leave with Ctrl-D or /quit")
