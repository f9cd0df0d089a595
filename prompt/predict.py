"""A whole file of questions: predictions, scores where there are references, and how fast it went."""

import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from common.files import write_folder, write_json, write_pairs
from common.pages import keep_pages
from data.documents import counted
from metrics import evaluate_v1, text_scores
from model.packed import pack_linears
from training.together import predict_together
from training.distributed import Ranks
from training.evaluate import (
    PREDICTION_FILES, answer_text, best_only, prediction_files, references_of, score_at,
)
from training.folder import RunFolder
from training.measure import latency, peak_memory_bytes
from training.setup import parameter_counts

METRICS_FILE = "metrics.json"
CHUNK_QUESTIONS = 2048  # tokenised at once to be counted


@dataclass(frozen=True, slots=True)
class NullPolicy:
    """offered: whether "no answer" is on offer. threshold: above which null odds it is said, or None.

    note: what the user should know of the choice, or None.
    """

    offered: bool
    threshold: float | None
    note: str | None = None


def check_out(folder, overwrite):
    """Refuse a folder for predictions that cannot be written, is a run's, or holds predictions already.

    Whether it can be written is tried out, and nothing of that stays.
    """
    folder = Path(folder)
    try:
        check_held(folder, overwrite)
        rehearse(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from None


def check_held(folder, overwrite):
    """Refuse a folder for what is in it, or a place below a file."""
    run = RunFolder(folder)
    if run.config.exists() or run.log.exists() or run.checkpoints.exists():
        raise InputError(f"{folder}: is the folder of a run or a model; choose another --out")
    held = [name for name in (*PREDICTION_FILES, METRICS_FILE) if (folder / name).exists()]
    if held and not overwrite:
        raise InputError(
            f"{folder}: already holds {held[0]}; add --overwrite to replace it, or choose another --out"
        )
    for name in held:
        if (folder / name).is_dir():
            raise InputError(f"{folder}: {name} is a folder, and should be a file; choose another --out")
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{folder}: --out wants a folder, and {existing} is a file")


def rehearse(folder):
    """Write a little as write_predictions will, and remove it; OSError or InputError when that fails."""
    if folder.exists():
        write_block(folder)
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        write_folder(folder, write_block)
    except InputError as error:
        raise InputError(f"{error}; choose another --out") from None
    finally:
        for path in missing:
            if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                path.rmdir()


def write_block(folder):
    """Put 4096 bytes on the disk of a folder, in a file without a name."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())


def choose_null(dataset, settings, asked):
    """The NullPolicy for a Dataset: where there are references they decide, else the model's own setting.

    asked: what --null-threshold says, or None. InputError where it can mean nothing.
    """
    if all(example.answers is None for example in dataset.examples):
        return NullPolicy(settings.null_threshold is not None, settings.null_threshold)
    if not dataset.may_lack_answer:
        if asked is not None:
            raise InputError("--null-threshold: every question of these data has an answer; leave it out")
        return NullPolicy(False, None)
    if settings.null_threshold is not None:
        return NullPolicy(True, settings.null_threshold)
    note = (
        "questions of these data may lack an answer, and the model has no threshold for saying so: taking "
        "0.0 (--null-threshold sets another)"
    )
    return NullPolicy(True, 0.0, note)


def answer_all(reader, examples, policy, *, tokens_per_batch, progress=None, ranks=Ranks()):
    """(predictions in order, metrics without latency), or None on all ranks but the first.

    What is timed goes from texts to answers. The reader can do nothing else afterwards (see `pack_linears`).
    """
    keep_pages()
    _, total = parameter_counts(reader.model)
    pack_linears(reader.model, reader.device, reader.precision)
    began = time.perf_counter()
    predictions = predict_together(
        ranks, reader, examples, offer_null=policy.offered, progress=progress, tokens_per_batch=tokens_per_batch
    )
    if predictions is None:
        return None
    seconds = time.perf_counter() - began
    windows = sum(prediction.windows for prediction in predictions)
    tokens, cut_questions = count_tokens(reader, examples)
    metrics = score(examples, predictions, policy.threshold) or {}
    if getattr(reader.settings, "decoding", None) and reader.settings.decoding.way != "span" and examples[0].context is not None:
        metrics["not_in_text"] = sum(bool(p.spans) and p.spans[0].start < 0 for p in predictions)
    metrics |= {
        "questions": len(examples),
        "cut_questions": cut_questions,
        "null_threshold": policy.threshold,
        "windows": windows,
        "eval_seconds": seconds,
        "best_step": None,
        "steps": None,
        "train_seconds": None,
        "windows_per_second": windows / seconds,
        "tokens_per_second": tokens / seconds,
        "peak_memory_bytes": peak_memory_bytes(reader.device),
        "trainable_parameters": 0,
        "total_parameters": total,
        "evaluations": [],
    }
    return predictions, metrics


def count_tokens(reader, examples):
    """(tokens of all windows without padding, questions that are too long and were cut).

    The texts are tokenised once more for it, outside the time that is measured.
    """
    tokens = cut_questions = 0
    for first in range(0, len(examples), CHUNK_QUESTIONS):
        chunk = examples[first : first + CHUNK_QUESTIONS]
        windows = reader.windows(chunk)
        tokens += int(windows.length.sum(dtype=int))
        cut_questions += windows.cut_questions
    return tokens, cut_questions


def score(examples, predictions, threshold):
    """Exact match and F1 of the questions that have references, or None where none has.

    A threshold of None means that no null was offered: v1.1's rules, otherwise v2.0's.
    """
    places = [place for place, example in enumerate(examples) if example.answers is not None]
    if not places:
        return None
    scored, answered = [examples[place] for place in places], best_only(predictions, places)
    if threshold is not None:
        return score_at(scored, answered, threshold)
    texts = {prediction.id: answer_text(prediction, None) for prediction in answered}
    scores = evaluate_v1(references_of(scored), texts)
    scores = {"exact": scores["exact_match"], "f1": scores["f1"], "total": len(scored)}
    if scored[0].context is None:
        scores |= text_scores((texts[one.id], [answer.text for answer in one.answers]) for one in scored)
    return scores


def without_span(examples, predictions):
    """A sentence for each reason why questions got no span."""
    lost = [(p.reason, e.where) for e, p in zip(examples, predictions, strict=True) if not p.spans]
    first = {reason: where for reason, where in reversed(lost)}
    for reason, count in Counter(reason for reason, _ in lost).items():
        of_all, has = counted(len(examples), "question"), "has" if count == 1 else "have"
        yield f"{count} of {of_all} {has} no answer because {reason} (first: {first[reason]})"


def write_predictions(folder, predictions, policy, metrics):
    """Write the three prediction files and metrics.json: a new folder whole, else metrics.json last.

    In a folder that is there already an old metrics.json goes first, so that one never stands beside
    predictions it does not describe.
    """
    folder = Path(folder)

    def fill(target):
        for name, pairs in prediction_files(predictions, policy.threshold, policy.offered).items():
            write_pairs(target / name, pairs)
        write_json(target / METRICS_FILE, metrics)

    if not folder.exists():
        write_folder(folder, fill)
        return
    try:
        (folder / METRICS_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{folder / METRICS_FILE}: cannot be replaced ({error.strerror})") from None
    fill(folder)


def add_latency(metrics, reader, examples):
    """Seconds per question at batch 1, with p50 and p95."""
    metrics["seconds_per_question"] = latency(reader, examples)
