"""Adapters of several domains, alone, averaged, fused, and one of the mixture: python -m bench.fusion --domains FILE… --out DIR

--train and --held-out are cut into domains by the titles in the --domains files. On each domain's part an adapter learns
for --steps steps; on all of --train one adapter for as many steps as these have together, and for --steps steps a fusion of
them (`model/fusion.py`). All of them, and the mean of the domains' updates, are scored on each domain's held-out part and on
a fixed sample of --score. Runs are ordinary runs of train.py under DIR: what is finished is not repeated.
"""

import argparse
import json
import sys
from pathlib import Path

from bench.methods import ALL, LORA, run, score
from common.errors import InputError
from common.files import read_json, write_json

ADAPTER = [*LORA, *ALL, "--lr", "1e-3"]
MEAN, MIXTURE, FUSION = "mean", "mixture", "fusion"


def cut(articles, titles):
    """Those of the articles whose title is among `titles`."""
    return [article for article in articles if article["title"] in titles]


def make_parts(options):
    """Write each domain's part of --train and --held-out under --out; returns the domains' names, --domains' stems."""
    whole = {part: read_json(path)["data"] for part, path in (("train", options.train), ("held", options.held_out))}
    for path in options.domains:
        titles = {article["title"] for article in read_json(path)["data"]}
        for part, articles in whole.items():
            if not (found := cut(articles, titles)):
                raise InputError(f"{path}: none of its titles is in the file for --{'train' if part == 'train' else 'held-out'}")
            write_json(options.out / f"{path.stem}-{part}.json", {"version": "1.1", "data": found})
    return [path.stem for path in options.domains]


def train(options, name, data, steps, flags):
    """Train a run of that name to its end, or go on with it; returns its model folder."""
    common = ["--train", data, "--dev", options.held_out, "--max-dev-examples", 100, "--seed", options.seed]
    run(options.out / name, [*common, *flags, *options.flags], steps)
    return options.out / name / "model"


def train_all(options, domains):
    """{name: model folder} of the domains' adapters, the mixture's and the fusion."""
    folders = {
        name: train(options, name, options.out / f"{name}-train.json", options.steps, ADAPTER) for name in domains
    }
    members = [folders[name] for name in domains]
    folders[MIXTURE] = train(options, MIXTURE, options.train, options.steps * len(domains), ADAPTER)
    fusion = ["--tune", "fusion", "--adapter", *members, "--lr", options.fusion_lr]
    folders[FUSION] = train(options, FUSION, options.train, options.steps, fusion)
    return folders


def readers(folders, domains):
    """(name, Reader) of everything that is compared, one at a time."""
    from answering.reader import Reader

    for name, folder in folders.items():
        yield name, Reader.load(folder)
    mean = Reader.load(folders[domains[0]])
    members = [mean.adapter, *domains[1:]]
    for name in domains[1:]:
        mean.load_adapter(folders[name], name)
    mean.combine(MEAN, {name: 1 / len(members) for name in members}, "cat")  # exactly the mean of the updates
    yield MEAN, mean


def compare(options):
    """Train what is missing and score everything; returns the rows of the table."""
    domains = make_parts(options)
    folders = train_all(options, domains)
    table = []
    for name, reader in readers(folders, domains):
        row = {"adapter": name, **{d: score(reader, options.out / f"{d}-held.json") for d in domains}}
        row["score"] = score(reader, options.score, options.questions)
        table.append(row)
        print(json.dumps(row), flush=True)
    write_json(options.out / "table.json", table)
    return table


def show(table):
    """Print the rows as Markdown, EM / F1."""
    columns = [column for column in table[0] if column != "adapter"]
    print(f"| adapter | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for row in table:
        cells = [f"{row[column]['exact']:.2f} / {row[column]['f1']:.2f}" for column in columns]
        print(f"| {row['adapter']} | {' | '.join(cells)} |")


def main(argv=None):
    """Compare, print the table, write table.json; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.fusion", description=__doc__.split("\n")[0])
    parser.add_argument("--domains", nargs="+", type=Path, required=True, metavar="FILE", help="two or more; titles")
    parser.add_argument("--train", type=Path, required=True, metavar="FILE")
    parser.add_argument("--held-out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--score", type=Path, required=True, metavar="FILE")
    parser.add_argument("--questions", type=int, default=2000, help="of --score, the same ones always")
    parser.add_argument("--steps", type=int, default=200, help="of each domain's adapter, and of the fusion")
    parser.add_argument("--fusion-lr", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more for train.py; the last option")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(argv)
    try:
        if len({path.stem for path in options.domains} - {MEAN, MIXTURE, FUSION}) != max(len(options.domains), 2):
            raise InputError("--domains: expected two or more files of different names")
        show(compare(options))
    except InputError as error:
        print(f"bench.fusion: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
