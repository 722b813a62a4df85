"""The demo's folder: made, emptied and held for one demo, and never anybody else's.

It is emptied only if it carries the demo's marker and nobody lives in it: neither another demo, which holds a lock on the
marker from its first act to its last, nor an `up` that looks at what a demo left (supervisor.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from harmonywatch.service import places
from harmonywatch.supervisor import is_up

MARKER = "this-folder-is-a-demos.txt"


class DemoFailed(Exception):
    """The demo could not be played; the message says why."""


@contextlib.contextmanager
def cleared(folder: Path) -> Iterator[None]:
    """The folder, empty but for its marker, and held. Raises DemoFailed on a folder that may not be emptied."""
    if folder.exists() and not folder.is_dir():
        raise DemoFailed(f"{folder.resolve()} is no folder; give another --data")
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / MARKER
    if not marker.exists() and any(folder.iterdir()):
        raise DemoFailed(f"{folder.resolve()} holds something that is no demo's; give another --data")
    with marker.open("a+") as held:
        _hold(held, folder)
        for path in folder.iterdir():
            if path.name == MARKER:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        held.truncate(0)
        held.write("harmonywatch demo made this folder and empties it at its next start.\n")
        held.flush()
        yield


def _hold(marker: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DemoFailed(f"a demo runs in {folder.resolve()} now; let it end, or give another --data") from None
    if is_up(folder) or places(folder):
        raise DemoFailed(f"services run on {folder.resolve()} now; stop them, or give another --data")
