"""What stands before and after the loop: building the reader, plans, best weights, results."""

import random
from dataclasses import dataclass, replace

import numpy as np
import torch

from common.errors import InputError
from common.files import read_bytes, read_json, write_atomic, write_folder, write_json, write_pairs
from data.documents import counted
from data.examples import Dataset
from data.windows import WindowSet
from model.adapters import is_adapter
from model.fusion import is_fusion
from model.precision import choose_precision
from model.source import ModelSource, resolve_model
from answering.reader import Reader
from answering.settings import SpeakerSettings
from training.evaluate import PREDICTION_FILES, prediction_files
from training.asking import refuse_about_a_text, settings_for
from training.run import data_files, read_split
from training.measure import latency, parameter_counts, parameter_groups, peak_memory_bytes
from training.tuning import refuse_other_quant, tune


@dataclass(slots=True)
class Prepared:
    """What a run begins with. files: training files and dev files. windows: a WindowSet, or a PromptSet of a decoder."""

    device: torch.device
    precision: str
    files: tuple
    train_set: Dataset
    dev_set: Dataset | None
    source: ModelSource
    reader: Reader
    windows: WindowSet


def prepare(options, ranks, download_bar, text_bar):
    """Read the data, build the reader that is to learn, cut the windows: Prepared; InputError for what cannot be used.

    download_bar, text_bar: called for a bar of bytes (total, initial, desc) and one of texts (total).
    """
    device = ranks.device(options.device)
    precision = choose_precision(options.precision, device)
    with ranks.in_turn():
        files = data_files(options, download_bar)
    train_set = read_split(files[0], options.max_train_examples, options.seed, options.skip_misaligned, "training")
    dev_set = None
    if files[1]:
        dev_set = read_split(files[1], options.max_dev_examples, 0, options.skip_misaligned, "scoring")
        if dev_set.has_texts != train_set.has_texts:
            kinds = "about texts", "without texts"
            dev_kind, train_kind = kinds[train_set.has_texts], kinds[dev_set.has_texts]  # the other's, as they differ
            raise InputError(f"{files[1][0]}: asks {dev_kind}, the training data {train_kind}")
    if not train_set.has_texts:
        refuse_about_a_text(options, files[0][0])
    with ranks.in_turn():
        source = resolve_model(options.model, revision=options.revision)
    seed_everything(options.seed)
    may_lack_answer = train_set.may_lack_answer or bool(dev_set and dev_set.may_lack_answer)
    reader = build_reader(source, options, device, precision, may_lack_answer)
    with text_bar(2 * len(train_set.examples)) as bar:
        how = {"inputs": True} if options.train_on_inputs else {}
        windows = reader.training_set(train_set.examples, options.references, bar, **how)
    if len(windows) == 0:
        raise InputError(
            f"{files[0][0]}: gives no window to train on: no context holds a readable word, or of all questions "
            f"{windows.left_out}"
        )
    return Prepared(device, precision, files, train_set, dev_set, source, reader, windows)


