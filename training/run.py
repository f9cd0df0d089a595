"""A run and its folder: what it is (config.json), what happened (log.jsonl), what it started from."""

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX: there two processes in one folder are not told apart
    fcntl = None

import numpy as np
import tokenizers
import torch

from common.errors import InputError
from common.files import read_json, write_atomic, write_json
from data.download import cache_folder, fetch
from data.readers import read_dataset
from data.windows import WindowSettings
from training.state import complete_checkpoints

FORMAT = 1  # of the run folder
FREE_ON_RESUME = ("resume", "out", "recipe", "print_config")
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
LEFTOVER = re.compile(r"\.config\.json\.\d+\.partial")  # all that a kill before the first step can leave


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths inside a run's folder."""

    root: Path

    @property
    def config(self):
        return self.root / "config.json"

    @property
    def log(self):
        return self.root / "log.jsonl"

    @property
    def metrics(self):
        """Written last: a run with metrics.json is finished."""
        return self.root / "metrics.json"

    @property
    def checkpoints(self):
        return self.root / "checkpoints"

    @property
    def best(self):
        return self.root / "best"

    @property
    def model(self):
        return self.root / "model"

    @property
    def finished(self):
        return self.metrics.is_file()

    def read_config(self):
        """The run's config.json; InputError for another format number."""
        values = read_json(self.config)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else None
            raise InputError(f"{self.config}: format {found!r} is unknown here; this version reads format {FORMAT}")
        if not isinstance(values.get("options"), dict):
            raise InputError(f"{self.config}: options: expected an object; the file is not a run's")
        return values

    def append_log(self, record):
        """Add a step's record to log.jsonl."""
        try:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(f"{self.log}: cannot be written ({error.strerror})") from None

    def cut_log(self, step):
        """Drop records after `step`, and a last line that a kill left unfinished: they will come again."""
        if not self.log.is_file():
            return
        kept = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # only the last line can be torn, and its step is not in a checkpoint
                continue
            if record["step"] <= step:
                kept.append(line + "\n")
        write_atomic(self.log, "".join(kept))


def default_out(options):
    """runs/DATA-MODEL, from what was asked for."""
    data = options.dataset or Path(options.train[0]).stem
    model = Path(options.model).name if os.sep in options.model else options.model
    return Path("runs") / f"{data}-{model}"


