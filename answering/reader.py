"""A model, its tokenizer and its settings: question and text in, exact spans out.

Training's evaluation, the prompt, a file of questions: all of them ask this class.
"""

import time
from dataclasses import replace
from pathlib import Path

from common.errors import InputError
from common.files import write_json
from data.chat import choose_format, guard_turns
from data.examples import Example
from data.tokenizer import load_tokenizer, save_tokenizer, tokenizer_settings
from model.adapters import is_adapter, load_adapter, read_adapter, save_adapter
from model.bert import BertConfig
from model.fusion import is_fusion, load_fusion, read_fusion, save_fusion
from model.combining import combine
from model.lora import adapter_names, remove_adapter, set_adapter, switch_of
from model.peft_config import CONFIG_FILE, read_base
from model.quant import QUANTS, FourBit, multiply_in_int8
from model.prompts import count_named, has_prompt, is_prompt, load_prompt, room, save_prompt
from model.precision import choose_device, choose_precision
from model.source import resolve_model
from model.saving import save_weights
from model.weights import load_model, read_config, stored_quant
from answering.lanes import usual_lanes
from answering.ollama import PIECE_FILE, save_for_ollama
from answering.settings import ReaderSettings, SpeakerSettings, default_settings, stored_settings, way_of
from answering.spans import SpanReading, decoder_layout
from answering.speaker import SpokenAnswers


def described_base(folder):
    """(Base, folder of the base) of an adapter's or a fusion's folder; InputError when it names none."""
    if is_fusion(folder):
        described, cure = read_fusion(folder)[0], "write it into base_model_name_or_path of its fusion.json"
    else:
        prompt = is_adapter(folder) and is_prompt(folder)
        described = read_base(folder) if prompt else read_adapter(folder)
        cure = f"write it into base_model_name_or_path of its {CONFIG_FILE}"
        cure += "" if prompt else f", or ask with infer.py --adapter {folder} --model BASE"
    if described.base is None:
        raise InputError(f"{folder}: this adapter does not name its base: {cure}")
    revision = described.revision if described.base != "minilm" else None  # a package's or the hub's: equal
    try:
        base = resolve_model(described.base, revision=revision).folder
    except InputError as error:
        raise InputError(f"{folder}: its base cannot be had ({error}); if it lies elsewhere, {cure}") from None
    if is_adapter(base) or is_fusion(base):
        raise InputError(f"{folder}: names {base} as its base, which is an adapter itself")
    return described, base


def base_folder(folder):
    """The folder with the weights and the config.json: that of an adapter's base, or the folder itself."""
    return described_base(folder)[1] if is_adapter(folder) or is_fusion(folder) else Path(folder)


def open_tokenizer(folder, config):
    """(tokenizer, contents of tokenizer_config.json or None for a BERT) of a folder with this config."""
    if isinstance(config, BertConfig):
        return load_tokenizer(folder, config.vocab_size), None
    return guard_turns(load_tokenizer(folder, config.vocab_size, framed=False)), tokenizer_settings(folder)


def settled(settings, config, tokenizer, tokenizer_config, folder):
    """The settings with what only the checkpoint can say, a decoder's chat format; InputError where they do not fit."""
    bert = isinstance(config, BertConfig)
    if isinstance(settings, ReaderSettings):
        if bert is not (settings.attention is None):
            raise InputError(f"{folder}: these settings are of a {'LLaMA' if bert else 'BERT'} with a span head")
        return settings
    if bert:
        raise InputError(f"{folder}: a BERT has no words to answer with; these settings are a decoder's")
    try:
        chat = choose_format(tokenizer.get_vocab(), tokenizer_config.get("chat_template"), settings.chat)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    return replace(settings, chat=chat.name)

ACTIVE = object()  # stands for the adapter that is active when a prediction begins


