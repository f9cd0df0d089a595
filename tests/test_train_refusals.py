"""What train.py refuses: one sentence on stderr, exit code 2, and nothing left behind."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from tests.tiny_model import make_folder, make_tokenizer
from tests.tiny_run import arguments, squad, write_squad


def data_with(change):
    """A SQuAD file's text after `change` was done to its first question and paragraph."""
    data = squad(range(3))
    paragraph = data["data"][0]["paragraphs"][0]
    change(data, paragraph, paragraph["qas"][0])
    return json.dumps(data)


def lone_joiners():
    """Contexts that hold nothing but zero-width non-joiners, which the tokenizer drops."""
    question = {"id": "1", "question": "Who?", "answers": [], "is_impossible": True}
    return json.dumps({"data": [{"title": "", "paragraphs": [{"context": "\u200c\u200c", "qas": [question]}]}]})


WHOLE = json.dumps(squad(range(3)))
DATA = {  # contents of the training file, and a part of the sentence
    "not JSON": ("once upon a time", "expected JSON"),
    "empty file": ("", "the file is empty"),
    "NaN": (data_with(lambda d, p, q: q["answers"][0].update(answer_start=float("nan"))), "holds NaN"),
    "infinite": (data_with(lambda d, p, q: d.update(extra=float("inf"))), "holds Infinity"),
    "truncated": (WHOLE[: len(WHOLE) // 2], "truncated"),
    "not UTF-8": (WHOLE.replace("river", "rivi\u00e8re").encode("latin-1"), "not UTF-8"),
    "a number": ("17", ""),
    "a text": ('"data"', ""),
    "no questions": ('{"data": []}', ""),
    "no paragraphs": ('{"data": [{"title": "x", "paragraphs": []}]}', ""),
    "data is an object": ('{"data": {}}', "data"),
    "paragraph is a text": ('{"data": [{"paragraphs": ["x"]}]}', "data[0].paragraphs[0]"),
    "context is a number": (data_with(lambda d, p, q: p.update(context=5)), "data[0].paragraphs[0].context"),
    "question is null": (data_with(lambda d, p, q: q.update(question=None)), "data[0].paragraphs[0].qas[0].question"),
    "start is a text": (data_with(lambda d, p, q: q["answers"][0].update(answer_start="6")), "qas[0].answers[0]"),
    "start is a fraction": (data_with(lambda d, p, q: q["answers"][0].update(answer_start=6.5)), "qas[0].answers[0]"),
    "answers is a text": (data_with(lambda d, p, q: q.update(answers="x")), "data[0].paragraphs[0].qas[0].answers"),
    "misaligned": (data_with(lambda d, p, q: q["answers"][0].update(answer_start=1)), "data[0].paragraphs[0].qas[0]"),
    "beyond the end": (data_with(lambda d, p, q: q["answers"][0].update(answer_start=10**9)), "qas[0]"),
    "negative": (data_with(lambda d, p, q: q["answers"][0].update(answer_start=-3)), "qas[0]"),
    "no references": (data_with(lambda d, p, q: q.pop("answers")), "training needs answers"),
    "no window": (lone_joiners(), "gives no window to train on"),
}


@pytest.fixture
def case(tmp_path, tiny_folder):
    write_squad(tmp_path / "train.json", range(3))
    write_squad(tmp_path / "dev.json", range(20, 22))
    return lambda **changes: arguments(tmp_path, tiny_folder, tmp_path / "runs" / "new", **changes)


def refused(tmp_path, capsys, argv):
    """The sentence, after checking that the command left nothing but its sentence."""
    before = {path for path in tmp_path.rglob("*")}
    assert train.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("train.py: ") and captured.err.endswith("\n") and captured.err.count("\n") == 1
    assert captured.out == "" and "Traceback" not in captured.err
    assert {path for path in tmp_path.rglob("*")} == before
    return captured.err.removeprefix("train.py: ").strip()


@pytest.mark.parametrize("part", ["train", "dev"])
@pytest.mark.parametrize("kind", DATA)
def test_data(case, tmp_path, capsys, kind, part):
    content, said = DATA[kind]
    path = tmp_path / f"{part}.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    if (kind, part) == ("no window", "dev"):  # nothing to read in a dev question is an answer too
        assert train.main(case(max_steps=1)) == 0
        return
    sentence = refused(tmp_path, capsys, case())
    said = said if part == "train" else said.replace("training", "scoring")
    assert sentence.startswith(str(path)) and said in sentence


def test_data_cases():
    assert len(DATA) == 22


@pytest.mark.parametrize("part", ["train", "dev"])
def test_paths_of_data(case, tmp_path, capsys, part):
    missing = tmp_path / "no.json"
    assert refused(tmp_path, capsys, case(**{part: missing})) == f"{missing}: there is no such file"
    assert refused(tmp_path, capsys, case(**{part: tmp_path})).startswith(f"{tmp_path}: this is a folder, and a file")
    for strange in (tmp_path / "train.json" / "x", tmp_path / ("x" * 300)):
        assert refused(tmp_path, capsys, case(**{part: strange})).startswith(f"{strange}: cannot be read (")


OPTIONS = {
    "step above window": (dict(window_step=65), "windows of 64 tokens with a step of 65 leave no room"),
    "step of the window": (dict(window_step=64), "choose a longer window or a smaller step"),
    "overlap of the window": (dict(window_overlap=64), "choose a longer window or a smaller overlap"),
    "step and overlap": (dict(window_step=9, window_overlap=9), "--window-overlap and --window-step"),
    "window above positions": (dict(window_length=132), "131 positions"),
    "dataset and files": (dict(dataset="sample"), "--dataset and --train exclude each other"),
    "dev alone": (dict(train=None), "--dev is given without --train"),
    "revision of a folder": (dict(revision="main"), "folders have no revisions"),
    "device": (dict(device="toaster"), "--device toaster: not usable here"),
    "seed": (dict(seed=2**64), "--seed"),
    "no batch": (dict(batch_size=0), "--batch-size: expected a whole number, at least 1, found 0"),
    "learning rate": (dict(lr="nan"), "--lr: expected a finite number, above 0"),
    "unknown flag": (dict(learning_rate=1), "unknown flag --learning-rate"),
    "recipe": (dict(recipe="none.toml"), "none.toml: there is no such file"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options(case, tmp_path, capsys, kind):
    changes, said = OPTIONS[kind]
    assert said in refused(tmp_path, capsys, case(**changes))


def test_option_cases():
    assert len(OPTIONS) == 14


def unknown_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"extra.weight": torch.zeros(2)}, folder / "model.safetensors")


def wrong_shape(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.1.attention.self.query.weight"
    save_file(tensors | {name: torch.zeros(35, 36)}, folder / "model.safetensors")


def missing_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["bert.embeddings.LayerNorm.bias"]
    save_file(tensors, folder / "model.safetensors")


def cut(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")


def larger_vocabulary(folder):
    make_tokenizer(vocab_size=1700).save(str(folder / "tokenizer.json"))


MODELS = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "another model": (lambda f: (f / "config.json").write_text('{"model_type": "gpt2"}'), "model_type is 'gpt2'"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "corrupt weights": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 999), "not a whole safetensors file"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a whole safetensors file"),
    "truncated weights": (cut, "not a whole safetensors file"),
    "unknown tensor": (unknown_tensor, "tensor extra.weight has no place"),
    "wrong shape": (wrong_shape, "has shape (35, 36)"),
    "missing tensor": (missing_tensor, "the weights lack bert.embeddings.LayerNorm.bias"),
    "pickle": (pickled, "pytorch_model.bin"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "neither tokenizer.json nor vocab.txt"),
    "tokenizer not JSON": (lambda f: (f / "tokenizer.json").write_text("[CLS]"), "tokenizer.json: not a tokenizer"),
    "tokenizer too large": (larger_vocabulary, "they do not belong together"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models(case, tmp_path, capsys, tiny_folder, kind):
    change, said = MODELS[kind]
    shutil.copytree(tiny_folder, tmp_path / "model")
    change(tmp_path / "model")
    assert said in refused(tmp_path, capsys, case(model=tmp_path / "model"))


def test_model_cases():
    assert len(MODELS) == 14


def test_model_paths(case, tmp_path, capsys):
    assert "there is no such folder" in refused(tmp_path, capsys, case(model=tmp_path / "none"))
    assert "this is a file" in refused(tmp_path, capsys, case(model=tmp_path / "train.json"))


def test_tokenizer_that_fits_but_differs_still_trains(case, tmp_path):
    make_folder(tmp_path / "cased", lowercase=False)
    assert train.main(case(model=tmp_path / "cased", max_steps=1)) == 0


@pytest.mark.parametrize("out", ["train.json", "train.json/below", "train.json/far/below", "x" * 300])
def test_out_that_cannot_be_a_folder(tmp_path, tiny_folder, capsys, case, out):
    case()
    argv = arguments(tmp_path, tiny_folder, tmp_path / out)
    sentence = refused(tmp_path, capsys, argv)
    assert sentence.startswith(f"{tmp_path / out}: ") and "--out wants a folder" in sentence


def test_an_empty_folder_is_taken_and_survives_a_refusal(tmp_path, capsys, case):
    (tmp_path / "runs" / "new").mkdir(parents=True)
    refused(tmp_path, capsys, case(train=tmp_path / "no.json"))
    assert train.main(case(max_steps=1)) == 0
