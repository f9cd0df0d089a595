"""common.files: what is refused, and that writing is all or nothing."""

import json
import os

import pytest

from common.errors import InputError
from common.files import parse_json, read_json, read_text, write_atomic, write_folder, write_json


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
        ("9" * 5000, "number that cannot be read"),
    ],
)
def test_what_is_not_json(text, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        parse_json(text, "some.json")
    assert str(error.value).startswith("some.json: ") and "\n" not in str(error.value)


def test_unreadable_files(tmp_path):
    (tmp_path / "latin").write_bytes("caf\xe9".encode("latin-1"))
    for path, sentence in ((tmp_path, "folder"), (tmp_path / "none", "no such file"), (tmp_path / "latin", "byte 3 is 0xe9")):
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
