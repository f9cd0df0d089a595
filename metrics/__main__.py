"""Score a prediction file: `python -m metrics DATA PREDICTIONS [--null-odds FILE] [--null-threshold X]`.

One JSON object goes to stdout, unrounded, by the official arithmetic of `metrics.squad`; notes go to stderr.
"""

import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError
from common.files import parse_json, read_json, read_text
from common.output import SentenceParser, guarded_main
from metrics.squad import evaluate_v1, evaluate_v2, require_ids
from metrics.text import text_scores

DEFAULT_NULL_THRESHOLD = 1.0


@dataclass(slots=True)
class References:
    """What scoring needs of a data file: (id, reference texts) in file order, and which rules apply."""

    questions: list[tuple[str, list[str]]]
    is_v2: bool
    notices: list[str] = field(default_factory=list)


def read_references(path):
    """Return the References of a data file: nested SQuAD JSON, or any other format `data.readers` knows.

    Answer offsets are not looked at, as the official scripts don't. InputError names the place of a fault.
    """
    text = read_text(path)
    start = text.lstrip()[:1]
    if (start and start not in "{[") or _is_jsonl(text):
        return _flat_references(path)
    document = parse_json(text, path)
    return _flat_references(path) if _is_flat(document) else _nested_references(document, path)


def _is_jsonl(text):
    """Whether the first line is a whole JSON object and more lines follow."""
    first, _, rest = text.strip().partition("\n")
    try:
        return bool(rest) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _is_flat(document):
    """Whether a JSON value is a list of records (bare or under "data") or one record, not SQuAD's nesting."""
    if isinstance(document, list):
        return True
    if "data" not in document:
        return "question" in document or "paragraphs" in document
    records = document["data"]
    first = records[0] if isinstance(records, list) and records else None
    return isinstance(first, dict) and "question" in first and "paragraphs" not in first


def _flat_references(path):
    # Imported here because nested files, which the official scripts read, need none of it.
    from data.readers import read_dataset

    dataset = read_dataset([path], misaligned="keep")
    for example in dataset.examples:
        if example.answers is None:
            raise InputError(f"{path}: {example.where}: has no reference answers, so it cannot be scored")
    questions = [(example.id, [answer.text for answer in example.answers]) for example in dataset.examples]
    return References(questions, dataset.may_lack_answer, list(dataset.notices))


def _nested_references(document, path):
    version = _version(document, path)
    questions = []
    has_flags, astray = False, []
    for where, entry, context in _nested_questions(document, path):
        texts = _answer_texts(entry, path, where)
        if not texts and version == 1:
            raise InputError(
                f"{path}: {where}: has no answers, although the file says version {document['version']!r}; "
                f'correct "version" or remove the question'
            )
        has_flags = has_flags or "is_impossible" in entry
        astray += [where] if _stands_elsewhere(entry, context) else []
        made_up = f"{Path(path).stem}:{len(questions) + 1}"
        questions.append((_question_id(entry, made_up, path, where), texts))
    if not questions:
        raise InputError(f"{path}: holds no questions")
    is_v2 = version == 2 or has_flags or not all(texts for _, texts in questions)
    notices = []
    if astray:  # the official arithmetic looks at texts alone, so they count all the same
        count = _counted(len(astray), "question")
        notices.append(f"{count} with an answer that does not stand at its offset; the first is {astray[0]}")
    if is_v2 and version == 1:
        notices.append('scored as v2.0, because questions have "is_impossible", although "version" says 1')
    return References(questions, is_v2, notices)


def _version(document, path):
    """Return 1 or 2 as the file's "version" says ("1.1", "v2.0", 2), else None."""
    match = re.match(r"\s*v?([12])(\.|\s*$)", str(document.get("version")), re.IGNORECASE)
    return int(match[1]) if match else None


def _nested_questions(document, path):
    """Yield (place, object, context or None) of each question of a nested document, in file order."""
    articles = _expect(document.get("data"), list, 'a list "data"', path)
    for i, article in enumerate(articles):
        place = f"data[{i}]"
        for j, paragraph in enumerate(_list_in(article, "paragraphs", path, place)):
            inner = f"{place}.paragraphs[{j}]"
            for k, entry in enumerate(_list_in(paragraph, "qas", path, inner)):
                where = f"{inner}.qas[{k}]"
                yield where, _expect(entry, dict, "an object", path, where), paragraph.get("context")


def _stands_elsewhere(entry, context):
    """Whether one of a question's answers is not what the context has at its offset; False where that cannot be told."""
    for answer in entry.get("answers") or ():
        text, start = (answer.get("text"), answer.get("answer_start")) if isinstance(answer, dict) else (None, None)
        if isinstance(context, str) and isinstance(text, str) and type(start) is int:
            if start < 0 or context[start : start + len(text)] != text:
                return True
    return False


def _list_in(value, key, path, where):
    _expect(value, dict, "an object", path, where)
    return _expect(value.get(key), list, f'a list "{key}"', path, where)


def _answer_texts(entry, path, where):
    texts = []
    for position, answer in enumerate(_list_in(entry, "answers", path, where)):
        place = f"{where}.answers[{position}]"
        _expect(answer, dict, "an object", path, place)
        texts.append(_expect(answer.get("text"), str, 'a string "text"', path, place))
    return texts