class Reader:
    """Answers questions. Attributes: model, tokenizer, settings, device, precision, report (LoadReport).

    way: how it answers, SpanReading or SpokenAnswers, as its settings are ReaderSettings or SpeakerSettings.
    base: (name, revision) of the model that adapters saved from here belong to. Each adapter has settings of its
    own, and `settings` are those of the active one. notices: sentences on what was odd about adapters' files.
    Threads may share a Reader: a prediction keeps the adapter and the settings that it began with.
    """

    def __init__(
        self, model, tokenizer, settings, *, device, precision, report=None, base=(None, None), tokenizer_config=None
    ):
        self.model = model.to(device)
        self.tokenizer, self.tokenizer_config = tokenizer, tokenizer_config  # the latter None: as a BERT's is written
        self.device, self.precision, self.report, self.base = device, precision, report, base
        self.all_settings = {}
        if isinstance(settings, SpeakerSettings):
            self.way = SpokenAnswers(self.model, tokenizer, device, precision)
        else:
            layout = None if tokenizer_config is None else decoder_layout(tokenizer, tokenizer_config)
            self.way = SpanReading(self.model, tokenizer, device, precision, layout)
        self.all_settings = {None: self.checked(settings)}  # adapter -> settings; None: the bare base
        self.notices = []
        self.piece_file = None  # SentencePiece's own file of the vocabulary, where the model's folder has it

    @property
    def trained(self):
        """Whether the span head that is in use was ever trained; an adapter brings its own."""
        return not self.report.head_is_new or self.adapter is not None or has_prompt(self.model)

    @property
    def adapter(self):
        """Name of the active adapter, None for the bare base."""
        switch = switch_of(self.model)
        return switch.active if switch else None

    @property
    def settings(self):
        """The settings in force, those of the active adapter."""
        return self.all_settings[self.adapter]

    @settings.setter
    def settings(self, settings):
        self.all_settings[self.adapter] = self.checked(settings)

    @property
    def question_limit(self):
        """Tokens that a question may have; of a longer one the rest is cut."""
        return self.way.question_limit(self.settings)

    def checked(self, settings):
        """`settings`, when the model has positions enough for their windows; InputError otherwise."""
        known = room(self.model)
        self.way.check(settings)
        if settings.length > known:
            raise InputError(
                f"windows of {settings.length} tokens are longer than this model's {known} positions; "
                "choose a shorter window"
            )
        if self.all_settings and type(settings) is not type(self.all_settings[None]):
            raise InputError("a span head and spoken answers do not go together on one model; open them one by one")
        attentions = {getattr(one, "attention", None) for one in (settings, *self.all_settings.values())}
        if len(attentions) > 1:
            raise InputError("a model attends causally or both ways, not as each adapter likes; open them one by one")
        return settings

    @classmethod
    def load(
        cls, folder, *, settings=None, device="auto", precision="auto", dropout=None, attention_dropout=None,
        quant="stored", frozen=False, to_save=False,
    ):
        """Open a model folder: config.json, model.safetensors, tokenizer, and reader.json where there is one.

        For the folder of an adapter the base that it names is opened first. settings: used instead of the folder's.
        quant: one of QUANTS to hold the encoder in 4 bits, "int8" to multiply in 8, None in full, "stored" as the
        settings say. frozen: a decoder's weights will neither learn nor be saved, so what its file holds in 16 bits may
        stay so where 16 bits are computed in; to_save: it does anyway. Raises InputError with the reason when the folder cannot
        be used.
        """
        folder = Path(folder)
        if is_adapter(folder) or is_fusion(folder):
            fused = is_fusion(folder)
            described, base = described_base(folder)
            settings = settings or stored_settings(folder)
            if not fused and is_prompt(folder) and not (settings or stored_settings(base)):
                settings = default_settings(read_config(base), count_named(folder))
            reader = cls.load(
                base, settings=settings, device=device, precision=precision, dropout=dropout,
                attention_dropout=attention_dropout, quant=quant, frozen=frozen, to_save=to_save,
            )
            reader.base = described.base, described.revision
            if fused:
                load_fusion(reader.model, folder, "fusion", reader.report.fingerprint)
                reader.all_settings |= dict.fromkeys(adapter_names(reader.model), reader.all_settings[None])
            elif is_prompt(folder):
                load_prompt(reader.model, folder, reader.report.fingerprint)
                reader.model.to(reader.device)
                reader.settings = reader.settings  # checked again: virtual tokens take positions
            else:
                reader.load_adapter(folder, "default", settings=reader.all_settings[None])
            return reader
        config = read_config(folder)
        settings = settings or stored_settings(folder) or default_settings(config)
        tokenizer, tokenizer_config = open_tokenizer(folder, config)
        settings = settled(settings, config, tokenizer, tokenizer_config, folder)
        device = choose_device(device)
        precision = choose_precision(precision, device)
        stored = stored_quant(folder, precision)
        quant = settings.quant or (stored and stored.name) if quant == "stored" else quant
        if stored and quant in (None, "int8"):
            raise InputError(f"{folder}: its weights are stored in {stored.name}, so they cannot be had otherwise")
        if quant == "int8" and device.type != "cpu":
            raise InputError(f"--quant int8 is for CPUs, and the device is {device}")
        four_bit = FourBit.named(quant, precision) if quant in QUANTS else None
        keep = to_save or frozen and precision != "fp32" and not isinstance(config, BertConfig)
        model, report = load_model(
            folder, dropout=dropout, attention_dropout=attention_dropout, four_bit=four_bit, keep_16_bits=keep,
            attention=getattr(settings, "attention", None),
        )
        if quant == "int8":
            multiply_in_int8(model)
        reader = cls(
            model, tokenizer, settings, device=device, precision=precision, report=report,
            tokenizer_config=tokenizer_config,
        )
        if (folder / PIECE_FILE).is_file():
            reader.piece_file = folder / PIECE_FILE
        return reader

    def load_adapter(self, folder, name, *, settings=None):
        """Put an adapter beside those there are and switch it on; what was odd about its files goes to `notices`.

        settings: used instead of those in its folder; without either, the bare base's. Raises InputError for an
        adapter of another base, without a head where the base has none that was trained, or of an unusable name.
        """
        settings = settings or stored_settings(folder) or self.all_settings[None]
        if (way := way_of(settings)) != (here := way_of(self.all_settings[None])):
            raise InputError(f"{folder}: this adapter was trained to answer {way}, and this model answers {here}")
        settings = self.checked(settings)
        described = load_adapter(self.model, folder, name, self.report.fingerprint, activate=False)
        if not described.with_head and self.report.head_is_new:
            remove_adapter(self.model, name)
            raise InputError(f"{folder}: this adapter brings no span head, and its base has none that was trained")
        self.notices += described.notices
        self.all_settings[name] = settings
        set_adapter(self.model, name)

    def combine(self, name, weights, method="linear", rank=None):
        """Make adapter `name` of others (see `model.combining`) and switch it on, with the first one's settings."""
        combine(self.model, name, weights, method, rank)
        self.all_settings[name] = self.all_settings[next(iter(weights))]
        set_adapter(self.model, name)

    def set_adapter(self, name):
        """Answer with this adapter from now on, with its windows and threshold; None is the bare base."""
        set_adapter(self.model, name)

    def save(self, folder):
        """Fill a folder that `load` opens: the active adapter (peft opens it too) or, without one, the whole model."""
        folder = Path(folder)
        if self.adapter is not None:
            base, revision = self.base
            save = save_fusion if self.adapter in getattr(self.model, "fusions", {}) else save_adapter
            save(self.model, self.adapter, folder, base=base, revision=revision, fingerprint=self.report.fingerprint)
        elif has_prompt(self.model):
            base, revision = self.base
            save_prompt(self.model, folder, base=base, revision=revision, fingerprint=self.report.fingerprint)
        else:
            save_weights(self.model, folder)
            token_types = getattr(getattr(self.model.config, "family", None), "token_types", 0)
            save_tokenizer(self.tokenizer, folder, self.tokenizer_config, token_types)
            save_for_ollama(self, folder)
        write_json(folder / self.settings.file, self.settings.to_dict())

    def predict(self, examples, *, adapter=ACTIVE, offer_null=None, progress=None, tokens_per_batch=None, lanes=None):
        """Give the Prediction of each example, in order, one after the other as they are asked for.

        adapter: the one to answer with; None is the bare base. offer_null: whether "no answer" takes part in the
        probabilities; None leaves it to the settings. progress: something with update(questions), called as
        questions are finished. lanes: batches computed side by side (see `answering.lanes`), which have tokens_per_batch
        together; None: as many as are worth it. Questions go in chunks and a window's logits are reduced at once:
        memory does not grow with the number of questions, and with a text's length only by its tokens.
        """
        adapter, settings, offer_null = self._choices(adapter, offer_null)  # now, not when the first one is asked for
        lanes = self.lanes if lanes is None else lanes
        return self._predict(examples, settings, adapter, offer_null, progress, tokens_per_batch, lanes)

    def _predict(self, examples, settings, adapter, offer_null, progress, tokens_per_batch, lanes):
        for first in range(0, len(examples), self.way.chunk_questions):
            chunk = examples[first : first + self.way.chunk_questions]
            steps = self.way.steps(
                chunk, settings, adapters=[adapter] * len(chunk), offer_nulls=[offer_null] * len(chunk),
                tokens_per_batch=tokens_per_batch, lanes=lanes,
            )
            yield from run_steps(steps, progress)

    def steps(self, examples, *, adapter=ACTIVE, offer_null=None, tokens_per_batch=None):
        """The work of `predict` in steps, for who has several such tasks or may want to stop in the middle.

        A generator: each step is one forward pass, or the first one without any, and gives the number of questions
        that it finished; what it returns is the list of Predictions. All examples are tokenised by the first step.
        adapter and offer_null may be lists, too, with one for each example: see `sharing`.
        """
        given = [one if isinstance(one, list) else [one] * len(examples) for one in (adapter, offer_null)]
        chosen = [self._choices(*one) for one in zip(*given, strict=True)]
        assert len({self.sharing(name) for name, _, _ in chosen}) <= 1, "these adapters do not share passes"
        settings = chosen[0][1] if chosen else self.settings
        return self.way.steps(
            examples, settings, adapters=[name for name, _, _ in chosen], offer_nulls=[null for _, _, null in chosen],
            tokens_per_batch=tokens_per_batch,
        )

    @property
    def lanes(self):
        """How many forward passes are worth computing at the same time, each in a thread of its own."""
        return usual_lanes(self.device) if self.way.side_by_side else 1

    def sharing(self, adapter):
        """What adapters have in common whose questions may share forward passes: equal, and hashable."""
        return self.way.sharing(adapter, self.all_settings[adapter])

    def _choices(self, adapter, offer_null):
        """(adapter, its settings, offer_null) with what was left open filled in."""
        adapter = self.adapter if adapter is ACTIVE else adapter
        settings = self.all_settings[adapter]
        return adapter, settings, settings.null_threshold is not None if offer_null is None else offer_null

    def windows(self, examples):
        """What the model reads of some examples: all windows, as a WindowSet, or a decoder's prompts."""
        return self.way.windows(examples, self.settings)

    def training_set(self, examples, references="all", progress=None, **how):
        """The windows of some examples with labels, to learn from. how: what this way of answering takes besides."""
        return self.way.training_set(examples, self.settings, references, progress, **how)

    def logits(self, windows, *, tokens_per_batch=None):
        """Yield (a batch's windows, start logits, end logits, where an answer may lie, null) of a WindowSet, in any order.

        For those who decode otherwise than `predict`. Three are (B, T); null: (B,), the token whose logits are the null's.
        """
        adapter = self.adapter
        for batch in self.way.batches(windows, tokens_per_batch):
            start, end, tensors = self.way.logits(windows, batch, adapter)
            yield batch, start, end, tensors["answer_mask"], tensors["null"]

    def ask(self, question, context):
        """The Prediction for one question about one text (None: about none), and the seconds it took; InputError."""
        if not isinstance(question, str) or not isinstance(context, str | None):
            raise InputError("a question and its text should be strings")
        began = time.perf_counter()
        example = Example("question", question, context, None, "question")
        prediction = next(iter(self.predict([example])))
        return prediction, time.perf_counter() - began


def run_steps(steps, progress=None):
    """What a generator of steps returns, after all of them; `progress` is told what each of them gives."""
    while True:
        try:
            finished = next(steps)
        except StopIteration as end:
            return end.value
        if progress is not None:
            progress.update(finished)
