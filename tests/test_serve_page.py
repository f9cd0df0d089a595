"""The page at /, in a headless Chromium: what a person sees, types and is kept from."""

import json
import re

import pytest

from tests.browser import browser
from tests.live_server import GatedReader, live

TEXT = "The old mill of Riga was built by Ada Stone in 1807.\nIt stands beside the river, on a hill with three oaks."
PERSIAN = "BERT می‌گوید: آسیاب کهنه را آدا استون در سال ۱۸۰۷ ساخت.\nاین آسیاب کنار رود است."
WAIT = 30_000  # ms


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def url(adapted_reader):
    with live(adapted_reader) as (url, _):
        yield url


class Watched:
    """A page that remembers what it asked for and complained of."""

    def __init__(self, chromium, url, **options):
        self.requests, self.complaints = [], []
        self.page = chromium.new_page(**options)
        self.page.set_default_timeout(WAIT)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))
        self.page.goto(url)

    def ask(self, question, text=None):
        """Give a text and ask, as people do; returns when the answer is there."""
        if text is not None:
            if self.page.is_visible("#edit"):
                self.page.click("#edit")
            self.page.fill("#source", text)
        before = self.page.evaluate("asked.length")
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        self.page.wait_for_function("before => asked.length > before", arg=before)

    def marks(self):
        return self.page.eval_on_selector_all("#text mark", "marks => marks.map(m => [m.className, m.textContent])")


@pytest.fixture
def watched(chromium, url):
    watched = Watched(chromium, url)
    yield watched
    watched.page.close()
    assert watched.complaints == []
    assert all(request.startswith(url) or request == "data:," for request in watched.requests)


@pytest.mark.parametrize("text", [TEXT, "😀 𝔐 " + TEXT, PERSIAN, TEXT * 9], ids=["plain", "astral", "Persian", "windows"])
def test_the_answer_is_marked_in_place(watched, adapted_reader, text):
    watched.ask("Who built the mill?", text)
    (prediction,) = adapted_reader.predict([example("Who built the mill?", text)])
    best, *others = prediction.spans[:5]
    assert watched.page.text_content("#text") == text
    assert "".join(piece for name, piece in watched.marks() if "best" in name) == best.text
    covered = {k for span in prediction.spans[:5] for k in range(span.start, span.end)}
    assert "".join(piece for _, piece in watched.marks()) == "".join(text[k] for k in sorted(covered))
    rows = watched.page.eval_on_selector_all("#answer li", "rows => rows.map(r => [...r.querySelectorAll('span')].map(s => s.textContent))")
    assert rows == [[f"{100 * s.probability:.1f} %", s.text, f"window {s.window + 1}"] for s in (best, *others)]
    facts = watched.page.text_content("#answer p.quiet")
    assert re.fullmatch(rf"\d+\.\d %, no answer: \d+\.\d %, \d+\.\d\d s, {prediction.windows} windows?", facts)


def example(question, text):
    from data.examples import Example

    return Example("q", question, text, None, "here")


def test_why_is_saved_as_a_page(watched, adapted_reader, tmp_path):
    watched.ask("Who built the mill?", TEXT)
    with watched.page.expect_download() as download:
        watched.page.click("text=Why?")
    assert download.value.suggested_filename == "why.html"
    download.value.save_as(tmp_path / "why.html")
    (prediction,) = adapted_reader.predict([example("Who built the mill?", TEXT)])
    assert f'"best": {{"text": {json.dumps(prediction.spans[0].text)}, ' in (tmp_path / "why.html").read_text(encoding="utf-8")
    watched.ask("Who built the mill?", TEXT * 200)
    assert watched.page.locator("text=Why?").count() == 0  # more than the server explains


def test_runners_up_are_fainter(watched):
    watched.ask("Who built the mill?", TEXT)
    strengths = watched.page.eval_on_selector_all(
        "#text mark", "marks => marks.map(m => [+m.dataset.rank, +m.style.getPropertyValue('--strength')])"
    )
    by_rank = dict(strengths)
    assert by_rank[0] == 1 and len(by_rank) >= 2
    ordered = [by_rank[rank] for rank in sorted(by_rank)]
    assert ordered == sorted(ordered, reverse=True) and ordered[1] <= 0.5


def test_text_is_data(watched):
    text = "<script>alert(1)</script> <img src=x onerror=alert(2)> The mill </textarea> was built by <b>Ada</b> &amp; Co."
    watched.ask("<script>alert(3)</script> Who?", text)
    assert watched.page.text_content("#text") == text
    assert watched.page.locator("#text script, #text img, #text b, #answer b, #asked script").count() == 0
    assert watched.page.title() == "BareQA"


def test_several_questions_by_keyboard_alone(watched):
    page = watched.page
    page.keyboard.insert_text(TEXT)  # the text has the focus when the page opens
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.id") != "question":
        page.keyboard.press("Tab")
    for number, question in enumerate(("Who built the mill?", "When?", "How many oaks?"), 1):
        page.keyboard.type(question)  # the last question is selected, so typing replaces it
        page.keyboard.press("Enter")
        page.wait_for_function("number => asked.length === number", arg=number)
    rows = page.eval_on_selector_all("#asked li .words", "rows => rows.map(row => row.textContent)")
    assert rows == ["How many oaks?", "When?", "Who built the mill?"]
    first = page.evaluate("asked[0].reply.answer")
    page.focus("#asked li:last-child button")
    page.keyboard.press("Enter")
    assert page.text_content("#answer .said") == first
    page.keyboard.press("t")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"


