"""Easy, hard and probably mislabelled questions of a run's training data, with their places in the files.

    python train.py --train mine.json --record-losses --out runs/mine
    python -m inside.data runs/mine
    python -m data mine.json --losses runs/mine     # beside what the linter finds
"""

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from common.output import SentenceParser
from inside.command import at_least, command


def build_parser(program):
    parser = SentenceParser(prog=program, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the folder of a run that was trained with --record-losses")
    add("--top", type=at_least(1), default=20, metavar="N", help="questions to show of each kind (default 20)")
    add("--json", action="store_true", help="print one JSON object, its findings as the linter's (python -m data)")
    return parser


def run(options):
    from inside.difficulty import KINDS, SUSPECT, TELLING, difficulties, findings

    found = difficulties(options.run)
    totals = Counter(one.kind for one in found)
    if options.json:
        listed = [asdict(one) for one in findings(options.run)]
        print(json.dumps({"totals": dict(totals), "findings": listed}, ensure_ascii=False))
        return 0
    print(f"{len(found)} questions: " + ", ".join(f"{totals[kind]} {kind}" for kind in KINDS))
    if not found[0].telling:
        print(f"of half of them the run's last confidence is below {TELLING}: it has learned too little to tell a wrong label from a "
              f"hard question, so none is called {SUSPECT}")
    for kind in reversed(KINDS[1:]):
        some = [one for one in found if one.kind == kind]
        if some:
            print(f"{kind}:")
        for one in some[: options.top]:
            print(f"  {one.file}: {one.where}: {one.message}")
        if len(some) > options.top:
            print(f"  … and {len(some) - options.top} more (--top)")
    return 0


main = command("python -m inside.data", build_parser, run)

if __name__ == "__main__":
    sys.exit(main())
