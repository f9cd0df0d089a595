"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): P learned vectors before the text, on a frozen model.

    [p1 … pP] [CLS] question [SEP] slice [SEP]            an encoder's window
    [p1 … pP] [pad] [pad] <|user|> … <|assistant|>        a decoder's prompt, in a batch with longer ones

The vectors stand where word vectors stand (positions 0 to P - 1, segment 0), every token may look at them, and what the
model makes of them is dropped before the head. They and a span head are all that learns: with P = 20 and D = 384 that
is 7,680 + 770 numbers. The folder is that of an adapter, with peft_type PROMPT_TUNING.
"""

from pathlib import Path

import torch
import torch.nn as nn

from common.errors import InputError
from common.files import read_json, write_json
from model.adapters import FINGERPRINT, WEIGHTS_FILE, open_weights, write_tensors
from model.attention import fused_attention
from model.peft_config import CONFIG_FILE

KIND = "PROMPT_TUNING"
HEAD = "qa_outputs"
BODIES = ("bert", "model", "transformer")  # what stands before the head: a BERT, a decoder, a decoder with a span head


class PromptedBert(nn.Module):
    """A BertModel with P vectors before its input; takes and returns what the BertModel does."""

    def __init__(self, base, prompt):
        super().__init__()
        self.base = base
        self.prompt = nn.Parameter(prompt)  # (P, E)

    @property
    def encoder(self):
        return self.base.encoder

    def forward(self, input_ids, token_type_ids, attention_mask, attention=fused_attention):
        P, (B, _) = len(self.prompt), input_ids.shape
        words = self.base.embeddings.word_embeddings(input_ids)  # (B, T, E)
        words = torch.cat([self.prompt.expand(B, -1, -1), words], 1)  # (B, P + T, E)
        types = torch.cat([token_type_ids.new_zeros(B, P), token_type_ids], 1)  # (B, P + T)
        mask = None
        if attention_mask is not None:
            mask = torch.cat([attention_mask.new_ones(B, P), attention_mask], 1)  # (B, P + T)
        hidden, maps = self.base.encode(words, types, mask, attention)
        return hidden[:, P:], maps  # (B, T, D)


class PromptedLlama(nn.Module):
    """A LlamaModel with P vectors before its input; takes and returns what the LlamaModel does.

    They enter an empty cache before the first tokens, so that `cache.length` counts them and a cache needs room for P
    more; masks that are given do not. A row's padding stands between them and its text, and takes no position.
    """

    def __init__(self, base, prompt):
        super().__init__()
        self.base = base
        self.prompt = nn.Parameter(prompt)  # (P, D)

    @property
    def embed_tokens(self):
        return self.base.embed_tokens

    def forward(self, input_ids, attention_mask=None, cache=None):
        P, B = len(self.prompt), len(input_ids)
        words = self.embed_tokens(input_ids)  # (B, T, D)
        mask = None
        if attention_mask is not None:
            mask = torch.cat([attention_mask.new_ones(B, P), attention_mask], 1)  # (B, P + S)
        if cache is not None and cache.length:
            return self.base.encode(words, mask, cache)  # (B, T, D)
        words = torch.cat([self.prompt.expand(B, -1, -1), words], 1)  # (B, P + T, D)
        return self.base.encode(words, mask, cache)[:, P:]


def word_vectors(body):
    """The matrix of a body's word vectors, (V, E)."""
    words = body.embed_tokens if hasattr(body, "embed_tokens") else body.embeddings.word_embeddings
    return words.weight.detach()


def add_prompt(model, count, token_ids=None):
    """Put `count` vectors before the model's input. token_ids: begin as these words' vectors, over and over.

    Without them each vector begins as that of a word drawn at random, which learns faster than noise (section 3.2).
    Raises InputError when positions are lacking for any text behind them.
    """
    body = next(name for name in BODIES if hasattr(model, name))
    base = getattr(model, body)
    words = word_vectors(base)
    if count >= model.config.positions - 8:
        raise InputError(f"{count} virtual tokens leave no room in {model.config.positions} positions")
    if not token_ids:
        token_ids = torch.randint(len(words), (count,)).tolist()
    chosen = [token_ids[k % len(token_ids)] for k in range(count)]
    kind = PromptedBert if body == "bert" else PromptedLlama
    setattr(model, body, kind(base, words[chosen].float()))  # fp32, to learn, where words are held in 16 bits


