"""From serve.py's options to a server that runs until it is told to stop."""

import logging
import math
import os
import signal
import socket
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import uvicorn

from answering.lanes import take_share
from common.errors import InputError
from common.files import read_text
from common.pages import give_pages_back, keep_pages
from data.examples import Example
from serving.app import create_app
from serving.guard import BODY_SECONDS
from serving.queue import AnswerQueue
from serving.service import Service

GRACE_SECONDS = 5  # beyond what a request may take to come and its question to be answered
WARM_UP = Example("warm-up", "Who is there?", "Nobody is there yet.", None, "warm-up")


def read_token(path):
    """The secret in a file, without white space around it; None without a file. InputError when it cannot be sent."""
    if path is None:
        return None
    token = read_text(path).strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{path}: expected one word of printable ASCII characters, the token")
    return token


def own_version():
    """The installed version of BareQA, "0" from a folder that was never installed."""
    try:
        return version("bareqa")
    except PackageNotFoundError:
        return "0"


def title(name):
    """What clients call a model: for a folder its name, or its run's; nothing of the path to it."""
    name = name.split(" + ")[0]
    if not os.path.isdir(name):
        return name
    folder = Path(name).absolute()
    while folder.name in ("model", "best") and folder.parent.name:
        folder = folder.parent
    return folder.name.replace(":", "_")


def listen(host, port):
    """A listening socket; InputError when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = socket.socket(family, kind, protocol)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(1024)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--host {host} --port {port}: cannot listen there ({reason}); choose another") from None
    return server


def serve(reader, name, options, say, documents=None):
    """Answer until SIGINT or SIGTERM; then finish what was accepted and return. say(sentence) tells the user."""
    token = read_token(options.token_file)
    listening = listen(options.host, options.port)
    keep_pages(one_heap=True)  # passes have other shapes every time: what one lane leaves free, another can take
    next(reader.predict([WARM_UP]))  # the first pass of a process is slow; let no client wait for it
    queue = AnswerQueue(
        reader, capacity=options.queue, tokens_per_batch=options.tokens_per_batch, lanes=reader.lanes,
        begin=partial(take_share, torch.get_num_threads(), reader.lanes), idle=give_pages_back,
    )
    service = Service(reader, queue, name=title(name), seconds=options.deadline, max_top_k=options.top_k)
    app = create_app(
        service, documents=documents, version=own_version(), hosts=options.allow_host or (), token=token,
        max_bytes=options.max_bytes,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("bareqa")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, lifespan="off",
            timeout_graceful_shutdown=BODY_SECONDS + math.ceil(options.deadline) + GRACE_SECONDS,
        )
    )
    # uvicorn stops by these signals and then raises them once more, for whoever started it
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    address, port = listening.getsockname()[:2]
    say(f"listening on http://{f'[{address}]' if ':' in address else address}:{port}")
    try:
        server.run(sockets=[listening])
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        logger.removeHandler(handler)
        listening.close()
        queue.close()
    say("stopped")
