"""Scaled dot-product attention, three ways: softmax(q kᵀ / √K + mask) v (Vaswani et al. 2017, equation 1).

    eager_attention    by the book, for study: gives the probabilities too
    fused_attention    what training and answering use: PyTorch's fused kernels, or where those are slow
    BatchedAttention   the same in a few batched products, with its gradient written out

    B  windows    H  heads    T  tokens    K  size of a head. q, k, v: (B, H, T, K). mask: (B, 1, 1, T) bool, True where
    a token may be looked at, or None when nothing is padded. Results: (B, H, T, K) and the probabilities or None.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from model.dropout import draw_dropped, kept_scale

PIECE = 2**21  # numbers of the (T, T) matrices that are worked on at a time


def fused_attention(query, key, value, mask, dropout):
    """By the fastest way there is for the device and for what is asked.

    On a CPU scores and softmax are in fp32, and a pass that will be differentiated takes `BatchedAttention`: with its
    gradient PyTorch's kernel takes up to twice as long (docs/experiments.md).
    """
    with torch.autocast(query.device.type, enabled=False):
        if query.device.type != "cpu":
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout), None
        if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
            return BatchedAttention.apply(query, key, value, mask, dropout), None
        dtype, inputs = query.dtype, (query.float(), key.float(), value.float())
        return F.scaled_dot_product_attention(*inputs, attn_mask=mask, dropout_p=dropout).to(dtype), None


def eager_attention(query, key, value, mask, dropout):
    """Each step on a line of its own; the probabilities (B, H, T, T), before dropout: row t is what token t takes."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (B, H, T, T)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    probabilities = scores.float().softmax(-1)  # (B, H, T, T)
    mixed = F.dropout(probabilities, dropout).to(value.dtype) @ value  # (B, H, T, K)
    return mixed, probabilities


class BatchedAttention(torch.autograd.Function):
    """softmax(q kᵀ / √K + mask) v with P, the probabilities, kept for the backward pass: T² numbers a head.

    Let G be the gradient of the result O = P v. By the chain rule, with S = q kᵀ / √K,

        dv = Pᵀ G      dP = G vᵀ      dS = P ∘ (dP − Σⱼ dPⱼ Pⱼ)      dq = dS k / √K      dk = dSᵀ q / √K

    Dropout multiplies P by M, 0 or c = 1 / (1 - p) for each number: O = (P ∘ M) v, dv = (P ∘ M)ᵀ G, dP = (G vᵀ) ∘ M.
    No probability is negative, so its sign is free to say that it was dropped: [0.5, -0.3, 0.2] has P = [0.5, 0.3, 0.2]
    and P ∘ M = c · [0.5, 0, 0.2]. One tensor keeps both, and c goes to the K numbers of O and G instead of T.
    Scores and softmax are in fp32; P is kept in the dtype of q. All of it goes piece by piece, for the cache's sake and so
    that of the (T, T) matrices only P is ever there for all heads.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask, dropout):
        B, H, T, K = query.shape
        query, key, value = (x.reshape(B * H, T, K) for x in (query, key, value))
        hidden = None
        if mask is not None:  # adding is ten times as fast as masked_fill
            hidden = torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))
            hidden = hidden.expand(B, H, 1, T).reshape(B * H, 1, T)
        signed = query.new_empty(B * H, T, T)
        mixed = torch.empty_like(value)
        for part in pieces(B * H, T):
            scores = torch.bmm(query[part].float() * K**-0.5, key[part].float().transpose(1, 2))  # (n, T, T)
            if hidden is not None:
                scores += hidden[part]
            weights = signed[part].copy_(scores.softmax(-1))
            if dropout:
                dropped = draw_dropped(weights, dropout)
                bits = weights.view(dropped.dtype)
                bits |= dropped & torch.iinfo(dropped.dtype).min  # the sign alone
                weights = weights.relu()
            torch.bmm(weights, value[part], out=mixed[part])
        ctx.save_for_backward(query, key, value, signed)
        ctx.dropout = dropout
        return mixed.mul_(kept_scale(signed, dropout)).view(B, H, T, K)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, key, value, signed = ctx.saved_tensors
        shape, scale, dropout = gradient.shape, query.shape[-1] ** -0.5, ctx.dropout
        gradient = gradient.reshape(query.shape) * kept_scale(signed, dropout)  # (BH, T, K)
        by_query, by_key, by_value = (torch.empty_like(x) for x in (query, key, value))
        for part in pieces(*query.shape[:2]):
            probabilities = signed[part].abs() if dropout else signed[part]
            weights = signed[part].relu() if dropout else signed[part]
            torch.bmm(weights.transpose(1, 2), gradient[part], out=by_value[part])
            by_weights = torch.bmm(gradient[part], value[part].transpose(1, 2))  # (n, T, T)
            if dropout:
                by_weights = torch.ops.aten.threshold_backward(by_weights, weights, 0)  # 0 where it was dropped
            by_scores = torch._softmax_backward_data(by_weights, probabilities, -1, by_weights.dtype).mul_(scale)
            torch.bmm(by_scores, key[part], out=by_query[part])
            torch.bmm(by_scores.transpose(1, 2), query[part], out=by_key[part])
        return by_query.view(shape), by_key.view(shape), by_value.view(shape), None, None


def pieces(matrices, T):
    """Slices of so many (T, T) matrices as have PIECE numbers together, at least one."""
    size = max(1, PIECE // (T * T))
    return [slice(first, first + size) for first in range(0, matrices, size)]