def tune_prompt(model, count, token_ids=None):
    """The pass of `--tune prompt`: vectors and a span head learn, the rest does not. Vectors that are there go on."""
    if not has_prompt(model):
        add_prompt(model, count, token_ids)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(parameter is prompted(model).prompt or name.startswith(HEAD))


def prompted(model):
    """The PromptedBert or PromptedLlama in a model, or None."""
    return next((part for part in model.children() if isinstance(part, (PromptedBert, PromptedLlama))), None)


def has_prompt(model):
    """Whether virtual tokens stand before the model's input."""
    return prompted(model) is not None


def virtual_tokens(model):
    """How many there are, 0 for none."""
    return len(prompted(model).prompt) if has_prompt(model) else 0


def room(model):
    """Tokens that a window may have: the positions, less those of virtual tokens."""
    return model.config.positions - virtual_tokens(model)


def span_head(model):
    """Name -> parameter of the head that learns too, none of a decoder that answers by what it says."""
    return dict(model.qa_outputs.named_parameters()) if hasattr(model, HEAD) else {}


def save_prompt(model, folder, *, base, revision=None, fingerprint=None):
    """Fill a folder that `load_prompt` opens."""
    head, prompt = span_head(model), prompted(model).prompt
    tensors = {"prompt_embeddings": prompt} | {f"base_model.{HEAD}.{part}": value for part, value in head.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {FINGERPRINT: fingerprint} if fingerprint else {"format": "pt"}
    write_tensors(Path(folder) / WEIGHTS_FILE, tensors, metadata)
    config = model.config
    write_json(Path(folder) / CONFIG_FILE, {
        "peft_type": KIND, "task_type": "QUESTION_ANS" if head else "CAUSAL_LM", "base_model_name_or_path": base,
        "revision": revision, "inference_mode": True, "num_virtual_tokens": len(prompt), "token_dim": prompt.shape[1],
        "num_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads,
        "num_transformer_submodules": 1, "prompt_tuning_init": "RANDOM", "modules_to_save": [HEAD] if head else None,
    })


def is_prompt(folder):
    """Whether an adapter's folder holds virtual tokens."""
    values = read_json(Path(folder) / CONFIG_FILE)
    return isinstance(values, dict) and values.get("peft_type") == KIND


def count_named(folder):
    """How many virtual tokens an adapter's folder says that it holds; 0 where it does not say."""
    count = read_json(Path(folder) / CONFIG_FILE).get("num_virtual_tokens")
    return count if type(count) is int and count > 0 else 0


def load_prompt(model, folder, fingerprint=None):
    """Put a folder's vectors and head into a plain model; InputError for another base or tensors that do not fit."""
    with open_weights(folder) as file:
        theirs = (file.metadata() or {}).get(FINGERPRINT)
        if fingerprint and theirs and fingerprint != theirs:
            raise InputError(f"{folder}: these virtual tokens were trained on other weights than this model's")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    path = Path(folder) / WEIGHTS_FILE
    head = {f"base_model.{HEAD}.{part}": parameter for part, parameter in span_head(model).items()}
    words = word_vectors(next(getattr(model, name) for name in BODIES if hasattr(model, name)))
    wanted = {"prompt_embeddings": (None, words.shape[1])} | {name: value.shape for name, value in head.items()}
    for name in sorted(set(tensors) ^ set(wanted)):
        raise InputError(f"{path}: tensor {name} {'has no place' if name in tensors else 'is missing'}")
    for name, tensor in tensors.items():
        shape = wanted[name]
        fits = tensor.ndim == len(shape) and all(b in (None, a) for a, b in zip(tensor.shape, shape, strict=True))
        if not fits or not tensor.numel() or not tensor.isfinite().all():
            raise InputError(f"{path}: tensor {name} is not of the shape or the finite numbers that are wanted")
    add_prompt(model, len(tensors["prompt_embeddings"]))
    with torch.no_grad():
        prompted(model).prompt.copy_(tensors["prompt_embeddings"])
        for name, parameter in head.items():
            parameter.copy_(tensors[name])
