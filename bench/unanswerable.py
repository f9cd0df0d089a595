"""Add questions without an answer: python -m bench.unanswerable FILE… --share 0.5 --out MIXED

Some of a file's questions are asked once more, about another paragraph of the same article: of a few drawn ones that
hold none of the reference answers, the one that shares most words with the question, so that it is about the right
thing and does not answer. Writes nested SQuAD v2.0 JSON with the original questions and the moved ones.
"""

import argparse
import random
import re
import sys

from common.errors import InputError
from common.files import read_json, write_json

DRAWN = 30  # paragraphs compared for each moved question


def words(text):
    """Lowercased words of over three letters: those that say what a text is about."""
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}


def new_home(question, home, paragraphs, generator):
    """Index of the paragraph that `question` is moved to, or None where each drawn one might answer it."""
    others = [k for k in range(len(paragraphs)) if k != home]
    drawn = generator.sample(others, min(DRAWN, len(others)))
    answers = [answer["text"].strip().lower() for answer in question["answers"]]
    fitting = [k for k in drawn if not any(answer in paragraphs[k]["context"].lower() for answer in answers)]
    asked = words(question["question"])
    return max(fitting, key=lambda k: (len(asked & words(paragraphs[k]["context"])), -k), default=None)


def add_moved(articles, share, seed):
    """New articles, each question with probability `share` moved as well; returns (articles, moved)."""
    generator, made, moved = random.Random(seed), [], 0
    for article in articles:
        paragraphs = article["paragraphs"]
        new = [{"context": p["context"], "qas": []} for p in paragraphs]
        for home, paragraph in enumerate(paragraphs):
            for question in paragraph["qas"]:
                new[home]["qas"].append(question | {"is_impossible": not question["answers"]})
                if not question["answers"] or generator.random() >= share:
                    continue
                place = new_home(question, home, paragraphs, generator)
                if place is not None:
                    new[place]["qas"].append({
                        "id": f"{question['id']}-moved", "question": question["question"], "answers": [],
                        "is_impossible": True,
                    })
                    moved += 1
        made.append({"title": article.get("title", ""), "paragraphs": new})
    return made, moved


def main(argv=None):
    """Write the file and say what is in it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.unanswerable", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--share", type=float, required=True, help="of the questions that are moved as well, 0 to 1")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", required=True, metavar="MIXED")
    options = parser.parse_args(argv)
    if not 0 <= options.share <= 1:
        parser.error("--share is a number from 0 to 1")
    try:
        documents = [read_json(path) for path in options.files]
        for path, document in zip(options.files, documents, strict=True):
            if not isinstance(document, dict) or not isinstance(document.get("data"), list):
                raise InputError(f"{path}: expected nested SQuAD JSON, an object with data")
        articles = [article for document in documents for article in document["data"]]
        made, moved = add_moved(articles, options.share, options.seed)
        write_json(options.out, {"version": "v2.0", "data": made})
    except InputError as error:
        print(f"bench.unanswerable: {error}", file=sys.stderr)
        return 2
    total = sum(len(paragraph["qas"]) for article in made for paragraph in article["paragraphs"])
    print(f"{options.out}: {total} questions, {moved} of them moved to a paragraph that does not answer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
