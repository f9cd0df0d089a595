"""The no-answer threshold for training: a search that groups ties, and a fair split to tune it on."""

import hashlib
import math
from fractions import Fraction
from itertools import groupby

from common.errors import InputError


def best_threshold(null_odds, scores, has_answer):
    """Return (threshold, mean score 0..1), the mean being the highest that any threshold reaches.

    The questions are the keys of `scores` (exact match or F1, 0..1, of the best answer that is not null);
    `null_odds` holds their score differences, null minus best non-null (logits, finite), `has_answer` whether
    they have an answer. A question is answered with null iff its odds exceed the threshold, and then scores
    1 without an answer and 0 with one; so questions with equal odds switch together.

    Between neighbouring odds any threshold does the same, and the one midway is returned; "all null" is the
    lowest odds - 1, "none null" the highest + 1. Of several equally good intervals the widest wins, the two
    outer ones being unbounded and so the widest; of equally wide ones the lowest. Example: odds 1, 3, 4 of
    questions that (answer right, has none, answer right) give 2/3 for the thresholds 2 and 5 and 1/3 for 0
    and 3.5; 2's interval is 2 wide, 5's unbounded, so (5.0, 2/3) is returned.
    InputError when there are no questions.
    """
    if not scores:
        raise InputError("there are no questions to tune the no-answer threshold on; give a larger dev set")
    ranked = sorted(scores, key=null_odds.__getitem__)
    # Exact sums: ties between intervals must not hang on the rounding of additions.
    total = Fraction(sum(not has_answer[question] for question in ranked))
    lower = -math.inf
    candidates = []
    for odds, group in groupby(ranked, key=null_odds.__getitem__):
        candidates.append((total, lower, float(odds)))
        total += sum(Fraction(scores[question]) - (not has_answer[question]) for question in group)
        lower = float(odds)
    candidates.append((total, lower, math.inf))
    # max() keeps the first of equals, which is the lowest.
    total, lower, upper = max(candidates, key=lambda candidate: (candidate[0], candidate[2] - candidate[1]))
    return _threshold_between(lower, upper), float(total / len(scores))


def _threshold_between(lower, upper):
    """Return a number t with lower <= t < upper, so that the odds `lower` stay and `upper` turn null."""
    if lower == -math.inf:
        return min(upper - 1, math.nextafter(upper, -math.inf))
    if upper == math.inf:
        return lower + 1
    middle = lower / 2 + upper / 2
    # Neighbouring floats have nothing between them, and the rounded middle may be `upper` itself.
    return middle if lower <= middle < upper else lower


def split_halves(keys):
    """Return two ascending lists of positions in `keys` that share no key: a half to tune on, one to report.

    `keys` holds each question's group (its context). Groups are taken in the order of their SHA-256 and each
    joins the half that has fewer questions so far (the first if equal), so the split depends neither on the
    order of the file nor on a seed, and neither half is empty when there are two groups or more.
    """
    groups = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)

    def digest(key):
        # A context read from JSON may hold a lone surrogate, which plain UTF-8 cannot encode.
        return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()

    halves = [], []
    for key in sorted(groups, key=digest):
        min(halves, key=len).extend(groups[key])
    return sorted(halves[0]), sorted(halves[1])
