"""LoRA's pass: equal to a dense W + sBA and to peft, in logits and gradients; names, rows, merging."""

import copy
import math
import threading

import pytest
import torch

from common.errors import InputError
from model.bert import BertConfig, BertForQuestionAnswering
from model.lora import (
    ALL_LINEAR, LoraConfig, LoraLinear, adapter_names, add_lora, linear_layers, remove_adapter, set_adapter, switch_of, target_layers,
)
from model.merging import merge, merged_model, unmerge
from tests.test_bert import VOCABULARY, ragged_batch, reference_model, scalar_loss
from tests import tiny_decoder
from tests.tiny_model import make_model

KINDS = {
    "lora": LoraConfig(3, 7.0),
    "rslora": LoraConfig(5, 3.0, rslora=True, targets=("query", "attention.output.dense")),
    "dora": LoraConfig(3, 7.0, dora=True, targets=(ALL_LINEAR,)),
    "pattern": LoraConfig(3, 7.0, targets=("query", "value", "intermediate.dense"),
                          rank_pattern={"layer.1.attention.self.value": 5}, alpha_pattern={"intermediate.dense": 2.0}),
}


def randomise(model, name, seed=1):
    """Give adapter `name` updates and a head that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for *_, module in linear_layers(model):
            if isinstance(module, LoraLinear) and name in module.updates:
                for parameter in module.updates[name].parameters():
                    parameter += torch.randn(parameter.shape, generator=generator) * 0.1
        for parameter in model.qa_outputs.heads[name].parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2


def tiny():
    return make_model(VOCABULARY, initializer_range=0.2)


def adapted(config=KINDS["lora"], *names):
    """A tiny model with random adapters of these names, the last of them active."""
    model = tiny()
    for number, name in enumerate(names or ("one",)):
        add_lora(model, config, name)
        randomise(model, name, seed=number + 1)
    return model.eval()


def logits(model, batch=None):
    with torch.no_grad():
        return torch.stack(model(*(batch or ragged_batch())))


def dense_twin(model, name):
    """The same function as a plain model: each W replaced by what DoRA and LoRA make of it, by the papers' formulas."""
    twin = tiny()
    state = {
        name.replace(".base.", "."): value
        for name, value in model.state_dict().items() if ".updates." not in name and ".heads." not in name
    }
    for layer, _, _, module in linear_layers(model):
        if isinstance(module, LoraLinear) and name in module.updates:
            update, config = module.updates[name], model.lora_configs[name]
            rank = update.lora_A.shape[0]
            s = config.scale_of(layer)
            assert s == pytest.approx(
                (2.0 if "intermediate.dense" in config.alpha_pattern and "intermediate" in layer else config.alpha)
                / (math.sqrt(rank) if config.rslora else rank)
            )
            whole = module.base.weight + s * update.lora_B @ update.lora_A
            if config.dora:
                whole = whole / whole.norm(dim=1, keepdim=True) * update.lora_magnitude_vector[:, None]
            state[layer + ".weight"] = whole.detach()
    for part, value in model.qa_outputs.heads[name].state_dict().items():
        state["qa_outputs." + part] = value
    twin.load_state_dict(state)
    return twin.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing_and_a_trained_one_is_its_dense_twin(kind):
    plain = tiny().eval()
    model = tiny().eval()
    add_lora(model, KINDS[kind], "one")
    assert (logits(model) - logits(plain)).abs().max() < 1e-5  # DoRA divides and multiplies by the same norms
    randomise(model, "one")
    assert (logits(model) - logits(plain)).abs().max() > 0.1
    assert (logits(model) - logits(dense_twin(model, "one"))).abs().max() < 2e-5


@pytest.mark.parametrize("kind", ["lora", "rslora", "pattern"])
def test_gradients_are_those_through_the_dense_sum(kind):
    """dL/dA = s Bᵀ dL/dW and dL/dB = s dL/dW Aᵀ, with dL/dW from autograd through W + sBA of a plain model."""
    model, batch = adapted(KINDS[kind]), ragged_batch()
    twin = dense_twin(model, "one")
    for one in (model, twin):
        scalar_loss(*one(*batch), batch[2]).backward()
    checked = 0
    for layer, _, _, module in linear_layers(model):
        if isinstance(module, LoraLinear):
            update, gradient = module.updates["one"], twin.get_parameter(layer + ".weight").grad
            s = model.lora_configs["one"].scale_of(layer)
            for ours, wanted in (
                (update.lora_A.grad, s * update.lora_B.T @ gradient),
                (update.lora_B.grad, s * gradient @ update.lora_A.T),
            ):
                assert (ours - wanted).abs().max() < 2e-5 * max(1, wanted.abs().max())
                assert wanted.abs().max() > 1e-3
                checked += 1
    assert checked == {"lora": 12, "rslora": 12, "pattern": 18}[kind]


