"""Transfers from a server that cuts, stalls, lies, sends wrong bytes and changes its mind."""

from dataclasses import replace

import pytest

from data import download, transfer
from tests.http_server import Reply, file_reply, serve
from tests.tiny_dataset import (
    DEV, TRAIN, assert_whole, cache, cut, get, honest, md5, ranges, refusal, scripted, status, tiny_set,
)

assert cache and tiny_set  # fixtures
pytestmark = pytest.mark.usefixtures("tiny_set")


@pytest.fixture
def size_unknown(tiny_set, monkeypatch):
    """Leave only the checksums to tell a whole file."""
    files = [replace(file, size=None) for file in download.DATASETS["tiny"]]
    monkeypatch.setitem(download.DATASETS, "tiny", tuple(files))


@pytest.mark.parametrize("after", [0, 1, 70_000, len(TRAIN) - 1])
def test_a_cut_connection_is_resumed_where_it_broke(cache, after):
    with serve(scripted(cut(after), honest)) as server:
        assert_whole(get(server, cache), cache)
        assert ranges(server) == [None, f"bytes={after}-" if after else None]
        if after:
            etag = file_reply(server.requests[0], TRAIN).headers["ETag"]
            assert server.requests[1].headers["if-range"] == etag


def test_a_stall_ends_by_the_timeout_and_is_resumed(cache):
    stall = lambda request, reply: replace(reply, stall_after=100_000)  # noqa: E731
    with serve(scripted(stall, honest)) as server:
        assert_whole(get(server, cache, timeout_seconds=0.3), cache)
        assert ranges(server) == [None, "bytes=100000-"]


def test_a_server_that_only_stalls_is_given_up(cache):
    stall = lambda request, reply: replace(reply, body=TRAIN, stall_after=0)  # noqa: E731
    with serve(scripted(stall)) as server:
        sentence = refusal(server, cache, timeout_seconds=0.1, attempts=2)
        assert "nothing came for 0.1 seconds (2 attempts)" in sentence
        assert len(ranges(server)) == 2


def test_progress_starts_the_count_of_attempts_anew(cache):
    """Six cuts, each a little further on, with three attempts allowed: the file still arrives."""
    with serve(scripted(*[cut(1000)] * 6, honest)) as server:
        assert_whole(get(server, cache, attempts=3), cache)
        assert ranges(server) == [None] + [f"bytes={n * 1000}-" for n in range(1, 7)]


def test_cuts_that_never_get_further_end(cache):
    whole_but_cut = lambda request, reply: Reply(body=TRAIN, cut_after=500)  # noqa: E731
    with serve(scripted(whole_but_cut)) as server:
        sentence = refusal(server, cache, attempts=3)
        assert f"the connection ended {len(TRAIN) - 500:,} bytes too early (3 attempts)" in sentence
        assert len(ranges(server)) == 3


def test_a_server_that_ignores_ranges_makes_it_start_over(cache):
    ignore = lambda request, reply: Reply(body=TRAIN)  # noqa: E731
    with serve(scripted(cut(5000), ignore)) as server:
        assert_whole(get(server, cache), cache)
        assert ranges(server) == [None, "bytes=5000-"]


def test_a_file_that_changes_between_the_parts_is_fetched_from_zero(cache):
    old = b"x" * len(TRAIN)
    first = lambda request, reply: replace(file_reply(request, old), cut_after=4000)  # noqa: E731
    with serve(scripted(first, honest)) as server:
        assert_whole(get(server, cache), cache)
        assert ranges(server) == [None, "bytes=4000-"]  # If-Range: the server answered 200


def test_a_changed_file_is_noticed_though_the_server_ignores_if_range(cache):
    old = b"x" * len(TRAIN)
    first = lambda request, reply: replace(file_reply(request, old), cut_after=4000)  # noqa: E731

    def careless(request, reply):
        headers = {name: value for name, value in request.headers.items() if name != "if-range"}
        return file_reply(replace(request, headers=headers), TRAIN)

    with serve(scripted(first, careless, first, careless)) as server:
        sentence = refusal(server, cache, attempts=2)  # the second transfer is no progress, so the last
        assert "the file changed at the server between two parts (2 attempts)" in sentence
        assert_whole(get(server, cache), cache)
        assert ranges(server) == [None, "bytes=4000-", None, "bytes=4000-", None]


