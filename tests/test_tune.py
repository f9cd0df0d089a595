"""--tune: what learns with each method, what is saved, and runs of LoRA that are killed, resumed and continued."""

import json

import pytest
import torch
from safetensors.torch import load_file

import infer
import train
from model.lora import LoraConfig, adapter_names
from model.tune import tune_bitfit, tune_full, tune_head, tune_lora
from answering.reader import Reader
from tests.test_bert import VOCABULARY
from tests.tiny_model import make_model
from tests.tiny_run import Nursery, arguments
from training.measure import parameter_counts
from training.optimizer import make_optimizer

LORA = {"tune": "lora", "lora_rank": 3, "lora_alpha": 7, "lora_dropout": 0.1, "lora_plus_ratio": 4}


def run(place, out, **changes):
    folder, encoder = place
    flags = {"max_steps": 5, "eval_every": 2} | changes
    return train.main(arguments(folder, changes.pop("model", encoder), out, **{**flags, **changes}))


def learned_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_each_method_trains():
    model = make_model(VOCABULARY)
    everything = {name for name, _ in model.named_parameters()}
    head = {"qa_outputs.weight", "qa_outputs.bias"}
    tune_head(model)
    assert learned_names(model) == head
    tune_bitfit(model)
    assert learned_names(model) == {name for name in everything if name.endswith(".bias")} | head
    tune_full(model)
    assert learned_names(model) == everything
    tune_lora(model, LoraConfig(3, 7.0, targets=("value",)))
    layers = [f"bert.encoder.layer.{n}.attention.self.value.updates.default" for n in range(3)]
    assert learned_names(model) == {f"{layer}.{part}" for layer in layers for part in ("lora_A", "lora_B")} | {
        "qa_outputs.heads.default.weight", "qa_outputs.heads.default.bias"
    }
    assert parameter_counts(model)[0] == 3 * 2 * 3 * 35 + 2 * 36
    groups = make_optimizer(model, 0.01, 4.0).param_groups
    found = [(group["weight_decay"], group["scale"], len(group["params"])) for group in groups]
    assert found == [(0.01, 1, 4), (0, 1, 1), (0.01, 4, 3)]


@pytest.mark.parametrize("tune, moving", [("head", 2), ("bitfit", 25 + 2), ("full", 55)])
def test_only_what_learns_changes(place, tmp_path, tune, moving):
    assert run(place, tmp_path / "out", tune=tune) == 0
    before, after = load_file(place[1] / "model.safetensors"), load_file(tmp_path / "out/model/model.safetensors")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert len(after) - len(same) == moving
    checkpoint = load_file(tmp_path / "out/checkpoints/step-00000005/model.safetensors")
    assert len(checkpoint) == moving


