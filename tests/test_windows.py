"""Windows against brute force, against transformers' own fast tokenizer, and on ugly Unicode."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from data.examples import Answer, Example
from data.readers import read_dataset
from data.tokenizer import load_tokenizer
from data.texts import GAP, PIECE_CHARACTERS, SURROGATE, encode, split_long
from data.windows import NO_LABEL, WindowSet, WindowSettings, label_tokens
from model.source import resolve_model
from tests.tiny_model import SAMPLE, make_tokenizer
from tests.ugly_text import ugly_texts

PERSIAN = re.compile("[\u0600-\u06ff]")
calm = settings(deadline=None, derandomize=True, max_examples=200)


@pytest.fixture(scope="module")
def minilm():
    return resolve_model("minilm", offline=True).folder


@pytest.fixture(scope="module")
def tokenizer(minilm):
    return load_tokenizer(minilm)


@pytest.fixture(scope="module")
def sample():
    return read_dataset([SAMPLE / "train.json", SAMPLE / "dev.json"]).examples


def example(question, context, answers=(), name="q"):
    return Example(name, question, context, answers, "here")


def slice_of(window_set, window):
    """Token ids of one window, as `fill` gives them, without padding."""
    batch = window_set.fill(np.array([window]))
    return batch["input_ids"][0][batch["attention_mask"][0]].tolist()


def test_the_docstring_s_example():
    cuts = list(WindowSettings().slices(14, 1000))
    assert cuts == [(0, 367), (239, 606), (478, 845), (717, 1000)]
    assert len(list(WindowSettings(overlap=None, step=128).slices(14, 1000))) == 6
    assert list(WindowSettings().slices(14, 0)) == []
    assert list(WindowSettings().slices(14, 367)) == [(0, 367)]
    assert list(WindowSettings().slices(14, 368)) == [(0, 367), (239, 368)]


@calm
@given(st.integers(1, 60), st.integers(0, 40), st.integers(0, 30), st.integers(0, 300))
def test_overlapping_slices_cover_everything(fresh, overlap, question, tokens):
    capacity = overlap + fresh  # each slice brings `fresh` tokens that the one before does not have
    cuts = list(WindowSettings(capacity + question + 3, overlap).slices(question, tokens))
    assert set().union(*(range(*cut) for cut in cuts)) == set(range(tokens))
    assert all(stop - start == capacity for start, stop in cuts[:-1])
    assert all(before[1] - after[0] == overlap for before, after in zip(cuts, cuts[1:]))
    assert all(before[1] < after[1] for before, after in zip(cuts, cuts[1:]))


def google_slices(tokens, capacity, doc_stride):
    """The rule of run_squad.py: start 0; the next start is min(length, doc_stride) further."""
    found, start = [], 0
    while start < tokens:
        length = min(tokens - start, capacity)
        found.append((start, start + length))
        if start + length == tokens:
            break
        start += min(length, doc_stride)
    return found


@calm
@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 30), st.integers(0, 300))
def test_a_step_follows_google_s_rule(step, more, question, tokens):
    capacity = step + more
    cut = WindowSettings(capacity + question + 3, overlap=None, step=step)
    assert list(cut.slices(question, tokens)) == google_slices(tokens, capacity, step)


@pytest.mark.parametrize("length, overlap, persian_at_least", [(384, 128, 90), (64, 16, 5), (128, 10, 90)])
def test_the_same_ids_as_transformers(sample, tokenizer, minilm, length, overlap, persian_at_least):
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(minilm)
    cut = WindowSettings(length, overlap)
    window_set = WindowSet(sample, tokenizer, cut)
    lengths = np.diff(window_set.texts.questions.bounds)
    whole = np.flatnonzero(lengths <= cut.longest_question()).tolist()  # transformers cuts no question
    persian = sum(bool(PERSIAN.search(sample[k].question)) for k in whole)
    assert len(whole) >= 480 and persian >= persian_at_least
    expected = reference(
        [sample[k].question for k in whole], [sample[k].context for k in whole], truncation="only_second",
        max_length=length, stride=overlap, return_overflowing_tokens=True, return_offsets_mapping=True,
    )
    ours = np.flatnonzero(np.isin(window_set.example, whole))
    assert len(ours) == len(expected["input_ids"]) > len(whole)
    assert [whole[k] for k in expected["overflow_to_sample_mapping"]] == window_set.example[ours].tolist()
    for first in range(0, len(ours), 16):
        batch = window_set.fill(ours[first : first + 16])
        for row, window in enumerate(ours[first : first + 16]):
            size = batch["attention_mask"][row].sum()
            theirs = {name: values[first + row] for name, values in expected.items()}
            assert batch["input_ids"][row, :size].tolist() == theirs["input_ids"]
            assert batch["token_type_ids"][row, :size].tolist() == theirs["token_type_ids"]
            offsets = theirs["offset_mapping"][window_set.prefix(window) : -1]
            assert list(map(tuple, window_set.offsets(window).tolist())) == offsets


REFUSED = [
    ({"length": 384, "overlap": 128, "step": 128}, "either an overlap or a step"),
    ({"overlap": None}, "either an overlap or a step"),
    ({"length": 0}, "length must be a whole number of at least 1, not 0"),
    ({"length": True}, "length must be a whole number"),
    ({"length": 384.0}, "length must be a whole number of at least 1, not 384.0"),
    ({"length": "384"}, "length must be a whole number"),
    ({"overlap": -1}, "overlap must be a whole number of at least 0, not -1"),
    ({"overlap": None, "step": 0}, "step must be a whole number of at least 1, not 0"),
    ({"max_question": 0}, "max_question must be a whole number of at least 1, not 0"),
    ({"length": 384, "overlap": 380}, "with an overlap of 380 leave no room .* smaller overlap"),
    ({"length": 384, "overlap": None, "step": 400}, "with a step of 400 leave no room .* smaller step"),
    ({"length": 4, "overlap": 0}, "leave no room"),
]
assert len(REFUSED) == 12


@pytest.mark.parametrize("values, sentence", REFUSED)
def test_settings_that_cannot_work_are_refused(values, sentence):
    with pytest.raises(InputError, match=sentence):
        WindowSettings(**values).check()


@pytest.mark.parametrize("cut, kept", [(WindowSettings(), 64), (WindowSettings(64, 16), 22),
                                       (WindowSettings(50, None, 40), 7), (WindowSettings(5, 0), 1)])
def test_a_long_question_is_cut(tokenizer, cut, kept):
    question = "who " * 63 + "are we and what is it"
    window_set = WindowSet([example(question, "one two three " * 30), example("who", "one")], tokenizer, cut)
    assert window_set.cut_questions == 1 and window_set.prefix(0) == kept + 2
    ids = next(encode(tokenizer, [question]))[0]
    assert slice_of(window_set, 0)[1 : kept + 1] == ids[:kept].tolist()
    assert window_set.length.max() <= cut.length


def test_fill_lays_out_windows(tokenizer):
    texts = [example("Who?", "Marie Curie."), example("", "two"), example("When was it?", "a b c d e f g h")]
    window_set = WindowSet(texts, tokenizer, WindowSettings(12, 2))
    assert window_set.example.tolist() == [0, 1, 2, 2]  # "When was it" | a-f | e-h: 6 at a time, 4 new
    batch = window_set.fill(np.array([0, 1, 3]))
    words = lambda text: next(encode(tokenizer, [text]))[0].tolist()  # noqa: E731
    cls, sep, pad = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]"))
    rows = [
        [cls, *words("who?"), sep, *words("marie curie."), sep],
        [cls, sep, *words("two"), sep],
        [cls, *words("when was it"), sep, *words("e f g h"), sep],
    ]
    width = len(rows[2])
    assert width == 10 and batch["input_ids"].shape == (3, width) and len(rows[1]) == 4
    for row, ids in enumerate(rows):
        padding = width - len(ids)
        prefix = ids.index(sep) + 1
        assert batch["input_ids"][row].tolist() == ids + [pad] * padding
        assert batch["attention_mask"][row].tolist() == [True] * len(ids) + [False] * padding
        types = [0] * prefix + [1] * (len(ids) - prefix) + [0] * padding
        assert batch["token_type_ids"][row].tolist() == types
        slice_only = [False] * prefix + [True] * (len(ids) - prefix - 1) + [False] * (padding + 1)
        assert batch["answer_mask"][row].tolist() == slice_only
    assert batch["label"].tolist() == [[[0, 0]]] * 3


def test_a_context_is_kept_once(tokenizer):
    contexts = ["one two three " * 200, "four"]
    texts = [example(f"what is {k}", contexts[k % 2]) for k in range(10)]
    window_set = WindowSet(texts, tokenizer, WindowSettings())
    assert len(window_set.texts.contexts.bounds) == 3 and len(window_set.texts.contexts.ids) == 601
    assert window_set.texts.contexts.ids.dtype == window_set.texts.contexts.offsets.dtype == np.int32


@pytest.mark.parametrize("cut", [WindowSettings(), WindowSettings(64, 16), WindowSettings(100, None, 24)])
def test_labels_of_the_sample_are_the_answers(sample, tokenizer, cut):
    window_set = WindowSet(sample, tokenizer, cut, with_labels=True)
    assert window_set.unlabelled == []
    labelled, exact = set(), 0
    for window in range(len(window_set)):
        number = window_set.example[window]
        text, answers = sample[number].context, sample[number].answers
        offsets, prefix = window_set.offsets(window), window_set.prefix(window)
        first, last = window_set.label[window, 0]
        if not answers:
            assert (first, last) == (0, 0)
            continue
        inside = offsets[0, 0] <= answers[0].start and answers[0].end <= offsets[-1, 1]
        assert (first > 0) == (last > 0) == inside  # no answer of the sample begins with a dropped character
        if inside:
            labelled.add(number)
            covered = text[offsets[first - prefix, 0] : offsets[last - prefix, 1]]
            exact += covered == answers[0].text
            assert answers[0].text in covered
            ids = next(encode(tokenizer, [covered]))[0].tolist()
            assert slice_of(window_set, window)[first : last + 1] == ids
    answerable = {k for k, one in enumerate(sample) if one.answers}
    assert exact >= len(answerable) * 0.99 and len(answerable - labelled) <= (0 if cut.length == 384 else 20)


def check_label(offsets, start, end):
    """What a label must be, said without the code's formula."""
    label = label_tokens(offsets, start, end)
    reached = {place for first, stop in offsets for place in range(max(first, start), min(stop, end))}
    if label is None:
        assert not reached
        return None
    first, last = label
    assert first <= last and reached <= set(range(offsets[first, 0], offsets[last, 1]))
    for outer in (first, last):  # a smaller run would lose characters of the answer
        assert set(range(*offsets[outer])) & reached
    if start in offsets[:, 0] and end in offsets[:, 1]:
        assert (offsets[first, 0], offsets[last, 1]) == (start, end)
    return label


