"""The request of Hugging Face's Inference API and Endpoints for question answering, as huggingface_hub sends it."""

from fastapi import APIRouter, Request

from serving.schemas import HuggingFaceAnswer, HuggingFaceRequest
from serving.service import Asked


def huggingface_routes(service):
    """POST / (an endpoint of its own) and POST /models/NAME."""
    router = APIRouter()

    async def answer(request, body, adapter):
        parameters = body.parameters
        top_k = parameters.top_k if parameters and parameters.top_k else 1
        impossible = bool(parameters and parameters.handle_impossible_answer)
        asked = Asked(body.inputs.question, body.inputs.context, top_k, adapter, impossible)
        ((prediction, threshold),) = await service.predict(request, [asked])
        found = [
            {"score": span.probability, "start": max(span.start, 0), "end": max(span.end, 0), "answer": span.text}
            for span in prediction.spans[:top_k]
        ]
        if threshold is not None and prediction.answer(threshold) is None or not found:
            found = [{"score": prediction.null_probability, "start": 0, "end": 0, "answer": ""}, *found][:top_k]
        return found[0] if top_k == 1 else found

    @router.post("/", response_model=HuggingFaceAnswer | list[HuggingFaceAnswer])
    async def answer_here(request: Request, body: HuggingFaceRequest):
        """Hugging Face's dialect: one answer, a list when top_k is above 1; "no answer" only on request."""
        return await answer(request, body, None)

    @router.post("/models/{model:path}", response_model=HuggingFaceAnswer | list[HuggingFaceAnswer])
    async def answer_as(request: Request, model: str, body: HuggingFaceRequest):
        """The same for a model by its name."""
        return await answer(request, body, service.adapter_of_model(model))

    return router
