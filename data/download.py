"""The named data sets: where they come from, and how they get into a cache, checked.

A file takes its place only after its length, MD5 or counts were found right; until then it is
`<file>.partial`, which a later call continues. Nothing here prints; progress is the caller's.
"""

import difflib
import hashlib
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from common.files import read_json
from data.transfer import Partial, Refused, download

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
PERSIANQA_COMMIT = "0026e13caabfe37fe37f6e116b163182bc36286d"
PERSIANQA = f"https://raw.githubusercontent.com/sajjjadayobi/PersianQA/{PERSIANQA_COMMIT}/dataset"
SAMPLE_FOLDER = Path(__file__).resolve().parent / "sample"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at `url`, and what is known of its content; what is None is not checked."""

    name: str
    url: str
    md5: str | None = None
    size: int | None = None
    questions: int | None = None
    unanswerable: int | None = None


DATASETS = {
    "squad": (
        RemoteFile("train-v1.1.json", f"{SQUAD}/train-v1.1.json",
                   md5="981b29407e0affa3b1b156f72073b945", size=30_288_272),
        RemoteFile("dev-v1.1.json", f"{SQUAD}/dev-v1.1.json",
                   md5="3e85deb501d4e538b6bc56f786231552", size=4_854_279),
    ),
    "squad_v2": (
        RemoteFile("train-v2.0.json", f"{SQUAD}/train-v2.0.json", md5="62108c273c268d70893182d5cf8df740"),
        RemoteFile("dev-v2.0.json", f"{SQUAD}/dev-v2.0.json", md5="246adae8b7002f8679c027697b0b7cf8"),
    ),
    # Its authors publish no checksum: the commit pins the content, the counts prove it whole.
    "persianqa": (
        RemoteFile("pqa_train.json", f"{PERSIANQA}/pqa_train.json", questions=9_008),
        RemoteFile("pqa_test.json", f"{PERSIANQA}/pqa_test.json", questions=930, unanswerable=279),
    ),
}
NAMES = (*DATASETS, "sample")


def cache_folder(environ):
    """Return the folder for downloads: $BAREQA_CACHE, else `bareqa` in the platform's cache folder."""
    if environ.get("BAREQA_CACHE"):
        return Path(environ["BAREQA_CACHE"]).expanduser()
    usual = environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(usual):  # the XDG specification: a relative path is to be ignored
        usual = environ.get("LOCALAPPDATA", "") if sys.platform == "win32" else ""
    return (Path(usual) if usual else Path("~/.cache").expanduser()) / "bareqa"


def fetch(name, cache, *, progress=None, base_url=None, timeout_seconds=30, attempts=5):
    """Return (train path, dev path) of the data set `name`, downloading into `cache`/`name` what is missing.

    Files already there are checked again, which is cheap, and replaced when they are damaged.
    `progress(total=, initial=, desc=)`, in bytes, makes an object with tqdm's `update` and `close`;
    total is None when the server does not say. `base_url` replaces the official folder (a mirror).
    `attempts` transfers in a row may bring nothing new, each waiting up to `timeout_seconds` for a byte.
    InputError: the name is unknown, or a file cannot be had; it then says which file to put where.
    """
    if name == "sample":
        return _sample_files()
    if name not in DATASETS:
        raise InputError(_unknown(name))
    folder = Path(cache).expanduser().absolute() / name
    files = DATASETS[name]
    if base_url is not None:
        files = [_moved(file, base_url) for file in files]
    for file in files:
        try:
            _provide(file, folder, progress, timeout_seconds, attempts)
        except Refused as error:
            raise InputError(f"cannot download {file.url}: {error}; {_by_hand(files, folder)}") from None
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be used as the folder for downloads ({error.strerror or error}); "
                f"the environment variable BAREQA_CACHE names another"
            ) from None
    return tuple(folder / file.name for file in files)


def find_fault(path, expected):
    """Return how the file differs from the RemoteFile `expected`, as the end of a sentence, or None."""
    size = path.stat().st_size
    if expected.size is not None and size != expected.size:
        return f"has {size:,} bytes instead of {expected.size:,}"
    if expected.md5 is not None:
        with open(path, "rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if md5 != expected.md5:
            return f"has the MD5 {md5} instead of {expected.md5}"
    if expected.questions is None:
        return None
    try:
        questions, unanswerable = count_questions(read_json(path))
    except InputError:
        return "is not JSON"
    except (KeyError, TypeError):
        return "is JSON of another kind than a data set"
    if questions != expected.questions:
        return f"holds {questions:,} questions instead of {expected.questions:,}"
    if expected.unanswerable is not None and unanswerable != expected.unanswerable:
        return f"holds {unanswerable:,} questions without answers instead of {expected.unanswerable:,}"
    return None


def count_questions(document):
    """Return (questions, those without answers) of a nested SQuAD document.

    KeyError or TypeError when it is something else.
    """
    questions = unanswerable = 0
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                questions += 1
                unanswerable += not question["answers"]
    return questions, unanswerable


def _sample_files():
    paths = SAMPLE_FOLDER / "train.json", SAMPLE_FOLDER / "dev.json"
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: the sample data set is part of the project, and this file is missing")
    return paths


def _unknown(name):
    near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"there is no data set named {name!r}{hint}; the named ones are {', '.join(NAMES)}"


def _moved(file, base_url):
    url = f"{base_url.rstrip('/')}/{file.name}"
    return RemoteFile(file.name, url, file.md5, file.size, file.questions, file.unanswerable)


def _by_hand(files, folder):
    """Say which of the files to put where, when they cannot be downloaded."""
    missing = [file for file in files if _state(folder / file.name, file) != "good"]
    listed = " and ".join(f"{file.name} (from {file.url})" for file in missing)
    return f"on a machine without network put {listed} into {folder}"


def _state(path, expected):
    """Return "good", "missing", or what is wrong with the file."""
    return (find_fault(path, expected) or "good") if path.is_file() else "missing"


def _provide(file, folder, progress, timeout_seconds, attempts):
    """Make sure that the whole, checked file is in `folder`; Refused when that cannot be done."""
    target = folder / file.name
    if _state(target, file) == "good":  # before anything is written: the folder may be read-only
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / f".{file.name}.lock"):
        state = _state(target, file)  # another process may have been faster
        if state == "good":
            return
        partial = Partial(folder / f"{file.name}.partial", file.url)
        try:
            fault = _download_checked(file, partial, progress, timeout_seconds, attempts)
        except Refused as error:
            damaged = "" if state == "missing" else f" (and the {file.name} in {folder} {state})"
            raise Refused(f"{error}{damaged}") from None
        if fault is not None:
            raise Refused(f"what arrived {fault}, also after starting over, and was deleted")
        partial.move_to(target)


def _download_checked(file, partial, progress, timeout_seconds, attempts):
    """Fill `partial`, starting over once if the result is wrong; return its fault or None."""
    for _ in range(2):  # the second time from zero: the first may have continued something damaged
        download(partial, size=file.size, label=file.name, progress=progress,
                 timeout_seconds=timeout_seconds, attempts=attempts)
        fault = find_fault(partial.path, file)
        if fault is None:
            return None
        partial.discard()
    return fault


@contextmanager
def _lock(path):
    """Hold the file `path` locked; a second process waits. The system frees it when a process dies."""
    with open(path, "a+b") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            while not _locked_on_windows(file):
                time.sleep(0.5)
        yield


def _locked_on_windows(file):
    file.seek(0)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True
