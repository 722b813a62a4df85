"""harmonywatch: reports go in, alerts come out, the archive answers.

`harmonywatch.connect("north")` is the way in from a notebook (docs/how-to/notebooks.md). It is loaded when it is first
asked for: every service and the sandbox of queries import this package and must not carry what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harmonywatch.assemble import connect
else:

    def __getattr__(name: str) -> object:
        if name == "connect":
            from harmonywatch.assemble import connect

            return connect
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["connect"]
