"""Smaller encoders: a pass that takes heads (Michel et al. 2019, arXiv 1905.10650) and feed-forward halves out.

What is taken out leaves its mean behind, in the bias it would have been added to, so that the pruned model computes
just what mean ablation (inside/ablation.py) computes with all of the model there:

    Σ over heads W_h z_h + b  →  Σ over heads that stay W_h z_h + (b + Σ over those that go W_h mean(z_h))

`config.json` says under "pruned" what is left of each block: {"heads": [12, 9, …], "feed_forward": [true, false, …]}.
"""

import torch
import torch.nn as nn

from common.errors import InputError

KEY = "pruned"


def shape_of(model):
    """What is left of each block, as config.json has it."""
    layers = model.bert.encoder.layer
    return {
        "heads": [layer.attention.self.num_heads for layer in layers],
        "feed_forward": [layer.intermediate.dense.out_features > 0 for layer in layers],
    }


def is_pruned(model):
    """Whether anything was taken out of a BERT."""
    shape = shape_of(model)
    return set(shape["heads"]) != {model.config.num_attention_heads} or not all(shape["feed_forward"])


@torch.no_grad()
def prune(model, heads, feed_forward, head_means, feed_forward_means):
    """Take heads and feed-forward halves out, in place. The model has plain Linears: no adapter, no 4 bits.

    heads: block -> numbers of the heads that go, one head at least has to stay. feed_forward: blocks. head_means,
    feed_forward_means: per block, the mean of the joined heads (H K,) before the output projection, and of the
    feed-forward half's output (D,) after its projection.
    """
    for number, gone in heads.items():
        attention = model.bert.encoder.layer[number].attention
        H, size = attention.self.num_heads, attention.self.query.out_features
        assert gone and set(gone) < set(range(H)), "a block keeps one head at least, and loses only what it has"
        taken = torch.zeros(H, size // H, dtype=torch.bool)
        taken[[*gone]] = True
        taken = taken.flatten()
        dense, mean = attention.output.dense, head_means[number].to(attention.output.dense.weight.dtype)
        bias = dense.bias + dense.weight[:, taken] @ mean[taken]
        attention.output.dense = linear(dense.weight[:, ~taken], bias)
        for part in ("query", "key", "value"):
            old = getattr(attention.self, part)
            setattr(attention.self, part, linear(old.weight[~taken], old.bias[~taken]))
        attention.self.num_heads = H - len(set(gone))
    for number in feed_forward:
        layer = model.bert.encoder.layer[number]
        wide, narrow = layer.intermediate.dense, layer.output.dense
        layer.intermediate.dense = linear(wide.weight[:0], wide.bias[:0])
        layer.output.dense = linear(narrow.weight[:, :0], feed_forward_means[number].to(narrow.bias.dtype))


def linear(weight, bias):
    """A Linear of these numbers. Where a feed-forward half is gone there are none, and its bias is all it says."""
    made = nn.Linear(1, 1, device="meta")  # of the real size it would warn where there is nothing to initialise
    made.out_features, made.in_features = weight.shape
    made.weight, made.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return made


def check_shape(shape, config, source):
    """The "pruned" of a config.json; InputError, naming `source`, for one that does not fit the model."""
    L, H = config.num_hidden_layers, config.num_attention_heads
    heads, feed_forward = (shape.get(name) if isinstance(shape, dict) else None for name in ("heads", "feed_forward"))
    if not isinstance(heads, list) or len(heads) != L or not all(type(n) is int and 1 <= n <= H for n in heads):
        raise InputError(f"{source}: {KEY}.heads: expected {L} numbers from 1 to {H}, what each block has left")
    whole = isinstance(feed_forward, list) and len(feed_forward) == L and all(type(x) is bool for x in feed_forward)
    if not whole:
        raise InputError(f"{source}: {KEY}.feed_forward: expected {L} times true or false, whether each block has it")
    return shape


def shape_as(model, shape):
    """Give a model just built, still without numbers (on the meta device), the shapes of a pruned one."""
    K = model.config.hidden_size // model.config.num_attention_heads
    for layer, heads, has_feed_forward in zip(
        model.bert.encoder.layer, shape["heads"], shape["feed_forward"], strict=True
    ):
        D = model.config.hidden_size
        attention = layer.attention
        attention.self.num_heads = heads
        for part in ("query", "key", "value"):
            setattr(attention.self, part, nn.Linear(D, heads * K, device="meta"))
        attention.output.dense = nn.Linear(heads * K, D, device="meta")
        if not has_feed_forward:
            layer.intermediate.dense = empty(D, 0)
            layer.output.dense = empty(0, D)


def empty(inputs, outputs):
    """A Linear without weights, on the meta device."""
    return linear(torch.empty(outputs, inputs, device="meta"), torch.empty(outputs, device="meta"))
