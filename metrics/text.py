"""BLEU and ROUGE-L, for answers that are generated rather than cut out.

BLEU (Papineni et al. 2002) as sacrebleu 2 computes it by default: a corpus score, 13a tokens, exponential smoothing.
ROUGE-L (Lin 2004) as the package rouge-score does, without stemming: of each answer, by the longest common subsequence.
"""

import math
import re
from collections import Counter

ORDER = 4  # longest n-grams of BLEU
ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
# the tokenizer of NIST's mteval-v13a.pl: symbols and ASCII punctuation stand alone, but . and , between digits do not
SPLITS = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def tokens_13a(text):
    """Split a text as WMT does: "It's 3.14 (pi)." is It's 3.14 ( pi ) ."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    if "&" in text:
        for entity, character in ENTITIES:
            text = text.replace(entity, character)
    text = f" {text} "
    for pattern, spaced in SPLITS:
        text = pattern.sub(spaced, text)
    return text.split()


def ngrams(tokens):
    """Counter of all runs of 1 to ORDER tokens."""
    return Counter(tuple(tokens[k : k + n]) for n in range(1, ORDER + 1) for k in range(len(tokens) - n + 1))


def corpus_bleu(predictions, references):
    """BLEU in percent of a list of texts against a list of lists of reference texts.

    BP · exp(mean over n of log p_n): p_n is the share of the predictions' n-grams that a reference has (none
    counted more often than in the reference that has most of it); BP punishes predictions shorter, in all, than the
    references nearest in length. An n without any match counts 1/2, 1/4, … of a match. 0.0 without any shared word.
    """
    matched, total = [0] * ORDER, [0] * ORDER
    said, wanted = 0, 0
    for prediction, texts in zip(predictions, references, strict=True):
        tokens, *expected = (tokens_13a(text.rstrip()) for text in (prediction, *texts))  # stripped as sacrebleu does
        said += len(tokens)
        wanted += min((abs(len(one) - len(tokens)), len(one)) for one in expected)[1]  # of equally near the shorter
        most = Counter()
        for one in expected:
            most |= ngrams(one)
        for ngram, count in ngrams(tokens).items():
            total[len(ngram) - 1] += count
            matched[len(ngram) - 1] += min(count, most[ngram])
    if not any(matched) or not all(total):
        return 0.0
    smooth, logs = 1.0, []
    for n in range(ORDER):
        if not matched[n]:
            smooth *= 2
        logs.append(math.log(matched[n] / total[n] if matched[n] else 1 / (smooth * total[n])))
    brevity = min(1.0, math.exp(1 - wanted / said))
    return 100 * brevity * math.exp(sum(logs) / ORDER)


def text_scores(pairs):
    """BLEU of all, and the mean ROUGE-L, both in percent, of (prediction, references); None of no pairs."""
    pairs = list(pairs)
    if not pairs:
        return {"bleu": None, "rouge_l": None}
    rouge = sum(rouge_l(*pair) for pair in pairs) / len(pairs)
    return {"bleu": corpus_bleu(*zip(*pairs)), "rouge_l": 100 * rouge}


def ascii_words(text):
    """ROUGE's tokens: runs of a-z and 0-9 of the lowercased text. Nothing of Persian is left; see `words`."""
    return re.findall("[a-z0-9]+", text.lower())


def words(text):
    """Runs of letters and digits of any script, lowercased."""
    return re.findall(r"\w+", text.lower())


def common_subsequence(one, other):
    """Length of the longest common subsequence of two lists."""
    row = [0] * (len(other) + 1)
    for item in one:
        before = 0  # row[j - 1] of the round before
        for j, match in enumerate(other, 1):
            before, row[j] = row[j], before + 1 if item == match else max(row[j], row[j - 1])
    return row[-1]


def rouge_l(prediction, references, tokens=ascii_words):
    """The best F-measure (0..1) of a prediction against its references by longest common subsequence."""
    said, best = tokens(prediction), 0.0
    for reference in references:
        wanted = tokens(reference)
        shared = common_subsequence(said, wanted)
        if shared:
            precision, recall = shared / len(said), shared / len(wanted)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best
