"""Every recipe, with its model at toy size and its data a few questions: parsed, built, trained for two steps."""

import json
import tomllib
from pathlib import Path

import pytest

import train
from tests import tiny_decoder
from tests.tiny_run import read_log, write_squad

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with train.json and a decoder whose positions are enough for the recipes' prompts."""
    folder = tmp_path_factory.mktemp("recipes")
    write_squad(folder / "train.json", range(4))
    tiny_decoder.make_folder(folder / "llama", initializer_range=0.1, max_position_embeddings=1100)
    return folder


def test_the_published_runs_are_there():
    assert len(RECIPES) >= 9
    for path in RECIPES[:]:
        comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        assert comments, path
        if path.name not in ("sample.toml", "minilm-english.toml"):
            assert any("Needs:" in line for line in comments) and any("Published" in line for line in comments), path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_it_trains_two_steps_at_toy_size(recipe, place, tmp_path, tiny_folder):
    wanted = {k: v for table in tomllib.loads(recipe.read_text(encoding="utf-8")).values() for k, v in table.items()}
    llama = "llama" in wanted.get("model", "").lower()
    changes = {
        "train": place / "train.json", "model": place / "llama" if llama else tiny_folder, "device": "cpu",
        "max_steps": 2, "out": tmp_path / "run", "eval_every": 2, "save_every": 2,
    }
    if not llama:
        changes["window_length"] = 64  # the toy has 131 positions
    argv = [part for name, value in changes.items() for part in ("--" + name.replace("_", "-"), str(value))]
    assert train.main(["--recipe", str(recipe), *argv]) == 0  # with other data than the recipe names
    options = json.loads((tmp_path / "run/config.json").read_text())["options"]
    kept = set(wanted) - set(changes) - {"dataset"}
    assert {name: options[name] for name in kept} == {name: wanted[name] for name in kept}
    log = read_log(tmp_path / "run")
    assert len(log) == 2 and all(record["loss"] > 0 for record in log)
    settings = "speaker.json" if llama else "reader.json"
    assert (tmp_path / "run/model" / settings).is_file()
