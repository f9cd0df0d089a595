"""Defaults, recipes and flags: who wins, what is refused and in which words, and the round trip."""

import copy
import json
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.options import Option, parse, render_config

TABLE = (
    Option("train", Path, None, "Files to train on.", "Data", many=True, metavar="FILE"),
    Option("title", str, "plain", "A name for the run.", "Data"),
    Option("tags", str, None, "Words to find the run by.", "Data", many=True),
    Option("batch_size", int, 16, "Windows in an optimizer step.", "Loop", minimum=1),
    Option("lr", float, 5e-5, "Peak learning rate, about 100% by hand.", "Loop", above=0),
    Option("warmup", float, 0.1, "Share of the steps.", "Loop", minimum=0, maximum=1),
    Option("weights", float, (1, 2.5), "Two weights.", "Loop", many=True),
    Option("null_threshold", float, None, "Score difference, in logits."),
    Option("precision", str, "auto", "Arithmetic.", choices=("auto", "fp32", "bf16", "fp16")),
    Option("shuffle", bool, True, "Mix the examples."),
    Option("out", Path, Path("runs/x"), "Folder of the run."),
)


def read(*argv):
    return parse("train.py", "Train.", TABLE, list(argv), "An epilog.")


def refusal(*argv):
    with pytest.raises(InputError) as caught:
        read(*argv)
    return str(caught.value)


def recipe(folder, text):
    path = folder / "r.toml"
    path.write_bytes(text.encode("utf-8"))
    return path


def recipe_refusal(folder, text, *argv):
    path = recipe(folder, text)
    return refusal("--recipe", str(path), *argv).replace(str(path), "R")


def test_defaults_are_typed_and_say_so():
    options = read()
    assert options.batch_size == 16 and options.lr == 5e-5 and options.train is None
    assert options.weights == [1.0, 2.5] and type(options.weights[0]) is float
    assert options.out == Path("runs/x") and options.shuffle is True
    assert options.recipe is None and options.print_config is False
    assert set(options.origins.values()) == {"default"} and set(options.origins) == set(options.values)
    assert len(options.values) == len(TABLE) + 2


def test_a_flag_wins_over_the_recipe_and_the_recipe_over_the_default(tmp_path):
    path = recipe(tmp_path, "batch_size = 8\n[loop]\nlr = 1\n[loop.deep]\nnull-threshold = -2\n")
    options = read("--lr", "3e-5", f"--recipe={path}", "--print-config")
    assert (options.batch_size, options.lr, options.null_threshold, options.warmup) == (8, 3e-5, -2.0, 0.1)
    assert type(options.null_threshold) is float
    assert options.origins["batch_size"] == options.origins["null_threshold"] == f"recipe {path}"
    assert options.origins["lr"] == options.origins["print_config"] == "command line"
    assert options.origins["warmup"] == "default"
    assert options.given("lr") and options.given("batch_size") and not options.given("warmup")
    assert options.print_config is True


def test_a_flag_that_repeats_the_default_was_still_given():
    assert read("--batch-size", "16").given("batch_size")


def test_a_table_may_bear_the_name_of_an_option(tmp_path):
    assert read("--recipe", str(recipe(tmp_path, "[lr]\nbatch_size = 3\nlr = 0.5\n"))).lr == 0.5


def test_a_recipe_with_crlf_and_byte_order_mark_is_read(tmp_path):
    assert read("--recipe", str(recipe(tmp_path, "\ufeff[a]\r\nbatch_size = 3\r\n"))).batch_size == 3


NUMBERS = {"-1.5": -1.5, "-1e-5": -1e-5, "-.5": -0.5, "-3": -3.0, "-2E+1": -20.0, "7": 7.0, "1_000": 1000.0}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_as_values(text):
    assert len(NUMBERS) == 7
    assert read("--null-threshold", text).null_threshold == NUMBERS[text]
    assert read(f"--null-threshold={text}").null_threshold == NUMBERS[text]
    assert read("--weights", "1", text, "2").weights == [1.0, NUMBERS[text], 2.0]


