"""What belongs to a trained model beside its weights: the settings it answers by, a file for each way of answering.

reader.json stands beside a model with a span head, speaker.json beside a decoder that says its answers.
"""

import math
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from common.choices import ATTENTIONS, DECODINGS, QUANTS
from common.errors import InputError
from common.files import read_json
from data.chat import FORMATS
from data.decode import DecodeSettings
from data.prompts import PromptSettings
from data.windows import WindowSettings
from model.bert import BertConfig

FORMAT = 1  # of both files; a reader of another number refuses


@dataclass(frozen=True, slots=True)
class ReaderSettings:
    """Of a model with a span head.

    null_threshold: "no answer" is said when null_odds exceed it; None for a reader that always answers.
    quant: how the weights were held in training, one of model.quant.QUANTS; None: in full. attention: of a LLaMA with
    a span head, one of ATTENTIONS; None for a BERT.
    """

    file: ClassVar[str] = "reader.json"
    windows: WindowSettings = field(default_factory=WindowSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    null_threshold: float | None = None
    quant: str | None = None
    attention: str | None = None

    @property
    def length(self):
        """Most tokens that the model reads at once."""
        return self.windows.length

    @property
    def answer_limit(self):
        """Tokens of the longest answer."""
        return self.decode.max_answer_tokens

    def to_dict(self):
        """As written to reader.json."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_file(cls, path):
        """Read reader.json; InputError for another format number or unusable values."""
        values = read_values(path)
        with refusals(path, "reader"):
            settings = cls(
                WindowSettings(**values["windows"]), DecodeSettings(**values["decode"]), values["null_threshold"],
                values.get("quant"), values.get("attention"),
            )
            settings.windows.check()
        check_common(settings, path)
        if settings.attention is not None and settings.attention not in ATTENTIONS:
            wanted = ", ".join(ATTENTIONS)
            raise InputError(f"{path}: attention: expected one of {wanted} or null, found {settings.attention!r}")
        decode = settings.decode
        for name in ("n_best", "max_answer_tokens"):
            value = getattr(decode, name)
            if type(value) is not int or value < 1:
                raise InputError(f"{path}: decode.{name}: expected a whole number above 0, found {value!r}")
        penalty = decode.length_penalty
        if type(penalty) not in (int, float) or not 0 <= penalty < math.inf:
            raise InputError(f"{path}: decode.length_penalty: expected a number of at least 0, found {penalty!r}")
        return settings


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a decoder's answers come about. way: one of DECODINGS.

    span: bound to the text. greedy: the likeliest token each time, whatever it is. sample: drawn by `temperature`
    from the likeliest tokens whose probabilities reach `top_p`, seeded.
    """

    way: str = "span"
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def check(self):
        """Raise InputError for values that cannot be; returns self."""
        if self.way not in DECODINGS:
            raise InputError(f"decoding.way: expected one of {', '.join(DECODINGS)}, found {self.way!r}")
        for name, most in (("temperature", 100), ("top_p", 1)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= most:
                raise InputError(f"decoding.{name}: expected a number above 0 and at most {most}, found {value!r}")
        if type(self.seed) is not int:
            raise InputError(f"decoding.seed: expected a whole number, found {self.seed!r}")
        return self


@dataclass(frozen=True, slots=True)
class SpeakerSettings:
    """Of a decoder that says its answers.

    chat: name of the chat format; None, which is never stored: the one that the checkpoint shows. null_threshold: "no
    answer" is said when log p(the phrase for it) - log p(the best answer) exceeds it. quant: as of ReaderSettings.
    """

    file: ClassVar[str] = "speaker.json"
    prompts: PromptSettings = field(default_factory=PromptSettings)
    decoding: Decoding = field(default_factory=Decoding)
    chat: str | None = None
    n_best: int = 20
    null_threshold: float | None = None
    quant: str | None = None

    @property
    def length(self):
        """Most tokens that the model reads at once."""
        return self.prompts.length

    @property
    def answer_limit(self):
        """Tokens of the longest answer."""
        return self.prompts.max_answer

    def to_dict(self):
        """As written to speaker.json."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_file(cls, path):
        """Read speaker.json; InputError for another format number or unusable values."""
        values = read_values(path)
        with refusals(path, "decoder"):
            prompts = {**values["prompts"]}
            shots = prompts.get("shots", [])
            if not isinstance(shots, list) or not all(isinstance(shot, list) for shot in shots):
                raise InputError("prompts.shots: expected a list of [context, question, answer]")
            prompts["shots"] = tuple(map(tuple, shots))
            settings = cls(
                PromptSettings(**prompts).check(), Decoding(**values["decoding"]).check(), values["chat"],
                values["n_best"], values["null_threshold"], values.get("quant"),
            )
        check_common(settings, path)
        if settings.chat not in FORMATS:
            raise InputError(f"{path}: chat: expected one of {', '.join(FORMATS)}, found {settings.chat!r}")
        if type(settings.n_best) is not int or settings.n_best < 1:
            raise InputError(f"{path}: n_best: expected a whole number above 0, found {settings.n_best!r}")
        return settings


def read_values(path):
    """The object in a file of settings; InputError for another format number."""
    values = read_json(path)
    found = values.get("format") if isinstance(values, dict) else None
    if type(found) is not int or found != FORMAT:
        raise InputError(f"{path}: format {found!r} is unknown here; this version reads format {FORMAT}")
    return values


@contextmanager
def refusals(path, owner):
    """A context in which keys that lack or do not belong there become one sentence about the file."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]}: missing, so these are not the settings of a {owner}") from None
    except TypeError as error:
        raise InputError(f"{path}: not the settings of a {owner} ({error})") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check_common(settings, path):
    """Refuse a threshold or a quant that cannot be."""
    threshold = settings.null_threshold
    # JSON's 1e999 is read as infinity
    usable = type(threshold) is int or type(threshold) is float and math.isfinite(threshold)
    if threshold is not None and not usable:
        raise InputError(f"{path}: null_threshold: expected a number or null, found {threshold!r}")
    if settings.quant is not None and settings.quant not in QUANTS:
        raise InputError(f"{path}: quant: expected one of {', '.join(QUANTS)} or null, found {settings.quant!r}")


def stored_settings(folder):
    """The settings that a folder holds, of either kind; None where it holds none."""
    for kind in (ReaderSettings, SpeakerSettings):
        path = Path(folder) / kind.file
        if path.is_file():
            return kind.from_file(path)
    return None


def way_of(settings):
    """How a model with such settings answers, in words: adapters of one base answer the same way."""
    if isinstance(settings, SpeakerSettings):
        return "in its own words"
    return "by spans" + (f" with {settings.attention} attention" if settings.attention else "")


def default_settings(config, taken=0):
    """For a folder without any: BERT reads 384 tokens, a third of them overlap; a decoder 512, a quarter of them.

    Less, where the model's positions, without those `taken` by virtual tokens, allow no more.
    """
    if isinstance(config, BertConfig):
        length = min(384, config.positions - taken)
        return ReaderSettings(WindowSettings(length, overlap=length // 3))
    length = min(512, config.positions - taken)
    return SpeakerSettings(PromptSettings(length=length, overlap=length // 4))
