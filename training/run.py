"""What a run is: its options settled, its data, and config.json, which a resumed run is held against."""

import hashlib
import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import tokenizers
import torch

from common.errors import InputError
from common.files import write_json
from common.options import COMMAND_LINE
from data.download import cache_folder, fetch
from data.readers import read_dataset
from data.windows import WindowSettings
from model.adapters import SHIPPED, is_adapter
from training.folder import FORMAT
from training.options import TRAIN_OPTIONS

FREE_ON_RESUME = ("resume", "out", "recipe", "print_config", "print_prompt", "plan")
USED_BY = {
    ("lora", "qlora"): (
        "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_rank_pattern", "rslora", "dora",
        "lora_plus_ratio", "quant",
    ),
    ("prompt",): ("prompt_tokens", "prompt_text"),
}
HARMLESS = ("keep", "save_every", "shard")  # may be given anew on --resume: they change no weight
MODEL_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.txt",
    "adapter_config.json", "adapter_model.safetensors",
)


def default_out(options):
    """runs/DATA-MODEL, from what was asked for."""
    data = options.dataset or Path(options.train[0]).stem
    model = Path(options.model).name if os.sep in options.model else options.model
    return Path("runs") / f"{data}-{model}"


def settle_options(options):
    """Defaults that depend on other options, and refusals of impossible pairs; returns Options."""
    if options.dataset is None and not options.train:
        if options.dev:
            raise InputError("--dev is given without --train FILE… or --dataset NAME: there is nothing to train on")
        options = options.replace("default", dataset="sample")
    typed = [name for name in ("dataset", "train") if options.origins[name] == COMMAND_LINE]
    if options.dataset and options.train and len(typed) == 1:  # flags win over a recipe's data, whichever way they are named
        away = {"dataset": dict(train=None, dev=options.dev if options.origins["dev"] == COMMAND_LINE else None),
                "train": dict(dataset=None)}
        options = options.replace("default", **away[typed[0]])
    if options.dataset and options.train:
        raise InputError("--dataset and --train exclude each other: choose the named data or your own files")
    if options.dataset == "sample" and not options.given("model") and not options.given("tune") and is_adapter(SHIPPED):
        options = options.replace("default", model=str(SHIPPED), tune="lora")  # on from what can read already
    if options.tune == "qlora":
        options = options.replace("default", **{
            name: value for name, value in (("quant", "nf4"), ("checkpointing", True)) if not options.given(name)
        })
    if options.window_overlap is not None and options.window_step is not None:
        raise InputError("--window-overlap and --window-step say the same thing in two ways: give one of them")
    if options.window_overlap is None and options.window_step is None:
        options = options.replace("default", window_overlap=min(128, options.window_length // 3))
    WindowSettings(options.window_length, options.window_overlap, options.window_step).check()
    if options.tune == "fusion" and len(options.adapter or ()) < 2:
        raise InputError("--tune fusion mixes adapters: name at least two with --adapter")
    if options.tune != "fusion" and options.adapter:
        raise InputError("--adapter is for --tune fusion; to train an adapter on, name it with --from")
    refuse_unused(options)
    for name in ("train", "dev", "adapter"):  # absolute, so that --resume finds them from any folder
        paths = getattr(options, name)
        if paths:
            options = options.replace(options.origins[name], **{name: [path.resolve() for path in paths]})
    if options.shots is not None:
        options = options.replace(options.origins["shots"], shots=options.shots.resolve())
    folder = Path(options.model).expanduser()
    if options.model != "minilm" and folder.is_dir():
        options = options.replace(options.origins["model"], model=str(folder.resolve()))
    if options.out is None:
        options = options.replace("default", out=default_out(options))
    return options


def asked(options, name):
    """Whether the user gave this option: on the command line, or in a recipe other than its default.

    A recipe that --print-config wrote has every option in it, and asks for nothing by the defaults.
    """
    if options.origins[name].startswith("recipe "):
        return options.to_dict()[name] != next(option.default for option in TRAIN_OPTIONS if option.name == name)
    return options.origins[name] == COMMAND_LINE


def refuse_unused(options):
    """Refuse options of a way of tuning that is not the chosen one, which would be passed over in silence."""
    for methods, names in USED_BY.items():
        for name in names:
            if asked(options, name) and options.tune not in methods:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} is for --tune {' or '.join(methods)}, and --tune is {options.tune}")


def recorded_options(options, run):
    """On --resume, the run's own options; InputError when the command line asks for others."""
    recorded = run.read_config()["options"]
    asked = options.to_dict()
    differing = [
        name
        for name in asked
        if options.given(name) and name not in FREE_ON_RESUME + HARMLESS and asked[name] != recorded.get(name)
    ]
    if differing:
        raise InputError(
            f"{run.root}: holds a different run ({', '.join(f'{n} was {recorded.get(n)!r}' for n in differing)}); "
            f"resume without these options or choose another --out"
        )
    unknown = sorted(set(recorded) - set(asked))
    if unknown:
        raise InputError(f"{run.config}: options.{unknown[0]}: unknown to this version, so the run cannot be resumed")
    kept = FREE_ON_RESUME + tuple(name for name in HARMLESS if options.given(name))
    return options.replace(str(run.config), **{n: v for n, v in recorded.items() if n not in kept})


def splits_the_model(options, run, ranks_wanted):
    """Whether the run is to be sharded: what --shard says or, when several processes go on with it, what it was before."""
    if options.resume and ranks_wanted and not options.given("shard") and run.config.is_file():
        return bool(run.read_config()["options"].get("shard"))
    return options.shard


def refuse_guessing(options):
    """Refuse --resume of a run that is not there when nothing says what to start instead: a slip in --out, surely."""
    if options.given("out") and not options.given("dataset") and not options.given("train"):
        raise InputError(
            f"{options.out}: there is no run to resume; check --out, or start one there with --dataset NAME or "
            f"--train FILE"
        )


def data_files(options, progress):
    """(train paths, dev paths) as absolute paths; downloads a named data set when it is not there."""
    train, dev = options.train, options.dev
    if options.dataset:
        fetched = fetch(options.dataset, cache_folder(os.environ), progress=progress)
        train, dev = [fetched[0]], dev or [fetched[1]]
    return [Path(p).absolute() for p in train], [Path(p).absolute() for p in dev or []]


def read_split(paths, limit, seed, skip_misaligned, what):
    """A Dataset of `paths`, cut to a seeded subset of `limit` questions, in file order."""
    dataset = read_dataset(paths, misaligned="skip" if skip_misaligned else "stop")
    lacking = [example for example in dataset.examples if example.answers is None]
    if lacking:
        raise InputError(f"{paths[0]}: {lacking[0].where}: {what} needs answers, and this question has none given")
    if limit is not None and limit < len(dataset.examples):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(dataset.examples))[:limit])
        dataset.examples = [dataset.examples[k] for k in chosen]
    return dataset


