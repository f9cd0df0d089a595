"""BERT and its span head, every layer written out; RoBERTa, DistilBERT and ELECTRA too, which differ in little.

Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers" (arXiv 1810.04805); the layers
are those of Vaswani et al. 2017, "Attention Is All You Need" (arXiv 1706.03762). Modules carry the names of
the Hugging Face checkpoints of BERT (`bert.encoder.layer.0.attention.self.query`), so a file of weights is also a
map of this code, and a parameter's name says where to look; `model.names` has the relatives' names, and
`model.families` what they do otherwise.

Letters for shapes, here and in every file that handles these tensors:
    B  windows in the batch        T  tokens in the longest of them      V  word pieces in the vocabulary
    E  size of a word's vector, D but in ELECTRA
    D  hidden size                 H  attention heads                    K  size of a head, D / H
    F  size of the feed-forward layer                                    P  positions the model knows

Precision: parameters are fp32. Under autocast the matrix products run in 16 bits; LayerNorm and the
residual sums stay in fp32 (visible as `.float()` below), the softmax is fp32 inside `model.attention`,
and the logits leave as fp32.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.attention import eager_attention, fused_attention
from model.dropout import Dropout
from model.families import ACTIVATIONS, BertConfig  # noqa: F401  (BertConfig: for those who import it from here)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis (Ba et al. 2016, arXiv 1607.06450), always in fp32."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x):
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps)


class BertEmbeddings(nn.Module):
    """Word, position and segment vectors, summed."""

    def __init__(self, config):
        super().__init__()
        E = config.word_size
        # padding_idx keeps the gradient of the [PAD] vector at zero, as in the reference
        self.word_embeddings = nn.Embedding(config.vocab_size, E, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, E)
        self.token_types = config.family.token_types
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, E) if self.token_types else None
        self.LayerNorm = LayerNorm(E, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.first_position = config.first_position

    def forward(self, words, token_type_ids):
        """Word vectors (B, T, E) with positions and segments added, normalised (B, T, E)."""
        # padding counts on where the reference stands still: nothing looks at it
        positions = torch.arange(self.first_position, self.first_position + words.shape[1], device=words.device)  # (T,)
        x = words
        if self.token_types:
            types = token_type_ids if self.token_types > 1 else torch.zeros_like(token_type_ids)
            x = x + self.token_type_embeddings(types)  # (B, T, E)
        x = x + self.position_embeddings(positions)  # (B, T, E)
        return self.dropout(self.LayerNorm(x))


class BertSelfAttention(nn.Module):
    """Multi-head self-attention without its output projection: (B, T, D) to (B, T, D)."""

    def __init__(self, config):
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(D, D)
        self.key = nn.Linear(D, D)
        self.value = nn.Linear(D, D)
        self.dropout_prob = config.attention_probs_dropout_prob

    def split_heads(self, x):
        B, T, D = x.shape
        return x.view(B, T, self.num_heads, D // self.num_heads).transpose(1, 2)  # (B, H, T, K)

    def forward(self, x, mask, attention):
        query, key, value = (self.split_heads(project(x)) for project in (self.query, self.key, self.value))
        dropout = self.dropout_prob if self.training else 0.0
        mixed, probabilities = attention(query, key, value, mask, dropout)  # (B, H, T, K)
        return mixed.transpose(1, 2).flatten(2), probabilities  # (B, T, D)


class ResidualOutput(nn.Module):
    """Projection, dropout, residual sum, LayerNorm: how both halves of a block end (post-norm)."""

    def __init__(self, size_in, config, dropout):
        super().__init__()
        self.dense = nn.Linear(size_in, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, x, residual):
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)  # (B, T, D)


class BertAttention(nn.Module):
    """Self-attention and its output: the first half of a block."""

    def __init__(self, config):
        super().__init__()
        self.self = BertSelfAttention(config)
        dropout = config.hidden_dropout_prob if config.family.attention_output_dropout else 0.0
        self.output = ResidualOutput(config.hidden_size, config, dropout)

    def forward(self, x, mask, attention):
        mixed, probabilities = self.self(x, mask, attention)
        return self.output(mixed, x), probabilities


class BertIntermediate(nn.Module):
    """The wide half of the feed-forward layer: (B, T, D) to (B, T, F)."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x):
        return self.activation(self.dense(x))  # (B, T, F)


