"""Tells the forces' channels of incidents, outside the latency path: its own thread and outbox.

What a crash between two steps leaves:

1. The dispatcher's commit holds a row for each (incident, version, channel).    crash: the row waits
2. `claim`: rows that are due are moved on by CLAIM_S, so no other worker        crash: tried again after CLAIM_S
   takes them.
3. The channel is asked: at most one try at a time per channel, in order, so a   crash: told twice, with the same
   slow one delays nobody else.                                                  idempotency key
4. Taken: the row goes. Not taken: it is due again after a wait that doubles,
   with jitter, up to `retry_most_s`; after EXPIRE_S it is given up and counted.
5. The first time an alert is taken by a channel, `deliveries.<force>` is told.  crash: told by nobody; the alert shows
                                                                                 no `delivered_at`
So at least once. Never logs a URL or a secret. When the state fails, it waits, longer each time, and tries again until it
is stopped; `failure` says so meanwhile.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import structlog

from harmonywatch.clock import Clock, micros, to_wire
from harmonywatch.dispatch.office import Desk, Roster
from harmonywatch.dispatch.store import IncidentStore, Notification
from harmonywatch.dispatch.told import ToldIncident
from harmonywatch.dispatch.webhook import NotDelivered, post
from harmonywatch.registry.contract import Channel, RegistryError
from harmonywatch.report.record import VERSION
from harmonywatch.report.topics import DELIVERIES, DeliveryRecord, encode, topic_of
from harmonywatch.stream.contract import Stream, partition_of
from harmonywatch.telemetry import Telemetry

WORKERS = 8
CLAIM_S = 60.0
"""Longer than a claimed channel's tries in a row take when they work; a crash delays what was claimed by this."""

CLAIM_MOST = 20
RETRY_FIRST_S = 0.5
EXPIRE_S = 86_400.0
"""After a day an incident has lapsed or is known: telling of it then would only frighten."""

IDLE_S = 1.0
"""How often the outbox is looked at when nothing wakes: another worker's rows, whose worker died."""

PAUSE_FIRST_S, PAUSE_MOST_S = 0.1, 5.0
"""Between two tries when the state cannot be read or written: a full disk that has room again is noticed within this."""

RECENT_MAX = 100_000

_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class NotifierParts:
    """What a notifier works with. `randomness`: a number in [0, 1); `retry_most_s`: see the settings."""

    store: IncidentStore
    stream: Stream
    desk: Desk
    clock: Clock
    telemetry: Telemetry
    retry_most_s: float
    randomness: Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Tried:
    notification: Notification
    failure: str | None


