"""Several processes learn and answer as one does. Real processes, over loopback."""

import json

import numpy as np
import pytest

from data.examples import Example
from tests.tiny_model import make_folder
from tests.tiny_run import Nursery, arguments, read_log, write_squad
from training.distributed import Ranks


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    with Nursery(tmp_path_factory.mktemp("nursery")) as started:
        yield started


@pytest.fixture(scope="module")
def mild_folder(tmp_path_factory):
    """A model with the spread of weights that BERT begins with.

    The other tests' is 15 times wider: there fp32 rounds a gradient by up to 4e-6 of its largest entry when one process
    merely splits a step into other micro-batches; here by 3e-7.
    """
    return make_folder(tmp_path_factory.mktemp("mild"), initializer_range=0.02)


def run_job(nursery, name, argv, ranks):
    codes = nursery.run(argv, ranks=ranks, call=f"tests.rank_jobs:{name}")
    assert codes in (0, [0] * ranks), "\n".join(nursery.errors(ranks))


def learned(nursery, folder, method, kind, steps, ranks, shard, out):
    run_job(nursery, "learn", [folder, method, kind, steps, shard, out], ranks)
    return dict(np.load(out))


def difference(found, wanted):
    """Largest difference over all tensors, relative to the largest entry of them all."""
    largest = max(np.abs(value).max() for value in wanted.values())
    assert found.keys() == wanted.keys() and largest > 0
    return max(np.abs(found[name] - wanted[name]).max() for name in wanted) / largest


def part(saved, mark):
    extra = ("loss", "norm", "tokens")
    return {n: v for n, v in saved.items() if n not in extra and n.startswith("grad.") == (mark == "grad")}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind, steps", [("sgd", 8), ("adamw", 50)])
def test_two_and_three_learn_as_one(nursery, mild_folder, tmp_path, method, kind, steps):
    one = learned(nursery, mild_folder, method, kind, steps, 1, "", tmp_path / "1.npz")
    assert len(one["loss"]) == steps and one["loss"].std() > 0.01
    for ranks, shard in ((2, ""), (2, "shard"), *([(3, "")] if kind == "sgd" else [])):
        found = learned(nursery, mild_folder, method, kind, steps, ranks, shard, tmp_path / f"{ranks}{shard}.npz")
        assert (found["tokens"] == one["tokens"]).all()
        assert difference(part(found, "grad"), part(one, "grad")) < 1e-6
        np.testing.assert_allclose(found["loss"], one["loss"], rtol=1e-4)
        if kind == "sgd":
            assert difference(part(found, "weights"), part(one, "weights")) < 1e-6
            np.testing.assert_allclose(found["norm"], one["norm"], rtol=1e-4)


def test_the_measure_of_parity_sees_a_mean_in_place_of_a_sum(nursery, mild_folder, tmp_path):
    one = learned(nursery, mild_folder, "full", "sgd", 1, 1, "", tmp_path / "1.npz")
    half = {name: value / 2 for name, value in one.items()}
    assert difference(part(half, "grad"), part(one, "grad")) > 0.4


@pytest.mark.parametrize("shard", ["", "shard"])
def test_a_step_with_fewer_windows_than_ranks(nursery, mild_folder, tmp_path, shard):
    for ranks in (1, 3):
        argv = [mild_folder, shard if ranks > 1 else "", tmp_path / f"{ranks}.npz"]
        run_job(nursery, "lonely_batches", argv, ranks)
    one, three = (dict(np.load(tmp_path / f"{ranks}.npz")) for ranks in (1, 3))
    assert difference(three, one) < 1e-6


def test_ranks_share_every_window_once_and_evenly():
    random = np.random.default_rng(3)
    lengths = random.integers(9, 64, 101).astype(np.int32)
    windows = random.permutation(101)[:37]
    for size in (2, 3, 8):
        for sharded in (False, True):
            parts = [Ranks(rank, size, sharded=sharded).parts(lengths, windows, 130) for rank in range(size)]
            real = [np.concatenate([part for part, counts in share if counts]) for share in parts]
            assert sorted(np.concatenate(real)) == sorted(windows)
            tokens = [lengths[share].sum() for share in real]
            assert max(tokens) - min(tokens) <= 64
            assert not sharded or len({len(share) for share in parts}) == 1
    few = [Ranks(rank, 5).parts(lengths, windows[:3], 130) for rank in range(5)]
    assert [[counts for _, counts in share] for share in few] == [[True]] * 3 + [[False]] * 2


