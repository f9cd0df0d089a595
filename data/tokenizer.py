"""A model folder's tokenizer, set up so that it keeps every character and knows no tricks.

`tokenizers` does the word pieces (BERT: WordPiece, Wu et al. 2016, arXiv 1609.08144, section 4.1; RoBERTa: byte pairs,
Sennrich et al. 2016, 1508.07909; XLM-R: unigrams, Kudo 2018, 1804.10959); offsets it gives are code points of the
original text, whatever its normaliser dropped or decomposed on the way.
"""

import json
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from tokenizers import Tokenizer, models
from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing

from common.errors import InputError
from common.files import read_json, read_text, write_atomic, write_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
ROBERTA_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")
PROBE = "a \U0010fffd"  # a letter, and a character that no vocabulary has


@dataclass(frozen=True, slots=True)
class PairLayout:
    """Ids around the two texts of a window: opening, question, middle, slice, last. pad: the padding token's.

    null_last: "no answer" is the last token's, and not the first's.
    """

    opening: tuple[int, ...]
    middle: tuple[int, ...]
    last: tuple[int, ...]
    pad: int
    null_last: bool = False

    @property
    def before(self):
        """Tokens before the slice beside the question's."""
        return len(self.opening) + len(self.middle)

    @property
    def specials(self):
        """Tokens of a window beside those of its texts."""
        return self.before + len(self.last)


def is_word_piece(tokenizer):
    """Whether a tokenizer is of BERT's kind, which parts words at white space and drops it."""
    return type(tokenizer.model) is models.WordPiece


def is_byte_level(tokenizer):
    """Whether a tokenizer joins bytes, as GPT-2's and Llama 3's do, and not SentencePiece's pieces."""
    part = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
    return any(one["type"] == "ByteLevel" for one in part.get("pretokenizers", [part]) if one)


def pair_layout(tokenizer):
    """The PairLayout of a tokenizer: as it frames a pair itself, or BERT's where its file leaves that open."""
    pads = [tokenizer.token_to_id(tokens[0]) for tokens in (SPECIAL_TOKENS, ROBERTA_TOKENS)]
    pad = next((pad for pad in pads if pad is not None), 0)
    if not tokenizer.num_special_tokens_to_add(True):
        cls, sep = map(tokenizer.token_to_id, SPECIAL_TOKENS[2:])
        return PairLayout((cls,), (sep,), (sep,), pad)
    encoding = tokenizer.encode(PROBE, PROBE)
    ids, texts = encoding.ids, encoding.sequence_ids
    question, slice_ = texts.index(0), texts.index(1)
    after = question + texts.count(0), slice_ + texts.count(1)
    return PairLayout(tuple(ids[:question]), tuple(ids[after[0] : slice_]), tuple(ids[after[1] :]), pad)


