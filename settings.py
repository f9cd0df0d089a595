"""What belongs to a trained reader beside its weights: the file next to them."""

import math
from dataclasses import asdict, dataclass, field

from common.choices import QUANTS
from common.errors import InputError
from common.files import read_json
from data.decode import DecodeSettings
from data.windows import WindowSettings

FORMAT = 1  # of the file; a reader of another number refuses
SETTINGS_FILE = "reader.json"


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
    length = min(384, config.max_position_embeddings)
    return ReaderSettings(WindowSettings(length, overlap=length // 3))
