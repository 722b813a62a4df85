"""The systems and the figures of the fault tests are those of tests/end_to_end."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "end_to_end"))

from figures import pytest_terminal_summary, tell

__all__ = ["pytest_terminal_summary", "tell"]
