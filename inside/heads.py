"""The head atlas of a model on a sample of a data set, and pruning by it.

    python -m inside.heads dev.json --model runs/mine
    python -m inside.heads dev.json --model runs/mine --keep 0.7 --out runs/smaller

Measuring takes as many evaluations as there are heads and halves; what --json wrote can be taken again:

    python -m inside.heads dev.json --model runs/mine --json > atlas.json
    python -m inside.heads dev.json --model runs/mine --atlas atlas.json --keep 0.9 --out runs/smaller
"""

import json
import sys
from pathlib import Path

from common.errors import InputError
from common.files import read_json
from common.output import SentenceParser
from inside.command import add_model, add_sample, between, command, open_reader, read_sample

BARS = " ▁▂▃▄▅▆▇█"


def build_parser(program):
    parser = SentenceParser(prog=program, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", nargs="+", type=Path, metavar="DATA", help="questions with answers, in any format train.py reads")
    add_model(parser)
    add_sample(parser, "to measure on")
    add("--atlas", type=Path, metavar="FILE", help="what --json wrote of this model and sample, not to be measured again")
    add("--keep", type=between(0, 1), metavar="SHARE", help="prune until at most this share of the blocks' weights stays")
    add("--out", type=Path, metavar="DIR", help="with --keep: folder for the smaller model")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def picture(losses):
    """A line per block: a bar per head, then the feed-forward half's, as high as its F1 beside the greatest loss.

    "-" stands for what does harm: without it F1 is higher.
    """
    top = max(max(loss.f1 for loss in losses), 1e-9)
    for layer in sorted({loss.unit.layer for loss in losses}):
        mine = [loss for loss in losses if loss.unit.layer == layer]
        bars = {loss.unit.head: "-" if loss.f1 <= -0.005 else BARS[round(max(0.0, loss.f1) / top * 8)] for loss in mine}
        heads = "".join(bars[head] for head in sorted(head for head in bars if head is not None))
        yield f"block {layer:2}  heads |{heads}|  feed-forward |{bars.get(None, '')}|"


def table(found):
    """The atlas as lines: of each measure a Markdown table with a row per block, the feed-forward half last."""
    yield f"whole model: exact match {found.exact:.2f}, F1 {found.f1:.2f}"
    layers = sorted({loss.unit.layer for loss in found.losses})
    columns = [*range(max(loss.unit.head + 1 for loss in found.losses if loss.unit.head is not None)), None]
    for title, measure in (("F1 lost", "f1"), ("EM lost", "exact")):
        cells = {(loss.unit.layer, loss.unit.head): f"{getattr(loss, measure):5.2f}" for loss in found.losses}
        yield f"\n| {title} | {' | '.join('   ff' if head is None else f'{head:5}' for head in columns)} |"
        yield f"|---{'|---:' * len(columns)}|"
        for layer in layers:
            yield f"| block {layer} | {' | '.join(cells.get((layer, head), ' ' * 5) for head in columns)} |"
    yield ""


def stored_atlas(path, model, measured):
    """The Atlas in a file; InputError when it is not of this model and these questions. measured: their `fingerprints`."""
    from inside.ablation import units
    from inside.atlas import Atlas, Loss, sizes

    known, value = {str(unit): unit for unit in units(model)}, read_json(path)
    try:
        losses = tuple(
            Loss(known[row["unit"]], row["parameters"], float(row["exact"]), float(row["f1"])) for row in value["losses"]
        )
        found = Atlas(float(value["exact"]), float(value["f1"]), losses)
        same = value["measured"] == measured and {loss.unit: loss.parameters for loss in losses} == sizes(model)
    except (KeyError, TypeError, ValueError):
        same = False
    if not same:
        raise InputError(
            f"{path}: not what python -m inside.heads --json wrote of this model and these questions; measure it again"
        )
    return found


def run(options):
    from tqdm import tqdm

    from common.files import write_folder
    from inside.atlas import atlas, check_prunable, choose, dataset_means, fingerprints, prune_units, scores
    from inside.ablation import units
    from training.measure import latency, parameter_counts

    if (options.keep is None) != (options.out is None):
        raise InputError("--keep says how much stays and --out where the smaller model goes: give both or neither")
    if options.out is not None and options.out.exists():
        raise InputError(f"{options.out}: is there already; choose another --out")
    examples = read_sample(options.data, options.questions, options.seed)
    reader = open_reader(options)
    if options.keep is not None:
        check_prunable(reader, options.keep)
    means, measured = dataset_means(reader, examples), fingerprints(reader, examples)
    if options.atlas is not None:
        found = stored_atlas(options.atlas, reader.model, measured)
    else:
        with tqdm(total=len(units(reader.model)), desc="ablating", unit=" parts", leave=False, disable=None) as bar:
            found = atlas(reader, examples, means, bar)
    result = {"questions": len(examples), "measured": measured, "exact": found.exact, "f1": found.f1, "losses": [
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
