"""How a model is asked: from the options to the settings of a reader or of a decoder."""

import re
from dataclasses import replace
from difflib import get_close_matches

from common.errors import InputError
from data.decode import DecodeSettings
from data.prompts import SLOTS, PromptSettings
from data.readers import read_dataset
from data.windows import WindowSettings
from model.llama import LlamaConfig
from model.weights import read_config
from answering.reader import base_folder, open_tokenizer, settled
from answering.settings import ReaderSettings, SpeakerSettings, stored_settings
from answering.speaker import SpokenAnswers
from training.run import asked

FOR_DECODERS = ("chat_format", "template", "no_answer_phrase", "shots", "print_prompt", "train_on_inputs")
FOR_SPANS = ("window_step", "length_penalty")
ABOUT_A_TEXT = ("template", "no_answer_phrase", "shots")


def settings_for(source, options, null_threshold):
    """The settings of the model of a ModelSource; InputError for options that are the other kind's."""
    llama = isinstance(read_config(base_folder(source.folder)), LlamaConfig)
    stored = stored_settings(source.folder)
    head = options.head or ("span" if not llama or isinstance(stored, ReaderSettings) else "answer")
    if head == "answer" and not llama:
        raise InputError(f"--head answer: {options.model} is a BERT, which finds spans and says nothing")
    decoder = head == "answer"
    if options.attention is not None and (decoder or not llama):
        raise InputError("--attention is for a LLaMA with --head span")
    for name in ("dropout", "attention_dropout") if llama else ():
        if asked(options, name):
            raise InputError(f"--{name.replace('_', '-')} is for a BERT: {options.model} is a LLaMA, which has none")
    attention = options.attention or getattr(stored, "attention", None) or "causal"
    for names, wrong, owner in ((FOR_DECODERS, not decoder, "a decoder"), (FOR_SPANS, decoder, "a span head")):
        for name in names:
            if wrong and asked(options, name):
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} is for {owner}, and {options.model} answers in another way")
    if not decoder:
        return ReaderSettings(
            WindowSettings(options.window_length, options.window_overlap, options.window_step),
            DecodeSettings(options.n_best, options.max_answer_tokens, options.length_penalty),
            null_threshold, options.quant, attention if llama else None,
        )
    known, chat = PromptSettings(), options.chat_format
    if isinstance(stored, SpeakerSettings):  # one that was trained goes on being asked as it was
        known = replace(known, template=stored.prompts.template, no_answer=stored.prompts.no_answer, shots=stored.prompts.shots)
        chat = chat or stored.chat
    return SpeakerSettings(
        prompt_settings(known, options), chat=chat, n_best=options.n_best, null_threshold=null_threshold, quant=options.quant
    )


def refuse_about_a_text(options, path):
    """InputError for options of prompts about texts, where the data of `path` have none."""
    for name in ABOUT_A_TEXT:
        if asked(options, name):
            raise InputError(f"{path}: asks without texts, and --{name.replace('_', '-')} is for questions about them")


def prompt_settings(known, options):
    """PromptSettings with what the options say in place of what is `known`; of train.py or of infer.py."""
    changes = {
        "template": options.template, "no_answer": options.no_answer_phrase, "length": options.window_length,
        "overlap": options.window_overlap, "max_answer": options.max_answer_tokens,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if options.template is not None:
        refuse_near_slots(options.template)
    if options.shots is not None:
        changes["shots"] = read_shots(options.shots)
    return replace(known, **changes).check()


def refuse_near_slots(template):
    """InputError for a slot that was mistyped, as {no_anwser}; other braces are the template's own."""
    slots = [slot.strip("{}") for slot in (*SLOTS, "{no_answer}")]
    for found in re.findall(r"\{([^{}]*)\}", template):
        near = get_close_matches(found.strip().lower(), slots, n=1, cutoff=0.85)  # {answer} is 0.8 from {no_answer}
        if near and found not in slots:
            raise InputError(f"--template: {{{found}}} is no slot; write {{{near[0]}}}")


def read_shots(path):
    """(context, question, answer) of each question of a small data set, "" for no answer; InputError for others."""
    shots = []
    for example in read_dataset(path).examples:
        if example.context is None or example.answers is None:
            raise InputError(f"{path}: {example.where}: an example for a prompt needs a text and an answer")
        shots.append((example.context, example.question, example.answers[0].text if example.answers else ""))
    return tuple(shots)


def shown_prompt(folder, settings, examples):
    """(the first prompt of some examples as the model sees it, special tokens in it, what it is to say then)."""
    folder = base_folder(folder)
    config = read_config(folder)
    tokenizer, tokenizer_config = open_tokenizer(folder, config)
    settings = settled(settings, config, tokenizer, tokenizer_config, folder)
    prompts = SpokenAnswers(None, tokenizer, None, None).training_set(examples, settings)  # no weights needed
    if not len(prompts):
        raise InputError("the data give no prompt to show: no answer could be said")
    batch = prompts.fill([0])
    said = int(prompts.said[0])
    ids = batch["input_ids"][0].tolist()
    return tuple(tokenizer.decode(part, skip_special_tokens=False) for part in (ids[:-said], ids[-said:]))
