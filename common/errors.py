"""The one exception that is meant for the person at the keyboard."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one clear sentence: which file, where in it, what was expected, what to do.
    Entry points print it on stderr and exit with code 2; every other exception is a bug of ours
    and keeps its traceback.
    """


class RankLost(RuntimeError):
    """Another process of a run under torchrun ended, or cannot be reached."""
