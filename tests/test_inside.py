"""Looking inside a model whose right answer is known (tests/copy_model.py), and one that is random."""

import pytest
import torch

from bench.looking import hooks, look_everywhere
from common.errors import InputError
from data.examples import Example
from inside.ablation import Means, Unit, ablated, case_means, collecting, predict_without, rank_heads, units
from inside.attention import attention_maps, check_head, look
from inside.case import QUESTION as ASKED, SPECIAL, TEXT, Case
from inside.lens import lens
from inside.patching import patch
from inside.saliency import saliency
from inside.trace import trace
from inside.why import why
from model.prompts import add_prompt
from model.quant import multiply_in_int8
from answering.reader import Reader
from tests.tiny_families import FAMILIES, make_family_folder
from tests.copy_model import CONTEXT, COPY, MARKING, QUESTION, copy_reader

SPECIALS = ("[CLS]", "[SEP]", "<s>", "</s>")
LONG = "ada lima cleo oslo dan paris ada rome lima dan cleo oslo paris bob rome ada lima"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return copy_reader(tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="module")
def case(reader):
    return Case(reader, QUESTION, CONTEXT)


@pytest.fixture(scope="module")
def random_reader(tiny_folder):
    return Reader.load(tiny_folder, device="cpu", precision="fp32")


def random_case(random_reader):
    return Case(random_reader, "Who paid for the mirror?", "A merchant paid for the mirror. " * 5)


def test_the_model_does_what_it_was_built_for(reader):
    for name, answer in (("bob", "rome"), ("cleo", "oslo"), ("ada", "paris"), ("paris", "bob")):
        assert Case(reader, name, CONTEXT).best.text == answer


def test_lens_finds_the_layer_and_what_was_beaten(case):
    seen = lens(case)
    assert (seen.answer.text, seen.appears, seen.beaten.text) == ("rome", MARKING[0] + 1, "lima")
    assert [one.best.text for one in seen.layers] == ["lima", "lima", "rome", "rome"]
    assert [one.rank == 1 for one in seen.layers] == [False, False, True, True]
    start, end = case.logits(seen.number)
    last = seen.layers[-1]
    assert torch.equal(last.start_logits, start[0]) and torch.equal(last.end_logits, end[0])
    assert last.score == pytest.approx(case.best.score, abs=1e-5)


def test_ablation_finds_exactly_the_two_heads(case):
    losses = rank_heads(case)
    assert len(losses) == 3 * 3 + 3
    assert {(loss.unit.layer, loss.unit.head) for loss in losses[:2]} == {COPY, MARKING}
    assert all(loss.drop > 30 and loss.prediction.spans[0].text == "lima" for loss in losses[:2])
    assert all(loss.drop == 0.0 and loss.prediction.spans[0].text == "rome" for loss in losses[2:])
    assert predict_without(case, [Unit(*COPY)]).spans[0].text == "lima"
    idle = [unit for unit in units(case.model) if (unit.layer, unit.head) not in (COPY, MARKING)]
    assert predict_without(case, idle) == case.prediction


def test_heads_look_where_they_should(case):
    copying, marking = look(case, *COPY), look(case, *MARKING)
    pieces = case.pieces(0)
    first, _ = case.tokens_of(case.best, 0)
    assert copying.answer.argmax() == first - 1 and copying.answer.max() > 0.999
    assert pieces[marking.answer.argmax()].part == ASKED and marking.answer.max() > 0.99
    assert copying.answer.sum().item() == pytest.approx(1) and copying.to_virtual < 1e-6
    for layer, head, sentence in ((3, 0, "no layer 3; this model's are 0 to 2"), (1, 3, "no head 1.3; those of")):
        with pytest.raises(InputError, match=sentence):
            check_head(case, layer, head)


