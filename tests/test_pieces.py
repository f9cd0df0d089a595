"""Prompts put together from pieces have the ids of the whole text, with every kind of tokenizer a LLaMA comes with."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data.chat import FORMATS, pieces_of
from data.examples import Answer, Example
from data.pieces import Special, behind_special, continuing, encode_pieces, encode_plain
from data.prompts import PromptSet, PromptSettings, TalkSet
from tests.tiny_decoder import SPECIALS, make_tokenizer
from tests.tiny_model import sample_texts


def sentence_pieces(kind):
    """A BPE as Llama 2's and TinyLlama's tokenizer.json have it, bytes for what it does not know.

    kind: "prepend", the space before a text is the normaliser's (as published); "first", Metaspace's (not legacy).
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = (line for text in sample_texts() for line in text.split("\n"))  # no piece has a line's end in it there either
    made.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    learned = json.loads(made.to_str())["model"]
    words = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned["merges"]]
    model = models.BPE(
        {word: number for number, word in enumerate(words)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True,
    )
    made = Tokenizer(model)
    if kind == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return made


KINDS = {"byte level": make_tokenizer, "prepend": lambda: sentence_pieces("prepend"), "first": lambda: sentence_pieces("first")}
CONTEXT = "The old mill was built by Ada Stone in 1807. It stands in Riga, and 9 people work there."


@pytest.fixture(scope="module", params=KINDS)
def both(request):
    """(a tokenizer as texts are read with, the same as it finds special tokens in a text)."""
    made, finding = KINDS[request.param](), KINDS[request.param]()
    made.encode_special_tokens = True
    return made, finding


def whole(finding, turns, chat, more=""):
    """Ids of the whole conversation, and of what stands behind it, encoded in one go."""
    return finding.encode("".join(pieces_of(turns, chat)) + more, add_special_tokens=False).ids


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shots", [(), ((CONTEXT, "Where is it?", "Riga"), ("It rains.", "Who?", ""))], ids=["bare", "shots"])
def test_a_prompt_has_the_ids_of_its_whole_text(both, name, shots):
    tokenizer, finding = both
    chat, settings = FORMATS[name], PromptSettings(shots=shots, length=1200)
    some = [Example("a", "Who built the mill?", CONTEXT, (Answer("Ada Stone", CONTEXT.index("Ada")),), ""),
            Example("b", "When did it burn?", CONTEXT, (), "")]
    prompts = PromptSet(some, tokenizer, chat, settings, with_labels=True)
    for number, one in enumerate(some):
        turns = []
        for context, question, answer in shots:
            turns += [("user", settings.filled(context, question)), ("assistant", answer or settings.no_answer)]
        turns.append(("user", settings.filled(one.context, one.question)))
        assert prompts.prompt_ids(number) == whole(finding, turns, chat)
        assert tokenizer.decode(prompts.answer_ids(number)[:-1]).strip() == ("Ada Stone", "unanswerable")[number]
    said = prompts.prompt_ids(1) + prompts.answer_ids(1)[:-1]
    assert said == whole(finding, turns, chat, chat.lead + settings.no_answer)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_said_in_a_chat_is_what_stands_in_its_history(both, name):
    tokenizer, finding = both
    chat, asked = FORMATS[name], Example("a", "And when?", None, (Answer("In 1807, it is said.", -1),), "", "", (
        ("user", "Who built it?"), ("assistant", "Ada Stone."),
    ))
    talks = TalkSet([asked], tokenizer, chat, PromptSettings(), with_labels=True)
    turns = [*asked.history, ("user", asked.question)]
    assert talks.prompt_ids(0) == whole(finding, turns, chat)
    said = talks.prompt_ids(0) + talks.answers[0]
    again = whole(finding, [*turns, ("assistant", "In 1807, it is said."), ("user", "x")], chat)
    stop = len(said) - 1  # Llama 2's template has a space before the token that ends an answer
    assert said[:stop] == again[:stop] and said[-1] == tokenizer.token_to_id(chat.end)


def test_no_space_is_made_up_where_text_goes_on(both):
    tokenizer, finding = both
    assert encode_pieces(tokenizer, ["The mill", " stands\nin ", "Riga"]) == finding.encode("The mill stands\nin Riga").ids
    for head, tail in (("Text:\n", "The mill"), ("A: (", "Riga)"), ("in ", "1807")):
        ids = encode_pieces(tokenizer, [head]) + encode_pieces(tokenizer, [tail], continues=True)
        assert finding.decode(ids) == head + tail
    ids = encode_pieces(tokenizer, ["a", Special("</s>"), "Riga", Special("<s>"), " it"])
    assert ids == finding.encode("a</s>Riga<s> it", add_special_tokens=False).ids
    plain = encode_plain(tokenizer, "</s>")
    assert tokenizer.token_to_id("</s>") not in plain and finding.decode(plain, skip_special_tokens=False) == "</s>"
    assert continuing(tokenizer) is continuing(tokenizer) and tokenizer.encode_special_tokens
    assert behind_special(tokenizer).encode("Riga").ids == finding.encode("</s>Riga", add_special_tokens=False).ids[1:]


def test_a_unigram_s_special_pieces_are_no_special_tokens_either():
    """Such a vocabulary has "</s>" among its pieces, and finds it in a text."""
    pieces = [("<pad>", 0.0), ("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in "▁abcds</>")]
    made = Tokenizer(models.Unigram(pieces, unk_id=1))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(["<pad>", "<unk>", "<s>", "</s>"])
    found = encode_plain(made, "a</s>b")
    assert 3 not in found and 1 in found and not made.encode_special_tokens
