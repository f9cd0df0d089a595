"""Folders to passages with exact places, passages by relevance, answers across documents."""

import os
import re
import time

import numpy as np
import pytest
import torch
from hypothesis import given

from common.errors import InputError
from data.decode import Prediction, Span
from model.source import resolve_model
from model.weights import load_model
from answering.reader import Reader
from retrieval.collection import Collection, open_collection, rank_answers
from retrieval.files import html_document, read_folder
from retrieval.passages import PASSAGE_CHARACTERS, passages_of
from retrieval.ranking import Bm25, Fusion, VectorRanker, best, ranks, words
from retrieval.vectors import FINGERPRINT, Embedder, sentence_reader
from tests.tiny_adapters import make_adapters
from tests.ugly_text import ugly_texts

PAGE = """<!DOCTYPE html>
<html><head><title>The mill</title><style>p { color: red }</style>
<script>let mill = "<p>not to be read</p>";</script></head>
<body><h1>Mill &amp; river</h1>
<!-- a comment about Bo -->
<p>Built by <b>Ada</b> Stone&nbsp;in&#32;1807 &copy ok.</p><ul><li>one<li>two</ul>
<table><tr><td>a</td><td>b</td></tr></table><noscript>hidden</noscript>x&lt;y</body></html>"""


def test_an_html_comment_that_never_closes_goes_to_the_end():
    assert html_document("a.html", "<p>Ada built it.<!-- not --> Really.<!-- by Bo").text.split() == "Ada built it. Really.".split()
    script = '<script>let open = "<!--";</script><p>Ada built it.'
    assert html_document("a.html", script).text.strip() == "Ada built it."


def test_html_is_read_as_people_do():
    document = html_document("mill.html", PAGE)
    assert re.sub(r"\s+", " ", document.text).strip() == (
        "The mill Mill & river Built by Ada Stone in 1807 © ok. one two a b x<y"
    )
    blocks = [block.strip() for block in re.split(r"\n\s*\n", document.text) if block.strip()]
    assert blocks[:3] == ["The mill", "Mill & river", "Built by Ada Stone\xa0in 1807 © ok."]


@pytest.mark.parametrize("answer, written", [
    ("Mill & river", "Mill &amp; river"), ("Ada Stone", "Ada</b> Stone"), ("1807", "1807"), ("in 1807", "in&#32;1807"),
    ("Stone\xa0in", "Stone&nbsp;in"), ("© ok", "&copy ok"), ("x<y", "x&lt;y"), ("&", "&amp;"), ("by Ada", "by <b>Ada"),
])
def test_an_answer_in_html_has_its_place_in_the_file(answer, written):
    document = html_document("mill.html", PAGE)
    start = document.text.index(answer)
    line, first, end = document.place(start, start + len(answer))
    assert PAGE[first:end] == written
    assert line == PAGE[:first].count("\n") + 1


@given(ugly_texts)
def test_every_character_of_html_has_its_place(text):
    source = f"<p>{text}</p>"
    document = html_document("x", source)
    for index, character in enumerate(document.text):
        line, start, end = document.place(index, index + 1)
        assert line == source[:start].count("\n") + 1
        if start < end:
            assert character in source[start:end] or source[start] == "&"


def test_a_broken_page_is_read_as_far_as_it_goes():
    assert html_document("x", "<p>one<script>never closed <p>two").text.strip() == "one"
    assert html_document("x", "</div></script>a &#xZZ; <b").text.strip().startswith("a ")
    assert html_document("x", "").text == ""


@pytest.mark.parametrize("odd", ["<![foo[ x ]]>", "<![0]>", "<![ if x]>", "<![CDATA[x]]>", "<!x>", "<?x>"])
def test_odd_declarations_are_comments(odd):
    assert html_document("x", f"<p>Ada{odd} built it.").text.strip() == "Ada built it."
    assert "Ada" in html_document("x", "<p>Ada" + odd[:-1]).text  # never closed


@pytest.mark.parametrize("opened", ["<a ", "<a b='", '<a b="', "<a b=c ", "<a/", "<a <", "<!-- ", "<![ ", "</a ", "&#"])
@pytest.mark.parametrize("end", ["", ">", "x"])
def test_a_file_of_tags_that_never_end_is_soon_read(opened, end):
    began = time.monotonic()
    html_document("x", opened * 20_000 + end)
    assert time.monotonic() - began < 5  # of minutes


@given(ugly_texts)
def test_passages_are_pieces_of_the_text_in_order(text):
    text = (text + "\n\n") * 3 + text * 50
    end = 0
    for passage in passages_of(7, text):
        assert passage.document == 7 and end <= passage.start < passage.end
        assert passage.end - passage.start <= PASSAGE_CHARACTERS
        assert re.search(r"\w", text[end : passage.end])
        assert not re.search(r"\w", text[end : passage.start])  # nothing to read is lost between two
        end = passage.end
    assert not re.search(r"\w", text[end:])


