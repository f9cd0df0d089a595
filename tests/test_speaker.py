"""A decoder's answers: exact substrings of the text, the likeliest by brute force, batches equal to one by one."""

import math

import pytest
import torch

from data.chat import FORMATS
from data.examples import Example
from data.prompts import PromptSet, PromptSettings
from model.llama import LlamaConfig, LlamaForCausalLM
from speaker import Speaker
from tests.test_chat import make_tokenizer
from tests.tiny_run import examples

SETTINGS = PromptSettings(template="Text: {context}\n\nQuestion: {question}", length=90, overlap=9, max_answer=5)


@pytest.fixture(scope="module")
def speaker():
    tokenizer = make_tokenizer()
    tokenizer.encode_special_tokens = True
    torch.manual_seed(4)
    config = LlamaConfig(
        tokenizer.get_vocab_size(), hidden_size=36, intermediate_size=53, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=3, max_position_embeddings=256, initializer_range=0.4,
    )
    model = LlamaForCausalLM(config)
    return Speaker(model, tokenizer, FORMATS["llama3"], SETTINGS, device=torch.device("cpu"), precision="fp32")


def log_probability(speaker, prompt, said):
    """Of saying exactly these ids after a prompt, from one pass over the whole."""
    with torch.no_grad():
        log_p = speaker.model(torch.tensor([prompt + said]))[0].log_softmax(-1)
    return sum(log_p[len(prompt) - 1 + k, token].item() for k, token in enumerate(said))


def test_answers_are_spans_with_the_probability_of_their_tokens(speaker):
    some = list(examples([0, 1, 5]))
    predictions = list(speaker.predict(some))
    for one, prediction in zip(some, predictions, strict=True):
        prompts = PromptSet([one], speaker.tokenizer, speaker.chat, SETTINGS)
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
        scores = [math.exp(x) for x in (*[s.score for s in prediction.spans], prediction.null[0])]
        assert prediction.spans[0].probability == pytest.approx(scores[0] / sum(scores), rel=1e-2)
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


def test_unbound_it_may_say_anything(speaker):
    some = list(examples(range(4)))
    free = list(speaker.speak_freely(some))
    assert [one.in_context for one in free] == [bool(one.text) and one.text in e.context for one, e in zip(free, some)]
    assert not all(one.in_context for one in free)  # random weights say nonsense
    drawn = [
        [one.text for one in speaker.speak_freely(some, temperature=1.0, generator=torch.Generator().manual_seed(seed))]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
