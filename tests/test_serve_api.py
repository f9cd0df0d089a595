"""The real server: what the API answers, whom it refuses, and what it writes down."""

import http.client
import json
import re
import time

import httpx
import pytest

import infer
import serve
from tests.live_server import Process
from tests.tiny_adapters import make_adapters

TEXT = "The tower was finished in 1889 for a fair.\r\nIt stands in Paris, beside the river Seine."
PERSIAN = "این برج در سال ۱۸۸۹ ساخته شد و نام آن از مهندسی می‌آید که شرکتش آن را ساخت."
SECRET = "xylophone-7731"
MAX_BYTES = 50_000


@pytest.fixture(scope="module")
def adapters(tiny_folder, tmp_path_factory):
    return make_adapters(tmp_path_factory.mktemp("adapters"), tiny_folder)


@pytest.fixture(scope="module")
def server(tiny_folder, adapters, tmp_path_factory):
    flags = ["--model", tiny_folder, "--adapter", f"always={adapters[0]}", f"never={adapters[1]}"]
    output = tmp_path_factory.mktemp("server") / "output"
    with Process(output, *flags, "--max-bytes", MAX_BYTES, "--allow-host", "qa.example") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        yield client


def ask(client, **body):
    reply = client.post("/api/qa", json={"question": "When?", "context": TEXT} | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def spans(answer):
    first = [(answer["answer"], answer["start"], answer["end"])] if answer["start"] is not None else []
    return first + [(s["text"], s["start"], s["end"]) for s in answer["runners_up"]]


@pytest.mark.parametrize("context", [TEXT, PERSIAN, "😀 It opened in 1931. " + PERSIAN + " \x1b[31m </script>"])
def test_an_answer_is_the_one_of_infer(client, adapters, tiny_folder, context, capsys):
    answer = ask(client, context=context, adapter="always", top_k=4)
    flags = ["--model", str(tiny_folder), "--adapter", str(adapters[0]), "--device", "cpu", "--precision", "fp32"]
    assert infer.main([*flags, "--question", "When?", "--context", context, "--json", "--top-k", "4"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert spans(answer) == spans(expected) and len(spans(answer)) == 4
    assert answer["score"] == pytest.approx(expected["score"], abs=1e-4)
    assert all(context[start:end] == text for text, start, end in spans(answer))
    assert answer["windows"] >= 1 and answer["window"] == 0 and 0 < answer["seconds"] < 60


def test_the_adapter_is_the_requests(client):
    always, never, usual = (ask(client, **body) for body in ({"adapter": "always"}, {"adapter": "never"}, {}))
    assert always["answer"] and "reason" not in always
    assert never["answer"] == "" and never["start"] is None and never["reason"].startswith("the model finds no answer")
    assert never["null_probability"] == never["score"]
    assert usual["answer"] == ""  # the last adapter of the command line
    bare = ask(client, adapter="none")
    assert "null_probability" not in bare and spans(bare) != spans(always)


def test_no_answer_can_be_asked_for_and_excluded(client):
    assert ask(client, adapter="never", no_answer=False)["answer"]
    assert "null_probability" not in ask(client, adapter="never", no_answer=False)
    assert "null_probability" in ask(client, adapter="none", no_answer=True)
    assert ask(client, adapter="never", no_answer=True)["answer"] == ""


def test_nothing_to_read_has_a_reason(client):
    assert ask(client, context=" ")["reason"] == "the context is empty"
    assert ask(client, question="")["reason"] == "the question is empty"


def test_top_k(client):
    assert [len(spans(ask(client, adapter="always", top_k=k))) for k in (1, 3, 20)] == [1, 3, 20]


def test_a_batch_keeps_its_order(client):
    contexts = [TEXT, PERSIAN, "It is red.", "", TEXT * 9]
    pairs = [{"question": "When?", "context": c, "adapter": "always", "top_k": 2} for c in contexts]
    reply = client.post("/api/qa/batch", json={"qa_pairs": pairs}).json()
    assert len(reply["answers"]) == 5 and reply["seconds"] > 0
    for pair, answer in zip(pairs, reply["answers"], strict=True):
        assert spans(answer) == spans(ask(client, **pair))


def test_health_information_and_metrics(client, server, tiny_folder, adapters):
    assert client.get("/api/health").json() == {"status": "ok"}
    assert client.get("/api/health/ready").json() == {"status": "ready"}
    for path in ("/", "/api/health", "/api/health/ready"):  # as load balancers ask
        assert client.head(path).status_code == 200 and client.head(path).content == b""
    information = client.get("/api/model/info")
    assert information.json()["name"] == tiny_folder.name
    assert information.json()["adapters"] == ["always", "never"] and information.json()["adapter"] == "never"
    assert information.json()["documents"] is None
    for folder in (tiny_folder, *adapters):
        assert str(folder.parent) not in information.text
    before = metrics(client)
    ask(client)
    after = metrics(client)
    assert after['bareqa_questions_total{outcome="answered"}'] == before['bareqa_questions_total{outcome="answered"}'] + 1
    route = 'bareqa_requests_total{route="/api/qa",status="200"}'
    assert after[route] == before[route] + 1
    assert after["bareqa_questions_unanswered"] == 0 and after["bareqa_questions_capacity"] == 256


def metrics(client):
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    lines = [line for line in reply.text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_the_manual_and_the_page_bring_all_they_need(client):
    description = client.get("/openapi.json").json()
    assert {"/api/qa", "/api/qa/batch", "/api/explain", "/api/ask", "/api/chat", "/v1/chat/completions", "/"} <= set(description["paths"])
    for path in ("/docs", "/"):
        page = client.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert not re.search(r"(?:src|href)\s*=\s*['\"]?(?:https?:)?//", page.text)
        assert not re.search(r"https?://(?!www\.w3\.org/)", page.text)
    manual = client.get("/docs").text
    for path in description["paths"]:
        assert path in manual
    assert "Content-Security" not in manual and "QaRequest" in manual


REFUSED = {
    "not JSON at character": b'{"question": ',
    "the body should be a JSON object": b"[]",
    "question: field required": b'{"context": "c"}',
    "question: input should be a valid string": b'{"question": 3, "context": "c"}',
    "contxt: there is no such field": b'{"question": "q", "context": "c", "contxt": "d"}',
    "top_k: input should be greater than or equal to 1": b'{"question": "q", "context": "c", "top_k": 0}',
    "top_k: expected 1 to 20": b'{"question": "q", "context": "c", "top_k": 21}',
    "top_k: input should be a valid integer": b'{"question": "q", "context": "c", "top_k": true}',
    "adapter: there is none of that name; there are always, never, none": b'{"question": "q", "context": "c", "adapter": "x"}',
    "question: half of a surrogate pair": b'{"question": "\\ud800", "context": "c"}',
    "deadline: input should be greater than 0": b'{"question": "q", "context": "c", "deadline": 0}',
    "deadline: input should be a finite number": b'{"question": "q", "context": "c", "deadline": NaN}',
}


def test_the_table_of_refusals_is_whole():
    assert len(REFUSED) == 12


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_used_is_refused(client, sentence):
    reply = client.post("/api/qa", content=REFUSED[sentence], headers={"content-type": "application/json"})
    assert reply.status_code == 422 and list(reply.json()) == ["error"]
    assert reply.json()["error"].startswith(sentence)


@pytest.mark.parametrize("body", [
    b"\xff\xfe\xfa", b"[" * 40_000, b'{"question": ' + b"9" * 5000 + b"}", b'{"question": "q", "context": "c", "\\ud800": 1}',
])
def test_bodies_that_break_parsers_are_refused(client, body):
    reply = client.post("/api/qa", content=body, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422) and "error" in reply.json()


@pytest.mark.parametrize("headers, status", [
    ({"content-type": "application/json; charset=UTF-8"}, 200),
    ({"content-type": 'Application/JSON;charset="utf-8"; x=y', "content-encoding": "identity"}, 200),
    ({"content-type": "application/json; charset=utf-16"}, 415),
    ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
])
def test_bodies_are_plain_utf_8(server, headers, status):
    body = json.dumps({"question": "Who built it?", "context": "Ada built it."}).encode()
    reply = httpx.post(f"http://127.0.0.1:{server.port}/api/qa", content=body, headers=headers, trust_env=False, timeout=60)
    assert reply.status_code == status


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "", None])
@pytest.mark.parametrize("path", ["/api/qa", "/", "/api/chat", "/v1/chat/completions", "/api/ask"])
def test_only_json_is_read(server, path, kind):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = json.dumps({"question": "q", "context": "c"})
    connection.request("POST", path, body, {} if kind is None else {"Content-Type": kind})
    reply = connection.getresponse()
    assert reply.status == 415 and b"Content-Type: application/json" in reply.read()
    connection.close()


@pytest.mark.parametrize("host, status", [
    ("localhost", 200), ("LOCALHOST:5000", 200), ("[::1]:80", 200), ("qa.example", 200), ("qa.example:80", 200),
    ("evil.example", 403), ("evil.example:5000", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403),
    ("evil.example@localhost", 403), ("", 403),
])
def test_the_host_must_be_ours(client, host, status):
    for path in ("/api/health", "/"):
        reply = client.get(path, headers={"Host": host})
        assert reply.status_code == status
    reply = client.post("/api/qa", json={"question": "q", "context": "c"}, headers={"Host": host})
    assert reply.status_code == status


def test_no_other_site_is_let_in(client):
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    reply = client.options("/api/qa", headers=headers | {"Access-Control-Request-Headers": "content-type"})
    assert reply.status_code == 405
    reply = client.post("/api/qa", json={"question": "q", "context": "c"}, headers={"Origin": "https://evil.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"


def test_long_requests_are_refused_before_they_are_read(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", "/api/qa")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()  # and not a byte of it
    reply = connection.getresponse()
    assert reply.status == 413 and b"requests may have 50,000 bytes" in reply.read()
    connection.close()


def test_the_limit_counts_what_comes_not_what_was_promised(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", "/api/qa")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    piece = b"x" * 10_000
    for _ in range(MAX_BYTES // len(piece) + 1):
        connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    assert connection.getresponse().status == 413  # though the body has no end yet
    connection.close()


def test_the_longest_request_is_answered(client):
    body = {"question": "When?", "context": "", "adapter": "always"}
    body["context"] = "It was long ago. ".ljust(MAX_BYTES - len(json.dumps(body)), "x")
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    assert len(content) == MAX_BYTES
    assert client.post("/api/qa", content=content, headers=headers).status_code == 200
    assert client.post("/api/qa", content=content + b" ", headers=headers).status_code == 413


def test_nothing_that_was_asked_is_written_down(client, server):
    """Wherever a client puts its text, rightly or by mistake, the log has none of it."""
    ask(client, question=f"Who is {SECRET}?", context=f"{SECRET} is a word.")
    client.post("/api/qa/batch", json={"qa_pairs": [{"question": SECRET, "context": SECRET}]})
    client.post("/api/qa", content=f'{{"question": {SECRET}', headers={"content-type": "application/json"})
    client.post("/api/qa", json={"question": SECRET, SECRET: SECRET})
    client.post("/api/qa", json={"question": "q", "context": "c", "adapter": SECRET})
    client.get(f"/api/qa?context={SECRET}")
    client.get(f"/{SECRET}")
    client.post(f"/models/{SECRET}", json={"inputs": {"question": SECRET, "context": SECRET}})
    client.post("/api/chat", json={"model": SECRET, "messages": [{"role": "user", "content": SECRET}]})
    client.get("/api/health", headers={"Authorization": SECRET, "Host": SECRET, "X-Own": SECRET})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.sock = None
    connection.connect()
    connection.sock.sendall(f"{SECRET} no http\r\n\r\n".encode())
    connection.sock.recv(1000)
    connection.close()
    written = server.output.read_text()
    assert written.count("POST /api/qa ") >= 4 and "(no route)" in written
    assert SECRET not in written and "tower" not in written


@pytest.mark.parametrize("path, body, said", [
    ("/api/qa/batch", {"qa_pairs": [1] * 20_000}, "qa_pairs[0]: "),
    ("/v1/chat/completions", {"model": "m", "messages": [1] * 20_000}, "messages[0]: "),
    ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": ["x"] * 9000}]}, "messages[0].content: "),
    ("/api/qa", {"question": "q", "context": "c"} | {f"f{n}": 1 for n in range(20_000)}, "the body: expected at most 100 fields"),
    ("/api/qa", {"question": "q", "context": "c", "x" * 3000: 1}, f"{'x' * 60}…: there is no such field"),
    ("/api/qa", {"question": "q", "context": "c", "x[y]": 1}, "x[y]: there is no such field"),
    ("/api/qa", {"question": 1, "context": "c", **{f"f{n}": 1 for n in range(9)}}, "; and 7 more"),
])
def test_many_mistakes_are_one_sentence_and_no_work(path, body, said):
    from serving.app import add_refusals
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    from serving.schemas import BatchRequest, CompletionRequest, QaRequest

    app = FastAPI()  # the routes' requests without a limit of bytes
    add_refusals(app)
    for route, kind in (("/api/qa/batch", BatchRequest), ("/v1/chat/completions", CompletionRequest), ("/api/qa", QaRequest)):
        app.post(route)(make_route(kind))
    began = time.perf_counter()
    reply = TestClient(app).post(path, json=body)
    assert reply.status_code == 422 and len(reply.text) < 600 and said in reply.text and "function-after" not in reply.text
    assert time.perf_counter() - began < 2


def make_route(kind):
    async def route(body: kind):
        return None

    return route


def test_paths_are_as_they_are(client):
    reply = client.post("/api/qa/", json={"question": "Who?", "context": TEXT})
    assert reply.status_code == 404 and set(reply.json()) == {"error"}
    reply = client.post("/api/qa", content=b'{"question": "a", "context": "b", "\\ud800": 1}', headers={"content-type": "application/json"})
    assert reply.status_code == 422 and "should be a JSON object" not in reply.text


def test_a_wrong_folder_is_said_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    def never(options):
        raise AssertionError

    monkeypatch.setattr("prompt.loading.open_reader", never)
    monkeypatch.setattr(infer, "load", never)
    assert infer.main(["--docs", str(tmp_path / "none"), "--question", "Who?"]) == 2
    assert serve.main(["--docs", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("--docs wants a folder") == 2
