"""train.py --plan: what is tried, what is said, and that nothing is left behind."""

import numpy as np
import pytest
import torch

import train
import training.plan as plan
import training.step
from data.batches import epoch_batches
from tests.tiny_run import arguments


class Bar:
    """Counts what it is told."""

    count = 0

    def update(self, count):
        self.count += count


@pytest.fixture
def prepared(place, tmp_path):
    """(options, what `prepare` gives for them) of a small run."""
    from common.options import parse
    from training.distributed import Ranks
    from training.options import TRAIN_OPTIONS
    from training.run import settle_options
    from training.setup import prepare

    argv = arguments(*place, tmp_path / "out", batch_size=1, epochs=4, save_every=5, eval_every=7)
    options = settle_options(parse("train.py", "", TRAIN_OPTIONS, [str(a) for a in argv]))
    return options, prepare(options, Ranks(), train.tqdm_bytes, train.tqdm_texts)


def test_a_plan_is_printed_and_nothing_is_written(place, tmp_path, capsys):
    argv = [*map(str, arguments(*place, tmp_path / "out")), "--plan"]
    assert train.main(argv) == 0
    steps, time, memory, *largest = capsys.readouterr().out.splitlines()
    # among other tests there may be room in what this process holds already, and then nothing tells how memory grows
    assert all(line.startswith("largest micro-batch: ") for line in largest) and len(largest) <= 1
    assert steps.startswith("steps: ") and "windows of up to" in steps
    assert " s a step)" in time and " of scoring, " in time and "to read and tokenise" in time
    assert memory.startswith("memory: ") and memory.endswith("fits")
    assert not (tmp_path / "out").exists()


