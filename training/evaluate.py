"""Scoring a reader on a dev set, with the no-answer threshold tuned on one half and reported on the other."""

import time
from dataclasses import dataclass, replace

from common.pages import give_pages_back
from common.spill import Spill
from data.documents import counted
from metrics import best_threshold, evaluate_v1, evaluate_v2, question_scores, split_halves, text_scores
from training.together import predict_together
from training.distributed import Ranks

PREDICTION_FILES = ("predictions.json", "nbest_predictions.json", "null_odds.json")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """predictions: a Spill, of each example, in order. threshold: None for data that always have answers.

    scores: `exact`, `f1`, `total` in percent and questions, with HasAns_ and NoAns_ parts and
    `threshold_halves` where questions may lack an answer. seconds: from texts to answers.
    """

    predictions: Spill
    threshold: float | None
    scores: dict
    windows: int
    seconds: float

    def texts(self):
        """id -> answer text, "" for no answer, as in predictions.json."""
        return {p.id: answer_text(p, self.threshold) for p in self.predictions}


def answer_text(prediction, threshold):
    """The text of a prediction's answer, "" for none."""
    span = prediction.answer(threshold)
    return span.text if span is not None else ""


def references_of(examples):
    """(id, texts) of each example, as the scorers want them."""
    return [(example.id, [answer.text for answer in example.answers]) for example in examples]


def evaluate(reader, examples, *, may_lack_answer, threshold=None, tune=True, progress=None, ranks=Ranks()):
    """Answer and score `examples`; returns an Evaluation, or None on all ranks but the first.

    may_lack_answer: score by v2.0's rules with a null on offer, else by v1.1's without. threshold: used
    as it is unless `tune`; then it is searched on one half of the contexts and the scores of both halves
    are told apart, since the half it was tuned on flatters it.
    """
    give_pages_back()  # what lies free between training's tensors fits an evaluation's but in part, and theirs the next steps'
    began = time.perf_counter()
    predictions = predict_together(ranks, reader, examples, offer_null=may_lack_answer, progress=progress)
    seconds = time.perf_counter() - began
    give_pages_back()
    if predictions is None:
        return None
    windows = sum(p.windows for p in predictions)
    if not may_lack_answer:
        texts = {p.id: answer_text(p, None) for p in predictions}
        scores = evaluate_v1(references_of(examples), texts)
        scores = {"exact": scores["exact_match"], "f1": scores["f1"], "total": len(examples)}
        if examples[0].context is None:
            scores |= text_scores((texts[e.id], [answer.text for answer in e.answers]) for e in examples)
        return Evaluation(predictions, None, scores, windows, seconds)
    halves = None
    if tune:
        threshold, halves = tune_threshold(examples, predictions)
    scores = score_at(examples, predictions, threshold)
    if halves is not None:
        scores["threshold_halves"] = halves
    return Evaluation(predictions, threshold, scores, windows, seconds)


def null_odds_of(predictions):
    """id -> null_odds; without a span a question stands far on the null's side, without a null on the other."""
    return {p.id: (-1e9 if p.spans else 1e9) if p.null_odds is None else p.null_odds for p in predictions}


def score_at(examples, predictions, threshold):
    """v2.0 scores of `predictions` when "no answer" is said above `threshold`."""
    texts = {p.id: answer_text(p, threshold) for p in predictions}
    return evaluate_v2(references_of(examples), texts)


def tune_threshold(examples, predictions):
    """Returns (threshold, {"tuned_on": scores, "reported_on": scores}); F1 is what is maximised.

    The halves share no context. When all questions are about one context there is only one half, and no
    reported one.
    """
    tuned, reported = split_halves([example.context for example in examples])
    if not tuned or not reported:
        tuned, reported = tuned or reported, []
    part = [examples[k] for k in tuned]
    raw = best_only(predictions, tuned)
    answers = {p.id: p.spans[0].text if p.spans else "" for p in raw}
    _, f1 = question_scores(references_of(part), answers)
    # what a span scores against "no answer" is 0, even one that normalises to nothing
    f1 = {example.id: f1[example.id] if example.answers else 0.0 for example in part}
    threshold, _ = best_threshold(null_odds_of(raw), f1, {example.id: bool(example.answers) for example in part})
    halves = {"tuned_on": score_at(part, raw, threshold)}
    if reported:
        halves["reported_on"] = score_at(
            [examples[k] for k in reported], best_only(predictions, reported), threshold
        )
    return threshold, halves


def best_only(predictions, places):
    """The predictions at `places`, in memory, with the best span of each."""
    return [replace(prediction, spans=prediction.spans[:1]) for prediction in map(predictions.__getitem__, places)]


def nbest_of(prediction, offer_null):
    """The records of nbest_predictions.json: best first, the null among them where it is offered."""
    records = [
        {
            "text": span.text,
            "probability": span.probability,
            "start_logit": span.start_logit,
            "end_logit": span.end_logit,
        }
        for span in prediction.spans
    ]
    if offer_null:
        start, end = prediction.null or (0.0, 0.0)
        records.append(
            {"text": "", "probability": prediction.null_probability, "start_logit": start, "end_logit": end}
        )
        records.sort(key=lambda record: -record["probability"])
    return records


def prediction_files(predictions, threshold, offer_null):
    """File name -> pairs of id and value of the three files that leaderboards and scorers know, made as they are read."""
    contents = (
        ((p.id, answer_text(p, threshold)) for p in predictions),
        ((p.id, nbest_of(p, offer_null)) for p in predictions),
        null_odds_of(predictions).items() if offer_null else (),
    )
    return dict(zip(PREDICTION_FILES, contents, strict=True))


def score_lines(scores, *, before=None, rest=0):
    """Sentences for a person: the scores, those of an earlier evaluation beside them, and how many are unscored."""
    earlier = f" (before training: {before['exact']:.2f}, {before['f1']:.2f})" if before else ""
    more = f" (the other {rest} {'has' if rest == 1 else 'have'} no references)" if rest else ""
    asked = counted(scores["total"], "question")
    yield f"exact match {scores['exact']:.2f}, F1 {scores['f1']:.2f} on {asked}{earlier}{more}"
    if "bleu" in scores:
        yield f"BLEU {scores['bleu']:.2f}, ROUGE-L {scores['rouge_l']:.2f}"
    for part, name in (("HasAns", "with an answer"), ("NoAns", "without an answer")):
        if f"{part}_total" in scores:
            exact, f1, total = (scores[f"{part}_{key}"] for key in ("exact", "f1", "total"))
            earlier = f" (before: {before[f'{part}_exact']:.2f}, {before[f'{part}_f1']:.2f})" if before else ""
            yield f"{name}: exact match {exact:.2f}, F1 {f1:.2f} on {counted(total, 'question')}{earlier}"
    reported = scores.get("threshold_halves", {}).get("reported_on")
    if reported:
        yield f"on the half that did not tune the threshold: {reported['exact']:.2f}, {reported['f1']:.2f}"
