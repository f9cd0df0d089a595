"""Token after token from a decoder: greedy, sampled, or bound to the spans of a text.

    B  prompts     V  vocabulary     N  tokens of a context

A batch is padded on the left, so that every row's next token stands in the same place, and the cache keeps what was
computed. A constraint says per row which tokens may come next; probabilities are those of the free model, so that
what a constraint forbids shows as probability lost.
"""

from dataclasses import dataclass

import torch

from model.llama import KeyValueCache


@dataclass(frozen=True, slots=True)
class Generation:
    """tokens: of one answer, without the stop token. log_probabilities: of each, and of the stop if it came.

    stopped: whether it ended by a stop token, and not by the limit.
    """

    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    stopped: bool

    @property
    def log_probability(self):
        """Of the whole sequence."""
        return sum(self.log_probabilities)


class SpanConstraint:
    """Lets through only what is a run of tokens of the context, or the phrase that says there is none.

    After "in" of the context "in 1807 in Riga", where tokens are words, 1807 and Riga may follow, or the end. Greedy
    decoding under it follows the likeliest token at each step and can always end, since every run of tokens is a span.
    """

    def __init__(self, context, phrase, stop):
        """context: (N,) token ids. phrase: ids that say "no answer", empty for none. stop: id that ends an answer."""
        self.context, self.phrase, self.stop = list(context), list(phrase), stop
        self.ends = None  # places after what was said so far: indices into the context; None before the first token
        self.said = 0  # tokens of the phrase that were said, when it can be the phrase
        self.may_be_phrase = bool(phrase)

    def allowed(self):
        """The set of ids that may come next."""
        if self.ends is None:
            return set(self.context) | set(self.phrase[:1])
        following = {self.context[end] for end in self.ends if end < len(self.context)}
        if self.ends:
            following.add(self.stop)
        if self.may_be_phrase:
            following.add(self.phrase[self.said] if self.said < len(self.phrase) else self.stop)
        return following

    def take(self, token):
        """Go on after `token`."""
        if token == self.stop:
            return
        starts = range(len(self.context)) if self.ends is None else self.ends
        self.ends = [k + 1 for k in starts if k < len(self.context) and self.context[k] == token]
        self.may_be_phrase = self.may_be_phrase and self.said < len(self.phrase) and self.phrase[self.said] == token
        self.said += self.may_be_phrase

    def places(self, count):
        """[(first, last)] token places in the context of an answer of `count` tokens; empty for the phrase alone."""
        return [(end - count, end - 1) for end in self.ends or ()] if count else []


def pad_left(prompts, pad):
    """(B, T) ids and (B, T) bool mask of lists of ids."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, longest - len(prompt) :] = True
    return ids, mask


def choose(log_p, temperature, top_p, generator):
    """The next token of each row, (B,). log_p: (B, V), -inf where forbidden. temperature 0 takes the likeliest.

    top_p: the smallest set of likeliest tokens whose probabilities reach it (Holtzman et al. 2019, arXiv 1904.09751).
    """
    if temperature == 0:
        return log_p.argmax(-1)
    p = (log_p / temperature).softmax(-1)
    if top_p < 1:
        ordered, places = p.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # of the likelier ones; the first is always kept
        p = torch.zeros_like(p).scatter(-1, places, ordered * (before < top_p))
    return torch.multinomial(p, 1, generator=generator)[:, 0]


@torch.inference_mode()
def generate(model, prompts, *, max_new, stop, pad=0, temperature=0.0, top_p=1.0, constraints=None, generator=None):
    """Continue each prompt; returns a list of Generations.

    prompts: lists of ids. max_new: most tokens of an answer. stop: ids that end one. constraints: one
    SpanConstraint per prompt, or None for freedom; under one, only its own stop ends an answer.
    """
    model.eval()
    device = next(model.parameters()).device
    ids, mask = (tensor.to(device) for tensor in pad_left(prompts, pad))
    room = ids.shape[1] + max_new
    cache = KeyValueCache(model.config, len(prompts), room, device=device)
    stop, B = set(stop), len(prompts)
    tokens, log_probabilities, done = [[] for _ in prompts], [[] for _ in prompts], [False] * B
    new = ids
    for _ in range(max_new + 1):  # one more, for the stop after a longest answer
        log_p = model(new, mask, cache, last_only=True)[:, -1].log_softmax(-1)  # (B, V)
        free = log_p
        if constraints is not None:
            barred = torch.ones_like(log_p, dtype=torch.bool)
            for row, constraint in enumerate(constraints):
                full = len(tokens[row]) == max_new
                barred[row, list({constraint.stop} if full or done[row] else constraint.allowed())] = False
            log_p = log_p.masked_fill(barred, float("-inf"))
        chosen = choose(log_p, temperature, top_p, generator)  # (B,)
        for row, token in enumerate(chosen.tolist()):
            if done[row] or len(tokens[row]) == max_new and token not in stop:
                done[row] = True
                continue
            log_probabilities[row].append(free[row, token].item())
            if token in stop:
                done[row] = True
            else:
                tokens[row].append(token)
                if constraints is not None:
                    constraints[row].take(token)
        if all(done) or cache.length == room:
            break
        new = chosen[:, None]
        mask = torch.cat([mask, torch.ones_like(new, dtype=torch.bool)], 1)
    return [
        Generation(tuple(said), tuple(scores), len(scores) > len(said))
        for said, scores in zip(tokens, log_probabilities, strict=True)
    ]