def test_a_rest_that_starts_elsewhere_is_thrown_away(cache):
    def elsewhere(request, reply):
        if "range" not in request.headers:
            return reply
        return file_reply(replace(request, headers={"range": "bytes=7-"}), TRAIN)

    with serve(scripted(cut(4000), elsewhere)) as server:
        assert_whole(get(server, cache), cache)
        assert ranges(server) == [None, "bytes=4000-", None]


@pytest.mark.parametrize("total", [len(TRAIN), "*"])
def test_a_rest_may_come_in_parts(cache, total):
    def some(request, reply):
        start = int(request.headers["range"].removeprefix("bytes=").split("-")[0])
        part = TRAIN[start : start + 3000]
        extent = {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{total}"}
        return replace(reply, status=206, body=part, headers=reply.headers | extent)

    with serve(scripted(cut(4000), some, some, honest)) as server:
        assert_whole(get(server, cache), cache)
        assert ranges(server) == [None, "bytes=4000-", "bytes=7000-", "bytes=10000-"]


@pytest.mark.parametrize("address", ["http://[bad", "http://a\nb/"])
def test_a_redirect_to_nowhere_is_one_sentence(cache, address):
    with serve(lambda request: Reply(302, headers={"Location": address.replace("\n", "%0a:x")})) as server:
        sentence = refusal(server, cache, attempts=1)
        assert "\n" not in sentence


def test_a_last_modified_date_serves_where_there_is_no_strong_etag(cache):
    date = "Wed, 01 Jan 2020 00:00:00 GMT"

    def dated(request, reply):
        return replace(reply, headers=reply.headers | {"ETag": 'W/"weak"', "Last-Modified": date})

    with serve(scripted(lambda q, r: replace(dated(q, r), cut_after=300), dated)) as server:
        assert_whole(get(server, cache), cache)
        assert server.requests[1].headers["if-range"] == date


def test_a_partial_from_another_address_is_not_continued(cache):
    with serve(scripted(cut(3000))) as server:
        refusal(server, cache, attempts=1)
        assert (cache / "tiny" / "train.bin.partial").read_bytes() == TRAIN[:3000]
    with serve(scripted(honest)) as server:  # another port
        assert_whole(get(server, cache), cache)
        assert ranges(server) == [None]


def test_a_partial_from_the_same_address_is_continued_by_the_next_call(cache):
    steps = [cut(3000), status(403), honest]
    with serve(scripted(*steps)) as server:
        assert "403" in refusal(server, cache)
        assert (cache / "tiny" / "train.bin.partial").read_bytes() == TRAIN[:3000]
        assert_whole(get(server, cache), cache)
        assert ranges(server) == [None, "bytes=3000-", "bytes=3000-"]


def test_a_whole_partial_is_recognised_by_416_where_the_size_is_unknown(cache, size_unknown):
    longer = lambda request, reply: replace(reply, promise=len(TRAIN) + 50)  # noqa: E731
    with serve(scripted(longer, honest)) as server:
        assert_whole(get(server, cache), cache)
        assert ranges(server) == [None, f"bytes={len(TRAIN)}-"]


def partial_by_hand(server, cache, content):
    path = cache / "tiny" / "train.bin.partial"
    path.parent.mkdir(parents=True)
    transfer.Partial(path, f"{server.url}/train.bin").begin(None)
    path.write_bytes(content)


def test_a_whole_partial_of_known_size_needs_no_request(cache):
    with serve(scripted(honest)) as server:
        partial_by_hand(server, cache, TRAIN)
        assert_whole(get(server, cache), cache)
        assert ranges(server) == []


def test_a_partial_larger_than_the_known_size_is_thrown_away(cache):
    with serve(scripted(honest)) as server:
        partial_by_hand(server, cache, TRAIN + b"+")
        assert_whole(get(server, cache), cache)
        assert ranges(server) == [None]


def test_a_partial_that_was_damaged_on_the_disk_is_replaced(cache):
    with serve(scripted(honest)) as server:
        partial_by_hand(server, cache, b"!" * 9000)
        assert_whole(get(server, cache), cache)
        assert ranges(server) == ["bytes=9000-", None]


def test_a_partial_beyond_the_end_is_thrown_away(cache, size_unknown):
    bigger = lambda request, reply: Reply(  # noqa: E731
        body=TRAIN + b"+" * 999, headers=reply.headers, promise=len(TRAIN) + 2000
    )
    with serve(scripted(bigger, honest)) as server:
        assert_whole(get(server, cache), cache)
        assert ranges(server) == [None, f"bytes={len(TRAIN) + 999}-", None]


@pytest.mark.parametrize("promised", [len(TRAIN) - 20, len(TRAIN) + 20])
def test_a_length_that_cannot_be_right_is_refused_at_once(cache, promised):
    with serve(scripted(lambda request, reply: replace(reply, promise=promised))) as server:
        sentence = refusal(server, cache)
        assert f"the server offers {promised:,} bytes, and the file should have {len(TRAIN):,}" in sentence
        assert len(ranges(server)) == 1


def test_a_promise_shorter_than_the_file_is_caught_by_the_checksum(cache, size_unknown):
    with serve(scripted(lambda request, reply: replace(reply, promise=1000))) as server:
        sentence = refusal(server, cache)
        assert f"what arrived has the MD5 {md5(TRAIN[:1000])} instead of {md5(TRAIN)}" in sentence


def test_without_a_content_length_the_size_is_still_held_to(cache):
    bare = lambda request, reply: replace(reply, promise=None)  # noqa: E731
    early = lambda request, reply: replace(bare(request, reply), cut_after=2000)  # noqa: E731
    endless = lambda request, reply: Reply(body=TRAIN + b"+", promise=None)  # noqa: E731
    with serve(scripted(early, bare)) as server:
        assert_whole(get(server, cache), cache)
        assert ranges(server) == [None, "bytes=2000-"]
    (cache / "tiny" / "train.bin").unlink()
    with serve(scripted(endless)) as server:
        assert f"sends more than the {len(TRAIN):,} bytes" in refusal(server, cache)


def test_a_file_of_unknown_size_is_bounded(cache, size_unknown, monkeypatch):
    monkeypatch.setattr(transfer, "LARGEST_BYTES", 1000)
    with serve(scripted(lambda request, reply: replace(reply, promise=None))) as server:
        assert "sends more than the 1,000 bytes" in refusal(server, cache)
    with serve(scripted(honest)) as server:
        assert f"offers {len(TRAIN):,} bytes" in refusal(server, cache)


def test_wrong_bytes_once_are_replaced_and_wrong_bytes_twice_refused(cache):
    wrong = b"!" + TRAIN[1:]
    damaged = lambda request, reply: Reply(body=wrong)  # noqa: E731
    with serve(scripted(damaged, honest)) as server:
        assert_whole(get(server, cache), cache)
        assert ranges(server) == [None, None]
        (cache / "tiny" / "train.bin").unlink()
    with serve(scripted(damaged)) as server:
        sentence = refusal(server, cache)
        assert f"what arrived has the MD5 {md5(wrong)} instead of {md5(TRAIN)}" in sentence
        assert "also after starting over, and was deleted" in sentence
        assert not list((cache / "tiny").glob("train.bin*"))


def test_a_server_in_trouble_is_asked_again_and_404_is_not(cache):
    with serve(scripted(status(500), status(429), honest)) as server:
        assert_whole(get(server, cache), cache)
        assert len(ranges(server)) == 3
        (cache / "tiny" / "train.bin").unlink()
    with serve(scripted(status(404))) as server:
        sentence = refusal(server, cache)
        assert "the server answered 404 Not Found" in sentence
        assert len(ranges(server)) == 1
    with serve(scripted(status(503))) as server:
        assert "503 Service Unavailable (3 attempts)" in refusal(server, cache)
        assert len(ranges(server)) == 3


def test_progress_counts_the_bytes_of_each_transfer(cache):
    bars = []

    class Bar:
        def __init__(self, **options):
            self.options, self.received, self.closed = options, 0, False
            bars.append(self)

        def update(self, count):
            self.received += count

        def close(self):
            self.closed = True

    with serve(scripted(cut(1234), honest)) as server:
        get(server, cache, progress=Bar)
    assert [bar.options for bar in bars] == [
        {"total": len(TRAIN), "initial": 0, "desc": "train.bin"},
        {"total": len(TRAIN), "initial": 1234, "desc": "train.bin"},
        {"total": len(DEV), "initial": 0, "desc": "dev.bin"},
    ]
    assert [bar.received for bar in bars] == [1234, len(TRAIN) - 1234, len(DEV)]
    assert all(bar.closed for bar in bars)
