"""Put a LoRA adapter into its base's weights, as one plain model: python merge.py --adapter runs/mine --out merged

An adapter over 4-bit weights was trained beside rounded numbers, so there are three ways, and none is exact: onto the
original weights (their rounding error comes in), onto the dequantised ones, or that rounded to 4 bits again (the
update is rounded too). With --dev each is scored before anything is written.
"""

import sys
from pathlib import Path

from common.choices import PRECISIONS
from common.errors import InputError
from common.options import Option, parse, render_config
from common.output import guarded_main

WAYS = ("original", "dequantised", "requantised")
MERGE, SCORING = "Merging", "Scoring"
MERGE_OPTIONS = (
    Option("adapter", Path, None, "Folder of the adapter, or of its run.", MERGE, metavar="FOLDER"),
    Option("out", Path, None, "Folder to write the merged model to; unset: only score.", MERGE, metavar="DIR"),
    Option("way", str, None, "Onto which weights; unset: the best on --dev, or else the original ones.", MERGE,
           choices=WAYS),
    Option("dtype", str, "stored", "Number format of what is written: that of the base's files, or fp32.", MERGE,
           choices=("stored", "fp32")),
    Option("dev", Path, None, "Score each way on these files first.", SCORING, many=True, metavar="FILE"),
    Option("max_dev_examples", int, None, "Score on a subset of this many questions.", SCORING, minimum=1),
    Option("precision", str, "auto", "Number format of the matrix products in scoring.", SCORING, choices=PRECISIONS),
    Option("device", str, "auto", "auto, cpu, cuda or cuda:1.", SCORING),
)
DESCRIPTION = "Put a LoRA adapter into the weights of its base."


@guarded_main("merge.py")
def main(argv=None):
    """Run the command line; returns the exit code: 0, 2 for unusable input, 130."""
    try:
        options = parse("merge.py", DESCRIPTION, MERGE_OPTIONS, argv)
        if options.print_config:
            print(render_config(options), end="")
            return 0
        return merge(options)
    except InputError as error:
        print(f"merge.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("merge.py: interrupted; nothing was written", file=sys.stderr)
        return 130


def merge(options):
    """Score the ways if asked to, then write the chosen one."""
    from answering.ollama import is_importable, lacks_pieces
    from common.files import write_folder
    from model.adapters import is_adapter
    from model.fusion import is_fusion
    from model.prompts import is_prompt
    from model.source import resolve_model
    from prompt.loading import model_of_run
    from training.run import read_split

    if options.adapter is None or options.out is None and not options.dev:
        raise InputError("name an adapter with --adapter FOLDER, and --out DIR to write it or --dev FILE to score it")
    if options.way is not None and options.out is None:
        raise InputError("--way says what to write: name the folder with --out DIR")
    if options.dtype != "stored" and options.out is None:
        raise InputError("--dtype says how to write it: name the folder with --out DIR")
    folder = resolve_model(str(model_of_run(str(options.adapter)))).folder
    if is_fusion(folder) or is_adapter(folder) and is_prompt(folder):
        kind = "a fusion, whose mix depends on the text" if is_fusion(folder) else "virtual tokens"
        raise InputError(f"{options.adapter}: {kind}: not a change of weights, so it cannot be merged")
    if not is_adapter(folder):
        raise InputError(f"{options.adapter}: is a whole model; only adapters are merged")
    if options.out is not None and options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise InputError(f"{options.out}: is there already; choose another --out")
    quant, ways = ways_of(folder)
    if options.way is not None and options.way not in ways:
        raise InputError(f"--way {options.way}: of this adapter's base there is {' and '.join(ways)} only")
    chosen = options.way or (ways[0] if not options.dev else None)
    if options.dev:
        examples = read_split(options.dev, options.max_dev_examples, 0, False, "scoring").examples
        scores = {}
        for way in ("unmerged", *ways):
            reader = built(folder, way, quant, options)
            reader.model.float()  # the numbers that are written, opened as infer.py opens them
            scores[way] = score(reader, examples, way)
        chosen = chosen or max(ways, key=lambda way: scores[way]["f1"])
    if options.out is not None:
        reader = built(folder, chosen, quant, options)
        write_folder(options.out, reader.save)
        print(f"merged onto the {chosen} weights{written_in(reader.model)}; ask it: python infer.py --model {options.out}")
        if (options.out / "Modelfile").is_file():
            print(f"for Ollama: ollama create NAME -f {options.out / 'Modelfile'}")
        elif is_importable(reader) and lacks_pieces(reader):
            print("no Modelfile for Ollama: it reads such a vocabulary from tokenizer.model, which the base's folder lacks")
    return 0


def ways_of(folder):
    """(how the base was held in training, the ways there are): a base stored in 4 bits has no original weights."""
    from answering.reader import described_base
    from model.weights import stored_quant
    from training.tuning import quant_of

    stored = stored_quant(described_base(folder)[1])
    if stored is not None:
        return stored.name, WAYS[1:]
    quant = quant_of(folder)
    return quant, WAYS if quant else WAYS[:1]


def built(folder, way, quant, options):
    """The Reader of an adapter, merged in one of the ways and in the format that --dtype says, or "unmerged"."""
    from dataclasses import replace

    from model.merging import merged_model
    from model.quant import FourBit, quantise
    from answering.reader import Reader

    stored = options.dtype == "stored" and way != "unmerged"
    reader = Reader.load(
        folder, device=options.device, precision=options.precision, quant=None if way == "original" else "stored",
        to_save=stored,
    )
    for notice in reader.notices if way in ("unmerged", "original") else ():
        print(f"merge.py: note: {notice}", file=sys.stderr)
    if way == "unmerged":
        return reader
    settings = replace(reader.settings, quant=quant if way == "requantised" else None)
    merged_model(reader.model, reader.adapter, rounded=stored and way != "requantised")
    reader.all_settings = {None: settings}
    if way == "requantised":
        quantise(reader.model, FourBit.named(quant, reader.precision))
    return reader


def written_in(model):
    """What to say of a merged model's number format, nothing where it is fp32."""
    import torch

    kinds = {p.dtype for p in model.parameters() if p.dim() == 2 and p.is_floating_point()}
    narrow = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32}))
    return f" in {narrow}, as the base's files have it (--dtype fp32 does not round)" if narrow else ""


def score(reader, examples, way):
    """Print a row of the table; returns the scores."""
    from tqdm import tqdm

    from training.evaluate import evaluate

    threshold = reader.settings.null_threshold
    with tqdm(total=len(examples), desc=way, unit=" questions", leave=False, disable=None) as bar:
        result = evaluate(
            reader, examples, may_lack_answer=threshold is not None, threshold=threshold, tune=False, progress=bar
        )
    print(f"{way:12} exact match {result.scores['exact']:6.2f}  F1 {result.scores['f1']:6.2f}", flush=True)
    return result.scores


if __name__ == "__main__":
    sys.exit(main())
