"""Linears in oneDNN's order: the products of F.linear in bf16, bit for bit, and nothing that needs a weight is packed."""

import json

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import infer
from answering.reader import Reader
from model.lora import LoraConfig, add_lora
from model.packed import PackedLinear, can_pack, pack_linears
from model.quant import FourBit, FourBitLinear, plain_linears, quantise
from tests.test_bert import VOCABULARY, ragged_batch
from tests.test_lora import randomise
from tests.tiny_decoder import make_model as make_decoder
from tests.tiny_model import make_model
from tests.tiny_run import examples, write_squad

CPU = torch.device("cpu")


def bf16(model, *batch):
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(*batch)
    return torch.stack(found) if isinstance(found, tuple) else found


@pytest.mark.parametrize("shape", [(1, 1), (7, 53), (35, 53), (384, 384), (1536, 384), (97, 641)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_products_are_those_of_autocast_bit_for_bit(shape, bias):
    torch.manual_seed(sum(shape))
    M, N = shape
    linear = nn.Linear(N, M, bias=bias)
    packed = PackedLinear(linear)
    for lead in ((1,), (3, 5), (129,), (2, 300)):
        for x in (torch.randn(*lead, N), torch.randn(*lead, N).bfloat16()):
            wanted = bf16(linear, x)
            assert wanted.dtype == torch.bfloat16 and torch.equal(bf16(packed, x), wanted)
        # of rows that do not lie one after the other F.linear rounds product and sum, and this the sum alone
        x = torch.randn(N, *lead).bfloat16().movedim(0, -1)
        torch.testing.assert_close(bf16(packed, x), bf16(packed, x.contiguous()), rtol=0, atol=0)
    half = linear.to(torch.bfloat16)  # as a decoder's stay that were stored so
    x = torch.randn(4, N).bfloat16()
    with torch.inference_mode():
        assert torch.equal(PackedLinear(half)(x), F.linear(x, half.weight, half.bias))


@pytest.mark.parametrize("adapted", [False, True])
def test_a_packed_encoder_answers_the_same(adapted):
    model = make_model(VOCABULARY).eval()
    if adapted:
        add_lora(model, LoraConfig(3, 7.0, targets=("query", "dense")), "one")
        randomise(model, "one")
    before, count = bf16(model, *ragged_batch()), len(plain_linears(model))
    assert pack_linears(model, CPU, "bf16") == count == 18
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 18 and not plain_linears(model)
    assert torch.equal(bf16(model, *ragged_batch()), before)
    assert type(model.qa_outputs) is not PackedLinear


@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_decoder_says_the_same(tied):
    ids = torch.randint(3, 300, (2, 9))
    model = make_decoder(300, tie_word_embeddings=tied).eval()
    before = bf16(model, ids)
    assert pack_linears(model, CPU, "bf16") == 2 * 7 + (not tied)
    assert torch.equal(bf16(model, ids), before)
    assert type(model.lm_head) is (nn.Linear if tied else PackedLinear)


def test_what_needs_its_weight_or_computes_otherwise_stays():
    model = make_model(VOCABULARY).eval()
    assert pack_linears(model, CPU, "fp32") == 0 == pack_linears(model, torch.device("cuda"), "bf16")
    assert len(plain_linears(model)) == 18
    add_lora(model, LoraConfig(3, 7.0, dora=True), "one")  # query and value of each block
    randomise(model, "one")
    before = bf16(model, *ragged_batch())
    assert pack_linears(model, CPU, "bf16") == 12 and len(plain_linears(model)) == 6
    assert torch.equal(bf16(model, *ragged_batch()), before)
    rounded = make_model(VOCABULARY).eval()
    quantise(rounded, FourBit.named("nf4", "bf16"))
    assert pack_linears(rounded, CPU, "bf16") == 0
    assert sum(isinstance(module, FourBitLinear) for module in rounded.modules()) == 18


def test_without_the_operators_nothing_is_packed(monkeypatch):
    assert can_pack()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_pack() and pack_linears(make_model(VOCABULARY), CPU, "bf16") == 0


def test_a_file_is_answered_as_a_reader_answers_it(tiny_folder, tmp_path):
    write_squad(tmp_path / "asked.json", range(9), with_null=False)
    argv = ["--model", tiny_folder, "--predict", tmp_path / "asked.json", "--out", tmp_path / "out", "--device", "cpu",
            "--precision", "bf16"]
    assert infer.main(list(map(str, argv))) == 0
    reader = Reader.load(tiny_folder, device="cpu", precision="bf16")
    wanted = {one.id: one.spans[0].start_logit for one in reader.predict(list(examples(range(9))), offer_null=False)}
    found = json.loads((tmp_path / "out/nbest_predictions.json").read_text())
    assert {name: best[0]["start_logit"] for name, best in found.items()} == wanted
    counted = json.loads((tmp_path / "out/metrics.json").read_text())["total_parameters"]
    assert counted == sum(parameter.numel() for parameter in reader.model.parameters())
