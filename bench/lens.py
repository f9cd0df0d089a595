"""The span lens on questions that are chosen by a rule: python -m bench.lens FILE --model MODEL

The rule: --articles articles drawn by --seed, in file order, and of each the first question. Of these it prints what /lens
shows. With --count the same is counted over that many questions drawn from the whole file: at which layer the answer
appears, and whether it was right. "no answer" is not on offer, as in SQuAD v1.1. docs/lens.md is from here.
"""

import argparse
import json
import random
import statistics
import sys
from collections import Counter
from dataclasses import dataclass, replace

from common.errors import InputError

THERE = 0.5  # F1 from which a span counts as about the right one


@dataclass(frozen=True, slots=True)
class Seen:
    """A question under the lens. f1: of the answer, 0 to 1. layers: of each hidden state's best span."""

    example: object
    lens: object
    f1: float
    layers: tuple[float, ...]


def first_questions(examples, articles, seed):
    """The first question of each of so many articles, in file order."""
    firsts = {}
    for example in examples:
        firsts.setdefault(example.title, example)
    chosen = set(random.Random(seed).sample([*firsts], min(articles, len(firsts))))
    return [example for title, example in firsts.items() if title in chosen]


def look(reader, examples):
    """The Seen of each example."""
    from inside.case import Case
    from inside.lens import lens
    from metrics.squad import f1_v1

    for example in examples:
        seen = lens(Case(reader, example.question, example.context))
        scores = [
            max(f1_v1(layer.best.text, answer.text) for answer in example.answers) for layer in seen.layers
        ]
        yield Seen(example, seen, scores[-1], tuple(scores))


def summary(found):
    """What a number of Seens have in common, as JSON values."""
    right, wrong = ([one for one in found if (one.f1 >= THERE) is is_right] for is_right in (True, False))
    layers = range(len(found[0].layers))
    appears = lambda some: [Counter(one.lens.appears for one in some)[layer] for layer in layers]  # noqa: E731
    had = [one for one in wrong if any(f1 >= THERE for f1 in one.layers)]
    return {
        "questions": len(found), "appears_right": appears(right), "appears_wrong": appears(wrong),
        "f1": [100 * statistics.mean(one.layers[layer] for one in found) for layer in layers],
        "right_earlier_then_lost": len(had), "lost_after": [
            sum(max(k for k in layers if one.layers[k] >= THERE) == layer for one in had) for layer in layers
        ],
    }


def heading(number, seen):
    """What is asked, and what is right."""
    example = seen.example
    references = " | ".join(dict.fromkeys(answer.text for answer in example.answers))
    return f"{number}. {example.title}: {example.question}\n   references: {references}; F1 {100 * seen.f1:.0f}"


def main(argv=None):
    """Print it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.lens", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("data", metavar="FILE")
    add("--model", help="a run's folder, a model folder, a hub id; unset: as infer.py chooses")
    add("--articles", type=int, default=10)
    add("--count", type=int, default=0, metavar="N", help="count over N questions too")
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--precision", default="fp32")
    add("--json", action="store_true", help="print the counts as one JSON object and nothing else")
    options = parser.parse_args(argv)
    try:
        report(options)
    except InputError as error:
        print(f"bench.lens: {error}", file=sys.stderr)
        return 2
    return 0


def report(options):
    from data.readers import read_dataset
    from inside.command import open_reader
    from prompt.display import Style
    from prompt.pictures import lens_lines

    reader = open_reader(options)
    reader.settings = replace(reader.settings, null_threshold=None)
    examples = [example for example in read_dataset([options.data]).examples if example.answers]
    if not options.json:
        for number, seen in enumerate(look(reader, first_questions(examples, options.articles, options.seed)), 1):
            print("\n".join([heading(number, seen), *lens_lines(seen.lens, Style()), ""]))
    if options.count:
        drawn = random.Random(options.seed).sample(examples, min(options.count, len(examples)))
        print(json.dumps(summary(list(look(reader, drawn)))))


if __name__ == "__main__":
    sys.exit(main())
