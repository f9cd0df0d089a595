"""`python -m inside.verify`: agreement with golden and live activations, and where a damaged model departs."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench import activations as bench
from inside import verify
from inside.activations import ACTIVATIONS, GOLDEN, Layer, compare, first_divergence, probe
from answering.reader import Reader
from model.pruning import prune
from model.weights import read_config
from tests.tiny_adapters import make_adapters
from tests.tiny_families import FAMILIES, make_family_folder

NAMES = ["hidden.0", "attention.0", "hidden.1", "attention.1", "hidden.2", "attention.2", "hidden.3", "start_logits",
         "end_logits"]


def printed(capsys, *argv, code=0):
    assert verify.main([*map(str, argv), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_the_golden_activations_are_met(capsys):
    found = printed(capsys)
    assert [row["name"] for row in found["layers"]] == NAMES and found["first_divergence"] is None
    assert all(row["largest"] < 1e-5 * max(1, row["scale"]) and row["scale"] > 0.1 for row in found["layers"])
    assert verify.main([]) == 0
    assert capsys.readouterr().out.endswith("all agree\n")


def test_golden_activations_are_those_of_the_installed_transformers(tmp_path):
    pytest.importorskip("transformers")
    assert bench.main([str(GOLDEN), "--out", str(tmp_path / "now.safetensors")]) == 0
    then, now = load_file(GOLDEN / ACTIVATIONS), load_file(tmp_path / "now.safetensors")
    assert set(then) == set(now) == set(NAMES)
    mask = probe(read_config(GOLDEN))[2]
    for name in ("hidden.3", "start_logits"):
        torch.testing.assert_close(now[name][mask], then[name][mask])


def test_a_checkpoint_with_a_head_and_one_without(tiny_folder, tiny_encoder_folder, capsys):
    pytest.importorskip("transformers")
    with_head = printed(capsys, tiny_folder, "--tolerance", "1e-4")
    assert [row["name"] for row in with_head["layers"]] == NAMES and with_head["against"].startswith("transformers ")
    assert [row["name"] for row in printed(capsys, tiny_encoder_folder, "--tolerance", "1e-4")["layers"]] == NAMES[:-2]


@pytest.mark.parametrize("tensor, place", [
    ("bert.embeddings.LayerNorm.bias", "hidden.0"),
    ("bert.encoder.layer.1.attention.self.key.weight", "attention.1"),
    ("bert.encoder.layer.2.output.dense.weight", "hidden.3"),
    ("qa_outputs.bias", "start_logits"),
])
def test_the_first_place_that_diverges_is_named(tmp_path, capsys, tensor, place):
    shutil.copytree(GOLDEN, tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    tensors[tensor].view(-1)[0] += 0.01
    save_file(tensors, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    found = printed(capsys, tmp_path / "model", "--golden", GOLDEN / ACTIVATIONS, code=1)
    assert found["first_divergence"] == place
    assert verify.main([str(tmp_path / "model"), "--golden", str(GOLDEN / ACTIVATIONS)]) == 1
    assert capsys.readouterr().out.endswith(f"the first to diverge is {place}\n")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_relatives_agree_and_a_damaged_one_does_not(tmp_path, capsys, family):
    pytest.importorskip("transformers")
    folder = make_family_folder(tmp_path / "model", family)
    found = printed(capsys, folder)
    assert [row["name"] for row in found["layers"]] == NAMES and found["first_divergence"] is None
    assert all(row["scale"] > 0.1 for row in found["layers"])
    assert bench.main([str(folder), "--out", str(tmp_path / "golden.safetensors")]) == 0
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if re.search(r"layer\.1\.(output|ffn\.lin2).*weight", name))
    tensors[name].view(-1)[0] += 0.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert printed(capsys, folder, "--golden", tmp_path / "golden.safetensors", code=1)["first_divergence"] == "hidden.2"


def test_what_transformers_cannot_read_is_refused(tmp_path, tiny_folder, decoder_place, capsys):
    reader = Reader.load(tiny_folder, device="cpu", precision="fp32")
    pruned, four_bit = tmp_path / "pruned", tmp_path / "four"
    pruned.mkdir(), four_bit.mkdir()
    Reader.load(tiny_folder, device="cpu", precision="fp32", quant="nf4").save(four_bit)
    prune(reader.model, {1: [2]}, [], [torch.zeros(35)] * 3, [torch.zeros(35)] * 3)
    reader.save(pruned)
    adapter, _ = make_adapters(tmp_path, tiny_folder)
    for folder, words in {
        adapter: "is an adapter; merge it first (python merge.py), or verify its base",
        decoder_place[1]: "is a decoder, and only a BERT or one of its relatives is compared",
        pruned: "is pruned, which transformers cannot read; verify the model that it was made of",
        four_bit: "is stored in 4 bits; verify the model that it was made of",
    }.items():
        assert verify.main([str(folder)]) == 2
        assert f"{folder}: {words}" in capsys.readouterr().err


def test_refusals(tmp_path, tiny_folder, capsys, monkeypatch):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    cases = {
        ("--golden", tmp_path / "x.safetensors"): "not activations that bench/activations.py wrote",
        ("--golden", GOLDEN / "model.safetensors"): "not activations that bench/activations.py wrote",
        (tiny_folder, "--golden", GOLDEN / ACTIVATIONS): "has shape",
    }
    for argv, words in cases.items():
        assert verify.main([*map(str, argv)]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setattr(verify, "find_spec", lambda name: None)
    assert verify.main([str(tiny_folder)]) == 2
    assert "transformers is not installed" in capsys.readouterr().err


def test_padding_does_not_count_and_what_is_no_number_diverges():
    mask = torch.tensor([[True, False]])
    ours, theirs = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    ours[0, 1] = 9
    (layer,) = compare({"hidden.0": ours}, {"hidden.0": theirs}, mask)
    assert layer.largest == 0 and first_divergence([layer], 0.0) is None
    assert Layer("x", float("nan"), 1.0).diverges(1.0)
