"""The head atlas of a model on a sample of a data set, and pruning by it.

    python -m inside.heads dev.json --model runs/mine
    python -m inside.heads dev.json --model runs/mine --keep 0.7 --out runs/smaller
"""

import argparse
import json
import sys
from pathlib import Path

from common.errors import InputError
from inside.command import add_model, add_sample, command, open_reader, read_sample

BARS = " ▁▂▃▄▅▆▇█"


def build_parser(program):
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", nargs="+", type=Path, metavar="DATA", help="questions with answers, in any format train.py reads")
    add_model(parser)
    add_sample(parser, "to measure on")
    add("--keep", type=share, metavar="SHARE", help="prune until at most this share of the blocks' weights stays")
    add("--out", type=Path, metavar="DIR", help="with --keep: folder for the smaller model")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def share(text):
    value = float(text)
    if not 0 < value < 1:
        raise ValueError
    return value


def picture(losses):
    """A line per block: a bar per head, then the feed-forward half's, as high as its F1 beside the greatest loss."""
    top = max(max(loss.f1 for loss in losses), 1e-9)
    for layer in sorted({loss.unit.layer for loss in losses}):
        bars = {loss.unit.head: BARS[round(max(0.0, loss.f1) / top * 8)] for loss in losses if loss.unit.layer == layer}
        heads = "".join(bars[head] for head in sorted(head for head in bars if head is not None))
        yield f"block {layer:2}  heads |{heads}|  feed-forward |{bars.get(None, '')}|"


def table(found):
    """The atlas as lines, most F1 lost first."""
    yield f"whole model: exact match {found.exact:.2f}, F1 {found.f1:.2f}"
    yield f"{'without':>9}{'parameters':>12}{'EM lost':>9}{'F1 lost':>9}"
    for loss in sorted(found.losses, key=lambda loss: -loss.f1):
        yield f"{str(loss.unit):>9}{loss.parameters:>12,}{loss.exact:9.2f}{loss.f1:9.2f}"


def run(options):
    from tqdm import tqdm

    from common.files import write_folder
    from inside.atlas import atlas, check_prunable, choose, dataset_means, prune_units, scores
    from inside.ablation import units
    from training.measure import latency, parameter_counts

    if (options.keep is None) != (options.out is None):
        raise InputError("--keep says how much stays and --out where the smaller model goes: give both or neither")
    if options.out is not None and options.out.exists():
        raise InputError(f"{options.out}: is there already; choose another --out")
    examples = read_sample(options.data, options.questions, options.seed)
    reader = open_reader(options)
    if options.keep is not None:
        check_prunable(reader)
    means = dataset_means(reader, examples)
    with tqdm(total=len(units(reader.model)), desc="ablating", unit=" parts", leave=False, disable=None) as bar:
        found = atlas(reader, examples, means, bar)
    result = {"questions": len(examples), "exact": found.exact, "f1": found.f1, "losses": [
        {"unit": str(loss.unit), "parameters": loss.parameters, "exact": loss.exact, "f1": loss.f1}
        for loss in found.losses
    ]}
    if not options.json:
        print("\n".join([*table(found), *picture(found.losses)]))
    if options.keep is not None:
        chosen = choose(found, options.keep)
        before = {"exact": found.exact, "f1": found.f1, "parameters": parameter_counts(reader.model)[1],
                  "seconds_per_question": latency(reader, examples)["p50"]}
        prune_units(reader.model, chosen, means)
        exact, f1 = scores(reader, examples)
        after = {"exact": exact, "f1": f1, "parameters": parameter_counts(reader.model)[1],
                 "seconds_per_question": latency(reader, examples)["p50"]}
        write_folder(options.out, reader.save)
        result["pruned"] = {"units": [str(unit) for unit in chosen], "before": before, "after": after}
        if not options.json:
            print(f"pruned: {' '.join(map(str, chosen))}")
            for name, row in (("before", before), ("after", after)):
                print(f"{name:7} {row['parameters']:,} parameters, exact match {row['exact']:.2f}, F1 {row['f1']:.2f}, "
                      f"{1000 * row['seconds_per_question']:.1f} ms a question")
            print(f"ask it: python infer.py --model {options.out}")
    if options.json:
        print(json.dumps(result))
    return 0


main = command("python -m inside.heads", build_parser, run)

if __name__ == "__main__":
    sys.exit(main())
