"""From infer.py's options to a Reader that can answer."""

import shlex
from dataclasses import replace
from pathlib import Path

from common.errors import InputError
from data.chat import choose_format
from model.adapters import SHIPPED, adapter_name, is_adapter
from model.fusion import is_fusion
from model.llama import LlamaConfig
from model.source import resolve_model
from model.weights import read_config
from prompt.options import FOR_DECODERS, FOR_SPANS
from answering.reader import Reader, described_base
from answering.settings import SpeakerSettings, stored_settings
from training.asking import prompt_settings
from training.folder import RunFolder, newest_finished
from training.tuning import quant_of

RUNS = Path("runs")


def open_reader(options):
    """(Reader, name of the model) as the options ask; InputError when it cannot answer."""
    named = map(named_adapter, options.adapter or ())
    adapters = [(one, Path(model_of_run(str(path)))) for one, path in named]
    name = options.model
    for _, folder in adapters:
        if is_fusion(folder):
            raise InputError(f"{folder}: a fusion brings its adapters with it; open it with --model")
    if name is None and adapters:
        described, folder = described_base(adapters[0][1])
        name = described.base
    else:
        name = name if name is not None else str(newest_run())
        folder = resolve_model(str(model_of_run(name)), revision=options.revision).folder
    quant = asked_quant(options)
    if quant == "stored" and adapters:  # the base is held as it was when the first adapter was trained
        found = {quant_of(folder) for _, folder in adapters}
        if len(found) > 1:
            raise InputError("--adapter: these were trained over bases held in different ways; choose one with --quant")
        quant = found.pop() or "stored"
    stored = Reader.load(
        folder, settings=settings_of_base(folder, adapters), device=options.device, precision=options.precision, quant=quant,
        frozen=True,
    )
    if adapters:
        load_adapters(stored, adapters, name)
    elif not stored.trained:
        revision = f" --revision {shlex.quote(options.revision)}" if options.revision else ""
        raise InputError(
            f"{name}: its head for answers was never trained, so it cannot answer; train one first: "
            f"python train.py --dataset squad --model {shlex.quote(name)}{revision}"
        )
    adapt_all(stored, options)
    return stored, " + ".join([name, *(one for one, _ in adapters)])


def settings_of_base(folder, adapters):
    """Settings to open a base with, None for its own: a LLaMA that never answered by spans does so under an adapter that does."""
    settings = stored_settings(adapters[0][1]) if adapters else None
    found = getattr(settings, "attention", None) and not is_adapter(folder) and stored_settings(folder) is None
    return settings if found and isinstance(read_config(folder), LlamaConfig) else None


def named_adapter(given):
    """(name, folder) of an --adapter value: FOLDER, which gives the name too, or NAME=FOLDER."""
    name, equals, folder = str(given).partition("=")
    if not equals or given.exists():
        return adapter_name(given), given
    return name, Path(folder)


def open_named(name, options):
    """The Reader of another model, run or adapter, for a comparison under the same options; InputError when it cannot answer."""
    folder = resolve_model(str(model_of_run(name))).folder
    reader = Reader.load(folder, device=options.device, precision=options.precision, quant=asked_quant(options), frozen=True)
    if not reader.trained:
        raise InputError(f"{name}: its head for answers was never trained, so it cannot answer")
    adapt_all(reader, options)
    return reader


def asked_quant(options):
    """--quant, as Reader.load takes it."""
    return {None: "stored", "none": None}.get(options.quant, options.quant)


def load_adapters(reader, adapters, name):
    """Put [(name, folder)] on a reader; the last one is in use then."""
    if reader.adapter is not None:
        raise InputError(f"{name}: is an adapter itself; give it with --adapter, or name a base with --model")
    for one, folder in adapters:
        reader.load_adapter(folder, one)


def newest_run():
    """The model of the newest finished run, or the adapter that comes with the project; InputError without either."""
    folder = newest_finished(RUNS)
    if folder is None and is_adapter(SHIPPED):
        return SHIPPED
    if folder is None:
        raise InputError(
            f"there is no finished run under {RUNS}/: train a model with python train.py --dataset sample, "
            f"or name one with --model"
        )
    return folder


