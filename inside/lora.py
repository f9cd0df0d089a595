"""What LoRA adapters did to their base: singular values, norms, overlaps, and which layers they need.

    python -m inside.lora runs/mine-lora
    python -m inside.lora runs/one runs/other --data dev.json
"""

import json
import sys
from pathlib import Path

from common.output import SentenceParser
from inside.command import add_model, add_sample, command, read_sample


def build_parser(program):
    parser = SentenceParser(prog=program, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("adapter", nargs="+", type=Path, metavar="ADAPTER", help="folders of adapters of one base, or of their runs")
    add_model(parser)
    add_sample(parser, "to score on", "also leave out one layer's update at a time, and score")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def run(options):
    from inside.atlas import scores
    from inside.updates import dropped, overlap, updates

    examples = read_sample(options.data, options.questions, options.seed) if options.data else None
    reader = open_adapters(options)
    names = [name for name in reader.all_settings if name is not None]
    result = {"adapters": {}, "overlap": []}
    for name in names:
        found = updates(reader.model, name)
        rows = [
            {"layer": one.layer, "singular_values": one.singular, "effective_rank": one.effective_rank,
             "norm": one.norm, "base_norm": one.base_norm} for one in found
        ]
        result["adapters"][name] = {"layers": rows}
        if examples:
            reader.set_adapter(name)
            exact, f1 = scores(reader, examples)
            result["adapters"][name] |= {"questions": len(examples), "exact": exact, "f1": f1}
            for row in rows:
                with dropped(reader.model, name, row["layer"]):
                    left = scores(reader, examples)
                row |= {"exact_lost": exact - left[0], "f1_lost": f1 - left[1]}
    for k, first in enumerate(names):
        for second in names[k + 1 :]:
            shares = overlap(reader.model, first, second)
            layers = {layer: {"outputs": out, "inputs": into} for layer, (out, into) in shares.items()}
            result["overlap"].append({"adapters": [first, second], "layers": layers})
    print(json.dumps(result) if options.json else "\n".join(lines(result)))
    return 0


def open_adapters(options):
    """One Reader with all adapters on it, opened as infer.py opens them."""
    from types import SimpleNamespace

    from prompt.loading import open_reader
    from prompt.options import INFER_OPTIONS

    values = {option.name: option.default for option in INFER_OPTIONS}
    values |= {"adapter": options.adapter, "model": options.model, "device": options.device}
    reader, _ = open_reader(SimpleNamespace(**values | {"precision": options.precision}))
    return reader


def lines(result):
    """The tables."""
    for name, found in result["adapters"].items():
        scored = f": exact match {found['exact']:.2f}, F1 {found['f1']:.2f}" if "f1" in found else ""
        yield f"{name}{scored}"
        lost = f"{'EM lost':>9}{'F1 lost':>9}" if scored else ""
        yield f"{'of base':>9}{'eff. rank':>10}{lost}  {'layer':<42}singular values"
        for row in found["layers"]:
            lost = f"{row['exact_lost']:9.2f}{row['f1_lost']:9.2f}" if scored else ""
            values = " ".join(f"{value:.3g}" for value in row["singular_values"][:8])
            share = 100 * row["norm"] / row["base_norm"]
            layer = row["layer"].removeprefix("bert.encoder.")
            yield f"{share:7.2f} %{row['effective_rank']:10.2f}{lost}  {layer:<42}{values}"
    for pair in result["overlap"]:
        yield f"{' and '.join(pair['adapters'])}: mean cos² of the principal angles (outputs, inputs)"
        for layer, both in pair["layers"].items():
            yield f"{both['outputs']:9.3f}{both['inputs']:9.3f}  {layer.removeprefix('bert.encoder.')}"


main = command("python -m inside.lora", build_parser, run)

if __name__ == "__main__":
    sys.exit(main())
