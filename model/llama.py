"""LLaMA (Touvron et al. 2023, arXiv 2302.13971 and 2307.09288; Llama 3, arXiv 2407.21783): a decoder, and its cache.

    B  sequences     T  new tokens     S  tokens seen so far, new ones included     D  hidden size
    H  query heads   G  key and value heads, H a multiple of G   K  size of a head   V  vocabulary   F  MLP size

What differs from BERT: tokens look back only; positions are rotations of queries and keys instead of added vectors; the
norm is taken before each half of a block and has no mean and no bias; the feed-forward layer is gated.
"""

import math
from dataclasses import dataclass, field, fields

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from common.errors import InputError


TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a model, named as in a Hugging Face `config.json`.

    rope: the rotation's settings; `rope_theta` alone, or with rope_type "linear" (factor) or "llama3" (factor,
    low_freq_factor, high_freq_factor, original_max_position_embeddings).
    """

    vocab_size: int
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    rope: dict = field(default_factory=lambda: {"rope_theta": 10000.0})
    token_ids: dict = field(default_factory=dict)  # bos_token_id and such, for others who read our config.json

    @property
    def key_heads(self):
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self):
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def positions(self):
        """Tokens of the longest prompt with its answer."""
        return self.max_position_embeddings

    @classmethod
    def from_dict(cls, values, source="config.json"):
        """Build from the contents of a `config.json`; unknown keys are ignored, missing ones take our defaults.

        The rotation is read from `rope_theta` and `rope_scaling` or (transformers 5) `rope_parameters`; of both the former.
        Raises InputError, naming `source` and the key, for another architecture or an impossible size.
        """
        if not isinstance(values, dict) or values.get("model_type") != "llama":
            found = values.get("model_type") if isinstance(values, dict) else None
            raise InputError(f"{source}: model_type is {found!r}, and 'llama' is expected")
        if values.get("hidden_act", "silu") not in ("silu", "swish"):
            raise InputError(f"{source}: hidden_act is {values['hidden_act']!r}, and only 'silu' is known")
        chosen = {}
        for one in fields(cls):
            value = values.get(one.name)
            if one.name in ("rope", "token_ids") or value is None:
                continue
            kind = {float: (int, float), bool: bool}.get(one.type, int)
            if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
                wanted = getattr(one.type, "__name__", "int")
                raise InputError(f"{source}: {one.name}: expected {wanted}, found {value!r}")
            if kind is int and value < 1 or one.type is float and not value > 0:
                raise InputError(f"{source}: {one.name} cannot be {value}")
            chosen[one.name] = value
        if "vocab_size" not in chosen:
            raise InputError(f"{source}: vocab_size is missing")
        scaling = values.get("rope_scaling") or values.get("rope_parameters") or {}
        if not isinstance(scaling, dict):
            raise InputError(f"{source}: rope_scaling: expected an object, found {scaling!r}")
        places = [one for one in (values, scaling, values.get("rope_parameters")) if isinstance(one, dict)]
        theta, *others = [one["rope_theta"] for one in places if one.get("rope_theta") is not None] or [10000.0]
        if others != [theta] * len(others):
            raise InputError(f"{source}: rope_theta is {theta!r} in one place and not in another: keep one of them")
        rope = {**scaling, "rope_theta": theta, "rope_type": scaling.get("rope_type") or scaling.get("type") or "default"}
        token_ids = {key: values[key] for key in TOKEN_IDS if values.get(key) is not None}
        for key, value in token_ids.items():  # of end tokens there may be several
            if not all(type(one) is int for one in (value if isinstance(value, list) else [value])):
                raise InputError(f"{source}: {key}: expected a whole number, found {value!r}")
        config = cls(**chosen, rope=rope, token_ids=token_ids)
        config.check(source)
        return config

    def to_dict(self):
        """The `config.json` of a LLaMA that transformers opens."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("rope", "token_ids")}
        values |= {**self.token_ids, "num_key_value_heads": self.key_heads, "head_dim": self.head_size}
        values["rope_parameters"] = {"rope_type": "default", **self.rope}
        # for readers before transformers 5, and Ollama, which would take 10,000 and no scaling in silence
        scaling = {key: value for key, value in self.rope.items() if key != "rope_theta"}
        values["rope_theta"] = self.rope["rope_theta"]
        values["rope_scaling"] = None if scaling.get("rope_type", "default") == "default" else scaling
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", **values}

    def check(self, source):
        """Refuse sizes that do not fit together, and rotations that are not known."""
        H, G = self.num_attention_heads, self.key_heads
        if H % G:
            raise InputError(f"{source}: num_attention_heads {H} is not a multiple of num_key_value_heads {G}")
        if self.head_dim is None and self.hidden_size % H:
            raise InputError(f"{source}: hidden_size {self.hidden_size} is not a multiple of num_attention_heads {H}")
        if self.head_size % 2:
            raise InputError(f"{source}: a head of {self.head_size} numbers cannot be rotated in pairs")
        needed = {"default": (), "linear": ("factor",), "llama3": (
            "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
        )}.get(str(self.rope.get("rope_type", "default")))
        if needed is None:
            raise InputError(f"{source}: rope_type {self.rope['rope_type']!r} is not one of default, linear, llama3")
        for key in ("rope_theta", *needed):
            value = self.rope.get(key)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
                raise InputError(f"{source}: the rotation's {key}: expected a positive number, found {value!r}")


