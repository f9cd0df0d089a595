"""The queue in front of a Reader: sharing, turns, bounds, deadlines, leaving, ending."""

import threading
import time
from dataclasses import replace

import pytest

from data.examples import Example
from data.windows import WindowSettings
from answering.reader import Reader, ReaderSettings
from answering.spans import SpanReading
from model.lora import Switch
from serving.queue import AnswerQueue, Busy, Question
from tests.live_server import GatedReader
from tests.tiny_adapters import make_adapters

SENTENCE = "The old mill of Riga was built by Ada Stone in 1807 beside the river. "
SECONDS = 60  # much longer than anything here takes, so that a fault shows as a failure and not as a hanging test


@pytest.fixture(scope="module")
def tiny(tiny_folder, tmp_path_factory):
    reader = Reader.load(tiny_folder, settings=ReaderSettings(WindowSettings(57, 13)), device="cpu", precision="fp32")
    for folder in make_adapters(tmp_path_factory.mktemp("adapters"), tiny_folder):
        reader.load_adapter(folder, folder.parts[-1])
        reader.settings = replace(reader.settings, windows=WindowSettings(57, 13))
    reader.set_adapter(None)
    return reader


@pytest.fixture
def gated(tiny):
    """(reader, queue) whose forward passes wait for reader.gate."""
    reader = GatedReader(tiny)
    queue = AnswerQueue(reader, capacity=9, tokens_per_batch=300)
    yield reader, queue
    reader.gate.set()
    queue.close()


def asked(sentences=1, adapter=None, offer_null=False, seconds=SECONDS):
    return Question("Who built it?", SENTENCE * sentences, adapter, offer_null, time.monotonic() + seconds)


def begun(reader, passes=1):
    for _ in range(passes):
        assert reader.begun.acquire(timeout=SECONDS)


def alone(reader, question):
    example = Example("0", question.question, question.context, None, "here")
    (prediction,) = reader.predict([example], adapter=question.adapter, offer_null=question.offer_null)
    return prediction


def places(prediction):
    """What must not depend on the company a question had."""
    return [(span.start, span.end) for span in prediction.spans[:3]], prediction.windows


def test_what_waits_together_shares_a_pass(gated, tiny):
    reader, queue = gated
    queue.submit([first := asked(1)])
    begun(reader)
    others = [asked(n) for n in (1, 2, 1)]
    for one in others:
        queue.submit([one])
    reader.gate.set()
    for question in (first, *others):
        assert places(question.future.result(SECONDS)) == places(alone(tiny, question))
    assert reader.sizes == [1, 3] and queue.counts["passes"] == 2
    assert queue.counts["answered"] == 4 and queue.unanswered == 0


def test_passes_are_bounded_by_tokens(tiny, monkeypatch):
    seen = []

    def score(self, windows, batch, adapter, decode, original=SpanReading.score):
        seen.append(len(batch) * int(windows.length[batch].max()))
        return original(self, windows, batch, adapter, decode)

    monkeypatch.setattr(SpanReading, "score", score)
    queue = AnswerQueue(tiny, capacity=99, tokens_per_batch=150)
    questions = [asked(n) for n in (1, 5, 2, 1, 1, 3, 1)]
    queue.submit(questions)
    for question in questions:
        question.future.result(SECONDS)
    queue.close()
    assert len(seen) > 5 and max(seen) <= 150


def test_adapters_share_a_pass_and_do_not_mix(gated, tiny, monkeypatch):
    batches = []

    def rows(self, names, original=Switch.rows):
        batches.append(list(names))
        return original(self, names)

    monkeypatch.setattr(Switch, "rows", rows)
    reader, queue = gated
    reader.gate.set()
    kinds = [(None, False), ("wiki", False), ("model", True), (None, True), ("wiki", True)]
    questions = [asked(1, adapter, offer_null) for adapter, offer_null in kinds]
    queue.submit(questions)
    answers = [question.future.result(SECONDS) for question in questions]
    for question, answer in zip(questions, answers, strict=True):
        assert answer.spans[0].score == pytest.approx(alone(tiny, question).spans[0].score, abs=1e-4)
        assert (answer.null_probability > 0) == question.offer_null
        assert places(answer) == places(alone(tiny, question))
    assert len({round(answer.spans[0].score, 3) for answer in answers}) == 3
    assert reader.sizes == [5] and any(len(set(names)) > 1 for names in batches)