def test_every_reference_is_labelled_by_itself(tokenizer):
    context = "a b c d e f g h"
    answers = tuple(Answer(text, context.index(text)) for text in ("c", "g h", "c d"))
    texts = [example("", context, answers), example("", context, answers[1:2]), example("", context, ())]
    settings = WindowSettings(3 + 5, 1)  # slices a-e and e-h
    window_set = WindowSet(texts, tokenizer, settings, with_labels=True)
    none = [NO_LABEL, NO_LABEL]
    assert window_set.label.tolist() == [
        [[4, 4], [0, 0], [4, 5]], [[0, 0], [4, 5], [0, 0]],
        [[0, 0], none, none], [[4, 5], none, none],
        [[0, 0], none, none], [[0, 0], none, none],
    ]
    first = WindowSet(texts, tokenizer, settings, with_labels=True, references="first")
    assert first.label.tolist() == [[row[0]] for row in window_set.label.tolist()]


def test_a_reference_without_a_token_leaves_the_others(tokenizer):
    context = "a \u200b b"
    answers = (Answer("\u200b", 2), Answer("b", 4))
    every = WindowSet([example("", context, answers)], tokenizer, WindowSettings(), with_labels=True)
    assert every.label.tolist() == [[[3, 3]]]
    found = WindowSet(
        [example("", context, answers)], tokenizer, WindowSettings(), with_labels=True, references="first"
    )
    assert found.unlabelled == [0] and len(found) == 0


