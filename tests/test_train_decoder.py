"""train.py and infer.py with a decoder: the same loop and files as a BERT's, answers that are spans, exact resume."""

import io
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import infer
import merge
import train
from data.chat import FORMATS, encode_chat, modelfile
from data.prompts import PromptSettings
from answering.reader import Reader
from tests.tiny_decoder import make_tokenizer
from tests.tiny_run import Nursery, arguments, read_log

LORA = {"tune": "lora", "lora_rank": 3, "lora_alpha": 7, "lora_dropout": 0.1}
SHORT = {"template": "{context} {question}", "window_length": 90, "window_overlap": 9, "max_answer_tokens": 5}


def run(decoder_place, out, **changes):
    return train.main(list(map(str, arguments(*decoder_place, out, **{"max_steps": 4, "save_every": 2} | SHORT | changes))))


def logits(model, ids):
    with torch.no_grad():
        found = model(ids)
    return getattr(found, "logits", found)


@pytest.fixture(scope="module")
def full(decoder_place, tmp_path_factory):
    out = tmp_path_factory.mktemp("full") / "run"
    assert run(decoder_place, out, eval_every=2, eval_first=True) == 0
    return out


@pytest.fixture(scope="module")
def lora(decoder_place, tmp_path_factory):
    out = tmp_path_factory.mktemp("lora") / "run"
    assert run(decoder_place, out, **LORA) == 0
    return out


def test_a_full_run_is_scored_and_opens_in_transformers(full, decoder_place):
    import transformers

    metrics = json.loads((full / "metrics.json").read_text())
    assert [e["step"] for e in metrics["evaluations"]] == [0, 2, 4] and metrics["total"] == 8
    assert {"HasAns_f1", "NoAns_f1", "threshold_halves"} <= set(metrics)
    log = read_log(full)
    assert len(log) == 4 and log[-1]["loss"] < log[0]["loss"]
    predictions = json.loads((full / "predictions.json").read_text())
    texts = [p["context"] for p in json.loads((decoder_place[0] / "dev.json").read_text())["data"][0]["paragraphs"]]
    assert len(predictions) == 8 and all(any(said in text for text in texts) for said in predictions.values())
    names = {path.name for path in (full / "model").iterdir()}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "speaker.json", "Modelfile"
    }
    theirs = transformers.AutoModelForCausalLM.from_pretrained(full / "model").eval()
    assert theirs.config.eos_token_id == 2
    ours = Reader.load(full / "model", device="cpu", precision="fp32")
    ids = torch.randint(0, 600, (2, 17))
    assert (logits(ours.model.eval(), ids) - logits(theirs, ids)).abs().max() < 1e-4
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(full / "model")
    text = "A miller lived there for 5 years."
    ours_ids = ours.tokenizer.encode(text, add_special_tokens=False).ids
    assert their_tokenizer.encode(text, add_special_tokens=False) == ours_ids
    assert their_tokenizer.chat_template == "{{ '<|start_header_id|>' }}" and ours.settings.chat == "llama3"


def test_an_adapter_goes_to_peft_and_comes_back(lora, decoder_place):
    import peft
    import transformers

    assert {path.name for path in (lora / "model").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "speaker.json"
    }
    config = json.loads((lora / "model/adapter_config.json").read_text())
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"] and config["task_type"] == "CAUSAL_LM"
    reader = Reader.load(lora / "model", device="cpu", precision="fp32")
    base = transformers.AutoModelForCausalLM.from_pretrained(decoder_place[1])
    theirs = peft.PeftModel.from_pretrained(base, lora / "model").eval()
    ids = torch.randint(0, 600, (2, 17))
    mine = logits(reader.model.eval(), ids)
    assert (mine - logits(theirs, ids)).abs().max() < 1e-4
    reader.set_adapter(None)
    assert (mine - logits(reader.model, ids)).abs().max() > 1e-3


