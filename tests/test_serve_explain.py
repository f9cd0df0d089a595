"""POST /api/explain: the numbers of inside/explain.py over HTTP, in company of other questions, and its refusals."""

import base64
import json
import re
import threading
import zlib

import httpx
import pytest

from answering.reader import Reader
from inside.case import Case
from inside.explain import explain
from serving import explain as serving_explain
from serving.schemas import Explanation
from tests.live_server import GatedReader, Process, live
from tests.tiny_adapters import make_adapters

TEXT = "The old mill of Riga </script><b> was built by Ada Stone in 1807. آسیاب کهنه 🙂 کنار رود است."
QUESTION = "Who built the mill?"
WAIT = 60  # seconds: much longer than anything here takes


@pytest.fixture(scope="module")
def adapters(tiny_folder, tmp_path_factory):
    return make_adapters(tmp_path_factory.mktemp("adapters"), tiny_folder)


def post(url, accept="*/*", **body):
    body = {"question": QUESTION, "context": TEXT} | body
    return httpx.post(f"{url}/api/explain", json=body, headers={"accept": accept}, timeout=WAIT, trust_env=False)


def without_times(value):
    return value | {"parts": [part | {"seconds": None} for part in value["parts"]]}


def close(value, other):
    """Whether two JSON values are the same but for rounding: batches are made otherwise."""
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(close(value[key], other[key]) for key in value)
    if isinstance(value, list):
        return len(value) == len(other) and all(map(close, value, other))
    return value == pytest.approx(other, abs=2e-3) if isinstance(value, float) else value == other


def test_the_real_server_explains_what_it_answers(tiny_folder, adapters, tmp_path):
    flags = ["--model", tiny_folder, "--adapter", f"yes={adapters[0]}", f"no={adapters[1]}", "--token-file"]
    (tmp_path / "secret").write_text("xylophone")
    reader = Reader.load(tiny_folder, device="cpu", precision="fp32")
    for name, folder in zip(("yes", "no"), adapters, strict=True):
        reader.load_adapter(folder, name)
    with Process(tmp_path / "output", *flags, tmp_path / "secret") as server:
        assert post(server.url).status_code == 401
        with httpx.Client(base_url=server.url, headers={"authorization": "Bearer xylophone"}, trust_env=False) as client:
            for adapter, used in (("yes", "yes"), (None, "no"), ("none", None)):
                body = {"question": QUESTION, "context": TEXT, "adapter": adapter}
                reply = client.post("/api/explain", json=body, timeout=WAIT)
                value = reply.json()
                assert reply.headers["content-type"] == "application/json"
                Explanation.model_validate(value, strict=True, extra="forbid")
                mine = explain(Case(reader, QUESTION, TEXT, adapter=used))
                packed = [zlib.decompress(base64.b64decode(one["attention"].pop("data"))) for one in (value, mine)]
                assert len(packed[0]) == len(packed[1]) and max(abs(a - b) for a, b in zip(*packed, strict=True)) <= 1
                assert close(without_times(value), without_times(json.loads(json.dumps(mine))))
                answer = client.post("/api/qa", json=body, timeout=WAIT).json()
                assert (value["answer"] or {"text": ""})["text"] == answer["answer"]
                if value["answer"]:
                    assert TEXT[value["answer"]["start"] : value["answer"]["end"]] == answer["answer"]
            assert value["null"]["threshold"] is None  # the bare model's
            assert 'route="/api/explain",status="200"} 3' in client.get("/metrics").text
        assert "/api/explain 200" in server.output.read_text() and "mill" not in server.output.read_text()


@pytest.fixture(scope="module")
def url(adapted_reader):
    with live(adapted_reader, max_bytes=300_000) as (url, _):
        yield url


def test_as_a_page(url):
    reply = post(url, accept="text/html,application/xhtml+xml")
    assert reply.status_code == 200 and reply.headers["content-type"] == "text/html; charset=utf-8"
    assert json.loads(re.search(r"^const X = (.*);$", reply.text, re.M)[1])["context"] == TEXT
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy and "unsafe" not in policy


