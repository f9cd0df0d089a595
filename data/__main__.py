"""python -m data FILE… — lint data set files; with --repair OUT, write a mended copy of one."""

import json
import sys
from pathlib import Path

from common.errors import InputError
from common.output import SentenceParser, guarded_main
from data.lint import lint, render, to_json
from data.repair import repair_file

EPILOG = """exit code: 0 when clean, 1 when there are findings (with --repair: findings left in OUT),
2 when a file cannot be used"""


def build_parser():
    parser = SentenceParser(
        prog="python -m data",
        description="Say what question answering files hold and what is wrong with them. Contexts shared "
        "between the files are found, so give train and dev files together.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="nested SQuAD JSON, flat JSON, JSONL or CSV, or questions without texts")
    add("--repair", metavar="OUT", help="write a mended copy of the one FILE as nested SQuAD JSON")
    add("--overwrite", action="store_true", help="with --repair: replace OUT where that file exists")
    add("--losses", type=Path, metavar="RUN", help="list what a run that learned from FILE, with train.py --record-losses, found "
        "hard or never learned (probably mislabelled)")
    add("--json", action="store_true", help="print one JSON object, with every finding")
    add("--all", action="store_true", help="print every finding, not 20 of each kind")
    return parser


@guarded_main("python -m data")
def main(argv=None):
    """Lint or repair; return the exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # for consoles that lack Persian letters
    try:
        return run(build_parser().parse_args(argv))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


def run(options):
    if options.repair is not None and len(options.files) > 1:
        raise InputError(f"--repair mends one file at a time, and {len(options.files)} were given")
    if options.overwrite and options.repair is None:
        raise InputError("--overwrite goes with --repair OUT, which was not given")
    if options.losses is not None and options.repair is not None:
        raise InputError("--losses goes with the report alone: only a person can mend what it finds")
    limit = None if options.all else 20
    report = lint(*options.files)
    if options.losses is not None:
        from inside.difficulty import findings  # here, because it brings torch

        report.findings += findings(options.losses, options.files)
    if options.repair is None:
        print(json.dumps(to_json(report), ensure_ascii=False) if options.json else render(report, limit))
        return 1 if report.findings else 0
    account = repair_file(options.files[0], options.repair, options.overwrite)
    after = lint(options.repair)
    if options.json:
        changes = {"out": options.repair, "changes": dict(account.changes), "dropped": account.dropped}
        result = {"before": to_json(report), "repair": changes, "after": to_json(after)}
        print(json.dumps(result, ensure_ascii=False))
    else:
        print(render(report, limit))
        print_account(account, options.repair, limit)
        print(f"\n{render(after, limit)}")
    return 1 if after.findings else 0


def print_account(account, out, limit):
    print(f"\nwrote {out}" + (":" if account.changes else ", with nothing to change"))
    for line in account.lines():
        print(f"  {line}")
    for where in account.dropped[:limit]:
        print(f"  dropped {where}")
    if limit is not None and len(account.dropped) > limit:
        print(f"  … and {len(account.dropped) - limit:,} more (--all shows them)")


if __name__ == "__main__":
    sys.exit(main())
