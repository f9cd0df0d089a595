"""The Reader: any text gives an answer or null with a reason, however questions are grouped."""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from answering import spans
from common.errors import InputError
from data.decode import DecodeSettings
from data.examples import Example
from data.readers import read_dataset
from data.windows import WindowSet, WindowSettings
from answering.reader import Reader, ReaderSettings, default_settings
from tests.tiny_model import SAMPLE, make_folder, make_model, make_tokenizer
from tests.ugly_text import ugly_texts

SETTINGS = ReaderSettings(WindowSettings(97, 31), DecodeSettings(7, 11), 0.25)


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return Reader.load(tiny_folder, settings=SETTINGS, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def questions():
    """Every sixth question of the sample: one window and many, English and Persian."""
    return read_dataset([SAMPLE / "train.json", SAMPLE / "dev.json"]).examples[::6]


@pytest.fixture(scope="module")
def predictions(tiny, questions):
    return list(tiny.predict(questions))


def example(question, context, name="id"):
    return Example(name, question, context, None, "here")


def same(one, other, tolerance=1e-4):
    """The same answers, and logits within `tolerance`."""
    assert (one.id, one.reason, one.windows) == (other.id, other.reason, other.windows)
    assert len(one.spans) == len(other.spans)
    for a, b in zip(one.spans, other.spans):  # near ties may change places: compare scores by rank
        assert a.score == pytest.approx(b.score, abs=tolerance)
        assert a.probability == pytest.approx(b.probability, abs=tolerance)
    if one.spans:
        assert one.null == pytest.approx(other.null, abs=tolerance)
        assert one.null_probability == pytest.approx(other.null_probability, abs=tolerance)
        gap = one.spans[0].score - one.spans[1].score if len(one.spans) > 1 else 1.0
        if gap > 2 * tolerance:
            assert replace(one.spans[0], start_logit=0, end_logit=0, probability=0) == replace(
                other.spans[0], start_logit=0, end_logit=0, probability=0
            )


def test_predictions_come_in_order_and_are_sound(questions, predictions):
    assert len(questions) > 100 and [p.id for p in predictions] == [q.id for q in questions]
    assert max(p.windows for p in predictions) > 5 and min(p.windows for p in predictions) >= 1
    for question, prediction in zip(questions, predictions):
        assert len(prediction.spans) == 7 and prediction.reason is None
        assert len({(s.start, s.end) for s in prediction.spans}) == 7
        for span in prediction.spans:
            assert question.context[span.start : span.end] == span.text and span.text
            assert 0 <= span.window < prediction.windows
        total = math.fsum(span.probability for span in prediction.spans) + prediction.null_probability
        assert total == pytest.approx(1, abs=1e-9)


def test_a_span_names_the_window_it_lies_in(tiny, questions, predictions):
    windows = WindowSet(questions, tiny.tokenizer, SETTINGS.windows)
    later = 0
    for number, prediction in enumerate(predictions):
        own = [window for window in range(len(windows)) if windows.example[window] == number]
        for span in prediction.spans:
            offsets = windows.offsets(own[span.window])
            assert offsets[0, 0] <= span.start and span.end <= offsets[-1, 1]
            later += span.window > 0
    assert later > 50


def test_one_by_one_is_the_same(tiny, questions, predictions):
    for question, expected in list(zip(questions, predictions))[::5]:
        same(next(tiny.predict([question])), expected)


@pytest.mark.parametrize("chunk, tokens", [(1, 6144), (17, 6144), (2048, 97), (2048, 1000)])
def test_chunks_and_batches_do_not_show(tiny, questions, predictions, monkeypatch, chunk, tokens):
    monkeypatch.setattr(spans.SpanReading, "chunk_questions", chunk)
    found = list(tiny.predict(questions[:40], tokens_per_batch=tokens))
    assert len(found) == 40
    for one, other in zip(found, predictions):
        same(one, other)


def test_progress_counts_each_question_once(tiny, questions, monkeypatch):
    monkeypatch.setattr(spans.SpanReading, "chunk_questions", 13)
    counts = []

    class Bar:
        update = staticmethod(counts.append)

    asked = [*questions[:30], example("q", ""), example("q", "\u200c")]
    list(tiny.predict(asked, progress=Bar, tokens_per_batch=300))
    assert sum(counts) == 32 and max(counts) < 13


def test_without_a_null_the_spans_share_all(tiny, questions):
    found = list(tiny.predict(questions[:5], offer_null=False))
    for prediction in found:
        assert prediction.null_probability == 0.0
        assert math.fsum(span.probability for span in prediction.spans) == pytest.approx(1, abs=1e-9)
    assert list(tiny.predict([])) == []


@pytest.mark.parametrize("context, reason", [
    ("", "the context is empty"),
    (" \n\u3000\t", "the context is empty"),
    ("\u200c", "the context has no readable words"),
    ("\x00\u200d \ufffd\xad\u200f", "the context has no readable words"),
    ("\ud800", "the context has no readable words"),
])
def test_nothing_to_read_is_null_with_a_reason(tiny, context, reason):
    prediction, seconds = tiny.ask("Who?", context)
    assert (prediction.spans, prediction.reason, prediction.windows) == ((), reason, 0)
    assert prediction.answer(0.0) is prediction.answer(None) is None
    assert prediction.null_probability == 1.0 and seconds > 0


@pytest.mark.parametrize("question", ["who " * 500, "؟", "[SEP] [CLS]"])
def test_any_question_gets_an_answer(tiny, question):
    prediction, _ = tiny.ask(question, "Marie Curie discovered radium in Paris.")
    assert prediction.windows == 1 and len(prediction.spans) == 7
    assert all("Marie Curie discovered radium in Paris."[s.start : s.end] == s.text for s in prediction.spans)


@pytest.mark.parametrize("question", ["", " \n"])
def test_no_question_is_null_with_a_reason(tiny, question):
    prediction, _ = tiny.ask(question, "Marie Curie discovered radium in Paris.")
    assert (prediction.spans, prediction.reason, prediction.null_odds) == ((), "the question is empty", None)
    assert prediction.answer(None) is prediction.answer(9.0) is None and prediction.null_probability == 1.0


def test_a_short_context_has_fewer_spans(tiny):
    prediction, _ = tiny.ask("Who?", "  it ")
    assert [(s.text, s.start, s.end) for s in prediction.spans] == [("it", 2, 4)]


def test_a_very_long_context(tiny, questions):
    text = "\n".join(dict.fromkeys(question.context for question in questions)) * 2
    prediction, _ = tiny.ask("Who wrote it?", text)
    assert len(text) > 150_000 and prediction.windows > 500 and len(prediction.spans) == 7
    assert all(text[s.start : s.end] == s.text for s in prediction.spans)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(ugly_texts, ugly_texts)
def test_ugly_texts_give_an_answer_or_a_reason(tiny, question, context):
    prediction, _ = tiny.ask(question, context)
    assert bool(prediction.spans) != bool(prediction.reason)
    for span in prediction.spans:
        assert context[span.start : span.end] == span.text and span.text
        assert span.text != "empty" and math.isfinite(span.score)


def test_a_model_gone_wrong_answers_null():
    tokenizer = make_tokenizer()
    model = make_model(tokenizer.get_vocab_size())
    with torch.no_grad():
        model.qa_outputs.bias[1] = math.nan
    broken = Reader(model, tokenizer, SETTINGS, device=torch.device("cpu"), precision="fp32")
    prediction, _ = broken.ask("Who?", "Marie Curie discovered radium.")
    assert prediction.spans == () and prediction.reason == "the model's scores are not finite numbers"
    assert prediction.null is None and prediction.answer(0.0) is None


def test_threads_may_share_a_reader(tiny, questions, predictions):
    parts = [questions[k::4] for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda part: list(tiny.predict(part)), parts))
    for k, part in enumerate(found):
        for one, other in zip(part, predictions[k::4], strict=True):
            same(one, other)


