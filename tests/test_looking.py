"""The prompt's commands that look inside: what they show on the model built by hand, and what they refuse."""

from dataclasses import replace

import pytest
import torch

from common.errors import InputError
from inside.case import Case
from inside.difference import difference
from inside.patching import patch
from inside.tokens import changes
from model.lora import LoraConfig, add_lora
from prompt.display import Style
from prompt.looking import Looking
from prompt.pictures import heat_line
from prompt.session import COMMANDS, Session
from answering.reader import Reader
from tests.copy_model import CONTEXT, QUESTION, copy_reader

NAMES = ("/why", "/lens", "/attn", "/heads", "/ablate", "/tokens", "/windows", "/saliency", "/patch", "/diff", "/trace")
LONG = "ada lima cleo oslo dan paris ada rome lima dan cleo oslo paris bob rome ada lima"


def talk(reader, *lines, open_other=None):
    """What a Session says to lines, one string each, after a text and a question."""
    said = []
    commands = Looking(reader, 6144, open_other).commands()
    adapters = [name for name in reader.all_settings if name is not None]

    def choose(name):
        reader.set_adapter(name)

    session = Session(reader.ask, None, said.append, Style("<", ">"), None, adapters, choose, commands)
    for line in lines:
        assert session.handle(line)
    return said


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return copy_reader(tmp_path_factory.mktemp("copy"))


@pytest.fixture
def say(reader):
    def say(*lines, context=CONTEXT, question=QUESTION):
        return talk(reader, context, question, *lines)[3:]

    return say


def test_all_are_there_and_wait_for_a_question(reader):
    assert not set(NAMES) & set(COMMANDS)
    said = talk(reader, "/help", *NAMES, CONTEXT, *NAMES, QUESTION, "a new\ntext", "/why", "/wyh")
    assert all(f"\n  {name} " in said[0] or f"\n  {name}\n" in said[0] for name in NAMES)
    assert said[1:12] == ["ask a question first"] * 11 and said[13:24] == ["ask a question first"] * 11
    assert said[-2:] == ["ask a question first", "there is no command /wyh; the nearest is /why (/help shows all)"]


def test_why(say):
    said = say("/why", context=LONG)
    assert said[0].startswith("best span: rome  start 18.3") and said[0].endswith("from window 1")
    assert sum(line.startswith("window ") for line in said) == 2 and any("won" in line for line in said)
    assert said[-1].endswith('this model never says "no answer"')


def test_why_with_a_threshold(tmp_path):
    for threshold, words in ((1.0, "not above, so the span is the answer"), (-999.0, "above, so there is no answer")):
        reader = copy_reader(tmp_path / str(threshold), null_threshold=threshold)
        assert talk(reader, CONTEXT, QUESTION, "/why")[-1].endswith(f"threshold {threshold:.2f}: {words}")


def test_lens(say):
    said = say("/lens")
    assert [line.split()[-1] for line in said[1:5]] == ["lima", "lima", "rome", "rome"]
    assert said[-1] == "rome is best from block 1 on; before it was lima"


def test_heads_and_ablation(say):
    said = say(
        "/heads 2", "/heads", "/heads 0", "/ablate 0.1", "/ablate 0.0 2.ff", "/ablate", "/ablate 7.0", "/ablate x"
    )
    assert {line.split()[0] for line in said[1:3]} == {"0.1", "1.2"} and all("lima" in line for line in said[1:3])
    assert said[3] == "… and 10 more; /heads 12 shows all"
    assert [line.split()[1:] for line in said[7:15]] == [["0.00", "rome"]] * 8
    refused = [line for line in said if line.startswith(("/heads takes", "/ablate takes", "there is no", "'x'"))]
    assert refused == [
        "/heads takes a whole number above 0, as in /heads 10", "/ablate takes heads, as in /ablate 0.1 2.ff",
        "there is no layer 7; this model's are 0 to 2",
        "'x' is no head: name heads block.head, as in 4.6, feed-forward halves 4.ff",
    ]
    without = [line for line in said if line.startswith("without ")]
    assert without[0].startswith("without 0.1: lima, best score") and without[1].startswith("without 0.0, 2.ff: rome")


def test_attention(say):
    said = say("/attn 0.1", "/attn 1.2", "/attn 5.ff", "/attn 0.1 1.2", "/attn")
    assert said[0].startswith("head 0.1, the answer looks at: bob 1.000") and said[1] == "  … bob█ …"
    assert said[4].startswith("head 1.2, the answer looks at: bob 0.999")
    refusal = "/attn takes one head as block.head, as in /attn 4.6"
    assert said[8:] == ["there is no layer 5; this model's are 0 to 2", refusal, refusal]


