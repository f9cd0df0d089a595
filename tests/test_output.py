"""A standard output that is full, closed or has lost its reader, in a small program and in the real ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys
from common.output import guarded_main

@guarded_main("it.py")
def main(argv=None):
    {body}
    return 0

sys.exit(main())
"""
BODIES = {
    "at the last flush": "print('a')",
    "in the middle": "print('a', flush=True)",
    "longer than the buffer": "print('a' * 1_000_000)",
    "while leaving": "print('a'); sys.exit(0)",
    "argparse": "__import__('argparse').ArgumentParser().parse_args(['--help'])",
}


@pytest.fixture
def full():
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as file:
        yield file


@pytest.fixture
def gone():
    """A pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def outcome(command, stdout, **environ):
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environ}
    done = subprocess.run(
        [sys.executable, *map(str, command)], stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
        text=True, env=environ, cwd=ROOT, timeout=120,
    )
    return done.returncode, done.stderr


def test_all_bodies_are_there():
    assert len(BODIES) == 5


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_or_without_a_reader(body, unbuffered, full, gone):
    command = ["-c", PROGRAM.format(body=body)]
    sentence = "it.py: standard output cannot be written (No space left on device)\n"
    assert outcome(command, full, PYTHONUNBUFFERED=unbuffered) == (1, sentence)
    assert outcome(command, gone, PYTHONUNBUFFERED=unbuffered) == (1, "")


def test_other_failures_keep_their_traceback(tmp_path, gone):
    for body in ("open('/no/such/file')", "raise BrokenPipeError('a socket')", "print('a'); 1 / 0"):
        code, err = outcome(["-c", PROGRAM.format(body=body)], subprocess.DEVNULL)
        assert code == 1 and "Traceback" in err


def closed(*command):
    shell = ["-c", "import os, sys; os.close(1); os.execv(sys.executable, sys.argv[1:])", sys.executable, *command]
    return outcome(shell, subprocess.DEVNULL)


def test_programs(tmp_path, full, gone, tiny_folder):
    answers = [{"text": "car", "answer_start": 0}]
    entry = {"id": "q", "question": "?", "answers": answers}
    document = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "car", "qas": [entry]}]}]}
    data, predictions = tmp_path / "data.json", tmp_path / "predictions.json"
    data.write_text(json.dumps(document))
    predictions.write_text('{"q": "car"}')
    ask = ["--model", tiny_folder, "--question", "q", "--context", "some words"]
    for name, command in {
        "infer.py": ["infer.py", *ask],
        "python -m data": ["-m", "data", data],
        "python -m metrics": ["-m", "metrics", data, predictions],
    }.items():
        code, err = outcome(command, full)
        assert code == 1 and err.splitlines()[-1] == (
            f"{name}: standard output cannot be written (No space left on device)"
        )
        code, err = outcome(command, gone)
        assert code == 1 and "Traceback" not in err and "Broken" not in err and "Exception" not in err
        assert closed(*map(str, command)) == (1, f"{name}: standard output is closed\n")


def test_a_program_that_keeps_going_outlives_its_reader():
    code = (
        "import sys, time\n"
        "from common.output import guarded_main\n"
        "@guarded_main('x', keep_going=True)\n"
        "def main():\n"
        "    sys.stdin.read()  # by now nobody reads our output\n"
        "    for _ in range(9): print('word ' * 5000, flush=True)\n"
        "    print('survived', file=sys.stderr)\n"
        "    return 0\n"
        "sys.exit(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    process.stdin.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (0, "survived\n")
