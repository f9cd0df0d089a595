"""/docs: the OpenAPI description as one plain page. The usual viewers load themselves from another site."""

import base64
import hashlib
import json
import re
from html import escape

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark; }
pre, code { font: 14px/1.4 ui-monospace, monospace; } pre { overflow-x: auto; padding: .6rem; border: 1px solid #8886; }
h2 { border-top: 1px solid #8886; padding-top: 1rem; } td { padding-right: 1rem; vertical-align: top; }
"""


def page_policy(page):
    """The Content-Security-Policy of a page: its own inline script and style, this server, and nothing else."""

    def hashes(tag):
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in contents)
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def manual(description):
    """HTML for an OpenAPI 3.1 description."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(description['info']['title'])}: API</title>",
        "<meta name=viewport content='width=device-width'>", f"<style>{STYLE}</style>",
        f"<h1>{escape(description['info']['title'])} {escape(description['info']['version'])}</h1>",
        f"<p>{escape(description['info'].get('description', ''))} The same for programs: ",
        "<a href=/openapi.json>/openapi.json</a>.",
    ]
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts += operation_parts(path, method, operation)
    parts.append("<h2>Shapes</h2>")
    for name, schema in description.get("components", {}).get("schemas", {}).items():
        shown = json.dumps(schema, indent=2, ensure_ascii=False)
        parts.append(f"<h3 id='{escape(name)}'>{escape(name)}</h3><pre>{escape(shown)}</pre>")
    return "\n".join(parts)


def operation_parts(path, method, operation):
    """What to say of one method of a path: what it does, takes and gives."""
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
    yield f"<p>{escape(operation.get('description') or operation.get('summary', ''))}</p><table>"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body:
        yield f"<tr><td>takes<td>{links(body)}"
    for status, response in operation.get("responses", {}).items():
        schema = response.get("content", {}).get("application/json", {}).get("schema")
        yield f"<tr><td>{escape(status)}<td>{escape(response['description'])} {links(schema)}"
    yield "</table>"


def links(schema):
    """Links to the shapes that a schema refers to."""
    names = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema))
    return " or ".join(f"<a href='#{name}'>{name}</a>" for name in names)
