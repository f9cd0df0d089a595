"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): P learned vectors before the text, on a frozen encoder.

    [p1 … pP] [CLS] question [SEP] slice [SEP]

The vectors stand where word vectors stand (positions 0 to P - 1, segment 0), every token may look at them, and what the
encoder makes of them is dropped before the head. They and the head are all that learns: with P = 20 and D = 384 that
is 7,680 + 770 numbers. The folder is that of an adapter, with peft_type PROMPT_TUNING.
"""

from pathlib import Path

import torch
import torch.nn as nn

from common.errors import InputError
from common.files import read_json, write_json
from model.adapters import CONFIG_FILE, FINGERPRINT, WEIGHTS_FILE, open_weights, write_tensors
from model.attention import fused_attention

KIND = "PROMPT_TUNING"
HEAD = "qa_outputs"


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


def add_prompt(model, count, token_ids=None):
    """Put `count` vectors before the model's input. token_ids: begin as these words' vectors, over and over.

    Without them each vector begins as that of a word drawn at random, which learns faster than noise (section 3.2).
    Raises InputError when positions are lacking for any text behind them.
    """
    words = model.bert.embeddings.word_embeddings.weight.detach()
    if count >= model.config.positions - 8:
        raise InputError(f"{count} virtual tokens leave no room in {model.config.positions} positions")
    if not token_ids:
        token_ids = torch.randint(len(words), (count,)).tolist()
    chosen = [token_ids[k % len(token_ids)] for k in range(count)]
    model.bert = PromptedBert(model.bert, words[chosen].clone())


def tune_prompt(model, count, token_ids=None):
    """The pass of `--tune prompt`: vectors and head learn, the encoder does not. Vectors that are there go on."""
    if not has_prompt(model):
        add_prompt(model, count, token_ids)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name == "bert.prompt" or name.startswith(HEAD))


def has_prompt(model):
    """Whether virtual tokens stand before the model's input; before a decoder's they cannot yet."""
    return isinstance(getattr(model, "bert", None), PromptedBert)


def room(model):
    """Tokens that a window may have: the positions, less those of virtual tokens."""
    taken = len(model.bert.prompt) if has_prompt(model) else 0
    return model.config.positions - taken


def save_prompt(model, folder, *, base, revision=None, fingerprint=None):
    """Fill a folder that `load_prompt` opens."""
    tensors = {"prompt_embeddings": model.bert.prompt}
    tensors |= {f"base_model.{HEAD}.{part}": value for part, value in model.qa_outputs.named_parameters()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {FINGERPRINT: fingerprint} if fingerprint else {"format": "pt"}
    write_tensors(Path(folder) / WEIGHTS_FILE, tensors, metadata)
    config = model.config
    write_json(Path(folder) / CONFIG_FILE, {
        "peft_type": KIND, "task_type": "QUESTION_ANS", "base_model_name_or_path": base, "revision": revision,
        "inference_mode": True, "num_virtual_tokens": len(model.bert.prompt), "token_dim": config.word_size,
        "num_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads,
        "num_transformer_submodules": 1, "prompt_tuning_init": "RANDOM", "modules_to_save": [HEAD],
    })


def is_prompt(folder):
    """Whether an adapter's folder holds virtual tokens."""
    values = read_json(Path(folder) / CONFIG_FILE)
    return isinstance(values, dict) and values.get("peft_type") == KIND


def load_prompt(model, folder, fingerprint=None):
    """Put a folder's vectors and head into a plain model; InputError for another base or tensors that do not fit."""
    with open_weights(folder) as file:
        theirs = (file.metadata() or {}).get(FINGERPRINT)
        if fingerprint and theirs and fingerprint != theirs:
            raise InputError(f"{folder}: these virtual tokens were trained on other weights than this model's")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    path, D = Path(folder) / WEIGHTS_FILE, model.config.hidden_size
    wanted = {"prompt_embeddings": (None, model.config.word_size), f"base_model.{HEAD}.weight": (2, D), f"base_model.{HEAD}.bias": (2,)}
    for name in sorted(set(tensors) ^ set(wanted)):
        raise InputError(f"{path}: tensor {name} {'has no place' if name in tensors else 'is missing'}")
    for name, tensor in tensors.items():
        shape = wanted[name]
        fits = tensor.ndim == len(shape) and all(b in (None, a) for a, b in zip(tensor.shape, shape, strict=True))
        if not fits or not tensor.numel() or not tensor.isfinite().all():
            raise InputError(f"{path}: tensor {name} is not of the shape or the finite numbers that are wanted")
    add_prompt(model, len(tensors["prompt_embeddings"]))
    with torch.no_grad():
        model.bert.prompt.copy_(tensors["prompt_embeddings"])
        for part, parameter in model.qa_outputs.named_parameters():
            parameter.copy_(tensors[f"base_model.{HEAD}.{part}"])
