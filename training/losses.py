"""What each question's windows lost at each step: a compact file that --resume goes on with (python -m inside.data)."""

import numpy as np

from common.errors import InputError
from common.files import read_bytes, write_atomic
from answering.settings import ReaderSettings

RECORD = np.dtype([("step", "<u4"), ("epoch", "<u4"), ("example", "<u4"), ("loss", "<f4")])  # 16 bytes a window


class LossFile:
    """Appends a RECORD per window and step. example_of: (W,) the example that each window belongs to."""

    def __init__(self, path, example_of):
        self.path, self.example_of, self.taken = path, example_of, []

    def take(self, windows, losses):
        """Keep the losses (B,) of some windows of the step that is going on."""
        self.taken.append((self.example_of[windows], losses.float().cpu().numpy()))

    def write(self, step, epoch):
        """Append what was taken, as of this step; InputError when the disk refuses."""
        records = np.concatenate([self.records(step, epoch, *pair) for pair in self.taken])
        self.taken = []
        try:
            with open(self.path, "ab") as file:
                file.write(records.tobytes())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from None

    @staticmethod
    def records(step, epoch, examples, losses):
        found = np.zeros(len(examples), RECORD)
        found["step"], found["epoch"], found["example"], found["loss"] = step, epoch, examples, losses
        return found

    def cut(self, step):
        """Drop records after `step`, and a last one that a kill left unfinished: they will come again."""
        if self.path.is_file():
            records = read_losses(self.path)
            write_atomic(self.path, records[records["step"] <= step].tobytes())


def loss_file(run, options, reader, windows, ranks):
    """The run's LossFile where --record-losses asks for one, else None; InputError where nothing could be recorded."""
    if not options.record_losses:
        return None
    if ranks.size > 1:
        raise InputError("--record-losses: one process keeps them; train without torchrun")
    if not isinstance(reader.settings, ReaderSettings):
        raise InputError("--record-losses: kept of windows with a span head, and this model says its answers")
    return LossFile(run.losses, windows.example)


def read_losses(path):
    """The whole records of a file, in the order they were written."""
    data = read_bytes(path)
    return np.frombuffer(data[: len(data) // RECORD.itemsize * RECORD.itemsize], RECORD)
