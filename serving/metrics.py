"""Numbers for Prometheus, read off when it asks (https://prometheus.io/docs/instrumenting/exposition_formats)."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES = ("answered", "late", "cancelled", "failed", "shed")


class QueueCollector:
    """Gives an AnswerQueue's counts as they are at the moment."""

    def __init__(self, queue):
        self.queue = queue

    def collect(self):
        counts = self.queue.counts
        questions = CounterMetricFamily("bareqa_questions", "Questions by what became of them", labels=["outcome"])
        for outcome in OUTCOMES:
            questions.add_metric([outcome], counts[outcome])
        yield questions
        yield CounterMetricFamily("bareqa_forward_passes", "Forward passes of the model", counts["passes"])
        yield CounterMetricFamily("bareqa_groups", "Groups of questions that shared passes", counts["groups"])
        yield GaugeMetricFamily("bareqa_questions_unanswered", "Questions waiting or in work", self.queue.unanswered)
        yield GaugeMetricFamily("bareqa_questions_capacity", "Most of them", self.queue.capacity)


class Metrics:
    """A registry of its own, so that two servers in one process do not mix their numbers."""

    def __init__(self, queue):
        self.registry = CollectorRegistry()
        self.registry.register(QueueCollector(queue))
        self.requests = Counter(
            "bareqa_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "bareqa_request_seconds", "Time from the first byte of a request to the last of its answer", ["route"],
            registry=self.registry,
        )

    def seen(self, route, status, seconds):
        """One request is over; status None: the client left before it was answered."""
        self.requests.labels(route, "none" if status is None else str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def render(self):
        """The text that Prometheus reads, as bytes."""
        return generate_latest(self.registry)