def test_an_adapter_of_peft_is_trained_on(decoder_place, tmp_path):
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(decoder_place[1])
    base.name_or_path = base.config._name_or_path = str(decoder_place[1])
    made = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj"]))
    made.save_pretrained(tmp_path / "theirs")
    assert run(decoder_place, tmp_path / "out", model=tmp_path / "theirs", tune="lora") == 0
    config = json.loads((tmp_path / "out/model/adapter_config.json").read_text())
    assert (config["r"], config["target_modules"]) == (3, ["q_proj", "v_proj"])


@pytest.mark.parametrize("tune", ["qlora", "head"])
def test_other_ways_of_tuning(decoder_place, tmp_path, tune):
    assert run(decoder_place, tmp_path / "out", tune=tune) == 0
    assert json.loads((tmp_path / "out/metrics.json").read_text())["trainable_parameters"] > 0
    if tune == "head":
        before, after = (load_file(f / "model.safetensors") for f in (decoder_place[1], tmp_path / "out/model"))
        assert [name for name in before if not torch.equal(before[name], after[name])] == ["lm_head.weight"]
    else:
        reader = Reader.load(tmp_path / "out/model", device="cpu", precision="fp32")
        assert reader.settings.quant == "nf4" and reader.report.fingerprint
        assert json.loads((tmp_path / "out/model/speaker.json").read_text())["quant"] == "nf4"


@pytest.mark.parametrize("flags", [{}, LORA, LORA | {"tune": "qlora"}], ids=["full", "lora", "qlora"])
def test_a_run_killed_anywhere_ends_bit_identical(decoder_place, tmp_path, flags):
    with Nursery(tmp_path) as nursery:
        changes = SHORT | {"max_steps": 6, "eval_every": 3, "save_every": 2} | flags
        assert nursery.run(arguments(*decoder_place, tmp_path / "whole", **changes)) == 0, nursery.err.read_text()
        for number, kill in enumerate((("training.step", "answer_loss", 9), ("training.setup", "save_best", 2))):
            argv = arguments(*decoder_place, tmp_path / f"cut{number}", **changes)
            assert nursery.run(argv, kill) == -9
            assert nursery.run([*argv, "--resume"]) == 0, nursery.err.read_text()
    weights = "model/adapter_model.safetensors" if flags else "model/model.safetensors"
    for name in (weights, "model/speaker.json", "predictions.json", "checkpoints/step-00000006/model.safetensors"):
        wanted = (tmp_path / "whole" / name).read_bytes()
        assert all((tmp_path / f"cut{n}" / name).read_bytes() == wanted for n in range(2)), name


def test_the_prompts_are_learned_too_where_asked(decoder_place, tmp_path):
    """The loss is then over all tokens, of which a new model knows as little as of the answers'."""
    assert run(decoder_place, tmp_path / "answers", max_steps=1) == 0
    assert run(decoder_place, tmp_path / "inputs", max_steps=1, train_on_inputs=True) == 0
    alone, whole = (read_log(tmp_path / name)[0] for name in ("answers", "inputs"))
    assert alone["tokens"] == whole["tokens"] and alone["loss"] != whole["loss"]


