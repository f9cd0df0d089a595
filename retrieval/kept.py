"""Vectors of passages in a file, so that the next start encodes only what is new in the documents.

A safetensors file with a row for each different passage of one collection:

    texts    (n, 32) uint8    SHA-256 of the passage's text
    vectors  (n, D) fp32      its vector
    whole    (32,) uint8      SHA-256 of the two above: a file that was cut off or changed is told from a whole one

It says nothing of how the vectors were made; its name does (see `kept_file`). Rows of passages that are gone are dropped.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.errors import InputError
from common.files import read_bytes, write_atomic


def kept_file(cache, documents, embedder):
    """The file for a folder of documents and an Embedder, in the folder `cache`; another model has another file."""
    name = f"{os.path.realpath(documents)}\n{embedder.fingerprint}"
    return Path(cache) / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.safetensors"


def kept_vectors(texts, embedder, path, progress=None):
    """((P, D) unit vectors of passages, notices); those that the file knows are not made again.

    The file is replaced, all or nothing, when it does not hold just these passages. One that is damaged is made anew,
    and one that cannot be written is done without: either is one notice.
    """
    keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
    notices = []
    try:
        known = read_kept(path, embedder.size)
    except InputError as error:
        known, notices = {}, [f"{error}; it is made anew"]
    wanted = dict(zip(keys, texts, strict=True))
    new = [key for key in wanted if key not in known]
    if progress is not None:
        progress.update(len(texts) - len(new))
    made = dict(zip(new, embedder([wanted[key] for key in new], progress), strict=True))
    if wanted and (made or len(wanted) != len(known)):
        try:
            write_kept(path, {key: made[key] if key in made else known[key] for key in wanted})
        except InputError as error:
            notices.append(f"vectors are not kept for the next start: {error}")
    rows = [made[key] if key in made else known[key] for key in keys]
    return np.stack(rows) if rows else np.zeros((0, embedder.size), np.float32), notices


def read_kept(path, size):
    """{SHA-256 of a text: its vector} of a file, empty where there is none; InputError for one that is damaged."""
    if not os.path.lexists(path):
        return {}
    damaged = InputError(f"{path}: vectors of documents, but not as they were written")
    try:
        tensors = load(read_bytes(path))
        texts, vectors, whole = (tensors[name] for name in ("texts", "vectors", "whole"))
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise damaged from None
    fits = vectors.dtype == np.float32 and texts.dtype == np.uint8 and vectors.shape == (len(texts), size)
    if not fits or whole.tobytes() != digest(texts, vectors):
        raise damaged
    return {text.tobytes(): vector for text, vector in zip(texts, vectors, strict=True)}


def write_kept(path, rows):
    """Write {SHA-256 of a text: its vector}; others than the owner may not look: vectors tell much of their texts."""
    texts = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), 32)
    vectors = np.stack([*rows.values()])  # (n, D)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made ({error.strerror})") from None
    whole = np.frombuffer(digest(texts, vectors), np.uint8)
    write_atomic(path, save({"texts": texts, "vectors": vectors, "whole": whole}))


def digest(texts, vectors):
    """SHA-256 of both arrays."""
    return hashlib.sha256(texts.tobytes() + vectors.tobytes()).digest()
