"""Hold a model's activations, layer by layer, against those of another implementation.

    python -m inside.verify                      # the tiny model that comes along, with golden activations
    python -m inside.verify bert-base-uncased    # any BERT or relative of it, against transformers where that is installed
    python -m inside.verify FOLDER --golden FILE.safetensors
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

from common.errors import InputError
from common.output import SentenceParser
from inside.command import between, command

TOLERANCE = 1e-5  # of the scale of a layer: fp32 rounding, summed over some hundred numbers


def build_parser(program):
    parser = SentenceParser(prog=program, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="a model folder, a hub id or minilm; unset: the tiny one within")
    add("--golden", type=Path, metavar="FILE", help="activations to compare with, as bench/activations.py writes them")
    add("--tolerance", type=between(0, 1), default=TOLERANCE, metavar="X", help=f"relative difference allowed ({TOLERANCE})")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def run(options):
    """0 when all agree, 1 when something diverges."""
    from inside.activations import ACTIVATIONS, GOLDEN, activations, compare, first_divergence, probe
    from model.weights import load_model

    folder = GOLDEN if options.model is None else comparable(options.model)
    golden = GOLDEN / ACTIVATIONS if options.model is None and options.golden is None else options.golden
    model, report = load_model(folder)
    ids, types, mask = probe(model.config)
    ours = activations(model, ids, types, mask)
    theirs, source = golden_activations(golden) if golden else live_activations(folder, (ids, types, mask))
    if report.head_is_new:  # made at random by each side
        for name in ("start_logits", "end_logits"):
            ours.pop(name), theirs.pop(name, None)
    layers = compare(ours, theirs, mask)
    first = first_divergence(layers, options.tolerance)
    if options.json:
        rows = [{"name": one.name, "largest": one.largest, "scale": one.scale} for one in layers]
        print(json.dumps({"against": source, "layers": rows, "first_divergence": first and first.name}))
    else:
        print(f"{folder}, against {source}")
        for one in layers:
            mark = "  diverges" if one.diverges(options.tolerance) else ""
            print(f"{one.name:14} largest difference {one.largest:.2e}, greatest value {one.scale:.3g}{mark}")
        print(f"the first to diverge is {first.name}" if first else "all agree")
    return 1 if first else 0


def comparable(name):
    """The folder of a model that transformers can read too; InputError for what it cannot, or reads as something else."""
    from common.files import read_json
    from model.adapters import is_adapter
    from model.bert import BertConfig
    from model.fusion import is_fusion
    from model.source import resolve_model
    from model.pruning import KEY
    from model.weights import read_config, stored_quant
    from prompt.loading import model_of_run

    folder = resolve_model(str(model_of_run(name))).folder
    if is_adapter(folder) or is_fusion(folder):
        raise InputError(f"{name}: is an adapter; merge it first (python merge.py), or verify its base")
    if not isinstance(read_config(folder), BertConfig):
        raise InputError(f"{name}: is a decoder, and only a BERT or one of its relatives is compared layer by layer")
    pruned = KEY in read_json(folder / "config.json")
    if pruned or stored_quant(folder):
        kind = "pruned, which transformers cannot read" if pruned else "stored in 4 bits"
        raise InputError(f"{name}: is {kind}; verify the model that it was made of")
    return folder


def golden_activations(path):
    """(activations, what they are) of a file; InputError when it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            order = json.loads(file.metadata()["order"])  # tensors come back sorted by name
            return {name: file.get_tensor(name) for name in order}, f"{path}"
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not activations that bench/activations.py wrote ({error})") from None


def live_activations(folder, batch):
    """(activations, what they are) by transformers, now. InputError where it is not installed."""
    if find_spec("transformers") is None or find_spec("bench") is None:
        raise InputError(
            "transformers is not installed (or bench/ is not here): install it, or give activations with --golden FILE"
        )
    from bench.activations import reference_activations, reference_version

    return reference_activations(folder, *batch), f"transformers {reference_version()}"


main = command("python -m inside.verify", build_parser, run)

if __name__ == "__main__":
    sys.exit(main())
