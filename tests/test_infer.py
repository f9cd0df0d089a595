"""`python infer.py --question`: what it prints and refuses, and which model it takes."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import infer

ROOT = Path(__file__).resolve().parents[1]
TEXT = "The tower was finished in 1889 for a fair.\r\nIt stands in Paris, beside the river Seine."
PERSIAN = "این برج در سال ۱۸۸۹ ساخته شد و نام آن از مهندسی می‌آید که شرکتش آن را ساخت."
UNSEEN = "\x1b[31mred\x1b[0m \x9bcsi \u202eover\u2069 bell\x07 del\x7f done"


@pytest.fixture
def run(tiny_folder, capsys):
    """main() with the tiny model (unless the flags name another): (exit code, stdout, stderr)."""

    def run(*flags):
        model = [] if "--model" in flags else ["--model", str(tiny_folder)]
        code = infer.main([*model, *map(str, flags)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def ask(run):
    """--json on a text: the object, after checking exit code and the one line."""

    def ask(question, context, *flags):
        code, out, err = run("--question", question, "--context", context, "--json", *flags)
        assert (code, out.count("\n")) == (0, 1), err
        return json.loads(out)

    return ask


def check_slices(result, context):
    """context[start:end] == text of the answer and of all runners-up."""
    spans = [(result["answer"], result)] if result["start"] is not None else []
    spans += [(span["text"], span) for span in result["runners_up"]]
    for text, span in spans:
        assert text and context[span["start"] : span["end"]] == text
        assert 0.0 < span["score"] <= 1.0
    return len(spans)


def test_help_does_not_load_torch():
    code = (
        "import sys, infer\n"
        "try:\n    infer.main(['--help'])\n"
        "except SystemExit as leaving:\n    assert leaving.code == 0\n"
        "assert not {'torch', 'numpy', 'tokenizers'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for flag in ("--question", "--context-file", "--predict", "--null-threshold", "--top-k"):
        assert flag in result.stdout


def test_print_config_is_a_recipe(run, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('question = "Who?"\ncontext = "Ada."\n')
    code, out, _ = run("--recipe", recipe, "--print-config", "--top-k", "2")
    assert code == 0
    assert "top_k = 2  # command line" in out and f'question = "Who?"  # recipe {recipe}' in out


COMBINATIONS = {
    "--question q": "add --context TEXT or --context-file FILE",
    "--question q --context a --context-file b": "--context and --context-file both give a text",
    "--predict d.json": "name their folder with --out DIR",
    "--predict d.json --out o --question q --json": "does not go with --question, --json",
    "--predict d.json --out o --context c --top-k 2": "does not go with --context, --top-k",
    "--out o": "--out: only for --predict DATA",
    "--overwrite --question q --context c": "--overwrite: only for --predict DATA",
    "--json": "--json: only for --question TEXT",
    "--top-k 3 --context c": "--top-k: only for --question TEXT",
    "--context-file -": "uses up standard input",
    "--question q --context c --window-overlap 3 --window-step 9": "give one of them",
    "--question q --context c --window-length 30 --window-step 30": "leave no room for a question",
    "--question q --context c --window-length 200": "longer than this model's 131 positions",
    "--question q --context c --top-k 0": "--top-k: expected a whole number, at least 1, found 0",
    "--question q --context c --null-threshold nan": "--null-threshold: expected a finite number",
    "--question q --context c --contxt d": "unknown flag --contxt (the nearest known one is --context",
    "--question q --context-file missing.txt": "missing.txt: there is no such file",
    "--question q --context-file .": "this is a folder, and a file is expected here",
    "--question q --context c --model no/such/model": "no/such/model: there is no such folder",
    "--question q --context c --device nonsense": "--device nonsense: not usable here",
}


def test_all_combinations_are_there():
    assert len(COMBINATIONS) == 20


@pytest.mark.parametrize("flags", COMBINATIONS)
def test_impossible_options_are_refused(run, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*flags.split())
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("infer.py: ") and COMBINATIONS[flags] in err
    assert list(tmp_path.iterdir()) == []


def test_revision_needs_a_model(capsys):
    assert infer.main(["--revision", "main", "--question", "q", "--context", "c"]) == 2
    assert "--revision belongs to a model on the hub" in capsys.readouterr().err


def test_plain_answer_stands_alone_on_the_first_line(run, ask):
    expected = ask("When?", TEXT, "--top-k", 4)
    code, out, err = run("--question", "When?", "--context", TEXT)
    assert (code, out) == (0, expected["answer"].replace("\r\n", " ") + "\n")
    assert "computing in" in err
    code, out, _ = run("--question", "When?", "--context", TEXT, "--top-k", 4)
    first, *others = out.splitlines()
    assert first == expected["answer"].replace("\r\n", " ") and len(others) == 3
    for line, span in zip(others, expected["runners_up"], strict=True):
        assert line == f"{100 * span['score']:5.1f} %  {span['text']}".replace("\r\n", " ")


@pytest.mark.parametrize("context", [TEXT, PERSIAN, UNSEEN, "é́ 🏳️‍🌈 " * 50, " \u200c۱۸۸۹\u200c "])
def test_json_answers_are_slices(ask, context):
    result = ask("چه سالی?", context)
    assert list(result) == ["answer", "start", "end", "score", "seconds", "runners_up"]
    assert 1 <= check_slices(result, context) <= 5
    scores = [result["score"], *(span["score"] for span in result["runners_up"])]
    assert scores == sorted(scores, reverse=True) and sum(scores) <= 1.0 + 1e-9 and result["seconds"] > 0


def test_json_is_not_escaped_and_plain_output_has_no_controls(run):
    everything = ["--top-k", "2000", "--max-answer-tokens", "100"]  # so that each character is in some span
    for flags in (["--json", *everything], everything):
        _, out, _ = run("--question", "?", "--context", PERSIAN, *flags)
        assert PERSIAN[:7] in out and "\\u06" not in out
        assert not set(out) & set("\u2066\u2067\u2068\u2069")
        _, out, _ = run("--question", "?", "--context", UNSEEN, *flags)
        assert "over" in out and not set(out) & set("\x1b\x9b\x07\x7f\x00")
    assert "\u202e" not in out and "\ufffdover" in out  # the last one was plain


def test_top_k_beyond_the_stored_n_best(ask):
    assert check_slices(ask("?", TEXT, "--top-k", 30), TEXT) == 30


def test_no_answer_has_a_reason(run, ask):
    result = ask("When?", TEXT, "--null-threshold=-1e9")
    assert (result["answer"], result["start"], result["end"]) == ("", None, None)
    assert result["score"] == result["null_probability"] > 0
    assert result["reason"] == "the model finds no answer in this text"
    assert len(result["runners_up"]) == 4
    _, out, _ = run("--question", "When?", "--context", TEXT, "--null-threshold=-1e9")
    assert out == "(no answer)\nthe model finds no answer in this text\n"
    result = ask("When?", TEXT, "--null-threshold", "1e9")
    assert result["answer"] and 0 < result["null_probability"] < 1 and "reason" not in result


@pytest.mark.parametrize(
    "question, context, reason",
    [("q", "", "the context is empty"), ("q", " \n ", "the context is empty"),
     ("  ", TEXT, "the question is empty"), ("q", "\u200c\u200c", "the context has no readable words")],
)
def test_nothing_to_read_is_no_answer(ask, question, context, reason):
    result = ask(question, context)
    assert (result["answer"], result["score"], result["reason"]) == ("", 0.0, reason)
    assert result["runners_up"] == []


def test_context_files_keep_their_line_ends(run, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())  # the byte order mark is no character of the text
    _, out, _ = run("--question", "?", "--context-file", path, "--json", "--top-k", 20)
    assert check_slices(json.loads(out), TEXT) == 20
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    _, piped, _ = run("--question", "?", "--context-file", "-", "--json", "--top-k", 20)
    assert json.loads(piped)["runners_up"] == json.loads(out)["runners_up"]
    for flag, name in ((path, str(path)), ("-", "standard input")):
        path.write_bytes(b"caf\xe9")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
        code, out, err = run("--question", "?", "--context-file", flag)
        assert (code, out) == (2, "") and name in err and "not UTF-8" in err


def test_long_texts_and_questions(run, ask):
    words = [f"word{number % 997} and" for number in range(10_000)]
    context = " ".join(words)
    result = ask("Which word?", context, "--tokens-per-batch", 20_000, "--precision", "fp32")
    assert check_slices(result, context) == 5
    code, _, err = run("--question", "why " * 5000, "--context", TEXT)
    assert code == 0 and "note: the question was cut to 42 tokens" in err  # (131 - 3 - 43) // 2


def test_windows_can_be_overridden(ask):
    context = " ".join(f"{number} apples" for number in range(300))
    answers = [
        ask("?", context, "--precision", "fp32", *flags.split())["score"]
        for flags in ("", "--window-length 60", "--window-length 60 --window-step 7", "--window-overlap 5")
    ]
    assert len(set(answers)) == 4


def test_an_untrained_head_is_refused(run, tiny_encoder_folder):
    code, out, err = run("--model", tiny_encoder_folder, "--question", "q", "--context", "c")
    assert (code, out) == (2, "")
    assert f"train one first: python train.py --dataset squad --model {tiny_encoder_folder}" in err


def make_run(folder, tiny_folder, finished=True):
    shutil.copytree(tiny_folder, folder / ("model" if finished else "best/model"))
    (folder / "config.json").write_text('{"format": 1, "options": {}}')
    (folder / "log.jsonl").write_text("")
    if finished:
        (folder / "metrics.json").write_text("{}")


def test_runs_are_found(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prompt.loading.SHIPPED", Path("nowhere"))
    question = ["--question", "q", "--context", "some words"]
    assert infer.main(question) == 2
    assert "there is no finished run under runs/" in capsys.readouterr().err
    make_run(Path("runs/a"), tiny_folder)
    make_run(Path("runs/b"), tiny_folder, finished=False)
    assert infer.main(question) == 0
    assert "model: runs/a/model, " in capsys.readouterr().err
    assert infer.main([*question, "--model", "runs/a"]) == 0
    capsys.readouterr()
    assert infer.main([*question, "--model", "runs/b"]) == 2
    err = capsys.readouterr().err
    assert "not finished; continue it with: python train.py --resume --out runs/b" in err
    assert "--model runs/b/best/model" in err
    for folder, inside in (("runs/a", ""), ("runs/a", "/model"), ("runs/b", "/best/model")):
        Path(folder, "config.json").write_text('{"format": 99, "options": {}}')
        assert infer.main([*question, "--model", folder + inside]) == 2
        assert f"{folder}/config.json: format 99 is unknown here" in capsys.readouterr().err
    monkeypatch.chdir("runs/a/model")
    assert infer.main([*question, "--model", "."]) == 2
    assert "format 99 is unknown here" in capsys.readouterr().err


def test_answering_leaves_the_compiler_alone(tiny_folder):
    """torch._dynamo takes two seconds to import, sympy half a second, and answering a question takes one."""
    code = (
        "import sys, infer; code = infer.main(sys.argv[1:]); "
        "late = [name for name in ('torch._dynamo', 'torch._inductor', 'sympy', 'bitsandbytes') if name in sys.modules]; "
        "sys.exit(f'imported: {late}' if late else code)"
    )
    argv = ["--model", str(tiny_folder), "--question", "Who came?", "--context", "Ann came.", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_new_head_leaves_sympy_alone(tiny_encoder_folder):
    """As under an adapter, which brings its own."""
    code = (
        "import sys; from answering.reader import Reader; reader = Reader.load(sys.argv[1], device='cpu'); "
        "sys.exit('sympy' in sys.modules or not reader.report.head_is_new)"
    )
    argv = [sys.executable, "-c", code, str(tiny_encoder_folder)]
    assert subprocess.run(argv, cwd=ROOT, capture_output=True).returncode == 0
