"""Easy, hard and probably mislabelled questions, from what they lost in training.

After the data maps of Swayamdipta et al. 2020 (arXiv 2009.10795): what a model makes of a question's label over the
epochs says more than its last loss. The confidence of an epoch is exp(−loss) of the question's worst window, the
geometric mean of the probabilities of the label's start and end, before that window was learned from in that epoch.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from data.documents import shown
from data.examples import Example
from data.lint import Finding
from training.folder import RunFolder
from training.losses import read_losses
from training.run import file_hash, read_split

EASY, LEARNED, HARD, SUSPECT = "easy", "learned late", "hard", "probably mislabelled"
KINDS = (EASY, LEARNED, HARD, SUSPECT)
SURE, LOST = 0.5, 0.05  # confidences: more likely right than not; hardly thought of
TELLING = 0.2  # the least median confidence of a run whose lost questions say something of their labels


@dataclass(frozen=True, slots=True)
class Question:
    """file: as the run names it; where: the place in it. confidence: of each epoch in which the question was seen.

    telling: whether the run learned its questions at all; where it did not, none is called SUSPECT. kind: one of KINDS.
    """

    example: Example
    file: str
    confidence: tuple[float, ...]
    telling: bool = True

    @property
    def where(self):
        return self.example.where.removeprefix(f"{self.file}: ")

    @property
    def message(self):
        """What is to be said of it in a list."""
        answers = self.example.answers
        label = shown(answers[0].text) if answers else "no answer"
        over = ", ".join(f"{value:.3f}" for value in self.confidence)
        return f"{shown(self.example.question)} labelled {label}; confidence by epoch {over}"

    @property
    def kind(self):
        """EASY: sure in every epoch; LEARNED: in the last; HARD: not; SUSPECT: lost in each, so never learned."""
        if all(one >= SURE for one in self.confidence):
            return EASY
        if self.confidence[-1] >= SURE:
            return LEARNED
        lost = self.telling and len(self.confidence) > 1 and max(self.confidence) < LOST
        return SUSPECT if lost else HARD


def difficulties(root):
    """The Questions of a run that recorded losses, least confident (in the last epoch) first.

    Raises InputError for a run without the record, and when its data changed since.
    """
    run = RunFolder(root)
    if not run.config.is_file():
        raise InputError(f"{root}: this is not a run's folder")
    options = run.read_config()["options"]
    if not run.losses.is_file():
        raise InputError(f"{root}: recorded no losses; train with --record-losses (at least two epochs tell most)")
    files = run.read_config()["data"]["train"]
    for entry in files:
        if not Path(entry["path"]).is_file() or file_hash(entry["path"]) != entry["sha256"]:
            raise InputError(
                f"{entry['path']}: changed or moved since this run, so its losses cannot be told apart any more"
            )
    paths = [entry["path"] for entry in files]
    examples = read_split(
        paths, options["max_train_examples"], options["seed"], options["skip_misaligned"], "training"
    ).examples
    records = read_losses(run.losses)
    seen = {}
    for epoch in np.unique(records["epoch"]):
        chosen = records[records["epoch"] == epoch]
        worst = np.full(len(examples), -np.inf, np.float32)
        np.maximum.at(worst, chosen["example"], chosen["loss"])
        for example in np.flatnonzero(worst > -np.inf):
            seen.setdefault(int(example), []).append(float(np.exp(-worst[example])))
    if not seen:
        raise InputError(f"{run.losses}: holds no losses: the run stopped before its first step")
    telling = bool(np.median([confidence[-1] for confidence in seen.values()]) >= TELLING)
    found = []
    for number, confidence in seen.items():
        example = examples[number]
        file = paths[0] if len(paths) == 1 else next(p for p in paths if example.where.startswith(f"{p}: "))
        found.append(Question(example, file, tuple(confidence), telling))
    return sorted(found, key=lambda one: (one.confidence[-1], one.example.where))


def findings(root, paths=None):
    """The linter's Findings on a run's probably mislabelled and hard questions, least confident first in each kind.

    paths: files to tell of, known by their bytes, under the names given here; None: all files that the run learned
    from. Raises InputError when it learned from none of them, and as `difficulties`.
    """
    names = None if paths is None else {file_hash(path): str(path) for path in paths}
    questions = difficulties(root)
    if names is not None:
        trained = {entry["path"]: entry["sha256"] for entry in RunFolder(root).read_config()["data"]["train"]}
        names = {path: names[digest] for path, digest in trained.items() if digest in names}
        if not names:
            raise InputError(f"{root}: this run learned from other files: {', '.join(trained)}")
        questions = [one for one in questions if one.file in names]
    return [
        Finding(kind, one.file if names is None else names[one.file], one.where, one.message)
        for kind in (SUSPECT, HARD) for one in questions if one.kind == kind
    ]