def test_a_lora_run_is_an_adapter_that_infer_opens(place, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(place, out, **LORA) == 0
    assert {path.name for path in (out / "model").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "reader.json"
    }
    learned = 3 * 2 * 2 * 3 * 35 + 2 * 36
    assert json.loads((out / "metrics.json").read_text())["trainable_parameters"] == learned
    config = json.loads((out / "model/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (3, 7, 0.1)
    assert config["base_model_name_or_path"] == str(place[1])
    capsys.readouterr()
    assert infer.main(["--model", str(out), "--question", "Who?", "--context", "A miller lived there.", "--json"]) == 0
    assert "answer" in json.loads(capsys.readouterr().out)
    reader = Reader.load(out / "model", device="cpu", precision="fp32")
    assert reader.adapter == "default" and reader.settings.null_threshold is not None


def test_a_lora_run_killed_anywhere_ends_bit_identical(place, tmp_path):
    folder, encoder = place
    with Nursery(tmp_path) as nursery:
        whole = arguments(folder, encoder, tmp_path / "whole", max_steps=7, eval_every=3, save_every=2, **LORA)
        assert nursery.run(whole) == 0
        for number, kill in enumerate((("training.step", "span_loss", 9), ("training.setup", "save_best", 2))):
            out = tmp_path / f"cut{number}"
            argv = arguments(folder, encoder, out, max_steps=7, eval_every=3, save_every=2, **LORA)
            assert nursery.run(argv, kill) == -9
            assert nursery.run([*argv, "--resume"]) == 0
    for name in ("model/adapter_model.safetensors", "model/reader.json", "predictions.json",
                 "checkpoints/step-00000007/model.safetensors"):
        wanted = (tmp_path / "whole" / name).read_bytes()
        assert all((tmp_path / f"cut{n}" / name).read_bytes() == wanted for n in range(2)), name


def test_training_goes_on_with_an_adapter(place, tmp_path, capsys):
    assert run(place, tmp_path / "first", **LORA) == 0
    more = LORA | {"model": tmp_path / "first/model"}
    assert run(place, tmp_path / "second", **more | {"lora_rank": 8}) == 2
    assert "--lora-rank: the adapter" in (said := capsys.readouterr().err) and "has 3, and keeps it" in said
    assert run(place, tmp_path / "second", **more) == 0
    one, two = (load_file(tmp_path / name / "model/adapter_model.safetensors") for name in ("first", "second"))
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}  # the adapter's own rank stays
    assert not any(torch.equal(one[k], two[k]) for k in one)
    base = json.loads((tmp_path / "second/model/adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(place[1])
    reader = Reader.load(tmp_path / "second/model", device="cpu")
    assert adapter_names(reader.model) == ["default"]
    assert run(place, tmp_path / "third", tune="full", model=tmp_path / "first/model") == 2
    assert "--tune lora or qlora train it on" in capsys.readouterr().err
    with_note = tmp_path / "first/model/adapter_config.json"
    with_note.write_text(json.dumps(json.loads(with_note.read_text()) | {"colour": "blue"}))
    assert run(place, tmp_path / "third", **more) == 0
    assert "note: " in (said := capsys.readouterr().out) and "colour is unknown and was passed over" in said
    assert infer.main(["--model", str(tmp_path / "first"), "--question", "Who?", "--context", "A miller."]) == 0
    assert "colour is unknown" in capsys.readouterr().err


def test_options_of_other_ways_are_refused(place, tmp_path, capsys):
    for flags, sentence in (
        ({"lora_rank": 3}, "--lora-rank is for --tune lora or qlora, and --tune is full"),
        ({"dora": True, "tune": "head"}, "--dora is for --tune lora or qlora, and --tune is head"),
        ({"prompt_text": "x", "tune": "lora"}, "--prompt-text is for --tune prompt, and --tune is lora"),
        ({"tune": "lora", "optimizer": "paged-adamw8bit"}, "take adamw8bit here"),
    ):
        assert run(place, tmp_path / "out", **flags) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out" / "config.json").exists()
    flags = {"tune": "lora", "lora_targets": "query,intermediate.dense", "optimizer": "adamw8bit"}
    assert run(place, tmp_path / "out", **flags) == 0
    targets = json.loads((tmp_path / "out/model/adapter_config.json").read_text())["target_modules"]
    assert targets == ["intermediate.dense", "query"]


@pytest.mark.parametrize("pattern", ["query", "=3", "query=0", "query=x", "query=4097", "query=99999999999", "foo-bar=4", ".*query=16", "query.=3"])
def test_rank_patterns_that_say_nothing(place, tmp_path, capsys, pattern):
    assert run(place, tmp_path / "out", tune="lora", lora_rank_pattern=pattern) == 2
    assert f"--lora-rank-pattern {pattern}: expected NAME=RANK" in capsys.readouterr().err
    assert run(place, tmp_path / "out", tune="lora", lora_targets="quary") == 2
    assert "no Linear layer is called 'quary'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "log.jsonl").exists()


@pytest.mark.parametrize("flags, sentence", [
    ({"lora_rank_pattern": "layer.9.attention.self.query=16"}, "--lora-rank-pattern layer.9.attention.self.query: fits none of the layers"),
    ({"lora_rank_pattern": "quer=4"}, "quer: fits none of the layers of --lora-targets query,value"),
    ({"lora_rank_pattern": "key=16"}, "key: fits none"),
    ({"lora_alpha": 1e10}, "--lora-alpha: expected a finite number, above 0 and at most 100000000"),
    ({"tune": "prompt", "prompt_text": "  "}, "--prompt-text: holds no words to begin with"),
])
def test_what_would_be_lost_at_the_end_or_in_silence_is_refused_at_once(place, tmp_path, capsys, flags, sentence):
    assert run(place, tmp_path / "out", **({"tune": "lora"} | flags)) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_a_name_has_one_rank(place, tmp_path, capsys):
    argv = arguments(*place, tmp_path / "out", tune="lora")
    assert train.main([*argv, "--lora-rank-pattern", "query=3", "query=5"]) == 2
    assert "--lora-rank-pattern query=5: query has a rank already" in capsys.readouterr().err


def test_a_rank_pattern_reaches_the_adapter(place, tmp_path):
    pattern = "layer.1.attention.self.value=5"
    assert run(place, tmp_path / "out", tune="lora", lora_rank=2, lora_rank_pattern=pattern, dora=True) == 0
    tensors = load_file(tmp_path / "out/model/adapter_model.safetensors")
    ranks = {name: len(tensor) for name, tensor in tensors.items() if "lora_A" in name}
    assert sorted(ranks.values()) == [2] * 5 + [5]
    assert sum("magnitude" in name for name in tensors) == 6
