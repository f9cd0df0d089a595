"""A model, its tokenizer and its settings: question and text in, exact spans out.

Training's evaluation, the prompt, a file of questions: all of them ask this class.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError
from common.files import read_json, write_json
from data.batches import split_by_tokens, to_tensors
from data.decode import DecodeSettings, QuestionSpans, best_spans
from data.examples import Example
from data.tokenizer import load_tokenizer, pair_layout, save_tokenizer
from data.windows import WindowSet, WindowSettings
from model.adapters import is_adapter, load_adapter, read_adapter, read_base, save_adapter
from model.bert import BertConfig
from model.fusion import is_fusion, load_fusion, read_fusion, save_fusion
from model.combining import combine
from model.lora import adapter_names, remove_adapter, set_adapter, switch_of
from model.quant import QUANTS, FourBit, multiply_in_int8
from model.prompts import PromptedBert, is_prompt, load_prompt, room, save_prompt
from model.precision import autocast, choose_device, choose_precision
from model.source import resolve_model
from model.weights import load_model, read_config, save_weights, stored_quant

FORMAT = 1  # of reader.json and of run folders; a reader of another number refuses
SETTINGS_FILE = "reader.json"
CHUNK_QUESTIONS = 2048  # asked together: enough to sort lengths, few enough to keep memory flat
TOKENS_PER_BATCH = 6144


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """What belongs to a trained reader beside its weights.

    null_threshold: "no answer" is said when null_odds exceed it; None for a reader that always answers.
    quant: how the weights were held in training, one of model.quant.QUANTS; None: in full.
    """

    windows: WindowSettings = field(default_factory=WindowSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    null_threshold: float | None = None
    quant: str | None = None

    def to_dict(self):
        """As written to reader.json."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_file(cls, path):
        """Read reader.json; InputError for another format number or unusable values."""
        values = read_json(path)
        found = values.get("format") if isinstance(values, dict) else None
        if type(found) is not int or found != FORMAT:
            raise InputError(f"{path}: format {found!r} is unknown here; this version reads format {FORMAT}")
        try:
            settings = cls(
                WindowSettings(**values["windows"]), DecodeSettings(**values["decode"]), values["null_threshold"],
                values.get("quant"),
            )
        except KeyError as error:
            raise InputError(f"{path}: {error.args[0]}: missing, so these are not the settings of a reader") from None
        except TypeError as error:
            raise InputError(f"{path}: not the settings of a reader ({error})") from None
        threshold, decode = settings.null_threshold, settings.decode
        # JSON's 1e999 is read as infinity
        usable = type(threshold) is int or type(threshold) is float and math.isfinite(threshold)
        if threshold is not None and not usable:
            raise InputError(f"{path}: null_threshold: expected a number or null, found {threshold!r}")
        if settings.quant is not None and settings.quant not in QUANTS:
            raise InputError(f"{path}: quant: expected one of {', '.join(QUANTS)} or null, found {settings.quant!r}")
        for name in ("n_best", "max_answer_tokens"):
            value = getattr(decode, name)
            if type(value) is not int or value < 1:
                raise InputError(f"{path}: decode.{name}: expected a whole number above 0, found {value!r}")
        penalty = decode.length_penalty
        if type(penalty) not in (int, float) or not 0 <= penalty < math.inf:
            raise InputError(f"{path}: decode.length_penalty: expected a number of at least 0, found {penalty!r}")
        try:
            settings.windows.check()
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return settings


