"""The options of infer.py, in the order --help shows them, and which of them go together."""

from pathlib import Path

from common.choices import CHAT_FORMATS, DECODINGS, PRECISIONS, QUANTS, RANKINGS
from common.errors import InputError
from common.options import Option

MODEL, ONCE, FILES, WINDOWS = "Model", "One question", "A file of questions", "Windows and answers"
PROMPTS, DOCUMENTS = "Decoders", "Many documents"
TOP_K, TOP_K_JSON = 1, 5  # what --top-k is when nobody says, plain and with --json

INFER_OPTIONS = (
    Option("model", str, None, "A run's folder, a model folder, a hub id or minilm; unset: the newest "
           "finished run under runs/.", MODEL),
    Option("adapter", Path, None, "Folders of LoRA adapters, or of their runs, each alone or as NAME=FOLDER; the last one "
           "answers first. Without --model on the base that the first of them names.", MODEL, many=True,
           metavar="FOLDER"),
    Option("quant", str, None, "Hold the encoder in 4 bits, multiply in 8 (int8, on a CPU), or in full (none); unset: "
           "as in training.", MODEL, choices=("none", *QUANTS, "int8")),
    Option("revision", str, None, "Commit, tag or branch of the hub's model.", MODEL),
    Option("precision", str, "auto", "Number format of the matrix products.", MODEL,
           choices=PRECISIONS),
    Option("device", str, "auto", "auto, cpu, cuda or cuda:1.", MODEL),
    Option("tokens_per_batch", int, 6144, "Most tokens, with padding, in one forward pass.", MODEL,
           minimum=1),
    Option("question", str, None, "Answer this question and stop, instead of opening the prompt.", ONCE),
    Option("context", str, None, "The text to answer from.", ONCE),
    Option("context_file", Path, None, "The same from a UTF-8 file; - is standard input.", ONCE,
           metavar="FILE"),
    Option("json", bool, False, "Print one JSON object.", ONCE),
    Option("top_k", int, None, f"Candidates to print, the best one included (unset: {TOP_K}, with --json "
           f"{TOP_K_JSON}).", ONCE, minimum=1, metavar="K"),
    Option("xray", Path, None, "Also write a page that shows why: logits, layers, attention, saliency.", ONCE,
           metavar="FILE.html"),
    Option("docs", Path, None, "Answer from a folder of text, Markdown and HTML files, instead of one text.",
           DOCUMENTS, metavar="FOLDER"),
    Option("rank", str, "both", "Find passages by their words (bm25), by MiniLM's vectors, or by both.", DOCUMENTS,
           choices=RANKINGS),
    Option("cache", Path, None, "Folder that keeps the passages' vectors for the next start, or none; unset: vectors/ in "
           "$BAREQA_CACHE or in the user's cache folder.", DOCUMENTS, metavar="DIR"),
    Option("passages", int, 5, "Passages to read for a question.", DOCUMENTS, minimum=1),
    Option("predict", Path, None, "Answer all questions of these files: SQuAD JSON, flat JSON, JSONL or CSV.",
           FILES, many=True, metavar="DATA"),
    Option("out", Path, None, "Folder for the predictions and metrics.json.", FILES, metavar="DIR"),
    Option("overwrite", bool, False, "Replace the predictions that the folder holds.", FILES),
    Option("skip_misaligned", bool, False, "Leave out answers that do not stand at their offset.", FILES),
    Option("null_threshold", float, None, 'Say "no answer" when the null odds exceed this; unset: as stored.',
           WINDOWS),
    Option("max_answer_tokens", int, None, "Longest answer, in tokens; unset: as stored.", WINDOWS,
           minimum=1),
    Option("length_penalty", float, None, "Taken off an answer's score for each token after its first; unset: as "
           "stored.", WINDOWS, minimum=0),
    Option("window_length", int, None, "Tokens in a window, question included; unset: as stored.", WINDOWS,
           minimum=8),
    Option("window_overlap", int, None, "Tokens that neighbouring windows share; unset: as stored.", WINDOWS,
           minimum=0),
    Option("window_step", int, None, "Tokens from one window's start to the next, instead of an overlap.",
           WINDOWS, minimum=1),
    Option("decode", str, None, "Answers bound to the text, the likeliest tokens whatever they are, or tokens drawn; "
           "unset: as stored.", PROMPTS, choices=DECODINGS),
    Option("temperature", float, None, "Of --decode sample: below 1 the likely get likelier.", PROMPTS, above=0,
           maximum=100),
    Option("top_p", float, None, "Of --decode sample: draw from the likeliest tokens that reach this probability.",
           PROMPTS, above=0, maximum=1),
    Option("seed", int, None, "Of --decode sample.", PROMPTS, minimum=0, maximum=2**63 - 1),
    Option("template", str, None, "What is asked, with {context} and {question}; unset: as stored.", PROMPTS),
    Option("no_answer_phrase", str, None, "What means that there is no answer; unset: as stored.", PROMPTS),
    Option("shots", Path, None, "A small data set whose questions and answers stand before every prompt.", PROMPTS,
           metavar="DATA"),
    Option("chat_format", str, None, "How turns are written; unset: as stored or as the checkpoint shows.", PROMPTS,
           choices=CHAT_FORMATS),
    Option("chat", bool, False, "Ask without a text; at the prompt, a conversation.", PROMPTS),
)
FOR_DECODERS = (
    "decode", "temperature", "top_p", "seed", "template", "no_answer_phrase", "shots", "chat_format", "chat",
)
FOR_SPANS = ("window_step", "length_penalty")
ABOUT_A_TEXT = ("template", "no_answer_phrase", "shots", "null_threshold", "window_overlap", "xray")


