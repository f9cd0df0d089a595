"""Generation: batches equal to one by one, transformers' greedy tokens, sampling, and answers bound to a text."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.generate import (
    Prefix, SpanConstraint, choose, generate, go_on, pad_left, sequence_log_probability,
)
from tests.test_llama import KINDS, make, twin

PROMPTS = [[5, 9, 33, 4, 18], [7], [21, 3, 60, 8, 90, 11, 45, 2, 9]]


def sharp(kind):
    """A model whose logits are far apart, so that argmax does not hang on the last bit."""
    model = make(kind)
    with torch.no_grad():
        model.lm_head.weight *= 3
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_that_of_transformers_alone_and_in_a_batch(kind):
    model = sharp(kind)
    together = generate(model, PROMPTS, max_new=15, stop=())
    for prompt, found in zip(PROMPTS, together, strict=True):
        (alone,) = generate(model, [prompt], max_new=15, stop=())
        wanted = twin(model).generate(torch.tensor([prompt]), max_new_tokens=15, do_sample=False)[0, len(prompt) :]
        assert list(found.tokens) == list(alone.tokens) == wanted.tolist()
        assert not found.stopped and len(found.log_probabilities) == 15
        assert torch.allclose(torch.tensor(found.log_probabilities), torch.tensor(alone.log_probabilities), atol=1e-4)
        with torch.no_grad():  # the probabilities are those of a pass over the whole
            logits = model(torch.tensor([prompt + list(found.tokens)]))[0].log_softmax(-1)
        places = [logits[len(prompt) - 1 + k, token].item() for k, token in enumerate(found.tokens)]
        assert found.log_probability == pytest.approx(sum(places), abs=1e-3)


def test_a_stop_token_ends_a_row_and_leaves_the_others():
    model = sharp("two-to-one")
    free = generate(model, PROMPTS, max_new=12, stop=())
    stop = free[0].tokens[3]
    found = generate(model, PROMPTS, max_new=12, stop={stop})
    for before, after in zip(free, found, strict=True):
        cut = before.tokens.index(stop) if stop in before.tokens else None
        assert after.tokens == before.tokens[:cut]
        assert after.stopped == (cut is not None)
        assert len(after.log_probabilities) == len(after.tokens) + after.stopped
    assert found[0].tokens == free[0].tokens[:3] and found[0].stopped


def test_a_run_begins_where_it_may():
    """Of "_ in _ 1807" with blanks at 0 and 2, nothing begins with a blank, and a run may hold one."""
    constraint = SpanConstraint([9, 4, 9, 7], (), 1, starts=[1, 3])
    assert constraint.allowed() == {4, 7}
    constraint.take(4)
    assert constraint.allowed() == {9, 1}
    constraint.take(9)
    assert constraint.allowed() == {7, 1} and constraint.places(2) == [(1, 2)]


def test_however_cold_something_is_said():
    log_p = torch.tensor([[-3.0, -0.5, -7.0], [-0.1, float("-inf"), -9.0]])
    assert choose(log_p, 1e-40, 1.0, torch.Generator()).tolist() == [1, 0]
    assert choose(log_p, 1e-40, 0.5, torch.Generator()).tolist() == [1, 0]


def test_sampling_follows_the_probabilities():
    log_p = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, 4)
    generator = torch.Generator().manual_seed(0)

    def shares(**how):
        return torch.bincount(choose(log_p, generator=generator, **how), minlength=4) / 4000

    assert (shares(temperature=1.0, top_p=1.0) - torch.tensor([0.5, 0.3, 0.15, 0.05])).abs().max() < 0.03
    assert (shares(temperature=1.0, top_p=0.75) - torch.tensor([0.625, 0.375, 0, 0])).abs().max() < 0.03
    assert shares(temperature=1.0, top_p=0.01).tolist() == [1, 0, 0, 0]
    assert shares(temperature=0.2, top_p=1.0)[0] > 0.9
    assert choose(log_p, 0, 1.0, None).unique().tolist() == [0]


words = st.integers(0, 4)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(words, min_size=1, max_size=9), st.lists(words, max_size=3), st.randoms(use_true_random=False))
def test_a_constraint_lets_through_every_span_and_nothing_else(context, phrase, random):
    stop = 9
    spans = {tuple(context[a:b]) for a, b in itertools.combinations(range(len(context) + 1), 2)}
    said = spans | ({tuple(phrase)} if phrase else set())
    found, open_ends = set(), [()]
    while open_ends:  # everything that can be said under it
        prefix = open_ends.pop()
        constraint = SpanConstraint(context, phrase, stop)
        for token in prefix:
            assert token in constraint.allowed()
            constraint.take(token)
        allowed = constraint.allowed()
        assert allowed and (stop in allowed) == (prefix in said)
        if stop in allowed:
            found.add(prefix)
            size = len(prefix)
            wanted = [(k, k + size - 1) for k in range(len(context)) if tuple(context[k : k + size]) == prefix]
            assert constraint.places(size) == wanted
        open_ends += [(*prefix, token) for token in allowed - {stop}]
    assert found == said


def test_answers_are_bound_to_their_own_contexts():
    model = sharp("four-to-one")
    contexts = [[5, 9, 33, 4, 18], [7, 7, 8], [21, 3, 60]]
    stop, phrase = 95, [50, 51]
    constraints = [SpanConstraint(context, phrase, stop) for context in contexts]
    found = generate(model, PROMPTS, max_new=3, stop={stop}, constraints=constraints)
    for context, constraint, one in zip(contexts, constraints, found, strict=True):
        assert one.stopped and len(one.tokens) <= 3 and len(one.log_probabilities) == len(one.tokens) + 1
        if list(one.tokens) != phrase:
            assert all(tuple(context[a : b + 1]) == one.tokens for a, b in constraint.places(len(one.tokens)))
            assert constraint.places(len(one.tokens))
    free = generate(model, PROMPTS, max_new=3, stop={stop})
    assert [one.tokens for one in free] != [one.tokens for one in found]
    again = [SpanConstraint(contexts[1], phrase, stop)]
    (alone,) = generate(model, PROMPTS[1:2], max_new=3, stop={stop}, constraints=again)
    assert alone.tokens == found[1].tokens


def test_a_prefix_is_read_once_and_continued_often():
    model = sharp("two-to-one")
    wanted = generate(model, PROMPTS, max_new=6, stop=())
    with torch.inference_mode():
        prefix = Prefix(model, PROMPTS, room=7)
    assert go_on(prefix, max_new=6, stop=()) == wanted
    phrase = [3, 50, 8]
    scores = sequence_log_probability(prefix, phrase)
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + phrase]))[0].log_softmax(-1)
        places = [logits[len(prompt) - 1 + k, token].item() for k, token in enumerate(phrase)]
        assert scores[row].item() == pytest.approx(sum(places), abs=1e-3)
        assert sequence_log_probability(prefix, phrase[:1])[row].item() == pytest.approx(places[0], abs=1e-3)
    assert go_on(prefix, max_new=6, stop=()) == wanted
    for one, score in zip(wanted, zip(*[sequence_log_probability(prefix, list(w.tokens)).tolist() for w in wanted])):
        assert one.log_probability == pytest.approx(score[wanted.index(one)], abs=1e-3)


def test_padding_is_on_the_left():
    ids, mask = pad_left([[1, 2, 3], [4]], pad=9)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]] and mask.tolist() == [[True] * 3, [False, False, True]]
