"""A Reader's work in steps, and with the adapter that the caller names."""

import pytest

from data.examples import Example
from data.windows import WindowSettings
from prompt.answers import describe
from answering.reader import Reader, ReaderSettings, run_steps
from answering.spans import SpanReading
from tests.tiny_adapters import make_adapters

SENTENCE = "The old mill of Riga was built by Ada Stone in 1807 beside the river. "
SETTINGS = ReaderSettings(WindowSettings(57, 13))


def examples(*lengths):
    return [Example(f"{n}", "Who built the mill?", SENTENCE * n, None, "here") for n in lengths]


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return Reader.load(tiny_folder, settings=SETTINGS, device="cpu", precision="fp32")


def test_each_step_is_one_forward_pass(tiny, monkeypatch):
    passes = []
    monkeypatch.setattr(SpanReading, "score", lambda *a, original=SpanReading.score: passes.append(1) or original(*a))
    steps = tiny.steps(examples(0, 9, 1), tokens_per_batch=120)
    assert next(steps) == 1 and passes == []  # the empty context is done before any pass
    finished = []
    try:
        while True:
            finished.append(next(steps))
            assert len(passes) == len(finished)
    except StopIteration as end:
        predictions = end.value
    assert sum(finished) == 2 and len(passes) >= 2
    assert [p.id for p in predictions] == ["0", "9", "1"]


def test_steps_of_two_tasks_in_turn_give_what_predict_gives(tiny):
    asked = [examples(7, 3), examples(5)]
    alone = [list(tiny.predict(one, tokens_per_batch=120, lanes=1)) for one in asked]
    tasks, done = {n: tiny.steps(one, tokens_per_batch=120) for n, one in enumerate(asked)}, {}
    while tasks:
        for number, steps in list(tasks.items()):
            try:
                next(steps)
            except StopIteration as end:
                done[number] = end.value
                del tasks[number]
    assert [done[0], done[1]] == alone


def test_the_caller_may_name_the_adapter(tiny_folder, tmp_path):
    reader = Reader.load(tiny_folder, settings=SETTINGS, device="cpu", precision="fp32")
    bare = list(reader.predict(examples(3)))
    for folder in make_adapters(tmp_path, tiny_folder):
        reader.load_adapter(folder, folder.parts[-1])
    own = {}
    for name in (None, "wiki", "model"):
        reader.set_adapter(name)
        own[name] = list(reader.predict(examples(3)))
    assert own[None] == bare and own["wiki"] != bare != own["model"] != own["wiki"]
    for active in (None, "wiki"):
        reader.set_adapter(active)
        for name in own:
            assert list(reader.predict(examples(3), adapter=name)) == own[name]
            assert run_steps(reader.steps(examples(3), adapter=name)) == own[name]
        assert reader.adapter == active


def test_windows_are_described_on_request(tiny):
    (prediction,) = tiny.predict(examples(9))
    plain, full = describe(prediction, None, 0.5, 4), describe(prediction, None, 0.5, 4, windows=True)
    spans = prediction.spans[:4]
    assert full["windows"] == prediction.windows > 2
    assert [full["window"], *(s["window"] for s in full["runners_up"])] == [s.window for s in spans]
    assert "windows" not in plain and "window" not in plain and "window" not in plain["runners_up"][0]