def test_saliency_finds_the_asked_word_and_the_one_before_the_answer(case):
    found = saliency(case)
    pieces = case.pieces(0)
    share = found.attributions / (found.score - found.baseline)
    wanted = {p.position for p in pieces if p.token == "bob"}
    assert len(wanted) == 2
    for piece in pieces:
        if piece.position in wanted:
            assert share[piece.position] > 0.45
        else:
            assert abs(share[piece.position]) < 0.02
    assert abs(found.missing) < 0.01
    assert abs(saliency(case, steps=3).missing) > 10 * abs(found.missing)  # too few steps, and it shows
    assert all(found.attributions[p.position] == 0 for p in pieces if p.part == SPECIAL)


def test_patching_finds_the_layer_where_the_text_learns_of_the_question(reader, case):
    text, question = patch(case, Case(reader, "cleo", CONTEXT))
    assert (text.part, question.part) == (TEXT, ASKED)
    assert (text.answer.text, text.other.text) == ("rome", "oslo")
    assert text.flips == (2, 3)  # from what leaves the marking head's block on
    assert question.flips == (0, 1)
    assert text.layers[3].other_score > text.layers[3].answer_score
    both = patch(case, Case(reader, "lima cleo", CONTEXT))
    assert [one.part for one in both] == [TEXT]  # questions of different lengths cannot be swapped token by token
    assert patch(case, Case(reader, QUESTION, CONTEXT))[0].flips == ()


def test_patching_a_long_text_takes_the_window_that_shares_most(reader):
    (text,) = patch(Case(reader, "bob", LONG), Case(reader, "lima dan", LONG))
    assert text.answer.text == "rome" and text.tokens == 8  # of slices 9-17 and 8-17
    assert text.specials == ("[CLS]", "[SEP]")


@pytest.mark.parametrize("family", FAMILIES)
def test_relatives_can_be_looked_into(tmp_path, family):
    reader = Reader.load(make_family_folder(tmp_path, family), device="cpu", precision="fp32")
    question, text = "Who built the old mill of Riga?", "The old mill was built by Ada Stone in 1807. " * 9
    look_everywhere(reader, Example("1", question, text, None, ""))
    assert hooks(reader.model) == 0
    case = Case(reader, question, text)
    for number in range(len(case.windows)):
        pieces = case.pieces(number)
        assert [p.position for p in pieces if p.part == SPECIAL and p.token not in SPECIALS] == []
        assert [p.token for p in pieces if p.token in SPECIALS and p.part != SPECIAL] == []
        for part, source in ((ASKED, question), (TEXT, text)):
            for piece in (p for p in pieces if p.part == part):
                word = piece.token.lstrip("#\u0120\u2581").lower()
                assert word in ("", source[piece.start : piece.end].strip().lower())  # XLM-R has a piece for a space
    found = saliency(case)
    assert all(found.attributions[p.position] == 0 for p in case.pieces(found.number) if p.part == SPECIAL)


def test_why_tells_each_window_apart(reader):
    case = Case(reader, "bob", LONG)
    seen = why(case)
    assert len(seen.windows) == 2 and seen.winner == 1
    assert seen.prediction == next(iter(reader.predict([Example("question", "bob", LONG, None, "")])))
    assert seen.windows[1].spans[0].text == "rome" and "rome" not in [s.text for s in seen.windows[0].spans]
    assert (seen.windows[0].first, seen.windows[0].last, seen.windows[1].last) == (0, 12, 16)
    assert LONG[seen.windows[1].start : seen.windows[1].end].endswith("ada lima")
    assert min(sum(view.null) for view in seen.windows) == sum(seen.prediction.null)
    assert sum(seen.windows[seen.null_window].null) == sum(seen.prediction.null)
    for view in seen.windows:
        start, end = case.logits(view.number)
        assert view.null == pytest.approx((start[0, 0].item(), end[0, 0].item()), abs=1e-5)


