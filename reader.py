"""A model, its tokenizer and its settings: question and text in, exact spans out.

Training's evaluation, the prompt, a file of questions: all of them ask this class.
"""

import time
from pathlib import Path

from common.errors import InputError
from common.files import write_json
from data.examples import Example
from data.tokenizer import load_tokenizer, save_tokenizer
from model.adapters import is_adapter, load_adapter, read_adapter, read_base, save_adapter
from model.bert import BertConfig
from model.fusion import is_fusion, load_fusion, read_fusion, save_fusion
from model.combining import combine
from model.lora import adapter_names, remove_adapter, set_adapter, switch_of
from model.quant import QUANTS, FourBit, multiply_in_int8
from model.prompts import PromptedBert, is_prompt, load_prompt, room, save_prompt
from model.precision import choose_device, choose_precision
from model.source import resolve_model
from model.weights import load_model, read_config, save_weights, stored_quant
from settings import SETTINGS_FILE, ReaderSettings, default_settings
from spans import SpanReading

ACTIVE = object()  # stands for the adapter that is active when a prediction begins


class Reader:
    """Answers questions. Attributes: model, tokenizer, settings, device, precision, report (LoadReport).

    base: (name, revision) of the model that adapters saved from here belong to. Each adapter has settings of its
    own, and `settings` are those of the active one. notices: sentences on what was odd about adapters' files.
    Threads may share a Reader: a prediction keeps the adapter and the settings that it began with.
    """

    def __init__(self, model, tokenizer, settings, *, device, precision, report=None, base=(None, None)):
        self.model = model.to(device)
        self.tokenizer = tokenizer
        self.device, self.precision, self.report, self.base = device, precision, report, base
        self.way = SpanReading(self.model, tokenizer, device, precision)
        self.all_settings = {None: self.checked(settings)}  # adapter -> ReaderSettings; None: the bare base
        self.notices = []

    @property
    def trained(self):
        """Whether the span head that is in use was ever trained; an adapter brings its own."""
        return not self.report.head_is_new or self.adapter is not None or isinstance(self.model.bert, PromptedBert)

    @property
    def adapter(self):
        """Name of the active adapter, None for the bare base."""
        switch = switch_of(self.model)
        return switch.active if switch else None

    @property
    def settings(self):
        """The ReaderSettings in force, those of the active adapter."""
        return self.all_settings[self.adapter]

    @settings.setter
    def settings(self, settings):
        self.all_settings[self.adapter] = self.checked(settings)

    def checked(self, settings):
        """`settings`, when the model has positions enough for their windows; InputError otherwise."""
        known = room(self.model)
        if settings.windows.check().length > known:
            raise InputError(
                f"windows of {settings.windows.length} tokens are longer than this model's {known} positions; "
                "choose a shorter window"
            )
        return settings

    @classmethod
    def load(
        cls, folder, *, settings=None, device="auto", precision="auto", dropout=None, attention_dropout=None,
        quant="stored",
    ):
        """Open a model folder: config.json, model.safetensors, tokenizer, and reader.json where there is one.

        For the folder of an adapter the base that it names is opened first. settings: used instead of the folder's.
        quant: one of QUANTS to hold the encoder in 4 bits, "int8" to multiply in 8, None in full, "stored" as the
        settings say. Raises InputError with the reason when the folder cannot be used.
        """
        folder = Path(folder)
        if is_adapter(folder) or is_fusion(folder):
            fused = is_fusion(folder)
            prompted = not fused and is_prompt(folder)
            described = read_fusion(folder)[0] if fused else read_base(folder) if prompted else read_adapter(folder)
            if described.base is None:
                raise InputError(f"{folder}: this adapter does not name its base; name it with --model")
            revision = described.revision if described.base != "minilm" else None  # a package's or the hub's: equal
            base = resolve_model(described.base, revision=revision).folder
            if is_adapter(base) or is_fusion(base):
                raise InputError(f"{folder}: names {base} as its base, which is an adapter itself")
            stored = folder / SETTINGS_FILE
            if settings is None and stored.is_file():
                settings = ReaderSettings.from_file(stored)
            reader = cls.load(
                base, settings=settings, device=device, precision=precision, dropout=dropout,
                attention_dropout=attention_dropout, quant=quant,
            )
            reader.base = described.base, described.revision
            if fused:
                load_fusion(reader.model, folder, "fusion", reader.report.fingerprint)
                reader.all_settings |= dict.fromkeys(adapter_names(reader.model), reader.all_settings[None])
            elif prompted:
                load_prompt(reader.model, folder, reader.report.fingerprint)
                reader.model.to(reader.device)
                reader.settings = reader.settings  # checked again: virtual tokens take positions
            else:
                reader.load_adapter(folder, "default", settings=settings)
            return reader
        config = read_config(folder)
        if not isinstance(config, BertConfig):
            raise InputError(f"{folder}: model_type is 'llama', and only 'bert' can read for now")
        if settings is None:
            path = folder / SETTINGS_FILE
            settings = ReaderSettings.from_file(path) if path.is_file() else default_settings(config)
        tokenizer = load_tokenizer(folder, config.vocab_size)
        device = choose_device(device)
        precision = choose_precision(precision, device)
        stored = stored_quant(folder, precision)
        quant = settings.quant or (stored and stored.name) if quant == "stored" else quant
        if stored and quant in (None, "int8"):
            raise InputError(f"{folder}: its weights are stored in {stored.name}, so they cannot be had otherwise")
        if quant == "int8" and device.type != "cpu":
            raise InputError(f"--quant int8 is for CPUs, and the device is {device}")
        four_bit = FourBit.named(quant, precision) if quant in QUANTS else None
        model, report = load_model(folder, dropout=dropout, attention_dropout=attention_dropout, four_bit=four_bit)
        if quant == "int8":
            multiply_in_int8(model)
        return cls(model, tokenizer, settings, device=device, precision=precision, report=report)

    def load_adapter(self, folder, name, *, settings=None):
        """Put an adapter beside those there are and switch it on; what was odd about its files goes to `notices`.

        settings: used instead of its folder's reader.json; without either, the bare base's. Raises InputError for an
        adapter of another base, without a head where the base has none that was trained, or of an unusable name.
        """
        path = Path(folder) / SETTINGS_FILE
        if settings is None:
            settings = ReaderSettings.from_file(path) if path.is_file() else self.all_settings[None]
        self.checked(settings)
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
        elif isinstance(self.model.bert, PromptedBert):
            base, revision = self.base
            save_prompt(self.model, folder, base=base, revision=revision, fingerprint=self.report.fingerprint)
        else:
            save_weights(self.model, folder)
            save_tokenizer(self.tokenizer, folder)
        write_json(folder / SETTINGS_FILE, self.settings.to_dict())

    def predict(self, examples, *, adapter=ACTIVE, offer_null=None, progress=None, tokens_per_batch=None):
        """Give the Prediction of each example, in order, one after the other as they are asked for.

        adapter: the one to answer with; None is the bare base. offer_null: whether "no answer" takes part in the
        probabilities; None leaves it to the settings. progress: something with update(questions), called as
        questions are finished. Questions go in chunks and a window's logits are reduced at once: memory does not
        grow with the number of questions, and with a text's length only by its tokens.
        """
        adapter, settings, offer_null = self._choices(adapter, offer_null)  # now, not when the first one is asked for
        return self._predict(examples, settings, adapter, offer_null, progress, tokens_per_batch)

    def _predict(self, examples, settings, adapter, offer_null, progress, tokens_per_batch):
        for first in range(0, len(examples), self.way.chunk_questions):
            chunk = examples[first : first + self.way.chunk_questions]
            steps = self.way.steps(
                chunk, settings, adapter=adapter, offer_null=offer_null, tokens_per_batch=tokens_per_batch
            )
            yield from run_steps(steps, progress)

    def steps(self, examples, *, adapter=ACTIVE, offer_null=None, tokens_per_batch=None):
        """The work of `predict` in steps, for who has several such tasks or may want to stop in the middle.

        A generator: each step is one forward pass, or the first one without any, and gives the number of questions
        that it finished; what it returns is the list of Predictions. All examples are tokenised by the first step.
        """
        adapter, settings, offer_null = self._choices(adapter, offer_null)
        return self.way.steps(
            examples, settings, adapter=adapter, offer_null=offer_null, tokens_per_batch=tokens_per_batch
        )

    def _choices(self, adapter, offer_null):
        """(adapter, its settings, offer_null) with what was left open filled in."""
        adapter = self.adapter if adapter is ACTIVE else adapter
        settings = self.all_settings[adapter]
        return adapter, settings, settings.null_threshold is not None if offer_null is None else offer_null

    def windows(self, examples):
        """What the model reads of some examples: all windows, as a WindowSet."""
        return self.way.windows(examples, self.settings)

    def training_set(self, examples, references="all", progress=None):
        """The windows of some examples with labels, to learn from."""
        return self.way.training_set(examples, self.settings, references, progress)

    def ask(self, question, context):
        """The Prediction for one question about one text, and the seconds it took."""
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
