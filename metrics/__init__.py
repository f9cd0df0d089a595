"""Scoring: the official SQuAD arithmetic, and the threshold search that training uses.

`squad` holds exact match and F1 as evaluate-v1.1.py and evaluate-v2.0.py compute them, quirks included;
`threshold` holds a tie-aware search of our own, which no official number comes from; `text` BLEU and ROUGE-L. On
the command line: `python -m metrics DATA PREDICTIONS [--null-odds FILE] [--null-threshold X] [--bleu]`.
"""

from metrics.squad import (
    apply_null_threshold,
    evaluate_v1,
    evaluate_v2,
    exact_match,
    f1_v1,
    f1_v2,
    normalize_answer,
    official_best_threshold,
    question_scores,
)
from metrics.text import corpus_bleu, rouge_l, text_scores
from metrics.threshold import best_threshold, split_halves

__all__ = [
    "apply_null_threshold",
    "best_threshold",
    "corpus_bleu",
    "evaluate_v1",
    "evaluate_v2",
    "exact_match",
    "f1_v1",
    "f1_v2",
    "normalize_answer",
    "official_best_threshold",
    "question_scores",
    "rouge_l",
    "split_halves",
    "text_scores",
]