def test_values_that_look_odd_arrive_unchanged():
    assert read("--title", "-1e5 apples").title == "-1e5 apples"
    assert read("--title=--lr").title == "--lr" and read("--title=--").title == "--"
    assert read("--tags=--", "--tags=a=b", "--tags=-1").tags == ["--", "a=b", "-1"]
    assert read("--title", "-").title == "-" and read("--title", "-infinity").title == "-infinity"
    assert read("--title", "").title == "" and read("--title=").title == ""
    assert read("--title", "می‌خواهم").title == "می‌خواهم"
    assert read("--title", "1e5").title == "1e5"


def test_many_by_several_values_repeated_flags_or_both():
    options = read("--train", "a", "b", "--lr", "1", "--train=c", "--train", "d")
    assert options.train == [Path("a"), Path("b"), Path("c"), Path("d")]


def test_many_in_a_recipe_is_a_list_or_a_single_value(tmp_path):
    options = read("--recipe", str(recipe(tmp_path, 'train = "a/b.json"\ntags = ["x", "y"]\nweights = 3\n')))
    assert options.train == [Path("a/b.json")] and options.tags == ["x", "y"] and options.weights == [3.0]


def test_parsing_twice_shares_no_list():
    read("--tags", "a").tags.append("b")
    assert read("--tags", "a").tags == ["a"] and read().weights is not read().weights


def test_switches(tmp_path):
    assert read("--no-shuffle").shuffle is False and read("--shuffle").shuffle is True
    path = recipe(tmp_path, "shuffle = false\n")
    assert read("--recipe", str(path)).shuffle is False
    assert read("--shuffle", "--recipe", str(path)).shuffle is True


def test_inclusive_bounds_are_inside():
    assert read("--warmup", "1").warmup == 1.0 and read("--warmup", "0").warmup == 0.0
    assert read("--batch-size", "1").batch_size == 1


def test_a_whole_float_is_an_int(tmp_path):
    assert read("--recipe", str(recipe(tmp_path, "batch_size = 1e3\n"))).batch_size == 1000
    assert type(read("--batch-size", "1e3").batch_size) is int


FLAG_REFUSALS = {
    ("--batch-size", "x"): "--batch-size: expected a whole number, at least 1, found 'x'",
    ("--batch-size", "1.5"): "--batch-size: expected a whole number, at least 1, found 1.5",
    ("--batch-size", "0"): "--batch-size: expected a whole number, at least 1, found 0",
    ("--batch-size", "-3"): "--batch-size: expected a whole number, at least 1, found -3",
    ("--batch-size", "nan"): "--batch-size: expected a whole number, at least 1, found nan",
    ("--batch-size", ""): "--batch-size: expected a whole number, at least 1, found ''",
    ("--lr", "0"): "--lr: expected a finite number, above 0, found 0",
    ("--lr", "inf"): "--lr: expected a finite number, above 0, found inf",
    ("--lr", "-inf"): "--lr: expected a finite number, above 0, found -inf",
    ("--lr", "1e999"): "--lr: expected a finite number, above 0, found inf",
    ("--lr", "9" * 400): "--lr: expected a finite number, above 0, found a very long number",
    ("--warmup", "1.1"): "--warmup: expected a finite number, at least 0 and at most 1, found 1.1",
    ("--warmup", "-1e-9"): "--warmup: expected a finite number, at least 0 and at most 1, found -1e-09",
    ("--null-threshold", "nan"): "--null-threshold: expected a finite number, found nan",
    ("--weights", "1", "two", "3"): "--weights: expected a finite number, found 'two'",
    ("--precision", "fp8"): "--precision: expected one of auto, fp32, bf16, fp16, found 'fp8'",
    ("--out", ""): "--out: expected a path, found ''",
    ("--title", "\udcff"): "--title: expected a text, found '\\udcff'",
    ("--batch_size", "3"): "unknown flag --batch_size (the nearest known one is --batch-size)",
    ("--batch", "3"): "unknown flag --batch (the nearest known one is --batch-size)",
    ("--batchsize=3",): "unknown flag --batchsize (the nearest known one is --batch-size)",
    ("--no-shufle",): "unknown flag --no-shufle (the nearest known one is --no-shuffle)",
    ("-lr", "3"): "unknown flag -lr (the nearest known one is --lr)",
    ("--treshold", "-1", "b"): "unknown flag --treshold (the nearest known one is --null-threshold)",
    ("x",): "unexpected argument 'x'",
    ("--shuffle", "-5"): "unexpected argument '-5'",
    ("--lr", "1", "x"): "unexpected argument 'x'",
    ("--", "x"): "unexpected argument '--'; unexpected argument 'x'",
    ("--bach-size=3", "x"):
        "unknown flag --bach-size (the nearest known one is --batch-size); unexpected argument 'x'",
    ("--lr", "--"): "command line: argument --lr: expected one argument (see --help)",
    ("--lr",): "command line: argument --lr: expected one argument (see --help)",
    ("--train", "--lr", "1"): "command line: argument --train: expected at least one argument (see --help)",
    ("--no-shuffle=3",):
        "command line: argument --shuffle/--no-shuffle: ignored explicit argument '3' (see --help)",
}


