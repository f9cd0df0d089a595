"""The tokenizer: nothing cut, padded or parsed in secret, every layout read alike, misfits refused."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.errors import InputError
from data.tokenizer import load_tokenizer, save_tokenizer
from model.source import resolve_model
from tests.tiny_model import make_tokenizer, sample_texts

TEXTS = [
    "Where did Łukasz eat crème brûlée in 1999? [SEP] [CLS][MASK] [PAD]",
    "کتاب‌ها را می‌خوانم؛ آب و مؤمن و ئەو ۱۲۳",
    "Don't! 東京タワー x² \u200d\u0000\ufffd\x85end",
    "",
    "Z" * 120,
]


@pytest.fixture(scope="module")
def minilm():
    """The folder of the installed MiniLM."""
    return resolve_model("minilm", offline=True).folder


@pytest.fixture
def whole(tiny_folder):
    """The parsed tokenizer.json of `tiny_folder`."""
    return json.loads((tiny_folder / "tokenizer.json").read_text(encoding="utf-8"))


def refusal(folder, vocab_size=None):
    """The sentence `load_tokenizer` refuses a folder with."""
    with pytest.raises(InputError) as caught:
        load_tokenizer(folder, vocab_size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def word_pieces(tokenizer):
    """The vocabulary as the lines of a vocab.txt."""
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def write_vocabulary(folder, words, end="\n", **settings):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_bytes("".join(word + end for word in words).encode("utf-8"))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_minilm_truncation_and_padding_are_reset(minilm):
    shipped = json.loads((minilm / "tokenizer.json").read_text(encoding="utf-8"))
    assert shipped["truncation"]["max_length"] == 128 and shipped["padding"]["strategy"] == {"Fixed": 128}
    tokenizer = load_tokenizer(minilm, 30522)
    assert tokenizer.truncation is None and tokenizer.padding is None
    assert len(tokenizer.encode("word " * 1000, add_special_tokens=False).ids) == 1000
    assert len(tokenizer.encode("uncharacteristically " * 1000, add_special_tokens=False).ids) > 2000
    assert len(tokenizer.encode("word", add_special_tokens=False).ids) == 1
    batch = tokenizer.encode_batch(["word", "two words"], add_special_tokens=False)
    assert [len(encoding.ids) for encoding in batch] == [1, 2]


@pytest.mark.parametrize("token", ["[SEP]", "[CLS]", "[PAD]", "[UNK]", "[MASK]"])
def test_special_tokens_in_a_text_are_text(minilm, tiny_folder, token):
    for folder in (minilm, tiny_folder):
        tokenizer = load_tokenizer(folder)
        text = f"a {token} b"
        encoding = tokenizer.encode(text, add_special_tokens=False)
        pieces = [text[start:end] for start, end in encoding.offsets]
        assert pieces[:2] == ["a", "["] and pieces[-2:] == ["]", "b"] and "".join(pieces) == f"a{token}b"
        if folder == minilm or token != "[UNK]":  # the tiny vocabulary has no brackets: each is an [UNK]
            assert tokenizer.token_to_id(token) not in encoding.ids


def test_specials_still_frame_a_pair(minilm):
    encoding = load_tokenizer(minilm).encode("a [SEP]", "b")
    assert (encoding.ids[0], encoding.ids[-1], encoding.ids.count(102)) == (101, 102, 2)
    assert encoding.type_ids == [0] * (len(encoding.ids) - 2) + [1, 1]


def test_vocab_txt_alone_gives_the_ids_of_tokenizer_json(minilm, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((minilm / "vocab.txt").read_bytes())
    ours, whole = load_tokenizer(tmp_path, 30522), load_tokenizer(minilm, 30522)
    assert ours.get_vocab() == whole.get_vocab()
    for text in [*TEXTS, *list(sample_texts())[::7]]:
        one, other = ours.encode(text), whole.encode(text)
        assert (one.ids, one.offsets) == (other.ids, other.offsets)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_vocab_txt_follows_the_settings_beside_it(tmp_path, lowercase, end):
    trained = make_tokenizer(lowercase=lowercase)
    folder = write_vocabulary(tmp_path / "model", word_pieces(trained), end, do_lower_case=lowercase)
    ours = load_tokenizer(folder, 1501)
    assert ours.get_vocab() == trained.get_vocab()
    for text in list(sample_texts())[::9]:
        assert ours.encode(text, add_special_tokens=False).ids == trained.encode(text).ids
    assert ours.encode("Über").ids != load_tokenizer(
        write_vocabulary(tmp_path / "other", word_pieces(trained), do_lower_case=not lowercase)
    ).encode("Über").ids


@pytest.mark.parametrize(
    "settings, normal",
    [
        ({}, "cafe  東  京 "),
        ({"strip_accents": False}, "café  東  京 "),
        ({"do_lower_case": False}, "Café  東  京 "),
        ({"do_lower_case": False, "strip_accents": True}, "Cafe  東  京 "),
        ({"tokenize_chinese_chars": False, "strip_accents": None}, "cafe 東京"),
    ],
)
def test_each_setting_of_the_normaliser_counts_and_survives_saving(tmp_path, settings, normal):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    tokenizer = load_tokenizer(write_vocabulary(tmp_path / "old", words, model_max_length=5, **settings))
    assert tokenizer.normalizer.normalize_str("Café 東京") == normal
    (tmp_path / "new").mkdir()
    save_tokenizer(tokenizer, tmp_path / "new")
    assert load_tokenizer(tmp_path / "new").normalizer.normalize_str("Café 東京") == normal
    saved = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
    (tmp_path / "new" / "tokenizer.json").unlink()
    again = load_tokenizer(write_vocabulary(tmp_path / "new", words, **saved))
    assert again.normalizer.normalize_str("Café 東京") == normal


def test_odd_line_separators_are_word_pieces(tmp_path):
    """str.splitlines would cut there, and every later id would be one too high."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2028", "\x85", "\x0c", "\x1c", "last"]
    tokenizer = load_tokenizer(write_vocabulary(tmp_path, words), len(words))
    assert tokenizer.token_to_id("last") == 8 and tokenizer.token_to_id("\x1c") == 7
    (tmp_path / "vocab.txt").write_bytes("\n".join(words).encode("utf-8"))  # without a last line end
    assert load_tokenizer(tmp_path, len(words)).token_to_id("last") == 8