@calm
@given(st.data(), ugly_texts)
def test_labels_on_ugly_texts(tokenizer, data, context):
    ids, offsets = next(encode(tokenizer, [context]))
    assert (offsets[:, 0] < offsets[:, 1]).all() and (offsets[:, 1] <= len(context)).all()
    assert (np.diff(offsets, axis=0) >= 0).all()
    start = data.draw(st.integers(0, len(context)))
    end = data.draw(st.integers(start, len(context)))
    label = check_label(offsets, start, end)
    answer = Answer(context[start:end], start)
    question = data.draw(ugly_texts)
    window_set = WindowSet(
        [example(question, context, (answer,))], tokenizer, WindowSettings(24, 5), with_labels=True
    )
    if label is None:
        assert window_set.unlabelled == [0] and len(window_set) == 0
        return
    for window in range(len(window_set)):
        batch = window_set.fill(np.array([window]))
        first, last = batch["label"][0, 0]
        begin = window_set.start[window]
        if begin <= label[0] and label[1] < window_set.stop[window]:
            assert batch["input_ids"][0, first : last + 1].tolist() == ids[label[0] : label[1] + 1].tolist()
            assert batch["answer_mask"][0, [first, last]].all()
            place = window_set.offsets(window)[first - window_set.prefix(window), 0]
            assert place == offsets[label[0], 0]
        else:
            assert (first, last) == (0, 0)


