"""Several processes on one registry: nothing lost, migrations run once, revocation bites elsewhere within a second."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from harmonywatch.clock import ManualClock, SystemClock
from harmonywatch.registry.store import Registry, open_registry

WRITER = """
import sys
from harmonywatch.clock import SystemClock
from harmonywatch.registry.store import open_registry
url, name = sys.argv[1:]
registry = open_registry(url, SystemClock(), "os:" + name)
print("open", flush=True)
sys.stdin.readline()
registry.add_force(name)
for n in range(25):
    print(registry.add_watcher(f"d{n}", name).key, flush=True)
    registry.enrol(name, [f"e{n}", f"f{n}"], "base")
    registry.record_audit("query", name, str(n))
registry.close()
"""

ASKER = """
import sys, time
from harmonywatch.clock import SystemClock
from harmonywatch.registry.glance import open_glance
from harmonywatch.registry.keyring import KeyringCache
from harmonywatch.registry.store import open_registry
url, key, way = sys.argv[1:]
door = open_glance(url, SystemClock()) if way == "glance" else open_registry(url, SystemClock(), "service")
with KeyringCache(door, SystemClock()) as cache:
    assert cache.peek(key) is not None
    print("known", flush=True)
    deadline = time.monotonic() + 20
    while cache.peek(key) is not None and time.monotonic() < deadline:
        time.sleep(0.002)
    print(time.time() if cache.peek(key) is None else "never", flush=True)
    new = sys.stdin.readline().strip()
    print("new" if cache.find(new) else "unknown", flush=True)
"""


def started(program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str], text: str | None = None) -> str:
    assert process.stdin is not None and process.stdout is not None
    if text is not None:
        process.stdin.write(text + "\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def finished(processes: Sequence[subprocess.Popen[str]], text: str) -> list[list[str]]:
    """Give every process its line first, so that they run at once; then what each one printed."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return outputs


def test_processes_that_open_and_write_at_once_lose_nothing(url: str) -> None:
    names = [f"force-{n}" for n in range(4)]
    writers = [started(WRITER, url, name) for name in names]
    assert [said(writer) for writer in writers] == ["open"] * 4, "all four made or found the same schema"
    issued = dict(zip(names, finished(writers, "go\n"), strict=True))

    registry = open_registry(url, SystemClock(), "os:alice")
    assert [force.name for force in registry.forces()] == names
    keyring = registry.keyring()
    for name in names:
        assert [info.subject for key in issued[name] if (info := keyring.find(key))] == [f"d{n}" for n in range(25)]
        assert len(registry.known_watchers(name)) == 75
        own = registry.audit(name)
        assert (
            len([e for e in own if e.action == "query"]) == len([e for e in own if e.action == "watchers.enrol"]) == 25
        )
    ids = [entry.id for entry in registry.audit(limit=10_000)]
    assert ids == list(range(1, 4 * 77 + 1))
    assert registry.version() == 1 + 4 * 26, "each force and each key made one version"
    registry.close()


def test_a_revocation_bites_in_other_processes_within_a_second_and_a_new_key_works_at_once(
    registry: Registry, url: str, clock: ManualClock
) -> None:
    registry.add_force("north")
    issued = registry.add_relay("base", "north")
    askers = [started(ASKER, url, issued.key, way) for way in ("glance", "registry")]
    assert [said(asker) for asker in askers] == ["known", "known"]
    revoked_at = time.time()
    registry.revoke("relay", "base", "north")
    for asker in askers:
        assert float(said(asker)) - revoked_at < 1.0
    new = registry.rotate("relay", "base", "north")
    assert [said(asker, new.key) for asker in askers] == ["new", "new"]
    finished(askers, "")
    assert clock.monotonic() == 0
