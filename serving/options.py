"""The options of serve.py, in the order --help shows them."""

from pathlib import Path

from common.options import Option
from prompt.options import DOCUMENTS, INFER_OPTIONS, MODEL, PROMPTS, WINDOWS

LISTENING, LIMITS = "Listening", "Limits"
GROUPS = MODEL, DOCUMENTS, WINDOWS, PROMPTS
SHARED = [option for option in INFER_OPTIONS if option.group in GROUPS and option.name != "chat"]

SERVE_OPTIONS = (
    *(option for option in SHARED if option.group == MODEL),
    Option("host", str, "127.0.0.1", "Address to listen on; 0.0.0.0 is every network this machine is in.", LISTENING),
    Option("port", int, 5000, "Port to listen on; 0 takes a free one.", LISTENING, minimum=0, maximum=65535),
    Option("allow_host", str, None, "Names that clients may reach this server by, beside those of loopback.", LISTENING,
           many=True, metavar="NAME"),
    Option("token_file", Path, None, "File with a secret that clients must send as: Authorization: Bearer SECRET.",
           LISTENING, metavar="FILE"),
    Option("queue", int, 256, "Most questions that may be waiting or in work; more are refused at once.", LIMITS,
           minimum=1),
    Option("deadline", float, 60.0, "Seconds after which a question is given up.", LIMITS, above=0),
    Option("max_bytes", int, 1_000_000, "Longest request, in bytes.", LIMITS, minimum=1),
    Option("top_k", int, 20, "Most candidates that a request may ask for.", LIMITS, minimum=1, metavar="K"),
    *(option for option in SHARED if option.group != MODEL),
)