def test_a_vocabulary_that_does_not_fit_the_model_is_refused(tiny_folder, tmp_path):
    assert load_tokenizer(tiny_folder, 1501).get_vocab_size() == 1501
    assert load_tokenizer(tiny_folder, 1600)  # embeddings may be padded to a round size
    assert refusal(tiny_folder, 1500) == (
        f"{tiny_folder / 'tokenizer.json'}: has ids up to 1500, and the model knows 1500 word pieces: "
        "they do not belong together"
    )
    tokenizer = load_tokenizer(tiny_folder)
    tokenizer.add_tokens(["<one more>"])
    save_tokenizer(tokenizer, tmp_path)
    assert "has ids up to 1501" in refusal(tmp_path, 1501)


def test_an_id_beyond_the_count_is_seen(whole, tmp_path):
    del whole["model"]["vocab"]["the"]
    whole["model"]["vocab"]["gap"] = 9000
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert "has ids up to 9000, and the model knows 1501 word pieces" in refusal(tmp_path, 1501)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "5", '{"version": "1.0"}', '{"version": "1.', "hi"])
def test_what_is_no_tokenizer_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    assert refusal(tmp_path).startswith(f"{tmp_path / 'tokenizer.json'}: not a tokenizer (")


def test_unreadable_files_are_refused(tiny_folder, tmp_path):
    assert refusal(tmp_path) == f"{tmp_path}: neither tokenizer.json nor vocab.txt in it"
    path = tmp_path / "tokenizer.json"
    path.write_text((tiny_folder / "tokenizer.json").read_text(encoding="utf-8")[:5000], encoding="utf-8")
    assert refusal(tmp_path).startswith(f"{path}: not a tokenizer (EOF")
    path.write_bytes(b"\xff\xfe{\x00}\x00")
    assert f"{path}: not UTF-8 (byte 0 is 0xff)" in refusal(tmp_path)
    path.unlink()
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n[UNK]\n\xe9t\xe9\n")
    assert f"{tmp_path / 'vocab.txt'}: not UTF-8 (byte 12 is 0xe9)" in refusal(tmp_path)


@pytest.mark.parametrize("token", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
def test_a_vocabulary_without_a_special_token_is_refused(tiny_folder, tmp_path, token):
    words = [word for word in word_pieces(load_tokenizer(tiny_folder)) if word != token]
    folder = write_vocabulary(tmp_path, words)
    assert refusal(folder) == (
        f"{folder / 'vocab.txt'}: the vocabulary has no {token}, so this is not a BERT tokenizer"
    )


def other_kinds():
    """Whole tokenizers that are not BERT's."""
    from tokenizers import Tokenizer, models

    yield Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "<s>": 3}, [("a", "b")]))
    yield Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    yield Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    kinds = list(other_kinds())
    assert len(kinds) == 3
    for tokenizer in kinds:
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        assert "the vocabulary has neither [PAD] nor <pad>, so this is not an encoder's tokenizer" in refusal(tmp_path)


def test_an_unk_that_the_word_pieces_do_not_know_is_refused(whole, tmp_path):
    """tokenizers opens such a file, and raises when the first unknown word comes."""
    del whole["model"]["vocab"]["[UNK]"]
    assert any(token["content"] == "[UNK]" for token in whole["added_tokens"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert "the vocabulary has no [UNK]" in refusal(tmp_path)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ([], "expected a JSON object of the tokenizer's settings"),
        ({"do_lower_case": "no"}, "do_lower_case should be true or false, found 'no'"),
        ({"do_lower_case": None}, "do_lower_case should be true or false, found None"),
        ({"strip_accents": 1}, "strip_accents should be true or false, found 1"),
    ],
)
def test_settings_that_are_none_are_refused(tmp_path, settings, sentence):
    write_vocabulary(tmp_path, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert refusal(tmp_path) == f"{tmp_path / 'tokenizer_config.json'}: {sentence}"


def test_saving_and_reading_gives_the_same_tokens(minilm, tiny_folder, tmp_path):
    for name, folder in (("minilm", minilm), ("tiny", tiny_folder)):
        tokenizer = load_tokenizer(folder)
        (tmp_path / name).mkdir()
        save_tokenizer(tokenizer, tmp_path / name)
        again = load_tokenizer(tmp_path / name)
        for text in TEXTS:
            one, other = tokenizer.encode(text), again.encode(text)
            assert (one.ids, one.offsets) == (other.ids, other.offsets)


def test_eight_threads_get_the_same_ids(tiny_folder):
    tokenizer = load_tokenizer(tiny_folder)
    texts = list(sample_texts()) * 3
    expected = [(encoding.ids, encoding.offsets) for encoding in map(tokenizer.encode, texts)]
    with ThreadPoolExecutor(8) as pool:
        found = [(encoding.ids, encoding.offsets) for encoding in pool.map(tokenizer.encode, texts)]
        batches = list(pool.map(lambda _: [e.ids for e in tokenizer.encode_batch(texts[:40])], range(16)))
    assert found == expected
    assert all(batch == [ids for ids, _ in expected[:40]] for batch in batches) and len(batches) == 16