def test_adapters_that_cut_texts_in_another_way_stay_apart(gated, tiny, monkeypatch):
    reader, queue = gated
    reader.gate.set()
    other = replace(tiny.all_settings["wiki"], windows=WindowSettings(61, 13))
    monkeypatch.setitem(tiny.all_settings, "wiki", other)
    questions = [asked(3, adapter) for adapter in ("wiki", None, "wiki", "model")]
    queue.submit(questions)
    for question in questions:
        assert places(question.future.result(SECONDS)) == places(alone(tiny, question))
    assert reader.sizes == [2, 2]


def test_a_short_question_does_not_wait_for_a_book(gated):
    reader, queue = gated
    queue.submit([book := asked(200)])
    begun(reader)
    queue.submit([short := asked(1)])
    reader.gate.set()
    short.future.result(SECONDS)
    assert not book.future.done() and reader.passes < 20
    book.future.result(SECONDS)
    assert reader.passes > 20


def test_a_full_queue_refuses_at_once_and_takes_no_part(gated):
    reader, queue = gated
    questions = [asked() for _ in range(8)]
    queue.submit(questions)
    with pytest.raises(Busy) as caught:
        queue.submit([asked(), asked()])
    assert 1 <= caught.value.retry_after <= 60 and str(caught.value).startswith("8 questions waiting already")
    queue.submit([last := asked()])  # one more fits
    assert not queue.accepts and queue.counts["shed"] == 2
    reader.gate.set()
    for question in (*questions, last):
        question.future.result(SECONDS)
    assert queue.accepts


def test_retry_after_grows_with_what_waits(gated):
    _, queue = gated
    queue._learn_pace(2.5)
    assert queue.retry_after() == 1
    queue.submit([asked() for _ in range(7)])
    assert queue.retry_after() == 18  # 7 * 2.5, rounded up
    queue._learn_pace(200.0)
    assert queue.retry_after() == 60


def test_deadlines_pass_while_waiting_and_in_work(gated):
    reader, queue = gated
    queue.submit([working := asked(50, seconds=0.2)])
    begun(reader)
    queue.submit([waiting := asked(1, seconds=0.2), patient := asked(1)])
    time.sleep(0.3)
    reader.gate.set()
    for late in (working, waiting):
        with pytest.raises(Busy, match="not ready in time"):
            late.future.result(SECONDS)
    assert patient.future.result(SECONDS).spans
    assert queue.counts["late"] == 2 and reader.passes <= 3  # of some fifty that the long text would take


def test_who_leaves_stops_costing(gated):
    reader, queue = gated
    queue.submit([leaving := asked(200)])
    begun(reader)
    queue.submit([gone := asked(100), other := asked(1)])
    assert leaving.future.cancel() and gone.future.cancel()
    assert queue.unanswered == 1
    reader.gate.set()
    other.future.result(SECONDS)
    queue.close()
    assert reader.sizes == [1, 1] and queue.counts["passes"] == 2  # of hundreds
    assert queue.counts["cancelled"] == 2


def test_closing_finishes_what_was_accepted(gated):
    reader, queue = gated
    questions = [asked(9), asked(1), asked(30)]
    queue.submit(questions)
    reader.gate.set()
    queue.close()
    assert all(question.future.result(0).spans for question in questions)
    with pytest.raises(Busy, match="shutting down"):
        queue.submit([asked()])


def test_a_failure_is_told_to_its_own_group_only(gated):
    reader, queue = gated
    reader.gate.set()
    queue.submit([broken := Question("break", "a text", None, False, time.monotonic() + SECONDS)])
    with pytest.raises(ValueError, match="a text"):
        broken.future.result(SECONDS)
    queue.submit([good := asked()])
    assert good.future.result(SECONDS).spans
    assert queue.counts["failed"] == 1 and queue.counts["answered"] == 1


def test_nobody_waits_for_a_thread_that_is_gone(gated, monkeypatch):
    reader, queue = gated
    queue.submit([working := asked()])
    begun(reader)
    monkeypatch.setattr(queue, "_take_group", None)  # calling it raises
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)
    queue.submit([waiting := asked()])
    reader.gate.set()
    for question in (working, waiting):
        try:
            assert question.future.result(SECONDS).spans
        except Busy as error:
            assert "stopped answering" in str(error)
    with pytest.raises(Busy, match="stopped answering"):
        waiting.future.result(0)
    assert not queue.accepts
    with pytest.raises(Busy):
        queue.submit([asked()])