def test_save_and_load(tiny, questions, predictions, tmp_path):
    tiny.save(tmp_path)
    again = Reader.load(tmp_path, device="cpu", precision="fp32")
    assert again.settings == SETTINGS
    for (name, one), (other, two) in zip(tiny.model.state_dict().items(), again.model.state_dict().items()):
        assert name == other and torch.equal(one, two)
    assert list(again.predict(questions[:8])) == list(tiny.predict(questions[:8]))
    for one, other in zip(again.predict(questions[:8]), predictions):
        same(one, other)


@pytest.mark.parametrize("values", [
    ReaderSettings(), ReaderSettings(WindowSettings(50, None, 20, 9), DecodeSettings(1, 2), -3.5), SETTINGS,
])
def test_settings_survive_their_file(tmp_path, values):
    path = tmp_path / ReaderSettings.file
    path.write_text(json.dumps(values.to_dict()), encoding="utf-8")
    assert ReaderSettings.from_file(path) == values


def changed(**changes):
    return {**SETTINGS.to_dict(), **changes}


def without(name):
    return {key: value for key, value in SETTINGS.to_dict().items() if key != name}


WINDOWS, DECODE = SETTINGS.to_dict()["windows"], SETTINGS.to_dict()["decode"]
MALFORMED = [
    ([], "format None is unknown here; this version reads format 1"),
    ({}, "format None is unknown"),
    (changed(format=2), "format 2 is unknown"),
    (changed(format="1"), "format '1' is unknown"),
    (changed(format=True), "format True is unknown"),
    (without("windows"), "windows: missing, so these are not the settings"),
    (without("decode"), "not the settings of a reader"),
    (without("null_threshold"), "not the settings of a reader"),
    (changed(windows=None), "not the settings of a reader"),
    (changed(decode=[1]), "not the settings of a reader"),
    (changed(windows={**WINDOWS, "stride": 3}), "not the settings of a reader .*stride"),
    (changed(windows={**WINDOWS, "length": "97"}), "length must be a whole number of at least 1, not '97'"),
    (changed(windows={**WINDOWS, "overlap": 96}), "leave no room"),
    (changed(windows={**WINDOWS, "step": 9}), "either an overlap or a step"),
    (changed(decode={**DECODE, "n_best": 0}), "decode.n_best: expected a whole number above 0, found 0"),
    (changed(decode={**DECODE, "n_best": 2.0}), "decode.n_best: .* found 2.0"),
    (changed(decode={**DECODE, "max_answer_tokens": None}), "decode.max_answer_tokens: .* found None"),
    (changed(decode={**DECODE, "max_answer_tokens": True}), "decode.max_answer_tokens: .* found True"),
    (changed(null_threshold="0"), "null_threshold: expected a number or null, found '0'"),
    (changed(null_threshold=False), "null_threshold: expected a number or null, found False"),
    ('{"format": 1, "windows": {}, "decode": {}, "null_threshold": 1e999}', "null_threshold: .* found inf"),
    ('{"format": 1, "windows": {}, "decode": {}, "null_threshold": NaN}', "holds NaN"),
    ('{"format": 1', "truncated"),
]


