"""Options that come from defaults, a TOML recipe and the command line, each value with its origin.

An entry point writes its options down once, as a table of `Option`; `parse` makes flags, recipe keys,
checks, `--help` and `--print-config` out of it. Later sources win: default, recipe, command line.
"""

import argparse
import difflib
import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError
from common.files import read_text
from common.output import SentenceParser

DEFAULT, COMMAND_LINE = "default", "command line"
KINDS = {  # what a value must be, in a refusal, and its placeholder in --help
    str: ("a text", "TEXT"), int: ("a whole number", "N"), float: ("a finite number", "X"),
    bool: ("true or false", None), Path: ("a path", "PATH"),
}
# argparse takes `-1e-5` for a flag and loses the value of `--title=--`; both are safe behind a character that
# no command line can hold.
SHIELD = "\0"
SHIELDED = re.compile(r"(?is)^(--[^=]+=|(?=-(?:\.?\d|inf(inity)?$|nan$)))")


@dataclass(frozen=True)
class Option:
    """One row of a table: the flag `--batch-size` and the recipe key `batch_size` of `name` batch_size.

    `kind` is one of KINDS. A `default` of None means not set. `help` is one sentence, with the unit; `group`
    is the heading it stands under in --help. With `many` the value is a list of one or more. `minimum` and
    `maximum` are inclusive bounds, `above` an exclusive one. `alias` is another flag of the same meaning.
    """

    name: str
    kind: type
    default: object
    help: str
    group: str = ""
    choices: tuple = ()
    many: bool = False
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    metavar: str | None = None
    alias: str | None = None

    @property
    def flag(self):
        return "--" + self.name.replace("_", "-")


OWN = (
    Option("recipe", Path, None, "A TOML file that sets any of these options; flags win over it.",
           "Configuration", metavar="FILE.toml"),
    Option("print_config", bool, False, "Print every value with its origin, as a recipe, and stop.",
           "Configuration"),
)
OWN_NAMES = {option.name for option in OWN}


@dataclass(frozen=True)
class Options:
    """The values, read as attributes: `options.batch_size`; AttributeError for a name not in the table.

    `origins` says of each name where its value is from: "default", "recipe FILE", "command line", or what
    `replace` was told.
    """

    values: dict[str, object]
    origins: dict[str, str]
    _table: tuple[Option, ...] = field(repr=False)

    def __getattr__(self, name):
        # Through vars(), because copy and pickle ask for attributes before there are any values.
        values = vars(self).get("values", {})
        if name not in values:
            raise AttributeError(f"there is no option {name!r}{_nearest(name, values)}")
        return values[name]

    def given(self, name):
        """Whether anyone chose this value: its origin is not "default"."""
        getattr(self, name)
        return self.origins[name] != DEFAULT

    def replace(self, origin, **changes):
        """Return Options with `changes` (None: not set); `origin` says where they are from, refusals too."""
        table = {option.name: option for option in self._table}
        values, problems = self.values | changes, []
        for name, value in changes.items():
            getattr(self, name)
            if value is not None:
                _collect(values, problems, table[name], value, f"{origin}: {name}")
        _refuse(problems)
        return Options(values, self.origins | dict.fromkeys(changes, origin), self._table)

    def to_dict(self):
        """Return what JSON can hold: paths as text; no `recipe` and `print_config`, whose work is done."""
        return {name: _plain(value) for name, value in self.values.items() if name not in OWN_NAMES}


