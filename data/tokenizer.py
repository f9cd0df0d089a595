"""A model folder's tokenizer, set up so that it keeps every character and knows no tricks.

`tokenizers` does the word pieces (WordPiece: Wu et al. 2016, arXiv 1609.08144, section 4.1); offsets it
gives are code points of the original text, whatever its normaliser dropped or decomposed on the way.
"""

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from common.errors import InputError
from common.files import read_json, read_text, write_atomic, write_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def load_tokenizer(folder, vocab_size=None):
    """Read `tokenizer.json`, or `vocab.txt` with `tokenizer_config.json` beside it.

    Truncation and padding that the file ships (MiniLM's: both 128) are switched off, and a "[SEP]" in a
    user's text is text. vocab_size: rows of the model's word embeddings, which every id must fit.
    Raises InputError for a missing, unreadable or misfitting tokenizer.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_str(read_text(path))
        except InputError:
            raise
        except Exception as error:  # tokenizers raises plain Exception for whatever is wrong in the file
            raise InputError(f"{path}: not a tokenizer ({error})") from None
    else:
        path = folder / "vocab.txt"
        if not path.is_file():
            raise InputError(f"{folder}: neither tokenizer.json nor vocab.txt in it")
        settings = folder / "tokenizer_config.json"
        lowercase = read_json(settings).get("do_lower_case", True) if settings.is_file() else True
        words = read_text(path).splitlines()
        tokenizer = BertWordPieceTokenizer(
            {word: number for number, word in enumerate(words)}, lowercase=lowercase
        )._tokenizer
    for token in SPECIAL_TOKENS:
        if tokenizer.token_to_id(token) is None:
            raise InputError(f"{path}: the vocabulary has no {token}, so this is not a BERT tokenizer")
    size = max(tokenizer.get_vocab().values()) + 1
    if vocab_size is not None and size > vocab_size:
        raise InputError(
            f"{path}: has ids up to {size - 1}, and the model knows {vocab_size} word pieces: they do not belong together"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def save_tokenizer(tokenizer, folder):
    """Write `tokenizer.json` and the `tokenizer_config.json` that transformers wants beside it."""
    folder = Path(folder)
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=False))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": getattr(tokenizer.normalizer, "lowercase", False),
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
    )