def test_a_sentence_does_not_wait_for_many_books(tiny):
    """More long texts than are read at a time, all before it; without a way past them it would be answered last but one."""
    queue = AnswerQueue(tiny, capacity=20, tokens_per_batch=300)
    books, sentence = [asked(90) for _ in range(9)], asked(1)
    queue.submit([*books, sentence])
    found = sentence.future.result(SECONDS)
    assert not any(book.future.done() for book in books)
    assert places(found) == places(alone(tiny, sentence))
    assert {book.future.result(SECONDS).windows for book in books} == {alone(tiny, books[0]).windows}
    queue.close()


@pytest.fixture
def two_lanes(tiny):
    queue = AnswerQueue(tiny, capacity=99, tokens_per_batch=300, lanes=2)
    yield queue
    queue.close()


def test_two_lanes_give_the_answers_of_one(two_lanes, tiny):
    queue = two_lanes
    assert queue.tokens_per_batch == 150  # of a lane
    questions = [asked(n, adapter) for n in (9, 1, 30, 2, 5, 40) for adapter in (None, "wiki")]
    queue.submit(questions)
    for question in questions:
        assert places(question.future.result(SECONDS)) == places(alone(tiny, question))
    assert queue.counts["answered"] == 12 and queue.unanswered == 0


def test_two_lanes_work_at_the_same_time(tiny):
    """Each waits for the other in the middle of its step, and each had begun with its share."""
    meet, began = threading.Barrier(2), []

    class Meeting(GatedReader):
        def steps(self, examples, **options):
            yield
            meet.wait(SECONDS)
            return ["met"] * len(examples)

    queue = AnswerQueue(
        Meeting(tiny), capacity=9, tokens_per_batch=300, lanes=2, begin=lambda: began.append(threading.get_ident())
    )
    queue.submit([first := asked(5), second := asked(5)])  # too long to go together
    assert first.future.result(SECONDS) == second.future.result(SECONDS) == "met"
    queue.close()
    queue._seconds_per_question, queue.unanswered = 10.0, 7
    assert queue.retry_after() == 35  # 7 * 10 by two
    assert len(set(began)) == 2 and threading.get_ident() not in began


def test_other_work_has_the_model_for_itself(two_lanes, tiny, monkeypatch):
    queue = two_lanes
    computing, seen, met = [0], [], []

    def score(self, *arguments, original=SpanReading.score):
        computing[0] += 1
        seen.append(computing[0])
        try:
            return original(self, *arguments)
        finally:
            computing[0] -= 1

    def look(reader):
        for _ in range(5):
            computing[0] += 10
            time.sleep(0.02)
            met.append(computing[0])
            computing[0] -= 10
            yield
        return "looked"

    monkeypatch.setattr(SpanReading, "score", score)
    def search(reader):
        for _ in range(3):
            computing[0] += 1
            time.sleep(0.01)
            computing[0] -= 1
            yield
        return "searched"

    end = time.monotonic() + SECONDS
    looks = [Question("why?", "", None, False, end, look, alone=True) for _ in range(3)]
    searches = [Question("where?", "", None, False, end, search) for _ in range(5)]
    questions = [asked(20) for _ in range(4)]
    queue.submit([questions[0], looks[0], *questions[1:3], *searches, *looks[1:], questions[3]])
    assert [one.future.result(SECONDS) for one in searches] == ["searched"] * 5
    assert [one.future.result(SECONDS) for one in looks] == ["looked"] * 3
    assert len({places(one.future.result(SECONDS))[1] for one in questions}) == 1
    assert met == [10] * 15 and 1 in seen and max(seen) <= 2


def test_when_one_lane_is_gone_the_other_ends_too(tiny, monkeypatch):
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)
    reader = GatedReader(tiny)
    queue = AnswerQueue(reader, capacity=9, tokens_per_batch=300, lanes=2)
    queue.submit([working := asked(5)])
    begun(reader)
    monkeypatch.setattr(queue, "_take_group", None)  # calling it raises
    queue.submit([waiting := asked()])
    with pytest.raises(Busy, match="stopped answering"):
        waiting.future.result(SECONDS)
    reader.gate.set()
    queue.close()
    assert working.future.done() and not queue.accepts and queue.unanswered == 0


def test_after_work_an_idle_queue_gives_back_once(tiny, monkeypatch):
    monkeypatch.setattr("serving.queue.IDLE_SECONDS", 0.2)
    given = []
    queue = AnswerQueue(tiny, capacity=9, tokens_per_batch=300, idle=lambda: given.append(time.monotonic()))
    try:
        time.sleep(0.5)
        assert not given  # there was no work
        for times in (1, 2):
            queue.submit([one := asked()])
            one.future.result(SECONDS)
            done = time.monotonic()
            time.sleep(1)
            assert len(given) == times and given[-1] - done > 0.1
    finally:
        queue.close()
