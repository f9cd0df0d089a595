"""Tiny random models of each family, with tokenizers trained on the sample corpus, as folders of their own."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.implementations import ByteLevelBPETokenizer

from data.tokenizer import save_tokenizer
from model.bert import BertConfig, BertForQuestionAnswering
from model.names import names_of
from model.saving import save_weights
from tests.tiny_model import TINY, make_tokenizer, sample_texts

ROBERTA_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
CHANGES = {  # of TINY's sizes
    "roberta": dict(pad_token_id=1, type_vocab_size=1, max_position_embeddings=137, layer_norm_eps=1e-5),
    "xlm-roberta": dict(pad_token_id=1, type_vocab_size=1, max_position_embeddings=139, layer_norm_eps=1e-5),
    "distilbert": dict(max_position_embeddings=133),
    "electra": dict(embedding_size=21),
}
FAMILIES = list(CHANGES)
assert len(FAMILIES) == 4


def byte_pairs(vocab_size=1201):
    """A byte-level BPE tokenizer, as RoBERTa's."""
    trainer = ByteLevelBPETokenizer(trim_offsets=True)
    trainer.train_from_iterator(sample_texts(), vocab_size, special_tokens=ROBERTA_SPECIALS, show_progress=False)
    return trainer._tokenizer


def unigrams(vocab_size=1301):
    """A unigram tokenizer, as XLM-R's: compatibility forms and runs of spaces are folded, a space is U+2581."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=ROBERTA_SPECIALS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(sample_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ROBERTA_SPECIALS])
    return tokenizer


TOKENIZERS = {"roberta": byte_pairs, "xlm-roberta": unigrams, "distilbert": make_tokenizer, "electra": make_tokenizer}


def make_family(family, vocab_size, seed=0, **changes):
    """A BertForQuestionAnswering of this model_type with TINY's sizes and random weights."""
    torch.manual_seed(seed)
    values = {"vocab_size": vocab_size, "model_type": family} | TINY | CHANGES[family] | changes
    return BertForQuestionAnswering(BertConfig(**values))


def make_family_folder(folder, family, seed=0, **changes):
    """Write a model folder of this family; returns it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = TOKENIZERS[family]()
    model = make_family(family, tokenizer.get_vocab_size(), seed, **changes)
    save_weights(model, folder)
    if family in ("roberta", "xlm-roberta"):
        from data.tokenizer import require_frame

        require_frame(folder, tokenizer)
    save_tokenizer(tokenizer, folder, token_types=model.config.family.token_types)
    return folder


def reference(ours, attention="sdpa"):
    """transformers' model for question answering of the same family and sizes with the same weights."""
    import transformers

    values = ours.config.to_dict()
    config = transformers.AutoConfig.for_model(**values, attn_implementation=attention)
    theirs = transformers.AutoModelForQuestionAnswering.from_config(config)
    assert type(theirs).__name__ == values["architectures"][0]
    names = names_of(ours)
    theirs.load_state_dict({names.theirs(name): value for name, value in ours.state_dict().items()}, strict=True)
    return theirs


def run_reference(theirs, ids, types, mask):
    """(start, end) logits of transformers' model; token types only where the family has them."""
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    if theirs.config.model_type in ("bert", "electra"):
        inputs["token_type_ids"] = types
    out = theirs(**inputs)
    return out.start_logits, out.end_logits