def load_tokenizer(folder, vocab_size=None, framed=True):
    """Read `tokenizer.json`, else `vocab.json` with `merges.txt` or `vocab.txt`, by `tokenizer_config.json`.

    Truncation and padding that the file ships (MiniLM's: both 128) are switched off, and a "[SEP]" in a
    user's text is text. vocab_size: rows of the model's word embeddings, which every id must fit. framed: it has to
    know how an encoder's pair of texts is framed; a decoder's special tokens are its chat format's business.
    Raises InputError for a missing, unreadable or misfitting tokenizer.
    """
    folder = Path(folder)
    path, tokenizer = read_tokenizer(folder)
    if framed and is_word_piece(tokenizer):
        # tokens added beside the vocabulary do not count: WordPiece needs an [UNK] of its own, or it raises later
        require_special_tokens(path, tokenizer.get_vocab(with_added_tokens=False))
    elif framed:
        require_frame(path, tokenizer)
    size = max(tokenizer.get_vocab().values()) + 1
    if vocab_size is not None and size > vocab_size:
        raise InputError(
            f"{path}: has ids up to {size - 1}, and the model knows {vocab_size} word pieces: "
            f"they do not belong together"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def specials_among_pieces(tokenizer):
    """(ids of special tokens that a text could forge, what stands for them there).

    A unigram model has "</s>" among its pieces, so that it finds it in a text even where special tokens are not looked
    for; byte pairs and word pieces never grow into one.
    """
    unknown = tokenizer.token_to_id(ROBERTA_TOKENS[1])
    if type(tokenizer.model) is not models.Unigram or unknown is None:
        return [], unknown
    added = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    named = {tokenizer.token_to_id(token) for token in (*ROBERTA_TOKENS, "<mask>")}
    return sorted((added | named) - {unknown, None}), unknown


def read_tokenizer(folder):
    """(the file that says most about it, the tokenizer) of a model folder; InputError without a readable one."""
    path = folder / "tokenizer.json"
    settings = folder / "tokenizer_config.json"
    if path.is_file():
        try:
            return path, Tokenizer.from_str(read_text(path))
        except InputError:
            raise
        except Exception as error:  # tokenizers raises plain Exception for whatever is wrong in the file
            raise InputError(f"{path}: not a tokenizer ({error})") from None
    path = folder / "vocab.json"
    if path.is_file() and (folder / "merges.txt").is_file():
        return path, from_merges(path, folder / "merges.txt", settings)
    path = folder / "vocab.txt"
    if path.is_file():
        return path, from_vocabulary(path, settings)
    if any(folder.glob("*.model")):  # SentencePiece's own format
        raise InputError(
            f"{folder}: no tokenizer.json in it; make one where transformers is installed: "
            f"AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    raise InputError(f"{folder}: neither tokenizer.json nor vocab.txt in it")


def require_frame(path, tokenizer):
    """Give a tokenizer that is not BERT's RoBERTa's frame of a pair where it has none; InputError if it cannot be."""
    names = tokenizer.get_vocab()
    if SPECIAL_TOKENS[0] not in names and ROBERTA_TOKENS[0] not in names:
        raise InputError(f"{path}: the vocabulary has neither [PAD] nor <pad>, so this is not an encoder's tokenizer")
    if not tokenizer.num_special_tokens_to_add(True):
        cls, sep = ROBERTA_TOKENS[2:]
        if cls not in names or sep not in names:
            raise InputError(f"{path}: has no post_processor, and its vocabulary not both {cls} and {sep}")
        tokenizer.post_processor = TemplateProcessing(
            single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} {sep} $B {sep}",
            special_tokens=[(cls, names[cls]), (sep, names[sep])],
        )
    try:
        layout = pair_layout(tokenizer)
    except Exception as error:  # of tokenizers, for an unknown character; ValueError where a text leaves no token
        raise InputError(f"{path}: cannot read {PROBE!r} ({error})") from None
    if not (layout.opening and layout.middle and layout.last):
        raise InputError(f"{path}: its post_processor does not frame a pair of texts")


def require_special_tokens(path, vocabulary):
    """Raise InputError when the vocabulary lacks what a window is built with."""
    for token in SPECIAL_TOKENS:
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


def from_merges(path, merges_path, settings_path):
    """The byte-level tokenizer of a `vocab.json` and its `merges.txt`, as RoBERTa has."""
    vocabulary, settings = read_json(path), read_json(settings_path) if settings_path.is_file() else {}
    lines = read_text(merges_path).split("\n")
    merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    if not isinstance(vocabulary, dict) or not all(type(number) is int for number in vocabulary.values()):
        raise InputError(f"{path}: expected an object of word piece to number")
    prefix = settings.get("add_prefix_space", False) if isinstance(settings, dict) else None
    if type(prefix) is not bool:
        raise InputError(f"{settings_path}: expected an object with add_prefix_space true or false")
    try:
        return ByteLevelBPETokenizer(vocabulary, merges, add_prefix_space=prefix, trim_offsets=True)._tokenizer
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"{merges_path}: not the merges of {path.name} ({error})") from None


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


def save_tokenizer(tokenizer, folder, settings=None, token_types=2):
    """Write `tokenizer.json` and the `tokenizer_config.json` that transformers wants beside it.

    settings: contents of the latter, of a decoder. token_types: how many an encoder tells apart; transformers is told
    to give none to one that tells less than 2.
    """
    folder = Path(folder)
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=False))
    if settings is not None:
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **settings})
        return
    values = bert_settings(tokenizer) if is_word_piece(tokenizer) else frame_settings(tokenizer)
    inputs = {} if token_types == 2 else {"model_input_names": ["input_ids", "attention_mask"]}
    write_json(folder / "tokenizer_config.json", values | inputs)


def bert_settings(tokenizer):
    """What transformers makes its tokenizer for BERT of."""
    normalizer = tokenizer.normalizer
    return {
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
    }


def frame_settings(tokenizer):
    """The same for a tokenizer that transformers takes as tokenizer.json has it."""
    layout, names = pair_layout(tokenizer), tokenizer.get_vocab()
    cls, sep = tokenizer.id_to_token(layout.opening[0]), tokenizer.id_to_token(layout.last[-1])
    values = {"bos_token": cls, "eos_token": sep, "cls_token": cls, "sep_token": sep}
    values["pad_token"] = tokenizer.id_to_token(layout.pad)
    found = {"unk_token": (ROBERTA_TOKENS[1], SPECIAL_TOKENS[1]), "mask_token": ("<mask>", "[MASK]")}
    for key, spellings in found.items():
        values |= {key: token for token in spellings if token in names}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **values}
