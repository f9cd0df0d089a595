"""A decoder's answers: exact substrings of the text, the likeliest by brute force, batches equal to one by one."""

import json
import math
from dataclasses import replace

import pytest
import torch

from common.errors import InputError
from data.chat import FORMATS
from data.examples import Example
from data.prompts import PromptSet, PromptSettings
from model.generate import Generation, go_on
from model.prompts import add_prompt
from answering.reader import Reader, run_steps
from answering.settings import Decoding, SpeakerSettings
from answering.speaker import visible_tokens
from tests.tiny_decoder import make_model, make_tokenizer
from tests.tiny_run import examples

SETTINGS = PromptSettings(template="Text: {context}\n\nQuestion: {question}", length=90, overlap=9, max_answer=5)


def make_speaker(virtual=0):
    """A Reader of a random decoder, with so many virtual tokens before its prompts."""
    tokenizer = make_tokenizer()
    tokenizer.encode_special_tokens = True
    model = make_model(tokenizer.get_vocab_size())
    if virtual:
        add_prompt(model, virtual)
    settings = SpeakerSettings(SETTINGS, chat="llama3", null_threshold=0.0)
    return Reader(model, tokenizer, settings, device=torch.device("cpu"), precision="fp32", tokenizer_config={})


@pytest.fixture(scope="module", params=[0, 5], ids=["plain", "virtual tokens"])
def speaker(request):
    return make_speaker(request.param)


def log_probability(speaker, prompt, said):
    """Of saying exactly these ids after a prompt, from one pass over the whole."""
    with torch.no_grad():
        log_p = speaker.model(torch.tensor([prompt + said]))[0].log_softmax(-1)
    return sum(log_p[len(prompt) - 1 + k, token].item() for k, token in enumerate(said))


def test_answers_are_spans_with_the_probability_of_their_tokens(speaker):
    some = list(examples([0, 1, 5]))
    predictions = list(speaker.predict(some))
    for one, prediction in zip(some, predictions, strict=True):
        prompts = PromptSet([one], speaker.tokenizer, FORMATS["llama3"], SETTINGS)
        assert prediction.windows == len(prompts) and 1 <= len(prediction.spans) <= len(prompts)
        layout = prompts.layout
        nothing = [*layout.phrase, layout.stop]
        phrase = [log_probability(speaker, prompts.prompt_ids(k), nothing) for k in range(len(prompts))]
        assert prediction.null[0] == pytest.approx(min(phrase), abs=1e-3)
        for span in prediction.spans:
            assert one.context[span.start : span.end] == span.text and span.text
            assert span.text == span.text.strip()
            begins = [int(a) + (one.context[a] == " ") for a in prompts.texts.contexts.offsets[:, 0]]
            first = begins.index(span.start)
            last = prompts.texts.contexts.offsets[:, 1].tolist().index(span.end)
            ids = [*prompts.texts.contexts.ids[first : last + 1].tolist(), layout.stop]
            assert last - first < SETTINGS.max_answer
            wanted = log_probability(speaker, prompts.prompt_ids(span.window), ids)
            assert span.score == pytest.approx(wanted, abs=1e-3)
            assert span.probability == pytest.approx(math.exp(span.score))
        assert prediction.null_probability == pytest.approx(math.exp(prediction.null[0]))
    assert max(p.windows for p in predictions) > 1


def test_batches_and_single_questions_agree(speaker):
    some = list(examples(range(5)))
    together = list(speaker.predict(some))
    for tokens in (100, 700):
        other = list(speaker.predict(some, tokens_per_batch=tokens))
        assert [[s.text for s in p.spans] for p in other] == [[s.text for s in p.spans] for p in together]
    for one, wanted in zip(some, together, strict=True):
        alone, seconds = speaker.ask(one.question, one.context)
        assert [s.text for s in alone.spans] == [s.text for s in wanted.spans] and seconds > 0
        assert alone.null[0] == pytest.approx(wanted.null[0], abs=1e-3)