@calm
@given(ugly_texts)
def test_a_cased_tokenizer_gives_sound_offsets_too(context):
    texts = [context, context + "é"]
    for text, (ids, offsets) in zip(texts, encode(cased_tokenizer(), texts), strict=True):
        assert len(ids) == len(offsets) and (offsets[:, 0] < offsets[:, 1]).all()
        assert (np.diff(offsets, axis=0) >= 0).all() and offsets.max(initial=0) <= len(text)


def cased_tokenizer(known=[]):  # noqa: B006 - made once
    known or known.append(make_tokenizer(lowercase=False))
    return known[0]


def test_zwnj_counts_inside_an_answer_and_not_at_its_edge(tokenizer):
    context = "او کتاب\u200cها\u200c را برد"
    offsets = next(encode(tokenizer, [context]))[1]
    start, end = context.index("کتاب"), context.index("\u200c را")
    for edge in (0, 1):  # with and without the ZWNJ after the word
        first, last = label_tokens(offsets, start, end + edge)
        assert context[offsets[first, 0] : offsets[last, 1]] == "کتاب\u200cها"
    assert label_tokens(offsets, end, end + 1) is None


def test_a_very_long_word_is_one_unknown_token(tokenizer):
    context = "see " + "x" * 201 + " there"
    ids, offsets = next(encode(tokenizer, [context]))
    assert ids[1] == tokenizer.token_to_id("[UNK]") and offsets.tolist() == [[0, 3], [4, 205], [206, 211]]
    assert label_tokens(offsets, 100, 103) == (1, 1)


def test_special_tokens_in_a_text_are_text(tokenizer):
    window_set = WindowSet([example("[CLS]", "a [SEP] b")], tokenizer, WindowSettings())
    assert slice_of(window_set, 0).count(tokenizer.token_to_id("[SEP]")) == 2
    assert slice_of(window_set, 0).count(tokenizer.token_to_id("[CLS]")) == 1


def test_half_a_surrogate_pair_is_one_character(tokenizer):
    ids, offsets = next(encode(tokenizer, ["a \udcffb \ud83d c"]))
    assert offsets.tolist() == [[0, 1], [3, 4], [7, 8]]
    assert ids.tolist() == next(encode(tokenizer, ["a b c"]))[0].tolist()