def parse(program, description, table, argv, epilog=""):
    """Return the Options of a command line (`argv` without the program's name; None takes sys.argv's).

    `--help` prints and raises SystemExit(0). InputError lists every problem found, separated by "; ". Only
    a line whose shape argparse cannot read (a flag without its value) is refused alone.
    """
    table = (*table, *OWN)
    _check_table(table)
    argv = [SHIELDED.sub(rf"\g<1>{SHIELD}", item) for item in (sys.argv[1:] if argv is None else argv)]
    namespace, extras = _parser(program, description, table, epilog).parse_known_args(argv)
    problems = _unexpected(extras, argv, table)
    flags = {}
    for option in table:
        if option.name in namespace:
            value = _from_text(option, getattr(namespace, option.name))
            _collect(flags, problems, option, value, option.flag)
    if sum(item.split("=")[0] == "--recipe" for item in argv) > 1:
        problems.append("--recipe: given twice, and options come from one recipe; merge the files")
    recipe = _read_recipe(flags["recipe"], table, problems) if "recipe" in flags else {}
    _refuse(problems)
    values = {option.name: _default(option) for option in table}
    origins = dict.fromkeys(values, DEFAULT) | dict.fromkeys(recipe, f"recipe {flags.get('recipe')}")
    return Options(values | recipe | flags, origins | dict.fromkeys(flags, COMMAND_LINE), table)


def render_config(options):
    """Return a recipe (TOML) that gives the same values, each line ending with the origin of its value."""
    return "".join(
        f"# {name} is not set\n" if value is None
        else f"{name} = {_toml(value)}  # {_escaped(options.origins[name])}\n"
        for name, value in options.values.items() if name not in OWN_NAMES
    )


