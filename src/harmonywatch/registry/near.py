"""Suggestions for a name that is not there."""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Collection

from harmonywatch.registry.contract import NotFound

NEAR_MAX = 3
_COMPARED_MAX = 500
"""Comparing costs some 20 us a name: a force of 70,000 watchers would cost seconds, its neighbours in the order cost 10
ms. Who mistypes the first character gets no suggestion there."""


def not_found(what: str, name: str, names: Collection[str]) -> NotFound:
    """The error to raise, with the names nearest to `name`, best first."""
    candidates = sorted(names)
    if len(candidates) > _COMPARED_MAX:
        at = bisect.bisect(candidates, name)
        candidates = candidates[max(0, at - _COMPARED_MAX // 2) : at + _COMPARED_MAX // 2]
    return NotFound(what, name, tuple(difflib.get_close_matches(name, candidates, n=NEAR_MAX)))
