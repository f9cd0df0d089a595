"""Vectors of passages that outlive the process: who is encoded again and who is not, and files that cannot be used."""

import os

import numpy as np
import pytest

import infer
from common.errors import InputError
from retrieval.collection import open_collection
from retrieval.kept import kept_file, kept_vectors, read_kept
from answering.reader import Reader
from retrieval.vectors import Embedder


class Counting:
    """An Embedder of three numbers that remembers what it was asked to encode."""

    size, fingerprint = 3, "one model"

    def __init__(self, fingerprint=fingerprint):
        self.fingerprint, self.encoded = fingerprint, []

    def __call__(self, texts, progress=None):
        self.encoded += texts
        if progress is not None:
            progress.update(len(texts))
        return np.array([[len(t), t.count("a"), 1] for t in texts], np.float32).reshape(-1, 3)


class Total:
    count = 0

    def update(self, number):
        self.count += number


def start(texts, path, notices=0):
    """What a start encodes; its vectors are those of the texts."""
    embedder, progress = Counting(), Total()
    vectors, found = kept_vectors(texts, embedder, path, progress)
    assert vectors.tolist() == Counting()(texts).tolist() and progress.count == len(texts)
    assert len(found) == notices, found
    return embedder.encoded


def test_only_what_is_new_is_encoded(tmp_path):
    path = tmp_path / "deep" / "kept.safetensors"
    assert start(["a river", "a mill", "a river"], path) == ["a river", "a mill"]
    assert start(["a mill", "a river", "a river"], path) == []
    assert start(["a mill", "a bridge"], path) == ["a bridge"]
    assert start(["a river"], path) == ["a river"]  # it was gone in between, and nothing is kept for ever
    assert len(read_kept(path, 3)) == 1 and os.listdir(path.parent) == [path.name]
    written = path.stat().st_mtime_ns
    assert start(["a river"], path) == [] and path.stat().st_mtime_ns == written
    assert start([], path) == [] and start(["\ud800"], path) == ["\ud800"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_vectors_are_for_their_owner_alone(tmp_path):
    start(["a mill"], tmp_path / "vectors" / "kept")
    assert (tmp_path / "vectors").stat().st_mode & 0o077 == 0


def changed(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("harm", [
    lambda data: b"", lambda data: b"not safetensors at all", lambda data: data[:-5], lambda data: changed(data, -40),
    lambda data: changed(data, 8), lambda data: changed(data, -1), lambda data: data.replace(b"vectors", b"vektors"),
    lambda data: b"\xff" * 8 + data[8:],
])
def test_a_damaged_file_is_made_anew_with_a_notice(tmp_path, harm):
    path, texts = tmp_path / "kept", ["a mill", "a river"]
    start(texts, path)
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    assert start(texts, path, notices=1) == texts
    assert path.read_bytes() == whole
    path.write_bytes(harm(whole))
    with pytest.raises(InputError, match="kept: vectors of documents, but not as they were written"):
        read_kept(path, 3)


def test_vectors_of_another_size_are_made_anew(tmp_path):
    start(["a mill"], tmp_path / "kept")
    wide = Counting()
    wide.size = 4
    with pytest.raises(InputError, match="not as they were written"):
        read_kept(tmp_path / "kept", wide.size)


def test_what_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "kept", tmp_path):
        vectors, notices = kept_vectors(["a mill"], Counting(), path)
        assert vectors.tolist() == [[6, 1, 1]]
        assert notices[-1].startswith(f"vectors are not kept for the next start: {tmp_path}")


def test_every_model_and_folder_has_a_file_of_its_own(tmp_path, tiny_folder):
    plain = Embedder(Reader.load(tiny_folder, device="cpu", precision="fp32"))
    rounded = Embedder(Reader.load(tiny_folder, device="cpu", precision="fp32", quant="nf4"))
    coarse = Embedder(Reader.load(tiny_folder, device="cpu", precision="bf16"))
    files = [kept_file(tmp_path, folder, one) for one in (plain, rounded, coarse) for folder in ("docs", "notes")]
    assert len(set(files)) == 6
    assert kept_file(tmp_path, tmp_path / "x" / ".." / "docs", plain) == kept_file(tmp_path, tmp_path / "docs", plain)
    again = Embedder(Reader.load(tiny_folder, device="cpu", precision="fp32"))
    assert kept_file(tmp_path, "docs", again) == files[0]


def test_a_document_that_changed_is_encoded_again_and_no_other(tmp_path):
    docs, encoded = tmp_path / "docs", {}
    docs.mkdir()
    for name in ("a", "b", "c"):
        (docs / f"{name}.txt").write_text(f"The text of {name}.")

    def opened(what, ranking="both"):
        embedder = Counting()
        collection, notices = open_collection(docs, ranking, lambda: embedder, cache=tmp_path / "cache")
        assert notices == []
        encoded[what] = list(embedder.encoded)
        return collection

    first = opened("at first").search("a?", 3)
    assert opened("the same").search("a?", 3) == first
    (docs / "b.txt").write_text("Another text.")
    opened("one changed", "vectors")
    (docs / "c.txt").unlink()
    opened("one gone")
    assert {what: sorted(texts) for what, texts in encoded.items()} == {
        "at first": ["The text of a.", "The text of b.", "The text of c."], "the same": [],
        "one changed": ["Another text."], "one gone": [],
    }


def test_the_command_keeps_them_where_it_is_told(tmp_path, tiny_folder, monkeypatch, capsys):
    monkeypatch.setenv("BAREQA_CACHE", str(tmp_path / "usual"))
    monkeypatch.setattr("prompt.documents.sentence_reader", lambda reader: reader)  # not MiniLM, to be quick
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("The mill was built by Ada.")
    flags = ["--model", tiny_folder, "--device", "cpu", "--precision", "fp32", "--docs", tmp_path / "docs"]

    def ask(*more):
        assert infer.main([*map(str, flags), "--question", "Who?", *map(str, more)]) == 0
        return capsys.readouterr()

    unkept = ask("--cache", "none")
    assert not (tmp_path / "usual").exists()
    assert ask() == unkept and len(list((tmp_path / "usual" / "vectors").iterdir())) == 1
    assert ask("--cache", tmp_path / "mine") == unkept and len(list((tmp_path / "mine").iterdir())) == 1
    (kept,) = (tmp_path / "mine").iterdir()
    kept.write_bytes(b"broken")
    again = ask("--cache", tmp_path / "mine")
    assert again.out == unkept.out and f"note: {kept}: vectors of documents, but not as they were written" in again.err
    assert again.err.count("\n") == unkept.err.count("\n") + 1
