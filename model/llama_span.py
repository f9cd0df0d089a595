"""A span head on a LLaMA: what tells the architecture from the way of answering.

The same two logits per token as BERT's head. Under the causal mask a token knows only what stands before it, so that
question comes first and "no answer" is the last token's, the only one that has read all; with the mask taken off
(`causal` False, as in LLM2Vec, BehnamGhader et al. 2024, arXiv 2404.05961) every token looks both ways.
"""

import torch.nn as nn

from model.llama import LlamaModel


class LlamaForQuestionAnswering(nn.Module):
    """Names are those of transformers' class of this name; there `causal` is always True."""

    def __init__(self, config, causal=True):
        super().__init__()
        self.config = config
        self.transformer = LlamaModel(config)
        self.transformer.causal = causal
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.apply(self.initialise)

    def initialise(self, module):
        """Normal(0, initializer_range) for matrices and word vectors, zero for biases."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, input_ids, token_type_ids=None, attention_mask=None):
        """input_ids: (B, T). attention_mask: (B, T) bool, False on padding. Returns start and end logits, (B, T) fp32.

        token_type_ids, which a LLaMA does not know, are taken so that both families are called alike.
        """
        logits = self.qa_outputs(self.transformer(input_ids, attention_mask)).float()  # (B, T, 2)
        return logits[..., 0], logits[..., 1]
