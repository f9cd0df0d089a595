"""Ollama's API, as far as asking goes: generate, chat, tags, show, version. Streams are lines of JSON.

An answer is found at once, so a stream has one piece with all of it and one that ends it.
"""

import hashlib
import json
import time
from datetime import datetime, timezone

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from serving.replies import chat_answer
from serving.schemas import ChatRequest, GenerateRequest, ShowRequest

VERSION = "0.9.0"  # of the API that this follows
MEDIA_TYPE = "application/x-ndjson"
STREAMED = {200: {"description": "one object, or a stream of them", "content": {MEDIA_TYPE: {}}}}


def stamp(seconds):
    """A time as Ollama writes it."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def lines(*parts):
    """A stream of objects, a line each."""

    async def produce():
        for part in parts:
            yield json.dumps(part, ensure_ascii=True) + "\n"

    return StreamingResponse(produce(), media_type=MEDIA_TYPE)


def family_of(service):
    """The model's family as its config.json has it, such as bert or llama."""
    return service.reader.model.config.to_dict()["model_type"]


def details_of(service):
    parameters = sum(parameter.numel() for parameter in service.reader.model.parameters())
    return {
        "parent_model": "", "format": "safetensors", "family": family_of(service), "families": [family_of(service)],
        "parameter_size": f"{parameters / 1e6:.1f}M", "quantization_level": service.reader.settings.quant or "none",
    }


def ollama_routes(service):
    """The router; answers carry a field of our own, `bareqa`, with offsets and probabilities."""
    router = APIRouter()

    async def reply(request, body, messages, wrap):
        """Answer, or with nothing to answer say that the model is there; wrap(text) makes a text Ollama's field."""
        began = time.perf_counter()
        start = {"model": body.model, "created_at": stamp(time.time())}
        if not any(text.strip() for _, text in messages):
            service.adapter_of_model(body.model)
            end = wrap("") | {"done": True, "done_reason": "load"}
            return lines(start | end) if body.stream is not False else start | end
        text, described = await chat_answer(service, request, body.model, messages)
        took = round(1e9 * (time.perf_counter() - began))
        end = {"done": True, "done_reason": "stop", "total_duration": took, "load_duration": 0, "bareqa": described}
        if body.stream is False:
            return start | wrap(text) | end
        return lines(start | wrap(text) | {"done": False}, start | wrap("") | end)

    @router.post("/api/generate", response_model=dict, responses=STREAMED)
    async def generate(request: Request, body: GenerateRequest):
        """Ollama's dialect: the prompt holds text and question, or `system` the text."""
        messages = [("system", body.system or ""), ("user", body.prompt)] if body.prompt.strip() else []
        return await reply(request, body, messages, lambda text: {"response": text})

    @router.post("/api/chat", response_model=dict, responses=STREAMED)
    async def chat(request: Request, body: ChatRequest):
        """Ollama's dialect: how text and question are found is told in docs/serving.md."""
        messages = [(message.role, message.content or "") for message in body.messages]
        return await reply(
            request, body, messages, lambda text: {"message": {"role": "assistant", "content": text}}
        )

    @router.get("/api/tags")
    async def tags() -> dict:
        """The models there are: the one that is served, with each of its adapters."""
        size = sum(p.numel() * p.element_size() for p in service.reader.model.parameters())
        return {
            "models": [
                {
                    "name": f"{name}:latest" if ":" not in name else name,
                    "model": f"{name}:latest" if ":" not in name else name,
                    "modified_at": stamp(service.began), "size": size,
                    "digest": hashlib.sha256(f"{service.reader.report.fingerprint} {name}".encode()).hexdigest(),
                    "details": details_of(service),
                }
                for name in service.model_names()
            ]
        }

    @router.post("/api/show")
    async def show(body: ShowRequest) -> dict:
        """What is known of one model."""
        service.adapter_of_model(body.model or body.name or "")
        family, length = family_of(service), service.reader.settings.length
        return {
            "modified_at": stamp(service.began), "details": details_of(service), "capabilities": ["completion"],
            "model_info": {"general.architecture": family, f"{family}.context_length": length}, "template": "",
        }

    @router.get("/api/version")
    async def version() -> dict:
        """The version of Ollama's API that is followed here."""
        return {"version": VERSION}

    return router
