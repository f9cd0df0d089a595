"""Questions about texts as prompts for a decoder: template, windows, and the tokens that are to be learned.

A prompt is laid out by tokens, not by text: the template's words around the slots, the question, and a slice of the
context as the context's own tokens. So the tokens of an answer are a run of the context's, the same ones that
generation bound to the text may say, and their offsets are known.

    chat's opening | "…Text:\\n" | slice of the context | "\\n\\nQuestion:\\n" | question | chat's close | answer, end
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from data.chat import encode_chat, pieces_of
from data.pieces import Special, continuing, encode_pieces
from data.texts import QuestionTexts
from data.windows import REFERENCES, label_tokens

SLOTS = ("{context}", "{question}")
IGNORED = -1  # the label of a token that is not to be learned
NOTHING = (-1, -1)  # in place of an answer's tokens: the phrase that there is none


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """template: with both SLOTS, the context first; "{no_answer}" in it stands for the phrase. no_answer: that phrase,
    which the model says where there is none.

    shots: (context, question, answer) of examples that are shown before, as turns of the chat; "" for no answer. In
    tokens: length, of a prompt with its answer at most; overlap, which neighbouring slices share; max_question;
    max_answer.
    """

    template: str = (
        "Answer the question with the shortest exact words of the text. If the text does not answer it, say: "
        "{no_answer}\n\nText:\n{context}\n\nQuestion:\n{question}"  # tokens end with a line, but a space joins a word
    )
    no_answer: str = "unanswerable"
    length: int = 512
    overlap: int = 128
    max_question: int = 64
    max_answer: int = 30
    shots: tuple[tuple[str, str, str], ...] = ()

    def check(self):
        """Raise InputError for a template without its slots, or what else cannot be; returns self."""
        for slot in SLOTS:
            if not isinstance(self.template, str) or self.template.count(slot) != 1:
                raise InputError(f"a prompt template needs {slot} exactly once")
            if slot in str(self.no_answer):
                raise InputError(f"the phrase for no answer cannot hold {slot}")
        if "\0" in self.template + str(self.no_answer):  # which marks the slots of a laid out prompt
            raise InputError("a prompt template and the phrase for no answer cannot hold a NUL character")
        if self.template.index(SLOTS[0]) > self.template.index(SLOTS[1]):
            raise InputError("a prompt template has the {context} before the {question}")
        if not isinstance(self.no_answer, str) or not self.no_answer.strip():
            raise InputError("the phrase for no answer cannot be empty")
        for name in ("length", "overlap", "max_question", "max_answer"):
            value, least = getattr(self, name), 0 if name == "overlap" else 1
            if type(value) is not int or value < least:
                raise InputError(f"a prompt's {name} must be a whole number of at least {least}, not {value!r}")
        if any(len(shot) != 3 or not all(isinstance(text, str) for text in shot) for shot in self.shots):
            raise InputError("an example for a prompt is three texts: context, question, answer")
        return self

    def filled(self, context, question):
        """The template as text."""
        before, rest = self.template.replace("{no_answer}", self.no_answer.strip()).split(SLOTS[0])
        between, after = rest.split(SLOTS[1])
        return f"{before}{context}{between}{question}{after}"


class PromptLayout:
    """The fixed tokens of every prompt, for a tokenizer, a chat format and settings."""

    def __init__(self, tokenizer, chat, settings):
        settings.check()
        assert tokenizer.encode_special_tokens, "or texts could forge what parts the turns"
        mark = "\0"  # parts the chat's pieces where the context and the question go; no vocabulary holds it
        turns = []
        for context, question, answer in settings.shots:
            turns.append(("user", settings.filled(context, question).replace(mark, "")))
            turns.append(("assistant", answer.replace(mark, "") or settings.no_answer))
        pieces = pieces_of([*turns, ("user", settings.filled(mark, mark))], chat)
        (place,) = (k for k, piece in enumerate(pieces) if not isinstance(piece, Special) and mark in piece)
        before, between, after = pieces[place].split(mark)
        self.head = encode_pieces(tokenizer, [*pieces[:place], before])
        self.middle = encode_pieces(tokenizer, [between], continues=True)
        self.tail = encode_pieces(tokenizer, [after, *pieces[place + 1 :]], continues=True)
        self.stop = tokenizer.token_to_id(chat.end)
        self.phrase = encode_pieces(tokenizer, [chat.lead + settings.no_answer.strip()], continues=True)
        self.fixed = len(self.head) + len(self.middle) + len(self.tail)
        # with its answer, a prompt of the longest question shows its text one token more than neighbours share
        self.answer_room = max(settings.max_answer, len(self.phrase)) + 1
        room = settings.length - self.fixed - self.answer_room
        self.question_limit = min(settings.max_question, room - settings.overlap - 1)
        if self.question_limit < 1:
            raise InputError(
                f"prompts of {settings.length} tokens leave {max(0, room)} for question and text, and neighbours share "
                f"{settings.overlap}: choose longer prompts"
            )


class PromptSet:
    """All prompts of a list of examples, and with labels what is to be said after each.

    Per prompt, arrays of length W: `example`, `start`, `stop` (the slice, in tokens of the context), `length` (tokens
    with the answer and its end), `answer` (W, 2): the run of the context's tokens to be said, counted in the context,
    or NOTHING for the no-answer phrase. A slice has a prompt for each different thing that its question's references
    want said there, and `share` (W,) is how many of them want it: two annotators say "in 1807" and one "1807", so
    there are two prompts, of shares 2/3 and 1/3. references: label "all", or only the "first". on_disk: as of WindowSet.
    inputs: whether batches teach the prompts' own tokens too, and not the answers' alone.
    """

    left_out = "no token touches their answer, or it is longer than may be said"

    def __init__(
        self, examples, tokenizer, chat, settings, *, with_labels=False, references="all", pad=0, progress=None,
        on_disk=False, inputs=False,
    ):
        assert references in REFERENCES
        self.examples, self.settings, self.pad, self.inputs = examples, settings, pad, inputs
        self.layout = PromptLayout(tokenizer, chat, settings)
        limit = self.layout.question_limit
        self.texts = QuestionTexts(examples, continuing(tokenizer), limit, progress, on_disk=on_disk)
        self.cut_questions = self.texts.cut_questions
        self.unlabelled = []  # examples without an answer to learn
        self.labelled_references = 0 if not with_labels else 1 if references == "first" else None  # None: no limit
        rows = [row for number in range(len(examples)) for row in self._example_rows(number)]
        table = np.array([row[:-1] for row in rows], np.int32).reshape(-1, 5)
        self.example, self.start, self.stop, self.answer = table[:, 0], table[:, 1], table[:, 2], table[:, 3:]
        self.share = np.array([row[-1] for row in rows], np.float32)
        said = np.where(self.answer[:, 0] < 0, len(self.layout.phrase), self.answer[:, 1] - self.answer[:, 0] + 1)
        self.said = said + 1  # (W,) tokens of the answers, with their end
        prompts = self.layout.fixed + self.texts.question_lengths[self.example] + self.stop - self.start
        self.length = (prompts + (self.said if with_labels else 0)).astype(np.int64)

    def __len__(self):
        return len(self.example)

    def _example_rows(self, number):
        """(example, start, stop, answer first, answer last, share) of each prompt of one example."""
        settings, offsets = self.settings, self.texts.offsets(number)
        room = settings.length - self.layout.fixed - int(self.texts.question_lengths[number]) - self.layout.answer_room
        answers = (self.examples[number].answers or ())[: self.labelled_references]
        spans = [span for answer in answers if (span := label_tokens(offsets, answer.start, answer.end))]
        spans = [span for span in spans if span[1] - span[0] < settings.max_answer]
        if answers and not spans:
            self.unlabelled.append(number)
            return
        for begin in range(0, max(1, len(offsets)), room - settings.overlap):
            end = min(begin + room, len(offsets))
            wanted = Counter(span if begin <= span[0] and span[1] < end else NOTHING for span in spans or [NOTHING])
            for span, count in wanted.items():
                yield number, begin, end, *span, count / wanted.total()
            if end == len(offsets):
                break

    def units(self, prompts):
        """What the loss of some prompts is divided by; see `tokens_said`."""
        return tokens_said(self, prompts)

    def slice_ids(self, prompt):
        """Ids of the context's tokens that a prompt shows."""
        return self.texts.context_ids(self.example[prompt], self.start[prompt], self.stop[prompt])

    def offsets(self, prompt):
        """Offsets (n, 2) into the original context of the tokens of one prompt's slice."""
        return self.texts.offsets(self.example[prompt], self.start[prompt], self.stop[prompt])

    def opening_ids(self, prompt):
        """Ids of one prompt as far as prompts about the same slice share it."""
        return [*self.layout.head, *self.slice_ids(prompt)]

    def closing_ids(self, prompt):
        """The rest of its ids, up to where the model speaks."""
        return [*self.layout.middle, *self.texts.question_ids(self.example[prompt]), *self.layout.tail]

    def prompt_ids(self, prompt):
        """Ids of one prompt, up to where the model speaks."""
        return self.opening_ids(prompt) + self.closing_ids(prompt)

    def answer_ids(self, prompt):
        """Ids that are to be said after a prompt, the end included."""
        first, last = self.answer[prompt]
        if first < 0:
            return [*self.layout.phrase, self.layout.stop]
        return [*self.texts.context_ids(self.example[prompt], first, last + 1), self.layout.stop]

    def fill(self, prompts):
        """Arrays of a batch with answers; see `fill_left`."""
        rows = [(self.prompt_ids(prompt), self.answer_ids(prompt)) for prompt in prompts]
        return fill_left(rows, self.share[prompts], self.pad, self.inputs)


