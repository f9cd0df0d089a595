"""The linter: what a data set file holds, and what is wrong with it, with the place in the file."""

import math
from collections import Counter
from dataclasses import dataclass, field

from data.documents import at, counted, shown
from data.formats import read_document
from data.repair import contradictory, locate
from data.talks import check_kinds, is_talk, read_talks

KINDS = (
    "misaligned answer",
    "empty answer",
    "outer whitespace",
    "empty context",
    "empty question",
    "duplicate id",
    "duplicate question",
    "contradictory is_impossible",
    "shared context",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: `kind` is one of KINDS, or what a run found (inside.difficulty); `where` the place in `file`."""

    kind: str
    file: str
    where: str
    message: str


@dataclass(slots=True)
class Summary:
    """What one file holds. `lengths` maps (of what, unit) to (min, median, p95, max)."""

    file: str
    counts: dict[str, int]
    references: Counter
    lengths: dict[tuple[str, str], tuple[int, int, int, int]]
    notices: list[str]


@dataclass(slots=True)
class Report:
    summaries: list[Summary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def totals(self):
        """Findings of each kind, without the kinds that have none."""
        counts = Counter(finding.kind for finding in self.findings)
        return {kind: counts[kind] for kind in (*KINDS, *counts) if counts[kind]}


def lint(*paths):
    """Read the files and return a Report.

    Contexts are compared between the files given, so give the train and dev files together; all
    else is judged file by file. Raises InputError where the reader would, but for misaligned
    answers, which are findings here.
    """
    report, contexts = Report(), {}
    talks = [is_talk(path) for path in paths]
    check_kinds(paths, talks)
    for path, without_texts in zip(paths, talks, strict=True):
        if without_texts:
            talk = read_talks([path])
            report.summaries.append(summarise_talk(path, talk))
            report.findings += find_in_talk(path, talk.examples)
        else:
            document = read_document(path)
            report.summaries.append(summarise(document))
            report.findings += find_in_document(document)
            report.findings += find_shared(document, contexts)
    return report


def summarise(document):
    questions = [question for _, _, question in document.questions()]
    contexts = [paragraph.context for paragraph in document.paragraphs()]
    answers = [reference.text for question in questions for reference in question.references or ()]
    counts = {
        "articles": len(document.articles),
        "paragraphs": len(contexts),
        "distinct contexts": len(set(contexts)),
        "questions": len(questions),
        "unanswerable": sum(question.references == [] for question in questions),
        "without references": sum(question.references is None for question in questions),
        "references": len(answers),
    }
    lengths = lengths_of(context=contexts, question=[question.text for question in questions], answer=answers)
    references = Counter(len(question.references) for question in questions if question.references)
    return Summary(str(document.path), counts, references, lengths, document.notices)


def summarise_talk(path, talk):
    """The Summary of a Dataset of questions without texts."""
    answers = [answer.text for example in talk.examples for answer in example.answers or ()]
    counts = {
        "questions without a text": len(talk.examples),
        "after other turns": sum(bool(example.history) for example in talk.examples),
        "without references": sum(example.answers is None for example in talk.examples),
        "references": len(answers),
    }
    lengths = lengths_of(question=[example.question for example in talk.examples], answer=answers)
    references = Counter(len(example.answers) for example in talk.examples if example.answers)
    return Summary(str(path), counts, references, lengths, talk.notices)


def lengths_of(**texts):
    """`Summary.lengths` of the texts of each name."""
    lengths = {}
    for name, some in texts.items():
        if some:
            lengths[name, "characters"] = quartet([len(text) for text in some])
            lengths[name, "words"] = quartet([len(text.split()) for text in some])
    return lengths


def find_in_talk(path, examples):
    """All findings in a file of questions without texts."""
    findings, asked = [], {}

    def add(kind, where, message):
        findings.append(Finding(kind, str(path), where, message))

    for example in examples:
        check_text(add, "question", example.question, at(example.where, "question"))
        first = asked.setdefault((example.history, example.question.strip()), example.where)
        if first is not example.where and example.question.strip():
            add("duplicate question", example.where, f"asks the same after the same turns as {first}")
    return findings


def quartet(lengths):
    """Return (min, median, 95th percentile, max), each a length that occurs (nearest rank)."""
    ordered = sorted(lengths)
    rank = lambda part: ordered[math.ceil(part * len(ordered)) - 1]  # noqa: E731
    return ordered[0], rank(0.5), rank(0.95), ordered[-1]


def find_in_document(document):
    """All findings within one file, in file order."""
    findings, ids, asked = [], {}, {}

    def add(kind, where, message):
        findings.append(Finding(kind, str(document.path), where, message))

    for paragraph in document.paragraphs():
        check_text(add, "context", paragraph.context, at(paragraph.where, "context"))
        for question in paragraph.questions:
            check_text(add, "question", question.text, at(question.where, "question"))
            first = ids.setdefault(question.id, question.where)
            if first is not question.where:
                message = f"{shown(question.id)} is also the id of {first}"
                add("duplicate id", at(question.where, "id"), message)
            if question.text.strip():
                first = asked.setdefault((paragraph.context, question.text.strip()), question.where)
                if first is not question.where:
                    message = f"asks the same about the same context as {first}"
                    add("duplicate question", question.where, message)
            if contradictory(question):
                message = f"is_impossible is {shown(question.is_impossible)} beside "
                message += counted(len(question.references), "answer")
                add("contradictory is_impossible", question.where, message)
            for reference in question.references or ():
                check_reference(add, reference, paragraph.context)
    return findings


def check_text(add, name, text, where):
    if not text.strip():
        add(f"empty {name}", where, f"the {name} is {'nothing but whitespace' if text else 'empty'}")
    elif text != text.strip():
        add("outer whitespace", where, describe_whitespace(text))


def describe_whitespace(text):
    before, after = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
    sides = ((before, "before"), (after, "after"))
    parts = [f"{counted(size, 'whitespace character')} {side}" for size, side in sides if size]
    return f"{' and '.join(parts)} {shown(text.strip())}"


def check_reference(add, reference, context):
    text, fault = reference.text, reference.fault(context)
    if not text.strip():
        add("empty answer", reference.where, fault)
        return
    if text != text.strip():
        add("outer whitespace", reference.where, describe_whitespace(text))
    if fault:
        span = locate(context, text.strip(), reference.start)
        there = "it is nowhere in the context" if span is None else f"it stands at {span[0]}"
        if span and context[slice(*span)] != text:
            there = f"the nearest like it is {shown(context[slice(*span)])} at {span[0]}"
        add("misaligned answer", reference.where, f"{fault}; {there}")


def find_shared(document, contexts):
    """Contexts that an earlier file has too, compared with every run of whitespace as one space.

    `contexts` maps folded contexts to the file and place of the first; this file's are added.
    """
    findings, file, own = [], str(document.path), {}
    for paragraph in document.paragraphs():
        folded = " ".join(paragraph.context.split())
        if not folded or folded in own:
            continue
        own[folded] = (file, paragraph.where)
        if folded in contexts:
            other, where = contexts[folded]
            message = f"the same context is in {other}: {where}"
            findings.append(Finding("shared context", file, at(paragraph.where, "context"), message))
    for folded, place in own.items():
        contexts.setdefault(folded, place)
    return findings


def render(report, limit=20):
    """The report as text, with at most `limit` findings of each kind (None: all of them)."""
    lines = []
    for summary in report.summaries:
        lines += [*render_summary(summary), ""]
    totals = report.totals()
    for kind, total in totals.items():
        findings = [finding for finding in report.findings if finding.kind == kind]
        lines.append(f"{kind}: {counted(total, 'finding')}")
        lines += [f"  {finding.file}: {finding.where}: {finding.message}" for finding in findings[:limit]]
        if limit is not None and total > limit:
            lines.append(f"  … and {total - limit:,} more (--all shows them)")
        lines.append("")
    kinds = ", ".join(f"{total:,} {kind}" for kind, total in totals.items())
    lines.append(f"{counted(len(report.findings), 'finding')}: {kinds}" if totals else "clean: no findings")
    return "\n".join(lines)


def render_summary(summary):
    counts = ", ".join(f"{name} {number:,}" for name, number in summary.counts.items() if number)
    lines = [summary.file, f"  {counts}"]
    if summary.references:
        parts = ", ".join(f"{size}: {number:,}" for size, number in sorted(summary.references.items()))
        lines.append(f"  questions by number of references: {parts}")
    lines.append(f"  {'lengths':<22}{'min':>8}{'median':>8}{'p95':>8}{'max':>8}")
    for (name, unit), numbers in summary.lengths.items():
        lines.append(f"  {name + ', ' + unit:<22}" + "".join(f"{number:>8,}" for number in numbers))
    return lines + [f"  noticed: {notice.removeprefix(summary.file + ': ')}" for notice in summary.notices]


def to_json(report):
    """The report as JSON values, with every finding."""
    return {
        "files": [
            {
                "file": summary.file,
                "counts": summary.counts,
                "questions_by_references": {str(n): total for n, total in sorted(summary.references.items())},
                "lengths": {
                    f"{name}_{unit}": dict(zip(("min", "median", "p95", "max"), numbers))
                    for (name, unit), numbers in summary.lengths.items()
                },
                "notices": summary.notices,
            }
            for summary in report.summaries
        ],
        "totals": report.totals(),
        "findings": [
            {"kind": f.kind, "file": f.file, "where": f.where, "message": f.message} for f in report.findings
        ],
    }
