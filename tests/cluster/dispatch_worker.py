"""One of several workers on one state, the `main` of a process of its own. Ends when its share is recorded.

Its share is in an order of its own, and partly somebody else's as well; every citizen is in everybody's. So workers meet
in the same rows, which no partition keeps apart as it does in service.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier

from dispatch_parts import alert, later
from sqlalchemy import Connection

from harmonywatch.clock import micros
from harmonywatch.dispatch.dispatcher import sighting_of
from harmonywatch.dispatch.incident import Incident
from harmonywatch.dispatch.store import IncidentStore, Poll
from harmonywatch.dispatch.tables import incidents
from harmonywatch.dispatch.writing import INCIDENT, incident_of
from harmonywatch.registry.engine import open_engine
from harmonywatch.report.topics import AlertRecord
from harmonywatch.settings import DispatchSettings
from harmonywatch.stream.contract import TopicPartition

WORKERS, ALERTS, CITIZENS, WATCHERS = 8, 2_000, 50, 20
STREAM_ID = "5" * 32
AGE_MAX_US = 900_000_000


@dataclass(frozen=True)
class Load:
    """The alerts, and the numbers of those that each worker records, in its order."""

    alerts: list[AlertRecord]
    shares: list[list[int]]


def load(seed: int, count: int = ALERTS) -> Load:
    """The same for the same arguments. Every alert is at least one worker's; some are two's."""
    dice = random.Random(seed)
    alerts = [
        alert(
            number,
            who=f"c-{dice.randrange(CITIZENS)}",
            watcher=f"w-{dice.randrange(WATCHERS)}",
            judged=later(dice.random() * 600),
        )
        for number in range(count)
    ]
    shares: list[list[int]] = [[] for _ in range(WORKERS)]
    for number in range(count):
        for worker in dice.sample(range(WORKERS), dice.choice((1, 1, 1, 2))):
            shares[worker].append(number)
    for share in shares:
        dice.shuffle(share)
    return Load(alerts, shares)


class UnlockedStore(IncidentStore):
    """Reads the incidents that it decides upon without holding them."""

    def _current(self, connection: Connection, subjects: set[bytes]) -> dict[bytes, Incident]:
        rows = connection.execute(INCIDENT.where(incidents.c.current_subject.in_(subjects))).all()
        return {bytes(row[-1]): incident_of(row) for row in rows}


def main(
    url: str,
    everything: Load,
    worker: int,
    kind: type[IncidentStore] = IncidentStore,
    together: Barrier | None = None,
) -> None:
    """Record the worker's share at `url`, from the position that is stored there, a random few at a time; from when all are
    `together`, if that is asked."""
    share = [everything.alerts[number] for number in everything.shares[worker]]
    store = kind(open_engine(url), DispatchSettings())
    at = TopicPartition("alerts.north", worker)
    dice = random.Random()
    position = store.positions(STREAM_ID).get(at, 0)
    if together is not None:
        together.wait()
    while position < len(share):
        end = min(len(share), position + dice.choice((1, 2, 5, 20)))
        sightings = [(at, offset, sighting_of(share[offset], "north", AGE_MAX_US)) for offset in range(position, end)]
        store.record(Poll({at: (position, end)}, sightings, micros(later(600)), lambda _force: ["c1"]), STREAM_ID)
        position = end
    store.close()
