"""Which tensor of a checkpoint is which parameter of ours, written out, a table per family.

Left the name in the file, right ours; {n} is the number of the block. An encoder's files come with or without its
prefix, `bert.` or `roberta.`, and with TensorFlow's `LayerNorm.gamma` and `.beta`; both are undone first.
"""

import re
from dataclasses import dataclass
from functools import cached_property

BERT_TABLE = {
    "embeddings.word_embeddings.weight": "bert.embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight": "bert.embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight": "bert.embeddings.token_type_embeddings.weight",
    "embeddings.LayerNorm.weight": "bert.embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias": "bert.embeddings.LayerNorm.bias",
    "encoder.layer.{n}.attention.self.query.weight": "bert.encoder.layer.{n}.attention.self.query.weight",
    "encoder.layer.{n}.attention.self.query.bias": "bert.encoder.layer.{n}.attention.self.query.bias",
    "encoder.layer.{n}.attention.self.key.weight": "bert.encoder.layer.{n}.attention.self.key.weight",
    "encoder.layer.{n}.attention.self.key.bias": "bert.encoder.layer.{n}.attention.self.key.bias",
    "encoder.layer.{n}.attention.self.value.weight": "bert.encoder.layer.{n}.attention.self.value.weight",
    "encoder.layer.{n}.attention.self.value.bias": "bert.encoder.layer.{n}.attention.self.value.bias",
    "encoder.layer.{n}.attention.output.dense.weight": "bert.encoder.layer.{n}.attention.output.dense.weight",
    "encoder.layer.{n}.attention.output.dense.bias": "bert.encoder.layer.{n}.attention.output.dense.bias",
    "encoder.layer.{n}.attention.output.LayerNorm.weight": "bert.encoder.layer.{n}.attention.output.LayerNorm.weight",
    "encoder.layer.{n}.attention.output.LayerNorm.bias": "bert.encoder.layer.{n}.attention.output.LayerNorm.bias",
    "encoder.layer.{n}.intermediate.dense.weight": "bert.encoder.layer.{n}.intermediate.dense.weight",
    "encoder.layer.{n}.intermediate.dense.bias": "bert.encoder.layer.{n}.intermediate.dense.bias",
    "encoder.layer.{n}.output.dense.weight": "bert.encoder.layer.{n}.output.dense.weight",
    "encoder.layer.{n}.output.dense.bias": "bert.encoder.layer.{n}.output.dense.bias",
    "encoder.layer.{n}.output.LayerNorm.weight": "bert.encoder.layer.{n}.output.LayerNorm.weight",
    "encoder.layer.{n}.output.LayerNorm.bias": "bert.encoder.layer.{n}.output.LayerNorm.bias",
    "qa_outputs.weight": "qa_outputs.weight",
    "qa_outputs.bias": "qa_outputs.bias",
}
ELECTRA_TABLE = BERT_TABLE | {
    "embeddings_project.weight": "bert.embeddings_project.weight",
    "embeddings_project.bias": "bert.embeddings_project.bias",
}
DISTILBERT_TABLE = {
    "embeddings.word_embeddings.weight": "bert.embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight": "bert.embeddings.position_embeddings.weight",
    "embeddings.LayerNorm.weight": "bert.embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias": "bert.embeddings.LayerNorm.bias",
    "transformer.layer.{n}.attention.q_lin.weight": "bert.encoder.layer.{n}.attention.self.query.weight",
    "transformer.layer.{n}.attention.q_lin.bias": "bert.encoder.layer.{n}.attention.self.query.bias",
    "transformer.layer.{n}.attention.k_lin.weight": "bert.encoder.layer.{n}.attention.self.key.weight",
    "transformer.layer.{n}.attention.k_lin.bias": "bert.encoder.layer.{n}.attention.self.key.bias",
    "transformer.layer.{n}.attention.v_lin.weight": "bert.encoder.layer.{n}.attention.self.value.weight",
    "transformer.layer.{n}.attention.v_lin.bias": "bert.encoder.layer.{n}.attention.self.value.bias",
    "transformer.layer.{n}.attention.out_lin.weight": "bert.encoder.layer.{n}.attention.output.dense.weight",
    "transformer.layer.{n}.attention.out_lin.bias": "bert.encoder.layer.{n}.attention.output.dense.bias",
    "transformer.layer.{n}.sa_layer_norm.weight": "bert.encoder.layer.{n}.attention.output.LayerNorm.weight",
    "transformer.layer.{n}.sa_layer_norm.bias": "bert.encoder.layer.{n}.attention.output.LayerNorm.bias",
    "transformer.layer.{n}.ffn.lin1.weight": "bert.encoder.layer.{n}.intermediate.dense.weight",
    "transformer.layer.{n}.ffn.lin1.bias": "bert.encoder.layer.{n}.intermediate.dense.bias",
    "transformer.layer.{n}.ffn.lin2.weight": "bert.encoder.layer.{n}.output.dense.weight",
    "transformer.layer.{n}.ffn.lin2.bias": "bert.encoder.layer.{n}.output.dense.bias",
    "transformer.layer.{n}.output_layer_norm.weight": "bert.encoder.layer.{n}.output.LayerNorm.weight",
    "transformer.layer.{n}.output_layer_norm.bias": "bert.encoder.layer.{n}.output.LayerNorm.bias",
    "qa_outputs.weight": "qa_outputs.weight",
    "qa_outputs.bias": "qa_outputs.bias",
}
LLAMA_TABLE = {
    name: name
    for name in (
        "model.embed_tokens.weight",
        "model.layers.{n}.input_layernorm.weight",
        "model.layers.{n}.self_attn.q_proj.weight",
        "model.layers.{n}.self_attn.q_proj.bias",
        "model.layers.{n}.self_attn.k_proj.weight",
        "model.layers.{n}.self_attn.k_proj.bias",
        "model.layers.{n}.self_attn.v_proj.weight",
        "model.layers.{n}.self_attn.v_proj.bias",
        "model.layers.{n}.self_attn.o_proj.weight",
        "model.layers.{n}.self_attn.o_proj.bias",
        "model.layers.{n}.post_attention_layernorm.weight",
        "model.layers.{n}.mlp.gate_proj.weight",
        "model.layers.{n}.mlp.gate_proj.bias",
        "model.layers.{n}.mlp.up_proj.weight",
        "model.layers.{n}.mlp.up_proj.bias",
        "model.layers.{n}.mlp.down_proj.weight",
        "model.layers.{n}.mlp.down_proj.bias",
        "model.norm.weight",
        "lm_head.weight",
    )
}
# transformers calls the decoder `transformer` under a span head, and `model` otherwise
LLAMA_SPAN_TABLE = {
    name.removeprefix("model."): name.replace("model.", "transformer.", 1)
    for name in LLAMA_TABLE if name != "lm_head.weight"
} | {"qa_outputs.weight": "qa_outputs.weight", "qa_outputs.bias": "qa_outputs.bias"}