def test_texts_are_cut_exactly_where_the_tokenizer_cuts(tokenizer):
    spaces = [chr(code) for code in range(0x110000) if chr(code).isspace()]
    words = [len(ids) for ids, _ in encode(tokenizer, [f"play{space}ing" for space in spaces])]
    assert [bool(GAP.match(space)) for space in spaces] == [count == 2 for count in words]
    assert words.count(1) == 7 and len(spaces) == 29


def whole(tokenizer, text):
    """Ids and offsets of a text in one piece."""
    encoding = tokenizer.encode(SURROGATE.sub("\ufffd", text), add_special_tokens=False)
    return encoding.ids, [list(pair) for pair in encoding.offsets]


@calm
@given(st.lists(ugly_texts, max_size=4), st.integers(1, 12))
def test_pieces_give_the_tokens_of_the_whole(tokenizer, texts, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.texts.PIECE_CHARACTERS", size)
        found = list(encode(tokenizer, texts))
        for text in texts:
            pieces = list(split_long(text))
            assert "".join(piece for _, piece in pieces) == text
            assert all(text[start:].startswith(piece) for start, piece in pieces)
    found = [(ids.tolist(), offsets.tolist()) for ids, offsets in found]
    assert found == [whole(tokenizer, text) for text in texts]


@pytest.mark.parametrize("glue", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\u200c", ""])
def test_no_cut_where_the_tokenizer_sees_one_word(tokenizer, monkeypatch, glue):
    monkeypatch.setattr("data.texts.PIECE_CHARACTERS", 4)
    text = glue.join(["play", "ing", "play", "s"]) + "\xa0" + "word" * 3
    assert len(list(split_long(text))) == 2
    ids, offsets = next(encode(tokenizer, [text]))
    assert (ids.tolist(), offsets.tolist()) == whole(tokenizer, text)


def test_a_book_is_tokenised_in_pieces(tokenizer, sample):
    book = "\n".join(dict.fromkeys(one.context for one in sample)) * 4
    assert len(book) > 1.5 * PIECE_CHARACTERS and len(list(split_long(book))) == 2
    ids, offsets = next(encode(tokenizer, [book]))
    assert (ids.tolist(), offsets.tolist()) == whole(tokenizer, book)


def test_texts_without_tokens(tokenizer):
    texts = [example("q", text) for text in ("", "  ", "\u200c\u200d", "\x00\ufffd")]
    window_set = WindowSet(texts, tokenizer, WindowSettings(), with_labels=True)
    assert len(window_set) == 0 and window_set.label.shape == (0, 1, 2)
    assert len(WindowSet([], tokenizer, WindowSettings())) == 0


def test_an_endless_stretch_is_cut_where_there_is_no_gap(tokenizer, monkeypatch):
    monkeypatch.setattr("data.texts.PIECE_CHARACTERS", 8)
    monkeypatch.setattr("data.texts.LONGEST_STRETCH", 5)
    text = "\u5317\u4eac" * 20 + " play"
    assert max(len(piece) for _, piece in split_long(text)) == 13
    ids, offsets = next(encode(tokenizer, [text]))
    assert (ids.tolist(), offsets.tolist()) == whole(tokenizer, text)


def test_tokens_on_the_disk_give_the_same_windows(tiny_folder):
    from tests.tiny_run import examples as some_examples

    questions = list(some_examples(range(13)))
    tokenizer = load_tokenizer(tiny_folder)
    kept, stored = (
        WindowSet(list(questions), tokenizer, WindowSettings(64, overlap=20), with_labels=True, on_disk=on_disk)
        for on_disk in (False, True)
    )
    stored.examples.clear()  # as training does
    assert len(kept) == len(stored) > 20 and (kept.label == stored.label).all() and (kept.length == stored.length).all()
    batches = [windows.fill(np.arange(len(kept))[::-2]) for windows in (kept, stored)]
    assert all((batches[0][name] == batches[1][name]).all() for name in batches[0])
    assert (kept.offsets(5) == stored.offsets(5)).all()
