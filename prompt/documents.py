"""Questions about a folder of documents: answers as plain lines, and the prompt."""

import os
import re
import time
from collections import namedtuple

from common.errors import InputError
from data.documents import counted
from data.download import cache_folder
from prompt.answers import NOT_FOUND
from prompt.display import isolated, one_line, show_span
from prompt.session import TOP, percent, refuse_top
from retrieval.collection import open_collection, rank_answers, to_read
from retrieval.vectors import Embedder, sentence_reader

HELP = """\
Every line you type is a question about the documents.
  /top [K]     show the K best answers to the last question (5)
  /help        show this
  /quit        leave, as Ctrl-D does; Ctrl-C cancels what is going on"""
PassageSpan = namedtuple("PassageSpan", "start end")  # what show_span looks at
NOWHERE = NOT_FOUND.replace("this text", "these documents")


def load_collection(options, reader, note):
    """The Collection of options.docs, ranked as options.rank says; note(sentence) is told what there is."""
    from tqdm import tqdm

    if getattr(reader.settings, "decoding", None) and reader.settings.decoding.way != "span":
        raise InputError("--docs: an answer from documents has its place there, which only --decode span gives it")
    cache = cache_folder(os.environ) / "vectors" if options.cache is None else options.cache
    with tqdm(desc="reading", unit=" passages", disable=None, leave=False) as bar:
        collection, notices = open_collection(
            options.docs, options.rank, lambda: Embedder(sentence_reader(reader)), bar,
            None if str(cache) == "none" else cache,
        )
    for notice in notices:
        note(f"note: {notice}")
    files, passages = (counted(number, noun[:-1]) for noun, number in collection.counts().items())
    note(f"documents: {files}, {passages}, ranked by {options.rank}")
    return collection


def ask(collection, reader, question, top_k, options):
    """(descriptions of the top_k best answers, seconds)."""
    began = time.perf_counter()
    passages = collection.search(question, options.passages)
    examples = to_read(collection, question, passages)
    predictions = reader.predict(examples, tokens_per_batch=options.tokens_per_batch)
    found = rank_answers(passages, predictions, reader.settings.null_threshold, top_k)
    return [collection.describe(one) for one in found], time.perf_counter() - began


def plain_places(found):
    """Two lines for each answer, itself and where it stands; "(no answer)" and why, without one."""
    if not found:
        return ["(no answer)", NOWHERE]
    return [line for one in found for line in (one_line(one["answer"]), f"  {place(one)}")]


def place(one):
    """file:line, as editors and terminals know it, and the probability."""
    return f"{one_line(one['file'])}:{one['line']}  {percent(one['score'])}"


class DocumentSession:
    """One conversation about documents, for `prompt.terminal.converse`.

    ask(question, top_k) returns (descriptions, seconds). write(line) shows a line.
    """

    wants = "question"

    def __init__(self, ask, write, style):
        self.ask, self.write, self.style, self.last = ask, write, style, None

    def cancel(self):
        """There is nothing that could be half done."""
        return False

    def handle(self, line):
        """Act on a line; returns False when the user wants to leave."""
        line = line.strip()
        name, _, rest = line.partition(" ")
        if name == "/quit":
            return False
        if re.search("[\ud800-\udfff]", line):
            self.write("this is not UTF-8 text, and was ignored")
        elif name == "/help":
            self.write(HELP)
        elif name == "/top":
            self.show_top(rest.strip())
        elif name.startswith("/"):
            self.write(f"there is no command {one_line(name)} (/help shows all)")
        elif line:
            self.last = line
            self.show(1)
        return True

    def show_top(self, count):
        refusal = refuse_top(count, self.last)
        if refusal is not None:
            self.write(refusal)
        else:
            self.show(int(count) if count else TOP)

    def show(self, count):
        """The `count` best answers to the last question, each inside its sentence."""
        found, seconds = self.ask(self.last, count)
        if not found:
            self.write(f"(no answer) {NOWHERE}; {seconds:.2f} s")
        for one in found:
            span = PassageSpan(one["passage_start"], one["passage_start"] + len(one["answer"]))
            self.write(show_span(one["passage"], span, self.style))
            self.write(f"  {isolated(place(one), self.style)}" + (f", {seconds:.2f} s" if count == 1 else ""))