def test_a_merged_update_gives_the_same_logits_and_goes_out_bit_for_bit():
    for kind in KINDS.values():
        model = adapted(kind)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        wanted = logits(model)
        merge(model, "one")
        once = logits(model)
        merge(model, "one")  # a second time changes nothing
        assert torch.equal(logits(model), once)
        assert (once - wanted).abs().max() < 2e-5
        assert not torch.equal(model.bert.encoder.layer[0].attention.self.query.base.weight,
                               before["bert.encoder.layer.0.attention.self.query.base.weight"])
        with pytest.raises(ValueError, match="unmerge"):
            set_adapter(model, None)
        with pytest.raises(ValueError, match="unmerge"):
            add_lora(model, kind, "two")
        unmerge(model)
        unmerge(model)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_model_is_plain_again(kind):
    model = adapted(KINDS[kind])
    wanted = logits(model)
    names = {name for name, _ in tiny().named_parameters()}
    plain = merged_model(model, "one")
    assert {name for name, _ in plain.named_parameters()} == names
    assert (logits(plain) - wanted).abs().max() < 2e-5
    bare = adapted(KINDS[kind])
    assert torch.equal(logits(merged_model(bare, None)), logits(tiny().eval()))


def test_adapters_are_switched_and_removed():
    model = adapted(KINDS["lora"], "one", "two")
    plain = logits(tiny().eval())
    assert adapter_names(model) == ["one", "two"] and switch_of(model).active == "two"
    two = logits(model)
    set_adapter(model, "one")
    one = logits(model)
    set_adapter(model, None)
    assert torch.equal(logits(model), plain)
    assert min((one - two).abs().max(), (one - plain).abs().max(), (two - plain).abs().max()) > 0.1
    set_adapter(model, "one")
    remove_adapter(model, "two")
    assert torch.equal(logits(model), one)
    for wrong in ("two", "", "One"):
        with pytest.raises(ValueError, match="one"):
            set_adapter(model, wrong)
    remove_adapter(model, "one")
    assert torch.equal(logits(model), plain) and adapter_names(model) == []
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in tiny().named_parameters()}
    for action in (lambda: merge(tiny(), None), lambda: merge(model, "one")):
        with pytest.raises(ValueError, match="to merge"):
            action()


def check_rows_alone(model, names, together):
    """Row k of the ragged batch through adapter names[k] alone gives what `together`, logits (2, B, T), has there."""
    ids, types, mask = ragged_batch()
    for row, name in enumerate(names):
        set_adapter(model, name)
        alone = logits(model, (ids[row : row + 1], types[row : row + 1], mask[row : row + 1]))[:, 0]
        assert (together[:, row] - alone)[:, mask[row]].abs().max() < 1e-5


def test_each_row_of_a_batch_has_its_own_adapter():
    model = adapted(KINDS["lora"], "one", "two")
    add_lora(model, KINDS["dora"], "three")
    randomise(model, "three", 9)
    for names in (["two", None, "one"], ["one", "three", "one"], [None, None, None], ["three"] * 3):
        with switch_of(model).rows(names):
            together = logits(model)
        check_rows_alone(model, names, together)
    with switch_of(model).rows(["one"]), pytest.raises(AssertionError, match="1 adapter names for a batch of 3"):
        logits(model)
    for wrong in (switch_of(model).rows(["oen"] * 3), switch_of(model).using("oen")):
        with pytest.raises(ValueError, match="there is no adapter 'oen'; known: one, two, three"), wrong:
            pass
    with switch_of(model).using("one"):
        set_adapter(model, "two")
        inside = logits(model)
    assert not torch.equal(logits(model), inside)
    set_adapter(model, "one")
    assert torch.equal(logits(model), inside)
    copy.deepcopy(model)


def test_rows_of_one_thread_are_not_those_of_another():
    model = adapted(KINDS["lora"], "one", "two")
    wanted, found = logits(model), []
    with switch_of(model).rows(["one", None, "one"]):
        other = threading.Thread(target=lambda: found.append(logits(model)))
        other.start()
        other.join()
        assert not torch.equal(logits(model), wanted)
    assert torch.equal(found[0], wanted)


