"""Questions of many clients in front of one Reader: a bounded queue, and the thread that works it off.

Questions that wait at the same time become a group and share forward passes, through whatever adapters, as long as
these cut texts alike (`Reader.sharing`). Groups take turns, one pass each, so a question about a sentence does not wait
for a question about a book. Nobody is made to wait for company: an idle queue begins with the first question it gets.

Worked example: a book of 500 windows is in work, 15 windows a pass, when three short questions come. The pass under
way ends, then all three are answered by the next pass, then the book goes on.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from data.documents import counted
from data.examples import Example

LONG_GROUPS = 8  # in work at a time of those that take many passes; each holds its texts as tokens
CHARACTERS_PER_TOKEN = 3  # of English some more; a guess that only decides who travels together
IDLE_SECONDS = 10  # without a question, until what work needed is given back
RETRY_SECONDS = (1, 60)  # least and most that a client is told to stay away


class Busy(Exception):
    """The queue cannot take this now. retry_after: seconds after which it may be worth another try."""

    def __init__(self, message, retry_after):
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(eq=False, slots=True)
class Question:
    """One question in the queue; `future` gets its Prediction, Busy after `deadline` (of time.monotonic), or an error.

    steps: other work to do with the model for it, a generator function of the Reader; what that returns is the result.
    Cancelling the future takes the question out: before its turn, or at the next forward pass.
    """

    question: str
    context: str
    adapter: str | None
    offer_null: bool
    deadline: float
    steps: Callable | None = None
    future: Future = field(default_factory=Future)
    _first: threading.Lock = field(default_factory=threading.Lock)

    @property
    def characters(self):
        return len(self.question) + len(self.context)

    def finish(self, result=None, error=None):
        """Settle the future, unless it is settled already or cancelled meanwhile; of two threads the first one does."""
        if self.future.done() or not self._first.acquire(blocking=False):
            return
        if not self.future.set_running_or_notify_cancel():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


@dataclass(eq=False, slots=True)
class Group:
    """Questions whose windows share forward passes. passes, seconds: how many so far, and what they took."""

    questions: list[Question]
    steps: object
    passes: int = -1  # the first step only tokenises
    seconds: float = 0.0


class AnswerQueue:
    """At most `capacity` unanswered questions, answered by a thread of its own until `close`.

    counts: how many questions were "answered", "late", "cancelled", "failed", refused as "shed"; "passes" counts
    forward passes and "groups" the groups that questions were in. idle: called when there was nothing to do for a
    while after work.
    """

    def __init__(self, reader, *, capacity, tokens_per_batch, idle=None):
        self._idle = idle or (lambda: None)
        self.reader, self.capacity, self.tokens_per_batch = reader, capacity, tokens_per_batch
        self.counts = Counter()
        self.unanswered = 0
        self._waiting = deque()
        self._closed = False
        self._seconds_per_question = 0.0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    @property
    def accepts(self):
        """Whether a question would be taken now."""
        return not self._closed and self._thread.is_alive() and self.unanswered < self.capacity

    def check_room(self, questions=1):
        """Raise Busy when so many questions could not be taken now, and count them as shed."""
        with self._changed:
            if not self._closed and self.unanswered + questions <= self.capacity:
                return
            self.counts["shed"] += questions
            if self._closed:
                raise Busy("the server is shutting down", RETRY_SECONDS[0])
            raise Busy(f"{counted(self.unanswered, 'question')} waiting already; try again later", self.retry_after())

    def submit(self, questions):
        """Take in all of the questions, or raise Busy and take none."""
        with self._changed:
            self.check_room(len(questions))
            self.unanswered += len(questions)
            for question in questions:
                question.future.add_done_callback(self._settled)
            self._waiting += questions
            self._changed.notify()

    def retry_after(self):
        """Seconds until what waits now should be answered, by the pace of late."""
        least, most = RETRY_SECONDS
        return min(max(math.ceil(self.unanswered * self._seconds_per_question), least), most)

    def close(self):
        """Answer what was accepted, take nothing more, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _settled(self, future):
        """A future's done-callback: in the thread that settled or cancelled it."""
        if future.cancelled():
            outcome = "cancelled"
        elif (error := future.exception()) is None:
            outcome = "answered"
        else:
            outcome = "late" if isinstance(error, Busy) else "failed"
        with self._changed:
            self.unanswered -= 1
            self.counts[outcome] += 1
            self._changed.notify()

    def _work(self):
        groups = deque()
        try:
            self._work_off(groups)
        finally:  # also after a mistake of ours: nobody waits for a thread that is gone
            with self._changed:
                self._closed = True
            for question in (*self._waiting, *(q for group in groups for q in group.questions)):
                question.finish(error=Busy("the server has stopped answering", RETRY_SECONDS[1]))

    def _work_off(self, groups):
        worked = False
        while True:
            with self._changed:
                busy = self._waiting or groups or self._closed or self._changed.wait(IDLE_SECONDS if worked else None)
                if self._closed and not (self._waiting or groups):
                    return
                expire(self._waiting)
                found = self._take_group(sum(map(self._long, groups)) < LONG_GROUPS)
            if not busy:
                worked = False
                self._idle()
            if found:
                worked = True
                groups.append(Group(found, self._steps(found)))
                self.counts["groups"] += 1
            if groups:
                group = groups.popleft()
                if self._advance(group):
                    groups.append(group)

    def _steps(self, questions):
        """The Reader's steps for a group's questions; a generator, so whatever goes wrong does so in a step."""
        if questions[0].steps is not None:
            return [(yield from questions[0].steps(self.reader))]
        examples = [Example(str(n), q.question, q.context, None, "question") for n, q in enumerate(questions)]
        return (
            yield from self.reader.steps(
                examples, adapter=[q.adapter for q in questions], offer_null=[q.offer_null for q in questions],
                tokens_per_batch=self.tokens_per_batch,
            )
        )

    @property
    def _room(self):
        """Characters that are about as many as a forward pass may read."""
        return self.tokens_per_batch * CHARACTERS_PER_TOKEN

    def _long(self, group):
        return sum(question.characters for question in group.questions) > self._room

    def _take_group(self, long_too):
        """Take waiting questions that may go with the first one, together about as long as a forward pass may be.

        long_too: whether one that is longer by itself may be taken; otherwise such wait, and others overtake them.
        """
        room, taken, left, kind = self._room, [], [], None
        for question in self._waiting:
            if question.future.done():
                continue
            if question.characters > self._room and not long_too:
                left.append(question)
                continue
            # one with steps of its own is alone in its group
            of_this = self.reader.sharing(question.adapter), question.steps and id(question)
            if not taken or of_this == kind and question.characters <= room:
                kind = of_this
                taken.append(question)
                room -= question.characters
            else:
                left.append(question)
        self._waiting = deque(left)
        return taken

    def _advance(self, group):
        """Take the group's next step; returns whether there may be another."""
        expire(group.questions)
        if all(question.future.done() for question in group.questions):
            group.steps.close()
            return False
        began = time.monotonic()
        try:
            next(group.steps)
        except StopIteration as end:
            self._learn_pace(group.seconds / len(group.questions))
            for question, prediction in zip(group.questions, end.value, strict=True):
                question.finish(prediction)
            return False
        except Exception as error:  # goes to those who asked; the thread has others to serve
            for question in group.questions:
                question.finish(error=error)
            return False
        group.passes += 1
        self.counts["passes"] += group.passes > 0
        group.seconds += time.monotonic() - began
        return True

    def _learn_pace(self, seconds):
        known = self._seconds_per_question
        self._seconds_per_question = 0.9 * known + 0.1 * seconds if known else seconds


def expire(questions):
    """Settle those whose deadline has passed."""
    now = time.monotonic()
    for question in questions:
        if question.deadline <= now:
            question.finish(error=Busy("the answer was not ready in time", RETRY_SECONDS[0]))
