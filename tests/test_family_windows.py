"""Byte-level BPE and unigram tokenizers: windows are transformers', spans are clean, the n best are all pairs' best."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors

from common.errors import InputError
from data.decode import DecodeSettings
from data.examples import Answer, Example
from data.readers import read_dataset
from data.tokenizer import load_tokenizer, pair_layout, save_tokenizer
from data.texts import encode, trim_offsets
from data.windows import WindowSet, WindowSettings
from answering.reader import Reader, ReaderSettings
from tests.tiny_families import FAMILIES, ROBERTA_SPECIALS, byte_pairs, make_family_folder, run_reference
from tests.tiny_model import SAMPLE
from tests.ugly_text import ugly_texts

BOTH = ["roberta", "xlm-roberta"]
calm = settings(deadline=None, derandomize=True, max_examples=100)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> model folder."""
    return {family: make_family_folder(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="module")
def tokenizers(folders):
    return {family: load_tokenizer(folder) for family, folder in folders.items()}


@pytest.fixture(scope="module")
def sample():
    return read_dataset(SAMPLE / "dev.json").examples[::3]


def reference_windows(folder, examples, length, overlap):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)(
        [one.question for one in examples], [one.context for one in examples], truncation="only_second",
        max_length=length, stride=overlap, return_overflowing_tokens=True, return_offsets_mapping=True,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_are_those_of_transformers(folders, tokenizers, sample, family):
    cut = WindowSettings(97, 23)
    ours = WindowSet(sample, tokenizers[family], cut)
    layout = ours.layout
    assert (len(layout.middle), layout.specials) == ((2, 4) if family in BOTH else (1, 3))
    assert ours.cut_questions == 0
    theirs = reference_windows(folders[family], sample, cut.length, cut.overlap)
    assert len(ours) == len(theirs["input_ids"]) > 1.5 * len(sample)
    assert theirs["overflow_to_sample_mapping"] == ours.example.tolist()
    assert ("token_type_ids" in theirs) is (family == "electra")
    moved = 0
    for window in range(len(ours)):
        batch = ours.fill(np.array([window]))
        assert batch["input_ids"][0].tolist() == theirs["input_ids"][window]
        if family == "electra":
            assert batch["token_type_ids"][0].tolist() == theirs["token_type_ids"][window]
        prefix, context = ours.prefix(window), sample[ours.example[window]].context
        assert batch["answer_mask"][0].nonzero()[0].tolist() == list(range(prefix, len(batch["input_ids"][0]) - 1))
        for mine, (start, end) in zip(ours.offsets(window).tolist(), theirs["offset_mapping"][window][prefix:-1]):
            if mine[0] < mine[1]:
                assert context[mine[0] : mine[1]] == context[start:end].strip() != ""
                moved += (start, end) != tuple(mine)
    assert moved > 100 or family != "roberta"  # its tokens begin with spaces


@pytest.mark.parametrize("family", BOTH)
def test_every_span_is_without_white_space_at_its_ends(tokenizers, family):
    text = " Marie  Curie\n\n(née Skłodowska), 東京 x²;\tpay \u00a0 5 €…  "
    one = WindowSet([Example("q", "Who?", text, None, "here")], tokenizers[family], WindowSettings())
    offsets = one.offsets(0).tolist()
    spans = {(a, b) for k, (a, _) in enumerate(offsets) for _, b in offsets[k:] if a < b}
    assert len(spans) > 100
    assert all(text[a:b] == text[a:b].strip() for a, b in spans)
    assert {"Marie", "Marie  Curie", "Curie", "Skłodowska", "5 €…"} <= {text[a:b] for a, b in spans}


def test_the_docstring_s_example_of_trimming():
    text, none = "in  Paris", np.zeros(3, bool)
    assert trim_offsets(text, np.array([[0, 2], [2, 3], [3, 9]]), none).tolist() == [[0, 2], [4, 2], [4, 9]]
    lone = np.array([False, True, False])  # a unigram tokenizer's space, with the next word's first letter
    assert trim_offsets(text, np.array([[0, 2], [4, 5], [4, 9]]), lone).tolist() == [[0, 2], [4, 2], [4, 9]]
    assert trim_offsets(" ", np.array([[0, 1]]), none[:1]).tolist() == [[1, 0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_answers(tokenizers, family):
    examples = [one for one in read_dataset(SAMPLE / "train.json").examples if one.answers][::5]
    found = WindowSet(examples, tokenizers[family], WindowSettings(97, 23), with_labels=True)
    assert found.unlabelled == []
    exact = labelled = 0
    for window in range(len(found)):
        first, last = found.label[window, 0]
        if first:
            offsets, prefix = found.offsets(window), found.prefix(window)
            start, end = offsets[first - prefix, 0], offsets[last - prefix, 1]
            one = examples[found.example[window]]
            assert start <= one.answers[0].start and one.answers[0].end <= end
            labelled += 1
            exact += one.context[start:end] == one.answers[0].text
    assert labelled > 40 and exact > 0.8 * labelled


def test_an_answer_with_outer_spaces_is_labelled_by_its_words(tokenizers):
    context = "He went to  Paris  in May."
    start = context.index("  Paris")
    one = Example("q", "Where?", context, (Answer("  Paris  ", start, ), ), "here")
    for family in BOTH:
        found = WindowSet([one], tokenizers[family], WindowSettings(), with_labels=True)
        (first, last), prefix = found.label[0, 0], found.prefix(0)
        offsets = found.offsets(0)
        assert context[offsets[first - prefix, 0] : offsets[last - prefix, 1]] == "Paris"


@calm
@given(text=st.lists(ugly_texts, min_size=2, max_size=5).map(" ".join), size=st.integers(1, 12))
@pytest.mark.parametrize("family", BOTH)
def test_pieces_give_the_tokens_of_the_whole(tokenizers, family, text, size):
    tokenizer = tokenizers[family]
    (ids, offsets, words), = encode(tokenizer, [text], with_words=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.texts.PIECE_CHARACTERS", size)
        (ids_of_pieces, offsets_of_pieces, words_of_pieces), = encode(tokenizer, [text], with_words=True)
    assert ids.tolist() == ids_of_pieces.tolist()
    assert offsets.tolist() == offsets_of_pieces.tolist()
    same = np.diff(words) == 0
    assert same.tolist() == (np.diff(words_of_pieces) == 0).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_n_best_are_the_best_of_all_pairs_by_transformers(folders, family, sample):
    """Their windows, their logits, every pair by brute force; ours only has to agree."""
    from transformers import AutoModelForQuestionAnswering

    examples, most, n_best = sample[:9], 7, 11
    cut = ReaderSettings(WindowSettings(97, 23), DecodeSettings(n_best, most), null_threshold=0.0)
    reader = Reader.load(folders[family], settings=cut, precision="fp32")
    theirs = AutoModelForQuestionAnswering.from_pretrained(folders[family]).eval()
    encoded = reference_windows(folders[family], examples, 97, 23)
    best, nulls = [{} for _ in examples], [float("inf")] * len(examples)
    for window, number in enumerate(encoded["overflow_to_sample_mapping"]):
        ids = torch.tensor([encoded["input_ids"][window]])
        types = torch.tensor([encoded["token_type_ids"][window]]) if "token_type_ids" in encoded else None
        with torch.inference_mode():
            start, end = (x[0].tolist() for x in run_reference(theirs, ids, types, torch.ones_like(ids)))
        nulls[number] = min(nulls[number], start[0] + end[0])
        places = [k for k, sequence in enumerate(encoded.sequence_ids(window)) if sequence == 1]
        tokens, context = reader.tokenizer, examples[number].context
        for first in places:
            for last in range(first, min(first + most, places[-1] + 1)):
                kept = [k for k in range(first, last + 1) if tokens.id_to_token(int(ids[0, k])) != "▁"]
                offsets = [encoded["offset_mapping"][window][k] for k in kept]
                text = context[offsets[0][0] : offsets[-1][1]] if offsets else ""
                if text.strip():
                    left = offsets[0][0] + len(text) - len(text.lstrip())
                    place = left, left + len(text.strip())
                    best[number][place] = max(best[number].get(place, -1e9), start[first] + end[last])
    for number, prediction in enumerate(reader.predict(examples)):
        wanted = sorted(best[number].items(), key=lambda item: -item[1])[:n_best]
        assert [round(span.score, 3) for span in prediction.spans] == pytest.approx([s for _, s in wanted], abs=2e-3)
        assert (prediction.spans[0].start, prediction.spans[0].end) == wanted[0][0]
        assert {(s.start, s.end) for s in prediction.spans[:-1]} <= set(best[number])
        assert sum(prediction.null) == pytest.approx(nulls[number], abs=1e-4)


def test_special_tokens_in_a_text_are_text(tokenizers):
    for family in BOTH:
        layout = pair_layout(tokenizers[family])
        text = "a </s> b <s> <mask> c"
        (ids, _), = encode(tokenizers[family], [text])
        assert not {*layout.opening, *layout.middle, layout.pad} & set(ids.tolist())


def test_vocab_json_and_merges_give_the_ids_of_tokenizer_json(folders, tokenizers, tmp_path, sample):
    byte_pairs().model.save(str(tmp_path))
    ours = load_tokenizer(tmp_path, 1201)
    assert pair_layout(ours) == pair_layout(tokenizers["roberta"])
    texts = [one.context for one in sample]
    for (a, b), (c, d) in zip(encode(ours, texts), encode(tokenizers["roberta"], texts), strict=True):
        assert a.tolist() == c.tolist() and b.tolist() == d.tolist()
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ t\nnot a merge at all\n", encoding="utf-8")
    with pytest.raises(InputError, match="merges.txt: not the merges of vocab.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": 1}')
    with pytest.raises(InputError, match="expected an object with add_prefix_space true or false"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('["a"]')
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="vocab.json: expected an object of word piece to number"):
        load_tokenizer(tmp_path)


def test_a_frame_of_its_own_is_followed(tmp_path):
    """A byte-level tokenizer that frames pairs as BERT does: three special tokens, not four."""
    tokenizer = byte_pairs()
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    save_tokenizer(tokenizer, tmp_path)
    layout = pair_layout(load_tokenizer(tmp_path))
    assert (layout.opening, layout.middle, layout.last, layout.pad) == ((0,), (2,), (2,), 1)


def test_tokenizers_that_cannot_frame_a_pair_are_refused(tmp_path):
    def refusal(tokenizer):
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(InputError) as caught:
            load_tokenizer(tmp_path)
        return str(caught.value)

    pieces = [(token, 0.0) for token in ROBERTA_SPECIALS] + [("a", -1.0)]
    assert "cannot read 'a \\U0010fffd'" in refusal(Tokenizer(models.Unigram(pieces)))  # no unk_id
    assert "not both <s> and </s>" in refusal(Tokenizer(models.Unigram(pieces[1:], unk_id=2)))
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 2)]
    )
    assert "its post_processor does not frame a pair of texts" in refusal(tokenizer)


def test_the_question_s_limit_counts_four_special_tokens(folders):
    cut = WindowSettings(50, None, 40)
    limits = [Reader.load(folders[f], settings=ReaderSettings(cut)).question_limit for f in ("electra", "roberta")]
    assert limits == [7, 6]
    with pytest.raises(InputError, match="leave no room for a question"):
        Reader.load(folders["roberta"], settings=ReaderSettings(WindowSettings(44, None, 40)))
    assert Reader.load(folders["electra"], settings=ReaderSettings(WindowSettings(44, None, 40))).question_limit == 1


def test_settings_without_a_file_know_roberta_s_positions(folders):
    assert Reader.load(folders["roberta"]).settings.windows.length == 135
    with pytest.raises(InputError, match="windows of 136 tokens are longer than this model's 135 positions"):
        Reader.load(folders["roberta"], settings=ReaderSettings(WindowSettings(136)))


def test_saved_tokenizers_say_what_a_family_takes(folders):
    found = {f: json.loads((folder / "tokenizer_config.json").read_text()) for f, folder in folders.items()}
    assert {f: values["tokenizer_class"] for f, values in found.items()} == {
        "roberta": "PreTrainedTokenizerFast", "xlm-roberta": "PreTrainedTokenizerFast",
        "distilbert": "BertTokenizer", "electra": "BertTokenizer",
    }
    assert [f for f, values in found.items() if "model_input_names" in values] == BOTH + ["distilbert"]
    assert found["roberta"]["mask_token"] == "<mask>" and found["roberta"]["sep_token"] == "</s>"
