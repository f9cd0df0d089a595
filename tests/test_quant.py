"""4-bit weights: the textbook NF4 equal to bitsandbytes, the pass over the encoder, loading, and QLoRA."""

import json

import pytest
import torch
import torch.nn as nn
from safetensors.torch import load_file

import train
from common.errors import InputError
from model.lora import LoraConfig, LoraLinear, add_lora, linear_layers
from model.merging import merge, merged_model
from model.nf4 import dequantise_nf4, dynamic_codes, nf4_codes, quantise_nf4
from model.quant import (
    QUANTS, FourBit, FourBitLinear, Int8Linear, bitsandbytes_layers, dense_weight, quantise, weight_bytes,
)
from model.weights import load_model
from answering.reader import Reader, ReaderSettings
from tests.test_bert import VOCABULARY, ragged_batch, scalar_loss
from tests.test_lora import dense_twin, logits, randomise
from tests.tiny_model import make_folder, make_model
from tests.tiny_run import Nursery, arguments

SHAPES = [(64, 64), (35, 53), (7, 9), (1, 1), (1, 65), (5, 130), (128, 384), (97, 640)]


@pytest.fixture(scope="module")
def functional():
    bitsandbytes_layers()  # silences its note
    import bitsandbytes.functional

    return bitsandbytes.functional


def tiny():
    return make_model(VOCABULARY, initializer_range=0.2).eval()