class TalkSet:
    """Prompts of questions without a text: the chat alone, with the turns that came before.

    Of the same use as a PromptSet. A question has a prompt for each of its answers, all of equal `share`. What does
    not fit is left away: the oldest turns, and the end of a question of more than settings.max_question tokens.
    """

    left_out = "their answer is longer than may be said"

    def __init__(
        self, examples, tokenizer, chat, settings, *, with_labels=False, references="all", pad=0, progress=None,
        inputs=False,
    ):
        self.examples, self.settings, self.pad, self.inputs = examples, settings, pad, inputs
        self.tokenizer, self.chat = tokenizer, chat
        self.stop = tokenizer.token_to_id(chat.end)
        self.cut_questions, self.cut_histories, self.unlabelled = 0, 0, []
        rows = []  # (example, prompt's ids, ids to be said, share)
        for number, example in enumerate(examples):
            prompt = self.conversation(example)
            answers = (example.answers or ())[: 1 if references == "first" else None] if with_labels else ()
            said = [encode_pieces(tokenizer, [chat.lead + answer.text], continues=True) for answer in answers]
            said = [ids for ids in said if len(ids) <= settings.max_answer]
            if with_labels and not said:
                self.unlabelled.append(number)
                continue
            rows += [(number, prompt, [*ids, self.stop], 1 / len(said)) for ids in said] or [(number, prompt, [], 1.0)]
            if progress is not None:
                progress.update(2)  # as two texts
        numbers, self.prompts, self.answers, share = zip(*rows) if rows else ((), (), (), ())
        self.example, self.share = np.array(numbers, np.int32), np.array(share, np.float32)
        self.said = np.array([len(ids) for ids in self.answers], np.int64)
        self.length = self.said + np.array([len(ids) for ids in self.prompts], np.int64)

    def conversation(self, example):
        """Ids of the chat up to where the model speaks."""
        settings, question = self.settings, example.question
        offsets = self.tokenizer.encode(question, add_special_tokens=False).offsets
        if len(offsets) > settings.max_question:
            question = question[: offsets[settings.max_question - 1][1]]
            self.cut_questions += 1
        system = list(example.history[:1]) if example.history and example.history[0][0] == "system" else []
        turns, room = list(example.history[len(system) :]), settings.length - settings.max_answer - 1
        while True:
            ids = encode_chat(self.tokenizer, [*system, *turns, ("user", question)], self.chat)
            if len(ids) <= room:
                self.cut_histories += len(system) + len(turns) < len(example.history)
                return ids
            if not turns:
                raise InputError(
                    f"{example.where}: prompts of {settings.length} tokens, {settings.max_answer} of them for the "
                    f"answer, leave no room for this question{' and its system turn' if system else ''}: choose longer prompts"
                )
            turns = turns[2:]

    def __len__(self):
        return len(self.example)

    def units(self, prompts):
        """What the loss of some prompts is divided by; see `tokens_said`."""
        return tokens_said(self, prompts)

    def prompt_ids(self, prompt):
        """Ids of one prompt, up to where the model speaks."""
        return self.prompts[prompt]

    def fill(self, prompts):
        """Arrays of a batch with answers; see `fill_left`."""
        rows = [(self.prompts[k], self.answers[k]) for k in prompts]
        return fill_left(rows, self.share[prompts], self.pad, self.inputs)


