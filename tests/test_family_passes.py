"""What is done to a built model works for each family: LoRA in peft's format, 4 bits, int8, virtual tokens, fusions."""

import json

import pytest
import torch
from safetensors import safe_open

from model.adapters import load_adapter, read_adapter, save_adapter
from model.fusion import add_fusion, load_fusion, save_fusion
from model.lora import ALL_LINEAR, LoraConfig, add_lora, adapter_names, set_adapter
from model.prompts import load_prompt, save_prompt, tune_prompt
from model.quant import FourBit, FourBitLinear, Int8Linear, dense_weight, multiply_in_int8, quantise
from model.saving import save_weights
from model.weights import load_model
from tests.test_bert import TOLERANCE, VOCABULARY
from tests.test_families import batch_of
from tests.test_lora import randomise
from tests.tiny_families import FAMILIES, make_family, reference, run_reference

KINDS = {
    "usual": LoraConfig(3, 7.0),
    "patterns": LoraConfig(
        3, 7.0, targets=("attention.self.key", "output.dense"), rank_pattern={"layer.1.attention.self.key": 5},
        alpha_pattern={"attention.output.dense": 11.0},
    ),
    "everything": LoraConfig(2, 5.0, targets=(ALL_LINEAR,), rslora=True),
}
TARGETS = {"usual": ["attention.q_lin", "attention.v_lin"],
           "patterns": ["attention.k_lin", "attention.out_lin", "ffn.lin2"],
           "everything": [f"attention.{x}_lin" for x in ("k", "out", "q", "v")] + ["ffn.lin1", "ffn.lin2"]}


def logits(model, family):
    """(2, 3, 29) of the family's ragged batch, zero on padding."""
    ids, types, mask = batch_of(family)
    with torch.no_grad():
        return torch.stack(model(ids, types, mask)) * mask


def adapted(family, config, name="one", seed=1):
    """A model of the family with a random adapter."""
    model = make_family(family, VOCABULARY).eval()
    add_lora(model, config, name)
    randomise(model, name, seed)
    return model


def saved(folder, model, name="one"):
    folder.mkdir(exist_ok=True)
    save_adapter(model, name, folder, base="somewhere", fingerprint="f" * 64)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_come_back_and_open_in_peft(tmp_path, family, kind):
    import peft

    model = adapted(family, KINDS[kind])
    folder = saved(tmp_path / "one", model)
    names = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    if family == "distilbert":
        assert names == TARGETS[kind]
    elif kind == "usual":
        assert names == ["query", "value"]
    theirs = peft.PeftModel.from_pretrained(reference(make_family(family, VOCABULARY)), folder).eval()
    ids, types, mask = batch_of(family)
    theirs.base_model.config = theirs.base_model.model.config
    with torch.no_grad():
        found = torch.stack(run_reference(theirs.base_model, ids, types, mask)) * mask
    assert (found - logits(model, family)).abs().max() <= TOLERANCE
    fresh = make_family(family, VOCABULARY).eval()
    assert (logits(model, family) - logits(fresh, family)).abs().max() > 0.05
    load_adapter(fresh, folder, "other", "f" * 64)
    assert torch.equal(logits(fresh, family), logits(model, family))
    again = saved(tmp_path / "again", fresh, "other")
    assert (again / "adapter_model.safetensors").read_bytes() == (folder / "adapter_model.safetensors").read_bytes()
    if kind != "everything":
        assert (again / "adapter_config.json").read_bytes() == (folder / "adapter_config.json").read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_ours_opens_what_peft_trained(tmp_path, family):
    import peft

    targets = ["q_lin", "lin1"] if family == "distilbert" else ["query", "intermediate.dense"]
    prefix = {"distilbert": "distilbert.transformer.layer.1.attention.q_lin"}.get(
        family, f"{family.removeprefix('xlm-')}.encoder.layer.1.attention.self.query"
    )
    config = peft.LoraConfig(
        task_type="QUESTION_ANS", r=3, lora_alpha=7, target_modules=targets, rank_pattern={prefix: 5}, lora_dropout=0.0
    )
    torch.manual_seed(3)
    theirs = peft.get_peft_model(reference(make_family(family, VOCABULARY)), config).train()
    theirs.base_model.config = theirs.base_model.model.config
    ids, types, mask = batch_of(family)
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.02)
    for _ in range(3):
        start, end = run_reference(theirs.base_model, ids, types, mask)
        optimizer.zero_grad()
        (start[:, 3].sum() - end[:, 2].sum()).backward()
        optimizer.step()
    theirs.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert file.get_slice(f"base_model.model.{prefix}.lora_A.weight").get_shape() == [5, 35]
    model = make_family(family, VOCABULARY).eval()
    load_adapter(model, tmp_path, "theirs")
    with torch.no_grad():
        found = torch.stack(run_reference(theirs.eval().base_model, ids, types, mask)) * mask
    assert (found - logits(model, family)).abs().max() <= TOLERANCE
    assert set(read_adapter(tmp_path).config.targets) == set(targets)


