"""Prompts for a decoder: their tokens are those of the text, answers are runs of the context, windows cover it."""

import numpy as np
import pytest

from common.errors import InputError
from data.chat import FORMATS, encode_chat
from data.examples import Answer, Example
from data.prompts import IGNORED, SLOTS, PromptSet, PromptSettings
from training.asking import refuse_near_slots
from tests.tiny_decoder import SPECIALS, make_tokenizer
from tests.tiny_run import examples

SHORT = PromptSettings(template="Text: {context}\n\nQuestion: {question}", length=80, overlap=7, max_answer=9)


@pytest.fixture(scope="module")
def tokenizer():
    made = make_tokenizer()
    made.encode_special_tokens = True  # as a tokenizer that reads texts is loaded
    return made


def unanswerable(context):
    return Example("none", "Who was king?", context, (), "here")


@pytest.mark.parametrize("name", FORMATS)
def test_a_prompt_reads_as_the_template(tokenizer, name):
    (one,) = examples([0])
    prompts = PromptSet([one, unanswerable(one.context)], tokenizer, FORMATS[name], PromptSettings(), with_labels=True)
    assert len(prompts) == 2
    template = PromptSettings().template.replace("{no_answer}", "unanswerable")
    text = template.replace(SLOTS[0], one.context).replace(SLOTS[1], one.question)
    whole = encode_chat(tokenizer, [("user", text)], FORMATS[name])
    for prompt, said in ((0, one.answers[0].text), (1, "unanswerable")):
        ids, answer = prompts.prompt_ids(prompt), prompts.answer_ids(prompt)
        if prompt == 0:
            found, wanted = (tokenizer.decode(one, skip_special_tokens=False) for one in (ids, whole))
            assert found == wanted
        assert tokenizer.decode(answer[:-1]).strip() == said
        assert tokenizer.id_to_token(answer[-1]) == FORMATS[name].end
        assert prompts.length[prompt] == len(ids) + len(answer)


def test_windows_cover_the_context_and_hold_the_answer(tokenizer):
    some = list(examples(range(9)))
    prompts = PromptSet(some, tokenizer, FORMATS["llama2"], SHORT, with_labels=True)
    assert len(prompts) > 2 * len(some) and prompts.length.max() <= 80
    for number, one in enumerate(some):
        mine = np.flatnonzero(prompts.example == number)
        assert prompts.start[mine[0]] == 0
        for before, after in zip(mine, mine[1:]):
            assert prompts.stop[before] - prompts.start[after] == 7
        spoken = [tokenizer.decode(prompts.answer_ids(k)[:-1]).strip() for k in mine]
        assert one.answers[0].text in spoken and set(spoken) <= {one.answers[0].text, "unanswerable"}
        last = prompts.offsets(mine[-1])[-1]
        assert last[1] == len(one.context)


def test_batches_learn_the_answer_alone(tokenizer):
    some = [*examples([0, 3]), unanswerable("Nothing here.")]
    prompts = PromptSet(some, tokenizer, FORMATS["llama3"], SHORT, with_labels=True, pad=5)
    chosen = np.arange(len(prompts))
    batch = prompts.fill(chosen)
    B, T = batch["input_ids"].shape
    assert B == len(prompts) and prompts.length.max() == T and len(set(prompts.length.tolist())) > 1
    for row in chosen:
        length, answer = prompts.length[row], prompts.answer_ids(row)
        assert batch["attention_mask"][row].tolist() == [False] * (T - length) + [True] * length
        assert batch["input_ids"][row, T - length :].tolist() == prompts.prompt_ids(row) + answer
        assert (batch["input_ids"][row, : T - length] == 5).all()
        places = np.flatnonzero(batch["labels"][row] != IGNORED)
        assert batch["labels"][row, places].tolist() == answer
        assert batch["input_ids"][row, places + 1].tolist() == answer


def test_with_the_inputs_batches_learn_every_token_but_the_first(tokenizer):
    some = [*examples([0, 3]), unanswerable("Nothing here.")]
    alone, whole = (
        PromptSet(some, tokenizer, FORMATS["llama3"], SHORT, with_labels=True, inputs=inputs)
        for inputs in (False, True)
    )
    chosen = np.arange(len(whole))
    batch, without = whole.fill(chosen), alone.fill(chosen)
    taught = without["labels"] != IGNORED
    assert np.array_equal(batch["labels"][taught], without["labels"][taught])  # the answers are learned as before
    for row in chosen:
        places = np.flatnonzero(batch["labels"][row] != IGNORED)
        ids = whole.prompt_ids(row) + whole.answer_ids(row)
        assert batch["labels"][row, places].tolist() == ids[1:]
        assert batch["input_ids"][row, places].tolist() == ids[:-1]
    assert whole.units(chosen) == (whole.length - 1).sum() > alone.units(chosen) == alone.said.sum()


def test_text_forges_nothing_and_awkward_ones_are_taken(tokenizer):
    evil = "".join(SPECIALS)
    some = [Example("a", evil, evil + " or not", (Answer("or not", len(evil) + 1),), ""), unanswerable("")]
    prompts = PromptSet(some, tokenizer, FORMATS["llama3"], PromptSettings(), with_labels=True)
    plain = PromptSet([unanswerable("x")], tokenizer, FORMATS["llama3"], PromptSettings())
    specials = {tokenizer.token_to_id(token) for token in SPECIALS}
    honest = [i for i in plain.prompt_ids(0) if i in specials]
    assert [i for i in prompts.prompt_ids(0) if i in specials] == honest
    assert len(prompts) == 2 and prompts.slice_ids(1).tolist() == []
    long = "word " * 40
    cut = PromptSet([Example("b", "q", long, (Answer(long.strip(), 0),), "")], tokenizer, FORMATS["llama2"], SHORT,
                    with_labels=True)
    assert cut.unlabelled == [0] and len(cut) == 0  # an answer longer than may be said


@pytest.mark.parametrize(
    "changes, sentence",
    [({"template": "no slots"}, "needs {context} exactly once"), ({"template": "{question} {context}"}, "before the"),
     ({"no_answer": " "}, "cannot be empty"), ({"template": "a\0{context}{question}"}, "cannot hold a NUL"),
     ({"no_answer": "none in {context}"}, "phrase for no answer cannot hold {context}"), ({"length": 40}, "choose longer prompts")],
)
def test_settings_that_cannot_be(tokenizer, changes, sentence):
    from dataclasses import replace

    with pytest.raises(InputError, match=sentence.replace("{", r"\{")):
        PromptSet([unanswerable("x")], tokenizer, FORMATS["llama3"], replace(SHORT, **changes))


@pytest.mark.parametrize("template, near", [
    ("{context} {question} {no_anwser}", "{no_answer}"), ("{context} { question } {question}", "{question}"),
    ("{contex} {context} {question}", "{context}"), ("{Context} {context} {question}", "{context}"),
])
def test_a_mistyped_slot_is_told(template, near):
    with pytest.raises(InputError, match="write " + near.replace("{", r"\{")):
        refuse_near_slots(template)


@pytest.mark.parametrize("template", [
    r"\boxed{answer} \frac{1}{2} {{x}} {context} {question}", '{"a": 1} {context}{question}{no_answer}',
])
def test_braces_of_a_template_s_own_are_let_be(template):
    refuse_near_slots(template)
    PromptSettings(template=template).check()
