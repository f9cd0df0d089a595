"""What a tokenizer's normaliser does to the characters of a text before any word piece is cut."""

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """A character that is lost or replaced: its place, itself, and what is left of it ("" for nothing)."""

    place: int
    character: str
    left: str

    @property
    def name(self):
        """Unicode's name of the character, or its number where it has none."""
        return unicodedata.name(self.character, f"U+{ord(self.character):04X}")


def changes(tokenizer, text, start=0, end=None):
    """The Changes of text[start:end], character by character; white space and the case of letters do not count.

    Worked example: BERT's uncased normaliser takes away the half-space (U+200C) of "می‌شود", so that its letters run
    together, leaves "ا" of "آ", and of "é" an "e".
    """
    if tokenizer.normalizer is None:
        return []
    left, found = {}, []
    for place in range(start, len(text) if end is None else end):
        character = text[place]
        if character.isspace() or "\ud800" <= character <= "\udfff":
            continue
        if character not in left:
            left[character] = tokenizer.normalizer.normalize_str(character).strip()
        if left[character].lower() != character.lower():
            found.append(Change(place, character, left[character]))
    return found
