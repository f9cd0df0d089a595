"""infer.py --docs and POST /api/ask: answers with their file, line and offsets."""

import io
import json
import threading

import httpx
import pytest

import infer
from prompt.display import Style
from prompt.documents import DocumentSession
from answering.reader import Reader
from retrieval.collection import open_collection
from serving.documents import Documents
from tests.live_server import GatedReader, Process, live
from tests.test_retrieval import fill

QUESTION = "Who built the bridge?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("docs"))


@pytest.fixture
def run(tiny_folder, folder, capsys):
    def run(*flags):
        flags = ["--model", tiny_folder, "--device", "cpu", "--precision", "fp32", "--docs", folder, "--rank", "bm25", *flags]
        code = infer.main([*map(str, flags)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def check(found, folder):
    """Each answer stands where it says, and the shares go down."""
    for one in found:
        source = (folder / one["file"]).read_bytes().decode()
        assert source[one["start"] : one["end"]].replace("<i>", "").replace("</i>", "") == one["answer"]
        assert one["line"] == source[: one["start"]].count("\n") + 1
        start = one["passage_start"]
        assert one["passage"][start : start + len(one["answer"])] == one["answer"]
    scores = [one["score"] for one in found]
    assert scores == sorted(scores, reverse=True) and all(0 < score <= 1 for score in scores)


def test_json_names_file_line_and_offsets(run, folder):
    code, out, err = run("--question", QUESTION, "--json", "--top-k", 30)
    assert code == 0, err
    found = json.loads(out)
    assert 5 < len(found["answers"]) <= 30 and found["seconds"] > 0
    check(found["answers"], folder)
    _, out, _ = run("--question", QUESTION, "--json", "--top-k", 5000)
    assert {one["file"] for one in json.loads(out)["answers"]} == {"a.txt", "sub/b.md", "sub/c.HTML"}
    assert "documents: 4 files, 3 passages, ranked by bm25" in err and "left out: " in err


def test_fewer_passages_are_read_on_request(run):
    _, out, _ = run("--question", QUESTION, "--json", "--top-k", 30, "--passages", 1)
    assert {one["file"] for one in json.loads(out)["answers"]} == {"sub/c.HTML"}


def test_plain_lines(run):
    _, out, _ = run("--question", QUESTION, "--json", "--top-k", 2)
    expected = json.loads(out)["answers"]
    _, out, _ = run("--question", QUESTION, "--top-k", 2)
    lines = out.splitlines()
    assert lines[::2] == [one["answer"].replace("\n", " ") for one in expected]
    assert lines[1].startswith(f"  {expected[0]['file']}:{expected[0]['line']}  ") and lines[1].endswith(" %")


def test_no_answer_in_any_document(run):
    _, out, _ = run("--question", QUESTION, "--null-threshold=-1e9")
    assert out == "(no answer)\nthe model finds no answer in these documents\n"
    _, out, _ = run("--question", QUESTION, "--null-threshold=-1e9", "--json")
    assert json.loads(out)["answers"] == []


def test_the_prompt_takes_questions(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n/top 2\n/nonsense\n/quit\nnever read\n"))
    code, out, _ = run()
    lines = out.splitlines()
    assert code == 0 and len(lines) == 7
    assert "**" in lines[0] and ":" in lines[1] and lines[1].endswith(" s")
    assert lines[2] == lines[0] and lines[6].startswith("there is no command /nonsense")


def test_the_prompts_other_words():
    said = []
    session = DocumentSession(lambda question, top_k: ([], 0.25), said.append, Style())
    for line in ("/top", "/top x", "/help", "", "Who?", "\ud800"):
        assert session.handle(line)
    assert said[0] == "ask a question first" and said[1].startswith("/top takes a whole number")
    assert said[2].startswith("Every line you type") and len(said) == 5
    assert said[3] == "(no answer) the model finds no answer in these documents; 0.25 s" and said[4].startswith("this is not")
    assert not session.cancel() and not session.handle("/quit")


@pytest.mark.parametrize("flags, sentence", [
    (["--context", "c"], "--docs gives the texts to answer from and does not go with --context"),
    (["--json"], "--json: only for --question TEXT"),
    (["--predict", "d.json", "--out", "o"], "--predict asks what its files ask and does not go with --docs"),
    (["--rank", "magic"], "--rank: expected one of both, bm25, vectors"),
    (["--docs", "no-such-folder", "--question", "q"], "no-such-folder: --docs wants a folder"),
])
def test_impossible_options_are_refused(run, flags, sentence):
    code, out, err = run(*flags)
    assert (code, out) == (2, "") and sentence in err.splitlines()[-1]


def test_without_its_library_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    code, _, err = run("--question", QUESTION)
    assert code == 2 and err.splitlines()[-1].endswith("bm25s is not installed; get what documents need with: pip install -e '.[docs]'")


def test_the_server_answers_as_infer_does(run, tiny_folder, folder, tmp_path):
    _, out, _ = run("--question", QUESTION, "--json", "--top-k", 7)
    expected = json.loads(out)["answers"]
    flags = ["--model", tiny_folder, "--docs", folder, "--rank", "bm25"]
    with Process(tmp_path / "output", *flags) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        reply = client.post("/api/ask", json={"question": QUESTION, "top_k": 7}).json()
        assert client.get("/api/model/info").json()["documents"] == {"files": 4, "passages": 3}
        for secret in ("passages", "../a.txt"):
            assert client.post("/api/ask", json={"question": "q", "folder": secret}).status_code == 422
        assert str(folder) not in client.get("/api/model/info").text
    assert reply["seconds"] > 0
    check(reply["answers"], folder)
    for one, other in zip(reply["answers"], expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert {**one, "score": 0} == {**other, "score": 0}
    assert "bridge" not in (tmp_path / "output").read_text()


def test_a_search_has_its_turn_in_the_queue(tiny_folder, folder):
    """Its vectors may be the served model's own, which an explanation puts hooks on."""
    reader = Reader.load(tiny_folder, device="cpu", precision="fp32")
    collection, _ = open_collection(folder, "bm25", None)
    scores, found = collection.ranker.scores, []

    def scored(question):
        found.append(threading.current_thread().name)
        return scores(question)

    collection.ranker.scores = scored
    with live(reader, lanes=2, documents=Documents(collection, 2)) as (url, queue):
        client = httpx.Client(base_url=url, trust_env=False, timeout=60)
        assert client.post("/api/ask", json={"question": QUESTION}).status_code == 200
        late = client.post("/api/ask", json={"question": QUESTION, "deadline": 1e-6})
        assert late.status_code == 503 and "not ready in time" in late.json()["error"]
    assert found and all(name.startswith("answers-") for name in found)


def test_a_busy_server_does_not_even_search(tiny_folder, folder):
    gated = GatedReader(Reader.load(tiny_folder, device="cpu", precision="fp32"))
    collection, _ = open_collection(folder, "bm25", None)
    with live(gated, capacity=3, documents=Documents(collection, 2)) as (url, queue):
        client = httpx.Client(base_url=url, trust_env=False, timeout=60)
        body = {"question": QUESTION}
        assert client.post("/api/ask", json=body | {"passages": 51}).status_code == 422
        gated.gate.set()
        assert len(client.post("/api/ask", json=body | {"top_k": 2}).json()["answers"]) == 2
        assert queue.counts["answered"] == 3  # the search, and the passages that this server reads for a question
        collection.ranker = None  # a search would fail now
        assert client.post("/api/ask", json=body | {"adapter": "nobody"}).status_code == 422
        never = client.post("/api/ask", json=body | {"passages": 4})
        assert never.status_code == 422 and never.json()["error"].startswith("passages: this server takes 3 questions")
        queue.unanswered = 3
        refused = client.post("/api/ask", json=body)
        assert refused.status_code == 503 and "retry-after" in refused.headers
        queue.unanswered = 0
    with live(gated) as (url, _):
        missing = httpx.post(f"{url}/api/ask", json=body, trust_env=False)
        assert missing.status_code == 404 and "start it with --docs FOLDER" in missing.json()["error"]
