"""For the downloader's tests: a named data set of two small files, and a server that follows a script."""

import hashlib
from dataclasses import replace

import pytest

from common.errors import InputError
from data import download, transfer
from data.download import RemoteFile, fetch
from tests.http_server import Reply, file_reply

TRAIN = bytes(range(256)) * 1000 + b"the odd end"
DEV = b"a small dev file"


def md5(data):
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def tiny_set(monkeypatch):
    """A named data set of two small files, quick retries, and no proxy between us and loopback."""
    files = (
        RemoteFile("train.bin", "http://127.0.0.1:9/train.bin", md5=md5(TRAIN), size=len(TRAIN)),
        RemoteFile("dev.bin", "http://127.0.0.1:9/dev.bin", md5=md5(DEV)),
    )
    monkeypatch.setitem(download.DATASETS, "tiny", files)
    monkeypatch.setattr(transfer, "FIRST_WAIT_SECONDS", 0.001)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def scripted(*steps):
    """Answer the requests for train.bin by `steps`, one each, the last for ever; dev.bin honestly.

    A step takes (request, the correct reply) and returns a reply.
    """
    left = list(steps)

    def answer(request):
        if request.path != "/train.bin":
            return file_reply(request, DEV)
        step = left.pop(0) if len(left) > 1 else left[0]
        return step(request, file_reply(request, TRAIN))

    return answer


def honest(request, reply):
    return reply


def cut(after):
    return lambda request, reply: replace(reply, cut_after=after)


def status(code):
    return lambda request, reply: Reply(code, b"<html>no</html>")


def get(server, cache, **options):
    options = {"timeout_seconds": 5, "attempts": 3} | options
    return fetch("tiny", cache, base_url=server.url, **options)


def ranges(server):
    return [r.headers.get("range") for r in server.requests if r.path == "/train.bin"]


def refusal(server, cache, **options):
    """Return the sentence of the InputError, after checking that no train file was left as if good."""
    with pytest.raises(InputError) as caught:
        get(server, cache, **options)
    assert not (cache / "tiny" / "train.bin").exists()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def assert_whole(paths, cache):
    train, dev = paths
    assert (train, dev) == (cache / "tiny" / "train.bin", cache / "tiny" / "dev.bin")
    assert train.read_bytes() == TRAIN and dev.read_bytes() == DEV
    visible = sorted(path.name for path in train.parent.iterdir() if not path.name.startswith("."))
    assert visible == ["dev.bin", "train.bin"]
