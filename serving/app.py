"""The application: routes, refusals in one form, and the guard around them."""

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from common.errors import InputError
from prompt.display import one_line
from serving.guard import BROKEN, Guard, Refused, refusal
from serving.huggingface import huggingface_routes
from serving.manual import manual, page_policy
from serving.metrics import Metrics
from serving.native import native_routes
from serving.ollama import ollama_routes
from serving.openai import openai_routes
from serving.queue import Busy
from serving.schemas import OpenAIRefusal, Refusal
from serving.service import ClientLeft, UnknownModel

PAGE = Path(__file__).parent / "page.html"
DESCRIPTION = "Answers to questions from a text, cut from it word for word."
FAULTS = 3  # said of a request that has more
NAME_CHARACTERS = 60  # of an unknown field's
NO_OBJECT = ("missing", "model_type", "model_attributes_type", "dict_type", "json_invalid")
SPARE_REQUESTS = 64  # open at a time beside the ones whose questions are in the queue
REFUSALS = {
    400: "cannot be read at all", 401: "the server wants a token", 403: "the Host header names no allowed host",
    404: "not here",
    405: "this path does not know that method", 408: "the request came too slowly", 413: "the request is too long",
    415: "not announced as JSON", 422: "something in the request cannot be used",
    503: "busy, shutting down, or not ready in time; Retry-After says when to come again",
}


def create_app(service, *, documents=None, version, hosts=(), token=None, max_bytes):
    """The ASGI application for a Service; the keywords but `documents` and `version` are those of Guard."""
    app = FastAPI(
        title="BareQA", version=version, description=DESCRIPTION, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    metrics = Metrics(service.queue)
    usual = refusals(Refusal)
    app.include_router(native_routes(service, metrics, documents), tags=["BareQA"], responses=usual)
    app.include_router(huggingface_routes(service), tags=["Hugging Face"], responses=usual)
    app.include_router(ollama_routes(service), tags=["Ollama"], responses=usual)
    app.include_router(openai_routes(service), tags=["OpenAI"], responses=refusals(OpenAIRefusal))
    add_pages(app)
    add_refusals(app)
    return Guard(
        app, hosts=hosts, token=token, max_bytes=max_bytes, max_open=service.queue.capacity + SPARE_REQUESTS,
        seen=metrics.seen,
    )


def refusals(model):
    """What /openapi.json says of every path: how it refuses, in the form of `model`."""
    return {status: {"description": text, "model": model} for status, text in REFUSALS.items()}


def add_pages(app):
    """The page at / and the description of the API at /docs; nothing in them is fetched from elsewhere."""
    page = PAGE.read_text(encoding="utf-8")
    policy = {"content-security-policy": page_policy(page)}

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def show_page():
        return HTMLResponse(page, headers=policy)

    @app.head("/docs", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def show_manual():
        text = manual(app.openapi())
        return HTMLResponse(text, headers={"content-security-policy": page_policy(text)})


def add_refusals(app):
    """Every refusal is one sentence in the dialect's form, and repeats of what was sent only names of fields."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused):
        return refusal(request.url.path, error.status, error.sentence, error.headers)

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy):
        return refusal(request.url.path, 503, str(error), {"retry-after": str(error.retry_after)})

    @app.exception_handler(InputError)
    async def unusable(request: Request, error: InputError):
        return refusal(request.url.path, 404 if isinstance(error, UnknownModel) else 422, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError):
        return refusal(request.url.path, 422, one_line(sentence(error.errors())))

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException):
        return refusal(request.url.path, error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception):
        return refusal(request.url.path, 500, BROKEN)  # the Guard sees the exception too, and logs it

    @app.exception_handler(ClientLeft)
    async def left(request: Request, error: ClientLeft):
        return Response(status_code=499)  # into the void


def sentence(errors):
    """pydantic's errors as one: the first few, and how many more there are."""
    more = len(errors) - FAULTS
    return "; ".join([*dict.fromkeys(map(fault, errors[:FAULTS])), *([f"and {more:,} more"] if more > 0 else [])])


def fault(error):
    """One of pydantic's errors as part of a sentence: where, and what was expected."""
    where, parts = "", error["loc"][1:]  # the first says "body"
    unknown = error["type"] == "extra_forbidden"
    for number, part in enumerate(parts, 1):
        named = unknown and number == len(parts)
        if isinstance(part, str) and "[" in part and not named:  # which of several types, in pydantic's words
            continue
        part = part if isinstance(part, int) or len(part) <= NAME_CHARACTERS else part[:NAME_CHARACTERS] + "…"
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    if error["type"] == "json_invalid":
        return f"not JSON at character {error['loc'][-1]}"
    if unknown:
        return f"{where}: there is no such field"
    said = f"{error['msg'][0].lower()}{error['msg'][1:]}"
    if where:
        return f"{where}: {said}"
    return "the body should be a JSON object" if error["type"] in NO_OBJECT else f"the body: {said}"
