"""Named data sets: the table, the cache, the checks, and what is said when a file cannot be had."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import InputError
from data import download
from data.download import RemoteFile, cache_folder, count_questions, fetch
from tests.http_server import file_reply, serve
from tests.tiny_dataset import DEV, TRAIN, assert_whole, cache, get, honest, ranges, scripted, tiny_set

assert cache and tiny_set  # fixtures
pytestmark = pytest.mark.usefixtures("tiny_set")
ROOT = Path(__file__).resolve().parent.parent


def test_a_plain_download_and_a_second_call_without_requests(cache):
    with serve(scripted(honest)) as server:
        assert_whole(get(server, cache), cache)
        assert server.paths() == ["/train.bin", "/dev.bin"]
        assert_whole(get(server, cache), cache)
        assert len(server.requests) == 2


def test_a_dead_network_is_one_sentence_that_names_both_files_and_where_to_put_them(cache):
    with pytest.raises(InputError) as caught:  # nothing listens on port 9; no base_url
        fetch("tiny", cache, timeout_seconds=2)
    folder = cache / "tiny"
    assert str(caught.value) == (
        "cannot download http://127.0.0.1:9/train.bin: Connection refused; on a machine without network "
        "put train.bin (from http://127.0.0.1:9/train.bin) and dev.bin (from http://127.0.0.1:9/dev.bin) "
        f"into {folder}"
    )


def test_files_put_there_by_hand_are_taken_without_network_even_read_only(cache):
    folder = cache / "tiny"
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(TRAIN)
    with pytest.raises(InputError) as caught:
        fetch("tiny", cache)
    assert "put dev.bin (from http://127.0.0.1:9/dev.bin) into" in str(caught.value)
    assert "train.bin" not in str(caught.value)
    (folder / "dev.bin").write_bytes(DEV)
    before = sorted(folder.iterdir())
    assert_whole(fetch("tiny", cache), cache)
    assert sorted(folder.iterdir()) == before


def test_a_damaged_file_in_the_cache_is_replaced_or_named(cache):
    folder = cache / "tiny"
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(TRAIN[:-1])
    (folder / "dev.bin").write_bytes(DEV)
    with pytest.raises(InputError) as caught:
        fetch("tiny", cache)
    fault = f"(and the train.bin in {folder} has {len(TRAIN) - 1:,} bytes instead of {len(TRAIN):,})"
    assert fault in str(caught.value)
    with serve(scripted(honest)) as server:
        assert_whole(get(server, cache), cache)


def test_two_downloads_at_once_make_one(cache):
    def slow_and_cut(request, reply):
        return replace(reply, cut_after=50_000)

    results, errors = [], []

    def work(server):
        try:
            results.append(get(server, cache))
        except BaseException as error:  # a thread's failure must fail the test
            errors.append(error)

    with serve(scripted(slow_and_cut, slow_and_cut, honest)) as server:
        threads = [threading.Thread(target=work, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors and len(results) == 4
        for paths in results:
            assert_whole(paths, cache)
        assert ranges(server) == [None, "bytes=50000-", "bytes=100000-"]
        assert len(server.paths()) == 4  # and one for dev.bin


def test_a_cache_that_is_a_file_is_refused(tmp_path):
    blocked = tmp_path / "cache"
    blocked.write_text("a file")
    with pytest.raises(InputError, match="cannot be used as the folder for downloads .*BAREQA_CACHE"):
        fetch("tiny", blocked)


def corpus(answered, unanswered):
    questions = [{"answers": [{"text": "a", "answer_start": 0}]}] * answered + [{"answers": []}] * unanswered
    return {"data": [{"paragraphs": [{"qas": questions[:2]}, {"qas": questions[2:]}]}, {"paragraphs": []}]}


def test_counting_walks_the_whole_document():
    assert count_questions(corpus(5, 3)) == (8, 3)
    assert count_questions({"data": []}) == (0, 0)


COUNTED = {
    "right": (corpus(4, 3), None),
    "too few": (corpus(3, 3), "holds 6 questions instead of 7"),
    "other mix": (corpus(5, 2), "holds 2 questions without answers instead of 3"),
    "another kind": ({"rows": []}, "is JSON of another kind than a data set"),
    "a list": ([1, 2], "is JSON of another kind than a data set"),
    "no JSON": (None, "is not JSON"),
}


@pytest.mark.parametrize("case", COUNTED)
def test_a_file_without_checksum_is_checked_by_its_counts(cache, monkeypatch, case):
    assert len(COUNTED) == 6
    document, fault = COUNTED[case]
    body = b"<html>log in</html>" if document is None else json.dumps(document).encode()
    files = (RemoteFile("counted.json", "-", questions=7, unanswerable=3), RemoteFile("free.json", "-"))
    monkeypatch.setitem(download.DATASETS, "counted", files)
    with serve(lambda request: file_reply(request, body)) as server:
        if fault is None:
            train, _ = fetch("counted", cache, base_url=server.url + "/")
            assert train.read_bytes() == body
        else:
            with pytest.raises(InputError, match=f"what arrived {fault}, also after starting over"):
                fetch("counted", cache, base_url=server.url)
            assert not (cache / "counted" / "counted.json").exists()


def test_an_unknown_name_is_answered_with_the_nearest_and_all(cache):
    with pytest.raises(InputError) as caught:
        fetch("SQuAD-v2", cache)
    assert str(caught.value) == (
        "there is no data set named 'SQuAD-v2' (did you mean squad_v2?); "
        f"the named ones are {', '.join(download.NAMES)}"
    )
    with pytest.raises(InputError) as caught:
        fetch("zzz", cache)
    assert "did you mean" not in str(caught.value)


def test_the_sample_comes_with_the_project(cache, tmp_path, monkeypatch):
    (tmp_path / "train.json").write_text("{}")
    monkeypatch.setattr(download, "SAMPLE_FOLDER", tmp_path)
    with pytest.raises(InputError, match="dev.json: the sample data set is part of the project"):
        fetch("sample", cache)
    (tmp_path / "dev.json").write_text("{}")
    assert fetch("sample", cache) == (tmp_path / "train.json", tmp_path / "dev.json")
    assert not cache.exists()


def test_the_table_of_named_data_sets():
    assert download.NAMES == ("squad", "squad_v2", "persianqa", "sample")
    for name in ("squad", "squad_v2", "persianqa"):
        for file in download.DATASETS[name]:
            assert file.url.startswith("https://") and file.url.endswith(f"/{file.name}")
            assert file.md5 is not None and len(file.md5) == 32 or file.questions is not None
    train, test = download.DATASETS["persianqa"]
    assert (train.questions, test.questions, test.unanswerable) == (9008, 930, 279)
    assert "/0026e13caabfe37fe37f6e116b163182bc36286d/" in train.url


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder({"BAREQA_CACHE": "/there", "XDG_CACHE_HOME": "/xdg"}) == Path("/there")
    assert cache_folder({"BAREQA_CACHE": "~/mine"}) == tmp_path / "mine"
    assert cache_folder({"BAREQA_CACHE": "", "XDG_CACHE_HOME": "/xdg"}) == Path("/xdg/bareqa")
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == tmp_path / ".cache" / "bareqa"
    assert cache_folder({}) == tmp_path / ".cache" / "bareqa"
    monkeypatch.setattr(sys, "platform", "win32")
    assert cache_folder({"LOCALAPPDATA": "/local"}) == Path("/local/bareqa")


def test_the_module_needs_no_torch():
    code = "import sys, data.download; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
