"""infer.py with adapters: --adapter, /adapter, their thresholds, and refusals."""

import json

import pytest
import torch

import infer
from prompt.display import Style
from model.adapters import adapter_name
from prompt.loading import open_reader
from prompt.options import INFER_OPTIONS
from prompt.session import Session
from common.errors import InputError
from common.options import parse
from tests.tiny_adapters import make_adapters

TEXT = "The mill was built by Ada Stone in 1807. It stands in Riga."


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_folder):
    """Two adapters of the tiny model: `wiki`, and the run `reviews`."""
    return make_adapters(tmp_path_factory.mktemp("adapters"), tiny_folder)


def opened(*argv):
    argv = ["--device", "cpu", "--precision", "fp32", *map(str, argv)]
    return open_reader(parse("infer.py", "", INFER_OPTIONS, argv))


@pytest.mark.parametrize(
    "path, name", [("a/wiki", "wiki"), ("runs/x/model", "x"), ("runs/x/best/model", "x"), ("v1.5", "v1_5")]
)
def test_an_adapter_is_called_as_its_folder_or_run(path, name):
    assert adapter_name(path) == name


def test_adapters_are_loaded_with_and_without_the_base(folders, tiny_folder):
    for argv in (("--adapter", *folders), ("--model", tiny_folder, "--adapter", *folders)):
        reader, name = opened(*argv)
        assert name == f"{tiny_folder} + wiki + reviews"
        assert list(reader.all_settings) == [None, "wiki", "reviews"] and reader.adapter == "reviews"
        assert reader.settings.null_threshold == -1e9
        reader.set_adapter("wiki")
        alone, _ = opened("--model", folders[0])
        assert reader.ask("Who?", TEXT)[0] == alone.ask("Who?", TEXT)[0]
        assert reader.settings.null_threshold == 1e9


def test_an_adapter_can_be_given_a_name(folders, tmp_path, capsys):
    reader, name = opened("--adapter", f"news={folders[0]}", folders[1])
    assert list(reader.all_settings) == [None, "news", "reviews"] and name.endswith(" + news + reviews")
    assert infer.main(["--adapter", f"={folders[0]}", "--question", "q", "--context", "c"]) == 2
    assert "an adapter cannot be called ''" in capsys.readouterr().err


def test_a_folder_with_an_equals_sign_is_a_folder(folders, tmp_path):
    place = tmp_path / "lr=3"
    place.symlink_to(folders[0])
    assert list(opened("--adapter", place)[0].all_settings) == [None, "lr=3"]


def test_options_reach_every_adapter(folders):
    reader, _ = opened("--adapter", *folders, "--null-threshold", "0.5", "--window-length", "40")
    assert {s.null_threshold for s in reader.all_settings.values()} == {0.5}
    assert {s.windows.length for s in reader.all_settings.values()} == {40}


def test_a_question_goes_to_the_last_adapter(folders, capsys):
    found = []
    for order in (folders, folders[::-1]):
        argv = ["--adapter", *map(str, order), "--question", "Who built it?", "--context", TEXT, "--json"]
        assert infer.main([*argv, "--device", "cpu"]) == 0
        found.append(json.loads(capsys.readouterr().out)["answer"])
    assert found[0] == "" and found[1] and found[1] in TEXT  # thresholds of -1e9 and 1e9


def test_an_adapter_over_4_bits(folders):
    whole, _ = opened("--adapter", folders[0])
    packed, _ = opened("--adapter", folders[0], "--quant", "nf4")
    again, _ = opened("--adapter", folders[0], "--quant", "none")
    one, two, three = (reader.ask("Who?", TEXT)[0] for reader in (whole, packed, again))
    assert one == three and one.spans[0].start_logit != two.spans[0].start_logit


