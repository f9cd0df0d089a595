"""What an answer says where a chat expects an assistant's message."""

from prompt.answers import describe
from serving.chat import find_question, in_message
from serving.service import Asked

NO_ANSWER = "(no answer)"
TOP_K = 5


async def chat_answer(service, request, model, messages):
    """(text of the reply, description of the answer) to [(role, text)], by the adapter behind `model`.

    Offsets in the description count in the message whose number is with them.
    """
    messages = [(role.lower(), text) for role, text in messages]
    adapter = service.adapter_of_model(model)
    question, context = find_question(messages)
    asked = Asked(question, context, min(TOP_K, service.max_top_k), adapter)
    ((prediction, threshold),) = await service.predict(request, [asked])
    span = prediction.answer(threshold)
    described = describe(prediction, threshold, None, asked.top_k, windows=True)
    del described["seconds"]  # dialects have their own fields for it
    for found in (described, *described["runners_up"]):
        place = None if found["start"] is None else in_message(messages, question, context, found["start"], found["end"])
        found["message"], found["start"], found["end"] = place or (None, None, None)
    return NO_ANSWER if span is None else span.text, described