class BertLayer(nn.Module):
    """One block: attention, then the feed-forward layer, each with residual and LayerNorm."""

    def __init__(self, config):
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = ResidualOutput(config.intermediate_size, config, config.hidden_dropout_prob)

    def forward(self, x, mask, attention):
        x, probabilities = self.attention(x, mask, attention)
        return self.output(self.intermediate(x), x), probabilities  # (B, T, D)


class BertEncoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, config):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False  # keep only each block's input, compute the rest again

    def forward(self, x, mask, attention):
        all_probabilities = []
        for layer in self.layer:
            if self.gradient_checkpointing and self.training:
                x, probabilities = checkpoint(layer, x, mask, attention, use_reentrant=False)
            else:
                x, probabilities = layer(x, mask, attention)
            all_probabilities.append(probabilities)
        return x, all_probabilities


class BertModel(nn.Module):
    """Embeddings and encoder: ids to one vector per token. No pooler: the span head does not use it."""

    def __init__(self, config):
        super().__init__()
        E, D = config.word_size, config.hidden_size
        self.embeddings = BertEmbeddings(config)
        self.embeddings_project = nn.Linear(E, D) if E != D else nn.Identity()
        self.encoder = BertEncoder(config)

    def forward(self, input_ids, token_type_ids, attention_mask, attention=fused_attention):
        """input_ids, token_type_ids: (B, T) int64. attention_mask: (B, T) bool, False on padding, or None.

        Returns the last hidden states (B, T, D) and the layers' attention probabilities (None each,
        unless `attention` is `eager_attention`).
        """
        words = self.embeddings.word_embeddings(input_ids)  # (B, T, E)
        return self.encode(words, token_type_ids, attention_mask, attention)

    def encode(self, words, token_type_ids, attention_mask, attention=fused_attention):
        """The same from the words' vectors (B, T, E) on."""
        mask = None if attention_mask is None else attention_mask[:, None, None, :]  # (B, 1, 1, T)
        x = self.embeddings_project(self.embeddings(words, token_type_ids))  # (B, T, D)
        return self.encoder(x, mask, attention)


class BertForQuestionAnswering(nn.Module):
    """BERT with the span head of Devlin et al. 2018, section 4.2: one Linear(D, 2) on every token."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.bert = BertModel(config)
        self.qa_dropout = Dropout(config.qa_dropout)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.apply(self.initialise)

    def initialise(self, module):
        """Normal(0, initializer_range) for matrices and vectors of embeddings, zero for biases."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()

    def forward(self, input_ids, token_type_ids, attention_mask=None):
        """Score every token as start and as end of the answer.

        input_ids: (B, T) int64, T <= P. token_type_ids: (B, T) int64, 1 on the text and its [SEP]; a family that does
        not tell them apart passes them over.
        attention_mask: (B, T) bool, False on padding, or None when nothing is padded.
        Returns start logits and end logits, (B, T) fp32 each; padding is scored too, mask it.
        """
        hidden, _ = self.bert(input_ids, token_type_ids, attention_mask)
        return self.span_logits(hidden)

    def span_logits(self, hidden):
        """The head alone: (B, T, D) to start and end logits, (B, T) fp32 each."""
        start, end = self.qa_outputs(self.qa_dropout(hidden)).float().unbind(-1)  # (B, T) each
        return start, end

    def attention_maps(self, input_ids, token_type_ids, attention_mask=None):
        """The same pass by eager attention; returns start, end and a list over layers of (B, H, T, T)."""
        hidden, maps = self.bert(input_ids, token_type_ids, attention_mask, attention=eager_attention)
        return *self.span_logits(hidden), maps
