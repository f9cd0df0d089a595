"""Adapter folders: peft's format both ways, strictness, wrong bases, combinations, and a Reader with several."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_safetensors

from common.errors import InputError
from data.examples import Example
from model import adapters
from model.adapters import PREFIX, load_adapter, read_adapter, save_adapter
from model.combining import combine
from model.lora import (
    ALL_LINEAR, LoraConfig, LoraLinear, adapter_names, add_lora, linear_layers, remove_adapter, set_adapter,
    switch_of,
)
from model.merging import merge
from answering.reader import Reader
from tests.test_bert import ragged_batch, reference_model
from tests.test_lora import KINDS, adapted, logits, randomise, tiny

TOLERANCE = 1e-5


def saved(folder, kind="lora", **options):
    """(model, folder) of an adapter that was written."""
    model = adapted(KINDS[kind])
    folder.mkdir(exist_ok=True)
    save_adapter(model, "one", folder, base="minilm", **options)
    return model, folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_comes_back_exactly(tmp_path, kind):
    model, folder = saved(tmp_path, kind, revision="abc", fingerprint="f" * 64)
    described = read_adapter(folder)
    assert (described.base, described.revision, described.fingerprint) == ("minilm", "abc", "f" * 64)
    assert described.notices == () and described.with_head
    fresh = tiny().eval()
    load_adapter(fresh, folder, "other", "f" * 64)
    assert torch.equal(logits(fresh), logits(model))
    again = tmp_path / "again"
    again.mkdir()
    save_adapter(fresh, "other", again, base="minilm", revision="abc", fingerprint="f" * 64)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        if not (name.endswith("json") and ALL_LINEAR in KINDS[kind].targets):
            assert (again / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_peft_opens_ours(tmp_path, kind):
    import peft

    model, folder = saved(tmp_path, kind)
    theirs = peft.PeftModel.from_pretrained(reference_model(tiny()), folder).eval()
    ids, types, mask = ragged_batch()
    with torch.no_grad():
        found = theirs.base_model(input_ids=ids, token_type_ids=types, attention_mask=mask.long())
    difference = (torch.stack([found.start_logits, found.end_logits]) - logits(model))[:, mask].abs().max()
    assert difference <= TOLERANCE
    assert (logits(model) - logits(tiny().eval())).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_ours_opens_what_peft_trained(tmp_path, kind):
    import peft

    one = KINDS[kind]
    targets = ["query", "key", "dense"] if ALL_LINEAR in one.targets else list(one.targets)
    config = peft.LoraConfig(
        task_type="QUESTION_ANS", r=one.rank, lora_alpha=one.alpha, use_rslora=one.rslora, use_dora=one.dora,
        target_modules=targets, rank_pattern=one.rank_pattern, alpha_pattern=one.alpha_pattern, lora_dropout=0.0,
    )
    torch.manual_seed(3)
    theirs = peft.get_peft_model(reference_model(tiny()), config).train()
    ids, types, mask = ragged_batch()
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.02)
    for _ in range(4):
        out = theirs.base_model(input_ids=ids, token_type_ids=types, attention_mask=mask.long(),
                                start_positions=torch.tensor([3, 2, 1]), end_positions=torch.tensor([5, 4, 1]))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    theirs.save_pretrained(tmp_path)
    theirs.eval()
    with torch.no_grad():
        found = theirs.base_model(input_ids=ids, token_type_ids=types, attention_mask=mask.long())
    model = tiny().eval()
    plain = logits(model)
    described = load_adapter(model, tmp_path, "one", "some fingerprint")
    assert len(described.notices) == 1 and "wrong base" in described.notices[0]
    found = torch.stack([found.start_logits, found.end_logits])
    assert (found - logits(model))[:, mask].abs().max() <= TOLERANCE * max(1, found.abs().max())
    assert (logits(model) - plain).abs().max() > 0.1


RULES = {  # what peft can say of layers, and LoraConfig cannot
    "regex": dict(target_modules=r".*\.[01]\.attention\.self\.(query|value)"),
    "layers": dict(target_modules=["query", "dense"], layers_to_transform=[0, 2]),
    "one layer": dict(target_modules=["value"], layers_to_transform=1, layers_pattern="layer"),
    "no such parent": dict(target_modules=["bert.encoder.layer.0.output.dense", "key"], layers_to_transform=[2], layers_pattern=["x", "layer"]),
    "exclude": dict(target_modules=["query", "key", "dense"], exclude_modules=["attention.output.dense", "bert.encoder.layer.1.attention.self.key"]),
    "exclude regex": dict(target_modules=["query", "key"], exclude_modules=r".*\.(0|2)\..*"),
    "patterns": dict(
        target_modules=["query", "value"], use_rslora=True, use_dora=True, rank_pattern={r"layer\.[01]\..*": 5, "value": 2},
        alpha_pattern={"^bert.encoder.layer.1.attention.self.query": 3.5, r".*\.value": 40},
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_layers_by_rules_are_those_of_peft(tmp_path, rule):
    import peft

    torch.manual_seed(3)
    config = peft.LoraConfig(task_type="QUESTION_ANS", r=3, lora_alpha=7, init_lora_weights=False, **RULES[rule])
    theirs = peft.get_peft_model(reference_model(tiny()), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    model, (ids, types, mask) = tiny().eval(), ragged_batch()
    load_adapter(model, tmp_path / "theirs", "one")
    with torch.no_grad():
        found = theirs.base_model(input_ids=ids, token_type_ids=types, attention_mask=mask.long())
    found = torch.stack([found.start_logits, found.end_logits])
    assert (found - logits(model))[:, mask].abs().max() <= TOLERANCE * max(1, found.abs().max())
    adapted_layers = {name for name, *_, module in linear_layers(model) if isinstance(module, LoraLinear)}
    lora = [name for name, module in theirs.named_modules() if hasattr(module, "lora_A")]
    assert adapted_layers == {name.removeprefix("base_model.model.") for name in lora} and adapted_layers
    (tmp_path / "ours").mkdir()  # named one by one now, and peft opens that too
    save_adapter(model, "one", tmp_path / "ours", base="minilm")
    again = tiny().eval()
    load_adapter(again, tmp_path / "ours", "one")
    assert torch.equal(logits(again), logits(model))
    theirs = peft.PeftModel.from_pretrained(reference_model(tiny()), tmp_path / "ours").eval()
    with torch.no_grad():
        reopened = theirs.base_model(input_ids=ids, token_type_ids=types, attention_mask=mask.long())
    assert (reopened.start_logits - found[0])[mask].abs().max() <= TOLERANCE * max(1, found.abs().max())


def test_another_base_is_refused_and_nothing_changes(tmp_path):
    _, folder = saved(tmp_path, fingerprint="a" * 64)
    model = adapted(KINDS["lora"], "first")
    before = logits(model)
    with pytest.raises(InputError, match=r"trained on other weights \(minilm\)"):
        load_adapter(model, folder, "one", "b" * 64)
    assert adapter_names(model) == ["first"] and torch.equal(logits(model), before)


def break_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


A = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.weight"
HEAD = "base_model.model.qa_outputs.weight"
DAMAGE = {
    f"tensor {A} is missing": lambda t: t.pop(A),
    "tensor more has no place": lambda t: t.update(more=torch.zeros(1)),
    f"tensor {A} has shape (3, 34), and (3, 35)": lambda t: t.update({A: torch.zeros(3, 34)}),
    f"tensor {A} is not of finite": lambda t: t.update({A: torch.full((3, 35), float("nan"))}),
    f"tensor {HEAD} is not of finite": lambda t: t.update({HEAD: torch.zeros(2, 35, dtype=torch.int64)}),
    "qa_outputs.bias is missing": lambda t: t.pop("base_model.model.qa_outputs.bias"),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_damaged_tensors_are_refused_and_nothing_changes(tmp_path, sentence):
    _, folder = saved(tmp_path)
    break_tensors(folder, DAMAGE[sentence])
    model = adapted(KINDS["lora"], "first")
    before = logits(model)
    with pytest.raises(InputError) as refusal:
        load_adapter(model, folder, "one")
    assert sentence in str(refusal.value) and str(folder) in str(refusal.value)
    assert adapter_names(model) == ["first"] and torch.equal(logits(model), before)


CONFIGS = {
    "peft_type": ["IA3", None], "bias": ["all"], "fan_in_fan_out": [True], "layers_to_transform": [["0"], True, {"a": 1}],
    "use_qalora": [True], "lora_bias": [True], "init_lora_weights": ["pissa", "olora", "lora_ga"],
    "modules_to_save": [["pooler"]], "target_parameters": [["x"]], "r": [0, "8", True, None, 1.5],
    "lora_alpha": ["x", -1, 10**400], "lora_dropout": [1, -0.1], "target_modules": [[], None, "", "*query", "nothing.*", [5]],
    "base_model_name_or_path": [5], "revision": [["a"]],
    "rank_pattern": [{"layer.[01.query": 3}, [1], {"query": 0}], "exclude_modules": [5, "(", [None]], "layers_pattern": [[5], 5],
    "use_rslora": ["no", 1], "use_dora": ["yes"],
}


@pytest.mark.parametrize("key, value", [(k, v) for k, values in CONFIGS.items() for v in values])
def test_keys_that_change_the_mathematics_are_refused_by_name(tmp_path, key, value):
    _, folder = saved(tmp_path)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=rf": {key}\b") as refusal:
        load_adapter(tiny(), folder, "one")
    assert str(path if value != "nothing.*" else folder) in str(refusal.value)


def test_a_rank_beyond_memory_is_held_against_the_file(tmp_path):
    _, folder = saved(tmp_path)
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text())
    for rank in (10**8, 4):
        path.write_text(json.dumps(values | {"r": rank}))
        model = tiny()
        with pytest.raises(InputError, match=rf"has shape \(3, 35\), and \({rank}, 35\) is wanted"):
            load_adapter(model, folder, "one")
        assert switch_of(model) is None


def test_a_rank_beyond_memory_without_its_tensors_is_refused_before_memory_is_asked_for(tmp_path):
    _, folder = saved(tmp_path)
    break_tensors(folder, lambda t: [t.pop(key) for key in list(t) if "lora_A" in key])
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 999_999_999}))
    with pytest.raises(InputError, match="lora_A.weight is missing"):
        load_adapter(tiny(), folder, "one")


def test_numbers_of_8_and_of_64_bits(tmp_path):
    _, folder = saved(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float64):
        break_tensors(folder, lambda t: t.update({A: tensors[A].to(dtype)}))
        model = tiny()
        load_adapter(model, folder, "one")
        (update,) = (m.updates["one"] for name, *_, m in linear_layers(model) if PREFIX + name + ".lora_A.weight" == A)
        assert torch.equal(update.lora_A, tensors[A].to(dtype).float())
    break_tensors(folder, lambda t: t.update({A: tensors[A].double() * 1e300}))
    with pytest.raises(InputError, match="is not of finite"):
        load_adapter(tiny(), folder, "one")


@pytest.mark.parametrize("name", ["training", "_modules", "_parameters", "_forward_hooks", "train", "none", "a.b", ""])
def test_names_that_modules_have_already_are_refused_and_nothing_changes(tmp_path, name):
    _, folder = saved(tmp_path)
    model = tiny()
    before = [key for key, _ in model.named_parameters()]
    with pytest.raises(InputError, match="an adapter cannot be called"):
        load_adapter(model, folder, name)
    assert [key for key, _ in model.named_parameters()] == before and not adapter_names(model)


def test_a_target_that_the_model_lacks_is_told_of_its_file(tmp_path):
    _, folder = saved(tmp_path)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["query", "nope"]}))
    with pytest.raises(InputError, match=f"{folder}: no Linear layer is called 'nope'"):
        load_adapter(tiny(), folder, "one")


def test_a_row_of_zeros_under_dora_stays_one():
    model = tiny().eval()
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.self.query.weight[2] = 0
    plain = logits(model)
    add_lora(model, LoraConfig(3, 7.0, dora=True), "one")
    assert (logits(model) - plain).abs().max() < 1e-5


def test_an_svd_has_a_rank():
    model = adapted(KINDS["lora"], "one")
    for rank in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="a rank is a whole number above 0"):
            combine(model, "both", {"one": 1.0}, "svd", rank=rank)


def test_unknown_keys_are_passed_over_and_said(tmp_path):
    _, folder = saved(tmp_path, fingerprint="f" * 64)
    path = folder / "adapter_config.json"
    extra = {"corda_config": None, "colour": "blue", "peft_version": "0.21.0", "megatron_core": "m", "quiet": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | extra))
    assert read_adapter(folder).notices == (f"{path}: colour is unknown and was passed over",)


def test_files_that_are_not_there_or_not_whole(tmp_path):
    _, folder = saved(tmp_path / "a")
    sentences = {
        "adapter_model.safetensors": "no adapter_model.safetensors",
        "adapter_config.json": "not the folder of an adapter",
    }
    for name, sentence in sentences.items():
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        (copy / name).unlink()
        with pytest.raises(InputError, match=sentence):
            read_adapter(copy)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        read_adapter(folder)
    with pytest.raises(InputError, match="not the folder of an adapter"):
        read_adapter(tmp_path / "nowhere")


def test_what_reads_back_otherwise_is_said(tmp_path, monkeypatch):
    def wrong(tensors, metadata):
        return to_safetensors({name: value + 1 for name, value in tensors.items()}, metadata)

    monkeypatch.setattr(adapters, "to_safetensors", wrong)
    with pytest.raises(InputError, match="reads back otherwise"):
        saved(tmp_path)


def test_a_merged_adapter_is_not_saved(tmp_path):
    model = adapted()
    merge(model, "one")
    with pytest.raises(ValueError, match="unmerge"):
        save_adapter(model, "one", tmp_path, base="minilm")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no adapter 'two'"):
        save_adapter(adapted(), "two", tmp_path, base="minilm")


def test_an_adapter_without_a_head_uses_the_bases(tmp_path):
    _, folder = saved(tmp_path)
    break_tensors(folder, lambda t: [t.pop(key) for key in list(t) if "qa_outputs" in key])
    model = tiny().eval()
    with pytest.raises(InputError, match="qa_outputs.bias is missing"):
        load_adapter(model, folder, "one")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"modules_to_save": None}))
    load_adapter(model, folder, "one")
    assert torch.equal(model.qa_outputs.heads["one"].weight, model.qa_outputs.base.weight)


def test_rank_8_on_bert_base_makes_a_file_of_at_most_1_25_mb(tmp_path):
    model = tiny()
    add_lora(model, LoraConfig(rank=8), "one")
    save_adapter(model, "one", tmp_path, base="minilm", dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    header = (tmp_path / "adapter_model.safetensors").stat().st_size - sum(t.numel() * 2 for t in tensors.values())
    names = 48 / (len(tensors) - 2)  # tensors of BERT-base's 24 layers over the tiny model's
    assert 294_912 * 4 + header * (names + 1) <= 1.25e6


def updates(model, name):
    """Layer -> s B A of an adapter."""
    return {
        layer: module.updates[name].weight().detach()
        for layer, _, _, module in linear_layers(model) if isinstance(module, LoraLinear) and name in module.updates
    }


def mixed():
    """Two adapters that share some layers, with scales of their own."""
    model = tiny().eval()
    add_lora(model, LoraConfig(3, 7.0), "one")
    add_lora(model, LoraConfig(3, 2.0, targets=("query", "intermediate.dense")), "two")
    for seed, name in enumerate(("one", "two")):
        randomise(model, name, seed)
    return model


WEIGHTS = {"one": 0.7, "two": -0.4}


def test_cat_is_the_exact_sum():
    model = mixed()
    combine(model, "both", WEIGHTS, "cat")
    one, two, both = (updates(model, name) for name in ("one", "two", "both"))
    assert set(both) == set(one) | set(two)
    for layer, found in both.items():
        wanted = WEIGHTS["one"] * one.get(layer, torch.zeros(())) + WEIGHTS["two"] * two.get(layer, torch.zeros(()))
        assert (found - wanted).abs().max() < 1e-6
    heads = model.qa_outputs.heads
    wanted = (0.7 * heads["one"].weight - 0.4 * heads["two"].weight) / 0.3
    assert torch.allclose(heads["both"].weight, wanted, atol=1e-6)


def test_svd_is_the_best_of_its_rank():
    model = mixed()
    combine(model, "exact", WEIGHTS, "cat")
    combine(model, "six", WEIGHTS, "svd", rank=6)
    combine(model, "two-ranks", WEIGHTS, "svd", rank=2)
    exact, six, low = (updates(model, name) for name in ("exact", "six", "two-ranks"))
    for layer, wanted in exact.items():
        assert (six[layer] - wanted).abs().max() < 1e-5
        S = torch.linalg.svdvals(wanted.double())
        assert (low[layer] - wanted).norm().item() == pytest.approx(S[2:].norm().item(), rel=1e-4)


@pytest.mark.parametrize("weights", [WEIGHTS, {"one": 1.0, "two": 1.0}, {"one": 2.0}])
@pytest.mark.parametrize("method", ["linear", "cat", "svd"])
def test_combinations_are_those_of_peft(tmp_path, weights, method):
    import peft

    model = mixed()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_adapter(model, name, tmp_path / name, base="minilm")
        break_tensors(tmp_path / name, lambda t: [t.pop(key) for key in list(t) if "qa_outputs" in key])
        path = tmp_path / name / "adapter_config.json"  # peft combines no adapters that bring a head
        path.write_text(json.dumps(json.loads(path.read_text()) | {"modules_to_save": None, "task_type": None}))
    theirs = peft.PeftModel.from_pretrained(reference_model(tiny()), tmp_path / "one", adapter_name="one")
    theirs.load_adapter(tmp_path / "two", adapter_name="two")
    theirs.add_weighted_adapter(list(weights), list(weights.values()), "both", combination_type=method)
    combine(model, "both", weights, method)
    compared = 0
    for layer, found in updates(model, "both").items():
        wanted = theirs.base_model.model.get_submodule(layer).get_delta_weight("both")
        assert (found - wanted).abs().max() <= 1e-5
        compared += 1
    assert compared == (6 if len(weights) == 1 else 9)


def test_combinations_that_cannot_be_are_refused():
    model = mixed()
    add_lora(model, LoraConfig(5, 2.0), "wide")
    add_lora(model, LoraConfig(3, 2.0, dora=True), "dora")
    for weights, method, sentence in (
        ({"one": 1.0, "wide": 1.0}, "linear", "one rank"), ({"one": 1.0, "dora": 1.0}, "cat", "DoRA"),
        ({"one": 1.0, "none": 1.0}, "cat", "no adapter 'none'"), ({"one": 1.0, "two": -1.0}, "cat", "sum other than 0"),
        ({}, "cat", "sum other than 0"), ({"one": float("nan")}, "cat", "finite"),
        ({"one": 1.0}, "dare", "no way to combine"),
    ):
        with pytest.raises(ValueError, match=sentence):
            combine(model, "both", weights, method)
    with pytest.raises(ValueError, match="a rank can be chosen for svd"):
        combine(model, "both", WEIGHTS, "cat", rank=2)
    assert adapter_names(model) == ["one", "two", "wide", "dora"]


def test_a_reader_switches_weights_windows_and_threshold_together(tmp_path, tiny_folder):
    from dataclasses import replace

    from data.windows import WindowSettings

    reader = Reader.load(tiny_folder, device="cpu", precision="fp32")
    reader.base = str(tiny_folder), None
    folders = []
    for number, name in enumerate(("a", "b")):
        add_lora(reader.model, LoraConfig(3, 7.0), name)
        randomise(reader.model, name, number)
        reader.all_settings[name] = replace(
            reader.all_settings[None], windows=WindowSettings(40 + number, 9), null_threshold=float(number)
        )
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        reader.save(folders[-1])
    text = "The mill stood by the river. " * 9
    alone = [Reader.load(folder, device="cpu", precision="fp32") for folder in folders]
    both = Reader.load(tiny_folder, device="cpu", precision="fp32")
    plain = both.ask("Where?", text)[0]
    for folder, name in zip(folders, "ab", strict=True):
        both.load_adapter(folder, name)
    assert both.notices == []
    for name, wanted in zip("ab", alone, strict=True):
        both.set_adapter(name)
        assert both.settings == wanted.settings and both.settings.windows.length == 40 + "ab".index(name)
        assert both.ask("Where?", text)[0] == wanted.ask("Where?", text)[0]
    both.set_adapter("a")
    begun = both.predict([Example("q", "Where?", text, None, "")])
    both.set_adapter("b")  # what began with an adapter ends with it
    assert next(begun).spans == alone[0].ask("Where?", text)[0].spans
    both.combine("mean", {"a": 0.5, "b": 0.5})
    assert both.settings == alone[0].settings and both.ask("Where?", text)[0].spans
    both.set_adapter(None)
    assert both.ask("Where?", text)[0] == plain
    with pytest.raises(ValueError, match="cannot be saved whole"):
        both.save(tmp_path)
    for name in ("a", "b", "mean"):
        remove_adapter(both.model, name)
    both.save(tmp_path)
    assert alone[0].ask("Where?", text)[0] != alone[1].ask("Where?", text)[0]


def test_an_adapter_folder_of_another_base_is_refused_by_the_reader(tmp_path, tiny_folder):
    from tests.tiny_model import make_folder

    reader = Reader.load(tiny_folder, device="cpu", precision="fp32")
    reader.base = str(tiny_folder), None
    add_lora(reader.model, LoraConfig(), "a")
    reader.all_settings["a"] = reader.all_settings[None]
    (tmp_path / "a").mkdir()
    reader.save(tmp_path / "a")
    other = Reader.load(make_folder(tmp_path / "other", seed=5), device="cpu", precision="fp32")
    with pytest.raises(InputError, match="trained on other weights"):
        other.load_adapter(tmp_path / "a", "a")
    path = Path(tmp_path / "a" / "adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(InputError, match="does not name its base"):
        Reader.load(tmp_path / "a")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "a")}))
    with pytest.raises(InputError, match="which is an adapter itself"):
        Reader.load(tmp_path / "a")
    set_adapter(reader.model, None)
    assert switch_of(reader.model).active is None
