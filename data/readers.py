"""Reads question answering files of any supported format (data/formats.py) into examples."""

import os
import shlex
from dataclasses import dataclass

from common.errors import InputError
from data.documents import counted, unique_id
from data.examples import Answer, Dataset, Example
from data.formats import read_document
from data.talks import check_kinds, is_talk, read_talks

MISALIGNED = ("stop", "skip", "keep")


@dataclass(slots=True)
class Faults:
    """What is known of references that do not stand where their files say: the first, and how many."""

    path: object = None
    first: str = ""
    references: int = 0
    questions: int = 0


def read_dataset(paths, *, misaligned="stop"):
    """Read files (a path or several) and return their examples, in order, as one Dataset.

    Files may be nested SQuAD JSON, flat JSON, JSONL or CSV, or all be question lists (data/talks.py).
    Ids are text and unique: missing ones
    become `FILE-STEM:NUMBER`, repeated ones get `#2`, `#3`. Questions of one context share one
    string. `answers` is () where a file says that there is no answer, and None where it gives no
    references; having answers decides, as in the official scripts, and is_impossible only where
    answers are missing or empty texts. With several files, `where` starts with the file.

    misaligned: what to do about a reference that is empty or does not stand at its offset. "stop"
    raises InputError; "skip" leaves it out, and the question too when no reference is left; "keep"
    keeps it, for scoring, which needs the texts only.

    Raises InputError with file and place on anything that is not such a data set, on a file
    without questions, and when skipping leaves no question.
    """
    if misaligned not in MISALIGNED:
        raise ValueError(f"misaligned must be one of {MISALIGNED}, not {misaligned!r}")
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not paths:
        raise InputError("no data file was given, and at least one is needed")
    talks = [is_talk(path) for path in paths]
    check_kinds(paths, talks)
    if all(talks):
        return read_talks(paths)
    dataset, faults, contexts, taken = Dataset([]), Faults(), {}, set()
    for path in paths:
        document = read_document(path)
        prefix = f"{document.path}: " if len(paths) > 1 else ""
        repeated = 0
        for article, paragraph, question in document.questions():
            # Named before any is left out, so that ids do not depend on what `misaligned` says.
            name = unique_id(question.id, taken)
            repeated += name != question.id
            context = contexts.setdefault(paragraph.context, paragraph.context)
            answers = choose_answers(document.path, question, context, misaligned, faults)
            if answers == () and question.references and not question.denies_answers:
                faults.questions += 1  # it has lost its references, and is not an unanswerable one
                continue
            where = prefix + question.where
            dataset.examples.append(Example(name, question.text, context, answers, where, article.title))
        dataset.notices += document.notices
        if repeated:
            dataset.notices.append(
                f"{document.path}: {counted(repeated, 'question')} got a suffix such as #2, "
                "the id being taken by an earlier question"
            )
    judge_faults(dataset, faults, misaligned)
    return dataset


def choose_answers(path, question, context, misaligned, faults):
    """The answers of a question for `read_dataset`; references at fault are counted in `faults`."""
    if question.references is None:
        return None
    if misaligned == "keep":
        return tuple(Answer(reference.text, reference.start) for reference in question.references)
    if question.denies_answers:
        return ()
    answers = []
    for reference in question.references:
        fault = reference.fault(context)
        if not fault:
            answers.append(Answer(reference.text, reference.start))
            continue
        if not faults.references:
            faults.path, faults.first = path, f"{path}: {reference.where}: {fault}"
        faults.references += 1
    return tuple(answers)


def judge_faults(dataset, faults, misaligned):
    """Stop at references at fault, or say how many were left out."""
    if not faults.references:
        return
    others = faults.references - 1
    more = f" ({counted(others, 'other answer')} at fault too)" if others else " (the only one at fault)"
    command = f"python -m data {shlex.quote(str(faults.path))} --repair OUT"
    if misaligned == "stop":
        raise InputError(
            f"{faults.first}{more}; mend the file with `{command}`, or leave such answers out with "
            "--skip-misaligned"
        )
    if not dataset.examples:
        raise InputError(f"{faults.first}{more}; no question is left without such answers; try `{command}`")
    dataset.notices.append(
        f"{counted(faults.references, 'misaligned answer')} left out, the first at {faults.first}; "
        f"{counted(faults.questions, 'question')} had no other and went with them"
    )