@pytest.mark.parametrize("argv", FLAG_REFUSALS, ids=" ".join)
def test_refused_command_lines(argv):
    assert len(FLAG_REFUSALS) == 33
    assert refusal(*argv) == FLAG_REFUSALS[argv]


RECIPE_REFUSALS = {
    "bach_size = 3": "R: bach_size: unknown key (the nearest known one is batch_size)",
    "[loop]\nLR = 3": "R: loop.LR: unknown key (the nearest known one is lr)",
    "batch_size = true": "R: batch_size: expected a whole number, at least 1, found true",
    "batch_size = 2.5": "R: batch_size: expected a whole number, at least 1, found 2.5",
    "batch_size = '3'": "R: batch_size: expected a whole number, at least 1, found '3'",
    "batch_size = [3]": "R: batch_size: expected a whole number, at least 1, found a list",
    "lr = false": "R: lr: expected a finite number, above 0, found false",
    "lr = nan": "R: lr: expected a finite number, above 0, found nan",
    "lr = -inf": "R: lr: expected a finite number, above 0, found -inf",
    "shuffle = 1": "R: shuffle: expected true or false, found 1",
    "shuffle = 'yes'": "R: shuffle: expected true or false, found 'yes'",
    "title = 3": "R: title: expected a text, found 3",
    "title = 2020-01-02": "R: title: expected a text, found 2020-01-02",
    "out = ''": "R: out: expected a path, found ''",
    'out = "a\\u0000b"': "R: out: expected a path, found 'a\\x00b'",
    "out = false": "R: out: expected a path, found false",
    "train = []": "R: train: expected at least one value (a path), found none",
    "train = ['a', 3]": "R: train: expected a path, found 3",
    "weights = [[1]]": "R: weights: expected a finite number, found a list",
    "tags = [{a = 1}]": "R: tags: expected a text, found a table",
    "[data]\nprecision = 'fp8'": "R: data.precision: expected one of auto, fp32, bf16, fp16, found 'fp8'",
    "[a]\nlr = 1\n[b]\nlr = 1": "R: b.lr: already set as a.lr; keep one of the two",
    "batch_size = 1\nbatch-size = 1": "R: batch-size: already set as batch_size; keep one of the two",
    "recipe = 'x'": "R: recipe: can only be given on the command line",
    "print-config = true": "R: print-config: can only be given on the command line",
    '"batch\\nsize" = 1': "R: batch\\u000asize: unknown key (the nearest known one is batch_size)",
    "lr = '" + "x" * 99 + "'": "R: lr: expected a finite number, above 0, found '" + "x" * 76 + "…",
}


@pytest.mark.parametrize("text", RECIPE_REFUSALS)
def test_refused_recipes(tmp_path, text):
    assert len(RECIPE_REFUSALS) == 27
    assert recipe_refusal(tmp_path, text) == RECIPE_REFUSALS[text]


@pytest.mark.parametrize("text", ["lr = ", "lr = 1\nlr = 2", "lr = " + "9" * 5000, "x = " + "[" * 9999])
def test_what_is_not_toml_is_one_sentence(tmp_path, text):
    message = recipe_refusal(tmp_path, text)
    assert message.startswith("R: not a TOML recipe: ") and "\n" not in message


def test_deep_tables_are_opened_without_recursion(tmp_path):
    place = ".".join(["a"] * 3000)
    message = recipe_refusal(tmp_path, f"{place}.lr = 0")
    assert message == f"R: {place}.lr: expected a finite number, above 0, found 0"