def test_fusion_over_adapters_of_a_decoder(decoder_place, tmp_path, capsys):
    """Trained, opened, asked, and gone on with after a kill: the same bits."""
    for seed, name in enumerate(("wiki", "reviews")):
        assert run(decoder_place, tmp_path / name, **LORA, seed=seed, max_steps=2) == 0
    changes = SHORT | {"tune": "fusion", "max_steps": 4, "eval_every": 2, "save_every": 2}
    adapters = ["--adapter", str(tmp_path / "wiki"), str(tmp_path / "reviews/model")]
    with Nursery(tmp_path) as nursery:
        whole, cut = ([*arguments(*decoder_place, tmp_path / name, **changes), *adapters] for name in ("whole", "cut"))
        assert nursery.run(whole) == 0, nursery.err.read_text()
        assert nursery.run(cut, ("training.step", "answer_loss", 9)) == -9
        assert nursery.run([*cut, "--resume"]) == 0, nursery.err.read_text()
    for name in ("model/fusion.safetensors", "model/speaker.json", "predictions.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    for name in ("wiki", "reviews"):  # the adapters are as they were
        first = load_file(tmp_path / name / "model/adapter_model.safetensors")
        then = load_file(tmp_path / "whole/model/adapters" / name / "adapter_model.safetensors")
        assert first.keys() == then.keys() and all(torch.equal(first[key], then[key]) for key in first)
    fused = load_file(tmp_path / "whole/model/fusion.safetensors")
    assert len(fused) == 2 * 4 * 3 and not any("qa_outputs" in key for key in fused)
    reader = Reader.load(tmp_path / "whole/model", device="cpu", precision="fp32")
    ids = torch.randint(0, 600, (2, 17))
    mixed = logits(reader.model.eval(), ids)
    reader.set_adapter("wiki")
    assert (mixed - logits(reader.model, ids)).abs().max() > 1e-4
    capsys.readouterr()
    context = "The river runs past the old mill. A miller lived there for 5 years."
    found = answered(capsys, "--model", tmp_path / "whole", "--question", "How long?", "--context", context)
    assert found["answer"] is None or found["answer"] in context


def test_print_prompt_shows_what_is_asked(decoder_place, capsys, tmp_path):
    argv = arguments(
        *decoder_place, tmp_path / "none", chat_format="llama2", no_answer_phrase="nowhere", print_prompt=True,
        window_length=120,
    )
    assert train.main([*map(str, argv), "--template", "Read {context} Say: {question}"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("<s>[INST] Read The river runs past")
    assert "Say: How long did the miller live there? [/INST]" in said
    assert said.endswith("--- and then it is to say:\n5 years</s>\n")
    assert not (tmp_path / "none").exists()


def test_the_phrase_for_no_answer_is_the_one_asked_for(decoder_place, capsys, tmp_path):
    asked = {"no_answer_phrase": "nowhere", "template": None, "window_length": 200}
    assert run(decoder_place, tmp_path / "none", print_prompt=True, **asked) == 0
    said = capsys.readouterr().out
    assert "does not answer it, say: nowhere\n" in said and "unanswerable" not in said


def test_a_trained_decoder_goes_on_being_asked_as_it_was(decoder_place, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    asked = {"template": "Read {context} Say: {question}", "no_answer_phrase": "nowhere", "chat_format": "llama2"}
    assert run(decoder_place, first, max_steps=1, window_length=120, **asked) == 0
    assert run(decoder_place, second, model=first / "model", max_steps=1, window_length=120, template=None) == 0
    stored = [json.loads((folder / "model/speaker.json").read_text()) for folder in (first, second)]
    assert [one.pop("null_threshold") is None for one in stored] == [False, False] and stored[0] == stored[1]
    capsys.readouterr()
    assert run(decoder_place, tmp_path / "none", model=first / "model", template="{context} {question}", print_prompt=True) == 0
    assert "Read" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"tune": "prompt", "prompt_tokens": 250}, "leave no room in 256"), ({"tune": "bitfit"}, "has no biases"),
        ({"length_penalty": 0.5}, "--length-penalty is for a span head"), ({"template": "no slots"}, "needs {context}"),
        ({"window_overlap": None, "window_step": 9}, "--window-step is for a span head"),
        ({"dropout": 0.1}, "--dropout is for a BERT"), ({"attention_dropout": 0.2}, "--attention-dropout is for a BERT"),
        ({"window_length": 300}, "longer than this model's 256 positions"), ({"dev": "talk"}, "one kind at a time"),
    ],
)
def test_what_cannot_be_is_said(decoder_place, tmp_path, capsys, changes, sentence):
    if changes.get("dev"):
        talk = tmp_path / "talk.json"
        talk.write_text('[{"question": "Who?", "answer": "Ada"}]')
        changes = {"train": talk, "dev": decoder_place[0] / "dev.json"}
        assert run(decoder_place, tmp_path / "out", **changes) == 2
        assert "dev.json: asks about texts, the training data without texts" in capsys.readouterr().err
        return
    assert run(decoder_place, tmp_path / "out", **changes) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bert_takes_no_prompt(tiny_folder, decoder_place, tmp_path, capsys):
    argv = arguments(decoder_place[0], tiny_folder, tmp_path / "out", print_prompt=True)
    assert train.main(list(map(str, argv))) == 2
    assert "--print-prompt is for a decoder" in capsys.readouterr().err
    argv = ["--model", tiny_folder, "--question", "q", "--context", "c", "--decode", "greedy"]
    assert infer.main(list(map(str, argv))) == 2
    assert "--decode is for a decoder" in capsys.readouterr().err


