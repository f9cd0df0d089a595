"""POST /api/ask: passages are searched and then read through the queue: the vectors of a search may be the reader's own."""

import time

from common.errors import InputError
from retrieval.collection import QUESTION_CHARACTERS, rank_answers
from serving.queue import Question
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
        question, deadline = body.question[:QUESTION_CHARACTERS], service.deadline(body.deadline)

        def search(reader):
            yield  # as for answers, the first step reads nothing
            return self.collection.search(question, count)

        (passages,) = await service.settled(request, [Question(question, "", None, False, deadline, search)])
        asked = [Asked(question, self.collection.text(p), adapter=body.adapter) for p in passages]
        found = await service.predict(request, asked, max(deadline - time.monotonic(), 0.001))
        threshold = found[0][1] if found else None
        ranked = rank_answers(passages, [prediction for prediction, _ in found], threshold, body.top_k)
        return [self.collection.describe(one) for one in ranked]