def test_both_names_of_a_layer_target_it():
    ours = add_lora(make_family("distilbert", VOCABULARY), LoraConfig(targets=("query", "attention.output.dense")), "a")
    theirs = add_lora(make_family("distilbert", VOCABULARY), LoraConfig(targets=("q_lin", "out_lin")), "a")
    assert ours == theirs and len(ours) == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_4_bits_are_stored_as_transformers_names_them(tmp_path, family):
    sizes = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4)
    model, plain = (make_family(family, VOCABULARY, **sizes).eval() for _ in range(2))
    names = quantise(model, FourBit("nf4", True))
    assert len(names) == 18 + (family == "electra")
    packed = logits(model, family)
    assert (packed - logits(plain, family)).abs().max() > 0.01
    with torch.no_grad():
        for name in names:
            plain.get_submodule(name).weight.copy_(dense_weight(model.get_submodule(name)))
    assert (packed - logits(plain, family)).abs().max() < 1e-3
    save_weights(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        theirs = "distilbert.transformer.layer.2.ffn.lin2" if family == "distilbert" else "encoder.layer.2.output.dense"
        assert any(key.endswith(f"{theirs}.weight.absmax") for key in file.keys())
    again, report = load_model(tmp_path)
    assert isinstance(again.bert.encoder.layer[2].output.dense, FourBitLinear) and report.new == ()
    assert torch.equal(logits(again.eval(), family), packed)
    add_lora(again, LoraConfig(2, 4.0, targets=(ALL_LINEAR,)), "one")
    randomise(again, "one", 1)
    assert (logits(again, family) - packed).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_is_close(family):
    model = make_family(family, VOCABULARY, hidden_size=40, intermediate_size=56, initializer_range=0.1).eval()
    plain = logits(model, family)
    multiply_in_int8(model)
    assert sum(isinstance(module, Int8Linear) for module in model.modules()) == 18 + (family == "electra")
    assert 0 < (logits(model, family) - plain).abs().mean() < 0.1 * plain.abs().mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_virtual_tokens_are_inputs_of_transformers_model(tmp_path, family):
    model = make_family(family, VOCABULARY).eval()
    torch.manual_seed(2)
    tune_prompt(model, 5)
    ids, types, mask = batch_of(family)
    theirs = reference(make_family(family, VOCABULARY)).eval()
    embeddings = theirs.get_input_embeddings()
    words = torch.cat([model.bert.prompt.expand(3, -1, -1), embeddings(ids)], 1)
    inputs = {"inputs_embeds": words, "attention_mask": torch.cat([mask.new_ones(3, 5), mask], 1).long()}
    if family == "electra":
        inputs["token_type_ids"] = torch.cat([types.new_zeros(3, 5), types], 1)
    with torch.no_grad():
        out = theirs(**inputs)
    found = torch.stack([out.start_logits, out.end_logits])[:, :, 5:] * mask
    assert (found - logits(model, family)).abs().max() <= TOLERANCE
    save_prompt(model, tmp_path, base="somewhere")
    fresh = make_family(family, VOCABULARY).eval()
    load_prompt(fresh, tmp_path)
    assert torch.equal(logits(fresh, family), logits(model, family))


@pytest.mark.parametrize("family", FAMILIES)
def test_fusions_come_back(tmp_path, family):
    model = adapted(family, KINDS["usual"])
    add_lora(model, KINDS["everything"], "two")
    randomise(model, "two", 2)
    add_fusion(model, "mix", ["one", "two"])
    mixed = logits(model, family)
    (tmp_path / "mix").mkdir()
    save_fusion(model, "mix", tmp_path / "mix", base="somewhere")
    fresh = make_family(family, VOCABULARY).eval()
    load_fusion(fresh, tmp_path / "mix", "mix")
    assert adapter_names(fresh) == ["one", "two", "mix"]
    assert torch.equal(logits(fresh, family), mixed)
    set_adapter(fresh, "one")
    assert (logits(fresh, family) - mixed).abs().max() > 0.01
