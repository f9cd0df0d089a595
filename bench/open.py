"""Questions without their text: how often is the right paragraph found, and answered? python -m bench.open

Every paragraph of the SQuAD files is a passage of one collection. Recall@k counts the questions whose own paragraph is
among the k passages found (another one may hold the answer too, and does not count). Then a fixed sample of
questions is answered from the passages found, scored as SQuAD v1.1. The numbers in docs/results.md are from here.
"""

import argparse
import random
import sys
import time

import numpy as np
from tqdm import tqdm

from common.choices import RANKINGS
from common.errors import InputError
from data.readers import read_dataset
from metrics import evaluate_v1
from answering.reader import Reader
from retrieval.collection import RANK_WEIGHT, Collection, make_ranker, rank_answers, to_read
from retrieval.files import plain_document
from retrieval.passages import Passage
from retrieval.ranking import ranks
from retrieval.vectors import Embedder, sentence_reader
from training.evaluate import references_of


def collect(examples):
    """(Collection without a ranker, the number of each example's paragraph)."""
    numbers = {context: n for n, context in enumerate(dict.fromkeys(example.context for example in examples))}
    documents = [plain_document(str(number), context) for context, number in numbers.items()]
    passages = [Passage(number, 0, len(document.text)) for number, document in enumerate(documents)]
    return Collection(documents, passages, None), [numbers[example.context] for example in examples]


def recall(collection, examples, own, counts):
    """{k: share of questions, in percent, whose own paragraph is among the k best}."""
    places = [
        int(ranks(collection.ranker.scores(example.question))[number])
        for example, number in zip(tqdm(examples, desc="searching", disable=None), own, strict=True)
    ]
    return {k: 100 * sum(place <= k for place in places) / len(places) for k in counts}


def answer(collection, reader, examples, count, known):
    """[(passages, predictions)] of each example; `known` keeps predictions from ranking to ranking."""
    passages = [collection.search(example.question, count) for example in examples]
    new = [(e, p) for e, found in zip(examples, passages, strict=True) for p in found if (e.id, p) not in known]
    to_answer = [one for e, p in new for one in to_read(collection, e.question, [p])]
    with tqdm(total=len(new), desc="reading", disable=None) as bar:
        for (example, passage), prediction in zip(new, reader.predict(to_answer, progress=bar), strict=True):
            known[example.id, passage] = prediction
    return [(found, [known[e.id, p] for p in found]) for e, found in zip(examples, passages, strict=True)]


def score(examples, found, null_threshold, rank_weight):
    """Exact match and F1 of the best answer to each question, by evaluate-v1.1's rules."""
    texts = {
        example.id: answers[0].span.text if (answers := rank_answers(*pair, null_threshold, 1, rank_weight)) else ""
        for example, pair in zip(examples, found, strict=True)
    }
    return evaluate_v1(references_of(examples), texts)


def main(argv=None):
    """Print a line for each ranking and weight; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.open", description=__doc__.split("\n")[0])
    parser.add_argument("data", nargs="+", metavar="FILE")
    parser.add_argument("--model", required=True, help="folder of a reader")
    parser.add_argument("--rank", nargs="+", choices=RANKINGS, default=RANKINGS)
    parser.add_argument("--passages", type=int, default=5, help="read for each question")
    parser.add_argument("--questions", type=int, default=2000, help="answered, a fixed sample")
    parser.add_argument("--skip", type=int, default=0, help="questions of the drawn order left out: another sample")
    parser.add_argument("--paragraphs", type=int, help="only the first so many, for a quick try")
    parser.add_argument("--rank-weight", type=float, nargs="+", default=[RANK_WEIGHT])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args(argv)
    try:
        examples = [example for example in read_dataset(options.data).examples if example.answers]
        collection, own = collect(examples)
        if options.paragraphs:
            examples = [example for example, number in zip(examples, own, strict=True) if number < options.paragraphs]
            collection, own = collect(examples)
        reader = Reader.load(options.model, precision=options.precision)
        shuffled = random.Random(options.seed).sample(examples, len(examples))
        sample = shuffled[options.skip : options.skip + options.questions]
        embedder, known = Embedder(sentence_reader(reader)), {}
        print(f"{len(collection.passages)} passages, {len(examples)} questions, {len(sample)} of them answered")
        texts = [document.text for document in collection.documents]
        with tqdm(total=len(texts) + len(examples), desc="vectors", disable=None) as bar:
            asked = list(dict.fromkeys(example.question for example in examples))
            vectors = dict(zip([*texts, *asked], [*embedder(texts, bar), *embedder(asked, bar)], strict=True))
        for ranking in options.rank:
            began = time.perf_counter()
            collection.ranker = make_ranker(
                texts, ranking, lambda: lambda wanted: np.stack([vectors[text] for text in wanted]),
                lambda look_up: look_up(texts),
            )
            shares = recall(collection, examples, own, (1, 5, 20))
            found = answer(collection, reader, sample, options.passages, known)
            print(f"{ranking}: " + ", ".join(f"recall@{k} {share:.2f}" for k, share in shares.items()), flush=True)
            for threshold in dict.fromkeys((reader.settings.null_threshold, None)):
                for weight in options.rank_weight:
                    scores = score(sample, found, threshold, weight)
                    name = "always answering" if threshold is None else "null threshold as stored"
                    print(f"  {name}, rank weight {weight}: EM {scores['exact_match']:.2f}, F1 {scores['f1']:.2f}")
            print(f"  {time.perf_counter() - began:.0f} s", flush=True)
    except InputError as error:
        print(f"bench.open: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
