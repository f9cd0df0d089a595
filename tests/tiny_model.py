"""A tiny random BERT with a tokenizer of its own, as a folder: what most tests run on."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from tokenizers.implementations import BertWordPieceTokenizer
from tokenizers.models import WordPiece

from data.tokenizer import save_tokenizer
from model.bert import BertConfig, BertForQuestionAnswering
from model.saving import save_weights

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SAMPLE = Path(__file__).parents[1] / "data" / "sample"
# pairwise different and odd where the architecture allows, so that swapped axes cannot go unseen
TINY = dict(
    hidden_size=35, num_hidden_layers=3, num_attention_heads=5, intermediate_size=53, max_position_embeddings=131,
    type_vocab_size=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3,
)


def sample_texts():
    """Every context of the sample corpus."""
    for part in ("train", "dev"):
        for article in json.loads((SAMPLE / f"{part}.json").read_text(encoding="utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                yield paragraph["context"]


@cache
def make_vocabulary(vocab_size, lowercase):
    """Word piece -> id: every letter of the sample corpus, then its words and ends of words that spare most letters.

    Not by the library's trainer, which breaks ties otherwise each time: tests would run on another model each time.
    """
    plain, words, pieces = BertWordPieceTokenizer(lowercase=lowercase), Counter(), Counter()
    for text in sample_texts():
        found = plain.pre_tokenizer.pre_tokenize_str(plain.normalizer.normalize_str(text))
        words.update(word for word, _ in found)
    for word, count in words.items():
        pieces[word] += count * len(word)
        for start in range(1, len(word) - 1):
            pieces[f"##{word[start:]}"] += count * (len(word) - start)
    letters = sorted({letter for word in words for letter in word})
    best = sorted(pieces, key=lambda piece: (-pieces[piece], piece))
    listed = dict.fromkeys([*SPECIALS, *letters, *(f"##{letter}" for letter in letters), *best])
    return {piece: number for number, piece in enumerate([*listed][:vocab_size])}


def make_tokenizer(vocab_size=1501, lowercase=True):
    """A WordPiece tokenizer of the sample corpus; every letter of it is known."""
    tokenizer = BertWordPieceTokenizer(lowercase=lowercase)._tokenizer
    tokenizer.model = WordPiece(make_vocabulary(vocab_size, lowercase), unk_token="[UNK]")
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


def make_model(vocab_size, seed=0, **changes):
    """A BertForQuestionAnswering of TINY's sizes with random weights."""
    torch.manual_seed(seed)
    return BertForQuestionAnswering(BertConfig(vocab_size=vocab_size, **{**TINY, **changes}))


def make_folder(folder, *, seed=0, with_head=True, lowercase=True, **changes):
    """Write config.json, model.safetensors and the tokenizer; returns the folder.

    with_head=False leaves the span head out, as a pretrained encoder comes.
    """
    from safetensors.torch import load_file, save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(lowercase=lowercase)
    save_weights(make_model(tokenizer.get_vocab_size(), seed, **changes), folder)
    save_tokenizer(tokenizer, folder)
    if not with_head:
        path = folder / "model.safetensors"
        tensors = {name: value for name, value in load_file(path).items() if not name.startswith("qa_outputs")}
        save_file(tensors, path, metadata={"format": "pt"})
    return folder
