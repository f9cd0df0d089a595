"""python -m bench.train: both sides begin equal and learn from the same windows; a tiny comparison from end to end."""

import json
import re
from contextlib import ExitStack

import numpy as np
import pytest

from bench import learners, train
from bench.pairs import compare, fastest, work_by_turns
from bench.report import require
from common.errors import InputError
from tests.tiny_run import write_squad

WINDOW = 60


def job(even_place, **changes):
    model, data = even_place
    settings = dict(
        start=str(model), data=[str(data)], held_out=None, questions=100, held_out_windows=7, tune="full",
        recipe="tuned", batch_size=5, steps=2, pieces=2, window_length=WINDOW, lr=1e-3, dropout=0.1,
        attention_dropout=0.1, device="cpu", seed=0, ours="--precision fp32",
    )
    return learners.Job(**settings | changes)


def test_held_out_questions_share_no_context_with_the_others(even_place):
    learned, held = learners.split_examples(job(even_place))
    assert len(held) == 7 and len(learned) == 18
    assert not {example.context for example in learned} & {example.context for example in held}
    with pytest.raises(InputError, match="25 questions are too few to hold 25 windows out of them"):
        learners.split_examples(job(even_place, held_out_windows=25))
    _, held = learners.split_examples(job(even_place, held_out=str(even_place[1]), held_out_windows=25))
    assert len(held) == 25


def test_pieces_go_on_epoch_after_epoch_and_shuffling_keeps_the_windows(even_place):
    class Windows:
        length = np.arange(10, 22)

    stock = learners.pieces(job(even_place, batch_size=5, steps=2), Windows())
    found = [next(stock) for _ in range(3)]  # an epoch has 12 windows: batches of 5, 5 and 2 in some order
    assert all(len(piece) == 2 for piece in found)
    assert sorted(np.concatenate([batch for piece in found for batch in piece])) == sorted([*range(12)] * 2)
    mixed = learners.shuffled(found[0], 5, 1)
    assert sorted(np.concatenate(mixed)) == sorted(np.concatenate(found[0])) and len(mixed[0]) == 5


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_both_sides_begin_with_the_same_loss_and_come_to_nearly_the_same(even_place, tune):
    """With peft's QUESTION_ANS the peer began elsewhere: it read no token types."""
    told = job(even_place, tune=tune, dropout=0.0, attention_dropout=0.0, recipe="shipped")  # fp32 on both sides
    (ours, ours_last), (peer, peer_last) = learners.build_ours(told), learners.build_peer(told)
    first, first_peer = ours_last(), peer_last()
    assert first["held_out_loss"] == pytest.approx(first_peer["held_out_loss"], rel=1e-5)
    assert first["precision"] == first_peer["precision"] == "fp32"
    for _ in range(told.pieces):
        done, done_peer = ours(), peer()
        assert (done["units"], done["tokens"]) == (done_peer["units"], done_peer["tokens"])
        assert done["tokens"] <= done["padded_tokens"] <= done_peer["padded_tokens"] == done_peer["units"] * WINDOW
    last, last_peer = ours_last()["held_out_loss"], peer_last()["held_out_loss"]
    assert last < first["held_out_loss"] and last_peer < first["held_out_loss"]


def test_ours_beside_ours_is_one(even_place, tmp_path):
    """Two processes of our own side, by turns through the code that compares: no side is favoured."""
    told = job(even_place, steps=6, pieces=7)
    with ExitStack() as held:
        workers = {}
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            _, workers[name] = fastest(train.commands(told, "ours", [1], tmp_path / name), held)
        answers = work_by_turns(workers, 5)
        train.check_same_work(answers)
        last = [worker.end() for worker in workers.values()]
    found = compare(*answers.values())
    assert 0.6 < found["ratio_median"] < 1.6  # pieces of tens of milliseconds, on whatever machine tests run
    assert last[0]["held_out_loss"] == last[1]["held_out_loss"]


def test_a_tiny_comparison(even_place, tmp_path, capsys, monkeypatch):
    model, data = even_place
    monkeypatch.setattr(train, "SQUAD_LENGTH", WINDOW)
    argv = ["--data", data, "--model", model, "--window-length", WINDOW, "--held-out-windows", 7, "--pairs", 2,
            "--steps", 2, "--batch-size", 5, "--threads", 1, "--without-attention-dropout", "--ours=--precision fp32",
            "--json", tmp_path / "found.json"]
    assert train.main(list(map(str, argv))) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    rows = [found, *found["more_rows"]]
    assert [row["what"] for row in rows] == [
        "ours beside transformers, tuned", "ours, no attention dropout beside transformers, tuned",
    ]
    for row in rows:
        assert len(row["ratios"]) == 2 and min(row["ratios"]) <= row["ratio_median"] <= max(row["ratios"])
        for key in ("peak_bytes", "gemm_share", "padding", "held_out_loss"):
            assert set(row[key]) == {"ours", "peer"} and all(np.isfinite(list(row[key].values())))
        assert all(0 < share < 1 for share in row["gemm_share"].values())
        assert all(peak > 1e8 for peak in row["peak_bytes"].values())
    shown = capsys.readouterr().out
    assert re.search(r"\| transformers, tuned \| \d+\.\d\d \|", shown)
    *_, ratio, epochs, rates = shown.splitlines()
    assert " times (" in ratio and rates.startswith("matrix rate: ")
    minutes = float(re.search(r"transformers, tuned: ([\d.]+) min", epochs)[1])
    assert minutes == pytest.approx(2 * 88_524 / found["peer"] / 60, abs=0.06)


@pytest.mark.parametrize("argv, sentence", [
    (["--pairs", "0"], "--pairs 0: expected a number of at least 1"),
    (["--threads", "2", "-1"], "--threads -1: expected a number of at least 1"),
    (["--ours=--no-such-flag"], "--no-such-flag"),
    (["--ours='"], "No closing quotation"),
    (["--window-length", "200"], "--window-length 200: the model has 131 positions"),
    (["--held-out-windows", "25"], "25 questions are too few"),
    (["--json", "."], "cannot be written"),
])
def test_what_cannot_be_is_said_before_anything_is_timed(even_place, argv, sentence, capsys):
    model, data = even_place
    told = ["--data", data, "--model", model, "--window-length", WINDOW, "--held-out-windows", 7, *argv]
    assert train.main(list(map(str, told))) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("bench.train: ")


def test_a_peer_that_is_not_installed_is_named(even_place, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"no_such_peer is not installed here, .*'\.\[bench\]'"):
        require("json", "no_such_peer")
    monkeypatch.setitem(train.NEEDED, "qlora", ("no_such_peer",))
    assert train.main(["--data", str(even_place[1]), "--tune", "qlora"]) == 2
    assert "no_such_peer is not installed" in capsys.readouterr().err
