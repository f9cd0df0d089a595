"""A long sequence that stands on the disk."""

import pickle
import tempfile
from array import array


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
