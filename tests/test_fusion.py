"""Learned fusion of adapters: the equation, what learns, folders, a run of it, and refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from common.errors import InputError
from model.fusion import add_fusion, fusion_parameters, load_fusion, save_fusion, tune_fusion
from model.lora import LoraConfig, adapter_names, add_lora, remove_adapter, set_adapter, switch_of
from model.merging import merge, merged_model
from answering.reader import Reader
from tests.test_bert import ragged_batch
from tests.test_lora import KINDS, adapted, check_rows_alone, logits, randomise, tiny
from tests.tiny_run import Nursery, arguments


def fused(noise=0.2):
    """Three adapters on overlapping layers, one of them DoRA, and their fusion with random numbers."""
    model = adapted(KINDS["lora"], "one", "two")
    add_lora(model, LoraConfig(2, 5.0, dora=True, targets=("query", "intermediate.dense")), "three")
    randomise(model, "three", 7)
    torch.manual_seed(2)
    add_fusion(model, "mix", ["one", "two", "three"])
    with torch.no_grad():
        for name, parameter in fusion_parameters(model, "mix").items():
            parameter += torch.randn_like(parameter) * noise
    return model


def test_the_mix_is_the_equation_of_the_paper():
    model = fused()
    layer = model.bert.encoder.layer[1].attention.self.query
    x = torch.randn(2, 9, 35, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        found = layer(x)
        y, mix = layer.base(x), layer.updates["mix"]
        updates = [layer.updates[name](x, y, layer.base) for name in ("one", "two", "three")]
        for b in range(2):
            for t in range(9):
                scores = torch.stack([(mix.query.weight @ y[b, t]) @ (mix.key.weight @ u[b, t]) for u in updates])
                shares = scores.softmax(0)
                assert shares.min() < 0.3 < shares.max()
                mixed = sum(a * (mix.value @ u[b, t]) for a, u in zip(shares, updates, strict=True))
                assert (y[b, t] + mixed - found[b, t]).abs().max() < 1e-5
    assert mix.query.weight.shape == (35, 35) and mix.members[0] is layer.updates["one"]
    wide = model.bert.encoder.layer[1].intermediate.dense.updates["mix"]
    assert len(wide.members) == 1 and wide.value.shape == (53, 53)


def test_identical_adapters_fuse_to_themselves_at_first():
    model = adapted(KINDS["lora"], "one", "two")
    for layer in model.bert.encoder.layer:
        for part in (layer.attention.self.query, layer.attention.self.value):
            part.updates["two"].load_state_dict(part.updates["one"].state_dict())
    model.qa_outputs.heads["two"].load_state_dict(model.qa_outputs.heads["one"].state_dict())
    set_adapter(model, "one")
    wanted = logits(model)
    add_fusion(model, "mix", ["one", "two"])
    assert switch_of(model).active == "mix" and (logits(model) - wanted).abs().max() < 1e-5


def test_only_the_fusion_and_its_head_learn():
    model, batch = fused(), ragged_batch()
    tune_fusion(model)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning and all(".updates.mix." in name or ".heads.mix." in name for name in learning)
    assert len(learning) == 9 * 3 + 2
    start, end = model(*batch)
    (start.square().sum() + end.sum()).backward()
    grown = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    lonely = {f"bert.encoder.layer.{n}.intermediate.dense.updates.mix.{part}.weight"  # one adapter: its share is 1
              for n in range(3) for part in ("query", "key")}
    assert learning - grown <= lonely


def test_rows_and_switching_reach_a_fusion():
    model = fused()
    names = ["mix", "one", None]
    with switch_of(model).rows(names):
        together = logits(model)
    check_rows_alone(model, names, together)


def test_a_fusion_comes_back_exactly_with_its_adapters(tmp_path):
    model = fused()
    save_fusion(model, "mix", tmp_path, base="minilm", fingerprint="f" * 64)
    assert {p.name for p in tmp_path.iterdir()} == {"fusion.json", "fusion.safetensors", "adapters"}
    fresh = tiny().eval()
    load_fusion(fresh, tmp_path, "other", "f" * 64)
    assert adapter_names(fresh) == ["one", "two", "three", "other"]
    assert torch.equal(logits(fresh), logits(model))
    other = tiny()
    with pytest.raises(InputError, match="trained on other weights"):
        load_fusion(other, tmp_path, "other", "e" * 64)
    (tmp_path / "fusion.safetensors").write_bytes(b"12345678")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_fusion(other, tmp_path, "other")
    assert adapter_names(other) == [] and switch_of(other) is None


def test_a_fusion_cannot_be_merged_or_made_of_one():
    model = fused()
    for action in (merge, merged_model):
        with pytest.raises(ValueError, match="is a fusion"):
            action(model, "mix")
    for members in (["one"], ["one", "none"], ["one", "one"], []):
        with pytest.raises(ValueError, match="at least two adapters of one, two, three$"):
            add_fusion(model, "more", members)
    for name in ("one", "mix", "train"):
        with pytest.raises(InputError, match="rename"):
            add_fusion(model, name, ["one", "two"])
    with pytest.raises(ValueError, match="part of a fusion"):
        remove_adapter(model, "one")
    add_lora(model, LoraConfig(), "later")  # on the layers, not on the inside of the fusion
    assert sum("later" in name for name, _ in model.named_parameters()) == 6 * 2 + 2
    remove_adapter(model, "mix")
    remove_adapter(model, "one")


@pytest.fixture(scope="module")
def adapted_place(place):
    """`place`, and two runs of LoRA in it."""
    folder, tiny_encoder_folder = place
    for seed, name in enumerate(("wiki", "reviews")):
        flags = {"tune": "lora", "max_steps": 2, "seed": seed, "lora_rank": 3}
        assert train.main(arguments(folder, tiny_encoder_folder, folder / name, **flags)) == 0
    return folder, tiny_encoder_folder


def flags(folder, encoder, out, **changes):
    settings = {"tune": "fusion", "max_steps": 5, "eval_every": 2, "save_every": 2} | changes
    adapters = ["--adapter", str(folder / "wiki"), str(folder / "reviews/model")]
    return [*arguments(folder, encoder, out, **settings), *adapters]


def test_a_run_of_fusion_is_killed_resumed_and_opened(adapted_place, tmp_path):
    with Nursery(tmp_path) as nursery:
        assert nursery.run(flags(*adapted_place, tmp_path / "whole")) == 0
        assert nursery.run(flags(*adapted_place, tmp_path / "cut"), ("training.step", "span_loss", 8)) == -9
        assert nursery.run([*flags(*adapted_place, tmp_path / "cut"), "--resume"]) == 0
    for name in ("model/fusion.safetensors", "model/reader.json", "predictions.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    for name in ("wiki", "reviews"):  # the adapters are as they were
        first = load_file(adapted_place[0] / name / "model/adapter_model.safetensors")
        then = load_file(tmp_path / "whole/model/adapters" / name / "adapter_model.safetensors")
        assert all(torch.equal(first[key], then[key]) for key in first)
    stopped = tmp_path / "cut"
    (stopped / "metrics.json").unlink()
    changed = adapted_place[0] / "wiki/model/adapter_config.json"
    before = changed.read_text()
    changed.write_text(before + " ")
    assert train.main([*flags(*adapted_place, stopped), "--resume"]) == 2  # an adapter that it mixes is another one now
    changed.write_text(before)
    reader = Reader.load(tmp_path / "whole/model", device="cpu", precision="fp32")
    assert reader.adapter == "fusion" and adapter_names(reader.model) == ["wiki", "reviews", "fusion"]
    assert reader.settings.null_threshold is not None
    assert isinstance(reader.ask("Who?", "A miller lived there.")[0].spans, (list, tuple))


def test_folders_and_options_that_do_not_fit(adapted_place, tmp_path, capsys):
    folder, encoder = adapted_place
    assert train.main(arguments(folder, encoder, tmp_path / "out", tune="fusion")) == 2
    assert train.main([*arguments(folder, encoder, tmp_path / "out", tune="lora"), "--adapter", "a", "b"]) == 2
    assert train.main([*arguments(folder, encoder, tmp_path / "out", tune="fusion"), "--adapter", "a"]) == 2
    assert train.main([*arguments(folder, encoder, tmp_path / "out", tune="lora"), "--adapter", "a"]) == 2
    said = capsys.readouterr().err
    assert said.count("name at least two with --adapter") == 2 and said.count("name it with --from") == 2
    again = [*arguments(folder, encoder, tmp_path / "out", tune="fusion"), "--adapter", *[str(folder / "wiki")] * 2]
    assert train.main(again) == 2 and "names must differ" in capsys.readouterr().err
    packed = {"tune": "qlora", "max_steps": 1, "lora_rank": 3}
    for name in ("packed", "packed_too"):
        assert train.main(arguments(folder, encoder, tmp_path / name, **packed)) == 0
    mixed = [*arguments(folder, encoder, tmp_path / "out", tune="fusion", max_steps=1), "--adapter"]
    assert train.main([*mixed, str(folder / "wiki"), str(tmp_path / "packed")]) == 2
    assert "trained over bases held in different ways, and a fusion stands on one" in capsys.readouterr().err
    assert train.main([*mixed, str(tmp_path / "packed"), str(tmp_path / "packed_too")]) == 0
    assert "note: the adapters were trained over nf4 weights and are fused over full ones" in capsys.readouterr().out
    assert train.main(flags(*adapted_place, tmp_path / "run", max_steps=1, eval_every=None)) == 0
    model = tmp_path / "run/model"
    path, config = model / "fusion.safetensors", model / "fusion.json"
    whole, described = load_file(path), json.loads(config.read_text())
    name = "bert.encoder.layer.0.attention.self.query.value"
    for change, sentence in (
        ({"more": torch.zeros(1)}, "tensor more has no place"), ({name: torch.zeros(35, 34)}, f"tensor {name} is not"),
        ({name: torch.full((35, 35), float("nan"))}, f"tensor {name} is not"),
    ):
        save_file(whole | change, path)
        with pytest.raises(InputError, match=sentence):
            Reader.load(model)
    save_file(whole, path)
    for change, sentence in (
        ({"format": 2}, "expected a fusion of format 1"), ({"adapters": ["../x"]}, "expected a list of folder names"),
        ({"adapters": ["wiki"]}, "at least two adapters"), ({"adapters": ["wiki", "wiki"]}, "a name is there twice"),
        ({"adapters": ["wiki", "nobody"]}, "not the folder of an adapter"),
        ({"base_model_name_or_path": None}, "does not name its base"),
    ):
        config.write_text(json.dumps(described | change))
        with pytest.raises(InputError, match=sentence):
            Reader.load(model)