class Notifier:
    """`start` it, `wake` it when there is something to tell, `stop` it; `failure`: why it cannot work at this moment, None
    when it can. It ends only when it is stopped."""

    def __init__(self, parts: NotifierParts) -> None:
        self._parts = parts
        self._roster = Roster(parts.desk, parts.clock)
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._tried: queue.SimpleQueue[_Tried] = queue.SimpleQueue()
        self._finished: list[_Tried] = []
        self._busy: dict[str, int] = {}
        self._recent: dict[str, None] = {}
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="notify")
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
        self.failure: str | None = None

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._woken.set()

    def stop(self) -> None:
        """Ends after the tries under way; what is not told stays in the outbox."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        pause_s = PAUSE_FIRST_S
        while not self._stopping.is_set():
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 whatever it was, the channels must be told when it is over
                self._fail(error, pause_s)
                self._stopping.wait(pause_s)
                pause_s = min(PAUSE_MOST_S, pause_s * 2)
                continue
            if self.failure is not None:
                _LOG.info("notifier works again")
                self.failure, pause_s = None, PAUSE_FIRST_S
        self._end()

    def _fail(self, error: Exception, pause_s: float) -> None:
        """Shown while it lasts; in the log once, however often it is tried."""
        told = f"no channel is told at the moment: {type(error).__name__}: {error}"
        self._parts.telemetry.failed.labels("notifier").inc()
        if told != self.failure:
            _LOG.error("notifier failed, tries again", reason=str(error), kind=type(error).__name__, pause_s=pause_s)
        self.failure = told

    def _end(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        try:
            self._settle()
        except RegistryError as error:
            _LOG.warning("what was told last is told again", reason=str(error))

    def _step(self) -> None:
        """Wait for a reason, write down what was tried, and try what is due."""
        self._woken.wait(self._wait_s())
        self._woken.clear()
        self._settle()
        self._roster.refresh()
        now_us = micros(self._parts.clock.now())
        claimed = self._parts.store.claim(now_us, int(CLAIM_S * 1e6), sorted(self._busy), CLAIM_MOST)
        by_channel: dict[str, list[Notification]] = {}
        for notification in claimed:
            by_channel.setdefault(notification.channel_id, []).append(notification)
        for channel_id, theirs in by_channel.items():
            self._busy[channel_id] = len(theirs)
            channel = self._roster.channel(theirs[0].force, channel_id)
            self._pool.submit(self._tell, channel, theirs)
        if len(claimed) == CLAIM_MOST:
            self._woken.set()

    def _wait_s(self) -> float:
        due_us = self._parts.store.next_due_us(sorted(self._busy))
        if due_us is None:
            return IDLE_S
        return min(IDLE_S, max(0.0, (due_us - micros(self._parts.clock.now())) / 1e6))

    # --- in the pool

    def _tell(self, channel: Channel | None, notifications: list[Notification]) -> None:
        """One after the other; the rest of a failing channel's are put off unasked."""
        failure: str | None = None
        for notification in notifications:
            if failure is None:
                failure = self._try(channel, notification)
            self._tried.put(_Tried(notification, failure))
        self._woken.set()

    def _try(self, channel: Channel | None, notification: Notification) -> str | None:
        """Why it was not taken, None if it was. A channel that is gone has nothing to be told."""
        if channel is None:
            return None
        try:
            if channel.kind == "webhook":
                key = f"{notification.incident_id}.{notification.version}"
                post(channel, notification.body, key, self._parts.clock.now().timestamp())
            else:
                tell_by_apprise(channel, notification.body)
        except NotDelivered as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 a library of a hundred services: whatever it was, this try failed
            return type(error).__name__
        try:
            self._delivered(notification)
        except Exception as error:  # noqa: BLE001 it was taken all the same: told again it would be told twice
            self._parts.telemetry.failed.labels("deliveries-append").inc()
            _LOG.warning("delivery not recorded", reason=type(error).__name__, force=notification.force)
        return None

    def _delivered(self, notification: Notification) -> None:
        """The alert was handed over; say so once per process. Raises what the stream raises."""
        if notification.alert_id in self._recent:
            return
        if len(self._recent) >= RECENT_MAX:
            self._recent.clear()
        self._recent[notification.alert_id] = None
        now = self._parts.clock.now()
        waited_s = (micros(now) - notification.received_us) / 1e6
        self._parts.telemetry.deliver_s.labels(notification.force).observe(max(0.0, waited_s))
        topic = topic_of(DELIVERIES, notification.force)
        record = encode(DeliveryRecord(VERSION, notification.alert_id, to_wire(now), notification.channel_id))
        partitions = self._parts.stream.topics().get(topic, 1)
        self._parts.stream.append(topic, {partition_of(notification.alert_id.encode(), partitions): [record]})

    # --- afterwards

    def _settle(self) -> None:
        """Write down what was tried. Until that is durable it stays in `_finished`, and its channels busy."""
        while not self._tried.empty():
            self._finished.append(self._tried.get())
        now_us = micros(self._parts.clock.now())
        done: list[int] = []
        again: dict[int, int] = {}
        for tried in self._finished:
            notification = tried.notification
            if tried.failure is None or _is_expired(notification, now_us):
                done.append(notification.serial)
            else:
                again[notification.serial] = now_us + int(self._wait_again_s(notification.tries) * 1e6)
        self._parts.store.tried(done, again)
        for tried in self._finished:
            self._say(tried, now_us)
            channel_id = tried.notification.channel_id
            self._busy[channel_id] -= 1
            if not self._busy[channel_id]:
                del self._busy[channel_id]
        self._finished.clear()

    def _say(self, tried: _Tried, now_us: int) -> None:
        notification = tried.notification
        if tried.failure is None:
            return
        expired = _is_expired(notification, now_us)
        self._parts.telemetry.failed.labels("notification-expired" if expired else "notification").inc()
        _LOG.warning(
            "channel did not take it",
            channel_id=notification.channel_id,
            force=notification.force,
            tries=notification.tries + 1,
            given_up=expired,
            reason=tried.failure,
        )

    def _wait_again_s(self, tries: int) -> float:
        """Doubling up to the most, between half and all of it: so that many that failed together do not come together."""
        longest: float = min(self._parts.retry_most_s, RETRY_FIRST_S * 2.0 ** min(tries, 30))
        return longest * (0.5 + self._parts.randomness() / 2)


def _is_expired(notification: Notification, now_us: int) -> bool:
    return now_us - notification.made_us > EXPIRE_S * 1e6


class _Told(msgspec.Struct):
    kind: str
    incident: ToldIncident


def message_of(body: bytes) -> tuple[str, str]:
    """Title and text for a person, from an event's JSON."""
    event = msgspec.json.decode(body, type=_Told)
    incident = event.incident
    title = f"{incident.force}: {incident.name}, {incident.rule} ({event.kind})"
    text = (
        f"{incident.name} at {incident.lat:.5f}, {incident.lon:.5f}, last seen {incident.last_seen_at}; "
        f"harmonyscore down to {incident.harmonyscore_least:g}; {incident.occurrences} sightings by "
        f"{incident.watchers} watchers; incident {incident.incident_id}"
    )
    return title, text


def tell_by_apprise(channel: Channel, body: bytes) -> None:
    """One try. Raises NotDelivered. Apprise's own logs are shut: its messages may hold hosts that are tokens."""
    import apprise  # heavy, and needed only where a force has such a channel

    logger = logging.getLogger("apprise")
    logger.propagate = False
    logger.disabled = True
    title, text = message_of(body)
    teller = apprise.Apprise()
    if not teller.add(channel.url) or not teller.notify(title=title, body=text):
        raise NotDelivered("apprise could not")
