"""Learning to say answers: the loss by hand, any split the same gradient, and a decoder that learns a few by heart."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.chat import FORMATS
from data.prompts import PromptSet
from model.lora import LoraConfig
from model.precision import make_scaler
from model.tune import tune_lora
from answering.reader import Reader
from tests.test_prompts import SHORT
from tests.test_speaker import make_speaker, unbound
from tests.tiny_run import examples
from training.optimizer import make_optimizer
from training.step import accumulate, answer_loss, train_step

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def speaker():
    return make_speaker()


@pytest.fixture(scope="module")
def prompts(speaker):
    return PromptSet(list(examples([0, 1, 5])), speaker.tokenizer, FORMATS["llama3"], SHORT, with_labels=True)


def gradients(model, prompts, chosen, max_tokens):
    model.zero_grad(set_to_none=True)
    scaler = make_scaler(CPU, "fp32")
    found = accumulate(model, prompts, chosen, max_tokens, device=CPU, precision="fp32", scaler=scaler)
    return found, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_any_split_gives_the_mean_over_the_tokens_to_be_said(speaker, prompts):
    model, chosen = speaker.model.train(), np.arange(len(prompts))
    assert len(set(prompts.length.tolist())) > 1
    total, count = 0.0, 0
    model.zero_grad(set_to_none=True)
    for prompt in chosen:
        ids, answer = prompts.prompt_ids(prompt), prompts.answer_ids(prompt)
        log_p = model(torch.tensor([ids + answer]))[0].log_softmax(-1)
        loss = -sum(log_p[len(ids) - 1 + k, token] for k, token in enumerate(answer))
        loss.backward()
        total, count = total + loss.item(), count + len(answer)
    wanted = {name: parameter.grad / count for name, parameter in model.named_parameters()}
    assert prompts.units(chosen) == count
    for max_tokens in (90, 200, 10_000):
        (loss, tokens, padded), found = gradients(model, prompts, chosen, max_tokens)
        assert loss == pytest.approx(total / count, rel=1e-5)
        assert tokens == prompts.length.sum() <= padded
        for name, gradient in found.items():
            assert (gradient - wanted[name]).abs().max() < 1e-5 * max(1, wanted[name].abs().max()), name


def test_answer_loss_by_hand():
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 3.0, 0.0]])
    wanted = (np.log(np.exp([0, 1, 2]).sum()) - 2) + (np.log(np.exp([0, 3, 0]).sum()) - 3) / 4
    found = answer_loss(logits, torch.tensor([2, 1]), torch.tensor([1.0, 0.25]))
    assert found.item() == pytest.approx(wanted, rel=1e-6)


def test_several_references_make_the_mean_of_their_losses(speaker):
    """Two annotators say the whole answer and one its first word: a third of the weight is that word's."""
    (one,) = examples([0])
    whole, word = one.answers[0], one.answers[0].text.split()[0]
    short = replace(whole, text=word)
    both = PromptSet([replace(one, answers=(whole, short, whole))], speaker.tokenizer, FORMATS["llama3"], SHORT,
                     with_labels=True)
    apart = [
        PromptSet([replace(one, answers=(answer,))], speaker.tokenizer, FORMATS["llama3"], SHORT, with_labels=True)
        for answer in (whole, short)
    ]
    first = PromptSet([replace(one, answers=(whole, short))], speaker.tokenizer, FORMATS["llama3"], SHORT,
                      with_labels=True, references="first")
    assert first.answer.tolist() == apart[0].answer.tolist() and (first.share == 1).all()
    assert len(both) > len(first)
    sets = (both, *apart)
    units = [prompts.units(np.arange(len(prompts))) for prompts in sets]
    means = [gradients(speaker.model.train(), prompts, np.arange(len(prompts)), 10_000)[0][0] for prompts in sets]
    summed = [mean * count for mean, count in zip(means, units, strict=True)]
    assert units[0] == pytest.approx((2 * units[1] + units[2]) / 3)
    assert summed[0] == pytest.approx((2 * summed[1] + summed[2]) / 3, rel=1e-5)


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_a_decoder_learns_a_few_answers_by_heart(speaker, tune):
    import copy

    some = list(examples([0, 1, 2]))
    model = copy.deepcopy(speaker.model)
    asked = Reader(model, speaker.tokenizer, speaker.settings, device=CPU, precision="fp32", tokenizer_config={})
    prompts = asked.training_set(some)
    if tune == "lora":
        tune_lora(model, LoraConfig(8, 16.0, targets=("all-linear",)))
        asked.settings = speaker.settings
    optimizer, scaler = make_optimizer(model, 0.0), make_scaler(CPU, "fp32")
    losses = []
    for _ in range(60):
        model.train()
        result = train_step(
            model, optimizer, scaler, prompts, np.arange(len(prompts)), learning_rate=0.01, max_tokens=2000, clip=1.0,
            device=CPU, precision="fp32",
        )
        losses.append(result.loss)
    assert losses[-1] < 0.05 * losses[0]
    said = [prediction.answer(0.0) for prediction in asked.predict(some)]
    assert [span.text for span in said] == [one.answers[0].text for one in some]
    assert [p.spans[0].text for p in unbound(asked, some, way="greedy")][0] == some[0].answers[0].text
