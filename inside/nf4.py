"""What holding a model in 4 bits costs: error per layer and block of numbers, drift of logits, answers that flip.

    python -m inside.nf4 --model runs/mine --data dev.json
"""

import json
import sys
from dataclasses import asdict

from common.choices import QUANTS
from common.output import SentenceParser
from inside.command import add_model, add_sample, command, open_reader, read_sample


def build_parser(program):
    parser = SentenceParser(prog=program, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add_model(parser)
    add("--quant", choices=QUANTS, default="nf4", help="which 4 bits (default nf4)")
    add_sample(parser, "to answer", "also answer questions of these files in both")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def run(options):
    from tqdm import tqdm

    from inside.rounding import drift, layer_errors

    examples = read_sample(options.data, options.questions, options.seed) if options.data else []
    whole, rounded = open_reader(options, None), open_reader(options, options.quant)
    result = {"quant": options.quant, "layers": [asdict(one) for one in layer_errors(whole.model, rounded.model)]}
    if examples:
        with tqdm(total=len(examples), desc="answering", unit=" questions", leave=False, disable=None) as bar:
            found = drift(whole, rounded, examples, bar)
        result["questions"] = [asdict(one) | {"flipped": one.flipped} for one in found]
    print(json.dumps(result) if options.json else "\n".join(lines(result)))
    return 0


def lines(result):
    """The tables."""
    yield f"{'error':>9}{'worst block':>13}{'largest':>10}  layer ({result['quant']})"
    for row in result["layers"]:
        layer = row["layer"].removeprefix("bert.encoder.")
        yield f"{100 * row['relative']:7.2f} %{100 * row['worst']:11.2f} %{row['largest']:10.4f}  {layer}"
    for block in sorted({block_of(row) for row in result["layers"]}):
        rows = [row["relative"] for row in result["layers"] if block_of(row) == block]
        yield f"{100 * sum(rows) / len(rows):7.2f} %  mean of block {block}"
    questions = result.get("questions")
    if not questions:
        return
    drifts = sorted(one["largest"] for one in questions)
    flipped = [one for one in questions if one["flipped"]]
    yield f"{len(questions)} questions: the median greatest drift of a logit is {drifts[len(drifts) // 2]:.3f}"
    yield f"{len(flipped)} answers flip:"
    for one in sorted(flipped, key=lambda one: one["margin"]):
        became = f"{one['answer'] or '(none)'!r} -> {one['rounded_answer'] or '(none)'!r}"
        yield f"  margin {one['margin']:6.3f}  {became}  {one['where']}"
    kept = sorted(one["margin"] for one in questions if not one["flipped"])
    if kept:
        yield f"the {len(kept)} that stay won by a median of {kept[len(kept) // 2]:.3f}"


def block_of(row):
    """The number of the block that a layer is in."""
    return int(row["layer"].split(".layer.")[1].split(".")[0])


main = command("python -m inside.nf4", build_parser, run)

if __name__ == "__main__":
    sys.exit(main())
