"""Parameters, gradients and moments split over ranks, for models that do not fit on one (FSDP2).

Zhao et al. 2023, arXiv 2304.11277, after ZeRO (Rajbhandari et al. 2019, arXiv 1910.02054): each rank holds 1/N of every
parameter, fetches a block's whole parameters just before the block runs and drops them afterwards; gradients are summed
and split again at once. Files hold whole tensors, the same as without sharding.
"""

import contextlib
import warnings

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from common.errors import InputError
from model.bert import BertForQuestionAnswering


def refuse_unshardable(options, precision, model):
    """InputError for what is not split: 4-bit weights, 8-bit moments, fp16's scaled gradients, decoders."""
    if not isinstance(model, BertForQuestionAnswering):
        raise InputError("--shard splits encoders only, so far")
    if options.quant is not None:
        raise InputError("--shard splits weights held in full; leave out --quant, or --shard (4 bits fit more easily)")
    if options.optimizer != "adamw":
        raise InputError(f"--shard: the moments of --optimizer {options.optimizer} cannot be split; take adamw")
    if precision == "fp16":
        raise InputError("--shard: computes in bf16 or fp32; choose one with --precision")


def blocks(model):
    """The model's repeated blocks, each fetched as one."""
    return [block for part in model.modules() if isinstance(part, nn.ModuleList) for block in part]


def spread(model):
    """Split `model` over the ranks, in place; returns it. Gradients are summed over ranks, never averaged."""
    for block in blocks(model):
        if any(True for _ in block.parameters()) and not any(isinstance(m, FSDPModule) for m in block.modules()):
            fully_shard(block)
    fully_shard(model)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            # the factor is set by us, and only sums are asked of the backend: gloo summed where NCCL took the mean
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
    # the logits are two views of one tensor, and nothing is done to them in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # FSDP keeps the tensors of the first pass for all later ones; were that one an evaluation's, they could not learn
    with torch.no_grad():
        a_pass(model)
    reshard(model)
    return model


def reshard(model):
    """Drop what a pass put together and kept: the outermost part's parameters, which are not what learns."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def a_pass(model):
    """Run an encoder on next to nothing."""
    ids = torch.zeros(1, 4, dtype=torch.int64, device=next(model.parameters()).device)
    model.eval()
    model(ids, ids)


def sharded_parameters(model):
    """(module, attribute, DTensor) of each parameter that is split."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor):
                yield module, name, parameter


def as_split(tensor, like):
    """This rank's part of a whole tensor that every rank has, split as `like` is."""
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@contextlib.contextmanager
def whole(model, optimizer=None, *, everywhere, write_back=False):
    """A context in which parameters and moments are whole plain tensors on the CPU; all ranks must enter it.

    everywhere: whether this rank keeps them (it takes part in fetching them either way, and should look at none
    otherwise). write_back: afterwards take over what was put into parameters and moments meanwhile.
    """
    reshard(model)
    split = list(sharded_parameters(model))
    kept = {parameter: dict(state) for parameter, state in moments_of(optimizer).items()}
    for module, name, parameter in split:
        full = parameter.full_tensor().detach().cpu()
        if everywhere:
            module._parameters[name] = nn.Parameter(full, requires_grad=parameter.requires_grad)
    for state in moments_of(optimizer).values():
        for name, value in state.items():
            if isinstance(value, DTensor):
                full = value.full_tensor().cpu()
                state[name] = full if everywhere else value
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, parameter in split:
                if write_back:
                    parameter.copy_(as_split(module._parameters[name].detach(), parameter))
                module._parameters[name] = parameter
        if not write_back:  # and no `return` here: it would swallow what was raised
            moments_of(optimizer).update(kept)
        for parameter, state in moments_of(optimizer).items() if write_back else ():  # loading made new ones
            for name, value in state.items():
                if isinstance(parameter, DTensor) and value.shape == parameter.shape:
                    state[name] = as_split(value, parameter)


def moments_of(optimizer):
    """Parameter -> {name: tensor}; without an optimizer nothing."""
    return {} if optimizer is None else optimizer.state


class InStep:
    """A context in which ranks may run a sharded `model` unequally often: those that are done run along.

    Every pass fetches parameters from all ranks, so none may stop running before the last one has.
    """

    def __init__(self, ranks, model):
        self.ranks, self.model = ranks, model

    def __enter__(self):
        self.handle = self.model.register_forward_pre_hook(self.announce)

    def announce(self, *_):
        self.ranks.largest(1)

    def __exit__(self, kind, *_):
        self.handle.remove()
        while kind is None and self.ranks.largest(0):
            with torch.inference_mode():
                a_pass(self.model)
