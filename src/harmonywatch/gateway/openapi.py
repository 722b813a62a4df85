"""What the door says about itself: its OpenAPI document and one small page. Static, made once at the start. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from harmonywatch.report.problem import MEDIA_TYPE, problem_schema
from harmonywatch.report.words import REFUSAL_CODES

API_VERSION = "1"
"""Of the door, as in its paths; not the product's."""

_PROBLEM_SCHEMA = problem_schema(
    f"stable; of a refused report one of {', '.join(REFUSAL_CODES)}",
    pointer={"type": "string", "description": "RFC 6901, to the member at fault"},
    reject_id={"type": "string", "description": "under which the refused bytes are kept"},
)

_ACCEPTED_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["report_id", "status"],
    "properties": {"report_id": {"type": "string"}, "status": {"const": "accepted"}},
}

_TALLY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["accepted", "rejected"],
    "properties": {
        "accepted": {"type": "integer", "minimum": 0},
        "rejected": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["line", "pointer", "reason", "code"],
                "properties": {
                    "line": {"type": "integer", "minimum": 1},
                    "pointer": {"type": "string"},
                    "reason": {"type": "string"},
                    "code": {"enum": list(REFUSAL_CODES)},
                },
            },
        },
    },
}

_PROBLEMS = {
    400: "not JSON, not HTTP, or a damaged Content-Encoding",
    401: "no key, or an unknown one",
    403: "the key may not do this",
    408: "the request did not arrive whole in time",
    413: "over a limit of size",
    415: "a Content-Type or Content-Encoding that is not taken here",
    417: "an expectation other than 100-continue",
    422: "the report is not what the schema says",
    429: "too many requests at once on a connection",
    431: "too many or too long headers",
    503: "nothing was promised to be stored; send again after Retry-After seconds",
}


def _of(schema: Mapping[str, Any] | str, media: str = "application/json") -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"} if isinstance(schema, str) else schema
    return {media: {"schema": reference}}


def _moved(schema: Any) -> Any:
    """The schema with its references pointing at the document's components."""
    if isinstance(schema, Mapping):
        return {key: _moved(value) for key, value in schema.items() if key not in ("$defs", "$schema", "$id")}
    if isinstance(schema, list):
        return [_moved(value) for value in schema]
    if isinstance(schema, str) and schema.startswith("#/$defs/"):
        return "#/components/schemas/" + schema.removeprefix("#/$defs/")
    return schema


def openapi(report_schema: Mapping[str, Any]) -> bytes:
    """The OpenAPI 3.1 document; `report_schema`: the JSON Schema of a report."""
    problems = {
        str(status): {"description": text, "content": _of("Problem", MEDIA_TYPE)} for status, text in _PROBLEMS.items()
    }
    post = {
        "operationId": "sendReports",
        "summary": "Send one report, or many, one a line",
        "description": "A 2xx means durable. gzip and zstd as Content-Encoding. Sending again is safe.",
        "security": [{"key": []}],
        "requestBody": {
            "required": True,
            "content": _of("Report") | _of({"type": "string"}, "application/x-ndjson"),
        },
        "responses": {
            "202": {"description": "the report is durable", "content": _of("Accepted")},
            "200": {"description": "a verdict for every line", "content": _of("Tally")},
            **problems,
        },
    }
    definitions = {name: _moved(each) for name, each in report_schema.get("$defs", {}).items()}
    document = {
        "openapi": "3.1.0",
        "info": {"title": "harmonywatch gateway", "version": API_VERSION},
        "paths": {"/v1/reports": {"post": post}},
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": definitions
            | {"Report": _moved(report_schema), "Problem": _PROBLEM_SCHEMA}
            | {"Accepted": _ACCEPTED_SCHEMA, "Tally": _TALLY_SCHEMA},
        },
    }
    return msgspec.json.encode(document)


PAGE = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>harmonywatch gateway</title>
<body style="font: 16px/1.5 system-ui, sans-serif; max-width: 42em; margin: 3em auto; padding: 0 1em">
<h1>harmonywatch gateway</h1>
<p>This is the door through which watchers send their reports. There is nothing to see here for people; officers have the
console.</p>
<pre>curl -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \\
     --data-binary @report.json http://127.0.0.1:8470/v1/reports</pre>
<p><a href="/openapi.json">What it takes and answers</a> (OpenAPI), <a href="/healthz">alive</a>,
<a href="/readyz">ready</a>, <a href="/metrics">metrics</a>.</p>
</body></html>
"""
