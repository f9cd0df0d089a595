"""Many questions answered by all ranks, the answers kept on the disk of the first."""

from contextlib import nullcontext

import torch.distributed as dist

from common.spill import Spill
from training.progress import Stopped
from training.run import file_hash

CHUNK = 256  # predictions in one message


def require_same_work(ranks, paths, reader):
    """InputError when a rank reads other files of questions than the first one, or would answer with another model.

    The smallest and the largest number of every tensor stand for the weights: they are the same on any machine, and no
    two trained models have them in common.
    """
    if ranks.size == 1:
        return
    ranks.require_same("questions", [file_hash(path) for path in paths])
    extremes = [
        tuple(map(float, one.detach().float().aminmax())) for one in reader.model.parameters() if one.numel()
    ]
    ranks.require_same("model", (reader.report.fingerprint, reader.settings, extremes))


def predict_together(ranks, reader, examples, *, progress=None, **settings):
    """A Spill of the Prediction of each example, in order, on the first rank; None on the others.

    Each rank answers its `ranks.share`; `settings` go to `reader.predict`. progress counts this rank's share. When a
    rank was asked to stop, all raise Stopped.
    """
    found, stopped = Spill(), False
    if ranks.sharded:  # whose layers are put together pass by pass, on all ranks in the same order
        settings["lanes"] = 1
    with in_step(ranks, reader):
        try:
            found.extend(reader.predict(ranks.share(examples), progress=progress, **settings))
        except Stopped:
            stopped = True
    if ranks.largest(int(stopped)):
        raise Stopped
    if ranks.size == 1:
        return found
    if not ranks.first:
        send(found)
        return None
    for rank in range(1, ranks.size):
        found.extend(received(rank))
    assert [p.id for p in found] == [example.id for example in examples]
    return found


def send(predictions):
    """Give all to the first rank, a chunk at a time, then an empty one."""
    for first in [*range(0, len(predictions), CHUNK), len(predictions)]:
        chunk = [predictions[place] for place in range(first, min(first + CHUNK, len(predictions)))]
        dist.send_object_list([chunk], dst=0)


def received(rank):
    """What `send` gives on `rank`, one after the other."""
    while True:
        message = [None]
        dist.recv_object_list(message, src=rank)
        if not message[0]:
            return
        yield from message[0]


def in_step(ranks, reader):
    """A context for passes that ranks run unequally often; only a sharded model minds."""
    if not ranks.sharded:
        return nullcontext()
    from training.sharding import InStep

    return InStep(ranks, reader.model)
