"""The machine's figures: how fast its disk is, what the services cost. Read beside the demo's own, never judged."""

from __future__ import annotations

import os
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil

PROBE_BYTES = 4096
PROBE_INTERVAL_S = 0.05


class FsyncProbe:
    """Writes and syncs 4 KiB every 50 ms beside the data while the demo runs: a yardstick for every latency."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "probe"
        self._stop = threading.Event()
        self.samples_ms: list[float] = []
        self._thread = threading.Thread(target=self._run, name="fsync-probe", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> list[float]:
        """End, and the samples in milliseconds, sorted."""
        self._stop.set()
        self._thread.join()
        return sorted(self.samples_ms)

    def _run(self) -> None:
        descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            while not self._stop.wait(PROBE_INTERVAL_S):
                os.pwrite(descriptor, b"x" * PROBE_BYTES, 0)
                began = time.perf_counter()
                os.fsync(descriptor)
                self.samples_ms.append((time.perf_counter() - began) * 1e3)
        finally:
            os.close(descriptor)
            self._path.unlink()


def cpu_s(pids: Mapping[str, int]) -> dict[str, float]:
    """CPU seconds that each service has used, its finished children included."""
    used = {}
    for service, pid in pids.items():
        times = psutil.Process(pid).cpu_times()
        used[service] = times.user + times.system + times.children_user + times.children_system
    return used


def pss_bytes(pids: Mapping[str, int]) -> dict[str, int]:
    """Memory of each service, shared pages counted once over all that share them."""
    sizes = {}
    for service, pid in pids.items():
        info = psutil.Process(pid).memory_full_info()
        sizes[service] = int(getattr(info, "pss", info.uss))
    return sizes


def histogram_ms(url: str, name: str) -> tuple[float, float, float]:
    """p50, p99 and an upper bound of the maximum of a Prometheus histogram (seconds) at `url`, in milliseconds.

    Within a bucket the values are taken as evenly spread.
    """
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    buckets: dict[float, float] = {}
    for line in lines:
        if line.startswith(f"{name}_bucket{{"):
            labels, count = line.rsplit(" ", 1)
            bound = labels.split('le="')[1].split('"')[0]
            buckets[float(bound)] = buckets.get(float(bound), 0.0) + float(count)
    ordered = sorted(buckets.items())
    total = ordered[-1][1] if ordered else 0.0
    if not total:
        return 0.0, 0.0, 0.0
    bound_max = next(bound for bound, count in ordered if count >= total)
    return _at(ordered, 0.5 * total), _at(ordered, 0.99 * total), bound_max * 1e3


def _at(ordered: list[tuple[float, float]], rank: float) -> float:
    below_s, below = 0.0, 0.0
    for bound_s, count in ordered:
        if count >= rank:
            share = (rank - below) / (count - below) if count > below else 1.0
            return (below_s + (bound_s - below_s) * share) * 1e3
        below_s, below = bound_s, count
    return below_s * 1e3
