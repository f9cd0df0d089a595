"""From a checked request to its answer: whose adapter, may it be "no answer", waiting in the queue, leaving early."""

import asyncio
import time
from dataclasses import dataclass

from common.errors import InputError
from prompt.answers import describe
from serving.queue import Question, expire

BARE = "none"  # the name of the base without an adapter, as at the prompt
ALIAS = "bareqa"  # a name that dialects' clients may use for whatever is served


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of a request. adapter: a name, BARE, or None for the usual one. no_answer: whether that may be said.

    no_answer None leaves it to the reader's settings; True where those have no threshold takes 0.
    """

    question: str
    context: str
    top_k: int = 5
    adapter: str | None = None
    no_answer: bool | None = None


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class UnknownModel(InputError):
    """A dialect's client names a model that is not here."""


class Service:
    """A Reader's answers by way of an AnswerQueue.

    name: what the model is called; seconds: longest that a question may take; max_top_k: most candidates on request.
    """

    def __init__(self, reader, queue, *, name, seconds, max_top_k):
        self.reader, self.queue, self.name = reader, queue, name
        self.seconds, self.max_top_k = seconds, max_top_k
        self.adapters = [adapter for adapter in reader.all_settings if adapter is not None]
        self.usual = reader.adapter
        self.began = time.time()

    def adapter_of(self, name):
        """The Reader's adapter for a request's; InputError for one that is not here or cannot answer."""
        if name is None:
            return self.usual
        if name == BARE and self.reader.report.head_is_new:
            raise InputError("adapter: the bare model has no head for answers that was ever trained")
        if name != BARE and name not in self.adapters:
            raise InputError(f"adapter: there is none of that name; there are {', '.join(self.choices())}")
        return None if name == BARE else name

    def choices(self):
        """What a request's adapter may be called."""
        return [*self.adapters, *([] if self.reader.report.head_is_new else [BARE])]

    def adapter_of_model(self, model):
        """The adapter name (as in a request) behind a dialect's model name, `NAME` or `NAME:ADAPTER`; UnknownModel."""
        name, _, adapter = model.partition(":")
        if name in (self.name, ALIAS) and adapter in ("", "latest", *self.choices()):
            return None if adapter in ("", "latest") else adapter
        raise UnknownModel(f"there is no such model here; there are {', '.join(self.model_names())}")

    def model_names(self):
        """What dialects list: the model with its usual adapter, and with each of the others."""
        return [self.name, *(f"{self.name}:{adapter}" for adapter in self.adapters)]

    def threshold_of(self, adapter, no_answer):
        """The null threshold to decode with, None where "no answer" is not on offer."""
        stored = self.reader.all_settings[adapter].null_threshold
        if no_answer is None:
            return stored
        return (0.0 if stored is None else stored) if no_answer else None

    def check_top_k(self, top_k):
        if not 1 <= top_k <= self.max_top_k:
            raise InputError(f"top_k: expected 1 to {self.max_top_k}")

    async def predict(self, request, asked, seconds=None):
        """[(Prediction, threshold)] of a list of Asked; Busy when it is not to be had, ClientLeft.

        request: a starlette Request, whose client may leave. seconds: a deadline shorter than the server's.
        """
        adapters = [self.adapter_of(one.adapter) for one in asked]
        thresholds = [self.threshold_of(a, one.no_answer) for a, one in zip(adapters, asked, strict=True)]
        for one in asked:
            self.check_top_k(one.top_k)
        deadline = self.deadline(seconds)
        questions = [
            Question(one.question, one.context, adapter, threshold is not None, deadline)
            for one, adapter, threshold in zip(asked, adapters, thresholds, strict=True)
        ]
        return list(zip(await self.settled(request, questions), thresholds, strict=True))

    def deadline(self, seconds=None):
        """When a question that came now is given up, by time.monotonic; seconds: a shorter time than the server's."""
        return time.monotonic() + min(self.seconds, seconds or self.seconds)

    async def settled(self, request, questions):
        """What the queue makes of some Questions; Busy, ClientLeft."""
        self.queue.submit(questions)
        answers = asyncio.gather(*(asyncio.wrap_future(question.future) for question in questions))
        answers.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, or asyncio logs it
        leaving = asyncio.create_task(client_leaves(request))
        try:
            left = min(question.deadline for question in questions) - time.monotonic()
            await asyncio.wait({answers, leaving}, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if not (answers.done() or leaving.done()):
                expire(questions)  # the queue looks at deadlines between passes, and one may take long
                await asyncio.wait({answers, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                raise ClientLeft
            return answers.result()
        finally:
            leaving.cancel()
            for question in questions:
                question.future.cancel()

    async def answer(self, request, asked, seconds=None):
        """The description of each answer (see `prompt.answers.describe`), as all of this API gives it."""
        began = time.perf_counter()
        found = await self.predict(request, asked, seconds)
        took = time.perf_counter() - began
        return [
            describe(prediction, threshold, took, one.top_k, windows=True)
            for one, (prediction, threshold) in zip(asked, found, strict=True)
        ]

    def information(self):
        """What is served, for GET /api/model/info; no path of this machine is in it."""
        settings = self.reader.settings
        return {
            "name": self.name,
            "adapters": self.adapters,
            "adapter": self.usual,
            "precision": self.reader.precision,
            "device": str(self.reader.device),
            "parameters": sum(parameter.numel() for parameter in self.reader.model.parameters()),
            "window_tokens": settings.length,
            "question_tokens": self.reader.question_limit,
            "answer_tokens": settings.answer_limit,
            "null_threshold": settings.null_threshold,
            "max_top_k": self.max_top_k,
            "deadline_seconds": self.seconds,
            "queue": self.queue.capacity,
        }


async def client_leaves(request):
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
