"""The decoder from and to files, in 4 bits, and with adapters: the same passes as over BERT, proven the same way."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import InputError
from model.adapters import load_adapter, save_adapter
from model.lora import LoraConfig, add_lora, adapter_names, set_adapter, switch_of
from model.merging import merge, merged_model, unmerge
from model.quant import FourBit, FourBitLinear, quantise
from model.tune import tune_lora
from model.saving import save_weights
from model.weights import load_model, read_config
from answering.reader import Reader
from tests.test_llama import KINDS, ids, make, twin

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def logits(model):
    with torch.no_grad():
        return model(ids())


def shrug(model, name):
    """`randomise` without a head."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if f".updates.{name}." in parameter_name:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_decoder_is_that_of_transformers_and_comes_back(tmp_path, kind):
    import transformers

    model = make(kind)
    save_weights(model, tmp_path)
    again, report = load_model(tmp_path)
    assert report.new == () and torch.equal(logits(again.eval()), logits(model))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (theirs(input_ids=ids()).logits - logits(model)).abs().max() <= 1e-5
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs/model.safetensors.index.json").is_file()
    back, shards = load_model(tmp_path / "theirs")
    assert torch.equal(logits(back.eval()), logits(model)) and shards.fingerprint == report.fingerprint
    if model.config.tie_word_embeddings:
        assert back.lm_head.weight is back.model.embed_tokens.weight
        assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_what_a_file_holds_in_16_bits_may_stay_so(tmp_path):
    from tests.tiny_decoder import make_folder, make_model

    folder = make_folder(tmp_path)
    path = folder / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    plain, narrow = (Reader.load(folder, device="cpu", precision="bf16", frozen=frozen) for frozen in (False, True))
    assert {p.dtype for p in plain.model.parameters()} == {torch.float32}
    kinds = {name: p.dtype for name, p in narrow.model.named_parameters()}
    assert {p for p, kind in kinds.items() if kind == torch.float32} == {p for p in kinds if "norm" in p}
    assert plain.report.fingerprint == narrow.report.fingerprint
    tokens = torch.randint(0, 600, (3, 13))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # which rounds matrices itself: nothing changes
        assert torch.equal(plain.model.eval()(tokens), narrow.model.eval()(tokens))
    assert make_model(7).model.norm.weight.dtype == torch.float32
    wide = Reader.load(folder, device="cpu", precision="fp32", frozen=True)
    assert next(wide.model.parameters()).dtype == torch.float32


def test_tensors_that_do_not_fit_are_named(tmp_path):
    save_weights(make("two-to-one"), tmp_path)
    path = tmp_path / "model.safetensors"
    whole, name = load_file(path), "model.layers.1.mlp.up_proj.weight"
    for change, sentence in (
        ({"model.layers.1.mlp.more.weight": torch.zeros(1)}, "has no place in a LLaMA"),
        ({name: torch.zeros(41, 59)}, f"tensor {name} has shape"),
        ({name: torch.full((41, 60), torch.nan)}, "holds NaN"),
    ):
        save_file(whole | change, path)
        with pytest.raises(InputError, match=sentence):
            load_model(tmp_path)
    save_file({k: v for k, v in whole.items() if k != name}, path)
    with pytest.raises(InputError, match=f"the weights lack {name}"):
        load_model(tmp_path)
    save_file(whole | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(5)}, path)
    assert load_model(tmp_path)[1].left_out == ("model.layers.0.self_attn.rotary_emb.inv_freq",)


@pytest.mark.parametrize("kind", ["two-to-one", "biased"])
def test_in_4_bits(tmp_path, kind):
    model = make(kind)
    save_weights(model, tmp_path)
    later, _ = load_model(tmp_path)
    done = quantise(later, FourBit())
    assert len(done) == 3 * 7 and not isinstance(later.lm_head, FourBitLinear)
    directly, _ = load_model(tmp_path, four_bit=FourBit())
    assert torch.equal(logits(directly.eval()), logits(later.eval()))
    assert (logits(directly) - logits(model)).abs().max() > 1e-3
    packed = tmp_path / "packed"
    packed.mkdir()
    save_weights(directly, packed)
    assert torch.equal(logits(load_model(packed)[0].eval()), logits(directly))
    assert (logits(merged_model(directly, None)) - logits(later)).abs().max() < 2e-5


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_those_of_peft(tmp_path, dora):
    import peft

    model = make("two-to-one")
    plain = logits(model)
    tune_lora(model, LoraConfig(3, 7.0, targets=PROJECTIONS, dora=dora))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(learning) == 3 * 4 * (3 if dora else 2) and all(".updates.default." in name for name in learning)
    shrug(model, "default")
    found = logits(model)
    assert (found - plain).abs().max() > 0.1
    save_adapter(model, "default", tmp_path, base="tiny")
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert described["task_type"] == "CAUSAL_LM" and described["modules_to_save"] is None
    theirs = peft.PeftModel.from_pretrained(twin(make("two-to-one")), tmp_path).eval()
    with torch.no_grad():
        assert (theirs(input_ids=ids()).logits - found).abs().max() <= 1e-5
    theirs.save_pretrained(tmp_path / "theirs")
    fresh = make("two-to-one")
    load_adapter(fresh, tmp_path / "theirs", "again")
    assert torch.equal(logits(fresh), found)
    set_adapter(fresh, None)
    assert torch.equal(logits(fresh), plain)
    set_adapter(fresh, "again")
    merge(fresh, "again")
    assert (logits(fresh) - found).abs().max() < 5e-5  # logits of up to 10, through three more roundings
    unmerge(fresh)
    assert torch.equal(logits(fresh), found)
    add_lora(fresh, LoraConfig(2, targets=("down_proj",)), "other")
    with switch_of(fresh).rows(["again", None, "other"]):
        together = logits(fresh)
    assert (together[0] - found[0]).abs().max() < 3e-5 and (together[1:] - plain[1:]).abs().max() < 3e-5
    assert adapter_names(fresh) == ["again", "other"]
    whole = tmp_path / "merged"
    whole.mkdir()
    save_weights(merged_model(fresh, "again"), whole)
    assert (logits(load_model(whole)[0].eval()) - found).abs().max() < 5e-5


def test_word_vectors_that_are_there_twice_are_read_once(tmp_path):
    """Some tools write a tied output layer too; transformers opens such a folder, and so does this."""
    (tied,) = [kind for kind in KINDS if make(kind).config.tie_word_embeddings][:1]
    model = make(tied)
    save_weights(model, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path, metadata={"format": "pt"})
    again, report = load_model(tmp_path)
    assert report.left_out == ("lm_head.weight",) and torch.equal(logits(again.eval()), logits(model))
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_a_decoder_that_does_not_say_its_kind_is_told_so(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 97, "hidden_size": 60, "rms_norm_eps": 1e-5}))
    with pytest.raises(InputError, match='config.json: model_type is missing; of a LLaMA it is "llama"'):
        read_config(tmp_path)


def test_a_large_model_is_written_in_shards(tmp_path, monkeypatch):
    import transformers

    from model import saving

    monkeypatch.setattr(saving, "SHARD", 20_000)
    model = make("two-to-one")
    save_weights(model, tmp_path)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    sizes = [sum(tensor.nbytes for tensor in load_file(tmp_path / file).values()) for file in files]
    assert all(size <= 20_000 or len(load_file(tmp_path / file)) == 1 for file, size in zip(files, sizes))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
    again, _ = load_model(tmp_path)
    assert torch.equal(logits(again.eval()), logits(model))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        assert (theirs(input_ids=ids()).logits - logits(model)).abs().max() <= 1e-5