def test_persian_is_laid_out_right_to_left(watched):
    watched.ask("آسیاب را که ساخت؟", PERSIAN)
    page = watched.page
    assert page.get_attribute("#text", "dir") == page.get_attribute("#question", "dir") == "rtl"
    box = page.evaluate("""() => {
        const range = document.createRange(), walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
        range.setStart(walker.nextNode(), 0); range.collapse(true);
        return [range.getBoundingClientRect().x, text.getBoundingClientRect().x, text.clientWidth];
    }""")
    assert box[0] > box[1] + box[2] / 2  # the text begins at the right
    watched.ask("Who?", TEXT)
    assert page.get_attribute("#text", "dir") == page.get_attribute("#question", "dir") == "ltr"


def test_an_old_answer_brings_its_text_back(watched):
    watched.ask("Who built the mill?", TEXT)
    watched.ask("Who?", "Another text, about Bo.")
    watched.page.click("#asked li:last-child button")
    assert watched.page.text_content("#text") == TEXT
    watched.ask("When?")
    assert watched.page.evaluate("asked[2].context") == TEXT


@pytest.mark.parametrize("name, content, status", [
    ("mill.txt", TEXT.encode(), "mill.txt"), ("MILL.MD", TEXT.encode(), "MILL.MD"),
    ("mill.txt", b"\xff\xfe\xfa", "mill.txt is not UTF-8 text."), ("mill.pdf", b"%PDF", "Only .txt and .md files can be opened here."),
])
def test_a_file_can_be_dropped(watched, name, content, status):
    watched.page.evaluate(
        """([name, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        [name, list(content)],
    )
    watched.page.wait_for_function("status => document.getElementById('status').textContent === status", arg=status)
    assert watched.page.input_value("#source") == (TEXT if status == name else "")


def test_a_file_can_be_chosen(watched):
    watched.page.set_input_files("#file", {"name": "a.md", "mimeType": "text/markdown", "buffer": b"# Mill\n\nOld."})
    watched.page.wait_for_function("() => document.getElementById('source').value === '# Mill\\n\\nOld.'")


def test_what_is_missing_is_said(watched):
    watched.page.click("#ask")
    assert watched.page.text_content("#status") == "Type a question first."
    watched.page.fill("#question", "Who?")
    watched.page.click("#ask")
    assert watched.page.text_content("#status").startswith("There is no text yet")


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_sticks_out_and_everything_has_a_name(watched, width):
    watched.page.set_viewport_size({"width": width, "height": 640})
    watched.ask("Who built the mill?", TEXT + " " + "x" * 400)
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = watched.page.evaluate("""() => [...document.querySelectorAll('input:not([hidden]), textarea, button')].filter(
        (e) => !(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.textContent.trim()).length""")
    assert unnamed == 0


def test_light_and_dark(chromium, url):
    colours = {}
    for scheme in ("light", "dark"):
        watched = Watched(chromium, url, color_scheme=scheme)
        style = "() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        colours[scheme] = [sum(map(int, re.findall(r"\d+", c))) for c in watched.page.evaluate(style)]
        watched.page.close()
    paper, ink = colours["light"]
    dark_paper, dark_ink = colours["dark"]
    assert paper > 700 and ink < 100 and dark_paper < 100 and dark_ink > 600


def test_no_answer_is_shown_with_its_share(chromium, adapted_reader):
    adapted_reader.set_adapter("no")
    try:
        with live(adapted_reader) as (url, _):
            watched = Watched(chromium, url)
            watched.ask("Who built the mill?", TEXT)
            assert watched.page.text_content("#answer .said") == "No answer in this text"
            assert re.search(r"no answer: \d+\.\d %", watched.page.text_content("#answer p.quiet"))
            assert "best" not in str(watched.marks()) and watched.marks()
            assert watched.page.text_content("#model") == "tiny, no"
            watched.page.close()
    finally:
        adapted_reader.set_adapter("yes")


def test_a_token_is_asked_for(chromium, adapted_reader):
    with live(adapted_reader, token="s3cret") as (url, _):
        watched = Watched(chromium, url)
        watched.page.wait_for_selector("#token-form:not([hidden])")
        watched.page.fill("#token", "s3cret")
        watched.page.press("#token", "Enter")
        watched.page.wait_for_function("() => document.getElementById('model').textContent === 'tiny, yes'")
        watched.ask("Who built the mill?", TEXT)
        watched.page.close()


def test_refusals_are_shown_and_escape_cancels(chromium, adapted_reader):
    gated = GatedReader(adapted_reader)
    try:
        with live(gated, capacity=1) as (url, queue):
            one, two = Watched(chromium, url), Watched(chromium, url)
            for watched in (one, two):
                watched.page.fill("#source", TEXT)
                watched.page.fill("#question", "Who?")
            one.page.press("#question", "Enter")
            assert gated.begun.acquire(timeout=60)
            two.page.press("#question", "Enter")
            two.page.wait_for_selector("#status.bad")
            sentence = "1 question waiting already; try again later (again in 1 s)"
            assert two.page.text_content("#status") == sentence
            one.page.press("#question", "Escape")
            one.page.wait_for_function("() => document.getElementById('status').textContent === 'cancelled'")
            for _ in range(500):
                if queue.counts["cancelled"]:
                    break
                one.page.wait_for_timeout(20)
            assert queue.counts["cancelled"] == 1
            gated.gate.set()
            two.ask("Who built it?")
            one.page.close()
            two.page.close()
    finally:
        gated.gate.set()


def test_without_a_browser_the_reason_is_told(monkeypatch):
    monkeypatch.setattr("tests.browser.executable", lambda: None)
    with pytest.raises(pytest.skip.Exception, match="browser tier: needs one of chromium"):
        with browser():
            raise AssertionError("there is none")
