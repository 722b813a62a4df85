"""A thread that keeps what is known of the registry fresh, whatever happens to the registry.

The rule it keeps: it never ends before `close`. A thread that ended would look like a registry that never changes, and
revocation would stop in silence. So every error is survived, and told once: when it begins, and when it is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from harmonywatch.registry.contract import RegistryError

REVALIDATE_S = 0.25
"""Design, decisions. A change must bite within 1 s, so three checks may fail before a promise does."""


class Revalidator:
    """Calls `refresh` every `interval_s` from a thread named `name`, between `start` and `close`."""

    def __init__(self, name: str, refresh: Callable[[], None], interval_s: float = REVALIDATE_S) -> None:
        self.interval_s = interval_s
        self._name = name
        self._refresh = refresh
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing: str | None = None
        self._log: Any = None

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        import structlog  # who only asks the registry a question need not carry it

        self._log = structlog.get_logger(__name__)
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Twice is once."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stopping.wait(self.interval_s):
            try:
                self._refresh()
            except RegistryError as error:
                self._tell_failure(error)
            except Exception as error:  # noqa: BLE001 (a bug of ours, or of a library: see the header)
                self._tell_failure(error, exc_info=True)
            else:
                if self._failing is not None:
                    self._log.info("the registry is read again", what=self._name)
                self._failing = None

    def _tell_failure(self, error: Exception, exc_info: bool = False) -> None:
        kind = type(error).__name__
        if kind != self._failing:
            self._log.warning(
                "the registry cannot be read; what is known serves on",
                what=self._name,
                kind=kind,
                reason=str(error),
                exc_info=exc_info,
            )
        self._failing = kind
