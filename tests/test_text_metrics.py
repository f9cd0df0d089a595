"""BLEU and ROUGE-L against sacrebleu and rouge-score."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.text import common_subsequence, corpus_bleu, rouge_l, tokens_13a, words
from tests.tiny_model import sample_texts

calm = settings(deadline=None, derandomize=True, max_examples=150)
ugly = st.text(st.sampled_from("abcAB 019.,-()'\"&;<>\n\té«،یک\u200c$/{}[]`~@:%"), max_size=40)


def garbled(seed):
    """(predictions, references): sentences of the sample corpus with words dropped, doubled and swapped."""
    generator, predictions, references = random.Random(seed), [], []
    sentences = [s.strip() for text in sample_texts() for s in text.split(". ") if s.strip()]
    for sentence in generator.sample(sentences, 40):
        said = sentence.split()
        for _ in range(generator.randrange(4)):
            k = generator.randrange(len(said))
            said[k : k + 1] = generator.choice([[], [said[k]] * 2, ["other,"]]) if len(said) > 1 else said[k : k + 1]
        predictions.append(" ".join(said))
        references.append([sentence] + generator.sample(sentences, generator.randrange(3)))
    return predictions, references


def reference_bleu(predictions, references):
    import sacrebleu

    most = max(map(len, references))
    columns = [[one[k] if k < len(one) else None for one in references] for k in range(most)]
    return sacrebleu.corpus_bleu(predictions, columns).score


@pytest.mark.parametrize("seed", range(6))
def test_bleu_is_that_of_sacrebleu(seed):
    predictions, references = garbled(seed)
    for stop in (1, 7, 40):
        found = corpus_bleu(predictions[:stop], references[:stop])
        assert found == pytest.approx(reference_bleu(predictions[:stop], references[:stop]), abs=1e-6)
    assert 20 < corpus_bleu(predictions, references) < 100


@pytest.mark.parametrize("said, wanted", [("a b c d -", "a b c d -\n"), ("a b c d-\n", "a b c d-"), ("a b-\nc d e", "a bc d e \t")])
def test_a_line_s_end_after_a_hyphen(said, wanted):
    """Within a text it joins two halves of a word; at the end sacrebleu has stripped it before."""
    assert corpus_bleu([said], [[wanted]]) == pytest.approx(reference_bleu([said], [[wanted]]), abs=1e-6)
    assert corpus_bleu([said], [[wanted]]) == pytest.approx(100)


@calm
@given(st.lists(st.tuples(ugly, st.lists(ugly, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_bleu_of_ugly_texts(pairs):
    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    assert corpus_bleu(predictions, references) == pytest.approx(reference_bleu(predictions, references), abs=1e-6)


@calm
@given(ugly)
def test_tokens_are_those_of_13a(text):
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    assert " ".join(tokens_13a(text)) == Tokenizer13a()(text)


@calm
@given(ugly, st.lists(ugly, min_size=1, max_size=3))
def test_rouge_is_that_of_rouge_score(prediction, references):
    from rouge_score.rouge_scorer import RougeScorer

    wanted = max(RougeScorer(["rougeL"]).score(one, prediction)["rougeL"].fmeasure for one in references)
    assert rouge_l(prediction, references) == pytest.approx(wanted, abs=1e-6)


def test_rouge_on_sentences():
    from rouge_score.rouge_scorer import RougeScorer

    scorer, found = RougeScorer(["rougeL"]), []
    for prediction, references in zip(*garbled(9)):
        wanted = max(scorer.score(one, prediction)["rougeL"].fmeasure for one in references)
        found.append(rouge_l(prediction, references))
        assert found[-1] == pytest.approx(wanted, abs=1e-6)
    assert 0.3 < sum(found) / len(found) < 1


def test_by_hand():
    assert tokens_13a("It's 3.14 (pi).") == ["It's", "3.14", "(", "pi", ")", "."]
    assert common_subsequence("police killed the gunman".split(), "police kill the gunman".split()) == 3
    assert rouge_l("police kill the gunman", ["police killed the gunman", "nothing"]) == 0.75
    assert corpus_bleu(["the cat"], [["a dog"]]) == 0.0 and corpus_bleu([""], [["a"]]) == 0.0
    assert rouge_l("سال ۱۸۸۹", ["در سال ۱۸۸۹"]) == 0.0 and rouge_l("سال ۱۸۸۹", ["در سال ۱۸۸۹"], words) == 0.8
