"""Long sequences that stand on the disk."""

import os
import pickle
import tempfile
from array import array

import numpy as np


class Spill:
    """A sequence of any picklable things in a temporary file of its own, 8 bytes of memory each.

    The file is where Python puts such files (TMPDIR), and gone with the object.
    """

    def __init__(self, items=()):
        self._file = tempfile.TemporaryFile()
        self._places = array("q")
        self._end = 0
        self.extend(items)

    def extend(self, items):
        """Add things at the end."""
        for item in items:
            data = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
            self._file.seek(self._end)
            self._file.write(data)
            self._places.append(self._end)
            self._end += len(data)

    def __len__(self):
        return len(self._places)

    def __getitem__(self, place):
        self._file.seek(self._places[place])
        return pickle.load(self._file)

    def __iter__(self):
        for place in range(len(self)):
            yield self[place]


class ArrayFile:
    """A numpy array of rows in a temporary file: rows are added at the end and read as slices.

    Read, not mapped: pages of a mapped file count as memory of whoever touched them.
    """

    def __init__(self, dtype, row=()):
        self._file = tempfile.TemporaryFile(buffering=0)
        self._dtype, self._row = np.dtype(dtype), tuple(row)
        self._row_bytes = self._dtype.itemsize * int(np.prod(row, dtype=int))
        self._length = 0

    def append(self, rows):
        """Add the rows of an array."""
        data = memoryview(np.asarray(rows, self._dtype).tobytes())
        while data:
            data = data[self._file.write(data) :]
        self._length += len(rows)

    def __len__(self):
        return self._length

    def __getitem__(self, span):
        first, stop, step = span.indices(self._length)
        assert step == 1
        count = max(0, stop - first)
        data = os.pread(self._file.fileno(), count * self._row_bytes, first * self._row_bytes) if count else b""
        return np.frombuffer(data, self._dtype).reshape(count, *self._row)
