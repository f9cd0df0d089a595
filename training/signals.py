"""SIGINT and SIGTERM as a polite request: finish the step, save, then leave."""

import signal
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """SIGTERM came where nobody notes it for later: leave at once, as after Ctrl-C."""


@contextmanager
def terminable():
    """A context in which SIGTERM raises Terminated, so that it can end in a sentence and exit code 143."""

    def leave(number, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopRequest:
    """A context in which the first SIGINT or SIGTERM only sets `number`; a second one acts as usual.

    number: of the signal, or None. The exit code that shells expect is 128 + number. once: that only one is passed
    over; under torchrun, which passes the terminal's signals on a second time, all are.
    """

    def __init__(self, once=True):
        self.number, self.once = None, once
        self._before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.number = number
        for each, handler in self._before.items() if self.once else ():
            signal.signal(each, handler)