def seed_everything(seed):
    """Seed every generator; what a run draws depends on nothing else."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_reader(source, options, device, precision, may_lack_answer):
    """The Reader that is to be trained. A threshold of 0 stands until one is tuned."""
    settings = settings_for(source, options, 0.0 if may_lack_answer else None)
    if is_adapter(source.folder):
        refuse_other_quant(source.folder, options)
    # virtual tokens come with a span head, which learns where it stands
    frozen = ("lora", "qlora", "fusion", *(["prompt"] if isinstance(settings, SpeakerSettings) else []))
    reader = Reader.load(
        source.folder, settings=settings, device=str(device), precision=precision, dropout=options.dropout,
        attention_dropout=options.attention_dropout, frozen=options.tune in frozen,
    )
    for module in reader.model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = options.checkpointing
    if not is_adapter(source.folder) and not is_fusion(source.folder):
        reader.base = source.name, source.revision
    tune(reader, options)
    return reader


def print_setup(prepared, most, notices):
    """Say what is about to run, and what was noticed on the way. most: tokens that a micro-batch may have."""
    reader, source, windows, precision = prepared.reader, prepared.source, prepared.windows, prepared.precision
    train_set, dev_set = prepared.train_set, prepared.dev_set
    longest = int(windows.length.max())
    if longest > most:
        print(f"note: windows of up to {longest} tokens go alone, in micro-batches of more than the {most} asked for")
    for notice in [*train_set.notices, *(dev_set.notices if dev_set else []), *reader.notices, *notices]:
        print(f"note: {notice}")
    if dev_set:
        shared = {e.context for e in train_set.examples} & {e.context for e in dev_set.examples} - {None}
        if shared:
            both = counted(len(shared), "context")
            print(f"note: {both} in the training set and in the dev set too, so the scores flatter")
    if windows.cut_questions:
        limit = reader.question_limit
        cut = counted(windows.cut_questions, "question")
        print(f"note: {cut} of more than {limit} tokens, which were cut to as many")
    if cut := getattr(windows, "cut_histories", 0):  # of a TalkSet
        most = counted(reader.settings.length, "token")
        print(f"note: {counted(cut, 'conversation')} too long for prompts of {most}, whose oldest turns were left away")
    if windows.unlabelled:
        where = windows.examples[windows.unlabelled[0]].where
        print(f"note: {counted(len(windows.unlabelled), 'question')} left out, {windows.left_out} ({where} first)")
    trainable, total = parameter_counts(reader.model)
    revision = f" at {source.revision}" if source.revision else ""
    print(f"model: {source.name}{revision} ({reader.report})")
    print(f"parameters: {trainable:,} trainable of {total:,}; computing in {precision} on {reader.device}")
    groups = parameter_groups(reader.model).items()
    held = (f"{part} {count:,} in {kind}" for part, kinds in groups for kind, count in kinds.items())
    print(f"held: {', '.join(held)}")
    answers = "answers may be missing" if reader.settings.null_threshold is not None else "every question has an answer"
    dev = f"{len(dev_set.examples):,} to score" if dev_set else "none to score"
    asked, cut = counted(len(train_set.examples), "question"), counted(len(windows), "window")
    print(f"data: {asked} in {cut} to train on, {dev}; {answers}")


def plan_steps(options, steps_per_epoch, has_dev):
    """(total steps, set of the steps after which to evaluate); the last step is always among them."""
    total = options.max_steps or max(1, round(options.epochs * steps_per_epoch))
    if not has_dev:
        return total, set()
    every = options.eval_every or steps_per_epoch
    steps = set(range(every, total, every)) | {total}
    return total, steps | {0} if options.eval_first else steps


def save_best(run, state, reader, result):
    """Record an evaluation in `state`; when none has a better F1, write reader, predictions and scores to best/.

    Of equals the later one is kept, which learned more; for --patience it is no gain.
    """
    record = {"step": state.step, **result.scores, "null_threshold": result.threshold, "windows": result.windows,
              "eval_seconds": result.seconds}
    state.evaluated_step = state.step
    state.evaluations.append(record)
    state.without_gain = 0 if result.scores["f1"] > state.best_score else state.without_gain + 1
    if result.scores["f1"] < state.best_score:
        return
    state.best_score, state.best_step = result.scores["f1"], state.step
    reader.settings = replace(reader.settings, null_threshold=result.threshold)
    files = prediction_files(result.predictions, result.threshold, result.threshold is not None)

    def fill(folder):
        (folder / "model").mkdir()
        reader.save(folder / "model")
        for name, pairs in files.items():
            write_pairs(folder / name, pairs)
        write_json(folder / "evaluation.json", record)

    write_folder(run.best, fill)


def write_results(run, state, reader, dev_set):
    """Fill the run's folder with model/, the prediction files and metrics.json; returns the best scores or None."""
    metrics, scores = {}, None
    trainable, total = parameter_counts(reader.model)  # before best/ is opened, where nothing is frozen
    if run.best.is_dir():
        reader = Reader.load(run.best / "model", device=str(reader.device), precision=reader.precision)
        for name in PREDICTION_FILES:
            write_atomic(run.root / name, read_bytes(run.best / name))
        scores = read_json(run.best / "evaluation.json")
        metrics = {name: value for name, value in scores.items() if name != "step"}
        metrics["best_step"] = scores["step"]
        metrics["seconds_per_question"] = latency(reader, dev_set.examples)
    write_folder(run.model, reader.save)
    timed = state.timed_seconds
    metrics |= {
        "steps": state.step,
        "train_seconds": state.train_seconds,
        "windows_per_second": state.timed_windows / timed if timed else None,  # too few steps to tell
        "tokens_per_second": state.timed_tokens / timed if timed else None,
        "peak_memory_bytes": peak_memory_bytes(reader.device),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "evaluations": state.evaluations,
    }
    write_json(run.metrics, metrics)
    return scores
