"""The benchmark's arithmetic, and that a peer that is ours again is as fast as ours."""

import statistics
import sys
import time
from contextlib import ExitStack

import pytest

from bench.gemm import ceiling, encoder_flops
from bench.pairs import Worker, compare, fastest, padding, take_turns, work_by_turns
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


def test_every_round_begins_with_another_side():
    said = []

    def side(name):
        def piece():
            said.append(name)
            return len(said)

        return piece

    rounds = []
    ours, peer = take_turns([side("a"), side("b")], 3, after=rounds.append)
    assert said == ["a", "b", "b", "a", "a", "b"] and rounds == [1, 2, 3]
    assert ours == [1, 4, 5] and peer == [2, 3, 6]
    said.clear()
    assert take_turns([side("a"), side("b"), side("c")], 2) == [[1, 6], [2, 4], [3, 5]]


SLEEPER = """
import sys, time
from bench.pairs import serve
def build():
    print("loading")
    done = []
    def work():
        done.append(len(done))
        print("not a line of the protocol")
        time.sleep(float(sys.argv[1]))
        return {"units": 3, "piece": done[-1]}
    return work, lambda: {"peak": 7, "pieces": len(done)}
raise SystemExit(serve(build))
"""


def sleeper(seconds):
    return [sys.executable, "-c", SLEEPER, seconds]


def test_a_peer_that_is_ours_again_gives_one(capfd):
    with ExitStack() as held:
        ours, same, slower = (held.enter_context(Worker(sleeper(s))) for s in (0.2, 0.2, 0.4))
        turns = list(work_by_turns({0: ours, 1: same, 2: slower}, 5).values())
        for peer, wanted in ((turns[1], 1.0), (turns[2], 2.0)):
            found = compare(turns[0], peer)
            low, high = found["ratio_spread"]
            assert 0.85 * low <= wanted <= 1.15 * high  # on a busy machine the spread is as wide as its noise
            assert statistics.median(found["ratios"]) == found["ratio_median"]
        assert [answer["piece"] for answer in turns[0]] == [0, 1, 2, 3, 4]
        assert all(0 <= answer["idle_cpu_seconds"] < 0.05 for turn in turns for answer in turn)
        assert [worker.end() for worker in (ours, same, slower)] == [{"peak": 7, "pieces": 5}] * 3
        assert all(worker.process.returncode == 0 for worker in (ours, same, slower))
    captured = capfd.readouterr()
    assert "not a line" not in captured.out and captured.err.count("loading") == 3


def test_of_some_thread_counts_the_fastest_is_kept():
    commands = {1: (sleeper(0.5), {"OMP_NUM_THREADS": "1"}), 2: (sleeper(0.05), {}), 4: (sleeper(0.6), {})}
    with ExitStack() as held:
        name, worker = fastest(commands, held)
        assert name == 2 and worker.end() == {"peak": 7, "pieces": 2}
    with ExitStack() as held:
        name, worker = fastest({1: commands[1]}, held)
        assert name == 1 and worker.ask("work")["piece"] == 2
    assert worker.process.poll() is not None


SPINNER = """
import threading, time
from bench.pairs import serve
def spin():
    while time.process_time() < 0.5: pass
def build():
    threads = iter([threading.Thread(target=spin)])
    def work():
        for thread in threads: thread.start()
        return {}
    return work, dict
serve(build)
"""


def test_a_side_that_works_while_it_should_be_idle_is_seen():
    with Worker([sys.executable, "-c", SPINNER]) as worker:
        worker.ask("work")
        seen = 0
        for _ in range(100):  # however little of the machine it gets
            time.sleep(0.1)
            seen += worker.ask("work")["idle_cpu_seconds"]
            if seen > 0.2:
                break
        assert seen > 0.2


def test_a_worker_that_fails_ends_the_benchmark():
    with pytest.raises(SystemExit, match="a worker ended early with exit code 3"):
        Worker([sys.executable, "-c", "raise SystemExit(3)"])


def test_matrix_work_by_hand():
    config = BertConfig(hidden_size=4, intermediate_size=10, num_hidden_layers=3, num_attention_heads=2)
    # a token: 4 products of 4 x 4 and two of 4 x 10, two FLOPs each: 2 (64 + 80) = 288, by 3 layers
    assert encoder_flops(config, 5, learning=False) == 5 * 288 * 3
    assert encoder_flops(config, 5) == 3 * 5 * 288 * 3
    # frozen weights: forward and inputs' gradients, but those of the first query, key and value, 3 * 2 * 16 a token
    assert encoder_flops(config, 5, frozen=True) == 2 * 5 * 288 * 3 - 5 * 96
    assert encoder_flops(config, 5, learning=False, frozen=True) == 5 * 288 * 3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_ceilings_are_rates(precision):
    assert 1e6 < ceiling(BertConfig(hidden_size=64, intermediate_size=128), 256, precision, rounds=2) < 1e15
