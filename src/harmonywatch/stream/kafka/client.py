"""The only file that knows Kafka's client library: its settings, its objects, its errors translated once.

`Admin` asks and makes, `Appender` writes, `Fetcher` reads partitions given to it or, in a group, those that the group gives.
Names are ours on the outside and the brokers' (with the namespace) within. Errors leave as the contract's: what passes by
itself is `StreamFull` with its reason, what the operator must mend is `TopicDamaged` if one topic has it, else
`StreamBroken`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog
from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
)
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from harmonywatch.stream.contract import (
    RECORD_BYTES_MAX,
    Bounds,
    ClosedStream,
    OutcomeUnknown,
    StreamBroken,
    StreamError,
    StreamFull,
    TopicDamaged,
    TopicPartition,
    UnknownTopic,
)
from harmonywatch.stream.kafka.address import Address

ASK_S = 10.0
"""A question that the brokers did not answer for so long has failed. Long enough for a new leader to be found."""

DELIVERY_S = 15.0
"""An append whose records no in-sync majority took for so long is `OutcomeUnknown`: thrice what a dead broker costs."""

BATCH_BYTES_MAX = RECORD_BYTES_MAX + (1 << 20)
"""Of a produce request and so of a topic's `max.message.bytes`: the largest record, with what Kafka puts around it."""

RETRY_S = 0.1

OFFSET_UNKNOWN = -1

WAIT_MS = 100
"""A broker answers a fetch at once if it has something, else after this. A partition that is taken up waits for the end of
the fetch that is under way, so not the library's 500."""

_QUICK = {
    "socket.nagle.disable": True,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 500,  # a restarted broker is used again at once
    "retry.backoff.ms": 50,
    "retry.backoff.max.ms": 300,
    "topic.metadata.refresh.fast.interval.ms": 50,  # how often a new leader is looked for
    "allow.auto.create.topics": False,
}
_WRITE = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 0,  # an append is a group already; waiting for more costs 1.1 ms of 1.6
    "compression.type": "zstd",
    "compression.level": 1,
    "message.max.bytes": BATCH_BYTES_MAX,
    "message.timeout.ms": int(DELIVERY_S * 1000),
    "request.timeout.ms": 5000,
    "queue.buffering.max.kbytes": 128 << 10,
    "queue.buffering.max.messages": 500_000,
}
_READ = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_uncommitted",  # nobody writes transactions here, and the end is then one number
    "fetch.queue.backoff.ms": 10,  # by default a fast reader stands still for a second
    "fetch.error.backoff.ms": 50,
    "fetch.max.bytes": 16 << 20,
    "fetch.message.max.bytes": 4 << 20,
    "queued.max.messages.kbytes": 16 << 10,
    "topic.metadata.refresh.interval.ms": 1000,  # so soon is a new topic of a prefix found
}
HEARTBEATS = 6
"""In a session: a worker that is alive loses its partitions only when that many in a row were late."""

_FOR_A_WHILE = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE,
        KafkaError._RESOLVE, KafkaError._WAIT_COORD, KafkaError._MSG_TIMED_OUT, KafkaError._QUEUE_FULL,
        KafkaError.NOT_ENOUGH_REPLICAS, KafkaError.KAFKA_STORAGE_ERROR, KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR,
        KafkaError.BROKER_NOT_AVAILABLE, KafkaError.NETWORK_EXCEPTION, KafkaError.NOT_CONTROLLER,
    }
)  # fmt: skip
_UNKNOWN = frozenset(
    {
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
    }
)
_NOT_OURS = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError._ASSIGNMENT_LOST, KafkaError._NO_OFFSET,
    }
)  # fmt: skip


