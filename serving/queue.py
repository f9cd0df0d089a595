"""Questions of many clients in front of one Reader: a bounded queue, and the lanes that work it off.

Questions that wait at the same time become a group and share forward passes, through whatever adapters, as long as
these cut texts alike (`Reader.sharing`). Groups take turns, one pass each, so a question about a sentence does not wait
for a question about a book. Nobody is made to wait for company: an idle queue begins with the first question it gets.
A lane is a thread that takes one group's turn after another, with its share of the cores (see `answering.lanes`).

Worked example of one lane: a book of 500 windows is in work, 15 windows a pass, when three short questions come. The
pass under way ends, then all three are answered by the next pass, then the book goes on.
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
IDLE = object()  # in place of a group's turn: nothing came for a while


class Busy(Exception):
    """The queue cannot take this now. retry_after: seconds after which it may be worth another try."""

    def __init__(self, message, retry_after):
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(eq=False, slots=True)
class Question:
    """One question in the queue; `future` gets its Prediction, Busy after `deadline` (of time.monotonic), or an error.

    steps: other work to do with the model for it, a generator function of the Reader; what it returns is the result.
    alone: whether no other lane may use the model during such a step.
    Cancelling the future takes the question out: before its turn, or at the next forward pass.
    """

    question: str
    context: str
    adapter: str | None
    offer_null: bool
    deadline: float
    steps: Callable | None = None
    alone: bool = False
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
    """Questions whose windows share forward passes. passes, seconds: how many so far, and what they took.

    alone: of its question, see there.
    """

    questions: list[Question]
    steps: object
    alone: bool
    passes: int = -1  # the first step only tokenises
    seconds: float = 0.0


class AnswerQueue:
    """At most `capacity` unanswered questions, answered by `lanes` threads of its own until `close`.

    tokens_per_batch: of the passes of all lanes together. counts: how many questions were "answered", "late", "cancelled",
    "failed", refused as "shed"; "passes" counts forward passes and "groups" the groups that questions were in. begin:
    called by each lane's thread before its work; idle: when there was nothing to do for a while after work.
    """

    def __init__(self, reader, *, capacity, tokens_per_batch, lanes=1, begin=None, idle=None):
        self._begin, self._idle = begin or (lambda: None), idle or (lambda: None)
        self.reader, self.capacity, self.tokens_per_batch = reader, capacity, max(tokens_per_batch // lanes, 1)
        self.counts = Counter()
        self.unanswered = 0
        self._waiting = deque()
        self._groups = deque()  # in work, until their next turn
        self._in_step = []  # groups whose turn it is
        self._alone = False  # whether one of these wants the model for itself
        self._worked = False  # since the last time it was idle
        self._closed = False
        self._seconds_per_question = 0.0
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, name=f"answers-{n}", daemon=True) for n in range(lanes)]
        for thread in self._threads:
            thread.start()

    @property
    def accepts(self):
        """Whether a question would be taken now."""
        alive = all(thread.is_alive() for thread in self._threads)
        return not self._closed and alive and self.unanswered < self.capacity

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
            self._changed.notify_all()

    def retry_after(self):
        """Seconds until what waits now should be answered, by the pace of late."""
        least, most = RETRY_SECONDS
        seconds = self.unanswered * self._seconds_per_question / len(self._threads)
        return min(max(math.ceil(seconds), least), most)

    def close(self):
        """Answer what was accepted, take nothing more, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

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
            self._changed.notify_all()

    def _work(self):
        """A lane's thread."""
        group = None
        try:
            self._begin()
            while (group := self._begin_turn()) is not None:
                if group is IDLE:
                    self._idle()
                    continue
                more = False
                try:
                    more = self._advance(group)
                finally:
                    self._end_turn(group, more)
        except BaseException:  # a mistake of ours: nobody waits for a thread that is gone
            with self._changed:
                self._closed = True
                groups = [*self._groups, *([group] if isinstance(group, Group) else [])]
                left = [*self._waiting, *(question for group in groups for question in group.questions)]
                self._waiting.clear()
                self._groups.clear()
                self._changed.notify_all()
            for question in left:
                question.finish(error=Busy("the server has stopped answering", RETRY_SECONDS[1]))
            raise

    def _begin_turn(self):
        """Wait for a group to take a step; IDLE after a while without any, None when there will be no more."""
        with self._changed:
            while True:
                expire(self._waiting)
                if not self._alone:
                    self._take_group_in()
                    if self._groups:
                        break
                if self._closed and not (self._waiting or self._groups):
                    return None
                came = self._changed.wait(IDLE_SECONDS if self._worked else None)
                if not came and self._worked and not (self._waiting or self._groups or self._in_step):
                    self._worked = False
                    return IDLE
            group = self._groups.popleft()
            self._alone = group.alone
            while group.alone and self._in_step:  # nobody begins another meanwhile
                self._changed.wait()
            self._in_step.append(group)
            self._worked = True
            return group

    def _end_turn(self, group, more):
        with self._changed:
            self._in_step.remove(group)
            self._alone = False if group.alone else self._alone
            if more:
                self._groups.append(group)
                self.counts["passes"] += group.passes > 0
            self._changed.notify_all()

    def _take_group_in(self):
        """Make a group of what waits, if there is anything that may be taken."""
        long = sum(map(self._long, (*self._groups, *self._in_step)))
        if found := self._take_group(long < LONG_GROUPS):
            self._groups.append(Group(found, self._steps(found), found[0].alone))
            self.counts["groups"] += 1

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
        group.seconds += time.monotonic() - began
        return True

    def _learn_pace(self, seconds):
        with self._changed:
            known = self._seconds_per_question
            self._seconds_per_question = 0.9 * known + 0.1 * seconds if known else seconds


def expire(questions):
    """Settle those whose deadline has passed."""
    now = time.monotonic()
    for question in questions:
        if question.deadline <= now:
            question.finish(error=Busy("the answer was not ready in time", RETRY_SECONDS[0]))