def test_paragraphs_stay_whole_and_short_ones_together():
    long = "A sentence of the long paragraph. " * 40
    text = f"# Heading\r\n\r\nFirst.\n\n***\n\n{long}\n \nLast one."
    found = [text[p.start : p.end] for p in passages_of(0, text)]
    assert found[0] == "# Heading\r\n\r\nFirst."
    assert len(found) == 3 and found[1].endswith("paragraph.") and found[1].startswith("A sentence")
    assert found[2].endswith("Last one.") and found[2].startswith("A sentence")


def fill(folder):
    files = {
        "a.txt": "The mill was built by Ada Stone in 1807.\n\nIt is red.", "sub/b.md": "# River\n\nThe river is the Daugava.",
        "sub/c.HTML": "<p>The bridge was\nbuilt by <i>Bo</i> Lind.</p>", "d.pdf": "no", ".hidden.txt": "no", ".git/e.txt": "no",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="")
    (folder / "f.txt").write_bytes(b"caf\xe9")
    (folder / "g.txt").symlink_to("/etc/hostname")
    (folder / "empty.txt").write_text("")
    return folder


def test_a_folder_is_read(tmp_path):
    documents, notices = read_folder(fill(tmp_path))
    assert [document.name for document in documents] == ["a.txt", "empty.txt", "sub/b.md", "sub/c.HTML"]
    (notice,) = notices
    assert notice.startswith(f"left out: {tmp_path}/f.txt: not UTF-8 (byte 3 is 0xe9)")


@pytest.mark.skipif(os.name != "posix", reason="such names and pipes are POSIX's")
def test_a_folder_with_odd_things_in_it(tmp_path):
    for name in (b"caf\xe9.txt", b"two\nlines.md"):
        with open(os.path.join(os.fsencode(tmp_path), name), "w") as file:
            file.write("The mill.")
    os.mkfifo(tmp_path / "pipe.txt")  # to open it would be to wait for ever
    (tmp_path / "folder.txt").mkdir()
    documents, notices = read_folder(tmp_path)
    assert [document.name for document in documents] == ["caf\\udce9.txt", "two\nlines.md"] and notices == []
    assert all(document.name.encode() for document in documents)  # JSON in UTF-8 can say it


@pytest.mark.parametrize("fill_it", [
    lambda folder: None, lambda folder: (folder / "a.txt").write_text(" \n"), os.rmdir,
    lambda folder: (folder / "a.txt").write_text("?! ..."),
])
def test_a_folder_without_text_is_refused(tmp_path, fill_it):
    folder = tmp_path / "docs"
    folder.mkdir()
    fill_it(folder)
    with pytest.raises(InputError, match="holds no text to read in files|wants a folder"):
        read_folder(folder)


def test_words_of_any_script():
    assert words("The MILL's café, 3.5 ﬁles") == ["the", "mill", "s", "cafe", "3", "5", "files"]
    assert words("كتاب‌هاي") == words("کتاب‌های") == ["کتاب", "های"]


def test_bm25_finds_by_words():
    ranker = Bm25(["the mill is red", "the river is wide and deep", "a bridge over the river", "?!"])
    assert best(ranker.scores("deep river"), 2).tolist() == [1, 2]
    assert ranker.scores("xyzzy").tolist() == [0, 0, 0, 0] == ranker.scores("").tolist()


def test_texts_without_any_word_rank_alike():
    assert words("\u037a") == [] and Bm25(["\u037a"] * 3).scores("deep river").tolist() == [0, 0, 0]


def test_bm25_is_robertsons_formula():
    texts = ["a b b c", "b c", "c d e f g c", "a"]
    ranker, k1, b = Bm25(texts), 1.5, 0.75
    mean = np.mean([len(t.split()) for t in texts])
    for number, text in enumerate(texts):
        expected = 0
        for word in ("b", "c"):
            n, f = sum(word in t.split() for t in texts), text.split().count(word)
            idf = np.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            expected += idf * f / (f + k1 * (1 - b + b * len(text.split()) / mean))  # Lucene leaves k1 + 1 out
        assert ranker.scores("b c")[number] == pytest.approx(expected, rel=1e-5)


def test_fusion_is_by_ranks():
    class Fixed:
        def __init__(self, *scores):
            self.values = np.array(scores)

        def scores(self, question):
            return self.values

    assert ranks(np.array([0.5, 9.0, 0.5, -1.0])).tolist() == [2, 1, 3, 4]
    fused = Fusion((Fixed(3, 2, 1), Fixed(0, 500, -7))).scores("q")
    assert fused == pytest.approx([1 / 61 + 1 / 62, 1 / 62 + 1 / 61, 2 / 63])


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return Reader.load(tiny_folder, device="cpu", precision="fp32")