def test_two_recipes_are_refused(tmp_path):
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text("")
    argv = ["--recipe", f"{tmp_path}/a.toml", f"--recipe={tmp_path}/b.toml"]
    assert refusal(*argv) == "--recipe: given twice, and options come from one recipe; merge the files"
    assert read("--recipe", f"{tmp_path}/a.toml").origins


def test_unreadable_recipes_are_refused(tmp_path):
    assert refusal("--recipe", str(tmp_path)) == f"{tmp_path}: this is a folder, and a file is expected here"
    missing = tmp_path / "none.toml"
    assert refusal("--recipe", str(missing)) == f"{missing}: there is no such file"
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"title = '\xe9'")
    assert refusal("--recipe", str(latin)).startswith(f"{latin}: not UTF-8")


def test_all_problems_come_in_one_sentence(tmp_path):
    message = recipe_refusal(
        tmp_path, "lr = 0\n[a]\nwarmup = 2\nsede = 1\n[b]\nwarmup = 0\n", "--lr", "1", "--batch-size", "x",
        "--sede", "4", "y", "--shuffle", "z", "--precision", "fp8",
    )
    assert [problem.split(" (")[0] for problem in message.split("; ") if "keep" not in problem] == [
        "unknown flag --sede",
        "unexpected argument 'z'",
        "--batch-size: expected a whole number, at least 1, found 'x'",
        "--precision: expected one of auto, fp32, bf16, fp16, found 'fp8'",
        "R: lr: expected a finite number, above 0, found 0",
        "R: a.warmup: expected a finite number, at least 0 and at most 1, found 2",
        "R: a.sede: unknown key",
        "R: b.warmup: already set as a.warmup",
    ]


def test_a_missing_recipe_does_not_hide_the_other_problems(tmp_path):
    missing = tmp_path / "no"
    message = refusal("--recipe", str(missing), "--lr", "0")
    assert message == f"--lr: expected a finite number, above 0, found 0; {missing}: there is no such file"


def test_help_names_every_flag_heading_and_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        read("--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    words = text.replace(",", " ").split()
    for option in TABLE:
        assert option.flag in words, option.flag
    assert {"--recipe", "--print-config", "--no-shuffle", "--help"} <= set(words)
    assert [line for line in text.splitlines() if line.endswith(":") and line[0] != " "] == [
        "options:", "Data:", "Loop:", "Configuration:"]
    for piece in ("usage: train.py [options]", "Train.", "An epilog.", "about 100% by hand (default: 5e-05)",
                  "(default: 1.0 2.5)", "(default: yes)", "(default: not set)", "{auto,fp32,bf16,fp16}",
                  "--train FILE [FILE ...]", "--recipe FILE.toml"):
        assert piece in text, piece


def test_without_argv_the_program_s_own_is_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "2"])
    assert parse("train.py", "Train.", TABLE, None).lr == 2.0


def test_options_are_read_only_and_know_their_names():
    options = read()
    with pytest.raises(AttributeError):
        options.lr = 3
    with pytest.raises(AttributeError) as caught:
        options.batchsize
    assert str(caught.value) == "there is no option 'batchsize' (the nearest known one is batch_size)"
    for use in (lambda: options.given("nope"), lambda: options.replace("here", nope=1)):
        with pytest.raises(AttributeError, match="there is no option 'nope'"):
            use()
    for twin in (copy.deepcopy(options), pickle.loads(pickle.dumps(options))):
        assert twin == options and twin.lr == options.lr


def test_replace_makes_new_options_with_the_origin_told():
    before = read("--lr", "1")
    after = before.replace("chosen by the machine", precision="bf16", out="a/b", lr=None)
    assert (after.precision, after.out, after.lr) == ("bf16", Path("a/b"), None)
    assert after.origins["precision"] == after.origins["lr"] == "chosen by the machine"
    assert (before.precision, before.lr, before.origins["lr"]) == ("auto", 1.0, "command line")
    assert after.given("precision") and not before.given("precision")
    with pytest.raises(InputError) as caught:
        before.replace("runs/x/config.json", warmup=2, shuffle=None, lr="1")
    assert str(caught.value) == (
        "runs/x/config.json: warmup: expected a finite number, at least 0 and at most 1, found 2; "
        "runs/x/config.json: lr: expected a finite number, above 0, found '1'")


