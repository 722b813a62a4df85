"""A real dispatcher as a process: `dispatcher_process.py FOLDER URL`; says `ready`, ends when its input does."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from dispatch_parts import PaperDesk

from harmonywatch.clock import SystemClock
from harmonywatch.dispatch.dispatcher import Dispatcher, DispatchParts
from harmonywatch.dispatch.store import open_incidents
from harmonywatch.report.topics import ALERTS
from harmonywatch.settings import DispatchSettings, StreamSettings
from harmonywatch.stream.follow import follow
from harmonywatch.stream.forces import Forces
from harmonywatch.stream.sqlite import SqliteStream
from harmonywatch.telemetry import Telemetry


def main(folder: Path, url: str) -> None:
    clock = SystemClock()
    stream = SqliteStream(folder / "stream", StreamSettings(), clock)
    store = open_incidents(url, DispatchSettings())
    telemetry = Telemetry("dispatch")
    parts = DispatchParts(store, stream, PaperDesk(), clock, telemetry)
    forces = Forces(lambda _force: Dispatcher(parts), clock, telemetry)
    stop = threading.Event()

    def end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=end, daemon=True).start()
    reader = stream.reader(ALERTS, group="dispatch", start=forces.start)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    follow(reader, forces, clock=clock, stop=stop)
    store.close()
    stream.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
