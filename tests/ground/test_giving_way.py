"""The archive's process runs on what the others leave: one thread for each pool of its libraries."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

POOLS = ("OMP_NUM_THREADS", "TOKIO_WORKER_THREADS", "RAYON_NUM_THREADS")
THREADS_MOST = 20
"""Seen: 15, of which 5 the allocator's, 4 ours, and the lake's few that wait for files."""

FIRST_SIGHT = """
import os, sys
def hook(event, arguments):
    if event == "import" and arguments[0] in ("pyarrow", "deltalake"):
        print(arguments[0], [os.environ.get(pool) for pool in {pools!r}], os.nice(0), flush=True)
        os._exit(0)
sys.addaudithook(hook)
from harmonywatch.processes import run
from harmonywatch.settings import load
run("archive", load({{"data": {folder!r}}}, {{}})[0])
"""


def surroundings(**added: str) -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name not in POOLS} | added


def test_the_pools_are_bounded_before_their_libraries_load(tmp_path: Path) -> None:
    code = FIRST_SIGHT.format(pools=POOLS, folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, env=surroundings(), timeout=60
    )
    assert done.stdout.split(" ", 1)[1] == f"['1', '1', '1'] {os.nice(0) + 10}\n"


def threads_of_the_archive(folder: Path, **added: str) -> int:
    command = [sys.executable, "-m", "harmonywatch", "run", "archive", "--data", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=surroundings(**added)) as process:
        try:
            end = time.monotonic() + 30
            while not (folder / "run" / "archive.json").exists():
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.05)
            return psutil.Process(process.pid).num_threads()
        finally:
            process.terminate()


def test_the_archive_has_few_threads_and_the_count_can_see_more(tmp_path: Path) -> None:
    for name in ("few", "many"):
        add = [sys.executable, "-m", "harmonywatch", "force", "add", "north", "--data", str(tmp_path / name)]
        subprocess.run(add, check=True, capture_output=True)
    assert threads_of_the_archive(tmp_path / "few") <= THREADS_MOST
    assert threads_of_the_archive(tmp_path / "many", TOKIO_WORKER_THREADS="16") > THREADS_MOST
