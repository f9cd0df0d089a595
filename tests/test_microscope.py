"""`python -m inside.heads | lora | nf4`: numbers that are known, on the model built by hand and on tiny random ones."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from common.errors import InputError
from inside import heads, lora, nf4
from inside.ablation import Unit, ablated, units
from inside.atlas import Loss, atlas, check_prunable, choose, dataset_means, prune_units
from inside.command import read_sample
from inside.updates import decomposed, dropped, effective_rank, overlap, shared, updates
from model.lora import LoraConfig, add_lora
from model.nf4 import dequantise_nf4, quantise_nf4
from model.pruning import shape_of
from model.quant import FourBit, dense_weight, quantise
from model.weights import load_model
from answering.reader import Reader
from tests.copy_model import copy_reader
from tests.tiny_run import arguments, write_squad

QUESTIONS = [("bob", "lima ada paris bob rome cleo", "rome"), ("ada", "cleo ada oslo lima dan", "oslo"),
             ("dan", "lima dan paris ada", "paris"), ("cleo", "rome oslo cleo bob lima", "bob")]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "names.json"
    rows = [
        {"question": q, "context": c, "answers": [{"text": a, "answer_start": c.index(a)}]} for q, c, a in QUESTIONS
    ]
    path.write_text(json.dumps(rows))
    return path


def printed(main, capsys, *argv):
    """The JSON object that a command prints."""
    assert main([*map(str, argv), "--json", "--device", "cpu", "--precision", "fp32"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def sentence(main, capsys, *argv):
    """The refusal of a command."""
    assert main([*map(str, argv), "--device", "cpu", "--precision", "fp32"]) == 2
    return capsys.readouterr().err


def test_the_atlas_finds_the_two_heads(tmp_path, data, capsys):
    copy_reader(tmp_path / "copy")
    found = printed(heads.main, capsys, data, "--model", tmp_path / "copy")
    assert (found["exact"], found["questions"], len(found["losses"])) == (100.0, 4, 12)
    for loss in found["losses"]:
        needed = loss["unit"] in ("0.1", "1.2")
        assert loss["exact"] >= 75 if needed else loss["exact"] == loss["f1"] == 0
    assert heads.main([str(data), "--model", str(tmp_path / "copy"), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "whole model: exact match 100.00, F1 100.00"
    assert lines[2] == "| F1 lost |     0 |     1 |     2 |    ff |" and lines[3] == "|---|---:|---:|---:|---:|"
    assert lines[6] == "| block 2 |  0.00 |  0.00 |  0.00 |  0.00 |"
    (copying,) = (loss["exact"] for loss in found["losses"] if loss["unit"] == "0.1")
    assert lines[8].startswith("| EM lost | ") and lines[10] == f"| block 0 |  0.00 | {copying:5.2f} |  0.00 |  0.00 |"
    assert lines[-3:] == [
        "block  0  heads | █ |  feed-forward | |", "block  1  heads |  █|  feed-forward | |",
        "block  2  heads |   |  feed-forward | |",
    ]


def test_pruning_to_a_budget_saves_a_smaller_model_that_answers_the_same(tmp_path, data, capsys, monkeypatch):
    copy_reader(tmp_path / "copy")
    out = tmp_path / "smaller"
    found = printed(heads.main, capsys, data, "--model", tmp_path / "copy", "--keep", 0.5, "--out", out)["pruned"]
    assert found["before"]["exact"] == found["after"]["exact"] == 100.0
    assert found["after"]["parameters"] < found["before"]["parameters"]
    assert not {"0.1", "1.2"} & set(found["units"])
    stored = tmp_path / "atlas.json"
    stored.write_text(json.dumps(printed(heads.main, capsys, data, "--model", tmp_path / "copy")))
    argv = data, "--model", tmp_path / "copy", "--atlas", stored, "--keep", 0.5, "--out", tmp_path / "stored"
    assert printed(heads.main, capsys, *argv)["pruned"]["units"] == found["units"]
    files = [(folder / "model.safetensors").read_bytes() for folder in (out, tmp_path / "stored")]
    assert files[0] == files[1]
    smaller = Reader.load(out, device="cpu", precision="fp32")
    assert smaller.ask(*QUESTIONS[0][:2])[0].spans[0].text == "rome"
    assert sum(p.numel() for p in smaller.model.parameters()) == found["after"]["parameters"]
    again = printed(heads.main, capsys, data, "--model", out)  # a pruned model can be looked into, and pruned on
    assert again["exact"] == 100.0 and len(again["losses"]) == 12 - len(found["units"])
    whole = printed(heads.main, capsys, data, "--model", tmp_path / "copy")
    other = copy_reader(tmp_path / "other")  # of the same shape, with other weights
    with torch.no_grad():
        other.model.bert.encoder.layer[0].output.dense.weight.add_(1e-6)
    other.save(tmp_path / "other")
    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps([row | {"answers": []} for row in json.loads(data.read_text())]))
    broken = {"exact": "a"}, {"losses": [whole["losses"][0] | {"f1": None}, *whole["losses"][1:]]}, {"exact": None}
    texts = "[]", '{"losses": 3}', json.dumps(again), *(json.dumps(whole | one) for one in broken)
    asked = [(text, data, "copy") for text in texts]
    for text, file, model in (*asked, (json.dumps(whole), data, "other"), (json.dumps(whole), fewer, "copy")):
        stored.write_text(text)
        refused = sentence(heads.main, capsys, file, "--model", tmp_path / model, "--atlas", stored)
        assert "atlas.json: not what python -m inside.heads --json wrote of this model and these questions" in refused
    refusals = {
        (data, "--keep", 0.5): "give both or neither", (data, "--keep", 0.5, "--out", out): "is there already",
        (data, "--keep", 0.01, "--out", tmp_path / "n", "--model", tmp_path / "copy"): "is the least that can stay",
    }
    for argv, words in refusals.items():
        assert words in sentence(heads.main, capsys, *argv)
    assert not (tmp_path / "n").exists()
    for value in ("nan", "0", "1", "x"):
        refused = sentence(heads.main, capsys, data, "--keep", value, "--out", out)
        assert refused.count("\n") == 1 and f"--keep: expected a number above 0 and below 1, found '{value}'" in refused
    monkeypatch.setattr("inside.atlas.dataset_means", lambda *given: pytest.fail("measured before it was refused"))
    argv = data, "--keep", 0.01, "--out", tmp_path / "n", "--model", tmp_path / "copy"
    assert "is the least that can stay" in sentence(heads.main, capsys, *argv)


def test_what_does_harm_shows_in_the_picture():
    losses = [Loss(Unit(0, 0), 9, 0.0, 4.0), Loss(Unit(0, 1), 9, 0.0, -1.0), Loss(Unit(0, 2), 9, 0.0, 0.0), Loss(Unit(0), 9, 0.0, 2.0)]
    assert list(heads.picture(losses)) == ["block  0  heads |█- |  feed-forward |▄|"]


@pytest.fixture
def tiny(tiny_folder):
    return Reader.load(tiny_folder, device="cpu", precision="fp32")


def sample(tmp_path, numbers=range(3)):
    return read_sample([write_squad(tmp_path / "squad.json", numbers)], 100)


CHOSEN = [Unit(0, 1), Unit(0, 4), Unit(2, 0), Unit(1), Unit(2)]


def test_a_pruned_model_is_the_ablated_one(tiny, tmp_path):
    means = dataset_means(tiny, sample(tmp_path))
    ids, types = torch.randint(5, 1000, (3, 41)), torch.randint(0, 2, (3, 41))
    mask = torch.ones(3, 41, dtype=torch.bool)
    mask[1, 17:] = False
    with torch.no_grad(), ablated(tiny.model.eval(), CHOSEN, means):
        wanted = tiny.model(ids, types, mask)
    check_prunable(tiny, 0.9)
    prune_units(tiny.model, CHOSEN, means)
    assert shape_of(tiny.model) == {"heads": [3, 5, 4], "feed_forward": [True, False, False]}
    tiny.save(tmp_path)
    loaded, _ = load_model(tmp_path)
    with torch.no_grad():
        for got in (tiny.model(ids, types, mask), loaded.eval()(ids, types, mask)):
            for a, b in zip(got, wanted, strict=True):
                torch.testing.assert_close(a[mask], b[mask], atol=2e-4, rtol=1e-4)
        eager = loaded.attention_maps(ids, types, mask)
    assert [one.shape[1] for one in eager[2]] == [3, 5, 4]
    assert len(units(loaded)) == 3 + 5 + 4 + 3
    assert len(quantise(loaded, FourBit())) == 3 * 4 + 2  # what is empty is passed over
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong, words in (([5, 5], "pruned.heads: expected 3 numbers from 1 to 5"), ([5, 0, 5], "pruned.heads")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"pruned": {"heads": wrong}}))
        with pytest.raises(InputError, match=words):
            load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"pruned": {"heads": [3, 5, 4], "feed_forward": [1]}}))
    with pytest.raises(InputError, match="pruned.feed_forward: expected 3 times true or false"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "pruned"}))
    with pytest.raises(InputError, match=r"has shape \(.*\), and config.json asks for"):
        load_model(tmp_path)


def test_the_choice_keeps_a_head_in_each_block_and_takes_the_cheapest_first(tiny, tmp_path):
    examples = sample(tmp_path)
    found = atlas(tiny, examples, dataset_means(tiny, examples))
    per_head, per_half = 4 * 35 * 7, 2 * 35 * 53
    assert [loss.parameters for loss in found.losses] == ([per_head] * 5 + [per_half]) * 3
    whole = 3 * (5 * per_head + per_half)
    for keep in (0.9, 0.5, 0.3):
        chosen = choose(found, keep)
        gone = sum(per_half if unit.head is None else per_head for unit in chosen)
        last = per_half if chosen[-1].head is None else per_head
        assert whole - gone <= keep * whole < whole - gone + last
        assert all(sum(u.layer == layer and u.head is not None for u in chosen) < 5 for layer in range(3))
    with pytest.raises(InputError, match=rf"{100 * 3 * per_head / whole:.1f} % of the blocks is the least"):
        choose(found, 0.01)


def test_only_plain_models_are_pruned(tiny):
    quantise(tiny.model, FourBit())
    with pytest.raises(InputError, match="only a plain model can be pruned"):
        check_prunable(tiny, 0.9)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tiny_encoder_folder):
    folder = tmp_path_factory.mktemp("adapters")
    write_squad(folder / "train.json", range(5))
    write_squad(folder / "dev.json", range(5, 8))
    for name, changes in (("one", {}), ("two", {"seed": 3, "lora_targets": "value", "lora_rank": 3})):
        argv = arguments(folder, tiny_encoder_folder, folder / name, tune="lora", max_steps=3, lr=0.02, **changes)
        assert train.main(argv) == 0
    return folder


def test_what_adapters_did(adapters, capsys):
    found = printed(lora.main, capsys, adapters / "one", adapters / "two", "--data", adapters / "dev.json")
    one, two = found["adapters"]["one"]["layers"], found["adapters"]["two"]["layers"]
    assert (len(one), len(two), len(one[0]["singular_values"]), len(two[0]["singular_values"])) == (6, 3, 8, 3)
    for row in one + two:
        assert 1 <= row["effective_rank"] <= len(row["singular_values"]) and 0 < row["norm"] < row["base_norm"]
        assert sum(x * x for x in row["singular_values"]) == pytest.approx(row["norm"] ** 2)
        assert {"exact_lost", "f1_lost"} <= set(row)
    (pair,) = found["overlap"]
    assert pair["adapters"] == ["one", "two"] and list(pair["layers"]) == [row["layer"] for row in two]
    assert all(0 < share < 1 for both in pair["layers"].values() for share in both.values())
    assert lora.main([str(adapters / "one"), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("one\n") and "layer.2.attention.self.value" in text and "F1 lost" not in text
    assert "no adapter_config.json in it" in sentence(lora.main, capsys, adapters)


def test_spectra_and_overlaps_that_are_known():
    assert effective_rank(torch.tensor([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx(1) and effective_rank(torch.zeros(4)) == 0
    axes = torch.eye(6, dtype=torch.double)
    assert shared(axes[:, :2], axes[:, 1:4]) == 0.5 and shared(axes[:, :2], axes[:, :4]) == 1
    assert shared(axes[:, :2], axes[:, 3:]) == 0 and shared(axes[:, :0], axes) == 0


def test_an_update_is_its_dense_difference_and_comes_back(tiny):
    for name in ("a", "b"):
        add_lora(tiny.model, LoraConfig(rank=3, targets=("value",), dora=name == "b"), name)
        tiny.all_settings[name] = tiny.all_settings[None]
    torch.manual_seed(0)
    with torch.no_grad():
        for part, parameter in tiny.model.named_parameters():
            if ".lora_B" in part:
                parameter.normal_(std=0.1)
    layer = "bert.encoder.layer.1.attention.self.value"
    module = tiny.model.get_submodule(layer)
    for name, rank in (("a", 3), ("b", 35)):
        U, sigma, V = decomposed(module, name)
        assert len(sigma) == rank
        change = (module.updates[name].dense(module.base) - dense_weight(module.base)).double().detach()
        torch.testing.assert_close(U @ sigma.diag() @ V.T, change, atol=1e-6, rtol=1e-6)
    assert len(updates(tiny.model, "a")) == 3 and set(overlap(tiny.model, "a", "b")) == {
        layer.replace(".1.", f".{k}.") for k in range(3)
    }
    tiny.set_adapter("a")
    before = tiny.ask("Who?", "Ada was here and there.")[0]
    with dropped(tiny.model, "a", layer):
        assert tiny.ask("Who?", "Ada was here and there.")[0] != before
    assert tiny.ask("Who?", "Ada was here and there.")[0] == before and list(module.updates) == ["a", "b"]


def test_what_four_bits_cost(tiny_folder, tmp_path, capsys):
    path = write_squad(tmp_path / "dev.json", range(4))
    found = printed(nf4.main, capsys, "--model", tiny_folder, "--data", path, "--quant", "nf4-single")
    assert len(found["layers"]) == 18 and len(found["questions"]) == 8
    whole = Reader.load(tiny_folder, device="cpu", precision="fp32")
    row = found["layers"][7]
    weight = dense_weight(whole.model.get_submodule(row["layer"]))
    error = weight - dequantise_nf4(quantise_nf4(weight, double=False))
    assert row["relative"] == pytest.approx((error.norm() / weight.norm()).item(), rel=1e-4)
    assert row["largest"] == pytest.approx(error.abs().max().item(), rel=1e-4)
    assert 0.05 < row["relative"] < row["worst"] < 0.2
    for one in found["questions"]:
        assert one["flipped"] == (one["answer"] != one["rounded_answer"]) and one["margin"] >= 0 < one["largest"]
    assert nf4.main(["--model", str(tiny_folder), "--device", "cpu", "--data", str(path)]) == 0
    text = capsys.readouterr().out
    assert text.count("mean of block") == 3 and "answers flip:" in text
    assert "head for answers was never trained" in sentence(nf4.main, capsys, "--model", "minilm")




def test_readme_commands_parse_and_help_needs_no_torch():
    from inside import data, verify
    from tests.test_project import README

    parsed = set()
    for line in README.splitlines():
        if match := re.match(r"\s{4}python -m inside\.(\w+)(.*?)(\s{2,}#.*)?$", line):
            module = {"heads": heads, "lora": lora, "nf4": nf4, "verify": verify, "data": data}[match[1]]
            module.build_parser("x").parse_args(shlex.split(match[2]))
            parsed.add(match[1])
    assert parsed == {"heads", "lora", "nf4", "verify", "data"}
    code = "import sys\nfrom inside import data, heads, lora, nf4, verify\n" + "".join(
        f"try: {name}.main(['--help'])\nexcept SystemExit as end: assert not end.code\n" for name in sorted(parsed)
    ) + "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
