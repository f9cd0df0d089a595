"""What the commands `python -m inside.…` share: refusals as one sentence, and opening what is named."""

from argparse import ArgumentTypeError
from pathlib import Path

from common.errors import InputError
from common.output import guarded_main, in_a_sentence


def command(program, build_parser, act):
    """A main(argv=None) that returns the exit code: what act(options) returns, 2 for unusable input, 130."""

    @guarded_main(program)
    @in_a_sentence(program)
    def main(argv=None):
        return act(build_parser(program).parse_args(argv))

    return main


def open_reader(options, quant="stored"):
    """The Reader of --model (None: as infer.py chooses), of a BERT. quant: as for Reader.load."""
    from answering.reader import Reader
    from inside.case import check_encoder
    from model.source import resolve_model
    from prompt.loading import model_of_run, newest_run

    name = options.model if options.model is not None else str(newest_run())
    folder = resolve_model(str(model_of_run(name))).folder
    reader = Reader.load(folder, device=options.device, precision=options.precision, quant=quant)
    if not reader.trained:
        raise InputError(f"{name}: its head for answers was never trained, so there is nothing to look into")
    check_encoder(reader)
    return reader


def read_sample(paths, count, seed=0):
    """`count` questions with references of data files, chosen by the seed, in file order."""
    from training.run import read_split

    return read_split(paths, count, seed, False, "scoring").examples


def add_model(parser):
    """The options that all of them have."""
    from common.choices import PRECISIONS

    add = parser.add_argument
    add("--model", metavar="NAME", help="a run's folder, a model folder, a hub id; unset: as infer.py chooses")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    add("--precision", default="auto", choices=PRECISIONS, help="number format of the matrix products")


def add_sample(parser, purpose, data=None):
    """The options of a sample of questions. data: help of --data, where it is an option; purpose: what they are for."""
    add = parser.add_argument
    if data is not None:
        add("--data", nargs="+", type=Path, metavar="FILE", help=data)
    add("--questions", type=at_least(1), default=100, metavar="N", help=f"sample {purpose} (default 100)")
    add("--seed", type=int, default=0, help="of the sample (default 0)")


def at_least(least):
    """An argparse type: a whole number of at least `least`."""

    def number(text):
        if not (text.isdecimal() and len(text) < 10 and int(text) >= least):
            raise ArgumentTypeError(f"expected a whole number of at least {least}, found {text!r}")
        return int(text)

    return number


def between(low, high):
    """An argparse type: a number above `low` and below `high`."""

    def number(text):
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low < value < high:
            raise ArgumentTypeError(f"expected a number above {low:g} and below {high:g}, found {text!r}")
        return value

    return number
