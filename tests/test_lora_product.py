"""LoRA in one product while it learns: the values and gradients of two, and nothing else ever goes through it."""

import copy

import pytest
import torch

import model.lora as lora
from model.lora import HEAD, LoraConfig, add_lora, set_adapter, switch_of
from model.quant import FourBit, quantise
from model.tune import tune_lora
from tests.test_bert import ragged_batch, scalar_loss
from tests.test_lora import KINDS, adapted, dense_twin, randomise, tiny

PLAIN = ("lora", "rslora", "pattern")


@pytest.fixture
def products(monkeypatch):
    """The bases that went through `lora_product`, in order."""
    seen, product = [], lora.lora_product
    monkeypatch.setattr(lora, "lora_product", lambda x, base, update: seen.append(base) or product(x, base, update))
    return seen


def learner(kind="lora", four_bit=False, **changes):
    """A tiny model whose random adapter `one` learns, everything else frozen."""
    config = KINDS[kind] if not changes else LoraConfig(3, 7.0, **changes)
    if not four_bit:
        model = adapted(config)
    else:
        model = tiny()
        quantise(model, FourBit("nf4"))
        add_lora(model, config, "one")
        randomise(model, "one")
    tune_lora(model, config)
    return model.train()


def learn(model):
    """Logits and gradients of what learns, name -> tensor."""
    model.zero_grad()
    batch = ragged_batch()
    logits = model(*batch)
    scalar_loss(*logits, batch[2]).backward()
    return torch.stack(logits).detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("kind", PLAIN)
def test_one_product_is_the_sum_of_two(kind, four_bit, products):
    """In fp32, against the sum as evaluation takes it (no dropout in these models); measured: 8e-7 of the largest entry."""
    model = learner(kind, four_bit)
    logits, found = learn(model)
    layers = {"lora": 6, "rslora": 6, "pattern": 9}[kind]
    assert len(products) == layers
    wanted_logits, wanted = learn(model.eval())
    assert len(products) == layers and found.keys() == wanted.keys() and len(found) == 2 * layers + 2
    assert (logits - wanted_logits).abs().max() < 1e-5 * wanted_logits.abs().max()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 1e-3
        assert (found[name] - gradient).abs().max() < 1e-5 * max(1, gradient.abs().max()), name


@pytest.mark.parametrize("kind", PLAIN)
def test_gradients_are_those_of_the_dense_sum_by_autograd(kind):
    model = learner(kind)
    twin, batch = dense_twin(model, "one"), ragged_batch()
    _, found = learn(model)
    scalar_loss(*twin(*batch), batch[2]).backward()
    for name, gradient in found.items():
        layer, part = name.rsplit(".updates.one.", 1) if HEAD not in name else (None, None)
        if layer:
            update, dense = model.get_submodule(layer).updates["one"], twin.get_parameter(layer + ".weight").grad
            wanted = dense.T @ update.lora_B if part == "lora_A" else dense @ update.lora_A.T
            wanted = update.scale * (wanted.T if part == "lora_A" else wanted)
            assert (gradient - wanted).abs().max() < 2e-5 * max(1, wanted.abs().max()), name


@pytest.mark.parametrize("four_bit", [False, True])
def test_checkpointing_gives_the_same_bits(four_bit):
    found = []
    for checkpointing in (False, True):
        model = learner("lora", four_bit)
        model.bert.encoder.gradient_checkpointing = checkpointing
        found.append(learn(model))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())


def test_under_autocast_it_rounds_no_more_than_two_products_do(products):
    """Errors against fp32, of logits and of all gradients together: measured 0.008 (0.009 for the sum), and 0.029 (0.028)."""
    model = learner("lora")
    exact_logits, exact = learn(model)
    errors = []
    for mode in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            logits, found = learn(model.train(mode))
        gradient_error = sum((found[name] - g).square().sum() / g.square().sum() for name, g in exact.items())
        errors.append(((logits - exact_logits).square().mean(), gradient_error))
    assert len(products) == 12  # in fp32 and under autocast, when it learns
    for one, two in zip(*errors, strict=True):
        assert 0 < one < 4 * two


@pytest.mark.parametrize("changes", [{"dropout": 0.5}, {"dora": True}])
def test_what_needs_the_update_by_itself_does_not_take_it(changes, products):
    learn(learner(**changes))
    assert products == []


def test_nor_does_what_does_not_learn(products):
    model = learner()
    with torch.no_grad():
        model(*ragged_batch())
    with switch_of(model).rows(["one", None, "one"]):
        learn(model)
    set_adapter(model, None)
    model(*ragged_batch())
    unfrozen = copy.deepcopy(learner())
    for parameter in unfrozen.parameters():
        parameter.requires_grad_(True)
    learn(unfrozen)
    assert products == []