def default_settings(config):
    """For a folder without reader.json: 384 tokens, a third of them overlap, or what the model's positions allow."""
    length = min(384, config.positions)
    return ReaderSettings(WindowSettings(length, overlap=length // 3))


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

    @property
    def question_limit(self):
        """Tokens that a question may have; of a longer one the rest is cut."""
        return self.settings.windows.longest_question(pair_layout(self.tokenizer).specials)

    def checked(self, settings):
        """`settings`, when the model has positions enough for their windows; InputError otherwise."""
        known = room(self.model)
        if settings.windows.check(pair_layout(self.tokenizer).specials).length > known:
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
            save_tokenizer(self.tokenizer, folder, self.model.config.family.token_types)
        write_json(folder / SETTINGS_FILE, self.settings.to_dict())

    def predict(self, examples, *, offer_null=None, progress=None, tokens_per_batch=TOKENS_PER_BATCH):
        """Give the Prediction of each example, in order, one after the other as they are asked for.

        offer_null: whether "no answer" takes part in the probabilities; None leaves it to the settings.
        progress: something with update(questions), called as questions are finished. Questions go in
        chunks of CHUNK_QUESTIONS and a window's logits are reduced at once: memory does not grow with
        the number of questions, and with a text's length only by its tokens.
        """
        adapter, settings = self.adapter, self.settings
        if offer_null is None:
            offer_null = settings.null_threshold is not None
        return self._predict_chunks(examples, adapter, settings, offer_null, progress, tokens_per_batch)

    def _predict_chunks(self, examples, adapter, settings, offer_null, progress, tokens_per_batch):
        for first in range(0, len(examples), CHUNK_QUESTIONS):
            chunk = examples[first : first + CHUNK_QUESTIONS]
            yield from self._predict_chunk(chunk, adapter, settings, offer_null, progress, tokens_per_batch)

    def _predict_chunk(self, examples, adapter, settings, offer_null, progress, tokens_per_batch):
        windows = WindowSet(examples, self.tokenizer, settings.windows)
        first_windows = np.searchsorted(windows.example, np.arange(len(examples)))
        found = [QuestionSpans() for _ in examples]
        remaining = np.bincount(windows.example, minlength=len(examples))
        if progress is not None:
            progress.update(int((remaining == 0).sum()))
        n_best = settings.decode.n_best
        for batch in self._batches(windows, tokens_per_batch):
            candidates, nulls = self._score(windows, batch, adapter, settings.decode)
            for row, window in enumerate(batch):
                example = windows.example[window]
                found[example].add(
                    int(window - first_windows[example]), windows.offsets(window), windows.prefix(window),
                    [x[row] for x in candidates], nulls[row], n_best,
                )
            np.subtract.at(remaining, windows.example[batch], 1)
            if progress is not None:
                progress.update(int((remaining[np.unique(windows.example[batch])] == 0).sum()))
        for example, spans in zip(examples, found, strict=True):
            yield spans.prediction(example, n_best, offer_null)

    def _batches(self, windows, tokens_per_batch):
        """Windows of similar length together, in mixed order so that the progress bar's rate is honest."""
        if len(windows) == 0:
            return []
        ordered = np.argsort(windows.length, kind="stable")
        runs = split_by_tokens(windows.length, ordered, tokens_per_batch)
        return [runs[k] for k in np.random.default_rng(0).permutation(len(runs))]

    @torch.inference_mode()
    def _logits(self, windows, batch, adapter):
        """Start and end logits (B, T) fp32 of a batch of windows, and where an answer may lie, on the device."""
        self.model.eval()
        tensors = to_tensors(windows.fill(batch), self.device)
        switch = switch_of(self.model)
        with autocast(self.device, self.precision), switch.using(adapter) if switch else nullcontext():
            start, end = self.model(tensors["input_ids"], tensors["token_type_ids"], tensors["attention_mask"])
        return start, end, tensors["answer_mask"]

    @torch.inference_mode()
    def _score(self, windows, batch, adapter, decode):
        """Candidates (see `best_spans`) and null logits (B, 2) of a batch of windows, as numpy."""
        start, end, answer_mask = self._logits(windows, batch, adapter)
        candidates = best_spans(start, end, answer_mask, decode)
        return candidates, torch.stack([start[:, 0], end[:, 0]], 1).cpu().numpy()

    def logits(self, windows, *, tokens_per_batch=TOKENS_PER_BATCH):
        """Yield (a batch's windows, start logits, end logits, where an answer may lie) of a WindowSet, in any order.

        For those who decode otherwise than `predict`. The last three are (B, T); the first token's logits are the null.
        """
        adapter = self.adapter
        for batch in self._batches(windows, tokens_per_batch):
            yield batch, *self._logits(windows, batch, adapter)

    def ask(self, question, context):
        """The Prediction for one question about one text, and the seconds it took."""
        began = time.perf_counter()
        example = Example("question", question, context, None, "question")
        prediction = next(iter(self.predict([example])))
        return prediction, time.perf_counter() - began
