"""The API proper: /api/qa, /api/qa/batch, /api/explain, /api/ask, health, information, metrics."""

import time

from fastapi import APIRouter, Request, Response

from common.errors import InputError
from serving.guard import Refused
from serving.explain import Explanations
from serving.metrics import CONTENT_TYPE
from serving.schemas import (
    AskAnswer, AskRequest, BatchAnswer, BatchRequest, ExplainRequest, Explanation, Health, QaAnswer, QaRequest,
)
from serving.service import Asked


def asked_of(pair):
    """An Asked from a Pair."""
    return Asked(pair.question, pair.context, pair.top_k, pair.adapter, pair.no_answer)


def native_routes(service, metrics, documents=None):
    """The router. documents: serving.documents.Documents for /api/ask, or None."""
    router, explanations = APIRouter(), Explanations(service)

    @router.post("/api/qa", response_model=QaAnswer, response_model_exclude_unset=True)
    async def answer_question(request: Request, body: QaRequest):
        """The span of `context` that answers `question`, and the next best ones."""
        (answer,) = await service.answer(request, [asked_of(body)], body.deadline)
        return answer

    @router.post("/api/qa/batch", response_model=BatchAnswer, response_model_exclude_unset=True)
    async def answer_batch(request: Request, body: BatchRequest):
        """Many questions at once, answered in their order; all of them are taken, or none."""
        if len(body.qa_pairs) > service.queue.capacity:
            raise InputError(f"qa_pairs: this server takes {service.queue.capacity} questions at a time")
        began = time.perf_counter()
        answers = await service.answer(request, [asked_of(pair) for pair in body.qa_pairs], body.deadline)
        return {"answers": answers, "seconds": time.perf_counter() - began}

    as_page = {"description": "With `Accept: text/html`, a page that needs nothing else", "content": {"text/html": {}}}

    @router.post("/api/explain", response_model=Explanation, responses={200: as_page})
    async def explain_answer(request: Request, body: ExplainRequest):
        """Why the model says what it says: the numbers behind its best span, layer by layer and word by word."""
        return await explanations.explain(request, body, "text/html" in request.headers.get("accept", ""))

    @router.post("/api/ask", response_model=AskAnswer)
    async def ask_documents(request: Request, body: AskRequest):
        """Answers from the server's documents, best first."""
        if documents is None:
            raise Refused(404, "this server has no documents; start it with --docs FOLDER")
        began = time.perf_counter()
        answers = await documents.ask(service, request, body)
        return {"answers": answers, "seconds": time.perf_counter() - began}

    @router.head("/api/health", include_in_schema=False)
    @router.get("/api/health", response_model=Health)
    async def health():
        """The process lives."""
        return {"status": "ok"}

    @router.head("/api/health/ready", include_in_schema=False)
    @router.get("/api/health/ready", response_model=Health)
    async def ready():
        """A question would be taken now; otherwise 503."""
        if not service.queue.accepts:
            raise Refused(503, "not taking questions now", {"retry-after": str(service.queue.retry_after())})
        return {"status": "ready"}

    @router.get("/api/model/info")
    async def information() -> dict:
        """Which model answers, with what settings and limits."""
        counts = None if documents is None else documents.counts()
        return service.information() | {"documents": counts, "explanation_characters": explanations.characters}

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus():
        """Counts and times in Prometheus' text format."""
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return router