def test_saliency_and_patching(say):
    said = say("/saliency", '/patch "cleo"', "/patch", "/patch lima cleo")
    assert said[0].startswith("strongest: bob 39.") and "is missing (32 steps)" in said[2]
    assert said[3] == "this question's best span: rome; the other's: oslo"
    flipped = [line.split()[:2] for line in said if line.endswith("(flipped)")]
    assert flipped[:4] == [["block", "1"], ["block", "2"], ["embeddings", flipped[2][1]], ["block", "0"]]
    assert '/patch takes another question about the same text, as in /patch "Who built it?"' in said
    assert said[-1].startswith("the questions have different numbers of tokens, so the states of theirs were not swapped")


def test_tokens_and_windows(say):
    said = say("/tokens", "/tokens 1", "/tokens 2", "/tokens x", "/windows", context=LONG)
    assert said[0].split() == ["position", "type", "id", "characters", "token"]
    assert said[2].split() == ["1", "0", "5", "0-3", "bob"] and said[4].split() == ["3", "1", "7", "43-46", "dan"]
    assert said.count("/tokens takes the number of a window, 0 to 1") == 2
    assert said[-4] == "window 0: 17 tokens, of the text 0 to 12; characters 0 to 62"
    assert said[-2] == "window 1: 12 tokens, of the text 9 to 16, 4 shared with window 0; characters 43 to 80"


def test_what_a_tokenizer_drops_of_persian_is_marked(tiny_folder):
    reader = Reader.load(tiny_folder, device="cpu", precision="fp32")
    text = "آب می\u200cشود و مدّت"
    found = changes(reader.tokenizer, text)
    assert [(one.place, one.character, one.left) for one in found] == [
        (0, "آ", "ا"), (5, "\u200c", ""), (14, "\u0651", "")
    ]
    assert found[1].name == "ZERO WIDTH NON-JOINER"
    said = talk(reader, text, "چه؟", "/tokens 0")
    assert any("[U+200C]" in line for line in said) and "  1 x ZERO WIDTH NON-JOINER: dropped" in said
    assert "  1 x ARABIC LETTER ALEF WITH MADDA ABOVE: taken for ا" in said


def test_what_is_dropped_between_pieces_and_in_the_question_is_marked_too(tiny_folder):
    reader = Reader.load(tiny_folder, device="cpu", precision="fp32")
    joiner, words = "\u200c", [reader.tokenizer.id_to_token(code) for code in range(5, 400)]
    one, two, *_ = [word for word in words if word.isascii() and word.isalpha()]
    text = f"{joiner} {one}. {joiner} {two}, {joiner}{two} {joiner}{joiner}"
    said = talk(reader, text, f"{one} {joiner}?", "/tokens 0")
    rows = [line for line in said if "from" in line]
    assert sum(line.count("[U+200C]") for line in rows) == 4, rows  # the two at the end stand before no piece
    counted = [line for line in said if "ZERO WIDTH" in line or "the tokenizer changed" in line]
    dropped = "  {} x ZERO WIDTH NON-JOINER: dropped"
    assert counted == [
        "the tokenizer changed 1 character of the question in this window before cutting it:", dropped.format(1),
        "the tokenizer changed 5 characters of the text in this window before cutting it:", dropped.format(5),
    ]


def test_a_question_of_nothing_visible_is_an_empty_one(tiny_folder):
    reader = Reader.load(tiny_folder, device="cpu", precision="fp32")
    for question in ("", " \t", "\u200c", "\u200f \ufeff"):
        assert reader.ask(question, "a text")[0].reason == "the question is empty"
        with pytest.raises(InputError, match="the question is empty"):
            Case(reader, question, "a text")


def test_trace_writes_a_file_once(say, tmp_path):
    path = tmp_path / "trace.txt"
    said = say(f"/trace {path}", f"/trace {path}", "/trace", f"/trace {tmp_path}/no/such\0")
    count = int(said[0].split()[0])
    assert said[0] == f"{count} operations are in {path}" and count > 90
    assert said[1] == f"{path}: is there already; name another file"
    assert said[2] == said[3] == "/trace takes the file to write to, as in /trace trace.txt"
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") == 4 * count
    assert "bert.encoder.layer.1.attention.self  softmax\n      1 x 3 x 11 x 11  float32  min" in text


