"""`infer.py --xray`: one page, nothing from outside, all numbers those of the functions; opened in a browser."""

import base64
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

import infer
from inside.attention import attention_maps
from inside.case import Case
from inside.explain import explain
from inside.lens import lens
from inside.page import page
from inside.saliency import saliency
from answering.reader import Reader
from tests.copy_model import CONTEXT, QUESTION, copy_reader

TEXT = "این برج </script><img src=x onerror=alert(1)> در سال ۱۸۸۹ <!-- ساخته شد \u2028 و نام آن می\u200cماند. 🙂 آری."
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return copy_reader(tmp_path_factory.mktemp("copy"), null_threshold=0.5)


def value_in(html):
    """The JSON value that a page holds."""
    return json.loads(re.search(r"^const X = (.*);$", html, re.M)[1])


def test_the_value_is_what_the_functions_compute(reader):
    case = Case(reader, QUESTION, CONTEXT)
    value = json.loads(json.dumps(explain(case), allow_nan=False))
    assert value["answer"] == {"text": "rome", "start": 19, "end": 23} and value["windows"][0]["text"] == "rome"
    assert value["lens"]["appears"] == 2 and value["lens"]["beaten"] == "lima"
    assert value["lens"]["layers"][3]["start"] == pytest.approx(lens(case).layers[3].start_logits.tolist(), abs=1e-4)
    assert value["saliency"]["attributions"] == pytest.approx(saliency(case).attributions.tolist(), abs=1e-4)
    assert value["null"]["threshold"] == 0.5 and value["null"]["odds"] == case.prediction.null_odds
    T, maps = len(case.pieces(0)), attention_maps(case)
    assert value["attention"]["heads"] == [3, 3, 3] and value["attention"]["size"] == T
    data = np.frombuffer(zlib.decompress(base64.b64decode(value["attention"]["data"])), np.uint8)
    assert data.reshape(9, T, T)[5] == pytest.approx(255 * maps[1][2].numpy(), abs=0.5001)
    assert [part["name"] for part in value["parts"]] == ["embeddings", "block 0", "block 1", "block 2", "head"]
    assert sum(part["parameters"] for part in value["parts"]) == sum(p.numel() for p in case.model.parameters())
    assert all(part["seconds"] > 0 for part in value["parts"])
    assert not any(module._forward_hooks for module in case.model.modules())


@pytest.fixture(scope="module")
def persian_page(tiny_folder):
    reader = Reader.load(tiny_folder, device="cpu", precision="fp32")
    return page(explain(Case(reader, "کی؟ </script>", TEXT), steps=3))


class Tags(HTMLParser):
    """Collects tags and what could lead outside."""

    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "action", "data")]


def test_a_page_is_whole_and_no_text_becomes_markup(persian_page):
    tags = Tags()
    tags.feed(persian_page)
    assert tags.tags.count("script") == 1 and "img" not in tags.tags and tags.links == []
    assert "http" not in re.sub(r"http-equiv", "", persian_page) and "url(" not in persian_page
    value = value_in(persian_page)
    assert value["context"] == TEXT and value["question"] == "کی؟ </script>"
    assert "default-src 'none'" in persian_page and "prefers-color-scheme: dark" in persian_page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page in")
def test_a_browser_shows_it(persian_page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(persian_page, encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=20000", "--dump-dom", path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    dom = done.stdout
    assert 'data-ready="yes"' in dom, done.stderr[-2000:]
    assert '<div class="text" id="text" dir="rtl">' in dom
    shown = re.search(r'<div class="text" id="text" dir="rtl">(.*?)</div>', dom, re.S)[1]
    text = re.sub("<[^>]*>", "", shown).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert text == TEXT
    assert dom.count('aria-label="head ') == 15 and dom.count('aria-pressed="true"') == 1


def test_the_command_writes_it(tiny_folder, tmp_path, capsys):
    out = tmp_path / "why.html"
    asked = ["--model", str(tiny_folder), "--question", "Who?", "--context", "Ada was here."]
    assert infer.main([*asked, "--xray", str(out)]) == 0
    captured = capsys.readouterr()
    assert f"why this answer is shown in {out}" in captured.err
    assert value_in(out.read_text(encoding="utf-8"))["best"]["text"] in "Ada was here."
    assert infer.main(["--model", str(tiny_folder), "--xray", str(out)]) == 2
    assert "--xray: only for --question TEXT" in capsys.readouterr().err
    assert infer.main([*asked[:-1], " ", "--xray", str(tmp_path / "none.html")]) == 2
    assert capsys.readouterr().err.endswith("infer.py: the context is empty\n")
    assert infer.main([*asked, "--xray", str(tmp_path)]) == 2
    assert "it is a folder" in capsys.readouterr().err and not (tmp_path / "none.html").exists()
