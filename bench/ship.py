"""Make an adapter fit to be shipped: python -m bench.ship RUN --dev MIXED --out adapters/minilm-squad

Rounds a run's LoRA to bf16, reads the rounded file back, and tunes the no-answer threshold of *that*, on --dev. A
README.md that stands in --out, the model card, is kept.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from common.errors import InputError
from common.files import write_folder, write_json

CARD = "README.md"


def ship(run, dev, out, penalty):
    """Fill the folder `out`; returns the Evaluation of what is in it."""
    import torch

    from model.adapters import save_adapter
    from answering.reader import Reader
    from training.evaluate import evaluate
    from training.run import read_split

    reader = Reader.load(run)
    if reader.adapter is None:
        raise InputError(f"{run}: not an adapter of LoRA")
    examples = read_split([dev], None, 0, False, "tuning the threshold").examples
    reader.settings = replace(reader.settings, decode=replace(reader.settings.decode, length_penalty=penalty))
    base, revision = reader.base
    card = (out / CARD).read_bytes() if (out / CARD).is_file() else None
    result = None

    def fill(folder):
        nonlocal result
        save_adapter(
            reader.model, reader.adapter, folder, base=base, revision=revision, fingerprint=reader.report.fingerprint,
            dtype=torch.bfloat16,
        )
        write_json(folder / reader.settings.file, reader.settings.to_dict())
        rounded = Reader.load(folder)
        result = evaluate(rounded, examples, may_lack_answer=any(not example.answers for example in examples))
        settings = replace(rounded.settings, null_threshold=result.threshold)
        write_json(folder / settings.file, settings.to_dict())
        if card is not None:
            (folder / CARD).write_bytes(card)

    write_folder(out, fill)
    return result


def main(argv=None):
    """Make the folder and print its scores on --dev as JSON; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.ship", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of the adapter, a run's model/")
    parser.add_argument("--dev", type=Path, required=True, metavar="FILE", help="questions to tune the threshold on")
    parser.add_argument("--length-penalty", type=float, default=0.0)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(argv)
    try:
        result = ship(options.run, options.dev, options.out, options.length_penalty)
    except InputError as error:
        print(f"bench.ship: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"null_threshold": result.threshold, **result.scores}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