def test_dropout_is_on_the_updates_input_alone():
    for kind in (LoraConfig(3, 7.0, dropout=0.5), LoraConfig(3, 7.0, dropout=0.5, dora=True)):
        model = adapted(kind)
        quiet = logits(model)
        model.train()
        torch.manual_seed(0)
        assert (logits(model) - quiet).abs().max() > 1e-3
        set_adapter(model, None)
        assert torch.equal(logits(model), logits(tiny()))
    update = adapted(LoraConfig(2, 2.0, dropout=0.5)).bert.encoder.layer[0].attention.self.query.updates["one"].train()
    x = torch.ones(200, 4, 35)
    torch.manual_seed(1)
    mean = update(x, None, None).mean((0, 1))
    update.eval()
    assert (mean - update(x, None, None)[0, 0]).abs().max() < 0.2  # kept values are scaled up: the mean stays


def test_bert_base_with_rank_8_has_294912_lora_parameters():
    with torch.device("meta"):
        model = BertForQuestionAnswering(BertConfig(vocab_size=30522))
        layers = add_lora(model, LoraConfig(rank=8), "one")
    count = sum(p.numel() for n, p in model.named_parameters() if ".updates." in n)
    assert count == 294_912 and len(layers) == 24


def test_targets_that_fit_nothing_are_named():
    model = tiny()
    for target in ("quary", "uery", "qa_outputs", "LayerNorm", ""):
        with pytest.raises(InputError, match=r"no Linear layer is called .* attention.output.dense, .*all-linear"):
            add_lora(model, LoraConfig(targets=("query", target)), "one")
    assert switch_of(model) is None
    add_lora(model, LoraConfig(), "one")
    for name in ("one", "", "a.b", "train", "values", "none"):
        before = {n for n, _ in model.named_parameters()}
        with pytest.raises(InputError, match="rename"):
            add_lora(model, LoraConfig(), name)
        assert {n for n, _ in model.named_parameters()} == before


def peft_twin(model, kind):
    """transformers' model of the same base with peft's adapter of the same settings and numbers."""
    import peft

    base = merged_model(adapted(kind), None)
    config = peft.LoraConfig(
        task_type="QUESTION_ANS", r=kind.rank, lora_alpha=kind.alpha, use_rslora=kind.rslora, use_dora=kind.dora,
        target_modules=[n for n, *_ in linear_layers(base)] if ALL_LINEAR in kind.targets else list(kind.targets),
        rank_pattern=kind.rank_pattern, alpha_pattern=kind.alpha_pattern,
    )
    theirs = peft.get_peft_model(reference_model(base), config)
    return theirs


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_peft(kind):
    from model.adapters import PREFIX, adapter_tensors

    model, batch = adapted(KINDS[kind]), ragged_batch()
    theirs = peft_twin(model, KINDS[kind])
    ours = adapter_tensors(model, "one")
    pairs = {}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            plain = name.replace(".modules_to_save.default", "").replace(".default", "")
            plain = plain.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
            pairs[name] = ours.pop(plain)
            parameter.data.copy_(pairs[name].data)
    assert ours == {} and any(PREFIX + "qa_outputs" in name for name in pairs)
    theirs.eval()
    mine = model(*batch)
    # peft 0.21's PeftModelForQuestionAnswering.forward loses token_type_ids on the way, hence the model inside it
    other = theirs.base_model(input_ids=batch[0], token_type_ids=batch[1], attention_mask=batch[2].long())
    other = other.start_logits, other.end_logits
    for a, b in zip(mine, other, strict=True):
        assert (a - b)[batch[2]].abs().max() < 1e-5 
    scalar_loss(*mine, batch[2]).backward()
    scalar_loss(*other, batch[2]).backward()
    parameters = dict(theirs.named_parameters())
    for name, ours_parameter in pairs.items():
        wanted = parameters[name].grad
        assert (ours_parameter.grad - wanted).abs().max() <= 2e-5 * max(1, wanted.abs().max()), name


def test_of_a_decoder_s_output_layer_it_is_not_said_that_it_is_none():
    with pytest.raises(InputError, match="lm_head takes no update here; there are mlp.down_proj, .*all-linear"):
        target_layers(tiny_decoder.make_model(71), ("q_proj", "lm_head"))