def test_pieces_are_what_the_window_holds(case):
    pieces = case.pieces(0)
    assert [p.token for p in pieces] == ["[CLS]", "bob", "[SEP]", *CONTEXT.split(), "[SEP]"]
    assert [p.type for p in pieces] == [0] * 3 + [1] * 8
    assert all(CONTEXT[p.start : p.end] == p.token for p in pieces if p.part == TEXT)
    ids, types = case.inputs(0)
    assert ids[0].tolist() == [p.id for p in pieces] and types[0].tolist() == [p.type for p in pieces]


@pytest.mark.parametrize(
    "question, context, sentence",
    [("", "a text", "the question is empty"), ("q", " ", "the context is empty"), ("q", "\u200b", "no readable words")],
)
def test_nothing_to_look_at(random_reader, question, context, sentence):
    with pytest.raises(InputError, match=sentence):
        Case(random_reader, question, context)


def test_trace_is_what_ran(random_reader):
    case = random_case(random_reader)
    before = case.logits(0)
    steps = trace(case)
    assert len(steps) > 90 and all(step.equation and step.code and step.file.startswith("model/") for step in steps)
    softmax = [step for step in steps if step.operation == "softmax"]
    T = len(case.pieces(0))
    assert len(softmax) == 3 and all(step.shape == (1, 5, T, T) for step in softmax)
    assert softmax[0].mean == pytest.approx(1 / T, rel=1e-5) and softmax[0].lowest >= 0
    assert softmax[1].module == "bert.encoder.layer.1.attention.self" and "softmax" in softmax[1].code
    heads = [step for step in steps if step.module == "qa_outputs"]
    assert [step.shape for step in heads] == [(1, T, 2)]
    assert heads[0].highest == pytest.approx(max(x.max().item() for x in before), abs=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, case.logits(0), strict=True))


def test_nothing_stays_behind(random_reader):
    """Hooks are gone after every look, also one that fails."""
    case = random_case(random_reader)
    before = random_reader.ask("Who?", case.example.context)[0]
    lens(case), rank_heads(case), saliency(case, steps=2), patch(case, random_case(random_reader)), trace(case)
    attention_maps(case)
    with pytest.raises(ZeroDivisionError), ablated(case.model, [Unit(0, 1), Unit(2)], case_means(case)):
        raise ZeroDivisionError
    for module in case.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert random_reader.ask("Who?", case.example.context)[0] == before


def test_means_leave_padding_out(random_reader):
    case = random_case(random_reader)
    number, batch = 0, case.batch(0)
    whole, padded = Means(case.model), Means(case.model)
    with case.computing() as model:
        with collecting(model, whole, None):
            model(*case.inputs(number))
        mask = torch.ones(1, batch["input_ids"].shape[1] + 7, dtype=torch.bool)
        mask[:, -7:] = False
        longer = [torch.nn.functional.pad(x, (0, 7)) for x in case.inputs(number)]
        with collecting(model, padded, mask):
            model(*longer, mask)
    assert whole.tokens == padded.tokens == len(case.pieces(0))
    for unit in units(case.model):
        torch.testing.assert_close(whole[unit], padded[unit], atol=1e-5, rtol=1e-5)


def test_virtual_tokens_are_left_out(tiny_folder):
    reader = Reader.load(tiny_folder, device="cpu", precision="fp32")
    torch.manual_seed(0)
    add_prompt(reader.model, 3)
    case = random_case(reader)
    T = len(case.pieces(0))
    seen = lens(case)
    assert torch.equal(seen.layers[-1].start_logits, case.logits(0)[0][0])
    assert [tuple(one.shape) for one in attention_maps(case)] == [(5, T, T)] * 3
    assert 0 < look(case, 1, 2).to_virtual < 1
    assert abs(saliency(case).attributions).sum() > 0
    assert patch(case, random_case(reader))[0].tokens > 0 and len(trace(case)) > 90


def test_eight_bits_have_no_gradient(tiny_folder):
    reader = Reader.load(tiny_folder, device="cpu", precision="fp32")
    multiply_in_int8(reader.model)
    case = random_case(reader)
    with pytest.raises(InputError, match="what rounds has no gradient"):
        saliency(case)
    assert len(lens(case).layers) == 4