def test_code_books_are_those_of_bitsandbytes(functional):
    assert torch.equal(nf4_codes(), functional.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(dynamic_codes(), functional.create_dynamic_map())
    assert len(nf4_codes().unique()) == 16 and len(dynamic_codes().unique()) == 256


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_textbook_is_bitsandbytes_bit_for_bit(functional, shape, double):
    for scale in (1.0, 0.05, 1e-7):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale
        weight[len(weight) // 2 :: 3] = 0  # blocks of zeros
        ours = quantise_nf4(weight, double)
        packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
        assert torch.equal(ours.indices, packed.view(-1)) and torch.equal(ours.absmax, state.absmax)
        if double:
            assert torch.equal(ours.offset, state.offset) and torch.equal(ours.absmax_scale, state.state2.absmax)
        back = dequantise_nf4(ours)
        assert torch.equal(back, functional.dequantize_4bit(packed, state))
        assert back.shape == weight.shape and (back - weight).abs().max() <= 0.17 * weight.abs().max() + 1e-12


@pytest.mark.parametrize("name", QUANTS)
def test_a_layer_of_any_width_computes_with_what_the_textbook_reads_back(name):
    """bitsandbytes 0.50's kernel for CPUs takes a wrong absmax where rows end within a block of 64."""
    generator = torch.Generator().manual_seed(0)
    for N in (1, 2, 15, 16, 24, 32, 48, 63, 64, 80, 96, 128, 176, 352, 400, 1200):
        for M in (1, 2, 7, 40):
            weight = torch.randn(M, N, generator=generator)
            layer = FourBitLinear(N, M, nn.Parameter(torch.randn(M, generator=generator)), FourBit.named(name))
            layer.fill(weight)
            dense = dense_weight(layer)
            if name.startswith("nf4"):
                assert torch.equal(dense, dequantise_nf4(quantise_nf4(weight, "single" not in name))), (M, N)
            assert (dense - weight).abs().max() <= 0.34 * weight.abs().max(), (M, N)  # the widest gap of either code book
            x = torch.randn(3, 5, N, generator=generator, requires_grad=True)
            y, wanted = layer(x), x @ dense.t() + layer.bias
            torch.testing.assert_close(y, wanted, atol=2e-5, rtol=1e-5)
            (gradient,) = torch.autograd.grad(y.square().sum(), x)
            (right,) = torch.autograd.grad(wanted.square().sum(), x)
            torch.testing.assert_close(gradient, right, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("name", QUANTS)
def test_a_quantised_model_computes_with_its_dequantised_weights(name):
    model = tiny()
    biases = {n: p.clone() for n, p in model.named_parameters() if n.endswith("bias")}
    plain = logits(model)
    done = quantise(model, FourBit.named(name))
    assert len(done) == 3 * 6 and sum(isinstance(m, FourBitLinear) for m in model.modules()) == 18
    assert not isinstance(model.qa_outputs, FourBitLinear)
    state = model.bert.encoder.layer[0].attention.self.query.weight.quant_state
    assert state.quant_type == name[:3] and state.nested == ("single" not in name)
    first = logits(model)
    assert torch.equal(logits(model), first)  # being used changes nothing
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(*ragged_batch())
    assert torch.equal(logits(model), first)
    assert all(torch.equal(p, biases[n]) for n, p in model.named_parameters() if n in biases)
    assert (first - plain).abs().max() > 1e-3
    twin = merged_model(model, None)
    assert not any(isinstance(m, FourBitLinear) for m in twin.modules())
    assert (logits(twin) - first).abs().max() < 2e-5


def test_parameters_are_counted_as_if_in_full():
    from training.measure import parameter_counts, parameter_groups

    whole = parameter_counts(tiny())[1]
    model = tiny()
    quantise(model, FourBit.named("fp4-single"))
    add_lora(model, LoraConfig(3, 7.0), "one")
    groups = parameter_groups(model)
    packed = 3 * (4 * 35 * 35 + 2 * 35 * 53)
    assert groups["encoder"] == {"fp4-single": packed, "float32": 3 * (4 * 35 + 53 + 35 + 4 * 35)}
    assert groups["adapters"] == {"float32": 3 * 2 * 2 * 3 * 35} and groups["head"] == {"float32": 2 * 72}
    assert list(groups) == ["embeddings", "encoder", "adapters", "head"]
    total = sum(count for kinds in groups.values() for count in kinds.values())
    assert parameter_counts(model)[1] == total == whole + 3 * 2 * 2 * 3 * 35 + 72


def test_loading_into_4_bits_is_loading_and_then_quantising(tiny_folder):
    later, _ = load_model(tiny_folder)
    quantise(later, FourBit())
    directly, report = load_model(tiny_folder, four_bit=FourBit())
    assert report.fingerprint == load_model(tiny_folder)[1].fingerprint
    assert not any(parameter.is_meta for parameter in directly.parameters())
    assert torch.equal(logits(directly.eval()), logits(later.eval()))


def test_a_bert_base_takes_a_seventh_of_its_bytes():
    model = make_model(VOCABULARY, num_hidden_layers=1, hidden_size=768, num_attention_heads=12, intermediate_size=3072)
    whole = weight_bytes(model)
    assert whole == 4 * (4 * 768 * 768 + 2 * 768 * 3072)
    quantise(model, FourBit())
    assert whole / 8 < weight_bytes(model) <= whole / 7
    for parameter in (model.bert.embeddings.word_embeddings.weight, model.qa_outputs.weight):
        assert parameter.dtype == torch.float32


@pytest.mark.parametrize("dora", [False, True])
def test_lora_over_4_bits_has_the_gradients_of_the_dense_sum(dora):
    model, batch = tiny(), ragged_batch()
    quantise(model, FourBit())
    add_lora(model, LoraConfig(3, 7.0, dora=dora, targets=("query", "intermediate.dense")), "one")
    randomise(model, "one")
    update = model.bert.encoder.layer[1].intermediate.dense.updates["one"]
    plain = merged_model(tiny(), None)  # then every base weight is what the 4 bits stand for
    for (_, _, _, ours), (_, _, _, theirs) in zip(linear_layers(model), linear_layers(plain), strict=True):
        base = ours.base if isinstance(ours, LoraLinear) else ours
        theirs.weight.data = dense_weight(base)
    add_lora(plain, model.lora_configs["one"], "one")
    for (_, _, _, ours), (_, _, _, theirs) in zip(linear_layers(model), linear_layers(plain), strict=True):
        if isinstance(ours, LoraLinear):
            theirs.updates["one"].load_state_dict(ours.updates["one"].state_dict())
    plain.qa_outputs.heads["one"].load_state_dict(model.qa_outputs.heads["one"].state_dict())
    for one in (model, plain):
        scalar_loss(*one(*batch), batch[2]).backward()
    assert (logits(model) - logits(plain)).abs().max() < 2e-5
    if not dora:
        assert (logits(plain) - logits(dense_twin(plain, "one"))).abs().max() < 2e-5
    other = plain.bert.encoder.layer[1].intermediate.dense.updates["one"]
    for name, parameter in update.named_parameters():
        wanted = other.get_parameter(name).grad
        assert wanted.abs().max() > 1e-4
        assert (parameter.grad - wanted).abs().max() < 2e-5 * max(1, wanted.abs().max())
    with pytest.raises(ValueError, match="merge.py"):
        merge(model, "one")


QLORA = {"tune": "qlora", "lora_rank": 3, "lora_dropout": 0.1, "max_steps": 7, "eval_every": 3, "save_every": 2}


def test_a_qlora_run_killed_anywhere_ends_bit_identical(place, tmp_path):
    folder, encoder = place
    with Nursery(tmp_path) as nursery:
        assert nursery.run(arguments(folder, encoder, tmp_path / "whole", **QLORA)) == 0
        argv = arguments(folder, encoder, tmp_path / "cut", **QLORA)
        assert nursery.run(argv, ("training.step", "span_loss", 9)) == -9
        assert nursery.run([*argv, "--resume"]) == 0
    for name in ("model/adapter_model.safetensors", "model/reader.json", "predictions.json", "nbest_predictions.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes(), name
    recorded = json.loads((tmp_path / "whole/config.json").read_text())["options"]
    assert recorded["quant"] == "nf4" and recorded["checkpointing"] is True
    checkpoint = load_file(tmp_path / "whole/checkpoints/step-00000007/model.safetensors")
    assert all(".updates." in name or ".heads." in name for name in checkpoint)
    reader = Reader.load(tmp_path / "whole/model", device="cpu", precision="fp32")
    assert reader.settings.quant == "nf4"
    assert isinstance(reader.model.bert.encoder.layer[0].intermediate.dense, FourBitLinear)


def test_4_bit_weights_cannot_be_tuned_themselves(place, tmp_path, capsys):
    folder, encoder = place
    for tune in ("full", "head", "bitfit"):
        assert train.main(arguments(folder, encoder, tmp_path / "out", tune=tune, quant="nf4")) == 2
        assert f"--quant is for --tune lora or qlora, and --tune is {tune}" in capsys.readouterr().err
    reader_json = {"format": 1, "windows": {}, "decode": {}, "null_threshold": None, "quant": "nf3"}
    path = tmp_path / "reader.json"
    path.write_text(json.dumps(reader_json))
    with pytest.raises(InputError, match="quant: expected one of nf4"):
        ReaderSettings.from_file(path)


@pytest.mark.parametrize("name", QUANTS)
def test_a_quantised_model_is_saved_and_read_back_exactly(tiny_folder, tmp_path, name):
    reader = Reader.load(tiny_folder, device="cpu", precision="fp32", quant=name)
    reader.save(tmp_path)
    again = Reader.load(tmp_path, device="cpu", precision="fp32")
    assert torch.equal(logits(again.model.eval()), logits(reader.model.eval()))
    twice = tmp_path / "twice"
    twice.mkdir()
    again.save(twice)
    one, two = (load_file(folder / "model.safetensors") for folder in (tmp_path, twice))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["bnb_4bit_quant_type"] == name[:3]
    for quant in {None, "int8", "fp4-single" if name == "nf4" else "nf4"}:
        with pytest.raises(InputError, match=f"stored in {name}"):
            Reader.load(tmp_path, quant=quant)


Q = "bert.encoder.layer.1.attention.self.query.weight"
DAMAGE = {
    f"{Q}: not a weight in nf4: .quant_map is missing": lambda t: t.pop(Q + ".quant_map"),
    f"lack {Q}": lambda t: [t.pop(key) for key in list(t) if key.startswith(Q)],
    f"{Q}: the packed weight should be 613 finite": lambda t: t.update({Q: t[Q][:-1]}),
    f"{Q}: .absmax should be 20 finite": lambda t: t.update({Q + ".absmax": t[Q + ".absmax"][:-1]}),
    f"{Q}: .nested_absmax should be 1 finite": lambda t: t.update({Q + ".nested_absmax": torch.zeros(0)}),
    f"{Q}: .quant_map should be 16 finite": lambda t: t.update({Q + ".quant_map": torch.zeros(2)}),
    f"{Q}: .nested_quant_map should be 256": lambda t: t.update({Q + ".nested_quant_map": torch.zeros(256).bfloat16()}),
    f"{Q}: .nested_absmax should be 1 finite numbers": lambda t: t.update({Q + ".nested_absmax": torch.ones(1) / 0}),
    "has no place": lambda t: t.update({Q.replace("query", "quary") + ".absmax": t[Q + ".absmax"].clone()}),
    "belongs to a weight in 4 bits, and config.json names none": lambda t: None,
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_damaged_4_bit_weights_are_refused(tiny_folder, tmp_path, sentence):
    from safetensors.torch import save_file

    Reader.load(tiny_folder, device="cpu", precision="fp32", quant="nf4").save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    DAMAGE[sentence](tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    if "names none" in sentence:
        config = json.loads((tmp_path / "config.json").read_text())
        config.pop("quantization_config")
        (tmp_path / "config.json").write_text(json.dumps(config))
        settings = json.loads((tmp_path / "reader.json").read_text()) | {"quant": None}
        (tmp_path / "reader.json").write_text(json.dumps(settings))
    with pytest.raises(InputError) as refusal:
        Reader.load(tmp_path, device="cpu", precision="fp32")
    assert sentence in str(refusal.value)


def test_int8_is_the_rounded_product():
    model = tiny()
    layer = model.bert.encoder.layer[1].intermediate.dense
    packed = Int8Linear(layer)
    x = torch.randn(3, 7, 35, generator=torch.Generator().manual_seed(1))
    x[0, 2] = 0
    s_w = layer.weight.abs().amax(1) / 127
    s_x = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    w, q = (layer.weight / s_w[:, None]).round().double(), (x / s_x).round().double()
    wanted = (q @ w.T) * s_x.double() * s_w.double() + layer.bias.double()
    with torch.no_grad():
        assert (packed(x) - wanted).abs().max() < 1e-5
        assert 0 < (packed(x) - layer(x)).abs().max() < 0.02 * layer(x).abs().max()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert packed(x).dtype == torch.bfloat16
    assert (dense_weight(packed) - layer.weight).abs().max() <= s_w.max() / 2 + 1e-6


def test_a_reader_multiplies_in_int8_with_and_without_an_adapter(tmp_path):
    folder = make_folder(tmp_path, initializer_range=0.05)  # with larger weights a tiny model amplifies any rounding
    whole = Reader.load(folder, device="cpu", precision="fp32")
    packed = Reader.load(folder, device="cpu", precision="fp32", quant="int8")
    assert sum(isinstance(m, Int8Linear) for m in packed.model.modules()) == 18
    text = "The mill was built by Ada Stone in 1807. It stands in Riga. " * 9
    for reader in (whole, packed):
        reader.all_settings["one"] = reader.all_settings[None]
    before = packed.ask("Who built it?", text)[0]
    one, two = (logits(reader.model.eval()) for reader in (whole, packed))
    assert 1e-4 < (one - two).abs().max() < 0.1 * one.abs().max()
    for reader in (whole, packed):
        torch.manual_seed(0)
        add_lora(reader.model, LoraConfig(3, 7.0), "one")
        randomise(reader.model, "one")
    assert packed.ask("Who built it?", text)[0] != before
    one, two = (logits(reader.model.eval()) for reader in (whole, packed))
    assert 1e-4 < (one - two).abs().max() < 0.1 * one.abs().max()
    with pytest.raises(ValueError, match="rounded weights"):
        merge(packed.model, "one")