def answered(capsys, *argv):
    assert infer.main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_infer_serves_a_decoder_without_being_told(full, lora, decoder_place, tmp_path, capsys, monkeypatch):
    context = "The river runs past the old mill. A miller lived there for 5 years."
    for model in (full, lora):
        found = answered(capsys, "--model", model, "--question", "How long?", "--context", context)
        shown = [*found["runners_up"], *([found] if found["answer"] else [])]
        assert all(context[one["start"] : one["end"]] == one.get("text", one.get("answer")) for one in shown)
    ask = ["--model", full, "--question", "How long?", "--context", context]
    assert context.count(answered(capsys, *ask, "--null-threshold", 1e6)["answer"]) > 0
    assert infer.main(list(map(str, [*ask, "--null-threshold", 1e6, "--decode", "greedy"]))) == 2
    assert "--null-threshold is for --decode span" in capsys.readouterr().err
    free = answered(capsys, *ask, "--decode", "greedy")
    assert (free["start"] is None) == (free["answer"] not in context)
    drawn = [answered(capsys, *ask, "--decode", "sample", "--temperature", 3, "--seed", s)["answer"] for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert infer.main(list(map(str, [*ask, "--top-p", 0.5]))) == 2
    assert "--top-p is for --decode sample" in capsys.readouterr().err
    shot = {"context": "Ada lived in Riga.", "question": "Where?", "answers": [{"text": "Riga", "answer_start": 13}]}
    (tmp_path / "shots.json").write_text(json.dumps([shot]))
    with_shots = answered(capsys, *ask, "--shots", tmp_path / "shots.json", "--window-length", 250)
    assert with_shots["score"] != answered(capsys, *ask)["score"]
    assert infer.main(list(map(str, [*ask, "--chat-format", "llama4"]))) == 2
    capsys.readouterr()
    script = f"{context}\nHow long did he live there?\n/top\n/quit\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(script.encode())))
    assert infer.main(["--model", str(full), "--decode", "greedy"]) == 0
    assert "not in the text" in capsys.readouterr().out


def test_documents_want_a_place(full, tmp_path, capsys):
    """A free answer used to be given the line before the passage, or the whole file."""
    (tmp_path / "mill.md").write_text("The river runs past the old mill. A miller lived there for 5 years.")
    argv = ["--model", full, "--docs", tmp_path, "--rank", "bm25", "--cache", "none", "--question", "How long?"]
    assert infer.main([*map(str, argv), "--decode", "greedy"]) == 2
    assert "--docs: an answer from documents has its place there" in capsys.readouterr().err
    assert infer.main(list(map(str, argv))) == 0


def test_other_shots_are_not_gone_on_with(decoder_place, tmp_path, capsys):
    shots, out = tmp_path / "shots.json", tmp_path / "out"
    shot = {"context": "Ada lived in Riga.", "question": "Where?", "answers": [{"text": "Riga", "answer_start": 13}]}
    shots.write_text(json.dumps([shot]))
    with Nursery(tmp_path) as nursery:
        argv = arguments(*decoder_place, out, **SHORT | {"max_steps": 4, "save_every": 2, "shots": shots, "window_length": 150})
        assert nursery.run(argv, ("training.step", "answer_loss", 8)) == -9
        shots.write_text(json.dumps([shot | {"question": "Where then?"}]))
        assert nursery.run([*argv, "--resume"]) == 2
        assert "the data files of this run changed since it began" in nursery.err.read_text()


def test_a_first_text_that_is_empty_leaves_the_count_of_what_is_not_in_its_text(full, tmp_path, capsys):
    rows = [{"question": "Who?", "context": ""}, {"question": "How long?", "context": "A miller lived there for 5 years."}]
    (tmp_path / "asked.json").write_text(json.dumps(rows))
    argv = ["--model", full, "--predict", tmp_path / "asked.json", "--out", tmp_path / "out", "--decode", "greedy"]
    assert infer.main(list(map(str, argv))) == 0
    assert "not_in_text" in json.loads((tmp_path / "out/metrics.json").read_text())


@pytest.mark.parametrize("decode", ["span", "greedy"])
def test_a_file_of_questions(full, decoder_place, tmp_path, capsys, decode):
    out = tmp_path / decode
    argv = ["--model", full, "--predict", decoder_place[0] / "dev.json", "--out", out, "--decode", decode]
    assert infer.main(list(map(str, argv))) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    said = json.loads((out / "predictions.json").read_text())
    assert metrics["total"] == 8 and len(said) == 8 and metrics["seconds_per_question"]["p50"] > 0
    paragraphs = json.loads((decoder_place[0] / "dev.json").read_text())["data"][0]["paragraphs"]
    contexts = {q["id"]: p["context"] for p in paragraphs for q in p["qas"]}
    outside = sum(text not in contexts[name] for name, text in said.items())
    if decode == "span":
        own = json.loads((full / "predictions.json").read_text())
        assert said == own and "not_in_text" not in metrics and outside == 0
    else:
        assert metrics["not_in_text"] == outside
        assert f"note: {outside} of 8 answers stand nowhere in their text" in capsys.readouterr().err


def test_merged_adapters_are_whole_models_with_a_modelfile(lora, decoder_place, tmp_path, capsys):
    import transformers

    assert merge.main(["--adapter", str(lora), "--out", str(tmp_path / "merged"), "--precision", "fp32"]) == 0
    assert "ollama create NAME -f" in capsys.readouterr().out
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    unmerged, merged = (Reader.load(f, device="cpu", precision="fp32") for f in (lora / "model", tmp_path / "merged"))
    ids = torch.randint(0, 600, (2, 17))
    wanted = logits(unmerged.model.eval(), ids)
    assert merged.adapter is None and merged.settings == unmerged.settings
    assert (logits(theirs, ids) - wanted).abs().max() < 1e-4 and (logits(merged.model, ids) - wanted).abs().max() < 1e-4
    lines = (tmp_path / "merged/Modelfile").read_text().splitlines()
    assert lines[1] == "FROM ." and 'PARAMETER stop "<|eot_id|>"' in lines


def test_what_merges_over_4_bits(decoder_place, tmp_path, capsys):
    assert run(decoder_place, tmp_path / "run", **LORA | {"tune": "qlora"}) == 0
    argv = ["--adapter", tmp_path / "run", "--out", tmp_path / "out", "--dev", decoder_place[0] / "dev.json"]
    argv += ["--precision", "fp32"]
    assert merge.main(list(map(str, [*argv, "--way", "requantised"]))) == 0
    table = capsys.readouterr().out
    assert all(way in table for way in ("unmerged", *merge.WAYS))
    assert not (tmp_path / "out/Modelfile").exists()  # Ollama takes no bitsandbytes weights
    assert Reader.load(tmp_path / "out", device="cpu", precision="fp32").settings.quant == "nf4"


@pytest.mark.parametrize("name", FORMATS)
def test_a_modelfile_asks_in_the_chat_format(name):
    tokenizer = make_tokenizer()
    text = modelfile(FORMATS[name], PromptSettings(length=77, max_answer=9))
    turn = text.split('"""')[1].replace("{{ .Prompt }}", "When?").replace("{{ .Response }}", "Now.")
    asked = encode_chat(tokenizer, [("user", "When?")], FORMATS[name])
    wanted = tokenizer.decode(asked[len(FORMATS[name].begin) :], skip_special_tokens=False)
    assert turn.startswith(wanted) and turn.endswith(f"Now.{FORMATS[name].end}")
    more = modelfile(FORMATS[name], PromptSettings(), ["<end>", FORMATS[name].end])
    assert more.count("PARAMETER stop") == 2 and 'PARAMETER stop "<end>"' in more
    assert "num_ctx 77" in text and "num_predict 10" in text and "repeat_penalty 1.0" in text


def test_losses_that_cannot_be_kept_are_refused_before_anything_is_written(decoder_place, tmp_path, capsys):
    assert run(decoder_place, tmp_path / "out", record_losses=True) == 2
    assert "--record-losses: kept of windows with a span head" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_modelfile_is_written_where_ollama_can_read_the_vocabulary(tmp_path, decoder_place, capsys):
    """Of SentencePiece's kind it reads tokenizer.model; from tokenizer.json it would make GPT-2's of it, in silence."""
    from data.tokenizer import is_byte_level, save_tokenizer
    from tests.test_pieces import sentence_pieces
    from tests.tiny_decoder import make_folder, make_model
    from model.saving import save_weights

    tokenizer, base = sentence_pieces("prepend"), make_folder(tmp_path / "base")
    assert not is_byte_level(tokenizer) and not is_byte_level(sentence_pieces("first")) and is_byte_level(make_tokenizer())
    save_weights(make_model(tokenizer.get_vocab_size()), base)
    save_tokenizer(tokenizer, base, {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ '[INST]' }}"})
    assert run((decoder_place[0], base), tmp_path / "run", **LORA) == 0
    capsys.readouterr()
    assert merge.main(["--adapter", str(tmp_path / "run"), "--out", str(tmp_path / "without")]) == 0
    assert "no Modelfile for Ollama: it reads such a vocabulary from tokenizer.model" in capsys.readouterr().out
    assert not (tmp_path / "without/Modelfile").exists()
    (base / "tokenizer.model").write_bytes(b"pieces")
    assert merge.main(["--adapter", str(tmp_path / "run"), "--out", str(tmp_path / "with")]) == 0
    assert (tmp_path / "with/tokenizer.model").read_bytes() == b"pieces" and "[INST]" in (tmp_path / "with/Modelfile").read_text()
    again = Reader.load(tmp_path / "with", device="cpu", precision="fp32")
    (tmp_path / "again").mkdir()
    again.save(tmp_path / "again")
    assert (tmp_path / "again/tokenizer.model").read_bytes() == b"pieces"


def test_what_sees_into_berts_alone_says_so_before_it_works(decoder_place, tmp_path, capsys, monkeypatch):
    """--xray answered first and threw the answer away; inside.heads ended in a traceback."""
    from inside.heads import main as heads

    data, folder = decoder_place
    monkeypatch.setattr(Reader, "predict", lambda *args, **more: pytest.fail("asked"))
    argv = ["--model", str(folder), "--question", "Who?", "--context", "Ada.", "--xray", str(tmp_path / "why.html")]
    assert infer.main(argv) == 2
    assert "a decoder cannot be looked into" in capsys.readouterr().err
    for more in ([], ["--keep", "0.7", "--out", str(tmp_path / "pruned")]):
        assert heads([str(data / "dev.json"), "--model", str(folder), *more]) == 2
        assert "a decoder cannot be looked into" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("tune", ["lora", "qlora"])
def test_a_base_in_16_bits_stays_so(decoder_place, tmp_path, capsys, tune):
    """It used to come out in fp32, twice as large, by way of three times as much memory."""
    import transformers

    data, llama = decoder_place
    base = tmp_path / "base"
    shutil.copytree(llama, base)
    half = {name: tensor.bfloat16() for name, tensor in load_file(llama / "model.safetensors").items()}
    save_file(half, base / "model.safetensors", metadata={"format": "pt"})
    assert run((data, base), tmp_path / "run", **LORA | {"tune": tune, "lora_alpha": 200, "lr": 0.02}) == 0
    capsys.readouterr()
    for way in ("original", *(["dequantised"] if tune == "qlora" else [])):
        for dtype in ("stored", "fp32"):
            out = tmp_path / f"{way}-{dtype}"
            argv = ["--adapter", tmp_path / "run", "--out", out, "--way", way, "--dtype", dtype, "--precision", "fp32"]
            assert merge.main(list(map(str, argv))) == 0
            said = f"merged onto the {way} weights{' in bfloat16, as the base' if dtype == 'stored' else ';'}"
            assert said in capsys.readouterr().out
        wide, narrow = (load_file(tmp_path / f"{way}-{dtype}/model.safetensors") for dtype in ("fp32", "stored"))
        assert {tensor.dtype for tensor in narrow.values()} == {torch.bfloat16}
        assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
        assert all(torch.equal(narrow[name], tensor.bfloat16()) for name, tensor in wide.items())  # rounded once, at the end
        assert any(not torch.equal(tensor, half[name].float()) for name, tensor in wide.items())
        config = json.loads((tmp_path / f"{way}-stored/config.json").read_text())
        assert config["dtype"] == "bfloat16"
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{way}-stored")
        assert theirs.dtype == torch.bfloat16
        ids = torch.arange(17)[None] + 5
        with torch.no_grad():
            wanted = theirs.float().eval()(input_ids=ids).logits
            found = Reader.load(tmp_path / f"{way}-stored", device="cpu", precision="fp32").model.eval()(ids)
        assert (found - wanted).abs().max() < 1e-4


def half_of(folder, out, names):
    """A copy of a model folder, in which the tensors that names(name) chooses are in bf16."""
    shutil.copytree(folder, out)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.bfloat16() if names(name) else tensor for name, tensor in tensors.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return tensors


@pytest.mark.parametrize("words", [True, False])
def test_of_a_mixed_base_each_matrix_keeps_its_format(decoder_place, tmp_path, words):
    """And transformers, which opens all in one format, is told the one in which nothing is lost."""
    import transformers

    data, llama = decoder_place
    held = half_of(llama, tmp_path / "base", lambda name: ("embed" in name) is words)
    assert run((data, tmp_path / "base"), tmp_path / "run", **LORA | {"lora_alpha": 200, "lr": 0.02}) == 0
    argv = ["--adapter", tmp_path / "run", "--out", tmp_path / "out", "--precision", "fp32"]
    assert merge.main(list(map(str, argv))) == 0
    written = load_file(tmp_path / "out/model.safetensors")
    assert {name: tensor.dtype for name, tensor in written.items() if tensor.dim() == 2} == {
        name: tensor.dtype for name, tensor in held.items() if tensor.dim() == 2
    }
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ours = Reader.load(tmp_path / "out", device="cpu", precision="fp32").model.eval()
    ids = torch.arange(17)[None] + 5
    assert theirs.dtype == torch.float32 and (logits(theirs, ids) - logits(ours, ids)).abs().max() < 1e-4


def test_what_is_scored_is_what_is_written(decoder_place, tmp_path, monkeypatch, capsys):
    """The sums were scored in fp32 and written in 16 bits; over 4 bits the codes themselves differed."""
    data, llama = decoder_place
    half_of(llama, tmp_path / "base", lambda name: True)
    adapter = LORA | {"tune": "qlora", "lora_alpha": 200, "lr": 0.02}
    assert run((data, tmp_path / "base"), tmp_path / "run", **adapter) == 0
    ids, scored = torch.arange(17)[None] + 5, {}

    def score(reader, examples, way):
        scored[way] = logits(reader.model.eval(), ids)
        return {"f1": 0}

    monkeypatch.setattr(merge, "score", score)
    argv = ["--adapter", tmp_path / "run", "--dev", data / "dev.json", "--precision", "fp32"]
    for way in merge.WAYS:
        assert merge.main(list(map(str, [*argv, "--out", tmp_path / way, "--way", way]))) == 0
        written = Reader.load(tmp_path / way, device="cpu", precision="fp32").model.eval()
        assert (scored[way] - logits(written, ids)).abs().max() < 1e-5
    assert merge.main(list(map(str, [*argv, "--dtype", "fp32"]))) == 2
    assert "--dtype says how to write it" in capsys.readouterr().err
