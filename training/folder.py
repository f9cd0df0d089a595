"""A run's folder: its paths, its lock, its log, and whether it may be used."""

import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX: there two processes in one folder are not told apart
    fcntl = None

from common.errors import InputError
from common.files import read_json, write_atomic
from training.state import complete_checkpoints

FORMAT = 1  # of the run folder
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
    def losses(self):
        """What each window lost at each step, where --record-losses asked for it (training/losses.py)."""
        return self.root / "losses.bin"

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

    def steps_done(self):
        """Steps that the newest checkpoint stands after; 0 without one."""
        from training.state import complete_checkpoints

        whole = complete_checkpoints(self.checkpoints)
        return int(whole[-1].name.removeprefix("step-")) if whole else 0

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
            f"{run.root}: the disk has {free / 1e6:,.1f} MB free and the run needs {needed / 1e6:,.1f} MB for "
            f"{keep + 1} checkpoints and the model; free some space, lower --keep or choose another --out"
        )


def newest_finished(folder):
    """The `model/` of the newest finished run under `folder`, or None."""
    runs = [RunFolder(path) for path in Path(folder).glob("*")] if Path(folder).is_dir() else []
    finished = [run for run in runs if run.finished and run.model.is_dir()]
    return max(finished, key=lambda run: run.metrics.stat().st_mtime).model if finished else None


def has_checkpoint(run):
    """Whether there is a complete checkpoint to resume from."""
    return bool(complete_checkpoints(run.checkpoints))
