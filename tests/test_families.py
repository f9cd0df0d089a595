"""BERT's relatives: equal to transformers' in logits and gradients, and their folders open on both sides."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import InputError
from model.families import BertConfig
from model.names import names_of
from model.saving import save_weights
from model.weights import load_model
from tests.test_bert import LENGTHS, TOLERANCE, VOCABULARY, gradients, ragged_batch, scalar_loss
from tests.tiny_families import CHANGES, FAMILIES, make_family, make_family_folder, reference, run_reference
from tests.tiny_model import TINY


def batch_of(family):
    """`ragged_batch` with the family's padding; ids of RoBERTa's padding stand in no text."""
    ids, types, mask = ragged_batch()
    pad = CHANGES[family].get("pad_token_id", 0)
    return ids.where(ids != pad, 2).where(mask, pad), types, mask


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_every_gradient_are_those_of_transformers(family, attention):
    ours = make_family(family, VOCABULARY)
    theirs = reference(ours, attention)
    ids, types, mask = batch_of(family)
    mine, other = ours(ids, types, mask), run_reference(theirs, ids, types, mask)
    for a, b in zip(mine, other, strict=True):
        assert (a - b)[mask].abs().max() <= TOLERANCE
        assert b[mask].abs().max() > 0.3  # far from the size of the tolerance
    for logits in (mine, other):
        scalar_loss(*logits, mask).backward()
    wanted, names = gradients(theirs), names_of(ours)
    found = {names.theirs(name): value for name, value in gradients(ours).items()}
    assert set(found) == set(wanted) and len(found) == {"electra": 57, "distilbert": 54}.get(family, 55)
    for name, gradient in found.items():
        scale = max(1.0, wanted[name].abs().max().item())
        assert (gradient - wanted[name]).abs().max() <= TOLERANCE * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_drops_where_the_reference_does(family, masks_of_torch):
    """From one seed both draw the same masks, if and only if they draw at the same places."""
    qa_dropout = {"qa_dropout": 0.15} if family == "distilbert" else {}
    chances = dict(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, **qa_dropout)
    ours = make_family(family, VOCABULARY, **chances).train()
    theirs, batch = reference(ours).train(), batch_of(family)
    torch.manual_seed(7)
    mine = ours(*batch)
    torch.manual_seed(7)
    other = run_reference(theirs, *batch)
    for a, b in zip(mine, other, strict=True):
        assert (a - b)[batch[2]].abs().max() <= TOLERANCE * b[batch[2]].abs().max()
    assert (mine[0] - ours.eval()(*batch)[0])[batch[2]].abs().max() > 0.1


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "distilbert"])
def test_token_types_are_passed_over_where_a_family_has_none(family):
    model, (ids, types, mask) = make_family(family, VOCABULARY), batch_of(family)
    assert types.any() and torch.equal(model(ids, types, mask)[0], model(ids, torch.zeros_like(types), mask)[0])


def test_electra_of_one_size_has_no_projection():
    model = make_family("electra", VOCABULARY, embedding_size=TINY["hidden_size"])
    assert not any("project" in name for name, _ in model.named_parameters())
    batch = batch_of("electra")
    for a, b in zip(model(*batch), run_reference(reference(model), *batch), strict=True):
        assert (a - b)[batch[2]].abs().max() <= TOLERANCE


def test_roberta_reaches_its_last_position_and_not_further():
    model = make_family("roberta", VOCABULARY)
    assert (model.config.positions, model.config.max_position_embeddings) == (135, 137)
    ids = torch.full((1, 135), 7)
    a, b = model(ids, ids * 0)[0], run_reference(reference(model), ids, None, torch.ones_like(ids))[0]
    assert (a - b).abs().max() <= TOLERANCE
    with pytest.raises(IndexError):
        model(torch.full((1, 136), 7), torch.zeros(1, 136, dtype=torch.int64))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_opens_in_transformers_and_theirs_here(family, tmp_path):
    from transformers import AutoModel, AutoModelForQuestionAnswering

    model, batch = make_family(family, VOCABULARY).eval(), batch_of(family)
    save_weights(model, tmp_path)
    theirs, loading = AutoModelForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == model.config.family.architecture and theirs.config.model_type == family
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        for a, b in zip(model(*batch), run_reference(theirs.eval(), *batch), strict=True):
            assert (a - b)[batch[2]].abs().max() <= TOLERANCE
    theirs.save_pretrained(tmp_path / "whole")
    AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "encoder")
    again, report = load_model(tmp_path / "whole")
    assert again.config == model.config and report.new == report.left_out == ()
    alone, encoder = load_model(tmp_path / "encoder")
    assert encoder.head_is_new and encoder.fingerprint == report.fingerprint
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
        assert name.startswith("qa_outputs") or torch.equal(alone.state_dict()[name], value), name
    save_weights(again, tmp_path / "whole")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / file).read_bytes()


LEFTOVERS = {
    "roberta": ("lm_head.dense.weight", "roberta.pooler.dense.bias", "roberta.embeddings.position_ids"),
    "xlm-roberta": ("lm_head.bias", "classifier.out_proj.bias", "roberta.embeddings.token_type_ids"),
    "distilbert": ("vocab_projector.bias", "pre_classifier.weight", "distilbert.embeddings.position_ids"),
    "electra": ("discriminator_predictions.dense.bias", "generator_lm_head.bias", "electra.embeddings.position_ids"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_heads_are_left_out_and_strangers_refused(family, tmp_path):
    save_weights(make_family(family, VOCABULARY), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {name: torch.ones(3) for name in LEFTOVERS[family]}, path)
    _, report = load_model(tmp_path)
    assert sorted(report.left_out) == sorted(LEFTOVERS[family]) and len(report.used) == len(tensors)
    assert "roberta" not in str(report) and "electra" not in str(report)
    save_file(tensors | {"bert.pooler.dense.bias": torch.ones(3)}, path)
    with pytest.raises(InputError, match="tensor bert.pooler.dense.bias has no place in a .*(RoBERTa|DistilBERT|ELEC)"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "family, change, sentence",
    [
        ("distilbert", {"n_heads": 4}, "dim 35 is not a multiple of n_heads 4"),
        ("distilbert", {"dim": "35"}, "dim should be int, found '35'"),
        ("distilbert", {"qa_dropout": 1}, "qa_dropout cannot be 1"),
        ("distilbert", {"activation": "swoosh"}, "activation 'swoosh' is unknown; known are gelu, "),
        ("electra", {"embedding_size": 0}, "embedding_size cannot be 0"),
        ("electra", {"type_vocab_size": 1}, "type_vocab_size cannot be 1"),
        ("roberta", {"type_vocab_size": 0}, "type_vocab_size cannot be 0"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings 2 leaves none after pad_token_id"),
        ("xlm-roberta", {"is_decoder": True}, "a decoder (is_decoder, add_cross_attention) is not a reader"),
    ],
)
def test_a_relative_s_config_is_refused_by_its_own_names(family, change, sentence):
    values = make_family(family, VOCABULARY).config.to_dict()
    assert BertConfig.from_dict(values) == make_family(family, VOCABULARY).config
    with pytest.raises(InputError) as caught:
        BertConfig.from_dict(values | change, "some/config.json")
    assert str(caught.value).startswith(f"some/config.json: {sentence}")


def test_dropout_of_distilbert_s_head_follows_the_option(tmp_path):
    save_weights(make_family("distilbert", VOCABULARY, qa_dropout=0.25), tmp_path)
    assert load_model(tmp_path)[0].qa_dropout.p == 0.25
    model, _ = load_model(tmp_path, dropout=0.0)
    assert model.qa_dropout.p == 0.0 and model.config.hidden_dropout_prob == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_tokenizer_says_what_to_do(family, tmp_path):
    from data.tokenizer import load_tokenizer

    folder = make_family_folder(tmp_path / "model", family)
    assert json.loads((folder / "config.json").read_text())["model_type"] == family
    (folder / "tokenizer.json").unlink()
    (folder / "sentencepiece.bpe.model").write_bytes(b"\n")
    with pytest.raises(InputError, match="no tokenizer.json in it; make one where transformers is installed: Auto"):
        load_tokenizer(folder)
    shutil.rmtree(folder)


def test_rows_are_ragged():
    assert len(set(LENGTHS)) == len(LENGTHS) == 3
