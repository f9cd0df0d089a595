"""train.py and infer.py with each family: two steps, an adapter, and an answer that is a slice of the text."""

import json

import pytest

import infer
import train
from model.weights import load_model
from answering.reader import Reader
from tests.tiny_families import FAMILIES, make_family_folder
from tests.tiny_run import arguments, paragraph, write_squad


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    write_squad(folder / "train.json", range(4))
    write_squad(folder / "dev.json", range(4, 6))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_answers_and_takes_an_adapter(place, capsys, family):
    from transformers import AutoModelForQuestionAnswering

    base = make_family_folder(place / family, family)
    common = {"max_steps": 2, "save_every": 2, "eval_every": 2}
    assert train.main(arguments(place, base, place / f"{family}-run", **common)) == 0
    trained = place / f"{family}-run" / "model"
    assert json.loads((trained / "config.json").read_text())["model_type"] == family
    before, after = (load_model(folder)[0] for folder in (base, trained))
    moved = [n for n, p in before.named_parameters() if not (p == after.get_parameter(n)).all()]
    # a key's bias shifts all of a token's scores alike, so no gradient has to move it
    assert {name for name, _ in before.named_parameters()} - set(moved) <= {
        f"bert.encoder.layer.{n}.attention.self.key.bias" for n in range(3)
    }
    assert type(AutoModelForQuestionAnswering.from_pretrained(trained)).__name__ == after.config.family.architecture
    adapter = place / f"{family}-lora"
    assert train.main(arguments(place, trained, adapter, tune="lora", **common)) == 0
    config = json.loads((adapter / "model" / "adapter_config.json").read_text())
    distil = ["attention.q_lin", "attention.v_lin"]
    assert config["target_modules"] == (distil if family == "distilbert" else ["query", "value"])
    going_on = arguments(
        place, adapter / "model", place / f"{family}-more", tune="lora", lora_targets="query,value", **common
    )
    assert train.main(going_on) == 0
    capsys.readouterr()
    context, _ = paragraph(3)
    for model in (trained, adapter / "model"):
        asked = ["--question", "How long did the miller live there?", "--context", context, "--json", "--null-threshold", "1e9"]
        assert infer.main(["--model", str(model), *asked]) == 0
        out, _ = capsys.readouterr()
        found = json.loads(out)
        assert found["runners_up"]
        for answer in found["runners_up"] + [found | {"text": found["answer"]}] * bool(found["answer"]):
            text = context[answer["start"] : answer["end"]]
            assert answer["text"] == text == text.strip() != ""
    assert Reader.load(adapter / "model").model.config == after.config
