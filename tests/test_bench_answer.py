"""python -m bench.answer, beside a pipeline that is made up: the protocol, the scores, what counts as fastest."""

import json
import sys
import time
import types

import pytest
import torch

from answering.reader import Reader
from bench import answer, answerers
from bench.answerers import Tokens
from common.errors import InputError
from data.readers import read_dataset
from tests.tiny_model import make_folder
from tests.tiny_run import write_squad

TRANSFORMERS = '''
import torch
__version__ = "4.57.99"
class Model(torch.nn.Module):
    dtype = torch.float32
    def forward(self, input_ids, attention_mask): return None
class Pipeline:
    def __init__(self): self.model = Model()
    def __call__(self, question, context):
        ids = torch.ones(1, 9, dtype=torch.int64)
        assert len(question) == len(context)
        found = []
        for one in context:
            self.model(input_ids=ids, attention_mask=ids)
            found.append({"answer": one.split("for ")[-1].rstrip(".")})
        return found
def pipeline(task, model, device):
    assert task == "question-answering" and device == -1
    return Pipeline()
'''


@pytest.fixture
def old_python(tmp_path):
    """A python whose transformers is a made-up 4.57 that finds every answer."""
    folder = tmp_path / "old" / "transformers"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(TRANSFORMERS)
    python = tmp_path / "old" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder.parent}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(folder of a model, data file)."""
    folder = tmp_path_factory.mktemp("asked")
    return make_folder(folder / "model"), write_squad(folder / "data.json", range(21), with_null=False)


def test_a_tiny_comparison(asked, old_python, tmp_path, capsys):
    model, data = asked
    argv = ["--model", model, "--data", data, "--pairs", 2, "--block", 5, "--threads", 1, "--ways", "bf16",
            "--peer", "pipeline", "--pipeline-python", old_python, "--json", tmp_path / "found.json"]
    assert answer.main(list(map(str, argv))) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["what"].startswith("exact (ours, ") and len(found["ratios"]) == 2
    assert found["more_rows"][0]["what"].startswith("fastest (ours, ")
    assert found["f1"]["peer"] == 100 and 0 <= found["f1"]["ours"] < 100
    assert found["padding"]["peer"] == 0 and found["setup"]["questions"] == 10
    assert set(found["gemm_share"]) == set(found["peak_bytes"]) == {"ours", "peer"}
    assert "pipeline 4.57 |" in capsys.readouterr().out


def test_questions_are_drawn_by_context(asked, tmp_path):
    examples = read_dataset(asked[1]).examples
    drawn = answer.draw(examples * 2, 12, 0, "FILE")  # two questions about each text
    assert [one.context for one in drawn[::2]] == [one.context for one in drawn[1::2]] and len(drawn) == 12
    assert answer.draw(examples * 2, 12, 0, "FILE") == drawn != answer.draw(examples * 2, 12, 1, "FILE")
    with pytest.raises(InputError, match="FILE: 21 questions, and 22 are wanted; lower --block or --pairs"):
        answer.draw(examples, 22, 0, "FILE")
    lacking = read_dataset(write_squad(tmp_path / "lacking.json", range(3))).examples
    with pytest.raises(InputError, match="questions without an answer"):
        answer.draw(lacking, 4, 0, "FILE")


def test_the_fastest_is_one_that_answers_as_well():
    f1 = {"ours, fp32": 75.0, "ours, bf16": 74.8, "ours, int8+bf16": 74.6, "peer": 80.0}
    sides = {name: {"f1": value} for name, value in f1.items()}
    rates = {"ours, fp32": 1.0, "ours, bf16": 2.0, "ours, int8+bf16": 3.0, "peer": 9.0}
    assert answer.choose("fastest", sides, rates) == "ours, bf16"
    assert answer.choose("fastest", sides | {"ours, int8+bf16": {"f1": 74.71}}, rates) == "ours, int8+bf16"


def test_the_exact_one_is_near_on_both_sides():
    sides = {"ours, fp32": {"f1": 75.0}, "ours, bf16": {"f1": 75.04}, "ours, int8+bf16": {"f1": 75.3}}
    rates = {"ours, fp32": 1.0, "ours, bf16": 2.0, "ours, int8+bf16": 3.0}
    assert answer.choose("exact", sides, rates) == "ours, bf16"
    assert answer.choose("exact", sides | {"ours, bf16": {"f1": 74.9}}, rates) == "ours, fp32"


def test_tokens_are_counted_however_a_model_is_called():
    class Model(torch.nn.Module):
        def forward(self, *given, **named):
            return None

    model = Model()
    tokens, ids = Tokens(model), torch.ones(2, 5, dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    model(ids, ids, mask.bool())
    model(input_ids=ids, attention_mask=mask)
    model(ids, ids, None)
    assert tokens.take() == {"tokens": 8 + 8 + 10, "padded_tokens": 30}
    assert tokens.take() == {"tokens": 0, "padded_tokens": 0}


def test_tokens_are_counted_right_from_several_lanes():
    from concurrent.futures import ThreadPoolExecutor

    class Mask(torch.Tensor):
        """Lets other threads in while it is summed, as a large one does."""

        def sum(self):
            time.sleep(0.002)
            return torch.tensor(3)

    class Model(torch.nn.Module):
        def forward(self, *given):
            return None

    model = Model()
    tokens, ids = Tokens(model), torch.ones(1, 4, dtype=torch.int64)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: model(ids, ids, torch.ones(1, 4).as_subclass(Mask)), range(64)))
    assert tokens.take() == {"tokens": 64 * 3, "padded_tokens": 64 * 4}


def test_onnxruntime_is_tried_on_all_cores_at_once_and_on_each(asked, tmp_path):
    options = answer.parse(["--model", "m", "--data", "d", "--batch-tokens", "100", "700"])
    details = answer.DETAILS["onnxruntime"](options.batch_tokens)
    found = answer.commands(options, "onnxruntime", tmp_path / "job.json", [1, 2], details)
    assert list(found) == [(1, "100"), (1, "700"), (2, "100"), (2, "700"), (2, "100:lanes"), (2, "700:lanes")]
    assert found[2, "700:lanes"][0][3:] == ["onnxruntime:700:lanes", tmp_path / "job.json", 2]


@pytest.mark.parametrize("detail, threads, lanes", [("300", 3, 1), ("300:lanes", 1, 3)])
def test_onnxruntime_answers_with_its_own_model_in_batches_of_its_own(asked, monkeypatch, detail, threads, lanes):
    """Its session has all threads and one batch at a time, or one thread and a batch on each."""
    model, data = asked
    inner, seen = Reader.load(model, device="cpu", precision="fp32").model, {}

    class Session:
        def __init__(self, path, options, providers):
            seen["threads"], seen["path"] = options.intra_op_num_threads, path

        def run(self, names, feed):
            given = {name: torch.from_numpy(value) for name, value in feed.items()}
            start, end = inner(given["input_ids"], given["token_type_ids"], given["attention_mask"].bool())
            return [start.detach().numpy(), end.detach().numpy()]

    fake = types.SimpleNamespace(InferenceSession=Session, SessionOptions=types.SimpleNamespace, __version__="0")
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    predict = Reader.predict
    monkeypatch.setattr(Reader, "predict", lambda self, examples, **how: seen.update(how) or predict(self, examples, **how))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    questions = [(one.id, one.question, one.context) for one in read_dataset([data]).examples]
    job = {"model": str(model), "onnx": "int8.onnx", "questions": questions, "block": 9}
    work, last = answerers.build_onnxruntime(job, detail)
    done = work()
    assert (seen["threads"], seen["lanes"], seen["tokens_per_batch"], seen["path"]) == (threads, lanes, 300, "int8.onnx")
    wanted, _ = answerers.build_ours(job, "fp32")
    assert done["answers"] == wanted()["answers"] and done["units"] == 9
    assert last()["precision"] == "int8"


def test_what_cannot_be_is_said_before_anything_is_timed(asked, tmp_path, capsys):
    model, data = map(str, asked)
    base = ["--model", model, "--data", data, "--peer", "pipeline"]
    for more, sentence in (
        (["--block", "0"], "--block 0: expected a number of at least 1"),
        (["--pipeline-python", str(tmp_path / "none")], "no Python with transformers is there"),
        (["--pipeline-python", sys.executable], "and the pipeline is that of 4.57"),
    ):
        assert answer.main([*base, *more]) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.startswith("bench.answer: ")