def _question_id(entry, made_up, path, where):
    value = entry.get("id")
    if value is None or value == "":
        # The name that data.readers gives it, under which our own predictions are written.
        return made_up
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _expect(value, str, 'a string or a whole number as "id"', path, where)


def _expect(value, kind, wanted, path, where=None):
    if not isinstance(value, kind):
        place = f"{path}: {where}" if where else path
        raise InputError(f"{place}: {wanted} is expected, and {_describe(value)} found")
    return value


def _describe(value):
    if value is None:
        return "nothing (or null) is"
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "a number") + " is"


def read_predictions(path):
    """Return the dict id -> answer text ("" for none) that a prediction file holds."""
    predictions = _expect(read_json(path), dict, "an object from question id to answer text", path)
    for question, text in predictions.items():
        _expect(text, str, f'a string as prediction of question "{question}"', path)
    return predictions


def read_null_odds(path):
    """Return the dict id -> finite number that a file of null odds holds; integers stay integers."""
    odds = _expect(read_json(path), dict, "an object from question id to number", path)
    for question, value in odds.items():
        wanted = f'a finite number as null odds of question "{question}"'
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{path}: {wanted} is expected, and {_describe(value)} found")
        # 1e999 is read as infinity, and an integer may be too long for any float.
        if not -sys.float_info.max <= value <= sys.float_info.max:
            raise InputError(f"{path}: {wanted} is expected, and one out of range is found")
    return odds


def _counted(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _prediction_notices(references, predictions):
    ids = dict.fromkeys(question for question, _ in references.questions)
    missing = [question for question in ids if question not in predictions]
    if missing and not references.is_v2:
        of_all = _counted(len(ids), "question")
        yield f'{len(missing)} of {of_all} without a prediction, counted 0; the first is "{missing[0]}"'
    unknown = [question for question in predictions if question not in ids]
    if unknown:
        predicted = _counted(len(unknown), "prediction")
        yield f'{predicted} for no question of the data, ignored; the first is "{unknown[0]}"'
    if len(ids) < len(references.questions):
        repeats = _counted(len(references.questions) - len(ids), "question")
        rule = "the last with an id counts" if references.is_v2 else "each counts"
        yield f"{repeats} with the id of an earlier one; {rule}, as in the official script"


def _null_notices(ids, predictions, null_odds, threshold):
    odds = dict.fromkeys(ids, 0.0) if null_odds is None else null_odds
    replaced = sum(bool(predictions[question]) and odds[question] > threshold for question in set(ids))
    if replaced:
        yield f"{_counted(replaced, 'prediction')} replaced by null, the null odds being above {threshold!r}"


def _threshold(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise InputError(f"--null-threshold: expected a number, found {text!r}")
    return value


def _parser():
    parser = SentenceParser(
        prog="python -m metrics",
        description="Score predictions as the official SQuAD scripts do; prints one JSON object.",
    )
    parser.add_argument("data", metavar="DATA", help="questions with answers: JSON, JSONL or CSV")
    parser.add_argument("predictions", metavar="PREDICTIONS", help="JSON: id to answer text")
    parser.add_argument("--null-odds", metavar="FILE", help="JSON: id to number (v2.0 data)")
    parser.add_argument(
        "--null-threshold",
        metavar="X",
        help="count a prediction as null when its odds exceed X (v2.0 data; default 1.0, as officially; "
        "odds are 0.0 without --null-odds); write --null-threshold=-1e-3 for such negative numbers",
    )
    parser.add_argument(
        "--bleu", action="store_true",
        help="add BLEU (as sacrebleu's) and ROUGE-L, in percent, over the questions that have an answer",
    )
    return parser


def _text_scores(references, predictions):
    """BLEU of all, and the mean ROUGE-L, over answerable questions; a missing prediction is an empty one."""
    return text_scores((predictions.get(question, ""), texts) for question, texts in references.questions if texts)


def _score(options):
    """Return the scores, and the notes that go with them."""
    asked = options.null_threshold
    threshold = DEFAULT_NULL_THRESHOLD if asked is None else _threshold(asked)
    references = read_references(options.data)
    predictions = read_predictions(options.predictions)
    notices = [*references.notices, *_prediction_notices(references, predictions)]
    if not references.is_v2:
        for flag, value in (("--null-odds", options.null_odds), ("--null-threshold", options.null_threshold)):
            if value is not None:
                raise InputError(
                    f"{options.data}: v1.1 data (every question has an answer), where {flag} means nothing; "
                    f"leave it out"
                )
        scores = evaluate_v1(references.questions, predictions)
        return scores | (_text_scores(references, predictions) if options.bleu else {}), notices
    ids = [question for question, _ in references.questions]
    require_ids(ids, predictions, f"{options.predictions}: no prediction")
    null_odds = None
    if options.null_odds is not None:
        null_odds = read_null_odds(options.null_odds)
        require_ids(ids, null_odds, f"{options.null_odds}: no null odds")
    notices += _null_notices(ids, predictions, null_odds, threshold)
    scores = evaluate_v2(references.questions, predictions, null_odds, threshold)
    return scores | (_text_scores(references, predictions) if options.bleu else {}), notices


@guarded_main("python -m metrics")
def main(argv=None):
    """Print the scores; return 0, 1 (lost output), or 2 after one sentence on stderr for unusable input."""
    try:
        result, notices = _score(_parser().parse_args(argv))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
