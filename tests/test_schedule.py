"""When what happens: the learning rate of each step, what decays, where a run ends and is scored."""

import signal
from dataclasses import replace

import pytest

from common.options import parse
from answering.reader import Reader
from tests.tiny_model import make_model
from training.options import TRAIN_OPTIONS
from training.optimizer import learning_rate, make_optimizer
from training.setup import plan_steps
from training.signals import StopRequest, Terminated, terminable


def test_rates_of_the_worked_example():
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in (0, 4, 9, 10, 55, 99)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 1 / 90])


@pytest.mark.parametrize("total", [1, 2, 3, 7, 100, 1013])
@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.1, 0.5, 1.0])
def test_every_step_has_a_rate_above_zero_that_rises_then_falls(total, warmup):
    rates = [learning_rate(step, total, 3e-5, warmup) for step in range(total)]
    assert min(rates) > 0 and max(rates) == pytest.approx(3e-5)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_biases_and_norms_do_not_decay():
    model = make_model(101)
    optimizer = make_optimizer(model, 0.07)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.07, 0.0]
    assert sorted(decayed + plain) == sorted(names.values())
    assert all(name.endswith(".weight") and "LayerNorm" not in name for name in decayed)
    assert all(name.endswith(".bias") or "LayerNorm" in name for name in plain)
    layers = model.config.num_hidden_layers
    assert (len(decayed), len(plain)) == (3 + 6 * layers + 1, 2 + 10 * layers + 1)


def test_frozen_parameters_are_left_out():
    model = make_model(101).requires_grad_(False)
    model.qa_outputs.requires_grad_(True)
    optimizer = make_optimizer(model, 0.07)
    assert [[len(p) for p in group["params"]] for group in optimizer.param_groups] == [[2], [2]]
    model.qa_outputs.bias.requires_grad_(False)
    assert [group["weight_decay"] for group in make_optimizer(model, 0.07).param_groups] == [0.07]


@pytest.mark.parametrize(
    "flags, has_dev, wanted",
    [
        ([], True, (20, {10, 20})),
        ([], False, (20, set())),
        (["--eval-first"], True, (20, {0, 10, 20})),
        (["--eval-first"], False, (20, set())),
        (["--epochs", "0.5"], True, (5, {5})),
        (["--epochs", "0.001"], True, (1, {1})),
        (["--epochs", "2.5"], True, (25, {10, 20, 25})),
        (["--max-steps", "7"], True, (7, {7})),
        (["--max-steps", "7", "--eval-every", "3"], True, (7, {3, 6, 7})),
        (["--max-steps", "9", "--eval-every", "3"], True, (9, {3, 6, 9})),
        (["--eval-every", "1000"], True, (20, {20})),
    ],
)
def test_plan(flags, has_dev, wanted):
    assert plan_steps(parse("train.py", "", TRAIN_OPTIONS, flags), 10, has_dev) == wanted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_noted_and_a_second_acts(number):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with terminable():
        with StopRequest() as stop:
            assert stop.number is None
            signal.raise_signal(number)
            assert stop.number == number
            with pytest.raises(Terminated if number == signal.SIGTERM else KeyboardInterrupt):
                signal.raise_signal(number)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_dropout_of_the_options_reaches_every_place(tiny_folder):
    reader = Reader.load(tiny_folder, device="cpu", precision="fp32", dropout=0.25, attention_dropout=0.5)
    assert reader.model.config == replace(
        reader.model.config, hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.5
    )
    modules = list(reader.model.modules())
    before_head = reader.model.qa_dropout  # DistilBERT has one there, BERT none
    assert {m.p for m in modules if hasattr(m, "p") and m is not before_head} == {0.25} and before_head.p == 0.0
    assert {m.dropout_prob for m in modules if hasattr(m, "dropout_prob")} == {0.5}