def test_refusals(url):
    limit = serving_explain.CHARACTERS
    cases = [
        (422, f"explanations are made of {limit:,} characters at most, and these are {limit + 1:,}",
         {"context": "a" * (limit + 1 - len(QUESTION))}),
        (413, "requests may have 300,000 bytes", {"context": "a" * 300_000}),
        (422, "the context is empty", {"context": " "}),
        (422, "the question is empty", {"question": ""}),
        (422, "adapter: there is none of that name", {"adapter": "maybe"}),
        (422, "top_k: there is no such field", {"top_k": 3}),
        (503, "the answer was not ready in time", {"deadline": 1e-6}),
    ]
    for status, sentence, body in cases:
        reply = post(url, **body)
        assert reply.status_code == status and sentence in reply.json()["error"], (sentence, reply.text)
    assert httpx.get(f"{url}/api/explain", trust_env=False).status_code == 405


def test_a_decoder_is_refused(decoder_place):
    _, folder = decoder_place
    with live(Reader.load(folder, device="cpu", precision="fp32")) as (url, queue):
        reply = post(url)
        assert reply.status_code == 422
        assert reply.json() == {"error": "a decoder cannot be looked into, only a BERT or one of its relatives"}
        assert not queue.counts
        assert httpx.get(f"{url}/api/model/info", trust_env=False).json()["explanation_characters"] == 0


@pytest.fixture
def held(adapted_reader, monkeypatch):
    """(url, queue, begun, gate) of a server whose explanations wait for gate before each of their steps."""
    begun, gate, original = threading.Semaphore(0), threading.Semaphore(0), serving_explain.looking

    def looking(case):
        steps = original(case)
        while True:
            begun.release()
            yield  # others have their turn before each step
            if gate.acquire(timeout=0.01):
                try:
                    next(steps)
                except StopIteration as end:
                    return end.value

    monkeypatch.setattr(serving_explain, "looking", looking)
    with live(GatedReader(adapted_reader)) as (url, queue):
        queue.reader.gate.set()
        yield url, queue, begun, gate
        for _ in range(99):
            gate.release()


def started(target, *args):
    replies = []
    thread = threading.Thread(target=lambda: replies.append(target(*args)))
    thread.start()
    return thread, replies


def test_others_are_answered_meanwhile_and_too_many_explanations_are_not_begun(held, adapted_reader):
    url, queue, begun, gate = held
    threads = [started(post, url) for _ in range(serving_explain.AT_A_TIME)]
    for _ in threads:
        assert begun.acquire(timeout=WAIT)
    gate.release()  # one step of one of them
    answer = httpx.post(f"{url}/api/qa", json={"question": QUESTION, "context": TEXT}, timeout=WAIT, trust_env=False)
    assert answer.json()["answer"] and queue.unanswered == len(threads)
    (prediction,) = adapted_reader.predict([Case(adapted_reader, QUESTION, TEXT).example])
    assert answer.json()["answer"] == prediction.spans[0].text  # no hook was in the way
    refused = post(url)
    assert refused.status_code == 503 and "explanations are in work already" in refused.json()["error"]
    assert int(refused.headers["retry-after"]) >= 1
    for _ in range(99):
        gate.release()
    for thread, replies in threads:
        thread.join(WAIT)
        assert replies[0].status_code == 200
    assert post(url).status_code == 200


def test_a_client_that_leaves_or_is_late_ends_the_work(held, adapted_reader):
    url, queue, begun, gate = held
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/api/explain", json={"question": QUESTION, "context": TEXT}, timeout=0.5, trust_env=False)
    gate.release()
    late = post(url, deadline=0.3)
    assert late.status_code == 503 and late.json()["error"] == "the answer was not ready in time"
    assert queue.counts["cancelled"] == 1 and queue.counts["late"] == 1 and queue.unanswered == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in adapted_reader.model.modules())


def test_to_ollama_s_clients_a_decoder_is_no_bert(decoder_place):
    _, folder = decoder_place
    with live(Reader.load(folder, device="cpu", precision="fp32")) as (url, _):
        shown = httpx.post(f"{url}/api/show", json={"model": "bareqa"}).json()
        assert shown["details"]["family"] == "llama" and shown["details"]["families"] == ["llama"]
        assert shown["model_info"] == {"general.architecture": "llama", "llama.context_length": 256}
        assert {one["details"]["family"] for one in httpx.get(f"{url}/api/tags").json()["models"]} == {"llama"}
