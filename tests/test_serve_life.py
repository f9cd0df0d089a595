"""A server in trouble: too much at once, too slow, clients that leave, signals, a kill in the middle."""

import asyncio
import gc
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import serve
from data.windows import WindowSettings
from answering.reader import Reader, ReaderSettings
from serving.guard import Guard
from serving.queue import Question
from tests.live_server import ROOT, GatedReader, Process, live

SENTENCE = "The old mill of Riga was built by Ada Stone in 1807 beside the river. "
BODY = {"question": "Who built it?", "context": SENTENCE}
LONG = {"question": "Who built it?", "context": SENTENCE * 250}
SMALL_PASSES = ("--tokens-per-batch", 150, "--window-length", 57, "--window-overlap", 13)  # a hundred of them for LONG


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return Reader.load(tiny_folder, settings=ReaderSettings(WindowSettings(57, 13)), device="cpu", precision="fp32")


@pytest.fixture
def gated(tiny):
    reader = GatedReader(tiny)
    yield reader
    reader.gate.set()


def post(url, body=BODY, **options):
    with httpx.Client(trust_env=False, timeout=60) as client:
        return client.post(f"{url}/api/qa", json=body, **options)


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def test_a_full_queue_is_said_at_once(gated):
    with live(gated, capacity=3) as (url, queue), ThreadPoolExecutor() as pool:
        waiting = [pool.submit(post, url) for _ in range(3)]
        wait_for(lambda: queue.unanswered == 3)
        began = time.monotonic()
        refused = post(url)
        assert time.monotonic() - began < 5 and not gated.gate.is_set()
        assert refused.status_code == 503 and 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"].startswith("3 questions waiting already")
        with httpx.Client(base_url=url, trust_env=False) as client:
            ready, health = client.get("/api/health/ready"), client.get("/api/health")
            assert ready.status_code == 503 and ready.headers["retry-after"] and health.status_code == 200
            pairs = {"qa_pairs": [BODY] * 4}
            assert client.post("/api/qa/batch", json=pairs).status_code == 422  # would never fit
            assert client.post("/v1/chat/completions", json={
                "model": "tiny", "messages": [{"role": "user", "content": f"{SENTENCE}\n\nWho?"}],
            }).json()["error"]["type"] == "server_error"
        gated.gate.set()
        assert [one.result().status_code for one in waiting] == [200] * 3
        assert post(url).status_code == 200


@pytest.mark.parametrize("body, seconds", [({"deadline": 0.2}, 60.0), ({}, 0.2), ({"deadline": 60}, 0.2)])
def test_a_deadline_ends_the_waiting(gated, body, seconds):
    with live(gated, seconds=seconds) as (url, queue), ThreadPoolExecutor() as pool:
        answer = pool.submit(post, url, BODY | body)
        assert gated.begun.acquire(timeout=60)
        time.sleep(0.25)
        gated.gate.set()
        reply = answer.result()
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert reply.json()["error"] == "the answer was not ready in time"
        assert queue.counts["late"] == 1


def test_a_deadline_does_not_wait_for_the_pass_under_way(gated):
    with live(gated) as (url, queue):
        reply = post(url, BODY | {"deadline": 0.3})
        assert not gated.gate.is_set() and reply.status_code == 503
        assert reply.json()["error"] == "the answer was not ready in time"
        assert queue.counts["late"] == 1 and queue.counts["passes"] == 0
        gated.gate.set()
        assert post(url).status_code == 200


def test_of_two_threads_one_settles_a_question():
    question = Question("Who?", "Ada.", None, False, 0.0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(question.finish, range(200)))
    assert question.future.result() in range(200)


def test_what_a_stopping_server_gives_up_is_refused_in_its_form(caplog):
    """uvicorn cancels what is still there at its end, and would answer 500 itself."""
    async def forever(scope, receive, send):
        await asyncio.sleep(60)

    async def stopped():
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"{}"}

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/api/qa", "headers": headers}
        task = asyncio.create_task(Guard(forever, max_bytes=99, max_open=9)(scope, receive, send))
        await asyncio.sleep(0.1)
        task.cancel()
        await task
        return sent

    start, body = asyncio.run(stopped())
    assert start["status"] == 503 and (b"retry-after", b"1") in start["headers"]
    assert json.loads(body["body"]) == {"error": "the server is shutting down"}


def test_a_client_that_leaves_stops_costing(gated, caplog):
    with live(gated) as (url, queue):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            body = json.dumps(LONG).encode()
            head = f"POST /api/qa HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            client.sendall(head.encode() + b"\r\n\r\n" + body)
            assert gated.begun.acquire(timeout=60)
            assert queue.unanswered == 1
        wait_for(lambda: queue.counts["cancelled"] == 1)
        gated.gate.set()
        assert post(url).status_code == 200
        assert queue.counts["passes"] <= 3  # of the hundred that LONG would take
    gc.collect()  # asyncio complains of futures that nobody looked at when they go
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_a_client_that_leaves_in_its_request_costs_nothing(gated):
    with live(gated) as (url, queue):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            head = "POST /api/qa HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
            client.sendall(head.encode())
        gated.gate.set()
        assert post(url).status_code == 200
        assert queue.counts["groups"] == 1


