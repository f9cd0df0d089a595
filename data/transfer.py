"""One file over HTTP, in as many parts as it takes: stalls, cuts and changes on the way are survived.

The bytes so far live in a `Partial`, which a later call, or a later process, continues. What the
content should be is not this module's business, except for its length.
"""

import errno
import http.client
import json
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request

from common.files import write_json

CHUNK_BYTES = 1 << 16
# Bounds a file whose size is not known, so that a mad server cannot fill the disk; the largest is 42 MB.
LARGEST_BYTES = 1 << 28
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0


class Refused(Exception):
    """The download cannot work, however often it is tried."""


class Interrupted(Exception):
    """This transfer broke; another may succeed."""


class Unreachable(Interrupted):
    """There was no connection at all."""


class Partial:
    """The bytes so far, and beside them a note of the address and version they came from."""

    def __init__(self, path, url):
        """Take up what is at `path`, if it came from `url`; otherwise delete it."""
        self.path = path
        self._note = path.with_name(f"{path.name}.origin")
        self.url = url
        self.validator = None
        if path.is_file() and self._note.is_file():
            try:
                note = json.loads(self._note.read_text("utf-8"))
            except ValueError:
                note = None
            if isinstance(note, dict) and note.get("url") == url:
                self.validator = note.get("validator")
                return
        self.discard()

    @property
    def size(self):
        return self.path.stat().st_size if self.path.is_file() else 0

    def begin(self, validator):
        """Start from zero bytes of this version; emptied first, so that the note never lies about bytes."""
        self.path.write_bytes(b"")
        write_json(self._note, {"url": self.url, "validator": validator})
        self.validator = validator

    def discard(self):
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self.validator = None

    def move_to(self, target):
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.path, target)
        self._note.unlink(missing_ok=True)


def download(partial, *, size, label, progress, timeout_seconds, attempts):
    """Repeat transfers, with growing waits, until `partial` has all bytes that the server promised.

    `size` is the length the file must have, or None. `progress` and the two limits are those of
    `data.download.fetch`; `label` is the bar's `desc`. Only failures in a row count: a transfer that
    got further than any before starts the count anew. Refused when the file cannot be had.
    """
    furthest, failures = partial.size, 0
    while True:
        try:
            return _transfer(partial, size, label, progress, timeout_seconds)
        except Unreachable as error:
            if furthest == 0:  # no network: waiting would only delay the sentence that says so
                raise Refused(str(error)) from None
            reason = error
        except Interrupted as error:
            reason = error
        failures = 1 if partial.size > furthest else failures + 1
        furthest = max(furthest, partial.size)
        if failures >= attempts:
            raise Refused(f"{reason} ({failures} attempts)")
        time.sleep(min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (failures - 1)))


def _transfer(partial, size, label, progress, timeout_seconds):
    """Make one request for what `partial` lacks, and append it.

    Example: 100 of 250 bytes are there, with the ETag "a" noted. We send `Range: bytes=100-` and
    `If-Range: "a"`. Unchanged, the server answers 206 with `Content-Range: bytes 100-249/250`;
    changed, or knowing no ranges, it answers 200 with all 250 bytes and we start over.
    """
    if partial.size > (LARGEST_BYTES if size is None else size):
        partial.discard()
    offset = partial.size
    if offset and offset == size:
        return
    response = _open(partial, offset, timeout_seconds)
    if response is None:
        return
    with response:
        start, total = _extent(response)
        version = _validator(response.headers)
        if start not in (0, offset) or (start and version not in (None, partial.validator)):
            partial.discard()
            raise Interrupted("the file changed at the server between two parts")
        _refuse_length(total, size)
        if start == 0:
            partial.begin(version)
        bar = progress(total=total, initial=start, desc=label) if progress else None
        try:
            _append(partial, _pieces(response, start, total, timeout_seconds), size, bar)
        finally:
            if bar is not None:
                bar.close()


def _refuse_length(length, size):
    """Refuse a Content-Length (None when there is none) that cannot be right."""
    if length is not None and size not in (None, length):
        raise Refused(f"the server offers {length:,} bytes, and the file should have {size:,}")
    if length is not None and length > LARGEST_BYTES:
        raise Refused(f"the server offers {length:,} bytes, and no file here has more than {LARGEST_BYTES:,}")


def _append(partial, pieces, size, bar):
    """Write the pieces to the end of `partial`; the `size` is for a server that gives no Content-Length."""
    limit = LARGEST_BYTES if size is None else size
    with open(partial.path, "ab") as output:
        for piece in pieces:
            if output.tell() + len(piece) > limit:
                partial.discard()
                raise Refused(f"the server sends more than the {limit:,} bytes the file may have")
            output.write(piece)
            if bar is not None:
                bar.update(len(piece))
        if size is not None and output.tell() < size:
            raise Interrupted(f"the connection ended {size - output.tell():,} bytes too early")


def _open(partial, offset, timeout_seconds):
    """Return the response, or None when the server says that `partial` is already whole."""
    headers = {"User-Agent": "bareqa"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if partial.validator:
            headers["If-Range"] = partial.validator
    try:
        request = urllib.request.Request(partial.url, headers=headers)
        return urllib.request.urlopen(request, timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:
            if error.headers.get("Content-Range") == f"bytes */{offset}":
                return None
            partial.discard()
            raise Interrupted("the server has no bytes after those already here") from None
        passing = error.code >= 500 or error.code in (408, 425, 429)
        kind = Interrupted if passing else Refused
        raise kind(f"the server answered {error.code} {' '.join(str(error.reason).split())}") from None
    except ValueError as error:  # of urllib, for an address that is none, which a redirect may give
        raise Refused(f"the server sends us to an address that cannot be read ({error})") from None
    except (OSError, http.client.HTTPException) as error:
        raise _network_error(error, timeout_seconds) from None


def _extent(response):
    """Return (first byte, length of the whole file or None) of what a response carries."""
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    if response.status == 206:  # the part may end before the file does, and the file's length be unknown
        parts = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if parts and int(parts[1]) <= int(parts[2]) and (parts[3] == "*" or int(parts[2]) < int(parts[3])):
            return int(parts[1]), None if parts[3] == "*" else int(parts[3])
    raise Refused(f"the server answered {response.status}, which is no whole file and no part of one")


def _pieces(response, reached, total, timeout_seconds):
    """Yield the body as it comes, from byte `reached`; Interrupted when it stalls or ends before `total`."""
    while total is None or reached < total:
        wanted = CHUNK_BYTES if total is None else min(CHUNK_BYTES, total - reached)
        try:
            piece = response.read1(wanted)  # read() would lose what came before a stall
        except (OSError, http.client.HTTPException) as error:
            raise _network_error(error, timeout_seconds) from None
        if not piece:
            break
        reached += len(piece)
        yield piece
    if total is not None and reached < total:
        raise Interrupted(f"the connection ended {total - reached:,} bytes too early")


def _network_error(error, timeout_seconds):
    """Return the Refused or Interrupted that an exception of urllib or http.client stands for."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Refused(f"the server's certificate is not trusted ({cause.verify_message})")
    if isinstance(cause, TimeoutError):
        return Interrupted(f"nothing came for {timeout_seconds:g} seconds")
    if isinstance(cause, socket.gaierror):
        return Unreachable("the name of the server cannot be resolved")
    text = " ".join((getattr(cause, "strerror", None) or str(cause) or type(cause).__name__).split())
    if getattr(cause, "errno", None) in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED):
        return Unreachable(text)
    return Interrupted(text)


def _validator(headers):
    """Return what names this version of the file in an If-Range header, or None (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")  # a weak W/"..." is not allowed