def frequencies(config):
    """Radians that each pair of a head turns per position, (K / 2,) fp32 (Su et al. 2021, arXiv 2104.09864).

    Pair k turns by θ^(-2k / K): with K = 64 and θ = 10,000 the first by 1, the last by 1 / 7,499. Llama 3 stretches
    slow pairs by `factor`, leaves fast ones, and blends between: a pair is slow when its wave is longer than the
    original context over low_freq_factor, fast when shorter than that over high_freq_factor.
    """
    rope, K = config.rope, config.head_size
    turn = rope["rope_theta"] ** -(torch.arange(0, K, 2, dtype=torch.float32) / K)  # (K / 2,)
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        return turn / rope["factor"]
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        waves = rope["original_max_position_embeddings"] * turn / (2 * math.pi)  # in the original context
        share = ((waves - low) / (high - low)).clamp(0, 1)  # 0 for slow pairs, 1 for fast ones
        return share * turn + (1 - share) * turn / rope["factor"]
    return turn


def rotate(x, cosine, sine):
    """Turn pair (x[k], x[k + K/2]) of each head by its angle. x: (B, h, T, K); cosine, sine: (B, 1, T, K)."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


class KeyValueCache:
    """Keys and values of tokens that were seen, per layer (B, G, room, K), filled from the left; `length` of them."""

    def __init__(self, config, batch_size, room, *, device=None, dtype=torch.float32):
        shape = (batch_size, config.key_heads, room, config.head_size)
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.length = 0

    def add(self, layer, key, value):
        """Append (B, G, T, K) and return all so far, (B, G, S, K); `length` moves when the last layer is done."""
        stop = self.length + key.shape[2]
        assert stop <= self.keys[layer].shape[2], "the cache is full"
        self.keys[layer][:, :, self.length : stop] = key
        self.values[layer][:, :, self.length : stop] = value
        if layer == len(self.keys) - 1:
            self.length = stop
        return self.keys[layer][:, :, :stop], self.values[layer][:, :, :stop]


    def copy_from(self, other):
        """Begin with what another cache, of one sequence, holds; every sequence here goes on from it."""
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for here, there in zip(mine, theirs, strict=True):
                here[:, :, : other.length] = there[:, :, : other.length]
        self.length = other.length


class RMSNorm(nn.Module):
    """x / √(mean x² + eps) · weight over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467), in fp32."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class LlamaAttention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245): H / G query heads share a key head."""

    def __init__(self, config, layer):
        super().__init__()
        D, K, bias = config.hidden_size, config.head_size, config.attention_bias
        self.layer, self.head_size = layer, K
        self.q_proj = nn.Linear(D, config.num_attention_heads * K, bias=bias)
        self.k_proj = nn.Linear(D, config.key_heads * K, bias=bias)
        self.v_proj = nn.Linear(D, config.key_heads * K, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * K, D, bias=bias)

    def forward(self, x, rotation, mask, cache):
        B, T, _ = x.shape
        query, key, value = (
            project(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, H or G, T, K)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, *rotation).to(value.dtype), rotate(key, *rotation).to(value.dtype)
        if cache is not None:
            key, value = cache.add(self.layer, key, value)  # (B, G, S, K)
            key, value = key.to(query.dtype), value.to(query.dtype)
        if T == 1:  # heads that share a key head ask it as so many rows: their keys are read once, not H / G times
            rows = query.view(B, key.shape[1], -1, self.head_size)  # (B, G, H / G, K)
            return self.o_proj(F.scaled_dot_product_attention(rows, key, value, attn_mask=mask).reshape(B, 1, -1))  # (B, 1, D)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )  # (B, H, T, K)
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, -1))  # (B, T, D)


class LlamaMLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): down(silu(gate(x)) · up(x))."""

    def __init__(self, config):
        super().__init__()
        D, F_, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(D, F_, bias=bias)
        self.up_proj = nn.Linear(D, F_, bias=bias)
        self.down_proj = nn.Linear(F_, D, bias=bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    """One block, norm first: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config, layer):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x, rotation, mask, cache):
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))  # (B, T, D)


class LlamaModel(nn.Module):
    """Word vectors, blocks and the last norm: ids to one vector per token."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.causal = True  # tokens look back only; False: both ways, without a cache
        self.gradient_checkpointing = False  # keep only each block's input, compute the rest again

    def forward(self, input_ids, attention_mask=None, cache=None):
        """input_ids: (B, T). attention_mask: (B, S) bool, False on padding, which stands on the left; None: no padding.

        With a cache the S - T tokens before were seen already. Returns (B, T, D).
        """
        return self.encode(self.embed_tokens(input_ids), attention_mask, cache)

    def encode(self, words, attention_mask=None, cache=None):
        """The same from vectors of words, (B, T, D)."""
        T, seen = words.shape[1], 0 if cache is None else cache.length
        S = seen + T
        if attention_mask is None:
            positions = torch.arange(seen, S, device=words.device)[None]  # (1, T)
        else:  # the first real token of a row has position 0
            positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, seen:]  # (B, T)
        angles = positions[..., None].float() * frequencies(self.config).to(words.device)  # (B, T, K / 2)
        angles = torch.cat([angles, angles], -1)[:, None]  # (B, 1, T, K)
        x = words.to(self.norm.weight.dtype)  # (B, T, D); sums stay fp32 where norms are
        rotation = angles.cos(), angles.sin()
        mask = self.look_back(attention_mask, seen, T, words.device)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(layer, x, rotation, mask, cache, use_reentrant=False)
            else:
                x = layer(x, rotation, mask, cache)
        return self.norm(x)

    def look_back(self, attention_mask, seen, T, device):
        """(B or 1, 1, T, S) bool, True where a token may look: at itself and what came before it, padding left out.

        None where the kernels' own causal mask says the same. A padding token looks at itself, so that no row of
        the softmax is empty.
        """
        if self.causal and attention_mask is None and (seen == 0 or T == 1):
            return None
        S = seen + T
        if not self.causal:
            every = torch.ones(1, 1, T, S, dtype=torch.bool, device=device)
            return every if attention_mask is None else every & attention_mask[:, None, None, :]
        before = torch.arange(S, device=device) <= torch.arange(seen, S, device=device)[:, None]  # (T, S)
        if attention_mask is None:
            return before[None, None]
        itself = torch.arange(S, device=device) == torch.arange(seen, S, device=device)[:, None]  # (T, S)
        return (before & attention_mask[:, None, None, :]) | itself


class LlamaForCausalLM(nn.Module):
    """The decoder with its output layer, tied to the word vectors where the config says so."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(self.initialise)
        self.tie()

    def tie(self):
        """Let the output layer be the word vectors where the config says so; again after these were replaced."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def initialise(self, module):
        """Normal(0, initializer_range) for matrices and word vectors, zero for biases."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, input_ids, attention_mask=None, cache=None, last_only=False, where=None):
        """Logits of the next token after each, (B, T, V) fp32, or with `last_only` after the last, (B, 1, V).

        where: (B, T) bool, the n places to give them of alone, (n, V).
        """
        hidden = self.model(input_ids, attention_mask, cache)  # (B, T, D)
        if where is not None:
            return self.lm_head(hidden[where]).float()
        return self.lm_head(hidden[:, -1:] if last_only else hidden).float()
