"""What keeps the state of incidents bounded: alert ids, details and whole incidents are forgotten, each in its time.

1. *Alert ids* (`seen_alerts`) after `seen_s` of *running time*: what dispatchers have run on this database, whatever their
   wall clocks said. So a clock that is set forward or back neither forgets an id too early nor looks for it in the wrong
   place, and an outage makes ids last longer, never shorter.
2. *Details* of an incident (occurrences, watchers, tries of its channels) when it has been closed for `detail_s`. From
   then on it is history: no alert joins it, no officer re-opens it. Its row and its log stay.
3. *Incidents*, with their logs, when they have been closed for `keep_s`.

2 and 3 go by the wall clock, and cannot be undone. So when that has moved by more than CLOCK_SET_US against the running
time, nothing of 2 and 3 happens until HOLD_US more have been run: time for somebody to set it right.

Every tick does a little, in short transactions, so that no alert waits for it; what a crash leaves is done by the next one.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, Engine, select, text

from harmonywatch.dispatch.tables import (
    incident_log,
    incident_occurrences,
    incident_watchers,
    incidents,
    notifications,
    running_time,
    seen_alerts,
)
from harmonywatch.registry.engine import reading, writing
from harmonywatch.settings import DispatchSettings

DAY_US = 86_400_000_000
CLOCK_SET_US = 3_600_000_000
"""More than clocks are ever slewed by while a dispatcher runs."""

AWAY_US = 30 * DAY_US
"""The same when none ran: a longer holiday than this looks like a wrong clock."""

HOLD_US = DAY_US
TICK_S = 1.0
COUNT_S = 60.0
"""How often running time is written down; a crash loses at most this much of it, which is harmless."""

SEEN_MOST = 5_000
TRIM_MOST = 100
"""Rows, and incidents, that a tick forgets: some milliseconds; 100 a second is twice the most incidents a day can bring."""


def running_day(connection: Connection) -> int:
    """The day of running time that it is now; alert ids are kept under it."""
    return int(connection.execute(select(running_time.c.ran_us)).scalar_one() // DAY_US)


class _Due(NamedTuple):
    """`seen`: the oldest alert ids; `details`, `incidents`: whose turn it is."""

    seen: list[tuple[int, bytes]]
    details: list[str]
    incidents: list[str]


class Upkeep:
    """One per process; any number of processes at once. Called by one thread. Raises RegistryBusy, RegistryBroken."""

    def __init__(self, engine: Engine, settings: DispatchSettings) -> None:
        self._engine = engine
        self._seen_us = int(settings.seen_s * 1e6)
        self._detail_us = int(max(settings.detail_s, settings.reopen_s) * 1e6)
        self._keep_us = int(max(settings.keep_s, settings.detail_s) * 1e6)
        self._tick_due_s: float | None = None
        self._counted_s: float | None = None

    def tick(self, now_us: int, monotonic_s: float) -> None:
        """Do a little of what is due; does nothing when called sooner than TICK_S after the last time."""
        if self._tick_due_s is not None and monotonic_s < self._tick_due_s:
            return
        self._tick_due_s = monotonic_s + TICK_S
        if self._counted_s is None or monotonic_s >= self._counted_s + COUNT_S:
            self._count(now_us, monotonic_s)
        due = self._look(now_us)
        if due.seen:
            self._forget_seen(due.seen)
        if due.details:
            self._trim(due.details, now_us - self._detail_us)
        if due.incidents:
            self._delete(due.incidents)

    def _look(self, now_us: int) -> _Due:
        """Some of what is due, in one short read: on most ticks nothing is."""
        s, i = seen_alerts.c, incidents.c
        closed_us, oldest_us = now_us - self._detail_us, now_us - self._keep_us
        details = select(i.incident_id).where(i.closed_us <= closed_us, text("NOT trimmed")).order_by(i.closed_us)
        # what is closed was opened before: so the stretch of the index holds little else
        whole = select(i.incident_id).where(i.opened_us <= oldest_us, i.closed_us <= oldest_us).order_by(i.opened_us)
        with reading(self._engine) as connection:
            clock = connection.execute(select(running_time.c.ran_us, running_time.c.hold_us)).one()
            seen = select(s.day, s.alert).where(s.day < (clock.ran_us - self._seen_us) // DAY_US)
            rows = connection.execute(seen.order_by(s.day, s.alert).limit(SEEN_MOST)).all()
            due = _Due([(row.day, bytes(row.alert)) for row in rows], [], [])
            if clock.ran_us >= clock.hold_us:
                due.details.extend(connection.execute(details.limit(TRIM_MOST)).scalars())
                due.incidents.extend(connection.execute(whole.limit(TRIM_MOST)).scalars())
        return due

    def _count(self, now_us: int, monotonic_s: float) -> None:
        """Running time goes on by what this process has run since it last counted, or less if another one counted since:
        so several at once do not make it run faster than time itself."""
        ran_us = None if self._counted_s is None else int((monotonic_s - self._counted_s) * 1e6)
        with writing(self._engine) as connection:
            clock = connection.execute(select(running_time).with_for_update()).one()
            passed_us = now_us - clock.wall_us
            after_us = clock.ran_us + max(0, min(passed_us, ran_us or 0))
            hold_us = clock.hold_us
            if clock.wall_us and _is_set(passed_us, ran_us):
                hold_us = after_us + HOLD_US
                import structlog  # a command that lists incidents need not carry it

                structlog.get_logger(__name__).error(
                    "the clock was set; no incident is trimmed for a day", by_s=(passed_us - (ran_us or 0)) / 1e6
                )
            connection.execute(running_time.update().values(ran_us=after_us, wall_us=now_us, hold_us=hold_us))
        self._counted_s = monotonic_s

    def _forget_seen(self, oldest: list[tuple[int, bytes]]) -> None:
        day = oldest[0][0]
        last = max(alert for of, alert in oldest if of == day)
        with writing(self._engine) as connection:
            gone = seen_alerts.delete().where(seen_alerts.c.day == day, seen_alerts.c.alert <= last)
            connection.execute(gone)

    def _trim(self, ids: list[str], closed_us: int) -> None:
        c = incidents.c
        history = incidents.update().where(c.incident_id.in_(ids), c.closed_us <= closed_us)
        with writing(self._engine) as connection:
            gone = connection.execute(history.values(trimmed=True, current_subject=None).returning(c.incident_id))
            # an officer may have re-opened one a moment ago: what the statement did not touch keeps its details
            _delete_details(connection, list(gone.scalars()))

    def _delete(self, ids: list[str]) -> None:
        with writing(self._engine) as connection:
            _delete_details(connection, ids)
            connection.execute(incident_log.delete().where(incident_log.c.incident_id.in_(ids)))
            connection.execute(incidents.delete().where(incidents.c.incident_id.in_(ids)))


def _is_set(passed_us: int, ran_us: int | None) -> bool:
    if ran_us is None:
        return passed_us < -CLOCK_SET_US or passed_us > AWAY_US
    return abs(passed_us - ran_us) > CLOCK_SET_US


def _delete_details(connection: Connection, ids: list[str]) -> None:
    for table in (incident_watchers, incident_occurrences, notifications):
        connection.execute(table.delete().where(table.c.incident_id.in_(ids)))
