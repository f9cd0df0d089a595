"""Where a run stands, and the checkpoints that hold all of it."""

import io
import os
import random
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from common.errors import InputError
from common.files import read_json, write_folder, write_json

NAME = re.compile(r"step-(\d{8})")


@dataclass
class LoopState:
    """Everything about the loop that is not weights, optimizer, scaler or random numbers.

    step: optimizer steps taken. epoch, position: the next batch is batch `position` of epoch `epoch`.
    train_seconds: spent in steps, over all sittings. timed_*: the same without each sitting's first steps,
    for rates. evaluations: one record each; evaluated_step: the step of the last, -1 before any.
    best_score, best_step: of the best evaluation. without_gain: evaluations since it.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    train_seconds: float = 0.0
    timed_seconds: float = 0.0
    timed_windows: int = 0
    timed_tokens: int = 0
    evaluations: list = field(default_factory=list)
    evaluated_step: int = -1
    best_score: float = -1.0
    best_step: int = -1
    without_gain: int = 0


def random_states():
    """Every generator that training could draw from, in types that `weights_only` loading accepts."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states):
    """Undo everything drawn since `random_states`."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    for number, state in enumerate(states["cuda"][: torch.cuda.device_count()]):  # the checkpoint's machine may have had more
        torch.cuda.set_rng_state(state, number)


def learning(model):
    """Name -> parameter of all that training changes; the rest comes from the model's own files on --resume."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_checkpoint(folder, state, model, optimizer, scaler, keep):
    """Write `folder`/step-00000123 whole or not at all, then remove all but the newest `keep`.

    Raises InputError when the disk is full or the folder not writable; older checkpoints stay.
    """

    def fill(temporary):
        tensors = {name: value.detach().cpu().contiguous() for name, value in learning(model).items()}
        (temporary / "model.safetensors").write_bytes(to_safetensors(tensors))
        buffer = io.BytesIO()
        torch.save(
            {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "random": random_states()}, buffer
        )
        (temporary / "training.pt").write_bytes(buffer.getbuffer())
        write_json(temporary / "state.json", asdict(state))

    folder = Path(folder)
    write_folder(folder / f"step-{state.step:08d}", fill)
    for old in complete_checkpoints(folder)[:-keep]:
        # renamed first: a kill in the middle of removing must not leave half a checkpoint under a whole name
        doomed = old.with_name(f".{old.name}.doomed")
        try:
            os.rename(old, doomed)
        except OSError as error:
            raise InputError(f"{old}: cannot be removed ({error.strerror})") from None
        shutil.rmtree(doomed, ignore_errors=True)


def complete_checkpoints(folder):
    """Checkpoint folders, oldest first. What a killed process left under temporary names does not count."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    restore_replaced(folder)
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))


def restore_replaced(folder):
    """Undo replacements that a kill stopped between the two renames of `write_folder`."""
    for aside in Path(folder).glob(".*.old"):
        whole = aside.with_name(aside.name[1 : -len(".old")])
        if not whole.exists():
            os.rename(aside, whole)


def sweep_leftovers(folder):
    """Remove what killed processes left under temporary names."""
    restore_replaced(folder)
    for path in Path(folder).glob(".*"):
        if path.name.endswith((".partial", ".old", ".doomed")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def fill(parameters, tensors):
    """Copy tensors into the parameters of the same names, all and no other; ValueError where they do not fit."""
    for name in sorted(set(parameters) ^ set(tensors)):
        raise ValueError(f"{name} is {'missing' if name in parameters else 'unknown'}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(parameter.shape)}")
            parameter.copy_(tensors[name])


def load_checkpoint(path, model, optimizer, scaler):
    """Put a checkpoint back into model, optimizer, scaler and all generators; returns its LoopState."""
    try:
        fill(learning(model), load_file(path / "model.safetensors"))
        saved = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        state = LoopState(**read_json(path / "state.json"))
        restore_random_states(saved["random"])
        for name, usual in asdict(LoopState()).items():
            if type(getattr(state, name)) is not type(usual):
                raise TypeError(f"{name} is {getattr(state, name)!r} in state.json")
    except Exception as error:  # damage to a file shows as many kinds of error in as many libraries
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]  # torch's go on for pages
        others = len(complete_checkpoints(path.parent)) > 1
        rest = "go on from the one before" if others else "start over, as it is the only one"
        raise InputError(f"{path}: this checkpoint is damaged ({reason}); remove its folder to {rest}") from None
    return state
