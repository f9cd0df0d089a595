"""What a run will cost on this machine, from a few of its own steps: `train.py --plan`.

Time: the epoch's steps are sorted by their padded tokens, and the middle one of each of SAMPLES equal parts is run; so are, on
a CPU, the run's first ones. Their mean is the mean step's time, whatever the time depends on; nothing is fitted. Scoring and
saving are tried out likewise.
Memory: what the process holds after the largest micro-batch, the run's first steps, an evaluation and a checkpoint: a CPU's
process grows for some dozens of steps, as tensors of ever other sizes part what is free and oneDNN keeps kernels for them.
How it grows with a micro-batch is seen from two small ones first, so that one that would not fit is never tried.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.choices import OPTIMIZERS
from common.memory import resident_bytes
from common.pages import give_pages_back, keep_pages
from data.batches import epoch_batches, split_by_tokens
from data.documents import counted
from model.precision import make_scaler
from training.evaluate import evaluate
from training.measure import peak_memory_bytes
from training.optimizer import make_optimizer
from training.setup import plan_steps
from training.state import LoopState, learning, save_checkpoint
from training.step import train_step

SAMPLES = 8  # steps that are timed
WARM_UP = 2  # steps before them
HEAP_STEPS, HEAP_SECONDS = 48, 60  # of the run's first steps on a CPU, as many as either allows
QUESTIONS = 96  # that are answered to time an evaluation
ROOM = 0.95  # of the memory that is free, what a run may take
LEARNING = dict.fromkeys(OPTIMIZERS, 6) | {"adamw": 12}  # bytes of a learned number's gradient and two moments


@dataclass(frozen=True, slots=True)
class Plan:
    """steps: that are still to do. step_seconds: of the mean one. scoring: (times, seconds of each). saving: likewise.

    peak_bytes: what the run holds at most, on the device. free_bytes: what it may hold, or None where unknown.
    largest: tokens of the largest micro-batch that fits, or None. tried: False when even a plan did not fit.
    """

    steps: int
    windows: int
    step_seconds: float | None
    scoring: tuple
    saving: tuple
    peak_bytes: float
    free_bytes: int | None
    largest: int | None
    longest: int
    tried: bool = True

    @property
    def seconds(self):
        """Of training, scoring and saving, without reading and tokenising."""
        return self.steps * self.step_seconds + self.scoring[0] * self.scoring[1] + self.saving[0] * self.saving[1]

    @property
    def fits(self):
        return self.free_bytes is None or self.peak_bytes <= ROOM * self.free_bytes

    def text(self, setup_seconds):
        """What the user is told. setup_seconds: of reading and tokenising, as they were."""
        free = "of an unknown amount" if self.free_bytes is None else f"of {self.free_bytes / 1e9:.1f} GB"
        lines = [f"steps: {self.steps:,}, over {counted(self.windows, 'window')} of up to {self.longest} tokens"]
        if self.tried:
            lines.append(
                f"time: {spoken(self.seconds + setup_seconds)} in all: {spoken(self.steps * self.step_seconds)} of training "
                f"({self.step_seconds:.2f} s a step), {times(*self.scoring)} of scoring, {times(*self.saving)} of saving, "
                f"{spoken(setup_seconds)} to read and tokenise"
            )
        lines.append(f"memory: {self.peak_bytes / 1e9:.2f} GB at most, {free} that could be had: "
                     + ("fits" if self.fits else "DOES NOT FIT"))
        if self.largest is not None:
            lines.append(
                f"largest micro-batch: about {self.largest:,} tokens in windows of {self.longest} "
                "(--tokens-per-micro-batch)" if self.largest >= self.longest else
                f"largest micro-batch: none; not one window of {self.longest} tokens fits (--window-length, --checkpointing, "
                "--tune lora or qlora take less)"
            )
        return "\n".join(lines)


def spoken(seconds):
    """4,535 s as "75.6 min"."""
    for size, unit in ((3600 * 2, "h"), (100, "min")):
        if seconds >= size:
            return f"{seconds / (3600 if unit == 'h' else 60):.1f} {unit}"
    return f"{seconds:.1f} s"


def times(count, seconds):
    return f"{count} times {spoken(seconds)}" if count else "none"


def free_memory(device):
    """Bytes this process may come to hold, what it holds already counted in; None where that cannot be known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024 + held(device)
    except (OSError, StopIteration):
        return None
    room = container_room(Path("/sys/fs/cgroup"))
    return free if room is None else min(free, room + held(device))


