"""What goes over the wire in one optimizer step, and how well that scales: arithmetic, no measurement."""

from dataclasses import dataclass

FP32 = 4  # bytes of a gradient and of a parameter as they are sent


@dataclass(frozen=True, slots=True)
class Cluster:
    """GPUs and what joins them. Bandwidths in bytes per second and direction, latency in seconds per message.

    per_host: GPUs of one machine; local, between: bandwidth of one GPU inside its machine, and of one GPU's share of its
    machine's network. hidden: the share of the exchange that goes on while the backward pass computes.
    """

    per_host: int = 8
    local: float = 450e9
    between: float = 50e9
    latency: float = 10e-6
    hidden: float = 0.0

    def bandwidth(self, ranks):
        """The slowest part of a ring over `ranks` GPUs."""
        return self.local if ranks <= self.per_host else self.between


def learning_bytes(model):
    """Bytes of all gradients: what is learned, in fp32. Frozen and 4-bit weights are never sent."""
    return sum(parameter.numel() * FP32 for parameter in model.parameters() if parameter.requires_grad)


def held_bytes(model):
    """Bytes of all parameters as they are held."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def sent_bytes(gradients, ranks):
    """Bytes that each rank sends in a step of DDP: a ring all-reduce, (N - 1) / N of the gradients twice.

    Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations", section 3.
    With 4 ranks and gradients of 400 bytes each sends 2 x 3/4 x 400 = 600.
    """
    return 2 * gradients * (ranks - 1) / ranks


def sent_bytes_sharded(parameters, gradients, ranks, micro_batches=1):
    """The same for --shard, at most: parameters are gathered for each forward and again for each backward, gradients once.

    Those outside the blocks stay together in between (FSDP2's way with the outermost), and are gathered once.
    """
    return (2 * micro_batches * parameters + gradients) * (ranks - 1) / ranks


def efficiency(ranks, gradients, step_seconds, cluster):
    """The share of N-fold speed that N GPUs reach: the time of one GPU's work over that time and the exchange.

    step_seconds: of forward, backward and update on one GPU, for the windows that each GPU takes in a step (so with more
    GPUs the global batch grows). The exchange takes bytes / bandwidth + 2 (N - 1) messages, less what is hidden.
    """
    exchange = sent_bytes(gradients, ranks) / cluster.bandwidth(ranks) + 2 * (ranks - 1) * cluster.latency
    return step_seconds / (step_seconds + exchange * (1 - cluster.hidden))
