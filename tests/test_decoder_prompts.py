"""Virtual tokens before a LLaMA: peft's logits, gradients and tokens; cache, padding and shared texts change nothing."""

import json

import peft
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import train
from common.errors import InputError
from model.generate import Prefix, generate, go_on, sequence_log_probability
from model.llama import KeyValueCache
from model.prompts import PromptedLlama, add_prompt, load_prompt, room, save_prompt, tune_prompt, virtual_tokens
from answering.reader import Reader
from tests.test_generate import PROMPTS, sharp
from tests.test_llama import KINDS, ids, make, ragged, twin
from tests.test_train_decoder import SHORT, logits, run
from tests.tiny_run import Nursery, arguments

P = 5
TUNE = {"tune": "prompt", "prompt_tokens": 7}


def prompted(kind="two-to-one", model=None):
    model = model or make(kind)
    torch.manual_seed(3)
    add_prompt(model, P)
    return model.eval()


def peft_twin(ours, plain):
    """peft's model over transformers' with the same virtual tokens. plain: our model without any."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    theirs = peft.get_peft_model(twin(plain), config)
    with torch.no_grad():
        theirs.prompt_encoder.default.embedding.weight.copy_(ours.model.prompt)
    return theirs.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_peft(kind):
    ours, batch = prompted(kind), ids(rows=2)
    theirs = peft_twin(ours, make(kind))
    found, wanted = ours(batch), theirs(input_ids=batch).logits[:, P:]
    assert (found - wanted).abs().max() < 1e-5
    assert (found - make(kind)(batch)).abs().max() > 0.1
    for model, said in ((ours, found), (theirs, wanted)):
        model.zero_grad()
        F.cross_entropy(said[:, :-1].flatten(0, 1), batch[:, 1:].flatten()).backward()
    grad = theirs.prompt_encoder.default.embedding.weight.grad
    assert grad.abs().max() > 1e-3 and (ours.model.prompt.grad - grad).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_cached_is_uncached_and_ragged_is_one_by_one(kind):
    model = prompted(kind)
    batch, mask = ragged()
    with torch.no_grad():
        whole = model(batch, mask)
        for row, real in enumerate(mask.sum(1).tolist()):
            alone = model(batch[row : row + 1, -real:])
            assert (whole[row, -real:] - alone[0]).abs().max() < 1e-5
        cache = KeyValueCache(model.config, len(batch), P + batch.shape[1])
        stops = (4, 5, 9, batch.shape[1])
        parts = [model(batch[:, a:b], mask[:, :b], cache) for a, b in zip((0, *stops), stops)]
        assert cache.length == P + batch.shape[1]
        assert (torch.cat(parts, 1) - whole)[mask].abs().max() < 1e-5
        plain = KeyValueCache(model.config, len(batch), P + batch.shape[1])
        parts = [model(batch[:, a:b], None, plain) for a, b in zip((0, *stops), stops)]
        assert (torch.cat(parts, 1) - model(batch)).abs().max() < 1e-5


def test_generation_is_that_of_peft_alone_and_in_a_batch():
    model = prompted(model=sharp("two-to-one"))
    theirs = peft_twin(model, sharp("two-to-one"))
    together = generate(model, PROMPTS, max_new=15, stop=())
    for prompt, found in zip(PROMPTS, together, strict=True):
        (alone,) = generate(model, [prompt], max_new=15, stop=())
        asked = torch.tensor([prompt])
        wanted = theirs.generate(
            input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=15, do_sample=False
        )
        assert list(found.tokens) == list(alone.tokens) == wanted[0, len(prompt) :].tolist()


def test_a_shared_beginning_is_read_once():
    model = prompted(model=sharp("one-to-one"))
    shared, closings = PROMPTS[0], [[8, 40], [61], [9, 9, 3]]
    whole = [shared + closing for closing in closings]
    with torch.inference_mode():
        opening = Prefix(model, [shared], 0)
        prefix, wanted = Prefix(model, closings, 7, after=opening), Prefix(model, whole, 7)
    assert opening.read == P + len(shared) and prefix.read == opening.read + 3
    for _ in range(2):
        found = go_on(prefix, max_new=6, stop=())
        assert [one.tokens for one in found] == [one.tokens for one in go_on(wanted, max_new=6, stop=())]
        scores = sequence_log_probability(prefix, [3, 50, 8])
        assert torch.allclose(scores, sequence_log_probability(wanted, [3, 50, 8]), atol=1e-4)


def test_the_vectors_alone_learn_and_take_positions():
    model = make("one-to-one")
    tune_prompt(model, P, [9, 4])
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["model.prompt"]
    assert torch.equal(model.model.prompt, model.model.embed_tokens.weight[[9, 4, 9, 4, 9]])
    assert isinstance(model.model, PromptedLlama) and virtual_tokens(model) == P and room(model) == 64 - P
    tune_prompt(model, 9)  # those that are there go on
    assert virtual_tokens(model) == P
    half = make("one-to-one")
    half.model.embed_tokens.to(torch.bfloat16)
    add_prompt(half, P)
    assert half.model.prompt.dtype == torch.float32 and half(ids()).isfinite().all()


def test_a_run_is_opened_killed_and_gone_on_with(decoder_place, tmp_path, capsys):
    changes = SHORT | {"max_steps": 4, "eval_every": 2, "save_every": 2} | TUNE
    with Nursery(tmp_path) as nursery:
        assert nursery.run(arguments(*decoder_place, tmp_path / "whole", **changes)) == 0, nursery.err.read_text()
        argv = arguments(*decoder_place, tmp_path / "cut", **changes)
        assert nursery.run(argv, ("training.step", "answer_loss", 9)) == -9
        assert nursery.run([*argv, "--resume"]) == 0, nursery.err.read_text()
    whole = tmp_path / "whole/model"
    assert {path.name for path in whole.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "speaker.json"
    }
    for path in whole.iterdir():
        assert path.read_bytes() == (tmp_path / "cut/model" / path.name).read_bytes()
    assert run(decoder_place, tmp_path / "more", model=whole, **TUNE) == 0
    before, after = (load_file(f / "adapter_model.safetensors") for f in (whole, tmp_path / "more/model"))
    assert before.keys() == after.keys() == {"prompt_embeddings"}
    assert not torch.equal(before["prompt_embeddings"], after["prompt_embeddings"])
    for tune in ("lora", "full"):
        assert run(decoder_place, tmp_path / "other", model=whole, tune=tune) == 2
        assert "only --tune prompt trains them" in capsys.readouterr().err
    assert run(decoder_place, tmp_path / "other", window_length=250, **TUNE) == 2
    assert "longer than this model's 249 positions" in capsys.readouterr().err


def test_folders_go_to_peft_and_come_back(decoder_place, tmp_path):
    import transformers

    assert run(decoder_place, tmp_path / "run", **TUNE) == 0
    batch = torch.randint(0, 600, (2, 17))

    def base():
        return transformers.AutoModelForCausalLM.from_pretrained(decoder_place[1])

    def ours(folder):
        return logits(Reader.load(folder, device="cpu", precision="fp32").model.eval(), batch)

    theirs = peft.PeftModel.from_pretrained(base(), tmp_path / "run/model").eval()
    assert (ours(tmp_path / "run/model") - logits(theirs, batch)[:, 7:]).abs().max() < 1e-4
    torch.manual_seed(1)
    made = peft.get_peft_model(base(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    made.save_pretrained(tmp_path / "theirs")
    assert (ours(tmp_path / "theirs") - logits(made, batch)[:, 3:]).abs().max() < 1e-4
    assert run(decoder_place, tmp_path / "out", model=tmp_path / "theirs", **TUNE) == 0
    config = json.loads((tmp_path / "out/model/adapter_config.json").read_text())
    assert (config["task_type"], config["num_virtual_tokens"], config["token_dim"]) == ("CAUSAL_LM", 3, 36)


def test_before_a_span_head_it_learns_too(decoder_place, tmp_path):
    flags = {"head": "span", "window_length": 90, "max_steps": 2, "attention": "bidirectional"} | TUNE
    assert train.main(list(map(str, arguments(*decoder_place, tmp_path / "run", **flags)))) == 0
    tensors = load_file(tmp_path / "run/model/adapter_model.safetensors")
    assert tensors.keys() == {"prompt_embeddings", "base_model.qa_outputs.weight", "base_model.qa_outputs.bias"}
    reader = Reader.load(tmp_path / "run/model", device="cpu", precision="fp32")
    assert reader.trained and virtual_tokens(reader.model) == 7
    assert torch.equal(reader.model.qa_outputs.weight, tensors["base_model.qa_outputs.weight"])
    batch, mask = torch.randint(0, 600, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    with torch.no_grad():
        padded, alone = reader.model.eval()(batch, None, mask)[0], reader.model(batch[1:, :6])[0]
    assert padded.shape == (2, 9) and (padded[1, :6] - alone[0]).abs().max() < 1e-5


def test_vectors_that_do_not_fit(tmp_path):
    save_prompt(prompted(), tmp_path, base="b", fingerprint="f" * 64)
    path = tmp_path / "adapter_model.safetensors"
    with pytest.raises(InputError, match="trained on other weights"):
        load_prompt(make("two-to-one"), tmp_path, "0" * 64)
    with pytest.raises(InputError, match="prompt_embeddings is not of the shape"):
        load_prompt(make("biased"), tmp_path)
    whole = load_file(path)
    save_file(whole | {"base_model.qa_outputs.bias": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="qa_outputs.bias has no place"):
        load_prompt(make("two-to-one"), tmp_path)
