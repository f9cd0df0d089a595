"""POST /api/ask: passages are searched in a thread, and read through the queue like any text."""

import asyncio

from common.errors import InputError
from retrieval.collection import QUESTION_CHARACTERS, rank_answers
from serving.service import Asked


class Documents:
    """A Collection behind the service. passages: read for a question that does not say how many."""

    def __init__(self, collection, passages):
        self.collection, self.passages = collection, passages

    def counts(self):
        """How much there is."""
        return self.collection.counts()

    async def ask(self, service, request, body):
        """Descriptions of the best answers to an AskRequest, best first; as Service.predict otherwise."""
        service.check_top_k(body.top_k)
        service.adapter_of(body.adapter)
        count, capacity = body.passages or self.passages, service.queue.capacity
        if count > capacity:
            raise InputError(f"passages: this server takes {capacity} questions at a time, and each passage is one")
        service.queue.check_room()  # a search costs too
        passages = await asyncio.to_thread(self.collection.search, body.question, count)
        question = body.question[:QUESTION_CHARACTERS]
        asked = [Asked(question, self.collection.text(p), adapter=body.adapter) for p in passages]
        found = await service.predict(request, asked, body.deadline)
        threshold = found[0][1] if found else None
        ranked = rank_answers(passages, [prediction for prediction, _ in found], threshold, body.top_k)
        return [self.collection.describe(one) for one in ranked]