class _Log:
    """The library's log lines among ours. It tries a broker that is away twice a second, and says so each time: we do not."""

    QUIET_S = 10.0

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def log(self, level: int, text: str, *values: object) -> None:
        said = text % values if values else text
        kind, now = said.split(" ", 1)[0], time.monotonic()
        if now >= self._due.get(kind, 0.0):
            self._due[kind] = now + self.QUIET_S
            structlog.get_logger().log(level, "kafka client", said=said)


def _settings(address: Address, *more: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {"bootstrap.servers": address.servers, "client.id": "harmonywatch", "log_level": 3}
    for each in (_QUICK, *more, address.client):
        merged.update(each)
    return merged


def translation(error: KafkaError, topic: str = "") -> StreamError:
    """The library's error as the contract's."""
    reason = f"{error.name()}: {error.str()}"
    if error.code() in _UNKNOWN:
        return UnknownTopic(topic)
    if not error.fatal() and (error.retriable() or error.code() in _FOR_A_WHILE):
        return StreamFull(f"the brokers cannot for now: {reason}", topic=topic)
    if topic and not error.fatal():
        return TopicDamaged(topic, f"the brokers refuse: {reason}")
    return StreamBroken(f"the brokers refuse: {reason}", topic)


@contextlib.contextmanager
def translated(topic: str = "") -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise translation(error.args[0], topic) from error


class NewTopicRefused(StreamError):
    """The brokers will not make a topic as it is asked for."""


def _outer(address: Address, at: TopicPartition, position: int = OFFSET_INVALID) -> Place:
    return Place(address.outer(at.topic), at.partition, position)


def _inner(address: Address, places: Iterable[Place]) -> list[tuple[TopicPartition, Place]]:
    """The places of our namespace, under our names."""
    named = ((address.inner(place.topic), place) for place in places)
    return [(TopicPartition(topic, place.partition), place) for topic, place in named if topic is not None]


class Admin:
    """Questions to the cluster. Safe for several threads."""

    def __init__(self, address: Address) -> None:
        self._address, self._said = address, ""
        with translated():
            self._client = AdminClient(_settings(address, {"error_cb": self._note}))

    def _note(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._said = error.str()

    def cluster_id(self) -> str:
        """Raises StreamFull with the library's reason, which may be for the operator: a wrong password looks to it like a
        broker that is away."""
        try:
            with translated():
                found = self._client.list_topics(timeout=ASK_S).cluster_id
        except StreamFull as error:
            self._client.poll(0)
            raise StreamFull(f"{error} ({self._said})" if self._said else str(error)) from None
        if not found:
            raise StreamBroken("the cluster tells no id")
        return str(found)

    def topics(self) -> dict[str, int]:
        """Every topic of our namespace with its number of partitions."""
        with translated():
            found = self._client.list_topics(timeout=ASK_S).topics
        named = ((self._address.inner(name), each) for name, each in sorted(found.items()) if each.error is None)
        return {name: len(each.partitions) for name, each in named if name is not None}

    def create(self, topic: str, partitions: int, replicas: int, config: Mapping[str, str]) -> None:
        """Make it, unless it is there, and wait until every partition has a leader. Raises NewTopicRefused."""
        outer = self._address.outer(topic)
        asked = NewTopic(outer, num_partitions=partitions, replication_factor=replicas, config=dict(config))
        try:
            self._client.create_topics([asked], request_timeout=ASK_S)[outer].result()
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            if reason.code() in (KafkaError.INVALID_REPLICATION_FACTOR, KafkaError.TOPIC_EXCEPTION):
                raise NewTopicRefused(f"{topic}: {reason.str()}") from error
            if reason.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise translation(reason, topic) from error
        until = time.monotonic() + ASK_S
        while not self._has_leaders(topic):
            if time.monotonic() > until:
                raise StreamFull(f"{topic} was made, and has no leaders after {ASK_S:g} s", topic=topic)
            time.sleep(RETRY_S / 10)

    def _has_leaders(self, topic: str) -> bool:
        with translated(topic):
            found = next(iter(self._client.list_topics(self._address.outer(topic), timeout=ASK_S).topics.values()))
        leaders = [each.leader for each in found.partitions.values()]
        return found.error is None and bool(leaders) and min(leaders) >= 0

    def ids(self, topics: Sequence[str]) -> dict[str, str]:
        """The ids that the cluster drew when it made these topics, 32 hexadecimal digits; those that are there."""
        if not topics:
            return {}
        found: dict[str, str] = {}
        with translated():
            names = TopicCollection([self._address.outer(topic) for topic in topics])
            asked = self._client.describe_topics(names, request_timeout=ASK_S)
        for topic in topics:
            try:
                uuid = asked[self._address.outer(topic)].result().topic_id
            except KafkaException as error:
                if error.args[0].code() in _UNKNOWN:
                    continue
                raise translation(error.args[0], topic) from error
            high, low = uuid.get_most_significant_bits(), uuid.get_least_significant_bits()
            found[topic] = f"{high & (1 << 64) - 1:016x}{low & (1 << 64) - 1:016x}"
        return found

    def bounds(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, Bounds]:
        """Earliest and end of each, the earliest asked first. Raises UnknownTopic."""
        earliest = self._offsets(places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        ends = self._offsets(places, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return {at: Bounds(earliest[at], ends[at]) for at in places}

    def _offsets(self, places: Sequence[TopicPartition], spec: OffsetSpec) -> dict[TopicPartition, int]:
        """While leaders change the question is asked again."""
        found: dict[TopicPartition, int] = {}
        until = time.monotonic() + ASK_S
        while left := [at for at in places if at not in found]:
            with translated():
                asked = self._client.list_offsets(
                    {_outer(self._address, at): spec for at in left}, request_timeout=ASK_S
                )
            for at, future in zip(left, asked.values(), strict=True):
                try:
                    found[at] = future.result().offset
                except KafkaException as error:
                    told = translation(error.args[0], at.topic)
                    if not isinstance(told, StreamFull) or time.monotonic() > until:
                        raise told from error
            if len(found) < len(places):
                time.sleep(RETRY_S)
                self.topics()  # the library goes on asking the leader that it remembers, until it is told of a new one
        return found

    def committed(self, group: str, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The group's positions where it has any."""
        if not places:
            return {}
        group = self._address.outer(group)
        asked = ConsumerGroupTopicPartitions(group, [_outer(self._address, at) for at in places])
        until = time.monotonic() + ASK_S
        while True:
            try:
                answer = self._client.list_consumer_group_offsets([asked], request_timeout=ASK_S)[group].result()
                break
            except KafkaException as error:
                told = translation(error.args[0])
                if not isinstance(told, StreamFull) or time.monotonic() > until:
                    raise told from error
                time.sleep(RETRY_S)
        told_offsets = _inner(self._address, answer.topic_partitions or ())
        return {at: each.offset for at, each in told_offsets if each.offset >= 0}


class _Waiting:
    """The delivery reports of one append. Told by the appender's thread alone."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.first: dict[int, int] = {}
        self.failures: list[KafkaError] = []
        self.done = threading.Event()

    def told(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.failures.append(error)
        else:
            offset = message.offset()  # none: it is there already, by a try whose answer was lost with its broker
            self.first.setdefault(message.partition() or 0, OFFSET_UNKNOWN if offset is None else offset)
        self.left -= 1
        if self.left == 0:
            self.done.set()


class Appender:
    """The idempotent producer with acks=all, and a thread that takes its delivery reports. Safe for several threads."""

    POLL_S = 0.1

    def __init__(self, address: Address) -> None:
        self._address = address
        with translated():
            self._producer = Producer(_settings(address, _WRITE, {"logger": _Log()}))
        self._order: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._take_reports, name="kafka reports", daemon=True)
        self._thread.start()

    def append(self, topic: str, records: Mapping[int, Sequence[bytes]]) -> dict[int, int]:
        """Return when all in-sync replicas have the records: the offset of the first, by partition.

        Raises StreamFull if none was taken, OutcomeUnknown if some may be, StreamBroken.
        """
        waiting = _Waiting(sum(map(len, records.values())))
        with self._order[topic]:  # so that the records of one append follow one another
            self._enqueue(topic, records, waiting)
        waiting.done.wait()
        if waiting.failures:
            raise self._failed(topic, waiting)
        return waiting.first

    def _enqueue(self, topic: str, records: Mapping[int, Sequence[bytes]], waiting: _Waiting) -> None:
        produce, told, queued, outer = self._producer.produce, waiting.told, 0, self._address.outer(topic)
        until = time.monotonic() + DELIVERY_S
        for partition, values in records.items():
            for value in values:
                while True:
                    try:
                        produce(outer, value, partition=partition, on_delivery=told)
                        break
                    except BufferError:  # the brokers are slower than we: the reports of others make room
                        if time.monotonic() > until:
                            raise _out_of_room(topic, queued) from None
                        time.sleep(RETRY_S / 10)
                    except KafkaException as error:
                        raise self._refused(topic, error.args[0], queued) from error
                queued += 1

    def _refused(self, topic: str, error: KafkaError, queued: int) -> StreamError:
        told = translation(error, topic)
        return told if queued == 0 or isinstance(told, StreamBroken) else OutcomeUnknown(str(told))

    def _failed(self, topic: str, waiting: _Waiting) -> StreamError:
        """A refusal is told as such only if nothing was written, and nothing may be."""
        errors = [translation(each, topic) for each in waiting.failures]
        for error in errors:
            if isinstance(error, StreamBroken):
                return error
        if not waiting.first and all(isinstance(error, TopicDamaged | UnknownTopic) for error in errors):
            return errors[0]
        return OutcomeUnknown(f"{topic}: {len(errors)} records may be written or not, others are: {errors[0]}")

    def _take_reports(self) -> None:
        while not self._stop.is_set():
            self._producer.poll(self.POLL_S)

    def close(self) -> None:
        """Wait for what is under way; then the thread ends."""
        self._producer.flush(DELIVERY_S)
        self._stop.set()
        self._thread.join()
        self._producer.close()


def _out_of_room(topic: str, queued: int) -> StreamError:
    if queued:
        return OutcomeUnknown(f"{topic}: the brokers took only some of the records within {DELIVERY_S:g} s")
    return StreamFull("the brokers take less than what comes in", topic=topic)


class Fetched(NamedTuple):
    """A record with its place and its time (milliseconds since 1970)."""

    topic: str
    partition: int
    offset: int
    value: bytes
    appended_ms: int


class Trouble(NamedTuple):
    """What the library says instead of a record, about one partition."""

    topic: str
    partition: int
    lost: bool
    error: StreamError


Moved = Callable[[list[TopicPartition]], None]


@dataclass(frozen=True, slots=True)
class Membership:
    """`group`: joined under our name of it. `member`: a lasting name, or ""; `session_s`: silent so long, a worker is out."""

    group: str
    member: str
    session_s: float

    def settings(self, address: Address) -> dict[str, Any]:
        session_ms = int(self.session_s * 1000)
        return {
            "group.id": address.outer(self.group),
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": session_ms // HEARTBEATS,
            **({"group.instance.id": self.member} if self.member else {}),
        }


class Fetcher:
    """A consumer: of partitions assigned by hand, or of those that its group gives. Used by one thread, but closed by any:
    one that is left to the garbage collector keeps its partitions until then, and the interpreter waiting while it goes."""

    def __init__(self, address: Address, membership: Membership | None = None, wait_ms: int = WAIT_MS) -> None:
        self._address = address
        more: dict[str, Any] = {"fetch.wait.max.ms": wait_ms, "logger": _Log()}
        more |= membership.settings(address) if membership else {"group.id": address.outer("reading")}
        self._lock = threading.Lock()
        self._closed = False
        with translated():
            self._consumer = Consumer(_settings(address, _READ, more))

    def subscribe(self, topics: Sequence[str], gained: Moved, lost: Moved) -> None:
        """Join the group for these topics; one that ends in a dot is a prefix. From within `take`, `gained` is called with
        new partitions, which it assigns, and `lost` with those that are ours no more."""

        def on_assign(_consumer: Consumer, places: list[Place]) -> None:
            gained([at for at, _ in _inner(self._address, places)])

        def on_lost(consumer: Consumer, places: list[Place]) -> None:
            lost([at for at, _ in _inner(self._address, places)])
            consumer.incremental_unassign(places)

        with translated():
            names = [_pattern(self._address.outer(topic)) for topic in topics]
            self._consumer.subscribe(names, on_assign=on_assign, on_revoke=on_lost, on_lost=on_lost)

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read these as well, from these positions on. The library remembers pauses longer than assignments."""
        with translated():
            self._consumer.incremental_assign([_outer(self._address, at, to) for at, to in positions.items()])
            self._consumer.resume([_outer(self._address, at) for at in positions])

    def unassign(self, places: Sequence[TopicPartition]) -> None:
        with translated():
            self._consumer.incremental_unassign([_outer(self._address, at) for at in places])

    def pause(self, places: Sequence[TopicPartition]) -> None:
        with translated():
            self._consumer.pause([_outer(self._address, at) for at in places])

    def take(self, records_max: int, timeout_s: float) -> tuple[list[Fetched], list[Trouble]]:
        """What came, at once if anything is there; else what comes first within the timeout."""
        with self._in_use(), translated():
            messages = self._consumer.consume(records_max, 0.0)
            if not messages and timeout_s > 0:
                first = self._consumer.consume(1, timeout_s)
                messages = first + self._consumer.consume(records_max, 0.0) if first else []
        records, troubles = [], []
        for message in messages:
            topic, error = self._address.inner(message.topic() or ""), message.error()
            if error is None and topic is not None:
                records.append(_fetched(message, topic))
            elif error is not None and (trouble := _trouble(message, topic or "", error)) is not None:
                troubles.append(trouble)
        return records, troubles

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Durable when this returns. What is not ours any more is left to its owner."""
        places = [_outer(self._address, at, to) for at, to in positions.items()]
        until = time.monotonic() + ASK_S
        while True:
            try:
                with self._in_use():
                    self._consumer.commit(offsets=places, asynchronous=False)
                return
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                if reason.code() in _NOT_OURS:
                    return
                told = translation(reason)
                if not isinstance(told, StreamFull) or time.monotonic() > until:
                    raise told from error
                time.sleep(RETRY_S)

    def close(self) -> None:
        """Give the partitions back. Waits for a `take` that is under way. Twice is once."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._consumer.close()

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise ClosedStream
            yield


def _pattern(outer: str) -> str:
    """Names hold letters, digits, hyphens, underscores, and dots, which alone mean something in a pattern."""
    return "^" + outer.replace(".", "\\.") + ".*" if outer.endswith(".") else outer


def _fetched(message: Message, topic: str) -> Fetched:
    value, appended_ms = message.value() or b"", message.timestamp()[1]
    return Fetched(topic, message.partition() or 0, message.offset() or 0, value, appended_ms)


def _trouble(message: Message, topic: str, error: KafkaError) -> Trouble | None:
    """None for what the library mends by itself: brokers that are away, topics that are not there yet. Raises
    StreamBroken if it is no topic's."""
    lost = error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._LOG_TRUNCATION)
    told = translation(error, topic)
    if not lost and isinstance(told, StreamFull | UnknownTopic):
        return None
    if not topic or isinstance(told, StreamBroken):
        raise told
    return Trouble(topic, message.partition() or 0, lost, told)
