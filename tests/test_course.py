"""The course of docs/inside/: every block is run, every number held against what is printed, every link followed."""

import ast
import re

import pytest

from tests import course
from tests.course import CHAPTERS, NUMBER, ROOT, Misfit, blocks, check, difference, parts

LINK = re.compile(r"\[([^\]]+)\]\(([^)#]+)\)")
CITATION = re.compile(  # numbers that name things, and headings' own
    r"et\s+al\.\s+\d{4}|(?:[Cc]hapters?|section|equation)\s+\d+(?:\.\d+)*(?:\s+to\s+\d+)?|^#+ \d\. ", re.MULTILINE
)
IDS = [path.stem for path in CHAPTERS]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like the project's, in which what the chapters write stays apart from the user's own runs."""
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".git", ".venv"):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def prose(text):
    return "\n".join(part for part in parts(text) if isinstance(part, str))


def test_there_are_six_chapters_and_the_index_has_them_in_order():
    index = (ROOT / "docs/inside/README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\d-[^)]*\.md)\)", index) == [path.name for path in CHAPTERS]
    assert [path.name[0] for path in CHAPTERS] == list("123456")


@pytest.mark.parametrize("path", CHAPTERS, ids=IDS)
def test_every_block_prints_what_stands_below_it(path, checkout):
    check(path.read_text(encoding="utf-8"), path)


@pytest.mark.parametrize("path", CHAPTERS, ids=IDS)
def test_every_number_of_the_prose_is_one_of_the_blocks(path):
    """Rounded to the digits that the prose gives."""
    text = path.read_text(encoding="utf-8")
    ran = "\n".join(block.source + (block.output or "") for block in blocks(text))
    known = [course.value(match) for match in NUMBER.finditer(ran)]
    said = CITATION.sub(" ", LINK.sub(r"\1", prose(text)))
    found = list(NUMBER.finditer(said))
    assert found
    for match in found:
        near = course.unit(match) / 2 * (1 + 1e-9)
        assert any(abs(abs(course.value(match)) - abs(number)) <= near for number in known), match[0]


def defined(path):
    """Dotted names of the functions, classes, methods and constants of a source file."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("path", [*CHAPTERS, ROOT / "docs/inside/README.md"], ids=[*IDS, "index"])
def test_links_lead_to_files_and_to_functions_that_are_there(path):
    links = LINK.findall(path.read_text(encoding="utf-8"))
    assert links
    for label, target in links:
        file = (path.parent / target).resolve()
        assert file.is_file(), target
        if file.suffix == ".py" and label != f"`{file.relative_to(ROOT)}`":
            assert label.strip("`") in defined(file), f"{label} is not in {target}"


def mutations(text):
    """Each number of a text made a little larger: by 1 where it is whole, else by 5 % and three of its last digits."""
    for match in NUMBER.finditer(text):
        number = course.value(match)
        whole = not match["decimals"]
        places = 0 if whole else len(match["decimals"]) - 1
        changed = number + 1 if whole else abs(number) * 1.05 + number - abs(number) + 3 * 10**-places
        yield text[: match.start()] + f"{changed:.{places}f}" + text[match.end() :]


def test_a_changed_number_anywhere_in_the_chapters_is_noticed():
    seen = 0
    for path in CHAPTERS:
        for block in blocks(path.read_text(encoding="utf-8")):
            assert difference(block.output or "", block.output or "") is None
            for changed in mutations(block.output or ""):
                assert difference(changed, block.output), changed
                assert difference(block.output, changed), changed
                seen += 1
    assert seen > 500


@pytest.mark.parametrize(
    "printed",
    ["F1 61.3 of 24", "F1  61.2   of 24\n", "F1 61.8 of 24"],  # a last digit, blanks, within a hundredth
)
def test_what_agrees(printed):
    assert difference("F1 61.2 of 24", printed) is None


@pytest.mark.parametrize(
    "printed",
    [
        "F1 61.9 of 24", "F1 61.2 of 25", "F1 61 of 24", "F1 61.2 by 24", "F1 61.2 of 24 25", "F1 61.2",
        "F1 61.2\nof 24", "F1 nan of 24",
    ],
)
def test_what_does_not(printed):
    assert difference("F1 61.2 of 24", printed)


CHAPTER = "# 1. T\n\nWords.\n\n```python\nx = 40\n```\n\n```python\nprint(x + 2)\n```\n\n```output\n42\n```\n"


def test_blocks_share_their_names_and_a_right_chapter_passes():
    check(CHAPTER, "here")
    assert [type(part).__name__ for part in parts(CHAPTER)] == ["str", "Block", "Block"]


@pytest.mark.parametrize(
    "change, message",
    [
        (("42", "43"), "expected 43"),
        (("```output\n42\n```\n", ""), "no output stands below"),
        (("x = 40\n```", "x = 40\n```\n\n```output\n40\n```"), "none was printed"),
        (("```python\nx", "```text\nx"), "is not executed"),
        (("```python\nx", "```\nx"), "is not executed"),
        (("```output", "Words.\n\n```output"), "no block stands above"),
        (("print(x + 2)\n```", "print(x + 2)\n"), "does not end"),
        (("```python\nprint(x + 2)", "```sh\nexit 3"), "exit code 3"),
        (("```python\nprint(x + 2)", "```sh\nfalse | echo 42"), "exit code 1"),
    ],
)
def test_a_chapter_that_is_not_as_it_is_run_is_refused(change, message):
    assert change[0] in CHAPTER
    with pytest.raises(Misfit, match=message):
        check(CHAPTER.replace(*change), "here")


def test_commands_run_under_this_python():
    check("```sh\npython -c 'print(6 * 7)' | cat\n```\n\n```output\n42\n```\n", "here")


def test_the_command_prints_a_chapter_and_writes_it_where_asked(tmp_path, monkeypatch, capsys):
    path = tmp_path / "1-t.md"
    path.write_text(CHAPTER.replace("42", "41"), encoding="utf-8")
    monkeypatch.setattr(course, "CHAPTERS", [path])
    assert course.main(["1"]) == 0
    assert "```output\n42\n```" in capsys.readouterr().out
    assert "41" in path.read_text(encoding="utf-8")
    assert course.main(["1", "--write"]) == 0
    assert path.read_text(encoding="utf-8") == CHAPTER
