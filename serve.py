"""Answer questions over HTTP: a REST API, a page at /, and the dialects of Hugging Face, Ollama and OpenAI.

    python serve.py
    python serve.py --docs notes
    python serve.py --adapter wiki=runs/wiki reviews=runs/reviews --port 8080
    curl localhost:5000/api/qa --json '{"question": "Who built it?", "context": "Ada built it."}'
"""

import sys

from common.errors import InputError
from common.options import parse, render_config
from common.output import guarded_main
from common.pages import keep_few_kernels
from prompt.display import one_line
from prompt.options import check_model_options
from serving.options import SERVE_OPTIONS

DESCRIPTION = "Answer questions over HTTP. On loopback alone, unless --host says otherwise."


@guarded_main("serve.py")
def main(argv=None):
    """Run the command line until it is told to stop; exit code: 0, 2 (unusable input)."""
    keep_few_kernels()
    try:
        options = parse("serve.py", DESCRIPTION, SERVE_OPTIONS, argv)
        if options.print_config:
            print(render_config(options), end="")
            return 0
        check_model_options(options)
        run(options)
        return 0
    except InputError as error:
        print(f"serve.py: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the server listens; afterwards it is the way to stop it
        print("serve.py: interrupted", file=sys.stderr)
        return 130


def run(options):
    """Load what is asked for and serve it."""
    try:
        from serving.run import serve
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; get what the server needs with: pip install -e '.[serve]'") from None
    from prompt.loading import open_reader

    if options.docs is not None:
        from retrieval.files import check_folder

        check_folder(options.docs)  # before the model takes its time
    reader, name = open_reader(options)
    for notice in reader.notices:
        note(f"note: {notice}")
    note(f"model: {name}, computing in {reader.precision} on {reader.device}")
    documents = None
    if options.docs is not None:
        from prompt.documents import load_collection
        from serving.documents import Documents

        documents = Documents(load_collection(options, reader, note), options.passages)
    serve(reader, name, options, note, documents)


def note(text):
    """Something that whoever started the server should know."""
    print(one_line(text), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
