"""Token after token from a decoder: greedy, sampled, or bound to the spans of a text.

    B  prompts     V  vocabulary     N  tokens of a context

A batch is padded on the left, so that every row's next token stands in the same place, and the cache keeps what was
computed. A constraint says per row which tokens may come next; probabilities are those of the free model, so that
what a constraint forbids shows as probability lost.
"""

from dataclasses import dataclass

import torch

from model.llama import KeyValueCache
from model.prompts import virtual_tokens


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

    def __init__(self, context, phrase, stop, starts=None):
        """context: (N,) token ids. phrase: ids that say "no answer", empty for none. stop: id that ends an answer.

        starts: places in the context where a run may begin; None: anywhere.
        """
        self.context, self.phrase, self.stop = list(context), list(phrase), stop
        self.starts = range(len(self.context)) if starts is None else starts
        self.ends = None  # places after what was said so far: indices into the context; None before the first token
        self.said = 0  # tokens of the phrase that were said, when it can be the phrase
        self.may_be_phrase = bool(phrase)

    def allowed(self):
        """The set of ids that may come next."""
        if self.ends is None:
            return {self.context[start] for start in self.starts} | set(self.phrase[:1])
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
        places = self.starts if self.ends is None else self.ends
        self.ends = [k + 1 for k in places if k < len(self.context) and self.context[k] == token]
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
    p = ((log_p - log_p.amax(-1, keepdim=True)) / temperature).softmax(-1)  # the likeliest stays 0 however cold it is
    if top_p < 1:
        ordered, places = p.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # of the likelier ones; the first is always kept
        p = torch.zeros_like(p).scatter(-1, places, ordered * (before < top_p))
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def computing_dtype(model):
    """Of keys and values: autocast's where it is on, else that of the word vectors."""
    device = next(model.parameters()).device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return model.model.embed_tokens.weight.dtype


class Prefix:
    """Prompts that were read: cache, mask and what comes next, to be continued more than once.

    log_p: (B, V) of the token after each prompt. `rewind` forgets what was said after the prompts.
    """

    def __init__(self, model, prompts, room, pad=0, after=None):
        """room: most tokens that will be said after the longest prompt, the end included.

        after: the Prefix of one prompt that all of these go on from; what it has read is not read again.
        """
        self.model = model.eval()
        device, B = next(model.parameters()).device, len(prompts)
        ids, self.mask = (tensor.to(device) for tensor in pad_left(prompts, pad))
        seen = after.read if after else virtual_tokens(model)
        self.read = seen + ids.shape[1]  # tokens in the cache
        self.cache = KeyValueCache(model.config, B, self.read + room, device=device, dtype=computing_dtype(model))
        if after:
            self.cache.copy_from(after.cache)
            self.mask = torch.cat([after.prompt_mask.expand(B, -1), self.mask], 1)
        self.prompt_mask, self.padded = self.mask, not bool(self.mask.all())
        self.log_p = model(ids, self.mask, self.cache, last_only=True)[:, -1].log_softmax(-1)

    def rewind(self):
        self.cache.length, self.mask = self.read, self.prompt_mask

    def say(self, tokens, last_only=True):
        """Go on with tokens (B, n); returns log-probabilities of what may follow, (B, 1 or n, V)."""
        self.mask = torch.cat([self.mask, torch.ones_like(tokens, dtype=torch.bool)], 1)
        mask = self.mask if self.padded else None  # kernels are quicker without one
        return self.model(tokens, mask, self.cache, last_only=last_only).log_softmax(-1)


@torch.inference_mode()
def sequence_log_probability(prefix, ids):
    """Log-probability that the model says exactly `ids` after each prompt, (B,). The prefix is rewound."""
    prefix.rewind()
    B = len(prefix.log_p)
    tokens = torch.tensor(ids, device=prefix.log_p.device).expand(B, -1)  # (B, n)
    total = prefix.log_p[:, ids[0]].clone()
    if len(ids) > 1:
        log_p = prefix.say(tokens[:, :-1], last_only=False)  # (B, n - 1, V)
        total += log_p.gather(2, tokens[:, 1:, None])[..., 0].sum(1)
    prefix.rewind()
    return total


def generate(model, prompts, *, max_new, pad=0, **options):
    """Continue each prompt (lists of ids); returns a list of Generations. Options are those of `go_on`."""
    with torch.inference_mode():
        return go_on(Prefix(model, prompts, max_new + 1, pad), max_new=max_new, **options)


@torch.inference_mode()
def go_on(prefix, *, max_new, stop, temperature=0.0, top_p=1.0, constraints=None, generator=None):
    """Say what comes after the prompts that a Prefix has read; returns a list of Generations.

    max_new: most tokens of an answer. stop: ids that end one. constraints: one SpanConstraint per prompt, or None
    for freedom; under one, only its own stop ends an answer.
    """
    prefix.rewind()
    stop, B = set(stop), len(prefix.log_p)
    tokens, log_probabilities, done = [[] for _ in range(B)], [[] for _ in range(B)], [False] * B
    free = prefix.log_p
    for said in range(max_new + 1):  # one more, for the stop after a longest answer
        log_p = free
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
        if all(done) or said == max_new:
            break
        free = prefix.say(chosen[:, None])[:, -1]  # (B, V)
    return [
        Generation(tuple(one), tuple(scores), len(scores) > len(one))
        for one, scores in zip(tokens, log_probabilities, strict=True)
    ]
