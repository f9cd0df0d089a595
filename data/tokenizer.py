"""A model folder's tokenizer, set up so that it keeps every character and knows no tricks.

`tokenizers` does the word pieces (WordPiece: Wu et al. 2016, arXiv 1609.08144, section 4.1); offsets it
gives are code points of the original text, whatever its normaliser dropped or decomposed on the way.
"""

from io import StringIO
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from common.errors import InputError
from common.files import read_json, read_text, write_atomic, write_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def load_tokenizer(folder, vocab_size=None, special_tokens=SPECIAL_TOKENS):
    """Read `tokenizer.json`, or BERT's `vocab.txt` with `tokenizer_config.json` beside it.

    Truncation and padding that the file ships (MiniLM's: both 128) are switched off, and a "[SEP]" in a
    user's text is text. vocab_size: rows of the model's word embeddings, which every id must fit. special_tokens:
    what the vocabulary has to hold; a decoder's are its chat format's business.
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
        tokenizer = from_vocabulary(path, folder / "tokenizer_config.json")
    vocabulary = tokenizer.get_vocab()
    # tokens added beside the vocabulary do not count: WordPiece needs an [UNK] of its own, or it raises later
    require_special_tokens(path, tokenizer.get_vocab(with_added_tokens=False), special_tokens)
    size = max(vocabulary.values()) + 1
    if vocab_size is not None and size > vocab_size:
        raise InputError(
            f"{path}: has ids up to {size - 1}, and the model knows {vocab_size} word pieces: "
            f"they do not belong together"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def require_special_tokens(path, vocabulary, special_tokens=SPECIAL_TOKENS):
    """Raise InputError when the vocabulary lacks what a window is built with."""
    for token in special_tokens:
        if token not in vocabulary:
            raise InputError(f"{path}: the vocabulary has no {token}, so this is not a BERT tokenizer")


def from_vocabulary(path, settings_path):
    """The tokenizer of a `vocab.txt`, a word piece a line, its number the id; settings may be absent."""
    # only line ends part the lines: str.splitlines would also cut at a piece such as U+2028 and shift all ids
    words = [line.rstrip("\n") for line in StringIO(read_text(path), newline=None)]
    vocabulary = {word: number for number, word in enumerate(words)}
    require_special_tokens(path, vocabulary)
    settings = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    found = read_json(settings_path) if settings_path.is_file() else {}
    if not isinstance(found, dict):
        raise InputError(f"{settings_path}: expected a JSON object of the tokenizer's settings")
    for name, default in settings.items():
        value = found.get(name, default)
        if type(value) is not bool and value is not default:
            raise InputError(f"{settings_path}: {name} should be true or false, found {value!r}")
        settings[name] = value
    return BertWordPieceTokenizer(
        vocabulary,
        lowercase=settings["do_lower_case"],
        strip_accents=settings["strip_accents"],  # None: as lowercase
        handle_chinese_chars=settings["tokenize_chinese_chars"],
    )._tokenizer


def tokenizer_settings(folder):
    """The contents of a folder's tokenizer_config.json, with its chat template wherever that stands; {} without."""
    folder = Path(folder)
    path, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object of the tokenizer's settings")
    if template.is_file():
        values["chat_template"] = read_text(template)
    if isinstance(values.get("chat_template"), list):  # several, by name
        named = [one for one in values["chat_template"] if isinstance(one, dict) and one.get("name") == "default"]
        values["chat_template"] = named[0].get("template") if named else None
    if not isinstance(values.get("chat_template"), (str, type(None))):
        raise InputError(f"{path}: chat_template: expected a text")
    return values


def save_tokenizer(tokenizer, folder, settings=None):
    """Write `tokenizer.json` and the `tokenizer_config.json` that transformers wants beside it.

    settings: contents of the latter; None for those of a BERT.
    """
    folder = Path(folder)
    if settings is not None:
        write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=False))
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **settings})
        return
    normalizer = tokenizer.normalizer
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=False))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "BertTokenizer",
            # from these three transformers makes its normaliser, whatever tokenizer.json says
            "do_lower_case": getattr(normalizer, "lowercase", False),
            "strip_accents": getattr(normalizer, "strip_accents", None),
            "tokenize_chinese_chars": getattr(normalizer, "handle_chinese_chars", True),
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
    )
