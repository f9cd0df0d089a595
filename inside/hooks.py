"""Reading and changing what flows through a model, by hooks that are taken off again.

Letters for shapes as in model/bert.py; L is the number of blocks. Hidden state 0 leaves the embeddings, hidden state
k leaves block k - 1, and the last one, number L, is what the span head reads.
"""

from contextlib import ExitStack, contextmanager

import torch

from model.prompts import PromptedBert


def blocks(model):
    """The encoder's blocks, in order."""
    return model.bert.encoder.layer


def embeddings(model):
    """The embeddings, below virtual tokens where the model has some."""
    return (model.bert.base if isinstance(model.bert, PromptedBert) else model.bert).embeddings


def virtual_tokens(model):
    """How many vectors of no word stand before the window inside the encoder (see model/prompts.py)."""
    return len(model.bert.prompt) if isinstance(model.bert, PromptedBert) else 0


@contextmanager
def hooked(*handles):
    """A context after which the handles' hooks are taken off."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def changing_words(model, change):
    """A context in which the word vectors (B, T, D) go through `change` before positions are added."""
    words = embeddings(model).word_embeddings
    return hooked(words.register_forward_hook(lambda module, args, output: change(output)))


def changing_hidden(model, layer, change):
    """A context in which hidden state number `layer`, (B, T, D), goes through `change`; virtual tokens stay."""
    P = virtual_tokens(model)

    def whole(x):
        return torch.cat([x[:, :P], change(x[:, P:])], 1)  # (B, P + T, D)

    if layer == 0:
        first = blocks(model)[0]
        return hooked(first.register_forward_pre_hook(lambda module, args: (whole(args[0]), *args[1:])))
    block = blocks(model)[layer - 1]
    return hooked(block.register_forward_hook(lambda module, args, output: (whole(output[0]), *output[1:])))


@contextmanager
def recording_hidden(model):
    """A context that gives a list, which a forward pass fills with all L + 1 hidden states (B, T, D)."""
    P, states = virtual_tokens(model), []

    def enter(module, args):
        states.append(args[0][:, P:])

    def leave(module, args, output):
        states.append(output[0][:, P:])

    handles = [block.register_forward_hook(leave) for block in blocks(model)]
    with hooked(blocks(model)[0].register_forward_pre_hook(enter), *handles):
        yield states