def container_room(folder):
    """Bytes that may still be taken in the container whose cgroup (version 2) this is; None where there is no limit.

    The files that it has read count for nothing: the kernel drops them when room is wanted.
    """
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        taken = int((folder / "memory.current").read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        return int(limit) - taken + next((int(line.split()[1]) for line in lines if line.startswith("file ")), 0)
    except (OSError, ValueError):
        return None


def held(device):
    """Bytes this process holds: on a GPU the most since the last look, else what is resident now; None where unknown."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most
    return resident_bytes() or resident_bytes(peak=True)


def foresee(options, prepared, bar, done=0):
    """Try steps of what `training.setup.prepare` gave; returns a Plan. The model learns nothing lasting.

    bar: counts them. done: steps that the run has behind it; the plan is of the rest.
    """
    reader, windows, device = prepared.reader, prepared.windows, prepared.device
    give_pages_back()  # what reading the data left free would hide how memory grows
    keep_pages()
    optimizer = make_optimizer(reader.model, options.weight_decay, options.lora_plus_ratio, options.optimizer)
    scaler = make_scaler(device, prepared.precision)

    def step(chosen):
        began = time.perf_counter()
        train_step(
            reader.model, optimizer, scaler, windows, chosen, learning_rate=0.0, clip=options.clip, device=device,
            max_tokens=options.tokens_per_micro_batch, precision=prepared.precision,
        )
        bar.update(1)
        return time.perf_counter() - began

    steps_per_epoch = -(-len(windows) // options.batch_size)
    total, evaluations = plan_steps(options, steps_per_epoch, has_dev=prepared.dev_set is not None)
    evaluations = {step for step in evaluations if step > done or done == 0}
    batches = epoch_batches(windows.length, options.batch_size, options.seed, epoch=0)
    padded = [padded_tokens(windows.length, batch, options.tokens_per_micro_batch) for batch in batches]
    longest, free = int(windows.length.max()), free_memory(device)
    common = dict(steps=total - done, windows=len(windows), free_bytes=free, longest=longest)

    reader.model.train()
    numbers = sum(parameter.numel() for parameter in learning(reader.model).values())
    least = held(device) + numbers * LEARNING[options.optimizer]
    try:
        if free is not None and least > free:  # the first step alone would not fit
            raise torch.OutOfMemoryError
        base, slope = growth(step, windows.length, longest, device)
    except torch.OutOfMemoryError:  # of a GPU; a CPU's comes from the system, and cannot be caught
        return Plan(step_seconds=None, scoring=(0, 0.0), saving=(0, 0.0), peak_bytes=max(least, free or 0), largest=0,
                    tried=False, **common)
    largest = None if free is None or slope <= 0 else max(0, int((ROOM * free - base) / slope))
    most = max(max(sizes) for sizes in padded)
    if free is not None and base + slope * most > free:  # trying it could bring the machine down
        return Plan(step_seconds=None, scoring=(0, 0.0), saving=(0, 0.0), peak_bytes=base + slope * most, largest=largest,
                    tried=False, **common)
    order = np.argsort([sum(sizes) for sizes in padded], kind="stable")
    step(batches[max(range(len(batches)), key=lambda k: max(padded[k]))])  # the most memory
    chosen = order[((np.arange(SAMPLES) + 0.5) * len(order) / SAMPLES).astype(int)]
    for place in chosen[:WARM_UP]:
        step(batches[place])
    seconds, began = [step(batches[place]) for place in chosen], time.perf_counter()
    for batch in batches[: HEAP_STEPS if device.type == "cpu" else 0]:
        if time.perf_counter() - began > HEAP_SECONDS:
            break
        seconds.append(step(batch))
    scoring = len(evaluations), scoring_seconds(prepared)
    saved = range(done - done % options.save_every + options.save_every, total + 1, options.save_every)
    saves = len(evaluations | set(saved) | {total})
    saving = saves, saving_seconds(reader.model, optimizer, scaler)
    peak = max(held(device), base) if device.type == "cuda" else peak_memory_bytes(device)
    return Plan(step_seconds=float(np.mean(seconds)), scoring=scoring, saving=saving, peak_bytes=peak, largest=largest, **common)


def padded_tokens(lengths, batch, max_tokens):
    """Tokens with padding of each micro-batch of a step."""
    return [len(part) * int(lengths[part].max()) for part in split_by_tokens(lengths, batch, max_tokens)]


def growth(step, lengths, longest, device):
    """(bytes held without a micro-batch, bytes each of its tokens adds), from one window and from a few.

    Both are as long as the longest, since attention grows with the square; the first step of all, which also makes the
    optimizer's moments, does not count.
    """
    long = np.argsort(-lengths, kind="stable")
    few = max(2, min(4, len(long)))
    step(long[:1])
    sizes, found = (longest, few * longest), []
    for count in (1, few):
        held(device)
        step(long[:count])
        found.append(held(device))
    slope = max(0.0, (found[1] - found[0]) / (sizes[1] - sizes[0]))
    return found[0] - slope * sizes[0], slope


def scoring_seconds(prepared):
    """Of one evaluation on the dev set, from a spread sample of it."""
    if prepared.dev_set is None:
        return 0.0
    examples, reader = prepared.dev_set.examples, prepared.reader
    places = np.linspace(0, len(examples) - 1, min(len(examples), QUESTIONS)).astype(int)
    sample = [examples[place] for place in places]
    may_lack_answer = reader.settings.null_threshold is not None
    result = evaluate(reader, sample, may_lack_answer=may_lack_answer, threshold=reader.settings.null_threshold, tune=False)
    reader.model.train()
    return result.seconds * len(examples) / len(sample)


def saving_seconds(model, optimizer, scaler):
    """Of one checkpoint, written to a temporary folder that goes again."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        save_checkpoint(Path(folder), LoopState(), model, optimizer, scaler, keep=1)
        return time.perf_counter() - began
