"""Which passages may hold the answer: by their words (BM25), by their meaning (vectors), by both."""

import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from common.errors import InputError

WORD = re.compile(r"\w+")
LETTERS = str.maketrans({"\u064a": "\u06cc", "\u0643": "\u06a9"})  # Arabic ye and kaf, which Persian texts mix with theirs
FUSION = 60  # Cormack, Clarke, Büttcher 2009: the constant of reciprocal rank fusion


def words(text):
    """The words of a text as they are compared: any script, without case, compatibility forms and marks of vowels."""
    folded = unicodedata.normalize("NFKD", text.casefold().translate(LETTERS))
    return WORD.findall("".join(c for c in folded if not unicodedata.combining(c)))


class Bm25:
    """Okapi BM25 (Robertson et al. 1994) in Lucene's variant, by the bm25s library."""

    def __init__(self, texts):
        try:
            import bm25s
        except ModuleNotFoundError:
            raise InputError("bm25s is not installed; get what documents need with: pip install -e '.[docs]'") from None
        self.index, self.count = bm25s.BM25(method="lucene"), len(texts)
        found = [words(text) for text in texts]
        if any(found):
            self.index.index(found, show_progress=False)
        else:  # letters that are nothing but marks; the library wants a word
            self.index.vocab_dict = {}

    def scores(self, question):
        """(P,) of all passages; 0 for one that shares no word with the question."""
        asked = [word for word in words(question) if word in self.index.vocab_dict]
        return self.index.get_scores(asked) if asked else np.zeros(self.count, np.float32)


class VectorRanker:
    """Cosine of unit vectors, (P, D) of the passages; `embed` makes those of questions."""

    def __init__(self, vectors, embed):
        self.vectors, self.embed = vectors, embed

    def scores(self, question):
        """(P,) of all passages."""
        return self.vectors @ self.embed([question])[0]


@dataclass(frozen=True, slots=True)
class Fusion:
    """Reciprocal rank fusion: 1 / (60 + rank), summed over rankers. Their scores need no common scale."""

    rankers: tuple

    def scores(self, question):
        """(P,) of all passages."""
        return sum(1 / (FUSION + ranks(ranker.scores(question))) for ranker in self.rankers)


def ranks(scores):
    """(P,) the rank of each passage, from 1; equal scores keep their order."""
    order = np.argsort(-scores, kind="stable")
    places = np.empty(len(scores), np.int64)
    places[order] = np.arange(1, len(scores) + 1)
    return places


def best(scores, count):
    """Indices of the `count` best passages, best first; equal scores keep their order."""
    return np.argsort(-scores, kind="stable")[:count]
