"""The folder into which a query puts what its memory does not hold: locked while its owner lives, and gone with it.

An owner that was killed leaves its folder behind; whoever asks next removes it. The lock is the proof of life, so nothing
is removed under a living query; a folder younger than YOUNG_S is left alone, because its owner may be about to lock it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "harmonywatch-query-"
YOUNG_S = 60.0


class Spill:
    """A new folder of one's own, at `folder`. `close` removes it."""

    def __init__(self) -> None:
        sweep(Path(tempfile.gettempdir()))
        self.folder = tempfile.mkdtemp(prefix=PREFIX)
        self._lock = os.open(self.folder, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Twice does no harm."""
        if self._lock >= 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep(place: Path) -> None:
    """Remove the folders of our own user whose owner is gone."""
    for path in place.glob(f"{PREFIX}*"):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone meanwhile, or not ours to open
        try:
            found = os.fstat(lock)
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > YOUNG_S:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(lock)
