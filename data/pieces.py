"""Pieces of a text to ids, as they stand in the whole of it, and special tokens that no text can forge.

SentencePiece's vocabularies write a space before a text ("▁Who"), so that its first word is the one it is elsewhere.
A piece that continues another has to be encoded without it, or "Question:\\n" + "Who" would become "Question", ":",
"\\n", "▁Who" where the whole text has "Who". Whether a special token also begins a text anew differs: where the space is
the normaliser's (Llama 2 and TinyLlama as published) it does, where it is Metaspace's "first" it does not.
"""

import json
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer

from data.tokenizer import specials_among_pieces


class Special(str):
    """A special token, in contrast to text that looks like it."""


def continuing(tokenizer):
    """The tokenizer for a piece that follows text: itself, or a copy that writes no space before it."""
    return copies(tokenizer)[0]


def behind_special(tokenizer):
    """The same for a piece that follows a special token."""
    return copies(tokenizer)[1]


@lru_cache(maxsize=4)  # a copy of a large vocabulary takes half a second
def copies(tokenizer):
    described, made = json.loads(tokenizer.to_str()), []
    normalizer, words = described["normalizer"], described["pre_tokenizer"]
    for changes in (
        {"normalizer": unprefixed(normalizer), "pre_tokenizer": unprefixed(words, ("first", "always"))},
        {"pre_tokenizer": unprefixed(words, ("first",))},
    ):
        changed = described | changes
        if changed == described:
            made.append(tokenizer)
            continue
        made.append(Tokenizer.from_str(json.dumps(changed)))
        made[-1].encode_special_tokens = True
    return made


def unprefixed(part, schemes=()):
    """A normaliser or pre-tokenizer, as tokenizer.json has it, that puts no space before a text; None for nothing left.

    schemes: of Metaspace, that are to go; where "always" goes, ByteLevel's space goes too.
    """
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        (key,) = set(part) - {"type"}
        kept = [one for one in (unprefixed(inner, schemes) for inner in part[key]) if one is not None]
        return {**part, key: kept} if kept else None
    if part["type"] == "Metaspace" and part.get("prepend_scheme") in schemes:
        return {**part, "prepend_scheme": "never"}
    if part["type"] == "ByteLevel" and part.get("add_prefix_space") and "always" in schemes:
        return {**part, "add_prefix_space": False}
    return part


def encode_pieces(tokenizer, pieces, continues=False):
    """Token ids of texts and Specials in a row; neighbouring texts are joined first. continues: behind other text."""
    ids, text = [], ""
    place = continuing if continues else None
    for piece in [*pieces, None]:
        if piece is None or isinstance(piece, Special):
            if text:
                ids += encode_plain(tokenizer if place is None else place(tokenizer), text)
            text = ""
            if piece is not None:
                ids.append(tokenizer.token_to_id(piece))
                place = behind_special
        else:
            text += piece
    return ids


def encode_plain(tokenizer, text):
    """Ids of a text in which nothing is a special token."""
    before = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    try:
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
    finally:
        tokenizer.encode_special_tokens = before
    specials, unknown = specials_among_pieces(tokenizer)
    return np.where(np.isin(ids, specials), unknown, ids).tolist() if specials else ids.tolist()
