"""What an answer says where a chat expects an assistant's message."""

from prompt.answers import describe
from serving.chat import find_question
from serving.service import Asked

NO_ANSWER = "(no answer)"
TOP_K = 5


async def chat_answer(service, request, model, messages):
    """(text of the reply, description of the answer) to [(role, text)], by the adapter behind `model`."""
    adapter = service.adapter_of_model(model)
    question, context = find_question(messages)
    asked = Asked(question, context, min(TOP_K, service.max_top_k), adapter)
    ((prediction, threshold),) = await service.predict(request, [asked])
    span = prediction.answer(threshold)
    described = describe(prediction, threshold, None, asked.top_k, windows=True)
    del described["seconds"]  # dialects have their own fields for it
    return NO_ANSWER if span is None else span.text, described