BLOCKS = re.compile(r"(encoder\.layer|transformer\.layer|(?:model\.)?layers)\.(\d+)\.")
HEAD = ("qa_outputs.weight", "qa_outputs.bias")


@dataclass(frozen=True)
class Names:
    """A family's table. left_out: what files hold and a model does not need. head: what may be newly made.

    prefix: what a file's names begin with, but for the head's, unless the encoder was saved alone. other_prefix: what
    they may begin with instead.
    """

    family: str
    table: dict[str, str]
    left_out: re.Pattern
    head: tuple[str, ...] = ()
    prefix: str = ""
    other_prefix: str = ""

    def canonical(self, name):
        """(the file's name as the table spells it, the block's number or "")."""
        name = name.removeprefix(self.prefix).removeprefix(self.other_prefix)
        name = re.sub(r"(?<=LayerNorm\.)gamma$", "weight", name)
        name = re.sub(r"(?<=LayerNorm\.)beta$", "bias", name)
        number = BLOCKS.match(name)
        return (name.replace(number[0], number[1] + ".{n}.", 1), number[2]) if number else (name, "")

    def ours(self, name):
        """Our name for a tensor of the file; None for one that is left out, "" for one that is unknown."""
        canonical, number = self.canonical(name)
        if self.left_out.fullmatch(canonical):
            return None
        return self.table.get(canonical, "").replace("{n}", number)

    @cached_property
    def back(self):
        """The table from right to left."""
        return {ours: theirs for theirs, ours in self.table.items()}

    def theirs(self, name):
        """The file's name for a parameter of ours, with its prefix."""
        number = re.search(r"\.(\d+)\.", name)
        theirs = self.back[name.replace(number[0], ".{n}.", 1) if number else name]
        theirs = theirs.replace("{n}", number[1]) if number else theirs
        return theirs if name in self.head else self.prefix + theirs

    def layer(self, name):
        """The file's name for a layer of ours: distilbert.transformer.layer.0.attention.q_lin."""
        return self.theirs(f"{name}.weight").removesuffix(".weight")


# other heads, and buffers: positions 0, 1, 2..., token types 0
OTHERS = re.compile(r"(pooler\..*|cls\..*|classifier\..*|embeddings\.position_ids)")
ROBERTA_OTHERS = re.compile(r"(pooler\..*|lm_head\..*|classifier\..*|embeddings\.(position_ids|token_type_ids))")
DISTILBERT_OTHERS = re.compile(r"((vocab_(transform|layer_norm|projector)|(pre_)?classifier)\..*|embeddings\.position_ids)")
ELECTRA_OTHERS = re.compile(
    r"((generator_predictions|generator_lm_head|discriminator_predictions|classifier)\..*|embeddings\.position_ids)"
)
BERT = Names("BERT", BERT_TABLE, OTHERS, HEAD, "bert.")
INV_FREQ = r"(layers\.\{n\}\.self_attn\.)?rotary_emb\.inv_freq"  # computed from config.json
LLAMA = Names("LLaMA", LLAMA_TABLE, re.compile(rf"model\.{INV_FREQ}"))
LLAMA_SPAN = Names(
    "LLaMA with a span head", LLAMA_SPAN_TABLE, re.compile(rf"({INV_FREQ}|lm_head\.weight)"), HEAD, "transformer.",
    "model.",
)
NAMES = {  # by model_type
    "bert": BERT,
    "roberta": Names("RoBERTa", BERT_TABLE, ROBERTA_OTHERS, HEAD, "roberta."),
    "xlm-roberta": Names("XLM-RoBERTa", BERT_TABLE, ROBERTA_OTHERS, HEAD, "roberta."),
    "distilbert": Names("DistilBERT", DISTILBERT_TABLE, DISTILBERT_OTHERS, HEAD, "distilbert."),
    "electra": Names("ELECTRA", ELECTRA_TABLE, ELECTRA_OTHERS, HEAD, "electra."),
    "llama": LLAMA,
}


def names_of(model):
    """The Names of a model's family."""
    family = getattr(model.config, "model_type", "llama")
    return LLAMA_SPAN if family == "llama" and hasattr(model, "qa_outputs") else NAMES[family]