def settle_options(options):
    """Defaults that depend on other options, and refusals of impossible pairs; returns Options."""
    if options.dataset is None and not options.train:
        if options.dev:
            raise InputError("--dev is given without --train FILE… or --dataset NAME, so there is nothing to train on")
        options = options.replace("default", dataset="sample")
    if options.dataset and options.train:
        raise InputError("--dataset and --train exclude each other: choose the named data or your own files")
    if options.window_overlap is not None and options.window_step is not None:
        raise InputError("--window-overlap and --window-step say the same thing in two ways: give one of them")
    if options.window_overlap is None and options.window_step is None:
        options = options.replace("default", window_overlap=min(128, options.window_length // 3))
    WindowSettings(options.window_length, options.window_overlap, options.window_step).check()
    for name in ("train", "dev"):  # absolute, so that --resume finds them from any folder
        paths = getattr(options, name)
        if paths:
            options = options.replace(options.origins[name], **{name: [path.absolute() for path in paths]})
    if options.out is None:
        options = options.replace("default", out=default_out(options))
    return options


def recorded_options(options, run):
    """On --resume, the run's own options; InputError when the command line asks for others."""
    recorded = run.read_config()["options"]
    asked = options.to_dict()
    differing = [
        name
        for name in asked
        if options.given(name) and name not in FREE_ON_RESUME and asked[name] != recorded.get(name)
    ]
    if differing:
        raise InputError(
            f"{run.root}: holds a different run ({', '.join(f'{n} was {recorded.get(n)!r}' for n in differing)}); "
            f"resume without these options or choose another --out"
        )
    unknown = sorted(set(recorded) - set(asked))
    if unknown:
        raise InputError(f"{run.config}: options.{unknown[0]}: unknown to this version, so the run cannot be resumed")
    return options.replace(str(run.config), **{n: v for n, v in recorded.items() if n not in FREE_ON_RESUME})


def refuse_guessing(options):
    """Refuse --resume of a run that is not there when nothing says what to start instead: a slip in --out, surely."""
    if options.given("out") and not options.given("dataset") and not options.given("train"):
        raise InputError(
            f"{options.out}: there is no run to resume; check --out, or start one there with --dataset NAME or "
            f"--train FILE"
        )


@contextmanager
def enter_folder(run, resume):
    """A context that has the run's folder to itself; a folder made for it and left empty is taken away again.

    Raises InputError when the folder holds something else, cannot be written to, or is another train.py's
    at this moment. The lock is the system's, on the folder, so a kill leaves none behind (POSIX only).
    """
    try:
        made = [path for path in (run.root, *run.root.parents) if not path.exists()]
        run.root.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(run.root)
    except OSError as error:
        raise InputError(f"{run.root}: cannot be made, and --out wants a folder ({error.strerror})") from None
    try:
        check_folder(run, resume)
        yield
    finally:
        if lock is not None:
            os.close(lock)
        for path in made:
            if not path.is_dir() or any(path.iterdir()):
                break
            path.rmdir()


def lock_folder(folder):
    """Lock `folder` until the returned handle is closed; None where the system has no such locks."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(f"{folder}: another train.py is at work in it; wait for it or choose another --out") from None
    except OSError:  # some network file systems cannot lock folders
        os.close(handle)
        return None
    return handle


def check_folder(run, resume):
    """Refuse a folder that holds something else, or that cannot be written to."""
    held = any(not LEFTOVER.fullmatch(path.name) for path in run.root.iterdir())
    if held and not (resume and run.config.is_file()):
        holds = "a finished run" if run.finished else "a run" if run.config.is_file() else "other files"
        advice = "add --resume to continue it, or " if run.config.is_file() else ""
        raise InputError(f"{run.root}: already holds {holds}; {advice}choose another --out, or remove the folder")
    try:
        if not run.finished:
            tempfile.TemporaryFile(dir=run.root).close()
    except OSError as error:
        raise InputError(f"{run.root}: cannot be written to ({error.strerror}); choose another --out") from None


def check_space(run, parameters, keep):
    """Refuse to start when the disk cannot hold the checkpoints: fp32 weights and two moments each, and two models.

    What a resumed run already has there counts as room, since it is replaced.
    """
    needed = 4 * parameters * (3 * (keep + 1) + 2)
    held = sum(path.stat().st_size for path in run.root.rglob("*") if path.is_file())
    free = shutil.disk_usage(run.root).free + held
    if free < needed:
        raise InputError(
            f"{run.root}: the disk has {free / 1e9:.2f} GB free and the run needs {needed / 1e9:.2f} GB for "
            f"{keep + 1} checkpoints and the model; free some space, lower --keep or choose another --out"
        )


def data_files(options, progress):
    """(train paths, dev paths) as absolute paths; downloads a named data set when it is not there."""
    train, dev = options.train, options.dev
    if options.dataset:
        fetched = fetch(options.dataset, cache_folder(os.environ), progress=progress)
        train, dev = [fetched[0]], dev or [fetched[1]]
    return [Path(p).absolute() for p in train], [Path(p).absolute() for p in dev or []]


def read_split(paths, limit, seed, skip_misaligned, what):
    """A Dataset of `paths`, cut to a seeded subset of `limit` questions, in file order."""
    dataset = read_dataset(paths, misaligned="skip" if skip_misaligned else "stop")
    lacking = [example for example in dataset.examples if example.answers is None]
    if lacking:
        raise InputError(f"{paths[0]}: {lacking[0].where}: {what} needs answers, and this question has none given")
    if limit is not None and limit < len(dataset.examples):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(dataset.examples))[:limit])
        dataset.examples = [dataset.examples[k] for k in chosen]
    return dataset


def file_hash(path):
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def environment(device, precision):
    """What bit-identical repetition depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tokenizers": tokenizers.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "precision": precision,
    }


def describe_run(options, source, files, device, precision):
    """The contents of config.json."""
    return {
        "format": FORMAT,
        "options": options.to_dict(),
        "model": {"name": source.name, "origin": source.origin, "revision": source.revision},
        "model_files": {n: file_hash(source.folder / n) for n in MODEL_FILES if (source.folder / n).is_file()},
        "data": {
            part: [{"path": str(path), "sha256": file_hash(path)} for path in paths]
            for part, paths in zip(("train", "dev"), files, strict=True)
        },
        "environment": environment(device, precision),
    }


def write_or_compare(run, description):
    """Write config.json for a new run; for a resumed one compare, and return sentences on what changed.

    Raises InputError when the data, the model's revision or its tokenizer are no longer those of the run.
    """
    if not run.config.is_file():
        write_json(run.config, description)
        return []
    recorded = run.read_config()
    parts = {"data": "data files", "model": "model", "model_files": "model's config.json or tokenizer"}
    for part, name in parts.items():
        if part in recorded and recorded[part] != description[part]:
            raise InputError(
                f"{run.config}: the {name} of this run changed since it began, so it cannot be resumed; "
                f"restore what was or start a new --out"
            )
    now, then = description["environment"], recorded.get("environment", {})
    changed = [f"{key} {then.get(key)} -> {value}" for key, value in now.items() if then.get(key) != value]
    if changed:
        return [f"the machine is not the same ({', '.join(changed)}): the result may differ in the last bits"]
    return []


def newest_finished(folder):
    """The `model/` of the newest finished run under `folder`, or None."""
    runs = [RunFolder(path) for path in Path(folder).glob("*")] if Path(folder).is_dir() else []
    finished = [run for run in runs if run.finished and run.model.is_dir()]
    return max(finished, key=lambda run: run.metrics.stat().st_mtime).model if finished else None


def has_checkpoint(run):
    """Whether there is a complete checkpoint to resume from."""
    return bool(complete_checkpoints(run.checkpoints))


def peak_memory_bytes(device):
    """Most memory this process held: on the GPU when there is one, else resident; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # POSIX only
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
