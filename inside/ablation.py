"""Taking heads and feed-forward blocks out, by putting their mean output in place of what they say.

Mean ablation (see Michel et al. 2019, arXiv 1905.10650, for heads set to zero, and Wang et al. 2022,
arXiv 2211.00593, section 3.1, for means): the mean is taken over tokens, so what is lost is all that depends on the
token, and the rest of the model still sees an output of the usual size.
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from data.decode import Prediction
from inside.hooks import blocks, hooked, virtual_tokens


@dataclass(frozen=True, slots=True, order=True)
class Unit:
    """Something to take out: head `head` of block `layer`, or with head None that block's feed-forward half."""

    layer: int
    head: int | None = None

    def __str__(self):
        return f"{self.layer}.{self.head}" if self.head is not None else f"{self.layer}.ff"


def units(model):
    """Every Unit of a model, a layer's heads before its feed-forward half."""
    found = []
    for layer, block in enumerate(blocks(model)):
        found += [Unit(layer, head) for head in range(block.attention.self.num_heads)] + [Unit(layer)]
    return found


class Means:
    """Running means over tokens of what all heads (before their output projection) and feed-forward halves put out."""

    def __init__(self, model):
        L = len(blocks(model))
        self.heads, self.feed_forward = [0.0] * L, [0.0] * L  # (H K,) and (D,) each, once `collecting` saw tokens
        self.tokens = 0

    def __getitem__(self, unit):
        return (self.feed_forward if unit.head is None else self.heads)[unit.layer] / self.tokens


@contextmanager
def collecting(model, means, mask):
    """A context in which forward passes over one batch add to `means`. mask: (B, T) bool, False on padding, or None."""
    P = virtual_tokens(model)

    def adding(sums, layer):
        def hook(module, args, output):
            real = (output[0] if isinstance(output, tuple) else output)[:, P:].double()
            real = real.flatten(0, 1) if mask is None else real[mask]  # (tokens, D)
            sums[layer] = sums[layer] + real.sum(0)
            if sums is means.heads and layer == 0:
                means.tokens += len(real)
        return hook

    handles = []
    for layer, block in enumerate(blocks(model)):
        handles.append(block.attention.self.register_forward_hook(adding(means.heads, layer)))
        handles.append(block.output.dense.register_forward_hook(adding(means.feed_forward, layer)))
    with hooked(*handles):
        yield


@contextmanager
def ablated(model, chosen, means):
    """A context in which the chosen Units put out their means."""
    with ExitStack() as stack:
        for unit in chosen:
            stack.enter_context(without(model, unit, means[unit]))
        yield


def without(model, unit, mean):
    """A context in which one Unit puts out `mean`."""
    block = blocks(model)[unit.layer]
    if unit.head is None:
        constant = lambda module, args, output: mean.to(output.dtype).expand_as(output)  # noqa: E731
        return hooked(block.output.dense.register_forward_hook(constant))

    def replace(module, args, output):
        mixed = output[0].clone()  # (B, T, H K)
        K = mixed.shape[-1] // module.num_heads
        columns = slice(unit.head * K, (unit.head + 1) * K)
        mixed[..., columns] = mean[columns].to(mixed.dtype)
        return mixed, *output[1:]

    return hooked(block.attention.self.register_forward_hook(replace))


def case_means(case):
    """Means over the tokens of all windows of one Case."""
    means = Means(case.model)
    for number in range(len(case.windows)):
        with case.computing() as model, collecting(model, means, None):
            model(*case.inputs(number))
    return means


@dataclass(frozen=True, slots=True)
class Loss:
    """What goes when a Unit is ablated. drop: of the answer's score, start + end logit. prediction: of its window."""

    unit: Unit
    drop: float
    prediction: Prediction


def rank_heads(case, means=None):
    """A Loss for every Unit, largest drop first, on the window that won."""
    number, means = case.best.window, means or case_means(case)

    def scored():
        start, end = case.logits(number)
        return case.score(case.best, number, start, end), case.spans(number, start, end)

    whole, _ = scored()
    losses = []
    for unit in units(case.model):
        with without(case.model, unit, means[unit]):
            score, prediction = scored()
        losses.append(Loss(unit, whole - score, prediction))
    return sorted(losses, key=lambda loss: (-loss.drop, loss.unit.layer, loss.unit.head is None, loss.unit.head))


def predict_without(case, chosen, means=None):
    """The Prediction over all windows with the chosen Units ablated."""
    with ablated(case.model, chosen, means or case_means(case)):
        return case.predict()