def test_ranks_share_questions_in_order_by_length():
    from tests.tiny_run import examples

    questions = list(examples(range(40)))
    for size in (1, 2, 7, 60):
        shares = [Ranks(rank, size).share(questions) for rank in range(size)]
        assert [question for share in shares for question in share] == questions
        if 1 < size < 10:
            read = [sum(len(q.context) for q in share) for share in shares]
            assert max(read) - min(read) < 2 * max(len(q.context) for q in questions)
    assert Ranks(1, 3).share([]) == []
    talks = [Example(str(k), "Who?" * k, None, None, "") for k in range(9)]  # questions without a text
    shares = [Ranks(rank, 3).share(talks) for rank in range(3)]
    assert [question for share in shares for question in share] == talks and all(shares)


def test_other_files_on_a_rank_are_refused(nursery, tmp_path):
    out = tmp_path / "said"
    assert nursery.run([out], ranks=3, call="tests.rank_jobs:refuse_on_the_second") == [2, 2, 2]
    said = {(tmp_path / f"said.{rank}").read_text() for rank in range(3)}
    assert said == {"rank 1 has other data than rank 0; all processes must read the same files"}


@pytest.fixture(scope="module")
def case(tmp_path_factory, tiny_encoder_folder):
    """Makes the flags of a run with dropout, which evaluates in the middle and at the end."""
    folder = tmp_path_factory.mktemp("ranks")
    write_squad(folder / "train.json", range(8))
    write_squad(folder / "dev.json", range(20, 25))

    def flags(out, **changes):
        settings = {"dropout": 0.1, "epochs": 2, "eval_every": 4} | changes
        return arguments(folder, tiny_encoder_folder, folder / out, **settings)

    return folder, flags


def same_run(folder, one, other, tolerance=0.0):
    """Two runs learned the same and said the same."""
    logs = [read_log(folder / name) for name in (one, other)]
    assert [r["step"] for r in logs[0]] == [r["step"] for r in logs[1]]
    for record, again in zip(*logs, strict=True):
        assert record["loss"] == pytest.approx(again["loss"], rel=tolerance, abs=0)
        assert all(record[key] == again[key] for key in ("tokens", "windows", "lr", "epoch"))
    scores = [json.loads((folder / name / "metrics.json").read_text())["f1"] for name in (one, other)]
    assert scores[0] == pytest.approx(scores[1], abs=tolerance)


def test_a_run_on_two_ranks_is_killed_and_goes_on_as_if_nothing_had_been(nursery, case):
    folder, flags = case
    assert nursery.run(flags("calm"), ranks=2) == [0, 0], nursery.errors(2)
    assert nursery.out.with_name("stdout.1").read_text() == "" and nursery.errors(2)[1] == ""
    assert nursery.out.read_text().count("parameters:") == 1
    config = json.loads((folder / "calm" / "config.json").read_text())
    assert config["environment"]["processes"] == 2
    # the second rank dies in the middle of step 6, after the checkpoint of step 4
    codes = nursery.run(flags("hurt", save_every=100), kill=["training.step", "batch_loss", 6], ranks=2)
    assert codes == [1, -9]
    said = nursery.errors(2)[0]
    assert "another process of this run ended" in said and "--resume" in said and "Traceback" not in said
    assert not (folder / "hurt" / "metrics.json").exists()
    saved = sorted(path.name for path in (folder / "hurt" / "checkpoints").iterdir())
    steps = len(read_log(folder / "hurt"))
    assert saved[-1] == f"step-{steps:08d}" and steps not in (0, 4)  # all that was learned, not only every --save-every
    assert nursery.run(["--resume", "--out", folder / "hurt"], ranks=2) == [0, 0], nursery.errors(2)
    same_run(folder, "calm", "hurt")  # bit for bit, dropout included
    files = [(folder / name / "model" / "model.safetensors").read_bytes() for name in ("calm", "hurt")]
    assert files[0] == files[1]


