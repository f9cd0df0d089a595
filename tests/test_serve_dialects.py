"""Clients that people already have, the real ones, against the running server; and how a chat is understood."""

import httpx
import huggingface_hub
import ollama
import openai
import pytest

from common.errors import InputError
from serving.chat import find_question, in_message
from tests.live_server import live

TEXT = "The old mill of Riga was built by Ada Stone in 1807. It stands beside the river, on a hill."
QUESTION = "Who built the mill?"
CHAT = [{"role": "system", "content": TEXT}, {"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def url(adapted_reader):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, "127.0.0.1")
        with live(adapted_reader) as (url, _):
            yield url


@pytest.fixture(scope="module")
def expected(adapted_reader):
    return adapted_reader.ask(QUESTION, TEXT)[0].spans


# Hugging Face

def test_hugging_face_client(url, adapted_reader, expected):
    client = huggingface_hub.InferenceClient(model=url)
    answer = client.question_answering(question=QUESTION, context=TEXT)
    bare = adapted_reader.predict([example()], offer_null=False)
    best = next(bare).spans[0]
    assert (answer.answer, answer.start, answer.end) == (best.text, best.start, best.end)
    assert answer.score == pytest.approx(best.probability, abs=1e-4)
    several = client.question_answering(question=QUESTION, context=TEXT, top_k=3)
    assert [a.answer for a in several] == [span.text for span in expected[:3]]


def example(question=QUESTION):
    from data.examples import Example

    return Example("q", question, TEXT, None, "here")


def test_hugging_face_no_answer_is_said_on_request_only(url):
    client = huggingface_hub.InferenceClient(model=f"{url}/models/tiny:no")
    assert client.question_answering(question=QUESTION, context=TEXT).answer
    impossible = client.question_answering(question=QUESTION, context=TEXT, handle_impossible_answer=True)
    assert (impossible.answer, impossible.start, impossible.end) == ("", 0, 0)
    several = client.question_answering(question=QUESTION, context=TEXT, handle_impossible_answer=True, top_k=3)
    assert len(several) == 3 and several[0].answer == "" and several[1].answer


def test_hugging_face_parameters_that_would_not_be_heeded_are_refused(url):
    client = huggingface_hub.InferenceClient(model=url)
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError) as caught:
        client.question_answering(question=QUESTION, context=TEXT, doc_stride=3)
    assert caught.value.response.status_code == 422
    assert caught.value.response.json()["error"] == "parameters.doc_stride: there is no such field"


# Ollama

def test_ollama_lists_and_shows(url):
    client = ollama.Client(host=url)
    names = [model.model for model in client.list().models]
    assert names == ["tiny:latest", "tiny:yes", "tiny:no"]
    for name in (*names, "tiny", "bareqa"):
        shown = client.show(name)
        assert shown.details.family == "bert" and shown.modelinfo["bert.context_length"] == 131
        assert shown.capabilities == ["completion"]
    with pytest.raises(ollama.ResponseError) as caught:
        client.show("llama3")
    assert caught.value.status_code == 404 and "there are tiny, tiny:yes, tiny:no" in str(caught.value)


def test_ollama_chat(url, expected):
    client = ollama.Client(host=url)
    answer = client.chat(model="tiny", messages=CHAT)
    assert answer.message.role == "assistant" and answer.message.content == expected[0].text
    assert answer.done and answer.done_reason == "stop" and answer.total_duration > 0 and answer.model == "tiny"
    pieces = list(client.chat(model="tiny:latest", messages=CHAT, stream=True))
    assert "".join(piece.message.content for piece in pieces) == expected[0].text
    assert [piece.done for piece in pieces] == [False, True]
    assert client.chat(model="tiny:no", messages=CHAT).message.content == "(no answer)"


def test_ollama_generate(url, expected):
    client = ollama.Client(host=url)
    for options in ({"prompt": QUESTION, "system": TEXT}, {"prompt": f"{TEXT}\n\n{QUESTION}"}):
        assert client.generate(model="bareqa", **options).response == expected[0].text
        pieces = list(client.generate(model="bareqa", stream=True, **options))
        assert "".join(piece.response for piece in pieces) == expected[0].text and pieces[-1].done
    loaded = client.generate(model="tiny", prompt="")  # what `ollama run` sends first
    assert loaded.response == "" and loaded.done_reason == "load"


def test_ollama_errors_are_its_own(url):
    client = ollama.Client(host=url)
    with pytest.raises(ollama.ResponseError, match="no text to answer from") as caught:
        client.chat(model="tiny", messages=[{"role": "user", "content": QUESTION}])
    assert caught.value.status_code == 422
    with pytest.raises(ollama.ResponseError, match="no text to answer from"):
        list(client.chat(model="tiny", messages=[{"role": "user", "content": QUESTION}], stream=True))


# OpenAI

@pytest.fixture(scope="module")
def openai_client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def test_openai_models(openai_client):
    assert [model.id for model in openai_client.models.list()] == ["tiny", "tiny:yes", "tiny:no"]
    assert openai_client.models.retrieve("tiny:yes").owned_by == "bareqa"
    with pytest.raises(openai.NotFoundError, match="there is no such model"):
        openai_client.models.retrieve("gpt-4o")


def test_openai_chat(openai_client, expected):
    done = openai_client.chat.completions.create(model="tiny", messages=CHAT, temperature=0.3, max_tokens=9)
    (choice,) = done.choices
    assert choice.message.content == expected[0].text and choice.finish_reason == "stop"
    span = done.model_extra["bareqa"]
    assert TEXT[span["start"] : span["end"]] == span["answer"] == expected[0].text
    parts = [{"type": "text", "text": f"{TEXT}\n\n{QUESTION}"}]
    answer = openai_client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == expected[0].text
    assert openai_client.chat.completions.create(model="tiny:no", messages=CHAT).choices[0].message.content == "(no answer)"


def test_openai_streaming(openai_client, expected):
    chunks = list(openai_client.chat.completions.create(model="tiny", messages=CHAT, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    with openai_client.chat.completions.stream(model="tiny", messages=CHAT) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content == expected[0].text


def test_openai_errors_are_its_own(openai_client):
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        openai_client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": QUESTION}])
    assert caught.value.body["type"] == "invalid_request_error" and "no text to answer from" in caught.value.body["message"]
    with pytest.raises(openai.UnprocessableEntityError, match="n: input should be less than or equal to 1"):
        openai_client.chat.completions.create(model="tiny", messages=CHAT, n=2)
    with pytest.raises(openai.NotFoundError):
        openai_client.chat.completions.create(model="gpt-4o", messages=CHAT)


# which part of a chat is which

def user(*texts):
    return [("user", text) for text in texts]


CHATS = [
    ("system and user", [("system", "T."), *user("Q")], ("Q", "T.")),
    ("developer and user", [("developer", "T."), *user(" Q? ")], ("Q?", "T.")),
    ("two system messages", [("system", "T."), ("system", "U."), *user("Q")], ("Q", "T.\n\nU.")),
    ("text, then question", user("T.", "Q"), ("Q", "T.")),
    ("a second question", [*user("T.\n\nP?"), ("assistant", "A"), *user("Q")], ("Q", "T.")),
    ("a third question", [*user("T."), *user("P?"), ("assistant", "A"), *user("Q?")], ("Q?", "T.")),
    ("one message, a paragraph each", user("T.\n\nU.\n\nQ?"), ("Q?", "T.\n\nU.")),
    ("a paragraph each, from Windows", user("T.\r\n\r\nQ?"), ("Q?", "T.")),
    ("an empty line with spaces in it", [("system", "Be kind."), *user("T.\n \nU.\n\t\nQ?")], ("Q?", "T.\n \nU.")),
    ("one message, a line each", user("T.\nU.\nQ"), ("Q", "T.\nU.")),
    ("one message beats the system's words", [("system", "Be kind."), *user("T.\n\nQ?")], ("Q?", "T.")),
    ("Persian question mark", [("system", "Be kind."), *user("م.\n\nس؟")], ("س؟", "م.")),
    ("labels", [("system", "Be kind."), *user("Context: T.\nU.\nQuestion: Q")], ("Q", "T.\nU.")),
    ("labels the other way round", user("question: Q\n\nPASSAGE:\nT.\n\nU."), ("Q", "T.\n\nU.")),
    ("a label again is text", user("Text: T.\nText: U.\nQuestion: Q"), ("Q", "T.\nText: U.")),
    ("labels in the first message", [*user("Document: T.\nQuestion: P?"), ("assistant", "A"), *user("Q")], ("Q", "T.")),
    ("a label for the question alone", [("system", "T."), *user("Question: Q")], ("Q", "T.")),
    ("empty messages do not count", [("system", " "), *user("T.", " ", "Q")], ("Q", "T.")),
    ("what the assistant said is no text", [("assistant", "A."), *user("T.", "Q")], ("Q", "T.")),
]


def test_the_table_of_chats_is_whole():
    assert len({name for name, _, _ in CHATS}) == 19


@pytest.mark.parametrize("messages, found", [chat[1:] for chat in CHATS], ids=[chat[0] for chat in CHATS])
def test_a_chat_is_understood(messages, found):
    question, context = find_question(messages)
    assert (question, context) == found
    number, start, end = in_message(messages, question, context, 0, 2)  # "T." is in the first of the messages it is made of
    assert messages[number][1][start:end] == context[:2]


def test_words_of_two_messages_are_in_none_of_them():
    messages = [("system", "Be."), ("user", " "), ("system", "Ada did."), *user("Who?")]
    question, context = find_question(messages)
    assert context == "Be.\n\nAda did."
    places = [in_message(messages, question, context, start, start + 3) for start in (0, 5, 1)]
    assert places == [(0, 0, 3), (2, 0, 3), None]


@pytest.mark.parametrize("messages, number, start", [
    (user("Question: Who is Ada?\nContext: Ada"), 0, 31),
    (user("Context: Ada\nQuestion: Who is Ada?"), 0, 9),
    (user("Ada, who\n\nWho is Ada, who?"), 0, 0),
    ([("system", "Ada"), *user("Who is Ada?")], 0, 0),
    ([*user("Ada"), ("assistant", "Ada?"), *user("Who is Ada?")], 0, 0),
])
def test_words_that_the_question_has_too_are_placed_in_the_text(messages, number, start):
    question, context = find_question(messages)
    assert in_message(messages, question, context, 0, 3) == (number, start, start + 3)


def test_offsets_are_in_the_message(url):
    said = "Context:  \r\n\tThe mill\r\nof Arlen was built by\rJohn\r\n Smith in 1807.\r\nQuestion: Who built it?"
    both = [{"type": "text", "text": TEXT}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": QUESTION}]
    for messages, wanted in (
        ([{"role": "USER", "content": said}], 0), ([{"role": "user", "content": said.replace("Context:  ", "")[:-27] + "\nWho"}], 0),
        ([{"role": "assistant", "content": None}, {"role": "System", "content": TEXT}, {"role": "user", "content": QUESTION}], 1),
        ([{"role": "user", "content": both}], 0),
    ):
        reply = httpx.post(f"{url}/v1/chat/completions", json={"model": "tiny:yes", "messages": messages}, trust_env=False, timeout=60)
        assert reply.status_code == 200, reply.text
        found, content = reply.json()["bareqa"], messages[wanted]["content"]
        content = content if isinstance(content, str) else f"{TEXT}\n\n{QUESTION}"
        assert found["message"] == wanted and content[found["start"] : found["end"]] == found["answer"] != ""
        assert all(content[one["start"] : one["end"]] == one["text"] for one in found["runners_up"])


def test_ollama_passes_over_what_means_nothing_here(url):
    messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, {"role": "user", "content": f"{TEXT}\n\n{QUESTION}"}]
    body = {"model": "tiny:yes", "messages": messages, "stream": None}
    reply = httpx.post(f"{url}/api/chat", json=body, trust_env=False, timeout=60)
    assert reply.status_code == 200 and len(reply.text.splitlines()) == 2


@pytest.mark.parametrize("messages, sentence", [
    ([], "there is no user message"),
    ([("system", "T.")], "there is no user message"),
    (user(" "), "there is no user message"),
    (user("Q?"), "there is a question but no text to answer from"),
    (user("Question: Who? When?"), "no text to answer from"),
])
def test_a_chat_without_both_is_refused(messages, sentence):
    with pytest.raises(InputError, match=sentence):
        find_question(messages)
