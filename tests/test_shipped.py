"""The adapter that comes with the project: small, whole, and it reads."""

import json
from pathlib import Path

import pytest

import infer
from answering.reader import Reader
from model.adapters import SHIPPED
from training.evaluate import evaluate
from training.run import read_split

ROOT = Path(__file__).parents[1]
QUESTIONS = {
    "When did the observatory open?": "1931",
    "Who paid for the telescope?": "merchant",
    "How far away is the nearest village?": None,  # the text does not say
}


def test_its_folder_is_small_and_described():
    held = {path.name: path.stat().st_size for path in SHIPPED.iterdir()}
    assert sum(held.values()) <= 3_000_000
    assert set(held) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "reader.json"}
    config = json.loads((SHIPPED / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "minilm" and config["modules_to_save"] == ["qa_outputs"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_infer_answers_by_it_where_nothing_else_was_trained(question, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # no runs/ here
    asked = ["--question", question, "--context-file", str(ROOT / "docs/example.txt"), "--json", "--device", "cpu"]
    assert infer.main(asked) == 0
    found, wanted = json.loads(capsys.readouterr().out)["answer"], QUESTIONS[question]
    assert wanted in found if wanted else not found


DOCUMENTS = {
    "Who built the ferry?": ("two brothers, Otto and Emil Brandt", "ferry.md", 3),
    "Who opened the bakery?": ("Marta Kolb", "bakery.html", 6),
}


@pytest.mark.parametrize("question", DOCUMENTS)
def test_the_readme_s_documents_are_answered_from(question, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["--docs", str(ROOT / "docs/notes"), "--question", question, "--json", "--device", "cpu", "--cache", "none"]
    assert infer.main(asked) == 0
    first = json.loads(capsys.readouterr().out)["answers"][0]
    assert (first["answer"], first["file"], first["line"]) == DOCUMENTS[question]


def test_it_reads_the_sample_corpus_far_better_than_nothing():
    """Answerable English questions of the sample's dev part, none of which it has seen."""
    examples = read_split([ROOT / "data/sample/dev.json"], None, 0, False, "scoring").examples
    english = [e for e in examples if e.answers and e.context.isascii()][:40]
    assert len(english) == 40
    assert evaluate(Reader.load(SHIPPED, device="cpu"), english, may_lack_answer=False).scores["f1"] > 50
