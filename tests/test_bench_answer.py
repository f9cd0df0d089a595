"""python -m bench.answer, beside a pipeline that is made up: the protocol, the scores, what counts as fastest."""

import json
import sys

import pytest
import torch

from bench import answer
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
