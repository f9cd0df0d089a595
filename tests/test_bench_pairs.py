"""The benchmark's arithmetic, and that a peer that is ours again is as fast as ours."""

import statistics
import sys

import pytest

from bench.gemm import ceiling, encoder_flops
from bench.pairs import Worker, alternate, compare, padding
from model.bert import BertConfig
from tests.tiny_run import ROOT


def answers(*seconds, units=12):
    return [{"seconds": s, "units": units} for s in seconds]


def test_ratios_by_hand():
    # 12 units in 1, 2, 4 s beside 6 units in 2, 2, 1 s: 12 / 3, 6 / 3, 3 / 6
    found = compare(answers(1, 2, 4), answers(2, 2, 1, units=6))
    assert found["ratios"] == [4.0, 2.0, 0.5]
    assert (found["ratio_median"], found["ratio_spread"]) == (2.0, [0.5, 4.0])
    assert (found["ours"], found["peer"]) == (6.0, 3.0)
    with pytest.raises(ValueError):
        compare(answers(1), answers(1, 2))
    assert padding([{"tokens": 30, "padded_tokens": 40}, {"tokens": 30, "padded_tokens": 35}]) == pytest.approx(0.2)


def test_turns_alternate_and_warming_up_does_not_count():
    said = []

    def runner(name):
        def run(word):
            said.append(f"{name} {word}")
            return {"seconds": len(said), "units": 1}

        return run

    ours, peer = alternate(runner("a"), runner("b"), pairs=3, warm=2)
    assert said[:4] == ["a warm", "b warm"] * 2
    assert said[4:] == ["a work", "b work", "b work", "a work", "a work", "b work"]
    assert [x["seconds"] for x in ours] == [5, 8, 9] and [x["seconds"] for x in peer] == [6, 7, 10]


SLEEPER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from bench.pairs import serve
def work():
    time.sleep(float(sys.argv[1]))
    return {"units": 3}
serve(work, lambda: {"peak": 7})
"""


def test_a_peer_that_is_ours_again_gives_one():
    workers = [Worker([sys.executable, "-c", SLEEPER, str(s), str(ROOT)]) for s in (0.1, 0.1, 0.2)]
    ours, same, slower = (worker.ask for worker in workers)
    for peer, wanted in ((same, 1.0), (slower, 2.0)):
        found = compare(*alternate(ours, peer, pairs=5))
        assert found["ratio_median"] == pytest.approx(wanted, rel=0.15)
        assert statistics.median(found["ratios"]) == found["ratio_median"]
    assert [worker.end() for worker in workers] == [{"peak": 7}] * 3
    assert all(worker.process.returncode == 0 for worker in workers)


def test_a_worker_that_fails_ends_the_benchmark():
    with pytest.raises(SystemExit, match="a worker ended early with exit code 3"):
        Worker([sys.executable, "-c", "raise SystemExit(3)"])


def test_matrix_work_by_hand():
    config = BertConfig(hidden_size=4, intermediate_size=10, num_hidden_layers=3, num_attention_heads=2)
    # a token: 4 products of 4 x 4 and two of 4 x 10, two FLOPs each: 2 (64 + 80) = 288, by 3 layers
    assert encoder_flops(config, 5, learning=False) == 5 * 288 * 3
    assert encoder_flops(config, 5) == 3 * 5 * 288 * 3
    assert 1e6 < ceiling(BertConfig(hidden_size=64, intermediate_size=128), 256, "fp32", rounds=2) < 1e15
