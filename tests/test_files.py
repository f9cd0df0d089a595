"""common.files: what is refused, and that writing is all or nothing."""

import json
import os

import numpy as np
import pytest

from common.errors import InputError
from common.files import parse_json, read_json, read_text, write_atomic, write_folder, write_json, write_pairs
from common.spill import ArrayFile, Spill


def test_json_keeps_letters_and_escapes_lone_surrogates(tmp_path):
    path = tmp_path / "deep" / "x.json"
    value = {"fa": "می‌شود", "broken": "a\ud800b"}
    write_json(path, value)
    assert "می‌شود" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == value


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "the file is empty"),
        ('{"a": NaN}', "holds NaN"),
        ('{"a": [1, 2', "looks truncated"),
        ('{"a": "unfinished', "looks truncated"),
        ('{"a" 1}', "line 1, column 6"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "^some.json: holds a number with too many digits to be read$"),
    ],
)
def test_what_is_not_json(text, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        parse_json(text, "some.json")
    assert str(error.value).startswith("some.json: ") and "\n" not in str(error.value)


def test_a_fault_in_one_line_has_one_place():
    for text, sentence in (
        ('{"a": 1', "x: not JSON at line 7, column 8: Expecting ',' delimiter; the line looks truncated"),
        ("[NaN]", "x: line 7: holds NaN, which is not JSON; write a number or null instead"),
        ("9" * 5000, "x: line 7: holds a number with too many digits to be read"),
        ("[" * 100_000, "x: line 7: JSON nested too deeply to be a data set"),
    ):
        with pytest.raises(InputError) as error:
            parse_json(text, "x", 7)
        assert str(error.value) == sentence


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs POSIX devices")
def test_devices_are_not_read(tmp_path):
    os.symlink("/dev/zero", tmp_path / "link")
    for path in ("/dev/zero", tmp_path / "link"):
        with pytest.raises(InputError, match="this is a device, and a file is expected here"):
            read_text(path)
    assert read_text(os.devnull) == ""


def test_unreadable_files(tmp_path):
    (tmp_path / "latin").write_bytes("caf\xe9".encode("latin-1"))
    for path, sentence in (
        (tmp_path, "folder"), (tmp_path / "none", "no such file"), (tmp_path / "latin", "byte 3 is 0xe9"),
    ):
        with pytest.raises(InputError, match=sentence):
            read_text(path)


def test_bom_is_dropped_and_line_ends_are_kept(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_text(path) == '{"a": 1}\r\n' and read_json(path) == {"a": 1}


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomic(path, "old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_links_are_followed(tmp_path):
    (tmp_path / "deep").mkdir()
    file, new = tmp_path / "deep" / "file", tmp_path / "deep" / "new"
    file.write_text("old")
    os.symlink("deep/file", tmp_path / "link")
    os.symlink("link", tmp_path / "link to link")
    os.symlink("deep/new", tmp_path / "dangling")
    write_atomic(tmp_path / "link to link", "one")
    write_atomic(tmp_path / "dangling", "two")
    assert file.read_text() == "one" and new.read_text() == "two" and not new.is_symlink()
    assert all((tmp_path / name).is_symlink() for name in ("link", "link to link", "dangling"))
    assert sorted(os.listdir(tmp_path / "deep")) == ["file", "new"] and len(os.listdir(tmp_path)) == 4


def test_what_is_no_regular_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    os.symlink("fifo", tmp_path / "link")
    os.symlink("circle", tmp_path / "circle")
    before = sorted(os.listdir(tmp_path))
    for name, kind in (
        ("fifo", "not a regular file"), ("link", "not a regular file"), ("circle", "not a regular file"),
        ("folder", "a folder"),
    ):
        with pytest.raises(InputError) as error:
            write_atomic(tmp_path / name, "x")
        sentence = f"{tmp_path / name}: cannot be written (it is {kind}); name another file"
        assert str(error.value) == sentence
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "fifo").is_fifo() and (tmp_path / "circle").is_symlink()
    with pytest.raises(InputError, match="it is not a regular file"):
        write_atomic(os.devnull, "x")


def test_names_that_no_disk_takes(tmp_path):
    (tmp_path / "file").write_text("old")
    for path in (tmp_path / ("x" * 300), tmp_path / "file" / "inside"):
        with pytest.raises(InputError, match="cannot be written"):
            write_atomic(path, "x")
    assert os.listdir(tmp_path) == ["file"]


def test_folder_is_whole_or_old(tmp_path):
    def fill(text):
        return lambda folder: (folder / "a").write_text(text)

    path = tmp_path / "folder"
    write_folder(path, fill("one"))
    write_folder(path, fill("two"))
    assert (path / "a").read_text() == "two"

    def break_off(folder):
        (folder / "a").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        write_folder(path, break_off)
    assert (path / "a").read_text() == "two" and os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("value", [
    {}, {"a": 1}, {"a": [], "b\n\"": {"c": ["x\ny", 1.5, None]}, "é": "\ud800", "d": {}}, {"k": [{"text": "", "p": 0.25}] * 2},
])
def test_pairs_are_written_as_the_whole_would_be(tmp_path, value):
    write_json(tmp_path / "whole.json", value)
    write_pairs(tmp_path / "pairs.json", iter(value.items()))
    assert (tmp_path / "pairs.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_pairs_that_fail_half_way_leave_nothing(tmp_path):
    def pairs():
        yield "a", 1
        yield "b", float("nan")

    with pytest.raises(ValueError):
        write_pairs(tmp_path / "pairs.json", pairs())
    assert list(tmp_path.iterdir()) == []


def test_a_spill_gives_back_what_it_was_given():
    things = [("a", 1), {"b": [2.5] * 5000}, None, "ü"]
    spill = Spill(iter(things[:2]))
    assert list(spill) == things[:2]
    spill.extend(things[2:])
    assert list(spill) == things and len(spill) == 4 and spill[1] == things[1] and spill[-1] == "ü"
    assert [a == b for a, b in zip(spill, spill)] == [True] * 4  # two readers at once
    with pytest.raises(IndexError):
        spill[4]


def test_rows_on_the_disk_are_read_as_slices():
    rows = np.arange(46, dtype=np.int32).reshape(23, 2)
    stored = ArrayFile(np.int32, (2,))
    for part in (rows[:0], rows[:7], rows[7:8], rows[8:]):
        stored.append(part)
    assert len(stored) == 23
    for first, stop in ((0, 23), (0, 0), (5, 5), (6, 9), (20, 99), (9, 6)):
        found = stored[first:stop]
        assert found.dtype == np.int32 and found.shape == rows[first:stop].shape and (found == rows[first:stop]).all()