def model_of_run(name):
    """A run's folder stands for the model in it; any other name is returned as it is."""
    run = RunFolder(Path(name).expanduser() if name.startswith("~/") else Path(name))
    check_format(run.root)
    if not run.log.is_file():
        return name
    if run.finished and run.model.is_dir():
        return run.model
    best = run.best / "model"
    meanwhile = f", or use the best weights so far: --model {best}" if best.is_dir() else ""
    raise InputError(
        f"{name}: this run is not finished; continue it with: python train.py --resume --out "
        f"{shlex.quote(name)}{meanwhile}"
    )


def check_format(folder):
    """Refuse a run, or the model/ or best/model/ of one, whose format this version does not know."""
    folder = folder.absolute()
    places = [folder, folder.parent, folder.parent.parent] if folder.name == "model" else [folder]
    for run in map(RunFolder, places):
        if run.log.is_file() and run.config.is_file():
            run.read_config()
            return


def adapt_all(reader, options):
    """Put what the options say into a reader's settings, of all its adapters; InputError where they do not fit."""
    for one, settings in reader.all_settings.items():
        reader.all_settings[one] = reader.checked(adapt(reader, settings, options))


def adapt(reader, settings, options):
    """The stored settings with what the options say in their place; InputError for options of the other kind."""
    decoder = isinstance(settings, SpeakerSettings)
    for names, wrong, owner in ((FOR_DECODERS, not decoder, "a decoder"), (FOR_SPANS, decoder, "a span head")):
        for name in names:
            if wrong and getattr(options, name, None) not in (None, False):  # serve.py has not all of them
                raise InputError(f"--{name.replace('_', '-')} is for {owner}, and this model answers in another way")
    return adapt_speaker(reader, settings, options) if decoder else adapt_settings(settings, options)


def adapt_speaker(reader, settings, options):
    """The stored SpeakerSettings with what the options say in their place."""
    known = settings.prompts
    if options.window_length is not None:  # a stored overlap is a default here, and shrinks with the window
        known = replace(known, overlap=min(known.overlap, options.window_length // 4))
    changes = {"way": options.decode, "temperature": options.temperature, "top_p": options.top_p, "seed": options.seed}
    decoding = replace(settings.decoding, **{name: value for name, value in changes.items() if value is not None})
    drawn = [name for name in ("temperature", "top_p", "seed") if getattr(options, name) is not None]
    if drawn and decoding.way != "sample":
        raise InputError(f"--{drawn[0].replace('_', '-')} is for --decode sample, and decoding is {decoding.way}")
    if options.null_threshold is not None and decoding.way != "span":
        raise InputError("--null-threshold is for --decode span; unbound, the model itself says that there is no answer")
    chat = settings.chat
    if options.chat_format is not None:
        chat = choose_format(reader.tokenizer.get_vocab(), None, options.chat_format).name
    threshold = settings.null_threshold if options.null_threshold is None else options.null_threshold
    return replace(
        settings, prompts=prompt_settings(known, options), decoding=decoding, chat=chat, null_threshold=threshold,
        n_best=max(settings.n_best, options.top_k or 1),
    )


def adapt_settings(settings, options):
    """The stored ReaderSettings with what the options say in their place."""
    windows, decode = settings.windows, settings.decode
    if options.window_length is not None:
        windows = replace(windows, length=options.window_length)
        if windows.overlap is not None:  # a stored overlap is a default here, and shrinks with the window
            windows = replace(windows, overlap=min(windows.overlap, windows.length // 3))
    if options.window_overlap is not None:
        windows = replace(windows, overlap=options.window_overlap, step=None)
    if options.window_step is not None:
        windows = replace(windows, step=options.window_step, overlap=None)
    if options.max_answer_tokens is not None:
        decode = replace(decode, max_answer_tokens=options.max_answer_tokens)
    if options.length_penalty is not None:
        decode = replace(decode, length_penalty=options.length_penalty)
    if options.top_k is not None:
        decode = replace(decode, n_best=max(decode.n_best, options.top_k))
    threshold = settings.null_threshold if options.null_threshold is None else options.null_threshold
    return replace(settings, windows=windows.check(), decode=decode, null_threshold=threshold)