def test_empty_texts_have_no_answer_and_a_reason(speaker):
    empty, blank = (list(speaker.predict([Example("e", q, c, None, "")]))[0] for q, c in (("Who?", ""), ("", "Ada.")))
    assert empty.spans == () and empty.reason == "the context is empty" and empty.answer(0.0) is None
    assert blank.spans == () and blank.reason == "the question is empty"


def unbound(speaker, some, **decoding):
    settings = replace(speaker.settings, decoding=Decoding(**decoding))
    return run_steps(speaker.way.steps(some, settings, **alike(some, speaker.adapter)))


def alike(some, adapter=None):
    """Keywords of `steps` for questions that all want one adapter and the null."""
    return {"adapters": [adapter] * len(some), "offer_nulls": [True] * len(some), "tokens_per_batch": None}


def test_unbound_it_may_say_anything(speaker):
    some = list(examples(range(4)))
    for one, prediction in zip(some, unbound(speaker, some, way="greedy"), strict=True):
        (span,) = prediction.spans
        assert prediction.answer(0.0) is span and prediction.null is None and span.text == span.text.strip() != ""
        assert (span.start >= 0) == (span.text in one.context)
        assert span.start < 0 or one.context[span.start : span.end] == span.text
        assert span.probability == pytest.approx(math.exp(span.start_logit)) and span.end_logit == 0.0
    assert any(p.spans[0].start < 0 for p in unbound(speaker, some, way="greedy"))  # random weights say nonsense
    drawn = [[p.spans[0].text for p in unbound(speaker, some, way="sample", seed=seed)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    cold = [p.spans[0].text for p in unbound(speaker, some, way="sample", temperature=0.001)]
    assert cold == [p.spans[0].text for p in unbound(speaker, some, way="greedy")]


def test_what_several_questions_are_about_is_read_once(speaker, monkeypatch):
    """The same answers, whether a text is read for each question or once for all of them."""
    (one,) = examples([0])
    asked = ("How long?", "Who lived there, and why?", "Where?")
    some = [replace(one, id=str(k), question=question) for k, question in enumerate(asked)]
    settings = replace(speaker.settings, prompts=replace(SETTINGS, length=200))  # the whole text in one window
    wanted = [run_steps(speaker.way.steps([single], settings, **alike([single])))[0] for single in some]
    lengths = []
    forward = speaker.model.model.forward

    def counted(ids, *arguments):
        lengths.append(tuple(ids.shape))
        return forward(ids, *arguments)

    monkeypatch.setattr(speaker.model.model, "forward", counted)
    found = run_steps(speaker.way.steps(some, settings, **alike(some)))
    assert lengths[0][0] == 1 and lengths[1][0] == 3 and lengths[1][1] < lengths[0][1]
    for prediction, alone in zip(found, wanted, strict=True):
        assert [s.text for s in prediction.spans] == [s.text for s in alone.spans]
        assert prediction.null[0] == pytest.approx(alone.null[0], abs=1e-3)
        assert prediction.spans[0].score == pytest.approx(alone.spans[0].score, abs=1e-3)


def test_sure_or_not_a_lone_window_says_so(speaker):
    """One window and no null: a softmax over its one span would be 1.0 however unlikely it is."""
    (one,) = examples([0])
    settings = replace(speaker.settings, prompts=replace(SETTINGS, length=200), null_threshold=None)
    how = alike([one]) | {"offer_nulls": [False]}
    ((span,),) = [prediction.spans for prediction in run_steps(speaker.way.steps([one], settings, **how))]
    assert span.probability == pytest.approx(math.exp(span.score)) and 0 < span.probability < 0.9


def test_white_space_is_no_answer(speaker):
    """Whatever the model likes best: here it would say spaces and ends of lines alone."""
    context = "The mill \n\n   stood   \n\n long."
    (prediction,) = speaker.predict([Example("a", "How?", context, None, "")])
    assert prediction.spans and all(span.text.strip() == span.text != "" for span in prediction.spans)
    prompts = PromptSet([Example("a", "How?", context, None, "")], speaker.tokenizer, FORMATS["llama3"], SETTINGS)
    places, offsets = visible_tokens(prompts, 0), prompts.offsets(0)
    assert 0 < len(places) < len(offsets) and all(context[a:b].strip() for a, b in offsets[places])


@pytest.mark.parametrize("phrase", ["unanswerable", " unanswerable "])
def test_a_refusal_is_told_from_an_answer_and_how_sure_it_is(speaker, monkeypatch, phrase):
    (one,) = examples([0])
    settings = replace(speaker.settings, prompts=replace(SETTINGS, no_answer=phrase, length=200), decoding=Decoding(way="greedy"))
    said = Generation(tuple(speaker.tokenizer.encode("unanswerable").ids), (-0.5, -0.25), True)
    monkeypatch.setattr("answering.speaker.go_on", lambda prefix, **how: [said])
    (prediction,) = run_steps(speaker.way.steps([one], settings, **alike([one])))
    assert prediction.spans == () and prediction.reason == "the model says that there is none"
    assert prediction.null_probability == pytest.approx(math.exp(-0.75))


@pytest.mark.parametrize("length, limit", [(90, 63), (130, 64)])
def test_a_long_question_is_cut_so_that_its_text_has_room(speaker, length, limit):
    """It used to be refused, and after hours when it stood in the dev set."""
    settings = replace(SETTINGS, length=length)
    (one,) = examples([3])
    long = replace(one, question="How long did the miller live there, as far as anybody knows? " * 9)
    prompts = PromptSet([long], speaker.tokenizer, FORMATS["llama3"], settings)
    shown = speaker.way.question_limit(replace(speaker.settings, prompts=settings))
    assert prompts.texts.question_lengths[0] == prompts.layout.question_limit == shown <= limit
    assert prompts.cut_questions == 1 and prompts.length.max() + prompts.layout.answer_room <= length
    (prediction,) = run_steps(speaker.way.steps([long], replace(speaker.settings, prompts=settings), **alike([long])))
    assert prediction.windows == len(prompts)


@pytest.mark.parametrize("shots", ["abc", ["abc"], [["a", "b"]], [["a", "b", 3]], 7])
def test_stored_examples_that_are_none_are_refused(tmp_path, shots):
    values = SpeakerSettings(SETTINGS, chat="llama3").to_dict()
    path = tmp_path / "speaker.json"
    path.write_text(json.dumps(values))
    assert SpeakerSettings.from_file(path).prompts == SETTINGS
    values["prompts"]["shots"] = shots
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="speaker.json: .*context, question, answer"):
        SpeakerSettings.from_file(path)


@pytest.mark.parametrize("context", [None, "Ada Stone built the mill in 1807."])
def test_what_the_checkpoint_calls_an_end_ends_an_answer(monkeypatch, context):
    """Llama 3.1 names three ends; one that was tuned elsewhere may say another than its chat format's, and then babble."""
    speaker, said = make_speaker(), []

    def listen(*arguments, **how):
        said.append(go_on(*arguments, **how)[0].tokens)
        return go_on(*arguments, **how)

    monkeypatch.setattr("answering.speaker.go_on", listen)
    settings = replace(speaker.settings, decoding=Decoding("greedy"), prompts=replace(SETTINGS, max_answer=12))
    some = [Example("a", "Who built it?", context, None, "")]
    run_steps(speaker.way.steps(some, settings, **alike(some)))
    (whole,) = said
    end = next(k for k, token in enumerate(whole) if k > 1 and token not in whole[:k])
    monkeypatch.setitem(speaker.model.config.token_ids, "eos_token_id", [whole[end], 2])
    run_steps(speaker.way.steps(some, settings, **alike(some)))
    assert said[1] == whole[:end]
    monkeypatch.setitem(speaker.model.config.token_ids, "eos_token_id", whole[end])
    run_steps(speaker.way.steps(some, settings, **alike(some)))
    assert said[2] == whole[:end]


def test_freely_too_nothing_is_said_of_an_empty_text(speaker):
    settings = replace(speaker.settings, decoding=Decoding("greedy"))
    some = [Example("a", "Who?", "  \n", None, ""), Example("b", " ", "Ada was here.", None, "")]
    found = run_steps(speaker.way.steps(some, settings, **alike(some)))
    assert [(one.spans, one.reason) for one in found] == [((), "the context is empty"), ((), "the question is empty")]
