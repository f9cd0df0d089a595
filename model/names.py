"""Which tensor of a checkpoint is which parameter of ours, written out, a table per family.

Left the name in the file, right ours; {n} is the number of the block. BERT files come with or without the prefix
`bert.` and with TensorFlow's `LayerNorm.gamma` and `.beta`; both are undone first.
"""

import re
from dataclasses import dataclass

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
    name: name.replace("model.", "transformer.", 1) for name in LLAMA_TABLE if name != "lm_head.weight"
} | {"qa_outputs.weight": "qa_outputs.weight", "qa_outputs.bias": "qa_outputs.bias"}


@dataclass(frozen=True)
class Names:
    """A family's table. left_out: what files hold and a model does not need. head: what may be newly made."""

    family: str
    table: dict[str, str]
    left_out: re.Pattern
    head: tuple[str, ...] = ()

    def canonical(self, name):
        """(the file's name as the table spells it, the block's number or "")."""
        name = re.sub(r"^transformer\.", "model.", name.removeprefix("bert."))
        name = re.sub(r"(?<=LayerNorm\.)gamma$", "weight", name)
        name = re.sub(r"(?<=LayerNorm\.)beta$", "bias", name)
        number = re.match(r"(encoder\.layer|model\.layers)\.(\d+)\.", name)
        return (name.replace(number[0], number[1] + ".{n}.", 1), number[2]) if number else (name, "")

    def ours(self, name):
        """Our name for a tensor of the file; None for one that is left out, "" for one that is unknown."""
        canonical, number = self.canonical(name)
        if self.left_out.fullmatch(canonical):
            return None
        return self.table.get(canonical, "").replace("{n}", number)


BERT = Names(
    "BERT", BERT_TABLE,
    # other heads, and a buffer of positions 0, 1, 2...
    re.compile(r"(pooler\..*|cls\..*|classifier\..*|embeddings\.position_ids)"),
    head=("qa_outputs.weight", "qa_outputs.bias"),
)
INV_FREQ = r"model\.(layers\.\{n\}\.self_attn\.)?rotary_emb\.inv_freq"  # computed from config.json
LLAMA = Names("LLaMA", LLAMA_TABLE, re.compile(INV_FREQ))
LLAMA_SPAN = Names(
    "LLaMA with a span head", LLAMA_SPAN_TABLE,
    re.compile(rf"({INV_FREQ}|lm_head\.weight)"),
    head=("qa_outputs.weight", "qa_outputs.bias"),
)
