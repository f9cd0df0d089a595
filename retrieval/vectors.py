"""Sentence vectors of MiniLM: the mean of its token vectors, as sentence-transformers makes them.

The base of the project's adapters is that very model, so a reader with an adapter on MiniLM makes the vectors with
its own weights, the adapter switched off; any other reader has MiniLM loaded beside it.
"""

import hashlib
from contextlib import nullcontext

import numpy as np
import torch

from data.batches import split_by_tokens
from data.texts import encode
from model.lora import switch_of
from model.prompts import PromptedBert
from model.precision import autocast
from model.quant import FourBitLinear, Int8Linear
from model.source import resolve_model
from answering.reader import Reader

FINGERPRINT = "a4ee307b42147495e43c0f152d360084aafba8559194710d228f4460b1dcc670"  # of MiniLM's encoder, as LoadReport has it
LENGTH = 256  # tokens, [CLS] and [SEP] included; what comes after is not looked at, as in sentence-transformers
TOKENS_PER_BATCH = 6144


def sentence_reader(reader):
    """The Reader whose bare base makes the vectors: this one, or MiniLM's. InputError when that cannot be had."""
    own = reader.report.fingerprint == FINGERPRINT and not isinstance(reader.model.bert, PromptedBert)
    if own:
        return reader
    return Reader.load(resolve_model("minilm").folder, device=str(reader.device), precision=reader.precision)


class Embedder:
    """Called with n texts, gives their unit vectors (n, D) fp32; threads may share it.

    size: D. fingerprint: equal for Embedders that give equal vectors, but for rounding.
    """

    def __init__(self, reader):
        self.reader = reader
        self.length = min(LENGTH, reader.model.config.max_position_embeddings)
        self.size = reader.model.config.hidden_size
        self.cls_id, self.sep_id, self.pad_id = map(reader.tokenizer.token_to_id, ("[CLS]", "[SEP]", "[PAD]"))

    @property
    def fingerprint(self):
        reader = self.reader
        rounded = {
            f"{type(module).__name__} {getattr(module, 'four_bit', '')}"
            for module in reader.model.modules() if isinstance(module, (FourBitLinear, Int8Linear))
        }
        parts = [reader.report.fingerprint, reader.precision, str(self.length), *sorted(rounded), reader.tokenizer.to_str()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def __call__(self, texts, progress=None):
        ids = [ids[: self.length - 2] for ids, _ in encode(self.reader.tokenizer, texts)]
        lengths = np.array([len(one) + 2 for one in ids])
        vectors = [None] * len(texts)
        for batch in split_by_tokens(lengths, np.arange(len(texts)), TOKENS_PER_BATCH):
            for number, vector in zip(batch, self._pooled([ids[k] for k in batch]), strict=True):
                vectors[number] = vector
            if progress is not None:
                progress.update(len(batch))
        return np.stack(vectors) if vectors else np.zeros((0, self.size), np.float32)

    @torch.inference_mode()
    def _pooled(self, ids):
        reader = self.reader
        B, T = len(ids), max(map(len, ids)) + 2
        tokens = np.full((B, T), self.pad_id, np.int64)
        for row, one in enumerate(ids):
            tokens[row, : len(one) + 2] = [self.cls_id, *one, self.sep_id]
        tokens = torch.from_numpy(tokens).to(reader.device)
        lengths = torch.tensor([len(one) + 2 for one in ids], device=reader.device)
        mask = torch.arange(T, device=reader.device)[None, :] < lengths[:, None]  # (B, T)
        reader.model.eval()
        switch = switch_of(reader.model)
        with autocast(reader.device, reader.precision), switch.using(None) if switch else nullcontext():
            hidden, _ = reader.model.bert(tokens, torch.zeros_like(tokens), mask)  # (B, T, D)
        means = (hidden.float() * mask[:, :, None]).sum(1) / lengths[:, None]  # (B, D)
        return torch.nn.functional.normalize(means, dim=1).cpu().numpy()