@pytest.mark.parametrize("begin, go_on", [((2, None), (1, False)), ((1, None), (3, None)), ((2, True), (1, False)),
                                          ((1, None), (2, True))])
def test_checkpoints_of_one_number_of_processes_resume_on_another(nursery, case, begin, go_on):
    folder, flags = case
    settings = {"dropout": 0, "attention_dropout": 0}
    if not (folder / "plain").exists():
        assert nursery.run(flags("plain", **settings)) == 0, nursery.errors()
    out = f"from{begin[0]}{begin[1]}to{go_on[0]}{go_on[1]}"
    # stopped by its last rank's death in an evaluation, whose checkpoint before it is that of step 6
    nursery.run(flags(out, save_every=2, shard=begin[1], **settings), kill=["training.step", "train_step", 8], ranks=begin[0])
    assert not (folder / out / "metrics.json").exists()
    assert (folder / out / "checkpoints" / "step-00000006").is_dir()
    resume = ["--resume", "--out", folder / out]
    resume += {None: [], True: ["--shard"], False: ["--no-shard"]}[go_on[1]]
    codes = nursery.run(resume, ranks=go_on[0])
    assert codes in (0, [0] * go_on[0]), nursery.errors(go_on[0])
    assert f"processes {begin[0]} -> {go_on[0]}" in nursery.out.read_text()
    same_run(folder, "plain", out, tolerance=1e-4)


def test_refusals_say_it_once(nursery, case):
    folder, flags = case
    (folder / "full").mkdir()
    (folder / "full" / "something").write_text("")
    assert nursery.run(flags("full"), ranks=2) == [2, 2]
    errors = nursery.errors(2)
    assert "already holds other files" in errors[0] and errors[1] == ""
    assert nursery.run(flags("new", shard=True)) == 2
    assert "--shard splits the model over processes: start them with torchrun" in nursery.errors()[0]
    assert nursery.run(flags("new", shard=True, optimizer="adamw8bit"), ranks=2) == [2, 2]
    assert "train.py: rank 1: --shard: the moments of --optimizer adamw8bit cannot be split" in nursery.errors(2)[1]
    assert not (folder / "new").exists()


def test_a_file_of_questions_is_split_and_written_once(nursery, case, tiny_folder):
    folder, _ = case
    write_squad(folder / "many.json", range(31))
    for ranks in (1, 3):
        argv = ["--model", tiny_folder, "--predict", folder / "many.json", "--out", folder / f"said{ranks}",
                "--device", "cpu", "--precision", "fp32"]
        codes = nursery.run(argv, ranks=ranks, call="infer:main")
        assert codes in (0, [0] * ranks), nursery.errors(ranks)
    assert nursery.errors(3)[2] == ""
    one, three = (json.loads((folder / f"said{ranks}" / "nbest_predictions.json").read_text()) for ranks in (1, 3))
    assert list(one) == list(three) and len(one) == 62
    for name, best in one.items():
        np.testing.assert_allclose([b["start_logit"] for b in best], [b["start_logit"] for b in three[name]], atol=1e-4)
    metrics = [json.loads((folder / f"said{ranks}" / "metrics.json").read_text()) for ranks in (1, 3)]
    assert metrics[0]["windows"] == metrics[1]["windows"] and metrics[0]["f1"] == pytest.approx(metrics[1]["f1"])


def test_one_question_is_not_asked_by_several(nursery, tiny_folder):
    argv = ["--model", tiny_folder, "--question", "Who?", "--context", "Ada."]
    assert nursery.run(argv, ranks=2, call="infer:main") == [2, 2]
    assert "torchrun splits the questions of --predict" in nursery.errors(2)[0] and nursery.out.read_text() == ""


