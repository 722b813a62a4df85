"""An audit that a test can read."""

from __future__ import annotations

from collections.abc import Mapping


class KeptAudit:
    """The audit as a list."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str | None, str, Mapping[str, object]]] = []

    def record_audit(
        self,
        action: str,
        force: str | None = None,
        target: str = "",
        detail: Mapping[str, object] | None = None,
        reason: str = "",
    ) -> int:
        assert isinstance(reason, str)
        self.entries.append((action, force, target, detail or {}))
        return len(self.entries)
