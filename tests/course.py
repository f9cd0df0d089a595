"""The chapters of docs/inside/: their blocks run in order, and what they print held against what stands there.

    python -m tests.course 4              # run chapter 4 and print it, with what its blocks print here
    python -m tests.course 4 --write      # put what they print here into the chapter

Blocks of Python share one namespace. A command's `python` is the one that runs this; its exit code has to be 0, and its
standard error, where notes and progress bars go, does not count.
"""

import argparse
import contextlib
import io
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "docs/inside").glob("[1-9]-*.md"))
TOLERANCE = 0.01  # of a number with a decimal point, or one unit of its last digit where that is more
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?P<decimals>\.\d+)?(?:e[-+]?\d+)?(?!\w)")
FENCE = "```"


class Misfit(AssertionError):
    """A chapter is not well made, or something else was printed than stands in it."""


@dataclass
class Block:
    """kind: "python" or "sh". line: of its first line in the file, from 1. output: None where none stands below it."""

    kind: str
    line: int
    source: str
    output: str | None = None


def parts(text):
    """A chapter as a list of Blocks and of runs of prose (str); Misfit for a fence that is neither run nor printed."""
    found, prose, block = [], [], None
    for number, line in enumerate(text.splitlines(), start=1):
        if block is None and line.startswith(FENCE):
            kind, output_of = line.removeprefix(FENCE), found[-1] if found else None
            if kind not in ("python", "sh", "output"):
                raise Misfit(f"line {number}: a block of {kind or 'no kind'} is not executed")
            if kind == "output" and (any(map(str.strip, prose)) or not isinstance(output_of, Block)):
                raise Misfit(f"line {number}: output that no block stands above")
            if kind != "output" and any(map(str.strip, prose)):
                found.append("\n".join(prose))
            prose, block = [], Block(kind, number + 1, "")
        elif block is not None and line.startswith(FENCE):
            if line != FENCE:
                raise Misfit(f"line {block.line - 1}: a block that does not end")
            if block.kind == "output":
                found[-1].output = block.source
            else:
                found.append(block)
            block = None
        elif block is not None:
            block.source += line + "\n"
        else:
            prose.append(line)
    if block is not None:
        raise Misfit(f"line {block.line - 1}: a block that does not end")
    return [*found, "\n".join(prose)] if any(map(str.strip, prose)) else found


def blocks(text):
    """The Blocks of a chapter."""
    return [part for part in parts(text) if isinstance(part, Block)]


def execute(block, namespace, path):
    """What a block prints, run in the current folder; Misfit for a command that fails."""
    if block.kind == "python":
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("\n" * (block.line - 1) + block.source, path, "exec"), namespace)
        return printed.getvalue()
    command = re.sub(r"^python\b", lambda _: shlex.quote(sys.executable), block.source, flags=re.MULTILINE)
    shell = ["bash", "-e", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise Misfit(f"{path}, line {block.line}: exit code {done.returncode}: {done.stderr}")
    return done.stdout


def pieces(text):
    """(what stands between the numbers, the matches of the numbers); runs of blanks count as one, ends of lines not."""
    text = "\n".join(" ".join(line.split()) for line in text.strip().splitlines())
    return NUMBER.split(text)[:: NUMBER.groups + 1], list(NUMBER.finditer(text))


def value(match):
    return float(match[0].replace(",", ""))


def unit(match):
    """What one step of a number's last digit is worth: 0.01 of "3.25", 1e-8 of "3.2e-07"."""
    exponent = match[0].lower().partition("e")[2]
    return 10.0 ** (int(exponent or 0) - len((match["decimals"] or ".")[1:]))


def agrees(expected, printed):
    """Whether a printed number is the expected one: whole numbers exactly, others within TOLERANCE."""
    if not expected["decimals"] or not printed["decimals"]:
        return expected[0] == printed[0]
    allowed = max(unit(expected), TOLERANCE * abs(value(expected)))
    return abs(value(expected) - value(printed)) <= allowed * (1 + 1e-9)


def difference(expected, printed):
    """One sentence on the first place where `printed` is not what was expected, None when it is."""
    (texts, numbers), (other_texts, other_numbers) = pieces(expected), pieces(printed)
    for k, (text, other) in enumerate(zip(texts, other_texts)):
        if text != other:
            return f"expected {text!r}, printed {other!r}"
        if k < min(len(numbers), len(other_numbers)) and not agrees(numbers[k], other_numbers[k]):
            return f"expected {numbers[k][0]} after {text[-40:]!r}, printed {other_numbers[k][0]}"
    return None if len(texts) == len(other_texts) else f"printed {len(other_numbers)} numbers, expected {len(numbers)}"


def check(text, path):
    """Run a chapter; Misfit at the first block that prints something else than stands below it, or anything unsaid."""
    namespace = {"__name__": "course"}
    for block in blocks(text):
        printed = execute(block, namespace, path)
        if (block.output is None) != (not printed.strip()):
            raise Misfit(f"{path}, line {block.line}: no output stands below it, or none was printed: {printed!r}")
        if block.output is not None and (found := difference(block.output, printed)):
            raise Misfit(f"{path}, line {block.line}: {found}")


def rerun(text, path):
    """Yield a chapter's text part by part, with the outputs that its blocks have here and now."""
    namespace = {"__name__": "course"}
    for part in parts(text):
        if isinstance(part, str):
            yield part.strip("\n") + "\n\n"
            continue
        yield f"{FENCE}{part.kind}\n{part.source}{FENCE}\n\n"
        printed = "\n".join(line.rstrip() for line in execute(part, namespace, path).strip("\n").splitlines())
        if printed:
            yield f"{FENCE}output\n{printed}\n{FENCE}\n\n"


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.course", description=__doc__.splitlines()[0])
    parser.add_argument("chapter", type=int, choices=range(1, len(CHAPTERS) + 1))
    parser.add_argument("--write", action="store_true", help="put what is printed here into the chapter")
    options = parser.parse_args(argv)
    path = CHAPTERS[options.chapter - 1]
    text = ""
    for part in rerun(path.read_text(encoding="utf-8"), path):
        print(part, end="", flush=True)
        text += part
    if options.write:
        path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