@pytest.mark.parametrize("what", ["questions", "model"])
def test_ranks_that_would_answer_other_things_are_refused(nursery, case, tiny_folder, what):
    """Two machines: the same paths, other files there."""
    folder, _ = case
    for rank in (0, 1):
        write_squad(folder / f"many{rank}.json", range(7 + rank))
        make_folder(folder / f"model{rank}", seed=rank)
    data, model = ("many{rank}.json", "model0") if what == "questions" else ("many0.json", "model{rank}")
    argv = ["--model", folder / model, "--predict", folder / data, "--out", folder / "never", "--device", "cpu"]
    assert nursery.run(argv, ranks=2, call="tests.rank_jobs:predict_each") == [2, 2]
    assert f"rank 1 has other {what} than rank 0" in nursery.errors(2)[0]
    assert not (folder / "never").exists()


def test_a_refusal_while_a_sharded_model_is_whole_is_not_lost(nursery, mild_folder):
    codes = nursery.run([mild_folder], ranks=2, call="tests.rank_jobs:refuse_while_whole")
    assert codes == [2, 2], nursery.errors(2)


def test_a_sharded_run_goes_on_sharded(tmp_path):
    """With --resume under torchrun, unless told otherwise; one process alone takes the whole model."""
    from common.options import parse
    from training.folder import RunFolder
    from training.options import TRAIN_OPTIONS
    from training.run import splits_the_model

    run = RunFolder(tmp_path)
    options = lambda *argv: parse("train.py", "", TRAIN_OPTIONS, ["--out", str(tmp_path), *argv])  # noqa: E731
    assert not splits_the_model(options("--resume"), run, True)  # there is no run yet
    run.config.write_text(json.dumps({"format": 1, "options": {"shard": True}}))
    assert splits_the_model(options("--resume"), run, True)
    assert not splits_the_model(options("--resume"), run, False)
    assert not splits_the_model(options("--resume", "--no-shard"), run, True)
    assert splits_the_model(options("--shard"), run, True) and not splits_the_model(options(), run, True)


def test_a_checkpoint_of_more_gpus_than_there_are_here(monkeypatch):
    import torch

    from training.state import random_states, restore_random_states

    states, put = random_states(), []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: put.append((state, device)))
    restore_random_states(states | {"cuda": ["first", "second", "third"]})
    assert put == [("first", 0), ("second", 1)]
    restore_random_states(states | {"cuda": ["first"]})
    assert put[2:] == [("first", 0)]


def test_bytes_on_the_wire(tiny_folder):
    from model.lora import LoraConfig
    from model.tune import tune_lora
    from model.weights import load_model
    from training.wire import Cluster, efficiency, held_bytes, learning_bytes, sent_bytes, sent_bytes_sharded

    model, _ = load_model(tiny_folder)
    assert learning_bytes(model) == held_bytes(model) == 4 * sum(p.numel() for p in model.parameters())
    tune_lora(model, LoraConfig(3, 6.0))
    # three layers, query and value, A (3, 35) and B (35, 3); and the head of 2 x 35 + 2
    assert learning_bytes(model) == 4 * (3 * 2 * 2 * 3 * 35 + 72)
    assert [sent_bytes(400, ranks) for ranks in (1, 2, 4)] == [0, 400, 600]
    assert sent_bytes_sharded(400, 100, 4, micro_batches=3) == (2 * 3 * 400 + 100) * 3 / 4
    slow = Cluster(per_host=4, local=100.0, between=10.0, latency=0.5)
    assert efficiency(1, 400, 2.0, slow) == 1.0
    assert efficiency(4, 400, 2.0, slow) == pytest.approx(2 / (2 + 6 + 3))
    assert efficiency(8, 400, 2.0, slow) == pytest.approx(2 / (2 + 70 + 7))


def test_a_ring_sends_what_is_said(nursery, tmp_path):
    """Gloo's own traffic on loopback, in real processes, is what the arithmetic says."""
    size = 4_000_000
    run_job(nursery, "sum_once", [size, tmp_path / "sent"], 3)
    from training.wire import sent_bytes

    sent = [int((tmp_path / f"sent.{rank}").read_text()) for rank in range(3)]
    for one in sent:
        assert one == pytest.approx(sent_bytes(size, 3), rel=0.02)