def given(options, *names):
    """Those of the named options that were said, as flags."""
    said = [name for name in names if getattr(options, name) is not None and getattr(options, name) is not False]  # 0 is
    return ["--" + name.replace("_", "-") for name in said]


def refuse_about_a_text(options, asker):
    """InputError for options that only matter where a text is asked about. asker: what asks without one."""
    foreign = given(options, *ABOUT_A_TEXT) + ["--decode span"] * (options.decode == "span")
    if foreign:
        raise InputError(f"{asker} without a text, and does not go with {', '.join(foreign)}")


def choose_mode(options):
    """What is asked for: "predict", "documents", "question" or "prompt"; InputError where options exclude others."""
    check_model_options(options)
    if options.predict is not None:
        if foreign := given(options, "question", "context", "context_file", "chat", "json", "top_k", "xray", "docs"):
            raise InputError(f"--predict asks what its files ask and does not go with {', '.join(foreign)}")
        if options.out is None:
            raise InputError("--predict writes files: name their folder with --out DIR")
        return "predict"
    if foreign := given(options, "out", "overwrite", "skip_misaligned"):
        raise InputError(f"{', '.join(foreign)}: only for --predict DATA, which is not given")
    if options.docs is not None:
        if foreign := given(options, "context", "context_file", "chat", "xray"):
            raise InputError(f"--docs gives the texts to answer from and does not go with {', '.join(foreign)}")
        if options.question is None and (foreign := given(options, "json", "top_k")):
            raise InputError(f"{', '.join(foreign)}: only for --question TEXT, which is not given")
        return "documents"
    if len(texts := given(options, "context", "context_file")) > 1:
        raise InputError("--context and --context-file both give a text: keep one of them")
    if options.chat and texts:
        raise InputError(f"--chat asks without a text, and {texts[0]} gives one: keep one of them")
    if options.chat:
        refuse_about_a_text(options, "--chat asks")
    has_context = options.chat or bool(texts)
    if options.question is not None:
        if not has_context:
            raise InputError(
                "--question needs a text to answer from: add --context TEXT or --context-file FILE"
            )
        return "question"
    if foreign := given(options, "json", "top_k", "xray"):
        raise InputError(f"{', '.join(foreign)}: only for --question TEXT, which is not given")
    if options.context_file == Path("-"):
        raise InputError("--context-file - uses up standard input: add --question TEXT, or use a file")
    return "prompt"


def check_model_options(options):
    """InputError where options of the model or its windows exclude each other."""
    if options.revision is not None and options.model is None:
        raise InputError("--revision belongs to a model on the hub: name it with --model")
    if options.window_overlap is not None and options.window_step is not None:
        raise InputError("--window-overlap and --window-step say the same in two ways: give one of them")
