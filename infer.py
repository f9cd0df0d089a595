"""Answer questions with a trained model: at a prompt, once, or a whole file.

    python infer.py
    python infer.py --question "Who built it?" --context-file report.txt --json
    python infer.py --question "Who built it?" --context-file report.txt --xray why.html
    python infer.py --docs notes --question "Who built it?"
    python infer.py --predict dev.json --out predictions
"""

import os
import sys
from pathlib import Path

from common.errors import InputError, RankLost
from common.files import read_text
from common.options import parse, render_config
from common.output import guarded_main, is_first, signed
from common.pages import keep_few_kernels
from prompt.display import one_line
from prompt.options import INFER_OPTIONS, TOP_K, TOP_K_JSON, choose_mode, refuse_about_a_text

DESCRIPTION = (
    "Answer questions from a text. Without --question or --predict it opens a prompt (type /help there)."
)


@guarded_main("infer.py")
def main(argv=None):
    """Run the command line; exit code: 0, 1 (lost output), 2 (unusable input), 130 (interrupted)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # answers are UTF-8, whatever the locale says
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    keep_few_kernels()
    try:
        options = parse("infer.py", DESCRIPTION, INFER_OPTIONS, argv)
        if options.print_config:
            print(render_config(options), end="")
            return 0
        modes = {
            "predict": predict, "documents": ask_documents, "question": answer_once, "prompt": open_prompt,
        }
        mode = choose_mode(options)
        if mode != "predict":
            refuse_ranks(os.environ)
        return modes[mode](options)
    except InputError as error:
        print(f"{signed('infer.py')}: {one_line(str(error))}", file=sys.stderr)
        return 2
    except RankLost as error:
        print(f"{signed('infer.py')}: {error}; nothing was written", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("infer.py: interrupted", file=sys.stderr)
        return 130


def note(text):
    """Something worth knowing that is not an answer; under torchrun, said once."""
    if is_first():
        print(one_line(text), file=sys.stderr, flush=True)


def load(options):
    """The Reader of --model, after saying what it is."""
    # imported here and below, after the options, because they bring torch and --help should be quick
    from prompt.loading import open_reader

    reader, name = open_reader(options)
    for notice in reader.notices:
        note(f"note: {notice}")
    note(f"model: {name}, computing in {reader.precision} on {reader.device}")
    return reader


def read_context(options):
    """The text of --context or --context-file, None when neither is given; line ends stay as they are."""
    if options.context_file is None:
        return options.context
    if options.context_file != Path("-"):
        return read_text(options.context_file)
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--context-file -: standard input is not UTF-8 (at byte {error.start})") from None


def refuse_ranks(environ):
    """Refuse to ask one question, or to talk, in several processes at once."""
    if int(environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("torchrun splits the questions of --predict; without it, call infer.py alone")


def answer_once(options):
    """Answer --question and print it, plain or as JSON."""
    from prompt.answers import ask, describe, plain_lines, question_is_cut, to_json

    context = read_context(options)
    reader = load(options)
    if options.xray is not None:
        from inside.case import check_encoder

        check_encoder(reader)
    threshold = reader.settings.null_threshold
    if question_is_cut(reader, options.question):
        note(f"note: the question was cut to {reader.question_limit} tokens")
    prediction, seconds = ask(reader, options.question, context, options.tokens_per_batch)
    if options.xray is not None:
        write_page(reader, options, context)
    if options.json:
        print(to_json(describe(prediction, threshold, seconds, options.top_k or TOP_K_JSON)))
    else:
        print("\n".join(plain_lines(prediction, threshold, options.top_k or TOP_K)))
    return 0


def write_page(reader, options, context):
    """Write --xray's page about --question."""
    from common.files import check_target, write_atomic
    from inside.case import Case
    from inside.explain import explain
    from inside.page import page

    check_target(options.xray)
    case = Case(reader, options.question, context, tokens_per_batch=options.tokens_per_batch)
    write_atomic(options.xray, page(explain(case)))
    note(f"note: why this answer is shown in {options.xray}")


def open_prompt(options):
    """Read texts and questions until the user leaves."""
    from data.download import cache_folder
    from inside.case import can_be_seen
    from prompt.answers import ask, question_is_cut
    from prompt.display import style_for
    from prompt.loading import open_named
    from prompt.looking import Looking
    from prompt.session import Session
    from prompt.terminal import Lines, converse

    context = read_context(options)
    reader = load(options)
    history = []

    def answer(question, text):
        if question_is_cut(reader, question):
            note(f"note: the question was cut to {reader.question_limit} tokens")
        if options.chat:
            return converse_on(reader, question, history)
        return ask(reader, question, text, options.tokens_per_batch)

    def write(line):
        print(line, flush=True)

    lines = Lines(cache_folder(os.environ) / "history", note)
    if lines.is_terminal:
        write("Ask." if options.chat else "Type or paste a text, or /file PATH; then ask. /help shows more.")
    style = style_for(sys.stdout, os.environ)

    def choose(adapter):
        if adapter is None and reader.report.head_is_new:
            raise InputError("the bare model has no head for answers that was ever trained")
        reader.set_adapter(adapter)
        return reader.settings.null_threshold

    adapters = [name for name in reader.all_settings if name is not None] if options.adapter else ()
    threshold = reader.settings.null_threshold
    looking = Looking(reader, options.tokens_per_batch, lambda name: open_named(name, options))
    session = Session(
        answer, threshold, write, style, context, adapters, choose, looking.commands() if can_be_seen(reader) else (),
        history.clear if options.chat else None,
    )
    try:
        return converse(session, lines, write)
    finally:
        lines.close()