@pytest.mark.parametrize("values, sentence", MALFORMED)
def test_malformed_settings_are_refused_with_their_file(tiny_folder, tmp_path, values, sentence):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    text = values if isinstance(values, str) else json.dumps(values)
    (folder / ReaderSettings.file).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=sentence) as caught:
        Reader.load(folder, device="cpu", precision="fp32")
    assert str(caught.value).startswith(str(folder / ReaderSettings.file))


def test_the_set_of_malformed_settings_is_whole():
    assert len(MALFORMED) == 23


def test_windows_longer_than_the_positions_are_refused(tiny_folder):
    with pytest.raises(InputError, match="windows of 132 tokens are longer than this model's 131 positions"):
        Reader.load(tiny_folder, settings=ReaderSettings(WindowSettings(132, 40)), device="cpu")
    fits = Reader.load(tiny_folder, settings=ReaderSettings(WindowSettings(131, 40)), device="cpu")
    assert fits.ask("Who?", "word " * 400)[0].windows > 3


def test_a_folder_without_settings_gets_what_its_model_allows(tmp_path):
    reader = Reader.load(make_folder(tmp_path), device="cpu", precision="fp32")
    assert reader.settings == default_settings(reader.model.config)
    assert reader.settings.windows == WindowSettings(131, 43) and reader.settings.null_threshold is None
    assert reader.ask("Who?", "It was me.")[0].null_probability == 0.0
