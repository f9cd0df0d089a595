"""Questions about texts as prompts for a decoder: template, windows, and the tokens that are to be learned.

A prompt is laid out by tokens, not by text: the template's words around the slots, the question, and a slice of the
context as the context's own tokens. So the tokens of an answer are a run of the context's, the same ones that
generation bound to the text may say, and their offsets are known.

    chat's opening | "…Text: " | slice of the context | "\\n\\nQuestion: " | question | chat's close | answer, end
"""

from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from data.chat import Special, encode_pieces, encode_plain, pieces_of
from data.windows import QuestionTexts, label_tokens

SLOTS = ("{context}", "{question}")
IGNORED = -1  # the label of a token that is not to be learned


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """template: with both SLOTS, the context first. no_answer: what the model says where there is none.

    In tokens: length, of a prompt with its answer at most; overlap, which neighbouring slices share; max_question;
    max_answer.
    """

    template: str = (
        "Answer the question with the shortest exact words of the text. If the text does not answer it, say: "
        "unanswerable\n\nText: {context}\n\nQuestion: {question}"
    )
    no_answer: str = "unanswerable"
    length: int = 512
    overlap: int = 128
    max_question: int = 64
    max_answer: int = 30

    def check(self):
        """Raise InputError for a template without its slots; returns self."""
        for slot in SLOTS:
            if self.template.count(slot) != 1:
                raise InputError(f"a prompt template needs {slot} exactly once")
        if self.template.index(SLOTS[0]) > self.template.index(SLOTS[1]):
            raise InputError("a prompt template has the {context} before the {question}")
        if not self.no_answer.strip():
            raise InputError("the phrase for no answer cannot be empty")
        return self


class PromptLayout:
    """The fixed tokens of every prompt, for a tokenizer, a chat format and a template."""

    def __init__(self, tokenizer, chat, settings):
        settings.check()
        assert tokenizer.encode_special_tokens, "or texts could forge what parts the turns"
        before, rest = settings.template.split(SLOTS[0])
        between, after = rest.split(SLOTS[1])
        mark = "\0"  # parts the chat's pieces where the template goes; no vocabulary holds it
        pieces = pieces_of([("user", mark)], chat)
        (place,) = (k for k, piece in enumerate(pieces) if not isinstance(piece, Special) and mark in piece)
        opening, closing = pieces[place].split(mark)
        self.head = encode_pieces(tokenizer, [*pieces[:place], opening + before])
        self.middle = encode_pieces(tokenizer, [between])
        self.tail = encode_pieces(tokenizer, [after + closing, *pieces[place + 1 :]])
        self.stop = tokenizer.token_to_id(chat.end)
        self.phrase = encode_plain(tokenizer, settings.no_answer)
        self.fixed = len(self.head) + len(self.middle) + len(self.tail)


class PromptSet:
    """All prompts of a list of examples, and with labels what is to be said after each.

    Per prompt, arrays of length W: `example`, `start`, `stop` (the slice, in tokens of the context), `length` (tokens
    with the answer and its end), `answer` (W, 2): the run of the context's tokens to be said, counted in the context,
    or (-1, -1) for the no-answer phrase.
    """

    def __init__(self, examples, tokenizer, chat, settings, *, with_labels=False, pad=0, progress=None):
        self.examples, self.settings, self.pad = examples, settings, pad
        self.layout = PromptLayout(tokenizer, chat, settings)
        self.texts = QuestionTexts(examples, tokenizer, settings.max_question, progress)
        self.unlabelled = []
        rows = [row for number in range(len(examples)) for row in self._example_rows(number, with_labels)]
        table = np.array(rows, np.int32).reshape(-1, 5)
        self.example, self.start, self.stop, self.answer = table[:, 0], table[:, 1], table[:, 2], table[:, 3:]
        said = np.where(self.answer[:, 0] < 0, len(self.layout.phrase), self.answer[:, 1] - self.answer[:, 0] + 1)
        self.said = said + 1  # (W,) tokens of the answers, with their end
        prompts = self.layout.fixed + self.texts.question_lengths[self.example] + self.stop - self.start
        self.length = (prompts + (self.said if with_labels else 0)).astype(np.int64)

    def __len__(self):
        return len(self.example)

    def _example_rows(self, number, with_labels):
        """(example, start, stop, answer first, answer last) of each prompt of one example."""
        settings, offsets = self.settings, self.texts.offsets(number)
        room = settings.length - self.layout.fixed - int(self.texts.question_lengths[number])
        room -= max(settings.max_answer, len(self.layout.phrase)) + 1
        if room <= settings.overlap:
            raise InputError(
                f"prompts of {settings.length} tokens leave {room} for the text, and neighbours share "
                f"{settings.overlap}: choose longer prompts"
            )
        span = None
        if with_labels and self.examples[number].answers:
            answer = self.examples[number].answers[0]
            span = label_tokens(offsets, answer.start, answer.end)
            if span is None or span[1] - span[0] >= settings.max_answer:
                self.unlabelled.append(number)
                return
        for begin in range(0, max(1, len(offsets)), room - settings.overlap):
            end = min(begin + room, len(offsets))
            inside = span is not None and begin <= span[0] and span[1] < end
            yield number, begin, end, *(span if inside else (-1, -1))
            if end == len(offsets):
                break

    def units(self, prompts):
        """What the loss of some prompts is divided by: the tokens to be said, ends included."""
        return int(self.said[prompts].sum())

    def slice_ids(self, prompt):
        """Ids of the context's tokens that a prompt shows."""
        return self.texts.context_ids(self.example[prompt], self.start[prompt], self.stop[prompt])

    def offsets(self, prompt):
        """Offsets (n, 2) into the original context of the tokens of one prompt's slice."""
        return self.texts.offsets(self.example[prompt], self.start[prompt], self.stop[prompt])

    def prompt_ids(self, prompt):
        """Ids of one prompt, up to where the model speaks."""
        layout, question = self.layout, self.texts.question_ids(self.example[prompt])
        return [*layout.head, *self.slice_ids(prompt), *layout.middle, *question, *layout.tail]

    def answer_ids(self, prompt):
        """Ids that are to be said after a prompt, the end included."""
        first, last = self.answer[prompt]
        if first < 0:
            return [*self.layout.phrase, self.layout.stop]
        return [*self.texts.context_ids(self.example[prompt], first, last + 1), self.layout.stop]

    def fill(self, prompts):
        """Arrays of a batch with answers, padded on the left to its longest.

        Returns input_ids (B, T) int64, attention_mask (B, T) bool, labels (B, T) int64: where the *next* token is one
        of the answer, that token, else IGNORED.
        """
        rows = [(self.prompt_ids(prompt), self.answer_ids(prompt)) for prompt in prompts]
        T = max(len(prompt) + len(answer) for prompt, answer in rows)
        batch = {
            "input_ids": np.full((len(rows), T), self.pad, np.int64),
            "attention_mask": np.zeros((len(rows), T), bool),
            "labels": np.full((len(rows), T), IGNORED, np.int64),
        }
        for row, (prompt, answer) in enumerate(rows):
            first = T - len(prompt) - len(answer)
            batch["input_ids"][row, first:] = prompt + answer
            batch["attention_mask"][row, first:] = True
            batch["labels"][row, T - len(answer) - 1 : T - 1] = answer
        return batch
