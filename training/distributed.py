"""Several processes that train or answer as one: who takes which windows, and what they tell each other.

`torchrun --nproc-per-node N train.py …` starts N processes ("ranks") that all run the same code. Each step's windows are those
that one process would take; every rank takes a part, its loss divided by the count of the whole step, and the gradients
are summed over ranks. So N changes neither the data's order nor the gradient, and a checkpoint of one N resumes on another.
Random numbers of a step depend on (seed, step, rank) alone, so a checkpoint needs no generator of another rank.
"""

import contextlib
import os
import sys
import warnings
from dataclasses import asdict, dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from common.errors import InputError, RankLost
from data.batches import split_by_tokens
from model.precision import choose_device

PATIENCE = timedelta(minutes=30)  # how long a rank waits for another one


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of this run, seen from one of them. Alone, with the defaults, nothing is sent and nothing changes.

    rank: this one's number; 0 is the first, which alone prints and writes. local_rank: its number on its machine.
    sharded: parameters, gradients and moments are split over the ranks (`training.sharding`), not copied.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    sharded: bool = False

    @property
    def first(self):
        return self.rank == 0

    def device(self, name):
        """The torch.device that --device `name` means for this rank: on CUDA, each rank of a machine has its own."""
        device = choose_device(name)
        if self.size == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise InputError(f"--device {name}: one GPU cannot be shared by {self.size} processes; use --device cuda")
        device = choose_device(f"cuda:{self.local_rank}")
        torch.cuda.set_device(device)
        return device

    def parts(self, lengths, windows, max_tokens):
        """This rank's micro-batches of a step: a list of (indices, counts).

        lengths: (W,) of all windows; windows: indices of the whole step, the same on each rank. Ranks take turns
        in the order of length, so their work is alike. Where a rank has too few (the last batch of an epoch; or
        sharded, where all ranks must run the model equally often), it repeats the shortest window with counts False:
        that one is computed and weighs nothing.
        """
        if self.size == 1:
            return [(part, True) for part in split_by_tokens(lengths, windows, max_tokens)]
        ordered = windows[np.argsort(-lengths[windows], kind="stable")]
        shares = [split_by_tokens(lengths, ordered[rank :: self.size], max_tokens) for rank in range(self.size)]
        mine = [(part, True) for part in shares[self.rank]]
        wanted = max(map(len, shares)) if self.sharded else max(1, len(mine))
        return mine + [(ordered[-1:], False)] * (wanted - len(mine))

    def share(self, examples):
        """This rank's run of `examples`; all ranks have about the same number of characters to read."""
        if self.size == 1 or not examples:
            return examples
        read = np.cumsum([len(example.context or "") + len(example.question) + 1 for example in examples])
        edges = np.searchsorted(read, read[-1] * np.arange(1, self.size) / self.size)
        edges = [0, *edges.tolist(), len(examples)]
        return examples[edges[self.rank] : edges[self.rank + 1]]

    def learner(self, model):
        """`model` for `training.step`, with gradients shared among ranks. Sharding changes its parameters in place."""
        if self.size == 1:
            return model
        if self.sharded:
            from training.sharding import spread

            return spread(model)
        # all ranks read the same files and draw the same head (`require_same`), so nothing is sent to begin with
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # its successor is too new a name
            return torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False, init_sync=False)

    @property
    def divided(self):
        """What the learner divides the sum of the ranks' gradients by: DDP takes the mean, sharding is told not to.

        A hook in Python that sums instead can hang the end of a process: torch joins gloo's threads while it holds
        the GIL that their last callback waits for.
        """
        return 1 if self.sharded else self.size

    def accumulating(self, learner, last):
        """A context for one micro-batch's forward and backward: gradients are sent with the last one alone."""
        if self.sharded:
            learner.set_requires_gradient_sync(last)
        return contextlib.nullcontext() if self.size == 1 or self.sharded or last else learner.no_sync()

    def whole(self, model, optimizer=None, write_back=False):
        """A context in which parameters and moments are plain tensors, for files; see `training.sharding.whole`."""
        if not self.sharded:
            return contextlib.nullcontext()
        from training.sharding import whole

        return whole(model, optimizer, everywhere=write_back or self.first, write_back=write_back)

    def whole_tensor(self, tensor):
        """A result that may be split over the ranks, whole."""
        return tensor.full_tensor() if self.sharded else tensor

    def seed(self, seed, step):
        """Begin the random numbers of a step: other dropout on each rank, the same again after a resume."""
        if self.size > 1:
            torch.manual_seed(int(np.random.SeedSequence([seed, step, self.rank]).generate_state(1, np.uint64)[0] >> 1))

    def sums(self, *numbers):
        """Each number summed over ranks."""
        return self.reduced(numbers, dist.ReduceOp.SUM)

    def largest(self, number):
        """The largest that any rank has of a whole number."""
        return int(self.reduced([number], dist.ReduceOp.MAX)[0])

    def reduced(self, numbers, operation):
        if self.size == 1:
            return list(numbers)
        both = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(both, operation)
        return both.tolist()

    def once(self, function, *arguments):
        """What `function` returns on the first rank, which alone calls it; the others wait.

        When it refuses its input there, the first rank raises InputError and the others leave with exit code 2.
        """
        if self.size == 1:
            return function(*arguments)
        told, refusal = [None, True], None
        if self.first:
            try:
                told = [function(*arguments), False]
            except InputError as error:
                refusal = error
        dist.broadcast_object_list(told, src=0)
        if refusal:
            raise refusal
        if told[1]:
            raise SystemExit(2)
        return told[0]

    def share_state(self, state):
        """Make a dataclass's fields those of the first rank."""
        for name, value in self.once(lambda: asdict(state)).items() if self.size > 1 else ():
            setattr(state, name, value)

    @contextlib.contextmanager
    def in_turn(self):
        """A context that one process of each machine enters before the others, for what is downloaded there."""
        if self.size > 1 and self.local_rank:
            dist.barrier()
        yield
        if self.size > 1 and not self.local_rank:
            dist.barrier()

    def require_same(self, what, value):
        """InputError when a rank's `value` (any object) is not the first one's: its machine has other files."""
        if self.size == 1:
            return
        values = [None] * self.size
        dist.all_gather_object(values, value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise InputError(f"rank {rank} has other {what} than rank 0; all processes must read the same files")

    def require_seen(self, path):
        """InputError when a rank does not see a file that the first one wrote: the folder is not shared."""
        if self.size > 1 and (unseen := self.largest(0 if path.is_file() else self.rank)):
            raise InputError(
                f"rank {unseen} does not see {path}; with several machines --out must be in a folder they share"
            )


LEFT = []  # process groups that are done with


@contextlib.contextmanager
def joined(environ, device="auto", shard=False):
    """A context with the Ranks that torchrun's variables in `environ` describe, connected.

    Without those, one process alone. All but the first print nothing on stdout and draw no progress bars. Raises
    RankLost when another process ends early, InputError for --shard without other processes.
    """
    size = int(environ.get("WORLD_SIZE", 1)) if "RANK" in environ else 1
    if size == 1 and shard:
        raise InputError("--shard splits the model over processes: start them with torchrun --nproc-per-node N train.py")
    if size == 1:
        yield Ranks()
        return
    ranks = Ranks(int(environ["RANK"]), size, int(environ.get("LOCAL_RANK", 0)), shard)
    on_gpu = torch.cuda.is_available() and device != "cpu"
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    with contextlib.nullcontext() if ranks.first else quiet(), noticing_loss(ranks):
        yield ranks
    # DDP would drop the last reference while holding the interpreter's lock, and wait for gloo's thread, which may want
    # that lock to let go of a tensor. So one is kept until the process ends.
    LEFT.append(dist.group.WORLD)
    dist.destroy_process_group()  # not after an error, where it could wait for those that are gone


@contextlib.contextmanager
def quiet():
    """A context without stdout, and with a stderr that says it is no terminal, where bars are not drawn."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        with contextlib.redirect_stderr(NoTerminal(sys.stderr)):
            yield


class NoTerminal:
    """A stream that passes everything on, and is no terminal."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def isatty(self):
        return False


@contextlib.contextmanager
def noticing_loss(ranks, rescue=None):
    """A context that raises RankLost for the many errors with which torch says so, after calling `rescue`.

    rescue: called on the first rank, where it holds everything (not sharded): weights and moments are those after
    the last whole step, since a step's last message goes before its update.
    """
    try:
        yield
    except RankLost:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(s in str(error) for s in ("gloo", "Connection")):
            raise
        if rescue is not None and ranks.first and not ranks.sharded:
            rescue()
        raise RankLost("another process of this run ended or cannot be reached") from error
