"""One question about one text: asking, and the answer as JSON or as plain lines."""

import json
import re
import time

from data.examples import Example
from data.texts import encode
from prompt.display import one_line

NOT_FOUND = "the model finds no answer in this text"


def ask(reader, question, context, tokens_per_batch):
    """(Prediction, seconds from text to answer)."""
    began = time.perf_counter()
    example = Example("question", question, context, None, "question")
    (prediction,) = reader.predict([example], tokens_per_batch=tokens_per_batch)
    return prediction, time.perf_counter() - began


def question_is_cut(reader, question):
    """Whether the question has more tokens than a window has room for."""
    ((ids, _),) = encode(reader.tokenizer, [question])
    return len(ids) > reader.question_limit


def runners_up(prediction, answer, count):
    """The `count` best spans beside `answer` (a span, or None for "no answer"), best first."""
    return [span for span in prediction.spans if span is not answer][:count]


def describe(prediction, null_threshold, seconds, top_k, *, windows=False):
    """What --json prints, as a dict. `answer` is "" for no answer, and start and end are null then.

    score: the probability of what is answered, be it a span or none. null_probability is there where "no
    answer" is on offer, reason where there is no answer. runners_up: top_k - 1 further candidates.
    windows: say also how many windows the text made, and of each span the number of the one it came from.
    """
    answer = prediction.answer(null_threshold)
    result = {"answer": "", "start": None, "end": None, "score": prediction.null_probability}
    if answer is not None:
        result = describe_span(answer, "answer", windows)
    result["seconds"] = seconds
    if answer is None:
        result["reason"] = prediction.reason or NOT_FOUND
    if null_threshold is not None and not prediction.said_freely:
        result["null_probability"] = prediction.null_probability
    if windows:
        result["windows"] = prediction.windows
    result["runners_up"] = [describe_span(s, "text", windows) for s in runners_up(prediction, answer, top_k - 1)]
    return result


def describe_span(span, name, windows=False):
    """start and end are null where a decoder said what the text does not hold."""
    start, end = (span.start, span.end) if span.start >= 0 else (None, None)
    described = {name: span.text, "start": start, "end": end, "score": span.probability}
    return described | ({"window": span.window} if windows else {})


def to_json(value):
    """One line of JSON, letters as they are; the controls that JSON allows and terminals obey are escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def plain_lines(prediction, null_threshold, top_k):
    """The answer alone on the first line, or "(no answer)" and why; then runners-up with probabilities."""
    answer = prediction.answer(null_threshold)
    if answer is None:
        lines = ["(no answer)", prediction.reason or NOT_FOUND]
    else:
        lines = [one_line(answer.text)]
    for span in runners_up(prediction, answer, top_k - 1):
        lines.append(f"{100 * span.probability:5.1f} %  {one_line(span.text)}")
    return lines