def test_to_dict_is_json_and_lacks_the_two_options_about_options(tmp_path):
    options = read("--train", "a", "b/c", "--recipe", str(recipe(tmp_path, "lr = 1")))
    record = json.loads(json.dumps(options.to_dict(), allow_nan=False))
    assert record == options.to_dict() and list(record) == [option.name for option in TABLE]
    assert record["train"] == ["a", str(Path("b/c"))] and record["out"] == str(Path("runs/x"))
    assert record["lr"] == 1.0 and record["null_threshold"] is None


BAD_TABLES = {
    "default of x": (Option("x", int, 1.5, ""),),
    "default of y": (Option("y", str, [], "", many=True),),
    "twice": (Option("x", int, 1, ""), Option("x", int, 1, "")),
    "name='values'": (Option("values", int, 1, ""),),
    "name='replace'": (Option("replace", int, 1, ""),),
    "name='a-b'": (Option("a-b", int, 1, ""),),
    "kind=<class 'list'>": (Option("x", list, None, ""),),
    "many=True": (Option("x", bool, None, "", many=True),),
}


@pytest.mark.parametrize("words", BAD_TABLES)
def test_a_wrong_table_is_the_programmer_s_mistake(words):
    assert len(BAD_TABLES) == 8
    with pytest.raises(AssertionError, match=words):
        parse("p", "d", BAD_TABLES[words], [])


def test_the_printed_configuration_line_by_line(tmp_path):
    path = recipe(tmp_path, "weights = [1, 2]\nout = 'a/b'\n")
    options = read("--recipe", str(path), "--title", 'say "a\\b"\nسلام‌ها', "--no-shuffle", "--print-config")
    lines = render_config(options.replace("line\nbreak", precision="fp32")).splitlines()
    assert lines == [
        "# train is not set",
        'title = "say \\"a\\\\b\\"\\u000aسلام‌ها"  # command line',
        "# tags is not set",
        "batch_size = 16  # default",
        "lr = 5e-05  # default",
        "warmup = 0.1  # default",
        f"weights = [1.0, 2.0]  # recipe {path}",
        "# null_threshold is not set",
        'precision = "fp32"  # line\\u000abreak',
        "shuffle = false  # command line",
        f"out = {json.dumps(str(Path('a/b')))}  # recipe {path}",
    ]


UGLY = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["", "--", '"', "\\", '\\"""', "a\r\nb\rc", "# x", "\x7f\x00\x1f\t", "می‌خواهم «بدانم»",
     "\u2028\u0085\ufeff", "😀"])
PATHS = UGLY.filter(lambda text: text and "\0" not in text).map(Path)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
CHANGES = st.fixed_dictionaries({}, optional={
    "train": st.lists(PATHS, min_size=1),
    "title": UGLY,
    "tags": st.lists(UGLY, min_size=1),
    "batch_size": st.integers(min_value=1),
    "lr": st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    "warmup": st.floats(min_value=0, max_value=1),
    "weights": st.lists(FLOATS, min_size=1),
    "null_threshold": FLOATS,
    "precision": st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
    "shuffle": st.booleans(),
    "out": PATHS,
})


@settings(deadline=None, max_examples=200)
@given(changes=CHANGES, origin=UGLY)
def test_the_printed_configuration_is_a_recipe_with_the_same_values(tmp_path_factory, changes, origin):
    options = read().replace(origin, **changes)
    text = render_config(options)
    path = recipe(tmp_path_factory.getbasetemp(), text)
    again = read("--recipe", str(path))
    assert again.to_dict() == options.to_dict()
    assert {name: again.values[name] for name in changes} == changes
    assert all(again.origins[name] == f"recipe {path}" for name in changes)
    assert len(tomllib.loads(text)) + text.count(" is not set\n") >= len(TABLE)


@settings(deadline=None, max_examples=200)
@given(text=UGLY.filter(lambda text: "\0" not in text), number=FLOATS, whole=st.integers(1, 10**30))
def test_a_flag_means_what_the_recipe_means(text, number, whole):
    options = read(f"--title={text}", "--null-threshold", repr(number), "--batch-size", str(whole))
    assert (options.title, options.null_threshold, options.batch_size) == (text, number, whole)
    if not text.startswith("-"):
        assert read("--title", text).title == text


def test_importing_it_brings_no_torch():
    code = "import sys, common.options; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
