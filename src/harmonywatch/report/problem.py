"""What a door says when it does not do what was asked: a problem document (RFC 9457), the same at every door. Pure."""

from __future__ import annotations

from typing import Any

MEDIA_TYPE = "application/problem+json"


def problem_schema(code: str = "stable", **more: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a door's problem documents. `code`: what its codes mean; `more`: members that only it has."""
    return {
        "type": "object",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string", "description": code},
            **more,
        },
    }
