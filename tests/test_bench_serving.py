"""python -m bench.open and bench.load, small: they run to the end, and their numbers are those of what they measure."""

import json
import math
import re

from bench import load, open as bench_open
from data.decode import Prediction, Span
from data.readers import read_dataset
from retrieval.ranking import Bm25, ranks
from tests.tiny_model import SAMPLE
from tests.tiny_run import write_squad


def test_open_counts_what_is_found_and_answered(tiny_folder, tmp_path, capsys):
    data = write_squad(tmp_path / "data.json", range(7), with_null=True)
    argv = [str(data), "--model", str(tiny_folder), "--precision", "fp32", "--questions", "3", "--passages", "2"]
    assert bench_open.main([*argv, "--rank-weight", "0", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "7 passages, 7 questions, 3 of them answered"  # those without an answer have no paragraph to find
    assert [line.split(":")[0] for line in lines if "recall" in line] == ["both", "bm25", "vectors"]
    assert sum("rank weight" in line for line in lines) == 6
    examples = [example for example in read_dataset([data]).examples if example.answers]
    ranker = Bm25([example.context for example in examples])
    found = sum(ranks(ranker.scores(e.question))[number] <= 5 for number, e in enumerate(examples))
    assert f"recall@5 {100 * found / 7:.2f}" in next(line for line in lines if line.startswith("bm25"))


def test_open_refuses_what_it_cannot_read(tmp_path, capsys):
    assert bench_open.main([str(tmp_path / "none.json"), "--model", "x"]) == 2
    assert capsys.readouterr().err.startswith("bench.open: ")


def test_load_sheds_what_is_too_much_and_answers_the_rest_rightly(tiny_folder, capsys):
    argv = ["--model", str(tiny_folder), "--data", str(SAMPLE / "dev.json"), "--questions", "9", "--precision", "fp32"]
    assert load.main([*argv, "--seconds", "3", "--warm-seconds", "1", "--queue", "5", "--clients", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == {"faults": 0, "server_exit_code": 0}
    outcomes = dict(re.findall(r"'(\w+)': (\d+)", lines[1]))
    assert int(outcomes["answered"]) > 0 and set(outcomes) <= {"answered", "refused"}
    assert re.fullmatch(r"memory in MB: \d+ at first; most in each tenth of the time: \d+(, \d+){2,9}", lines[3])
    shares = re.search(r"took (\d\.\d\d) of a core, (\d\.\d\d) before", lines[2])
    assert all(0 < float(share) < 1.5 for share in shares.groups())
    during = dict(re.findall(r"'(\w+)': (\d+)", lines[4]))
    assert set(during) & load.BROKEN_CONNECTION and set(during) <= {"answered", "refused", *load.BROKEN_CONNECTION}
    assert set(re.findall(r"'(\w+)'", lines[5])) == {"answered"}


def test_load_knows_a_wrong_answer():
    context = "abcdefghijklmnopqrstuvwxyz"

    def right(start, end, nothing=-1.0, text=None):
        expected = load.Expected([(3, 7), (9, 12), (20, 21)], [0.5, 0.49, 0.01], nothing)
        text = text or ("" if start is None else context[start:end])
        return load.is_right({"answer": text, "start": start, "end": end}, context, expected)

    assert right(3, 7) and right(9, 12)
    assert not right(20, 21) and not right(3, 8) and not right(3, 7, text="defh")
    assert not right(None, None) and right(None, None, 1.0) and not right(3, 7, 1.0)
    assert right(None, None, -0.1) and right(3, 7, -0.1) and right(3, 7, 0.1)


def test_load_knows_when_there_is_no_answer():
    span = Span("x", 0, 1, 5.0, 1.0)
    assert load.margin(Prediction("q", (), None, 1.0), 0.0) == math.inf
    assert load.margin(Prediction("q", (span,), (4.0, 3.0), 0.0), None) == -math.inf
    assert load.margin(Prediction("q", (span,), (4.0, 3.0), 0.0), 0.75) == 0.25


def test_memory_is_followed_through_the_time():
    seen = [(0.1, 5), (0.9, 7), (1.0, 6), (3.5, 9), (9.99, 4), (10.3, 8)]
    assert load.most_by_tenths(seen, 10) == [7, 6, 9, 8]


def test_what_is_kept_is_measured_against_both_sides():
    assert load.kept(9.0, 12.0, 6.0) == 1.0 and load.kept(6.0, 16.0, 8.0) == 0.5 and load.kept(1.0, 0.0, 0.0) == 0.0


def test_load_is_bounded(capsys):
    assert load.main(["--model", "x", "--seconds", "99999"]) == 2
    assert "at most 3600" in capsys.readouterr().err
