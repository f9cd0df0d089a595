"""What commands say: refusals in one sentence, and a standard output that closes early or is full.

The latter without a traceback, and with an exit code that says so.
"""

import argparse
import functools
import os
import sys

from common.errors import InputError


class SentenceParser(argparse.ArgumentParser):
    """An ArgumentParser that refuses with an InputError, where argparse prints its usage and leaves."""

    def error(self, message):
        """Raise it; without the shields of common/options.py, which argparse shows as \\x00."""
        raise InputError("command line: {} (see --help)".format(message.replace(r"\x00", "")))


def is_first(environ=os.environ):
    """Whether this process is the one that speaks: the first of those that torchrun started, or the only one."""
    return environ.get("RANK", "0") == "0"


def signed(program, environ=os.environ):
    """`program` as errors begin with it; under torchrun the other processes say which one they are."""
    return program if is_first(environ) else f"{program}: rank {environ['RANK']}"


def guarded_main(program, keep_going=False):
    """Decorate an entry point's `main(argv=None)`, which returns an exit code, as `@guarded_main("train.py")`.

    When standard output cannot be written, in `main` or at the last flush, the exit code is 1: quietly when
    its reader has gone (`| head`), else after one sentence on stderr that begins with `program` (a full
    disk; closed from the start, and then `main` is not called). All other exceptions pass unchanged, also
    an OSError that has nothing to do with standard output. keep_going: `main` works on without an output
    instead (a training should outlive the reader of its notices).
    """

    def decorate(main):
        @functools.wraps(main)
        def guarded(*arguments, **options):
            stream = sys.stdout
            if stream is None:  # started with it closed; the next file opened would get its number
                sys.stderr.write(f"{program}: standard output is closed\n")
                return 1
            sys.stdout = _Output(stream, keep_going)
            try:
                return _flushed(main, arguments, options)
            except OutputError as error:
                if not isinstance(error.__cause__, BrokenPipeError):
                    reason = error.__cause__.strerror or error.__cause__
                    sys.stderr.write(f"{program}: standard output cannot be written ({reason})\n")
                _discard(stream)
                return 1
            finally:
                sys.stdout = stream

        return guarded

    return decorate


def in_a_sentence(program, stopped="interrupted"):
    """Decorate a command's main(argv=None): InputError becomes a sentence and exit code 2, Ctrl-C one (`stopped`) and 130."""

    def decorate(main):
        @functools.wraps(main)
        def spoken(argv=None):
            try:
                return main(argv)
            except InputError as error:
                print(f"{program}: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print(f"{program}: {stopped}", file=sys.stderr)
                return 130

        return spoken

    return decorate


class OutputError(Exception):
    """Standard output cannot be written; the cause is the OSError.

    It is no OSError itself, so that nobody who expects trouble with a file catches it (argparse does).
    """


class _Output:
    """A stream whose failures are told apart from those of other files."""

    def __init__(self, stream, keep_going):
        self._stream, self._keep_going = stream, keep_going

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self):
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error):
        if not self._keep_going:
            raise OutputError from error
        if not isinstance(error, BrokenPipeError):
            print(f"standard output cannot be written ({error.strerror}); going on without it", file=sys.stderr)
        _discard(self._stream)


def _flushed(main, arguments, options):
    try:
        code = main(*arguments, **options)
    except SystemExit:  # --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def _discard(stream):
    """Send what is still buffered nowhere, since Python flushes once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