def file_hash(path):
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def environment(device, precision, processes):
    """What bit-identical repetition depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tokenizers": tokenizers.__version__,
        "bitsandbytes": version("bitsandbytes") if find_spec("bitsandbytes") else None,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "precision": precision,
        "processes": processes,
    }


def describe_run(options, source, files, device, precision, fingerprint=None, processes=1):
    """The contents of config.json. fingerprint: of the weights that training began with; --resume needs them again."""
    return {
        "format": FORMAT,
        "options": options.to_dict(),
        "model": {
            "name": source.name, "origin": source.origin, "revision": source.revision, "fingerprint": fingerprint,
        },
        "model_files": {n: file_hash(source.folder / n) for n in MODEL_FILES if (source.folder / n).is_file()},
        "data": {
            part: [{"path": str(path), "sha256": file_hash(path)} for path in paths]
            for part, paths in zip(("train", "dev"), files, strict=True)
        } | ({"shots": [{"path": str(options.shots), "sha256": file_hash(options.shots)}]} if options.shots else {}),
        "adapters": [
            {"path": str(path), "sha256": file_hash(path)}
            for folder in options.adapter or () for path in sorted(folder.rglob("adapter_*")) if path.is_file()
        ],
        "environment": environment(device, precision, processes),
    }


def write_or_compare(run, description):
    """Write config.json for a new run; for a resumed one compare, and return sentences on what changed.

    Raises InputError when the data, the model's revision or its tokenizer are no longer those of the run.
    """
    if not run.config.is_file():
        write_json(run.config, description)
        return []
    recorded = run.read_config()
    parts = {
        "adapters": "adapters", "data": "data files", "model": "model",
        "model_files": "model's config.json or tokenizer",
    }
    for part, name in parts.items():
        if part in recorded and recorded[part] != description[part]:
            raise InputError(
                f"{run.config}: the {name} of this run changed since it began, so it cannot be resumed; "
                f"restore what was or start a new --out"
            )
    now, then = description["environment"], recorded.get("environment", {})
    changed = [f"{key} {then.get(key)} -> {value}" for key, value in now.items() if then.get(key) != value]
    if changed:
        return [f"the machine is not the same ({', '.join(changed)}): the result may differ in the last bits"]
    return []
