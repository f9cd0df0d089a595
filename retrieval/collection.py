"""Many documents as one: passages found for a question, read, and their answers ranked together."""

import math
from dataclasses import dataclass

import numpy as np

from common.choices import RANKINGS
from data.examples import Example
from retrieval.files import read_folder
from retrieval.kept import kept_file, kept_vectors
from retrieval.passages import GAP, passages_of
from retrieval.ranking import Bm25, Fusion, VectorRanker, best

RANK_WEIGHT = 2.0  # the best of nine from 0 to 8, or within 0.1 F1 of it, for each ranking: docs/results.md
QUESTION_CHARACTERS = 2_000  # the vectors look at 256 tokens and the reader at fewer


@dataclass(frozen=True, slots=True)
class Found:
    """An answer: a Span of a passage's text. score: what it is ranked by; probability: among all that were found."""

    passage: int
    span: object
    score: float
    probability: float


class Collection:
    """Documents, their passages and a ranker. Threads may share it."""

    def __init__(self, documents, passages, ranker):
        self.documents, self.passages, self.ranker = documents, passages, ranker

    def counts(self):
        """How much there is."""
        return {"files": len(self.documents), "passages": len(self.passages)}

    def text(self, passage):
        """The text of passage number `passage`."""
        place = self.passages[passage]
        return self.documents[place.document].text[place.start : place.end]

    def search(self, question, count):
        """Numbers of the `count` passages that fit best, best first. Of a very long question its beginning counts."""
        return best(self.ranker.scores(question[:QUESTION_CHARACTERS]), count).tolist()

    def describe(self, found):
        """A Found as the API and --json give it."""
        place = self.passages[found.passage]
        document = self.documents[place.document]
        line, start, end = document.place(place.start + found.span.start, place.start + found.span.end)
        return {
            "answer": found.span.text, "file": document.name, "line": line, "start": start, "end": end,
            "score": found.probability, "passage": self.text(found.passage), "passage_start": found.span.start,
        }


def open_collection(folder, ranking, embedder, progress=None, cache=None):
    """(Collection, notices) of a folder. embedder: called for an Embedder where `ranking` wants vectors.

    cache: a folder that keeps vectors from start to start (see retrieval/kept.py); None keeps none.
    """
    documents, notices = read_folder(folder)
    passages = [p for number, document in enumerate(documents) for p in passages_of(number, document.text)]
    texts = [documents[p.document].text[p.start : p.end] for p in passages]

    def encode(embed):
        if cache is None:
            return embed(texts, progress)
        vectors, remarks = kept_vectors(texts, embed, kept_file(cache, folder, embed), progress)
        notices.extend(remarks)
        return vectors

    return Collection(documents, passages, make_ranker(texts, ranking, embedder, encode)), notices


def make_ranker(texts, ranking, embedder, encode):
    """The ranker called `ranking`, one of RANKINGS, over the texts of passages.

    embedder() gives what makes vectors of questions, and encode(that) the vectors (P, D) of the texts.
    """
    assert ranking in RANKINGS
    rankers = []
    if ranking in ("both", "bm25"):
        rankers.append(Bm25(texts))
    if ranking in ("both", "vectors"):
        embed = embedder()
        rankers.append(VectorRanker(encode(embed), embed))
    return rankers[0] if len(rankers) == 1 else Fusion(tuple(rankers))


def to_read(collection, question, passages):
    """The Examples a reader has to answer, one for each passage number."""
    question = question[:QUESTION_CHARACTERS]  # once for each passage: a long one would cost as often
    return [Example(str(p), question, collection.text(p), None, "question") for p in passages]


def rank_answers(passages, predictions, null_threshold, count, rank_weight=RANK_WEIGHT):
    """The `count` best answers as Found, best first; none from a passage of which the model says "no answer".

    passages: their numbers, best first; predictions: of each. A span within one paragraph counts by its score less
    rank_weight times the logarithm of its passage's rank, others do not count. The probabilities are a softmax over
    all spans that are weighed; of spans that overlap only the best is given.
    """
    weighed = []
    for rank, (passage, prediction) in enumerate(zip(passages, predictions, strict=True), 1):
        if prediction.answer(null_threshold) is not None:
            weighed += [
                (span.score - rank_weight * math.log(rank), passage, span)
                for span in prediction.spans
                if not GAP.search(span.text)  # a heading and what follows it, or two paragraphs: no answer
            ]
    weighed.sort(key=lambda one: -one[0])
    if not weighed:
        return []
    scores = np.array([score for score, _, _ in weighed])
    shares = np.exp(scores - scores[0])
    shares /= shares.sum()
    found = []
    for (score, passage, span), share in zip(weighed, shares, strict=True):
        if len(found) == count:
            break
        if not any(f.passage == passage and f.span.start < span.end and span.start < f.span.end for f in found):
            found.append(Found(passage, span, score, float(share)))
    return found
