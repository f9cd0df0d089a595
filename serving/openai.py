"""OpenAI's chat completions and list of models. Streams are server-sent events.

An answer is found at once, so a stream has one piece with all of it. Tokens are not counted: nothing is billed.
"""

import json
import time
import uuid

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from serving.replies import chat_answer
from serving.schemas import CompletionRequest

OWNER = "bareqa"
MEDIA_TYPE = "text/event-stream"
STREAMED = {200: {"description": "a completion, or a stream of its chunks", "content": {MEDIA_TYPE: {}}}}


def events(parts):
    """A stream of objects, an event each, and the word that ends it."""

    async def produce():
        for part in parts:
            yield f"data: {json.dumps(part, ensure_ascii=True)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(produce(), media_type=MEDIA_TYPE)


def openai_routes(service):
    """The router; answers carry a field of our own, `bareqa`, with offsets and probabilities."""
    router = APIRouter()

    def model(name):
        return {"id": name, "object": "model", "created": int(service.began), "owned_by": OWNER}

    @router.post("/v1/chat/completions", response_model=dict, responses=STREAMED)
    async def complete(request: Request, body: CompletionRequest):
        """OpenAI's dialect: how text and question are found is told in docs/serving.md."""
        messages = [(message.role, message.text()) for message in body.messages]
        text, described = await chat_answer(service, request, body.model, messages)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        if not body.stream:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return head | {"object": "chat.completion", "choices": [choice], "bareqa": described}
        head["object"] = "chat.completion.chunk"
        first = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
        last = {"index": 0, "delta": {}, "finish_reason": "stop"}
        return events([head | {"choices": [first]}, head | {"choices": [last], "bareqa": described}])

    @router.get("/v1/models")
    async def models() -> dict:
        """The models there are."""
        return {"object": "list", "data": [model(name) for name in service.model_names()]}

    @router.get("/v1/models/{name}")
    async def one_model(name: str) -> dict:
        """One of them."""
        service.adapter_of_model(name)
        return model(name)

    return router
