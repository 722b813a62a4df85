"""The two pages: what is here, and the API in words. Plain HTML without a script, so they work offline and anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;"
    "padding:0 1rem}code,pre{font-family:ui-monospace,monospace;font-size:.9em}pre{overflow-x:auto;padding:.6rem;"
    "border:1px solid #8886}table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;"
    "padding:.2rem .8rem .2rem 0}h2{margin-top:2rem;border-top:1px solid #8886;padding-top:1rem}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
METHODS = ("get", "post", "put", "patch", "delete")


def front_page() -> str:
    """What is here."""
    return _page(
        "harmonywatch console",
        "<h1>harmonywatch console</h1>"
        "<p>Watchers report once a minute what they see and hear. A harmonyscore that a rule calls bad becomes an alert, "
        "alerts of one citizen become an incident, and a human decides what to do about it. This is the door for those "
        "humans.</p>"
        "<p>There is an API with a live stream of alerts and incidents: <a href='/api/docs'>what it offers</a>, "
        "<a href='/api/openapi.json'>the same for programs</a>. It asks for the key of an officer.</p>"
        "<p>How this service is: <a href='/healthz'>alive</a>, <a href='/readyz'>ready</a>, "
        "<a href='/metrics'>its figures</a>.</p>"
        "<p>The brief behind all this is satire and the data here is made up.</p>",
    )


def docs_page(openapi: Mapping[str, Any]) -> str:
    """An OpenAPI document as a page to read."""
    info = openapi["info"]
    parts = [f"<h1>{escape(info['title'])}</h1><p>{escape(info.get('description', ''))}</p>"]
    for path, operations in openapi["paths"].items():
        for method in METHODS:
            if method in operations:
                parts += _operation(path, method, operations[method])
    return _page(info["title"], "".join(parts))


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2><p><b>{escape(operation.get('summary', ''))}</b></p>"
    for paragraph in operation.get("description", "").split("\n\n"):
        yield f"<p>{escape(paragraph)}</p>"
    if operation.get("security"):
        yield "<p>Needs <code>Authorization: Bearer &lt;officer key&gt;</code>.</p>"
    rows = [
        f"<tr><td><code>{escape(each['name'])}</code></td><td>{escape(each['in'])}"
        f"{', required' if each.get('required') else ''}</td><td>{escape(each.get('description', ''))}</td></tr>"
        for each in operation.get("parameters", [])
    ]
    if rows:
        yield f"<table><tr><th>Parameter</th><th>In</th><th>Meaning</th></tr>{''.join(rows)}</table>"
    answers = [
        f"<tr><td><code>{escape(status)}</code></td><td>{escape(', '.join(each.get('content', {})))}</td>"
        f"<td>{escape(each.get('description', ''))}</td></tr>"
        for status, each in operation.get("responses", {}).items()
    ]
    yield f"<table><tr><th>Answer</th><th>Type</th><th>Meaning</th></tr>{''.join(answers)}</table>"


def _page(title: str, body: str) -> str:
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width,initial-scale=1'><style>{STYLE}</style></head>"
        f"<body>{body}</body></html>"
    )