def test_vectors_are_means_as_transformers_computes_them(tiny, tiny_folder):
    from transformers import AutoModel, AutoTokenizer

    texts = ["The mill.", "The river is wide, and the mill stands beside it.", "", "x " * 400]
    model = AutoModel.from_pretrained(tiny_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    for text, vector in zip(texts, Embedder(tiny)(texts), strict=True):
        batch = tokenizer(text, truncation=True, max_length=131, return_tensors="pt")  # the tiny model's positions
        with torch.no_grad():
            mean = model(**batch).last_hidden_state[0].mean(0)
        assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)


def test_an_adapter_does_not_change_the_vectors(tiny_folder, tmp_path):
    reader = Reader.load(tiny_folder, device="cpu", precision="fp32")
    before = Embedder(reader)(["The mill."])
    for folder in make_adapters(tmp_path, tiny_folder):
        reader.load_adapter(folder, folder.parts[-1])
    assert (Embedder(reader)(["The mill."]) == before).all() and reader.adapter == "model"


def test_minilm_is_known_by_its_numbers(tiny):
    folder = resolve_model("minilm").folder
    assert load_model(folder)[1].fingerprint == FINGERPRINT
    assert sentence_reader(tiny).report.fingerprint == FINGERPRINT
    minilm = Reader.load(folder, device="cpu", precision="fp32")
    assert sentence_reader(minilm) is minilm
    one, other, third = Embedder(minilm)(["Who built the mill?", "The mill was made by Ada.", "Cats like fish."])
    assert one @ other > one @ third + 0.3 and one @ one == pytest.approx(1, abs=1e-5)


def test_a_collection_is_searched(tmp_path, tiny):
    embedder = Embedder(tiny)
    for ranking in ("bm25", "vectors", "both"):
        collection, _ = open_collection(fill(tmp_path / ranking), ranking, lambda: embedder)
        assert collection.counts() == {"files": 4, "passages": 3}
        assert sorted(collection.search("Who built the bridge?", 9)) == [0, 1, 2]
        assert isinstance(collection.ranker, {"bm25": Bm25, "vectors": VectorRanker, "both": Fusion}[ranking])
    collection, _ = open_collection(tmp_path / "bm25", "bm25", None)  # nobody is asked for vectors
    (first, *_) = collection.search("Who built the bridge, Bo?", 3)
    assert collection.text(first).strip() == "The bridge was\nbuilt by Bo Lind."


def test_a_question_as_long_as_a_book_is_not_searched_to_its_end():
    class Remembering:
        def scores(self, question):
            self.asked = len(question)
            return np.zeros(3)

    ranker = Remembering()
    assert Collection([], [], ranker).search("why? " * 100_000, 2) == [0, 1] and ranker.asked == 2_000


def prediction(null, *spans):
    ends = np.cumsum([len(text) for text, _ in spans]).tolist()  # one after the other
    found = tuple(Span(text, end - len(text), end, score, 0.0) for (text, score), end in zip(spans, ends, strict=True))
    return Prediction("q", found, (null, 0.0), 0.0)


def test_answers_are_ranked_across_passages():
    predictions = [prediction(1, ("a", 5.0), ("b", 2.0)), prediction(9, ("c", 8.0)), Prediction("q", (), None, 1.0)]
    found = rank_answers([4, 2, 7], predictions, None, 2, 0.0)
    assert [(f.span.text, f.passage) for f in found] == [("c", 2), ("a", 4)]
    total = sum(np.exp(x) for x in (8, 5, 2))
    assert [f.probability for f in found] == pytest.approx([np.exp(8) / total, np.exp(5) / total])
    assert [f.span.text for f in rank_answers([4, 2, 7], predictions, 0.0, 9, 0.0)] == ["a", "b"]  # 2 says: no answer
    assert [f.span.text for f in rank_answers([4, 2, 7], predictions, None, 1, 10.0)] == ["a"]  # 2 came second
    assert rank_answers([4, 2, 7], predictions, -99.0, 9) == [] == rank_answers([], [], None, 3)
    over_paragraphs = [prediction(9, ("Sel\n\n\nAda", 5.0), ("Ada\nLee", 3.0), ("Sel \r\n \r\nAda", 2.0))]
    assert [(f.span.text, f.probability) for f in rank_answers([4], over_paragraphs, None, 9)] == [("Ada\nLee", 1.0)]


def test_of_answers_that_overlap_the_best_is_given_once():
    spans = [Span("in 1912", 4, 11, 5.0, 0.0), Span("1912", 7, 11, 6.0, 0.0), Span("open", 0, 4, 1.0, 0.0)]
    both = [Prediction("q", tuple(spans), None, 0.0), Prediction("q", (Span("1912", 7, 11, 5.5, 0.0),), None, 0.0)]
    found = rank_answers([3, 8], both, None, 9, 0.0)
    assert [(f.passage, f.span.text) for f in found] == [(3, "1912"), (8, "1912"), (3, "open")]
    assert found[0].probability == pytest.approx(np.exp(6) / sum(np.exp(x) for x in (5, 6, 1, 5.5)))
    assert len(rank_answers([3, 8], both, None, 2, 0.0)) == 2
