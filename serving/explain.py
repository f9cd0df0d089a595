"""POST /api/explain: the model is looked into by a lane of the queue, a step a turn; what was seen is written elsewhere.

Looking puts hooks on the model that answers everybody, so no other lane may use it meanwhile (see `Question.alone`).
"""

import asyncio
import json

from fastapi.responses import HTMLResponse, Response

from common.errors import InputError
from inside.case import Case, can_be_seen, check_encoder
from inside.explain import described, looking
from inside.page import page
from serving.manual import page_policy
from serving.queue import Busy, Question

CHARACTERS = 20_000  # of question and text together: all of their windows are read for one request
AT_A_TIME = 2  # each holds all attention of a window: 151 MB for a BERT-base with windows of 512 tokens


class Explanations:
    """Explanations of a Service's answers. characters: that one may be made of, 0 for a model that cannot be seen into."""

    def __init__(self, service):
        self.service, self.open = service, 0
        self.characters = CHARACTERS if can_be_seen(service.reader) else 0

    async def explain(self, request, body, as_page=False):
        """The response to an ExplainRequest, JSON or a page; as Service.predict otherwise.

        Raises InputError for a decoder and for more than CHARACTERS, Busy while AT_A_TIME others are in work.
        """
        service = self.service
        check_encoder(service.reader)
        adapter = service.adapter_of(body.adapter)
        length = len(body.question) + len(body.context)
        if length > self.characters:
            raise InputError(f"explanations are made of {CHARACTERS:,} characters at most, and these are {length:,}")
        if self.open >= AT_A_TIME:
            raise Busy(f"{self.open} explanations are in work already; try again later", service.queue.retry_after())

        def look(reader):
            case = Case(
                reader, body.question, body.context, adapter=adapter, tokens_per_batch=service.queue.tokens_per_batch
            )
            yield  # as for answers, the first step only tokenises
            return case, (yield from looking(case))

        self.open += 1
        try:
            deadline = service.deadline(body.deadline)
            question = Question(body.question, body.context, adapter, False, deadline, look, alone=True)
            ((case, looked),) = await service.settled(request, [question])
            return await asyncio.to_thread(written, case, looked, as_page)
        finally:
            self.open -= 1


def written(case, looked, as_page):
    """The response: of a large model seconds of compressing, so not for the thread that serves all."""
    value = described(case, looked)
    if not as_page:
        content = json.dumps(value, ensure_ascii=False, allow_nan=False)
        return Response(content, media_type="application/json")
    content = page(value)
    return HTMLResponse(content, headers={"content-security-policy": page_policy(content)})
