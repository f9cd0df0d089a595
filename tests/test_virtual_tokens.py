"""Prompt tuning: what the virtual tokens do, what learns, and that a run of it is saved, opened and resumed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import infer
import merge
import train
from common.errors import InputError
from model.prompts import PromptedBert, add_prompt, room, tune_prompt
from answering.reader import Reader
from tests.test_bert import VOCABULARY, ragged_batch, reference_model
from tests.test_lora import logits
from tests.tiny_model import make_model
from tests.tiny_run import Nursery, arguments

TUNE = {"tune": "prompt", "prompt_tokens": 7, "max_steps": 6, "eval_every": 3, "save_every": 2}


def prompted(count=7):
    model = make_model(VOCABULARY, initializer_range=0.2)
    torch.manual_seed(3)
    add_prompt(model, count)
    return model.eval()


def test_virtual_tokens_stand_before_the_text():
    """As transformers computes it from input vectors that hold them."""
    model, (ids, types, mask) = prompted(), ragged_batch()
    theirs = reference_model(make_model(VOCABULARY, initializer_range=0.2)).eval()
    words = torch.cat([model.bert.prompt.expand(3, -1, -1), theirs.bert.embeddings.word_embeddings(ids)], 1)
    with torch.no_grad():
        out = theirs(
            inputs_embeds=words, token_type_ids=torch.cat([torch.zeros(3, 7, dtype=torch.long), types], 1),
            attention_mask=torch.cat([torch.ones(3, 7, dtype=torch.long), mask.long()], 1),
        )
    wanted = torch.stack([out.start_logits, out.end_logits])[:, :, 7:]
    assert wanted.shape == logits(model).shape
    assert (logits(model) - wanted)[:, mask].abs().max() < 1e-5
    assert (logits(model) - logits(make_model(VOCABULARY, initializer_range=0.2).eval())).abs().max() > 0.1
    start, end, maps = model.attention_maps(ids, types, mask)
    assert maps[0].shape == (3, 5, 36, 36) and (torch.stack([start, end]) - wanted)[:, mask].abs().max() < 1e-5


def test_a_text_is_where_they_begin():
    model = make_model(VOCABULARY)
    add_prompt(model, 5, [9, 4])
    words = model.bert.base.embeddings.word_embeddings.weight
    assert torch.equal(model.bert.prompt, words[[9, 4, 9, 4, 9]])
    drawn = prompted()
    assert all((drawn.bert.base.embeddings.word_embeddings.weight == p).all(1).any() for p in drawn.bert.prompt)
    assert room(model) == 131 - 5 and room(make_model(VOCABULARY)) == 131
    with pytest.raises(InputError, match="leave no room in 131 positions"):
        add_prompt(make_model(VOCABULARY), 123)


def test_vectors_and_head_learn_and_nothing_else():
    model = make_model(VOCABULARY)
    tune_prompt(model, 4)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"bert.prompt", "qa_outputs.weight", "qa_outputs.bias"}
    start, end = model(*ragged_batch())
    (start.sum() + end.square().sum()).backward()
    assert model.bert.prompt.grad.abs().min() > 0


def test_a_run_is_opened_killed_and_gone_on_with(place, tmp_path, capsys):
    folder, encoder = place
    with Nursery(tmp_path) as nursery:
        assert nursery.run(arguments(folder, encoder, tmp_path / "whole", **TUNE)) == 0
        argv = arguments(folder, encoder, tmp_path / "cut", **TUNE)
        assert nursery.run(argv, ("training.step", "span_loss", 8)) == -9
        assert nursery.run([*argv, "--resume"]) == 0
    whole = tmp_path / "whole/model"
    names = {"adapter_config.json", "adapter_model.safetensors", "reader.json"}
    assert {path.name for path in whole.iterdir()} == names
    for path in whole.iterdir():
        assert path.read_bytes() == (tmp_path / "cut/model" / path.name).read_bytes()
    tensors = load_file(whole / "adapter_model.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "prompt_embeddings": (7, 35), "base_model.qa_outputs.weight": (2, 35), "base_model.qa_outputs.bias": (2,)
    }
    reader = Reader.load(whole, device="cpu", precision="fp32")
    assert isinstance(reader.model.bert, PromptedBert) and reader.trained
    question = ["--question", "Who?", "--context", "A miller.", "--json"]
    assert infer.main(["--model", str(tmp_path / "whole"), *question]) == 0
    capsys.readouterr()
    more = arguments(folder, whole, tmp_path / "more", **TUNE)
    assert train.main(more) == 0
    config = json.loads((tmp_path / "more/model/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(encoder) and config["num_virtual_tokens"] == 7
    capsys.readouterr()
    assert merge.main(["--adapter", str(whole), "--out", str(tmp_path / "merged")]) == 2
    assert "virtual tokens: not a change of weights" in capsys.readouterr().err
    assert infer.main(["--adapter", str(whole), *question]) == 2
    assert "open them with --model" in capsys.readouterr().err
    for tune, sentence in (("lora", "only --tune prompt trains them"), ("full", "only --tune prompt trains them")):
        assert train.main(arguments(folder, whole, tmp_path / "other", tune=tune)) == 2
        assert sentence in capsys.readouterr().err
    assert train.main(arguments(folder, encoder, tmp_path / "other", **TUNE | {"prompt_tokens": 80})) == 2
    assert "longer than this model's 51 positions" in capsys.readouterr().err


def test_folders_that_do_not_fit(place, tmp_path):
    folder, encoder = place
    assert train.main(arguments(folder, encoder, tmp_path / "run", **TUNE | {"max_steps": 1})) == 0
    path = tmp_path / "run/model/adapter_model.safetensors"
    whole = load_file(path)
    head = "base_model.qa_outputs.weight"
    for change, sentence in (
        ({"more": torch.zeros(1)}, "tensor more has no place"), ({head: torch.zeros(3, 35)}, f"tensor {head} is not"),
        ({"prompt_embeddings": torch.full((7, 35), float("inf"))}, "prompt_embeddings is not of"),
        ({"prompt_embeddings": torch.zeros(7, 34)}, "prompt_embeddings is not of"),
    ):
        save_file(whole | change, path)
        with pytest.raises(InputError, match=sentence):
            Reader.load(tmp_path / "run/model")
    save_file({k: v for k, v in whole.items() if k != head}, path)
    with pytest.raises(InputError, match=f"tensor {head} is missing"):
        Reader.load(tmp_path / "run/model")
    save_file(whole, path, metadata={"base_fingerprint": "f" * 64})
    with pytest.raises(InputError, match="trained on other weights"):
        Reader.load(tmp_path / "run/model")