def test_refusals(folders, tiny_folder, tmp_path):
    twin = tmp_path / "wiki"
    twin.symlink_to(folders[0])
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    for path in folders[0].iterdir():
        (nameless / path.name).write_bytes(path.read_bytes())
    config = nameless / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    for argv, sentence in (
        (("--adapter", folders[0], twin), "an adapter called 'wiki' already"),
        (("--model", folders[1], "--adapter", folders[0]), "is an adapter itself"),
        (("--adapter", tiny_folder), "not the folder of an adapter"),
        (("--adapter", tmp_path / "nothing"), "not the folder of an adapter"),
        (("--adapter", nameless), "nameless: this adapter does not name its base: write it into base_model_name_or_path of its"),
        (("--model", nameless), "or ask with infer.py --adapter .*nameless --model BASE"),
    ):
        with pytest.raises(InputError, match=sentence):
            opened(*argv)
    opened("--model", tiny_folder, "--adapter", nameless)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/gone/base"}))
    for argv in (("--adapter", nameless), ("--model", nameless)):
        with pytest.raises(InputError, match="nameless: its base cannot be had .*/gone/base.*; if it lies elsewhere, write it"):
            opened(*argv)
    opened("--model", tiny_folder, "--adapter", nameless)


def test_the_prompt_switches_adapters():
    said, chosen = [], []

    def choose(name):
        chosen.append(name)
        return {None: None, "wiki": 1.5, "reviews": 2.5}[name]

    session = Session(None, 2.5, said.append, Style(), None, ["wiki", "reviews"], choose)
    for line in ("/adapter", "/adapter wiki", "/adapter none", "/adapter wikki"):
        assert session.handle(line)
        said.append(session.null_threshold)
    assert chosen == ["wiki", None]
    assert said == [
        "  wiki", "* reviews", "  none", 2.5, "* wiki", "  reviews", "  none", 1.5,
        "  wiki", "  reviews", "* none", None,
        "there is no adapter wikki; the nearest is wiki", None,
    ]
    bare = Session(None, None, said.append, Style())
    assert bare.handle("/adapter wiki") and said[-1] == "no adapter is loaded: start with --adapter FOLDER"


def test_8_bit_moments_go_on_bit_identically_and_are_not_paged_here():
    import io

    from tests.tiny_model import make_model
    from training.optimizer import make_optimizer

    def steps(count, stop=None):
        model = make_model(1501)
        optimizer = make_optimizer(model, 0.01, kind="adamw8bit")
        for number in range(count):
            if number == stop:
                buffer = io.BytesIO()
                torch.save(optimizer.state_dict(), buffer)
                buffer.seek(0)
                weights, model = model.state_dict(), make_model(1501, seed=3)
                model.load_state_dict(weights)
                optimizer = make_optimizer(model, 0.01, kind="adamw8bit")
                optimizer.load_state_dict(torch.load(buffer, weights_only=True))
            torch.manual_seed(number)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            optimizer.step()
        return model, optimizer

    (one, optimizer), (two, _) = steps(5), steps(5, stop=3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    moments = optimizer.state[one.bert.embeddings.word_embeddings.weight]
    assert moments["state1"].dtype == moments["state2"].dtype == torch.uint8
    with pytest.raises(InputError, match="take adamw8bit"):
        make_optimizer(one, 0.01, kind="paged-adamw8bit")


def test_the_adapter_that_comes_with_the_project_is_the_default(folders, tmp_path, monkeypatch, capsys):
    import train
    from training import run
    from training.options import TRAIN_OPTIONS

    monkeypatch.chdir(tmp_path)  # no runs/ here
    for shipped, answers in ((tmp_path / "none", False), (folders[0], True)):
        monkeypatch.setattr("prompt.loading.SHIPPED", shipped)
        monkeypatch.setattr("training.run.SHIPPED", shipped)
        code = infer.main(["--question", "Who?", "--context", TEXT, "--device", "cpu"])
        said = capsys.readouterr()
        assert (code == 0) is answers and ("no finished run" in said.err) is not answers

    def settled(*argv):
        options = run.settle_options(parse("train.py", "", TRAIN_OPTIONS, list(argv)))
        return options.model, options.tune

    assert settled() == settled("--dataset", "sample") == (str(folders[0]), "lora")
    assert settled("--from", "minilm", "--tune", "full") == ("minilm", "full")
    assert settled("--from", "minilm") == ("minilm", "full") and settled("--tune", "head") == ("minilm", "head")
    assert settled("--dataset", "squad") == ("minilm", "full")
    argv = ["--max-steps", "1", "--window-length", "64", "--window-overlap", "16", "--max-train-examples", "3",
            "--max-dev-examples", "4", "--batch-size", "2", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert train.main(argv) == 0
    assert json.loads((tmp_path / "out/model/adapter_config.json").read_text())["r"] == 3
