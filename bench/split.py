"""Cut nested SQuAD files in two that share no context: python -m bench.split FILE… --share 0.05 --out KEEP HELD

Made the training and held-out files behind docs/results.md.
"""

import argparse
import random
import sys

from common.errors import InputError
from common.files import read_json, write_json


def split_paragraphs(articles, share, seed):
    """(kept, held) articles: each paragraph is held out with probability `share`."""
    generator = random.Random(seed)
    parts = [], []
    for article in articles:
        chosen = [], []
        for paragraph in article["paragraphs"]:
            chosen[generator.random() < share].append(paragraph)
        for part, paragraphs in zip(parts, chosen, strict=True):
            if paragraphs:
                part.append({"title": article.get("title", ""), "paragraphs": paragraphs})
    return parts


def split_articles(articles, share, seed):
    """(kept, held) articles: `share` of them, rounded, are held out whole."""
    order = list(range(len(articles)))
    random.Random(seed).shuffle(order)
    held = set(order[: round(share * len(articles))])
    return [a for k, a in enumerate(articles) if k not in held], [a for k, a in enumerate(articles) if k in held]


def count(articles):
    """Questions in a list of articles."""
    return sum(len(paragraph["qas"]) for article in articles for paragraph in article["paragraphs"])


def main(argv=None):
    """Write the two files and say what is in them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.split", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--share", type=float, required=True, help="share to hold out, 0 to 1")
    parser.add_argument("--by", choices=("paragraph", "article"), default="paragraph")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", nargs=2, required=True, metavar=("KEEP", "HELD"))
    options = parser.parse_args(argv)
    try:
        documents = [read_json(path) for path in options.files]
        articles = [article for document in documents for article in document["data"]]
        cut = split_paragraphs if options.by == "paragraph" else split_articles
        for path, part in zip(options.out, cut(articles, options.share, options.seed), strict=True):
            write_json(path, {"version": documents[0].get("version", "1.1"), "data": part})
            print(f"{path}: {len(part)} articles, {count(part)} questions")
    except InputError as error:
        print(f"bench.split: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