def converse_on(reader, question, history):
    """(Prediction, seconds) of a decoder without a text; question and answer join `history`, a list of turns."""
    import time

    from data.examples import Example

    began = time.perf_counter()
    (prediction,) = reader.predict([Example("question", question, None, None, "question", "", tuple(history))])
    if prediction.spans:
        history += [("user", question), ("assistant", prediction.spans[0].text)]
    return prediction, time.perf_counter() - began


def ask_documents(options):
    """Answer --question from --docs, or whatever is asked at a prompt."""
    from data.download import cache_folder
    from prompt.answers import to_json
    from prompt.documents import DocumentSession, ask, load_collection, plain_places
    from prompt.display import style_for
    from prompt.terminal import Lines, converse
    from retrieval.files import check_folder

    check_folder(options.docs)  # before the model takes its time
    reader = load(options)
    collection = load_collection(options, reader, note)

    def answer(question, top_k):
        return ask(collection, reader, question, top_k, options)

    if options.question is not None:
        found, seconds = answer(options.question, options.top_k or (TOP_K_JSON if options.json else TOP_K))
        if options.json:
            print(to_json({"answers": found, "seconds": seconds}))
        else:
            print("\n".join(plain_places(found)))
        return 0

    def write(line):
        print(line, flush=True)

    lines = Lines(cache_folder(os.environ) / "history", note)
    if lines.is_terminal:
        write("Ask about the documents. /help shows more.")
    try:
        return converse(DocumentSession(answer, write, style_for(sys.stdout, os.environ)), lines, write)
    finally:
        lines.close()


def predict(options):
    """Answer all questions of --predict and write predictions, scores and speed to --out; torchrun splits them."""
    from training.distributed import joined

    with joined(os.environ, options.device) as ranks:
        if ranks.size > 1:
            options = options.replace("torchrun", device=str(ranks.device(options.device)))
        return predict_with(options, ranks)


def predict_with(options, ranks):
    """What `predict` does on one of several processes, or alone."""
    from tqdm import tqdm

    from data.documents import counted
    from data.readers import read_dataset
    from prompt.predict import (
        add_latency, answer_all, check_out, choose_null, without_span, write_predictions,
    )
    from training.evaluate import score_lines
    from training.together import require_same_work

    ranks.once(check_out, options.out, options.overwrite)
    dataset = read_dataset(options.predict, misaligned="skip" if options.skip_misaligned else "stop")
    examples = dataset.examples
    for notice in dataset.notices:
        note(f"note: {notice}")
    if not dataset.has_texts:
        refuse_about_a_text(options, f"{options.predict[0]} asks")
    reader = load(options)
    require_same_work(ranks, options.predict, reader)
    policy = choose_null(dataset, reader.settings, options.null_threshold)
    if policy.note:
        note(f"note: {policy.note}")
    with tqdm(total=len(ranks.share(examples)), desc="answering", unit=" questions", disable=None) as bar:
        answered = answer_all(
            reader, examples, policy, tokens_per_batch=options.tokens_per_batch, progress=bar, ranks=ranks
        )
    if not ranks.first:
        return 0
    predictions, metrics = answered
    if metrics["cut_questions"]:
        limit = reader.question_limit
        cut = metrics["cut_questions"]
        are, were = ("is", "was") if cut == 1 else ("are", "were")
        note(f"note: {counted(cut, 'question')} {are} longer than {limit} tokens and {were} cut")
    if "not_in_text" in metrics:
        note(f"note: {metrics['not_in_text']} of {counted(len(examples), 'answer')} stand nowhere in their text")
    for sentence in without_span(examples, predictions):
        note(f"note: {sentence}")
    add_latency(metrics, reader, examples)
    write_predictions(options.out, predictions, policy, metrics)
    if "exact" in metrics:
        for line in score_lines(metrics, rest=len(examples) - metrics["total"]):
            print(line)
    else:
        print("no references in the data, so nothing to score")
    asked = counted(len(examples), "question")
    print(f"{asked} in {metrics['eval_seconds']:.1f} s; predictions are in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
