"""The records every part passes around: a question about a text, and its reference answers."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Answer:
    """A reference: `text` stands in the context at code point `start`."""

    text: str
    start: int

    @property
    def end(self):
        """First code point after the answer."""
        return self.start + len(self.text)


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one context.

    `answers` is empty when the data say that there is no answer, and None when the file gives no
    references at all (a file of questions to be answered). `where` is the place in the source
    file, for messages: `data[3].paragraphs[0].qas[2]`. `context` is None for a question that is not about
    a text; then answers stand nowhere (start -1), and `history` holds the turns that came before.
    """

    id: str
    question: str
    context: str | None
    answers: tuple[Answer, ...] | None
    where: str
    title: str = ""
    history: tuple[tuple[str, str], ...] = ()  # (role, text)


def is_blank(text):
    """Whether nothing of a text can be seen: white space, controls, joiners and the like alone."""
    return not any(character.isprintable() and not character.isspace() for character in text)


@dataclass(slots=True)
class Dataset:
    """Examples in file order, and what was noticed while reading them (one sentence each)."""

    examples: list[Example]
    notices: list[str] = field(default_factory=list)

    @property
    def has_texts(self):
        """Whether the questions are about texts; a data set has one kind only."""
        return self.examples[0].context is not None

    @property
    def may_lack_answer(self):
        """Whether any question has no answer: then a model must be able to say so."""
        return any(example.answers == () for example in self.examples)