def _parser(program, description, table, epilog):
    parser = SentenceParser(
        prog=program, usage="%(prog)s [options]", description=description, epilog=epilog, allow_abbrev=False,
        argument_default=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = {"": parser}
    for option in table:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        note = f"{option.help.rstrip('.')} (default: {_default_note(option)})".replace("%", "%%")
        settings = {"dest": option.name, "help": note}
        if option.kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:  # values stay text here: argparse would stop at the first wrong one
            choices = "{" + ",".join(map(str, option.choices)) + "}" if option.choices else None
            settings["metavar"] = option.metavar or choices or KINDS[option.kind][1]
            settings |= {"nargs": "+", "action": "extend"} if option.many else {}
        groups[option.group].add_argument(*filter(None, (option.flag, option.alias)), **settings)
    return parser


def _default_note(option):
    value = _default(option)
    if value is None or isinstance(value, bool):
        return {None: "not set", True: "yes", False: "no"}[value]
    return " ".join(map(str, value)) if option.many else str(value)


def _default(option):
    try:
        return None if option.default is None else _checked(option, option.default)
    except InputError as error:
        raise AssertionError(f"default of {option.name}: {error}") from None


def _check_table(table):
    names = [option.name for option in table]
    assert len(set(names)) == len(names), f"an option is twice in the table: {names}"
    for option in table:
        taken = option.name in ("help", *Options.__dataclass_fields__) or hasattr(Options, option.name)
        assert option.name.isidentifier() and not taken, option
        assert option.kind in KINDS and not (option.many and option.kind is bool), option


def _unexpected(extras, argv, table):
    """One problem for each thing argparse did not know; the values of an unknown flag are not told apart."""
    flags = [f for o in table for f in (o.flag, o.alias, o.kind is bool and f"--no-{o.flag[2:]}") if f]
    neighbours = set(zip(argv, argv[1:]))
    problems, owner = [], None  # owner: an unknown flag, or a value of one, that may have a value after it
    for item in extras:
        if item.startswith("-") and item.strip("-"):
            flag, equals, _ = item.partition("=")
            problems.append(f"unknown flag {_escaped(flag)}{_nearest('--' + flag.lstrip('-'), flags)}")
            owner = None if equals else item
        elif owner is not None and (owner, item) in neighbours:
            owner = item
        else:
            problems.append(f"unexpected argument {item.removeprefix(SHIELD)!r}")
            owner = None
    return problems


def _read_recipe(path, table, problems):
    """Return {name: value} of a recipe; its tables are opened, their names are only for the reader."""
    options = {option.name: option for option in table}
    try:
        tree = tomllib.loads(read_text(path))
    except InputError as error:
        problems.append(str(error))
        return {}
    except (ValueError, RecursionError) as error:  # ValueError: not TOML, or an integer too long for Python
        problems.append(f"{path}: not a TOML recipe: {error}")
        return {}
    values, places = {}, {}
    for parts, value in _entries(tree):
        name, place = parts[-1].replace("-", "_"), _escaped(".".join(parts))
        if name in OWN_NAMES:
            problems.append(f"{path}: {place}: can only be given on the command line")
        elif name not in options:
            problems.append(f"{path}: {place}: unknown key{_nearest(name, options.keys() - OWN_NAMES)}")
        elif name in places:
            problems.append(f"{path}: {place}: already set as {places[name]}; keep one of the two")
        else:
            places[name] = place
            _collect(values, problems, options[name], value, f"{path}: {place}")
    return values


def _entries(tree):
    """Yield (keys from the outermost table inwards, value) in file order; a loop, so no depth is too deep."""
    stack = [((), tree)]
    while stack:
        parts, value = stack.pop()
        if isinstance(value, dict):
            stack.extend(((*parts, key), value[key]) for key in reversed(value))
        else:
            yield parts, value


def _refuse(problems):
    if problems:
        raise InputError("; ".join(problems))


def _collect(values, problems, option, value, where):
    try:
        values[option.name] = _checked(option, value)
    except InputError as error:
        problems.append(f"{where}: {error}")


def _from_text(option, value):
    """Return the number a text stands for, where one is wanted; other text stays, for _checked to judge."""
    if isinstance(value, list):
        return [_from_text(option, item) for item in value]
    if isinstance(value, bool):
        return value
    value = value.removeprefix(SHIELD)
    for number in (int, float) if option.kind in (int, float) else ():
        try:
            return number(value)
        except ValueError:
            continue  # with the next reading, or with the text itself
    return value


def _checked(option, value):
    """Return `value` (from TOML, or typed) as the option's kind; InputError says: expected …, found …"""
    if not option.many:
        return _checked_one(option, value)
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if not items:
        raise InputError(f"expected at least one value ({_expected(option)}), found none")
    return [_checked_one(option, item) for item in items]


def _checked_one(option, value):
    result = _converted(option.kind, value)
    fits = result is not None and not (
        (option.choices and result not in option.choices)
        or (option.minimum is not None and result < option.minimum)
        or (option.above is not None and result <= option.above)
        or (option.maximum is not None and result > option.maximum)
    )
    if not fits:
        raise InputError(f"expected {_expected(option)}, found {_shown(value)}")
    return result


def _converted(kind, value):
    """Return `value` as `kind`, or None when it is not one: true is no number, 1.5 no int, NaN no float."""
    if kind in (int, float):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        finite = is_number and abs(value) <= sys.float_info.max  # false for NaN; no int overflows here
        return kind(value) if finite and (kind is float or value == int(value)) else None
    if kind is bool:
        return value if isinstance(value, bool) else None
    text = str(value) if kind is Path and isinstance(value, Path) else value
    # Undecodable bytes of a command line arrive as surrogates, which no UTF-8 file can hold.
    if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):
        return None
    if kind is Path and (text == "" or "\0" in text):
        return None
    return kind(text)


def _expected(option):
    if option.choices:
        return "one of " + ", ".join(map(str, option.choices))
    bounds = {"at least": option.minimum, "above": option.above, "at most": option.maximum}
    limits = " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)
    return KINDS[option.kind][0] + (f", {limits}" if limits else "")


def _shown(value):
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a table"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a very long number"
    text = _toml(value) if isinstance(value, bool) else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _nearest(name, known):
    close = difflib.get_close_matches(name.lower(), sorted(known), n=1, cutoff=0.0)
    return f" (the nearest known one is {close[0]})" if close else ""


def _plain(value):
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _toml(value):
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, Path)):
        return '"' + _escaped(re.sub(r'(["\\])', r"\\\1", str(value))) + '"'
    return repr(value)


def _escaped(text):
    """Write control characters, which neither a TOML string nor a comment may hold, as TOML escapes."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match[0]):04x}", text)