def test_differences_between_adapters_and_models(tmp_path):
    reader = copy_reader(tmp_path / "a")
    torch.manual_seed(0)
    add_lora(reader.model, LoraConfig(rank=2, targets=("value",)), "shy")
    reader.all_settings["shy"] = reader.all_settings[None]
    with torch.no_grad():
        reader.model.qa_outputs.heads["shy"].weight.neg_()  # likes what the base does not

    def open_other(name):
        if name != "twin":
            raise InputError(f"{name}: there is no such model")
        return copy_reader(tmp_path / "a")

    said = talk(reader, CONTEXT, QUESTION, "/diff none", "/diff twin", "/diff", "/diff lost", open_other=open_other)[3:]
    assert said[0].startswith("shy: ") and said[1].startswith("none: rome") and said[2] == "different answers"
    assert any(line.endswith("  rome") for line in said[4:])
    assert said[-2:] == [
        "/diff takes the name of an adapter, none for the bare model, or a model as --model does",
        "lost: there is no such model",
    ]
    seen = difference(Case(reader, QUESTION, CONTEXT, adapter=None), Case(open_other("twin"), QUESTION, CONTEXT))
    assert seen.same and all(row.scores[0] == row.scores[1] for row in seen.rows) and len(seen.rows) == 5
    case = Case(reader, QUESTION, CONTEXT)
    assert case.prediction == reader.ask(QUESTION, CONTEXT)[0]  # with the adapter; and ablation finds its way too
    lines = ("/ablate 0.1", "/lens", "/saliency", "/attn 0.1", f"/trace {tmp_path / 't'}")
    said = talk(reader, CONTEXT, QUESTION, *lines)
    assert not any("there is no" in line for line in said)


def test_heat_lines_leave_out_what_is_nothing(reader):
    pieces = Case(reader, QUESTION, CONTEXT).pieces(0)
    weights = [0.0] * len(pieces)
    weights[1], weights[4] = 1.0, -0.5
    assert heat_line(pieces, weights, Style()) == "… bob█ … ada-▄ …"


def with_decode(reader, *lines, **changes):
    """What is said to lines while some settings are others."""
    usual = reader.settings
    decode = {"length_penalty": changes.pop("length_penalty")} if "length_penalty" in changes else {}
    reader.settings = replace(usual, decode=replace(usual.decode, **decode), **changes)
    try:
        return talk(reader, CONTEXT, QUESTION, *lines)[3:]
    finally:
        reader.settings = usual


def test_a_penalty_on_length_is_said_beside_the_end_logits(reader):
    first, *_ = with_decode(reader, "/why", length_penalty=0.25)
    assert first == "end logits are less 0.25 for each of the answer's tokens after its first (--length-penalty)"
    assert not any("are less" in line for line in with_decode(reader, "/why"))


def test_patching_tells_the_states_and_flips_to_no_answer(reader):
    said = talk(reader, CONTEXT, QUESTION, '/patch "cleo"')[3:]
    assert "with the states of the text's 7 tokens, and of [CLS] and [SEP], taken from the other question's run:" in said
    assert "with the states of the question's 1 token, and of [SEP], taken from the other question's run:" in said
    usual = reader.settings
    reader.settings = replace(usual, null_threshold=1e6)
    try:
        odds = [reader.ask(question, CONTEXT)[0].null_odds for question in (QUESTION, "cleo")]
        low, high = (QUESTION, "cleo") if odds[0] < odds[1] else ("cleo", QUESTION)
        reader.settings = replace(usual, null_threshold=sum(odds) / 2)
        said = talk(reader, CONTEXT, low, f"/patch {high}")[3:]
        (text, *_) = patch(Case(reader, low, CONTEXT), Case(reader, high, CONTEXT))
    finally:
        reader.settings = usual
    assert said[0].endswith("  (no answer)") and text.says is not None is text.other_says and text.flips
    flipped = [line for line in said if line.endswith("(flipped)  (no answer)")]
    assert len(flipped) >= len(text.flips)


def test_patching_says_where_no_answer_would_be_given(reader):
    rows = [line for line in with_decode(reader, '/patch "cleo"', null_threshold=-1e6) if line.startswith(("block", "emb"))]
    assert len(rows) >= 3 and all(line.endswith("(no answer)") for line in rows)
    assert not any(line.endswith("(no answer)") for line in with_decode(reader, '/patch "cleo"', null_threshold=1e6))