def test_a_slow_sender_is_not_waited_for(gated, monkeypatch):
    monkeypatch.setattr("serving.guard.BODY_SECONDS", 0.3)
    with live(gated) as (url, _):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60) as client:
            client.sendall(b"POST /api/qa HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
            assert client.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_mistake_of_ours_shows_no_text(gated, caplog):
    gated.gate.set()
    with live(gated) as (url, _):
        reply = post(url, {"question": "break", "context": "xylophone-7731"})
        assert reply.status_code == 500 and reply.json() == {"error": "something went wrong here; the log says where"}
        assert post(url).status_code == 200
    assert "ValueError at " in caplog.text and "live_server.py" in caplog.text
    assert "xylophone" not in caplog.text


@pytest.fixture
def token_server(gated):
    gated.gate.set()
    with live(gated, token="s3cret-token") as (url, _), httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        yield client


@pytest.mark.parametrize("header, status", [
    (None, 401), ("Bearer wrong", 401), ("Bearer", 401), ("s3cret-token", 401), ("Basic s3cret-token", 401),
    ("Bearer s3cret-token", 200), ("bearer s3cret-token", 200), ("Bearer s3cret-tokem", 401), ("Bearer s3cret-token2", 401),
])
def test_a_token_is_wanted(token_server, header, status):
    headers = {} if header is None else {"Authorization": header}
    for reply in (token_server.post("/api/qa", json=BODY, headers=headers), token_server.get("/metrics", headers=headers)):
        assert reply.status_code == status
        assert status == 200 or reply.headers["www-authenticate"] == "Bearer"


def test_what_needs_no_token(token_server):
    assert [token_server.get(path).status_code for path in ("/", "/api/health", "/api/health/ready")] == [200] * 3
    closed = ["/docs", "/openapi.json", "/api/model/info", "/api/tags", "/v1/models", "/no/such/path"]
    assert [token_server.get(path).status_code for path in closed] == [401] * 6
    assert token_server.post("/", json={"inputs": BODY}).status_code == 401


def test_one_model_many_threads_same_answers(gated):
    gated.gate.set()
    bodies = [BODY | {"context": SENTENCE * n, "question": q} for n in (1, 2, 5, 9) for q in ("Who built it?", "When?")]
    with live(gated, capacity=999) as (url, _), ThreadPoolExecutor(16) as pool:
        alone = [post(url, body).json() for body in bodies]
        crowd = [reply.json() for reply in pool.map(lambda body: post(url, body), bodies * 6)]
    assert len(crowd) == 48 and len({answer["answer"] for answer in alone}) > 1
    for answer, expected in zip(crowd, alone * 6, strict=True):
        assert (answer["start"], answer["end"]) == (expected["start"], expected["end"])
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_was_accepted(tiny_folder, tmp_path, number):
    with Process(tmp_path / "output", "--model", tiny_folder, *SMALL_PASSES) as server, ThreadPoolExecutor() as pool:
        expected = post(server.url).json()["answer"]
        working = [pool.submit(post, server.url, LONG) for _ in range(2)]
        wait_for(lambda: 'unanswered 2.0' in httpx.get(f"{server.url}/metrics", trust_env=False).text)
        server.process.send_signal(number)
        replies = [one.result() for one in working]
        assert [reply.status_code for reply in replies] == [200, 200]
        assert expected and all(reply.json()["answer"] for reply in replies)
        assert server.process.wait(60) == 0
        assert server.output.read_text().endswith("stopped\n")
        with pytest.raises(httpx.ConnectError):
            post(server.url)


def test_killed_in_the_middle_and_started_again(tiny_folder, tmp_path):
    with Process(tmp_path / "one", "--model", tiny_folder, *SMALL_PASSES) as server, ThreadPoolExecutor() as pool:
        expected = post(server.url).json()
        working = [pool.submit(post, server.url, LONG) for _ in range(3)]
        wait_for(lambda: 'unanswered 3.0' in httpx.get(f"{server.url}/metrics", trust_env=False).text)
        server.process.kill()
        for one in working:
            with pytest.raises(httpx.TransportError):  # an error, and no half of an answer
                one.result()
    with Process(tmp_path / "two", "--model", tiny_folder, *SMALL_PASSES, port=server.port) as again:
        answer = post(again.url).json()
        assert {**answer, "seconds": 0} == {**expected, "seconds": 0}


REFUSED = {
    "--revision main": "--revision belongs to a model on the hub",
    "--port 70000": "--port: expected a whole number, at least 0 and at most 65535, found 70000",
    "--model no/such/model": "no/such/model: there is no such folder",
    "--queue 0": "--queue: expected a whole number, at least 1, found 0",
    "--deadline 0": "--deadline: expected a finite number, above 0, found 0",
    "--model MODEL --token-file missing": "missing: there is no such file",
    "--model MODEL --token-file empty": "empty: expected one word of printable ASCII characters, the token",
    "--model MODEL --token-file two": "two: expected one word of printable ASCII characters, the token",
    "--model MODEL --host no.such.name.invalid": "--host no.such.name.invalid --port 5000: cannot listen there",
    "--model MODEL --port TAKEN": "cannot listen there (Address already in use); choose another",
}


def test_all_refusals_are_there():
    assert len(REFUSED) == 10


@pytest.mark.parametrize("flags", REFUSED)
def test_what_cannot_be_served_is_refused(flags, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "two").write_text("two words\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"MODEL": str(tiny_folder), "TAKEN": str(taken.getsockname()[1])}
        assert serve.main([values.get(flag, flag) for flag in flags.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("serve.py: ") and REFUSED[flags] in lines[-1]
    assert "serving" not in {thread.name for thread in threading.enumerate()}


def test_without_its_libraries_the_server_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "import serve; sys.exit(serve.main(['--model', 'minilm']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr == "serve.py: uvicorn is not installed; get what the server needs with: pip install -e '.[serve]'\n"
