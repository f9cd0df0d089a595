"""What a chat model wants its turns wrapped in, and turns to token ids in which a user cannot forge a wrapping.

A turn is (role, text), role one of "system", "user", "assistant". Wrappings are special tokens, set by their ids, and
plain text around what was said; the said text itself is encoded with special tokens switched off, so that a user's
"</s>" or "<|eot_id|>" is so many letters. What is plain text in a format ("[/INST]" of Llama 2, "<|assistant|>" of
TinyLlama) is plain text in a user's mouth too: these formats have no way to tell the two apart.
"""

import re
from dataclasses import dataclass

from common.errors import InputError
from data.pieces import Special, encode_pieces

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ChatFormat:
    """How turns are written. begin: special tokens before everything. end: the special token that ends an answer.

    wrap(role, text, first): pieces of one turn. open_answer: pieces after which the model is to speak. A piece is a
    text, or a special token as Special.
    """

    name: str
    begin: tuple
    end: str
    wrap: object
    open_answer: tuple
    lead: str = ""  # what stands between `open_answer` and the answer's text
    needs: tuple = ()  # special tokens by which a checkpoint shows that it speaks this


def wrap_llama3(role, text, first):
    """<|start_header_id|>user<|end_header_id|>, an empty line, the text, <|eot_id|>."""
    header = [Special("<|start_header_id|>"), role, Special("<|end_header_id|>")]
    return [*header, "\n\n" + text.strip(), Special("<|eot_id|>")]


def wrap_tinyllama(role, text, first):
    """<|user|> (plain text in this vocabulary), the text on the next line, </s>."""
    return [f"<|{role}|>\n{text}", Special("</s>"), "\n"]


def wrap_llama2(role, text, first):
    """[INST] text [/INST] answer </s><s>; a system's text stands inside the first [INST]."""
    if role == "assistant":
        return [f" {text.strip()} ", Special("</s>")]
    return [*([] if first else [Special("<s>")]), f"[INST] {text.strip()} [/INST]"]


FORMATS = {
    one.name: one
    for one in (
        ChatFormat(
            "llama3", (Special("<|begin_of_text|>"),), "<|eot_id|>", wrap_llama3,
            (Special("<|start_header_id|>"), "assistant", Special("<|end_header_id|>"), "\n\n"),
            needs=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ),
        ChatFormat("tinyllama", (), "</s>", wrap_tinyllama, ("<|assistant|>\n",), needs=("</s>",)),
        ChatFormat("llama2", (Special("<s>"),), "</s>", wrap_llama2, (), lead=" ", needs=("<s>", "</s>")),
    )
}


def guard_turns(tokenizer):
    """Let the tokens that part turns count as special where a checkpoint's file calls them plain; returns the tokenizer.

    Texts are encoded with special tokens switched off, and a plain added token is found in a text all the same.
    """
    wanted = {token for chat in FORMATS.values() for token in (chat.end, *chat.needs)}
    plain = [one.content for one in tokenizer.get_added_tokens_decoder().values() if one.content in wanted and not one.special]
    tokenizer.add_special_tokens(plain)  # they keep their ids
    return tokenizer


MARKS = {  # what a checkpoint's chat template has in it, as a pattern; Llama 3's tokens alone show its format too
    "llama3": r"<\|start_header_id\|>", "llama2": r"\[INST\]", "tinyllama": r"(?s)<\|user\|>.*(eos_token|</s>)",
}


def choose_format(vocabulary, template=None, name=None):
    """The ChatFormat of a checkpoint: the one `name`d, or the one its tokens and its chat template show.

    vocabulary: of the tokenizer, special tokens included. template: `chat_template` of tokenizer_config.json; where
    there is one it decides, since a model may have been taught another format than its vocabulary was made for.
    Raises InputError when the named one lacks its tokens, or none can be told.
    """
    if name is not None:
        if name not in FORMATS:
            raise InputError(f"--chat-format {name}: known are {', '.join(FORMATS)}")
        lacking = [token for token in FORMATS[name].needs if token not in vocabulary]
        if lacking:
            raise InputError(f"--chat-format {name}: this checkpoint's tokenizer has no {lacking[0]}")
        return FORMATS[name]
    for found, mark in MARKS.items():
        shown = re.search(mark, template) if template else found == "llama3"
        if shown and all(token in vocabulary for token in FORMATS[found].needs):
            return FORMATS[found]
    raise InputError("nothing shows how this checkpoint wants its turns; say it with --chat-format")


def fold_system(turns):
    """Llama 2's way with a system's text: inside the first user's turn, between <<SYS>> marks."""
    if turns and turns[0][0] == "system":
        (_, system), (role, text), *rest = turns
        return [(role, f"<<SYS>>\n{system}\n<</SYS>>\n\n{text.strip()}"), *rest]
    return turns


def pieces_of(turns, chat):
    """Texts and Specials of a conversation that ends before the model's answer; InputError for turns out of order."""
    spoken = [role for role, _ in turns if role != "system"]
    if any(role not in ROLES for role, _ in turns) or "system" in [role for role, _ in turns[1:]]:
        raise InputError(f"turns are of {', '.join(ROLES)}, a system's only at the beginning")
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"]:
        raise InputError("turns begin and end with the user's, and the assistant's stand between them")
    turns = fold_system(turns) if chat.name == "llama2" else turns
    pieces = list(chat.begin)
    for number, (role, text) in enumerate(turns):
        pieces += chat.wrap(role, text, number == 0)
    return [*pieces, *chat.open_answer]


def encode_chat(tokenizer, turns, chat):
    """Token ids of a conversation up to where the model speaks."""
    return encode_pieces(tokenizer, pieces_of(turns, chat))


def modelfile(chat, settings, ends=()):
    """The text of a Modelfile with which Ollama imports the merged weights beside it, asked in this chat format.

    settings: PromptSettings, whose template the asker still has to fill in. The first special token is left out, since
    Ollama puts it there itself where the tokenizer says so. Its penalty for repeating what stands before, 1.1 unless
    told, would fall on every answer that is copied from a text. ends: further tokens that end an answer.
    """
    turn = "".join([*chat.wrap("user", "{{ .Prompt }}", True), *chat.open_answer])
    lines = [
        "# ollama create NAME -f Modelfile", "FROM .", f'TEMPLATE """{turn}{chat.lead}{{{{ .Response }}}}{chat.end}"""',
        *(f'PARAMETER stop "{end}"' for end in dict.fromkeys((chat.end, *ends))),
        "PARAMETER temperature 0", "PARAMETER repeat_penalty 1.0",
        f"PARAMETER num_ctx {settings.length}", f"PARAMETER num_predict {settings.max_answer + 1}",
    ]
    return "\n".join(lines) + "\n"
