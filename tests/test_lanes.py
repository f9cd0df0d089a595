"""Batches side by side: the same answers in the same order, errors in their turn, and no thread left with a setting."""

import threading
import time

import pytest
import torch

from answering.lanes import in_lanes, usual_lanes
from answering.reader import Reader
from answering.settings import ReaderSettings
from answering.spans import SpanReading
from data.windows import WindowSettings
from tests.test_reader_steps import examples


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_results_come_in_order_and_lanes_run_at_once(lanes):
    """Each call waits until `lanes` of them are there: with fewer at once it would wait for ever."""
    meeting = threading.Barrier(lanes, timeout=20)
    found = list(in_lanes(lambda x: (meeting.wait(), x * x)[1], range(6), lanes))
    assert found == [(x, x * x) for x in range(6)]


def test_each_lane_computes_alone_and_the_caller_as_before(two_threads):
    counts = [count for _, count in in_lanes(lambda _: torch.get_num_threads(), range(4), 2)]
    assert counts == [1, 1, 1, 1] and torch.get_num_threads() == 2
    later = []
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert later == [2]
    assert usual_lanes(torch.device("cpu")) == 2 and usual_lanes(torch.device("meta")) == 1


def test_lanes_share_out_all_threads_and_are_few():
    before = torch.get_num_threads()
    torch.set_num_threads(7)
    try:
        assert usual_lanes(torch.device("cpu")) == 4
        assert {count for _, count in in_lanes(lambda _: torch.get_num_threads(), range(4), 3)} == {2}
        assert torch.get_num_threads() == 7
    finally:
        torch.set_num_threads(before)


def test_what_is_computed_at_once_has_the_tokens_of_one_batch(tiny_folder, two_threads, monkeypatch):
    reader = Reader.load(tiny_folder, settings=ReaderSettings(WindowSettings(57, 13)), device="cpu", precision="fp32")
    sizes, score = [], SpanReading.score
    monkeypatch.setattr(SpanReading, "score", lambda way, windows, batch, *rest: (
        sizes.append(len(batch) * int(windows.length[batch].max())), score(way, windows, batch, *rest))[1])
    for lanes in (1, 2):
        sizes.clear()
        list(reader.predict(examples(*range(1, 10)), lanes=lanes, tokens_per_batch=240))
        assert len(sizes) > 3 and 120 / lanes < max(sizes) <= 240 / lanes
    sizes.clear()
    list(reader.predict(examples(1, 2), lanes=2, tokens_per_batch=240))
    assert max(sizes) > 120  # too few for two lanes


def test_an_error_comes_in_its_turn_and_the_rest_is_not_begun():
    begun = []

    def work(x):
        begun.append(x)
        if x == 1:
            raise ArithmeticError("one")
        time.sleep(0.01)
        return x

    results = in_lanes(work, range(100), 2)
    assert next(results) == (0, 0)
    with pytest.raises(ArithmeticError, match="one"):
        next(results)
    assert len(begun) < 6


def test_who_stops_asking_stops_the_work():
    begun = []
    results = in_lanes(lambda x: begun.append(x), range(100), 2)
    next(results)
    results.close()
    assert len(begun) < 6


def test_a_reader_gives_the_same_answers_in_lanes(tiny_folder, two_threads):
    reader = Reader.load(tiny_folder, settings=ReaderSettings(WindowSettings(57, 13)), device="cpu", precision="fp32")
    asked = examples(*range(1, 10))
    finished = []

    class Bar:
        update = finished.append

    wanted = list(reader.predict(asked, lanes=1, tokens_per_batch=120))
    found = list(reader.predict(asked, lanes=2, tokens_per_batch=120, progress=Bar()))
    assert sum(finished) == len(asked)
    assert [p.spans[0].text for p in found] == [p.spans[0].text for p in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert a.id == b.id and a.windows == b.windows >= 1
        assert a.spans[0].score == pytest.approx(b.spans[0].score, abs=1e-5)
    assert [p.spans[0].text for p in reader.predict(asked)] == [p.spans[0].text for p in wanted]
