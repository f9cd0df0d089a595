"""The project's promises about itself: README, recipes, metadata, budgets, imports."""

import ast
import configparser
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from common.options import parse
from training.options import TRAIN_OPTIONS
from training.run import settle_options

ROOT = Path(__file__).parents[1]
SKIPPED_FOLDERS = {".venv", "runs", "tests", "build", ".git"}
SOURCES = sorted(
    path.relative_to(ROOT) for path in ROOT.rglob("*.py") if not SKIPPED_FOLDERS & set(path.relative_to(ROOT).parts)
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


def readme_commands(program):
    """Argument lists of each README line that runs `program`."""
    found = []
    for line in README.splitlines():
        match = re.match(rf"\s{{4}}(?:\S*python3? )({re.escape(program)})(.*?)(\s{{2,}}#.*)?$", line)
        if match:
            found.append(shlex.split(match[2]))
    return found


def test_sources_are_found():
    assert len(SOURCES) >= 30


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipe_is_usable(recipe):
    options = settle_options(parse("train.py", "", TRAIN_OPTIONS, ["--recipe", str(recipe), "--dataset", "sample"]))
    given = [name for name in options.values if options.origins[name].startswith("recipe")]
    tables = tomllib.loads(recipe.read_text(encoding="utf-8")).values()
    assert len(given) + ("dataset" in str(tables)) == sum(len(table) for table in tables)


def test_recipes_exist():
    assert len(RECIPES) >= 2


def test_readme_train_commands_parse():
    commands = readme_commands("train.py")
    assert len(commands) >= 4
    for arguments in commands:
        settle_options(parse("train.py", "", TRAIN_OPTIONS, arguments))


def test_readme_infer_commands_parse():
    from prompt.options import INFER_OPTIONS

    commands = readme_commands("infer.py")
    assert len(commands) >= 4
    for arguments in commands:
        parse("infer.py", "", INFER_OPTIONS, arguments)


def test_readme_serve_commands_parse():
    from serving.options import SERVE_OPTIONS

    commands = readme_commands("serve.py")
    assert len(commands) >= 1
    for arguments in commands:
        parse("serve.py", "", SERVE_OPTIONS, arguments)


def test_readme_tree_names_every_file_and_no_other():
    tree = README[README.index("## What is where") : README.index("Start reading with")]
    for name in re.findall(r"[a-z]+(?:/[a-z_]+)*(?:\.py|/)", tree):
        places = [ROOT / name, *(ROOT / folder / name for folder in ("data", "training", "inside"))]
        assert any(place.exists() for place in places), name
    for path in SOURCES:
        named = str(path) in tree or path.name in tree or any(f"{p}/ " in tree for p in path.parts[:-1])
        assert named or path.name in ("__init__.py", "__main__.py"), f"{path} is not in the README's tree"


def test_packages_and_modules_are_listed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    packages = set(config["options"]["packages"].split())
    modules = set(config["options"]["py_modules"].split())
    assert packages == {path.parts[0] for path in SOURCES if len(path.parts) > 1} - {"bench", "docs"}
    assert modules == {path.stem for path in SOURCES if len(path.parts) == 1}


def test_constraints_pin_what_is_installed():
    from importlib.metadata import version

    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if line and line[0] != "#"
    )
    assert pins["torch"] == "2.13.0"
    assert len(pins) >= 10
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = config["options"]["install_requires"].split() + " ".join(config["options.extras_require"].values()).split()
    assert {re.split(r"[<>=]", item)[0] for item in wanted} <= set(pins)
    assert version("tokenizers")  # the pins are what CI installs; here any working version will do


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_budget_of_lines(path):
    lines = (ROOT / path).read_text(encoding="utf-8").count("\n")
    assert lines <= 350


def imported_names(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[0] != "bench"], ids=str)
def test_no_yardstick_at_run_time(path):
    assert not {"transformers", "peft", "accelerate"} & set(imported_names(path))


@pytest.mark.parametrize("folder", ["common", "data", "metrics", "model", "serving", "training"])
def test_parts_neither_print_nor_read_the_command_line(folder):
    allowed = {"__main__.py", "setup.py", "options.py", "output.py"}
    checked = [path for path in SOURCES if path.parts[0] == folder and path.name not in allowed]
    assert checked
    for path in checked:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert "print" not in calls, path
        assert "argv" not in {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}, path


@pytest.mark.parametrize("program", ["train", "infer", "serve"])
def test_help_needs_no_torch_and_imports_have_no_side_effects(program):
    code = (
        f"import sys, {program}\n"
        f"assert 'torch' not in sys.modules, 'importing {program} imports torch'\n"
        f"try: {program}.main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules, '--help imports torch'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--precision" in done.stdout


def test_public_module_offers_what_it_lists():
    import bareqa

    assert all(hasattr(bareqa, name) for name in bareqa.__all__)
