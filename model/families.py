"""BERT and its relatives: what their `config.json` says, and the few things in which they differ.

                 positions from    token types    vectors of words    dropout beside BERT's
    bert         0                 0 and 1        D                   none
    roberta      pad + 1           all 0          D                   none           (Liu et al. 2019, arXiv 1907.11692)
    xlm-roberta  pad + 1           all 0          D                   none           (Conneau et al. 2020, 1911.02116)
    distilbert   0                 none           D                   before the head, and none after attention
                                                                                     (Sanh et al. 2019, arXiv 1910.01108)
    electra      0                 0 and 1        E, projected to D   none           (Clark et al. 2020, 2003.10555)

The numbers of their tensors are the same layers under other names: `model.names`.
"""

from dataclasses import dataclass, field, fields
from functools import partial

import torch.nn.functional as F

from common.errors import InputError

ACTIVATIONS = {
    "gelu": F.gelu,  # the exact form, x * Phi(x), by erf
    "gelu_python": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),  # Google's original TensorFlow code
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
BERT_KEYS = {  # field of BertConfig -> key of config.json
    name: name
    for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
        "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
        "initializer_range", "layer_norm_eps", "pad_token_id",
    )
}
DISTILBERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "qa_dropout": "qa_dropout",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}


@dataclass(frozen=True)
class Family:
    """architecture: the class transformers opens a folder with. token_types: how many are told apart.

    keys: field of BertConfig to key of config.json. defaults: of missing keys, where they are not BERT's.
    """

    architecture: str
    keys: dict[str, str]
    token_types: int = 2
    positions_after_pad: bool = False  # the first token's position is pad_token_id + 1
    attention_output_dropout: bool = True
    defaults: dict[str, float] = field(default_factory=dict)


FAMILIES = {
    "bert": Family("BertForQuestionAnswering", BERT_KEYS),
    "roberta": Family("RobertaForQuestionAnswering", BERT_KEYS, 1, True, defaults={"pad_token_id": 1}),
    "xlm-roberta": Family("XLMRobertaForQuestionAnswering", BERT_KEYS, 1, True, defaults={"pad_token_id": 1}),
    "distilbert": Family(
        "DistilBertForQuestionAnswering", DISTILBERT_KEYS, 0, attention_output_dropout=False,
        defaults={"num_hidden_layers": 6, "qa_dropout": 0.1},
    ),
    "electra": Family(
        "ElectraForQuestionAnswering", BERT_KEYS | {"embedding_size": "embedding_size"},
        defaults={"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    ),
}


@dataclass(frozen=True)
class BertConfig:
    """What `config.json` says of a BERT or a relative; names and defaults as in Hugging Face checkpoints of BERT."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    model_type: str = "bert"
    embedding_size: int = 0  # 0: as hidden_size
    qa_dropout: float = 0.0

    @property
    def family(self):
        """What sets this model's kind apart."""
        return FAMILIES[self.model_type]

    @property
    def word_size(self):
        """Size of the words' vectors, which a projection takes to hidden_size where they differ."""
        return self.embedding_size or self.hidden_size

    @property
    def first_position(self):
        """The row of the position embeddings that belongs to a window's first token."""
        return self.pad_token_id + 1 if self.family.positions_after_pad else 0

    @property
    def positions(self):
        """Tokens of the longest window: of RoBERTa's 514 positions 512."""
        return self.max_position_embeddings - self.first_position

    @classmethod
    def from_dict(cls, values, source="config.json"):
        """Build from the parsed `config.json`; keys that do not change the computation are passed over.

        Raises InputError, naming `source` and the key, for another architecture or an impossible size.
        """
        if not isinstance(values, dict):
            raise InputError(f"{source}: expected a JSON object that describes a model")
        kind = values.get("model_type", "bert")
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise InputError(f"{source}: model_type is {kind!r}, and only {', '.join(FAMILIES)} can be read here")
        if values.get("position_embedding_type", "absolute") != "absolute":
            raise InputError(f"{source}: position_embedding_type must be 'absolute'")
        if values.get("is_decoder") or values.get("add_cross_attention"):
            raise InputError(f"{source}: a decoder (is_decoder, add_cross_attention) is not a reader")
        family, chosen = FAMILIES[kind], {"model_type": kind}
        kinds = {field.name: field.type for field in fields(cls)}
        for name, key in family.keys.items():
            value = values.get(key, family.defaults.get(name))
            if value is not None:
                check_value(name, key, value, kinds[name], family, source)
                chosen[name] = value
        config = cls(**chosen)
        config.check_together(source)
        return config

    def check_together(self, source):
        """Refuse sizes that do not fit each other; InputError."""
        D, H = (self.family.keys[name] for name in ("hidden_size", "num_attention_heads"))
        if self.pad_token_id >= self.vocab_size:
            raise InputError(f"{source}: pad_token_id {self.pad_token_id} is not below vocab_size {self.vocab_size}")
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"{source}: {D} {self.hidden_size} is not a multiple of {H} {self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            act = self.family.keys["hidden_act"]
            raise InputError(f"{source}: {act} {self.hidden_act!r} is unknown; known are {', '.join(ACTIVATIONS)}")
        if self.positions < 1:
            raise InputError(
                f"{source}: max_position_embeddings {self.max_position_embeddings} leaves none after pad_token_id"
            )

    def to_dict(self):
        """The `config.json` of a question-answering model of this family that transformers opens."""
        values = {name: getattr(self, name) for name in self.family.keys} | {"embedding_size": self.word_size}
        described = {key: values[name] for name, key in self.family.keys.items()}
        return {"architectures": [self.family.architecture], "model_type": self.model_type, **described}


def check_value(name, key, value, kind, family, source):
    """Refuse a value of the wrong type or out of range for a field of BertConfig; InputError."""
    number_fits = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    if not number_fits or isinstance(value, bool):
        raise InputError(f"{source}: {key} should be {kind.__name__}, found {value!r}")
    # two token types at least where the family tells question and text apart by them
    lowest = {"pad_token_id": 0, "type_vocab_size": family.token_types}.get(name, 1 if kind is int else 0)
    below = 1 if name.endswith(("_prob", "_dropout")) else float("inf")
    if kind is not str and not lowest <= value < below:
        raise InputError(f"{source}: {key} cannot be {value}")