def test_the_sampled_steps_stand_for_all(prepared, monkeypatch):
    """A step that takes 0.1 s and 1 ms a token squared: 8 steps of 57 foresee the epoch's seconds to 5 %."""
    options, ready = prepared
    clock, lengths = [0.0], ready.windows.length
    cost = lambda chosen: 0.1 + 1e-3 * float((lengths[chosen].astype(float) ** 2).sum())  # noqa: E731

    def pretend(*args, **settings):
        clock[0] += cost(args[4])

    monkeypatch.setattr(plan, "train_step", pretend)
    monkeypatch.setattr(plan.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(plan, "HEAP_SECONDS", 1e9)
    bar = Bar()
    found = plan.foresee(options, ready, bar)
    batches = epoch_batches(lengths, 1, options.seed, 0)
    true = sum(map(cost, batches)) / len(batches)
    assert len(batches) > 3 * plan.SAMPLES and np.std([cost(b) for b in batches]) > 0.05 * true
    assert found.step_seconds == pytest.approx(true, rel=0.05)
    tried = 3 + 1 + plan.WARM_UP + plan.SAMPLES
    assert bar.count - tried == min(plan.HEAP_STEPS, len(batches))
    monkeypatch.setattr(plan, "HEAP_SECONDS", 3.5 * true)
    bar.count = 0
    plan.foresee(options, ready, bar)
    assert 3 <= bar.count - tried <= 6  # no longer than it may take
    assert found.steps == 4 * len(batches)
    evaluations = {*range(7, found.steps, 7), found.steps}
    assert found.scoring[0] == len(evaluations)
    assert found.saving[0] == len(evaluations | {*range(5, found.steps + 1, 5)})


def test_the_weights_stay_as_they_were(prepared):
    options, ready = prepared
    before = {name: value.clone() for name, value in ready.reader.model.state_dict().items()}
    plan.foresee(options, ready, Bar())
    after = ready.reader.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_what_would_not_fit_is_said_and_not_tried(prepared, monkeypatch):
    """A machine where each token adds 1 MB to 100: 0.95 · 400 MB hold 280 tokens."""
    options, ready = prepared
    options = options.replace("default", batch_size=10, tokens_per_micro_batch=6144)
    longest = int(ready.windows.length.max())
    growth = iter([0, 0, 100e6 + 1e6 * longest, 0, 100e6 + 4e6 * longest])
    monkeypatch.setattr(plan, "held", lambda device: next(growth))
    monkeypatch.setattr(plan, "free_memory", lambda device: 400_000_000)
    bar = Bar()
    found = plan.foresee(options, ready, bar)
    assert bar.count == 3 and not found.tried and not found.fits
    assert found.largest == 280
    text = found.text(1.0)
    assert "GB at most, of 0.4 GB that could be had: DOES NOT FIT" in text and "time:" not in text
    assert f"largest micro-batch: about 280 tokens in windows of {longest}" in text
    tight = plan.Plan(5, 9, None, (0, 0.0), (0, 0.0), 5e8, 400_000_000, 3, longest, tried=False)
    assert f"none; not one window of {longest} tokens fits" in tight.text(1.0)


@pytest.mark.parametrize("moments, numbers", [("adamw", 12), ("adamw8bit", 6)])
def test_a_model_whose_moments_would_not_fit_is_not_tried_at_all(prepared, monkeypatch, moments, numbers):
    options, ready = prepared
    learned = sum(parameter.numel() for parameter in ready.reader.model.parameters())
    monkeypatch.setattr(plan, "held", lambda device: 1000)
    monkeypatch.setattr(plan, "free_memory", lambda device: 1000 + numbers * learned - 1)
    bar = Bar()
    found = plan.foresee(options.replace("default", optimizer=moments), ready, bar)
    assert bar.count == 0 and not found.tried and not found.fits and found.largest == 0
    assert found.peak_bytes == 1000 + numbers * learned
    assert "DOES NOT FIT" in found.text(1.0) and "none; not one window" in found.text(1.0)


def test_a_gpu_that_is_full_during_the_trial_is_said_and_no_error(prepared, monkeypatch):
    options, ready = prepared

    def full(*arguments, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(plan, "train_step", full)
    found = plan.foresee(options, ready, Bar())
    assert not found.tried and not found.fits and "DOES NOT FIT" in found.text(1.0)


def test_room_in_a_container(tmp_path):
    assert plan.container_room(tmp_path) is None
    for name, text in (("max", "max\n"), ("current", "700\n"), ("stat", "anon 500\nfile 150\nfile_mapped 9\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert plan.container_room(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert plan.container_room(tmp_path) == 1000 - (700 - 150)


def test_seconds_as_they_are_said():
    assert [plan.spoken(s) for s in (0.04, 99.94, 4535, 90_000)] == ["0.0 s", "99.9 s", "75.6 min", "25.0 h"]
    assert plan.times(0, 3.0) == "none" and plan.times(2, 3.0) == "2 times 3.0 s"


def test_padded_tokens_of_a_worked_example():
    """Windows of 9, 5, 4 and 2 tokens in micro-batches of at most 12: (9), (5, 4), (2)."""
    lengths = np.array([2, 9, 4, 5])
    assert plan.padded_tokens(lengths, np.arange(4), 12) == [9, 10, 2]


def test_under_torchrun_it_is_refused(place, tmp_path, capsys, monkeypatch):
    argv = [*map(str, arguments(*place, tmp_path / "out")), "--plan"]
    assert train.main([*argv, "--shard"]) == 2
    assert "--plan: tries one process" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert train.main(argv) == 2
    assert "--plan: tries one process" in capsys.readouterr().err


def test_the_rest_of_a_run_is_planned_by_its_own_options(place, tmp_path, capsys):
    """With --resume and --out alone the data are the run's, and not the sample corpus."""
    out = tmp_path / "out"
    assert train.main(["--resume", "--out", str(out), "--plan"]) == 2
    assert "there is no run to resume" in capsys.readouterr().err
    assert train.main([*map(str, arguments(*place, out, max_steps=2))]) == 0
    capsys.readouterr()
    assert train.main(["--resume", "--out", str(out), "--plan"]) == 0
    assert "this run is finished; nothing to do" in capsys.readouterr().out
    (out / "metrics.json").unlink()
    (out / "checkpoints/step-00000002").rename(out / "checkpoints/step-00000001")  # as if it had been stopped there
    assert train.main(["--resume", "--out", str(out), "--plan"]) == 0
    assert "steps: 1, over" in capsys.readouterr().out


def test_what_is_behind_a_run_is_not_planned_again(prepared):
    options, ready = prepared
    whole, rest = plan.foresee(options, ready, Bar()), plan.foresee(options, ready, Bar(), 9)
    assert rest.steps == whole.steps - 9
    evaluations = {*range(14, whole.steps, 7), whole.steps}
    assert rest.scoring[0] == len(evaluations)
    assert rest.saving[0] == len(evaluations | {*range(10, whole.steps + 1, 5)})


def test_numbers_that_are_not_finite_end_a_plan_in_a_sentence(place, tmp_path, capsys, monkeypatch):
    def blow_up(*arguments, **settings):
        raise training.step.NonFinite("the loss is nan")

    monkeypatch.setattr(plan, "train_step", blow_up)
    assert train.main([*map(str, arguments(*place, tmp_path / "out")), "--plan"]) == 1
    assert "train.py: trying it out: the loss is nan; choose --precision fp32" in capsys.readouterr().err


def test_plans_are_held_against_reality(place, tmp_path, capsys, monkeypatch):
    from bench import plans

    monkeypatch.setattr(plans, "CONFIGURATIONS", {"tiny": ["--window-length", "64", "--max-steps", "9", "--device", "cpu"]})
    folder, model = place
    argv = ["--train", folder / "train.json", "--dev", folder / "dev.json", "--model", model, "--out", tmp_path / "runs"]
    assert plans.main([str(a) for a in argv]) == 0
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")[1:-1]]
    assert cells[0] == "tiny" and float(cells[6]) == pytest.approx(1, abs=0.2)
    assert (tmp_path / "runs/0/metrics.json").exists()
    assert plans.foretold("time: 1.5 h in all: …\nmemory: 2.50 GB at most") == (5400, 2.5e9)
