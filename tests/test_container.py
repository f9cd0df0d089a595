"""Dockerfile and compose.yaml, as far as that can be checked without Docker: what they name exists and fits together."""

import ast
import configparser
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import yaml

from common.options import parse
from serving.native import native_routes
from serving.options import SERVE_OPTIONS

ROOT = Path(__file__).parents[1]
IGNORED = (ROOT / ".dockerignore").read_text().split()


def instructions():
    """[(name, rest)] of the Dockerfile; a line that ends in a backslash goes on in the next one."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().split("\n") if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in "\n".join(lines).replace("\\\n", " ").split("\n")]


def values(name):
    return [rest for found, rest in instructions() if found == name]


def copied():
    """Everything that COPY names, with the build argument at its default."""
    (argument,) = values("ARG")
    name, default = argument.split("=")
    for rest in values("COPY"):
        *sources, target = rest.replace(f"${{{name}}}", default).removeprefix("--chown=bareqa ").split()
        assert len(sources) == 1 or target.endswith("/")
        yield from sources


def test_what_is_copied_exists_and_is_not_ignored():
    sources = list(copied())
    assert len(sources) > 15
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not any(fnmatch(source, pattern) for pattern in IGNORED), source
    assert not fnmatch("runs/mine/model", "runs/*/checkpoints") and "runs/*/checkpoints" in IGNORED  # models can be baked in


def test_the_whole_installation_is_copied():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    sources = set(copied())
    assert set(config["options"]["packages"].split()) <= sources
    assert {f"{module}.py" for module in config["options"]["py_modules"].split()} <= sources
    assert {"setup.cfg", "pyproject.toml", "constraints.txt"} <= sources
    extras = re.findall(r"\.\[([\w,]+)\]", " ".join(values("RUN")))
    assert extras and {one for group in extras for one in group.split(",")} <= set(config["options.extras_require"])
    assert "serve" in extras[0].split(",")


def test_the_command_is_one_of_ours():
    (entry,), (command,) = values("ENTRYPOINT"), values("CMD")
    python, program, *flags = json.loads(entry)
    assert python == "python" and (ROOT / program).is_file() and program == "serve.py"
    options = parse(program, "", SERVE_OPTIONS, [*flags, *json.loads(command)])
    assert str(options.model) == "/model" and options.host == "0.0.0.0"
    assert values("EXPOSE") == [str(options.port)]


def test_nobody_runs_it_as_root():
    names = [name for name, _ in instructions()]
    (user,) = values("USER")
    assert f"useradd --create-home --uid 10001 {user}" in values("RUN")
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :]
    (model,) = (rest for rest in values("COPY") if rest.endswith("/model/"))
    assert f"--chown={user} " in model and any("chmod -R a+rX /app" in rest for rest in values("RUN"))  # and can read


def test_the_health_check_asks_what_there_is():
    (check,) = values("HEALTHCHECK")
    python, flag, code = json.loads(check[check.index("CMD") + 3 :])
    assert (python, flag) == ("python", "-c")
    ast.parse(code)
    port, path = re.search(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", code).groups()
    assert [port] == values("EXPOSE")
    service = SimpleNamespace(reader=SimpleNamespace(model=None))
    assert path in [route.path for route in native_routes(service, None).routes]


def test_compose_starts_that_image_for_this_machine_alone():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    (service,) = compose["services"].values()
    assert (ROOT / service["build"] / "Dockerfile").is_file()
    (port,) = service["ports"]
    assert port == f"127.0.0.1:5000:{values('EXPOSE')[0]}"
    (volume,) = service["volumes"]
    default, target, mode = re.fullmatch(r"\$\{MODEL:-(\S+)\}:(/\w+):(ro)", volume).groups()
    assert target == json.loads(values("CMD")[0])[1] and mode == "ro"
    assert (ROOT / default).is_dir()  # the adapter that ships
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["init"] is True
    options = parse("serve.py", "", SERVE_OPTIONS, [])
    assert int(service["stop_grace_period"].rstrip("s")) >= options.deadline + 5
