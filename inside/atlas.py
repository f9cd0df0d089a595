"""The head atlas: what every head and feed-forward half is worth on a data set, and pruning by it."""

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from common.errors import InputError
from data.batches import to_tensors
from data.examples import Dataset
from data.windows import WindowSet
from inside.ablation import Means, Unit, collecting, units, without
from inside.hooks import blocks
from model.lora import LoraLinear
from model.precision import autocast
from model.prompts import PromptedBert
from model.pruning import prune
from prompt.predict import choose_null
from answering.spans import TOKENS_PER_BATCH
from training.evaluate import evaluate


@dataclass(frozen=True, slots=True)
class Loss:
    """What goes on the sample when a Unit is ablated: points of exact match and of F1 (negative: it does harm)."""

    unit: Unit
    parameters: int
    exact: float
    f1: float


@dataclass(frozen=True, slots=True)
class Atlas:
    """exact, f1: of the whole model on the sample, in percent. losses: one per Unit, block by block."""

    exact: float
    f1: float
    losses: tuple[Loss, ...]


def dataset_means(reader, examples, tokens_per_batch=TOKENS_PER_BATCH):
    """Means of all Units over the windows of a data set."""
    windows = WindowSet(examples, reader.tokenizer, reader.settings.windows)
    means = Means(reader.model)
    reader.model.eval()
    for batch in reader.way.batches(windows, tokens_per_batch):
        tensors = to_tensors(windows.fill(batch), reader.device)
        mask = tensors["attention_mask"]
        with torch.inference_mode(), autocast(reader.device, reader.precision), collecting(reader.model, means, mask):
            reader.model(tensors["input_ids"], tensors["token_type_ids"], mask)
    return means


def scores(reader, examples):
    """(exact match, F1) in percent, "no answer" being on offer as infer.py --predict decides it."""
    policy = choose_null(Dataset(examples), reader.settings, None)
    result = evaluate(reader, examples, may_lack_answer=policy.offered, threshold=policy.threshold, tune=False)
    return result.scores["exact"], result.scores["f1"]


def linears(block):
    """The six Linears of a block, below adapters: query, key, value, output, and both of the feed-forward half."""
    attention = block.attention
    parts = (attention.self.query, attention.self.key, attention.self.value, attention.output.dense)
    parts += block.intermediate.dense, block.output.dense
    return [part.base if isinstance(part, LoraLinear) else part for part in parts]


def unit_parameters(model, unit):
    """How many weights go with a Unit: rows of query, key and value, columns of the output projection; no biases."""
    block = blocks(model)[unit.layer]
    held = [linear.in_features * linear.out_features for linear in linears(block)]
    return sum(held[4:]) if unit.head is None else sum(held[:4]) // block.attention.self.num_heads


def sizes(model):
    """{Unit: its `unit_parameters`} of all Units that are still there."""
    found = {unit: unit_parameters(model, unit) for unit in units(model)}
    return {unit: parameters for unit, parameters in found.items() if parameters}


def fingerprints(reader, examples):
    """{"model", "questions"}: SHA-256 of all that the model computes with, and of the questions with texts and answers."""
    weights, asked = hashlib.sha256(), hashlib.sha256()
    for name, tensor in sorted(reader.model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for example in examples:
        references = None if example.answers is None else [(answer.text, answer.start) for answer in example.answers]
        asked.update(repr((example.question, example.context, references)).encode("utf-8", "surrogatepass"))
    return {"model": weights.hexdigest(), "questions": asked.hexdigest()}


def atlas(reader, examples, means, progress=None):
    """The Atlas of a reader on examples; as many evaluations as there are Units. progress: as for Reader.predict."""
    exact, f1 = scores(reader, examples)
    losses = []
    held = sizes(reader.model)
    for unit in units(reader.model):
        if parameters := held.get(unit):
            with without(reader.model, unit, means[unit]):
                left = scores(reader, examples)
            losses.append(Loss(unit, parameters, exact - left[0], f1 - left[1]))
        if progress is not None:
            progress.update(1)
    return Atlas(exact, f1, tuple(losses))


def choose(atlas, keep):
    """The Units to prune so that at most the share `keep` of the blocks' weights stays, least F1 per parameter first.

    One head of each block stays; raises InputError when that leaves more than `keep`. Losses are measured one Unit at a
    time, and do not add up where one head does another's work: score what comes out.
    """
    check_share({loss.unit: loss.parameters for loss in atlas.losses}, keep)
    total = sum(loss.parameters for loss in atlas.losses)
    left = {loss.unit.layer: 0 for loss in atlas.losses}
    for loss in atlas.losses:
        left[loss.unit.layer] += loss.unit.head is not None
    chosen, kept = [], total
    for loss in sorted(atlas.losses, key=lambda loss: (loss.f1 / loss.parameters, -loss.parameters)):
        if kept <= keep * total:
            break
        if loss.unit.head is not None:
            if left[loss.unit.layer] == 1:
                continue
            left[loss.unit.layer] -= 1
        chosen.append(loss.unit)
        kept -= loss.parameters
    return chosen


def check_share(sizes, keep):
    """InputError when a head in each block is more than the share `keep` of all. sizes: {Unit: parameters}."""
    heads = {}
    for unit, parameters in sizes.items():
        if unit.head is not None:
            heads[unit.layer] = parameters  # of like size in a block
    least = sum(heads.values()) / sum(sizes.values())
    if least > keep:
        raise InputError(f"--keep: {100 * least:.1f} % of the blocks is the least that can stay: a head in each")


def check_prunable(reader, keep):
    """InputError for a reader whose weights are not plain ones, or hold more than `keep` allows at the least."""
    model = reader.model
    plain = reader.adapter is None and not isinstance(model.bert, PromptedBert)
    if not plain or not all(type(linear) is nn.Linear for block in blocks(model) for linear in linears(block)):
        raise InputError(
            "only a plain model can be pruned: merge an adapter first (python merge.py); weights in 4 bits cannot be"
        )
    check_share(sizes(model), keep)


def prune_units(model, chosen, means):
    """Take the Units out of the model for good, their means left in the biases."""
    heads = {}
    for unit in chosen:
        if unit.head is not None:
            heads.setdefault(unit.layer, []).append(unit.head)
    halves = [unit.layer for unit in chosen if unit.head is None]
    head_means = [sums / means.tokens for sums in means.heads]
    prune(model, heads, halves, head_means, [sums / means.tokens for sums in means.feed_forward])
