"""The prompt's commands that look inside the last answer: what they take, and which function of inside/ each calls."""

import re
from pathlib import Path

from common.errors import InputError
from common.files import write_atomic
from inside.ablation import Unit, predict_without, rank_heads
from inside.attention import check_head, look
from inside.case import Case
from inside.difference import difference
from inside.hooks import blocks
from inside.lens import lens
from inside.patching import patch
from inside.saliency import saliency
from inside.trace import trace
from inside.why import why
from prompt import pictures
from prompt.display import one_line
from prompt.session import BARE, Command

HEADS = 10  # rows of /heads


class Looking:
    """Commands for one reader. open_other(name) loads another model as a Reader, for /diff; InputError if it cannot."""

    def __init__(self, reader, tokens_per_batch, open_other):
        self.reader, self.tokens_per_batch, self.open_other = reader, tokens_per_batch, open_other
        self.last = None  # (question, context, adapter, its Case): what was computed of it is used again

    def case(self, session):
        """The Case of the last question; InputError before the first."""
        if session.last is None:
            raise InputError("ask a question first")
        key = session.question, session.context, self.reader.adapter
        if self.last is None or self.last[:3] != key:
            self.last = *key, self.case_of(*key[:2])
        return self.last[3]

    def case_of(self, question, context, reader=None, **chosen):
        return Case(reader or self.reader, question, context, tokens_per_batch=self.tokens_per_batch, **chosen)

    def commands(self):
        """The table's rows, in the order of /help."""
        rows = (
            ("/why", "/why", "the logits of the last answer, its runners-up and the null, window by window", self.why),
            ("/lens", "/lens", "what the head would say after each block", self.lens),
            ("/attn", "/attn L.H", "where the answer and [CLS] look, by head H of block L", self.attn),
            ("/heads", "/heads [N]", f"what the answer loses without each head or feed-forward half ({HEADS})",
             self.heads),
            ("/ablate", "/ablate L.H", "answer without these heads (4.6) or feed-forward halves (5.ff)", self.ablate),
            ("/tokens", "/tokens [N]", "the pieces of window N as the model sees them (the one that won)", self.tokens),
            ("/windows", "/windows", "how the text was cut", self.windows),
            ("/saliency", "/saliency", "which words carried the answer, by integrated gradients", self.saliency),
            ("/patch", "/patch QUESTION", "put another question's states into this one's run", self.patch),
            ("/diff", "/diff NAME", "the same under another adapter, none, or another model", self.diff),
            ("/trace", "/trace FILE", "write every operation with its shape, numbers, equation and line", self.trace),
        )
        return [Command(name, usage, text, self.showing(act)) for name, usage, text, act in rows]

    def showing(self, act):
        """An action of the table: the lines that `act` yields, or the sentence that refuses."""

        def run(session, rest):
            try:
                for line in act(session, self.case(session), rest):
                    session.write(line)
            except InputError as error:
                session.write(one_line(str(error)))

        return run

    def why(self, session, case, rest):
        return pictures.why_lines(why(case), session.style, penalty=case.settings.decode.length_penalty)

    def lens(self, session, case, rest):
        return pictures.lens_lines(lens(case), session.style)

    def attn(self, session, case, rest):
        chosen = self.units(case, rest)
        if len(chosen) != 1 or chosen[0].head is None:
            raise InputError("/attn takes one head as block.head, as in /attn 4.6")
        seen = look(case, chosen[0].layer, chosen[0].head)
        return pictures.look_lines(seen, case.pieces(seen.number), session.style)

    def units(self, case, text):
        """The Units that a line names: `4.6`, `5.ff`; InputError for anything else or what the model lacks."""
        found = []
        for word in text.split():
            match = re.fullmatch(r"(\d{1,4})\.(\d{1,4}|ff)", word)
            if not match:
                raise InputError(f"{word!r} is no head: name heads block.head, as in 4.6, feed-forward halves 4.ff")
            layer, head = int(match[1]), None if match[2] == "ff" else int(match[2])
            check_head(case, layer, head or 0)
            found.append(Unit(layer, head))
        return found

    def heads(self, session, case, rest):
        if rest and not re.fullmatch("[1-9][0-9]{0,4}", rest):
            raise InputError("/heads takes a whole number above 0, as in /heads 10")
        count = int(rest) if rest else HEADS
        return pictures.loss_lines(rank_heads(case), case, session.style, count)

    def ablate(self, session, case, rest):
        chosen = self.units(case, rest)
        if not chosen:
            raise InputError(f"/ablate takes heads, as in /ablate 0.1 {len(blocks(case.model)) - 1}.ff")
        prediction = predict_without(case, chosen)
        yield f"before: {pictures.said(case.answer(case.prediction), session.style)}, best score {case.best.score:.2f}"
        best = prediction.spans[0].score if prediction.spans else float("nan")
        yield (f"without {', '.join(map(str, chosen))}: {pictures.said(case.answer(prediction), session.style)}, "
               f"best score {best:.2f}")

    def tokens(self, session, case, rest):
        number = case.best.window if not rest else int(rest) if rest.isdecimal() and len(rest) < 7 else -1
        if not 0 <= number < len(case.windows):
            raise InputError(f"/tokens takes the number of a window, 0 to {len(case.windows) - 1}")
        return pictures.token_lines(case, number, session.style)

    def windows(self, session, case, rest):
        return pictures.window_lines(case, session.style)

    def saliency(self, session, case, rest):
        seen = saliency(case)
        return pictures.saliency_lines(seen, case.pieces(seen.number), session.style)

    def patch(self, session, case, rest):
        question = rest.strip("\"'“”")
        if not question.strip():
            raise InputError('/patch takes another question about the same text, as in /patch "Who built it?"')
        patches = patch(case, self.case_of(question, session.context))
        return pictures.patch_lines(patches, session.style)

    def diff(self, session, case, rest):
        if not rest:
            raise InputError("/diff takes the name of an adapter, none for the bare model, or a model as --model does")
        here = self.reader.adapter or "this model"
        if rest in (*self.reader.all_settings, BARE):
            if rest == BARE and self.reader.report.head_is_new:
                raise InputError("the bare model has no head for answers that was ever trained")
            other = self.case_of(session.question, session.context, adapter=None if rest == BARE else rest)
        else:
            other = self.case_of(session.question, session.context, reader=self.open_other(rest))
        return pictures.difference_lines(difference(case, other), (here, rest), session.style)

    def trace(self, session, case, rest):
        path = Path(rest.strip("\"'")).expanduser()
        if not rest or "\0" in rest:
            raise InputError("/trace takes the file to write to, as in /trace trace.txt")
        if path.exists():
            raise InputError(f"{path}: is there already; name another file")
        if not path.parent.is_dir():
            raise InputError(f"{path.parent}: there is no such folder; make it first")
        steps = trace(case)
        write_atomic(path, pictures.trace_text(steps))
        yield f"{len(steps)} operations are in {path}"
