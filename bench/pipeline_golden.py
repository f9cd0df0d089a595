"""Answers of transformers 4.57's question-answering pipeline, recorded, and ours held against them.

Two environments, since the pipeline is gone from the transformers that the tests use. In one with transformers 4.57:

    python -m bench.pipeline_golden record --model FOLDER --out tests/golden/pipeline-4.57.json
    python -m bench.pipeline_golden record --model FOLDER --data dev-v1.1.json --count 500 --out squad.json

and here, `build` writing the folder whose answers on the sample corpus are committed (MiniLM with a head of fixed
random numbers: no reader, but its numbers are as good as any):

    python -m bench.pipeline_golden build --out FOLDER
    python -m bench.pipeline_golden compare --model FOLDER --data dev-v1.1.json --count 500 --golden squad.json
"""

import argparse
import json
import random
import sys
from pathlib import Path

from common.errors import InputError
from common.files import read_json, write_json
from data.readers import read_dataset

SAMPLE = Path(__file__).parents[1] / "data" / "sample" / "dev.json"
CASES = [  # (every n-th question, options of the call)
    (1, {}),
    (4, {"top_k": 3, "handle_impossible_answer": True}),
    (4, {"max_answer_len": 7, "align_to_words": False}),
    (4, {"max_seq_len": 96, "doc_stride": 32}),
    (4, {"top_k": 5, "max_seq_len": 128, "align_to_words": False, "handle_impossible_answer": True}),
]
SCORE_TOLERANCE = 1e-4  # relative; the two compute in another order


def questions(data, count, seed=0):
    """[(id, question, context)] of a data set, or `count` of them drawn with a seed, in the file's order."""
    examples = [one for one in read_dataset(data).examples if one.question.strip()]
    if count is not None and count < len(examples):
        examples = [examples[k] for k in sorted(random.Random(seed).sample(range(len(examples)), count))]
    return [(one.id, one.question, one.context) for one in examples]


def cases(data, count):
    """[(options, questions)]: all CASES of the sample corpus, the defaults alone of another file."""
    found = questions(data, count)
    return [(options, found[::every]) for every, options in (CASES if data == str(SAMPLE) else CASES[:1])]


def put_head(model):
    """Give a model that reads no questions a span head of fixed numbers, strong enough to be sure of something."""
    import numpy as np
    import torch

    numbers = np.random.default_rng(0).normal(0, 0.5, model.qa_outputs.weight.shape)
    with torch.no_grad():
        model.qa_outputs.weight.copy_(torch.from_numpy(numbers))
        model.qa_outputs.bias.zero_()


def ask_all(qa, parts):
    """{id: [[score, start, end, answer], …]} of each part, by a pipeline of either side."""
    return [
        {name: rows(qa(question=question, context=context, **options)) for name, question, context in asked}
        for options, asked in parts
    ]


def rows(answers):
    """What a call returned, as lists."""
    answers = [answers] if isinstance(answers, dict) else answers
    return [[answer["score"], answer["start"], answer["end"], answer["answer"]] for answer in answers]


def differences(golden, ours):
    """[(id, theirs, ours)] where the first answers' texts differ, and the largest relative difference of scores."""
    different, worst = [], 0.0
    for name, theirs in golden.items():
        mine = ours[name]
        if theirs[0][3] != mine[0][3]:
            different.append((name, theirs[:3], mine[:3]))
        else:
            worst = max(worst, abs(theirs[0][0] - mine[0][0]) / max(theirs[0][0], 1e-30))
    return different, worst


def record(options):
    """In the environment with transformers 4.57: ask, and write what it says."""
    import transformers

    if not transformers.__version__.startswith("4.57."):
        raise InputError(f"transformers is {transformers.__version__} here, and 4.57 is what is recorded")
    qa = transformers.pipeline("question-answering", model=options.model, device=-1)
    parts = cases(options.data, options.count)
    found = ask_all(qa, parts)
    write_json(options.out, {
        "transformers": transformers.__version__, "data": Path(options.data).name, "count": options.count,
        "cases": [{"options": asked[0], "answers": answers} for asked, answers in zip(parts, found, strict=True)],
    })
    return 0


def build(options):
    """Write the folder of MiniLM with the fixed head."""
    from model.source import resolve_model
    from answering.reader import Reader

    reader = Reader.load(resolve_model("minilm").folder, device="cpu", precision="fp32")
    put_head(reader.model)
    Path(options.out).mkdir(parents=True)
    reader.save(options.out)
    return 0


def compare(options):
    """Ask ours the same, and print how far they agree."""
    from answering.pipeline import QuestionAnsweringPipeline

    golden = read_json(options.golden)
    qa = QuestionAnsweringPipeline(options.model, device="cpu")
    parts = cases(options.data, options.count)
    for (asked, _), ours, part in zip(parts, ask_all(qa, parts), golden["cases"], strict=True):
        different, worst = differences(part["answers"], ours)
        same = len(ours) - len(different)
        print(f"{asked or 'defaults'}: {same} of {len(ours)} answers the same, scores within {worst:.1e}")
        for name, theirs, mine in different:
            print(json.dumps({"id": name, "theirs": theirs, "ours": mine}, ensure_ascii=False))
    return 0


def main(argv=None):
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.pipeline_golden", description=__doc__.split("\n")[0])
    parser.add_argument("verb", choices=["record", "build", "compare"])
    parser.add_argument("--model", help="the model's folder")
    parser.add_argument("--data", default=str(SAMPLE), help="a data set; the sample corpus's dev questions unless given")
    parser.add_argument("--count", type=int, help="ask this many of its questions, drawn with seed 0")
    parser.add_argument("--golden", help="what record wrote")
    parser.add_argument("--out", help="where to write")
    options = parser.parse_args(argv)
    try:
        return {"record": record, "build": build, "compare": compare}[options.verb](options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
