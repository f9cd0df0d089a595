"""Reading with clear refusals, writing so that a crash never leaves half a file."""

import json
import os
import shutil
from pathlib import Path

from common.errors import InputError


def read_bytes(path):
    """Return the bytes of `path`; InputError when it is missing, a folder, a device or unreadable."""
    path = Path(path)
    try:
        if path.is_dir():  # raises for a name too long, or inside a folder one may not enter
            raise InputError(f"{path}: this is a folder, and a file is expected here")
        if path.is_char_device() and str(path) not in ("/dev/stdin", os.devnull):  # /dev/zero has no end
            raise InputError(f"{path}: this is a device, and a file is expected here")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path):
    """Return the text of a UTF-8 file, without a byte order mark; line ends are kept as they are.

    Offsets of answers count the characters of the file's own strings, so nothing else is touched.
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 (byte {error.start} is 0x{data[error.start]:02x}); "
            f"convert it first, for example with: iconv -t UTF-8"
        ) from None


def parse_json(text, source, line=None):
    """Return the value that `text` (read from `source`) holds; strict: NaN and Infinity are refused.

    line: the number of the one line of `source` that `text` is, where each line is a value of its own.
    """
    place, whole = (source, "file") if line is None else (f"{source}: line {line}", "line")

    def refuse_constant(name):
        raise InputError(f"{place}: holds {name}, which is not JSON; write a number or null instead")

    try:
        return json.loads(text, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        if not text.strip():
            raise InputError(f"{place}: the {whole} is empty, and JSON is expected") from None
        at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        hint = f"; the {whole} looks truncated" if at_end else ""
        raise InputError(
            f"{source}: not JSON at line {line or error.lineno}, column {error.colno}: {error.msg}{hint}"
        ) from None
    except InputError:
        raise
    except ValueError:  # Python converts no more than 4,300 digits
        raise InputError(f"{place}: holds a number with too many digits to be read") from None
    except RecursionError:
        raise InputError(f"{place}: JSON nested too deeply to be a data set") from None


def read_json(path):
    """Return the value a JSON file holds; InputError names the place of a fault."""
    return parse_json(read_text(path), path)


def sync_folder(path):
    """Ask the disk to remember the names in a folder (POSIX only; elsewhere there is no such call)."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_target(path):
    """InputError when `path` exists and is no regular file (nor a link to one): a rename would replace it."""
    exists = os.path.exists(path) or os.path.lexists(os.path.realpath(path))  # the latter: links in a circle
    if exists and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "not a regular file"
        raise InputError(f"{path}: cannot be written (it is {kind}); name another file")


def write_atomic(path, data):
    """Write text or bytes, or an iterable of bytes, under a temporary name beside `path`, then rename: all or nothing.

    A symbolic link stays, and the file it leads to is written. InputError when that exists and is
    not a regular file, and when the disk refuses.
    """
    check_target(path)
    target = Path(os.path.realpath(path))
    data = data.encode("utf-8") if isinstance(data, str) else data
    chunks = [data] if isinstance(data, (bytes, bytearray, memoryview)) else data
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        if os.path.exists(temporary):  # Path.exists would itself raise for a name that is too long
            temporary.unlink()
    sync_folder(target.parent)


def write_json(path, value):
    """Write `value` as indented UTF-8 JSON, letters unescaped, all or nothing."""
    write_atomic(path, json_bytes(value) + b"\n")


def json_bytes(value):
    """Indented UTF-8 JSON; a lone surrogate becomes its JSON escape."""
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False).encode("utf-8", "backslashreplace")


def write_pairs(path, pairs):
    """Write what `write_json` would of dict(pairs), keys all different, holding one pair at a time."""

    def chunks():
        first = True
        for key, value in pairs:
            yield b"{" if first else b","
            yield b"\n  " + json_bytes(key) + b": " + json_bytes(value).replace(b"\n", b"\n  ")
            first = False
        yield b"{}\n" if first else b"\n}\n"

    write_atomic(path, chunks())


def write_folder(path, fill):
    """Make the folder `path` whole or not at all: `fill(temporary)` writes it, a rename shows it.

    An older folder of that name is moved aside first and removed last, so that at each moment
    either the old or the new one can be found.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    aside = path.with_name(f".{path.name}.old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        sync_folder(temporary)
        shutil.rmtree(aside, ignore_errors=True)
        if path.exists():
            os.rename(path, aside)
        os.rename(temporary, path)
        sync_folder(path.parent)
        shutil.rmtree(aside, ignore_errors=True)
    except InputError:  # of what `fill` calls
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