def tokens_said(prompt_set, prompts):
    """The tokens that some prompts teach, each counted by its prompt's share: the answers' with their ends, or,
    with the inputs, all but each prompt's first, which nothing stands before."""
    learned = prompt_set.length - 1 if prompt_set.inputs else prompt_set.said
    return float((learned[prompts] * prompt_set.share[prompts].astype(np.float64)).sum())


def fill_left(rows, share, pad, inputs=False):
    """Arrays of a batch of (ids of a prompt, ids to be said), padded on the left to its longest.

    Returns input_ids (B, T) int64, attention_mask (B, T) bool, labels (B, T) int64: where the *next* token is one
    of the answer (with `inputs`, of the prompt or the answer), that token, else IGNORED; and share (B,) fp32, what a
    row's loss counts.
    """
    T = max(len(prompt) + len(answer) for prompt, answer in rows)
    batch = {
        "input_ids": np.full((len(rows), T), pad, np.int64),
        "attention_mask": np.zeros((len(rows), T), bool),
        "labels": np.full((len(rows), T), IGNORED, np.int64),
        "share": np.asarray(share, np.float32),
    }
    for row, (prompt, answer) in enumerate(rows):
        first = T - len(prompt) - len(answer)
        batch["input_ids"][row, first:] = prompt + answer
        batch["attention_mask"][row, first:] = True
        taught = (prompt + answer)[1:] if inputs else answer
        batch["labels"][row, T - len(taught) - 1 : T - 1] = taught
    return batch
