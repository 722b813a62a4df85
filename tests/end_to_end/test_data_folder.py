"""The data folder that ARCHITECTURE.md draws is the one that a system makes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from running_system import System, report

ARCHITECTURE = Path(__file__).resolve().parents[2] / "ARCHITECTURE.md"
BESIDE_SQLITE = re.compile(r"(\.db)-(wal|shm|journal)$")


def drawn() -> dict[str, bool]:
    """Each path of the drawing, and whether it is there only sometimes (`if any`, `if it is large`)."""
    text = ARCHITECTURE.read_text("utf-8")
    block = text.split("## The data folder", 1)[1].split("```")[1]
    lines = [line for line in block.splitlines()[1:] if line.strip()]
    return {line.split()[0]: ", if " in line for line in lines}


def pattern(path: str) -> re.Pattern[str]:
    """Words in capitals stand for one name each."""
    return re.compile(re.sub(r"(?<![a-z])[A-Z]{3,}", r"[^/]+", re.escape(path)))


def test_the_data_folder_is_as_drawn(folder_system: System) -> None:
    system = folder_system
    key = system.add_force("north")
    system.start()
    lines = b"not json\n" + json.dumps(report("w", 3.0, sequence=1)).encode() + b"\n"
    assert system.post(key, lines, "application/x-ndjson").status == 200
    system.wait_archived("north", 1)
    found = [path.relative_to(system.folder).as_posix() for path in system.folder.rglob("*") if path.is_file()]
    system.stop()
    files = {BESIDE_SQLITE.sub(r"\1", file) for file in found}
    patterns = {path: pattern(path) for path in drawn()}
    assert len(patterns) > 10
    assert [file for file in sorted(files) if not any(each.fullmatch(file) for each in patterns.values())] == []
    needed = [path for path, sometimes in drawn().items() if not sometimes]
    assert [path for path in needed if not any(patterns[path].fullmatch(file) for file in files)] == []
