"""merge.py: the ways to make one plain model of an adapter and its base, scored before anything is written."""

import json
import shutil

import pytest
import torch

import merge
import train
from model.quant import FourBitLinear, dense_weight
from answering.reader import Reader
from tests.test_bert import reference_model
from tests.test_lora import logits
from tests.tiny_run import arguments


@pytest.fixture(scope="module")
def runs(place):
    """The folder of the data, with the finished runs `lora` and `qlora` in it."""
    folder, tiny_encoder_folder = place
    for tune in ("lora", "qlora"):
        argv = arguments(folder, tiny_encoder_folder, folder / tune, tune=tune, max_steps=4, lora_alpha=200, lr=0.02)
        assert train.main(argv) == 0
    return folder


def run(*argv):
    return merge.main([*map(str, argv), "--precision", "fp32", "--device", "cpu"])


def load(folder, **options):
    return Reader.load(folder, device="cpu", precision="fp32", **options)


def test_an_adapter_becomes_a_plain_model(runs, tmp_path, capsys):
    assert run("--adapter", runs / "lora", "--out", tmp_path / "plain") == 0
    assert f"infer.py --model {tmp_path / 'plain'}" in capsys.readouterr().out
    plain, adapter = load(tmp_path / "plain"), load(runs / "lora/model")
    assert plain.adapter is None and plain.settings == adapter.settings
    assert (logits(plain.model.eval()) - logits(adapter.model.eval())).abs().max() < 2e-5
    assert (logits(plain.model) - logits(load(plain_base(runs)).model.eval())).abs().max() > 0.01
    theirs = reference_model(plain.model)  # the names are those of transformers
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in plain.model.parameters())


def plain_base(runs):
    return json.loads((runs / "lora/model/adapter_config.json").read_text())["base_model_name_or_path"]


def test_three_ways_over_4_bits(runs, tmp_path, capsys):
    made = {}
    for way in merge.WAYS:
        assert run("--adapter", runs / "qlora", "--out", tmp_path / way, "--way", way) == 0
        made[way] = load(tmp_path / way)
    unmerged = load(runs / "qlora/model")
    layer = "bert.encoder.layer.1.attention.self.query"
    update = unmerged.model.get_submodule(layer).updates["default"].weight().detach()
    assert update.abs().max() > 1e-3
    full, packed = load(plain_base(runs)).model, unmerged.model.get_submodule(layer).base
    wanted = {"original": full.get_submodule(layer).weight + update, "dequantised": dense_weight(packed) + update}
    for way, weight in wanted.items():
        found = made[way].model.get_submodule(layer).weight
        assert (found - weight).abs().max() < 1e-6 and made[way].settings.quant is None
    assert (logits(made["dequantised"].model.eval()) - logits(unmerged.model.eval())).abs().max() < 2e-5
    again = made["requantised"].model.get_submodule(layer)
    assert isinstance(again, FourBitLinear) and made["requantised"].settings.quant == "nf4"
    error = (dense_weight(again) - wanted["dequantised"]).abs().max()
    assert 0 < error < 0.2 * wanted["dequantised"].abs().max()
    capsys.readouterr()


def test_the_table_comes_first_and_the_best_is_taken(runs, tmp_path, capsys, monkeypatch):
    rows = []
    shown = iter(({"exact": 1.0, "f1": x} for x in (9.0, 2.0, 5.0, 3.0)))

    def scored(reader, examples, way):
        assert not (tmp_path / "out").exists() and len(examples) == 8
        rows.append(way)
        return next(shown)

    monkeypatch.setattr(merge, "score", scored)
    assert run("--adapter", runs / "qlora", "--out", tmp_path / "out", "--dev", runs / "dev.json") == 0
    assert rows == ["unmerged", *merge.WAYS]
    assert "merged onto the dequantised weights" in capsys.readouterr().out


def test_scores_alone_write_nothing(runs, tmp_path, capsys):
    assert run("--adapter", runs / "qlora", "--dev", runs / "dev.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["unmerged", *merge.WAYS]
    metrics = json.loads((runs / "qlora/metrics.json").read_text())
    assert lines[0].split()[3] == f"{metrics['exact']:.2f}" and lines[0].split()[-1] == f"{metrics['f1']:.2f}"
    assert lines[0].split()[1:] == lines[2].split()[1:]  # onto the dequantised weights nothing is lost
    assert {path.name for path in runs.iterdir()} == {"train.json", "dev.json", "lora", "qlora"}


def test_refusals(runs, tmp_path, tiny_folder, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for argv, sentence in (
        (("--out", tmp_path / "o"), "name an adapter with --adapter"),
        (("--adapter", runs / "lora"), "or --dev FILE to score"),
        (("--adapter", tiny_folder, "--out", tmp_path / "o"), "is a whole model"),
        (("--adapter", tmp_path / "none", "--out", tmp_path / "o"), "there is no such folder"),
        (("--adapter", runs / "lora", "--out", tmp_path / "full"), "is there already"),
        (("--adapter", runs / "lora", "--out", tmp_path / "o", "--way", "dequantised"), "there is original only"),
        (("--adapter", runs / "lora", "--dev", runs / "dev.json", "--way", "original"), "name the folder with --out"),
        (("--adapter", runs / "lora", "--out", tmp_path / "o", "--dev", tmp_path / "none.json"), "none.json"),
    ):
        assert run(*argv) == 2
        captured = capsys.readouterr()
        assert sentence in captured.err and captured.err.count("\n") == 1 and not captured.out
        assert not (tmp_path / "o").exists()
    config = tmp_path / "own/adapter_config.json"
    shutil.copytree(runs / "lora/model", tmp_path / "own")
    for base, sentence in (
        (None, "own: this adapter does not name its base: write it into base_model_name_or_path"),
        ("/gone", "own: its base cannot be had (/gone"), (str(tmp_path / "own"), "which is an adapter itself"),
    ):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": base}))
        assert run("--adapter", tmp_path / "own", "--out", tmp_path / "o") == 2
        assert sentence in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert torch.is_tensor(next(load(tiny_folder).model.parameters()))
