"""Where a live stream is, as text: the `id:` of its events, from which a client that was cut off goes on. Pure.

    9f3ab2c1;north;a.north:5-0-3-1;e.north:7-0-0-2

The first digits of the stream's own id, the scope (a force, or `*` for all), then each topic of the scope that was seen
(a = alerts, e = events) with the position next to read in each partition. A partition that is not named is at 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from harmonywatch.report.topics import ALERTS, EVENTS, force_of
from harmonywatch.stream.contract import TopicPartition

ALL = "*"
STREAM_DIGITS = 8
ID_LENGTH_MAX = 32_768
_SHORT = {ALERTS: "a.", EVENTS: "e."}
_LONG = {short: prefix for prefix, short in _SHORT.items()}
_TOPIC = re.compile(r"([ae]\.)([a-z0-9-]{1,64}):([0-9]{1,18}(?:-[0-9]{1,18}){0,1023})")
_HEAD = re.compile(rf"([0-9a-f]{{{STREAM_DIGITS}}});(\*|[a-z0-9-]{{1,64}})")


class NotAnId(ValueError):
    """The client's Last-Event-ID was never given by this product."""


class Vector:
    """Positions by topic and partition. Grows, as topics and partitions show up."""

    __slots__ = ("_texts", "_topics")

    def __init__(self, topics: Mapping[str, Iterable[int]] | None = None) -> None:
        self._topics = {topic: list(positions) for topic, positions in (topics or {}).items()}
        self._texts: dict[str, str] = {}

    def get(self, at: TopicPartition) -> int:
        positions = self._topics.get(at.topic, ())
        return positions[at.partition] if at.partition < len(positions) else 0

    def advance(self, at: TopicPartition, position: int) -> None:
        positions = self._topics.setdefault(at.topic, [])
        if at.partition >= len(positions):
            positions.extend([0] * (at.partition + 1 - len(positions)))
        positions[at.partition] = position
        self._texts.pop(at.topic, None)

    def topics(self) -> set[str]:
        return set(self._topics)

    def partitions(self) -> list[TopicPartition]:
        return [TopicPartition(topic, p) for topic, positions in self._topics.items() for p in range(len(positions))]

    def of(self, scope: str | None) -> Vector:
        """A copy of what belongs to a force; of everything, for None."""
        return Vector({topic: each for topic, each in self._topics.items() if scope in (None, force_of(topic))})

    def behind(self, other: Vector) -> int:
        """Records between these positions and the other's, which are higher or equal."""
        return sum(max(other.get(at) - self.get(at), 0) for at in other.partitions())

    def text(self, scope: str | None) -> str:
        """The topics of a force, or all; what did not change since the last call is not written again."""
        topics = [topic for topic in self._topics if scope is None or topic in (ALERTS + scope, EVENTS + scope)]
        return "".join(map(self._text, topics))

    def _text(self, topic: str) -> str:
        text = self._texts.get(topic)
        if text is None:
            kind, force = topic.split(".", 1)
            text = f";{_SHORT[kind + '.']}{force}:{'-'.join(map(str, self._topics[topic]))}"
            self._texts[topic] = text
        return text


class Mark(NamedTuple):
    """A decoded id. `stream`: the first digits of the stream's id; `scope`: a force, None for all."""

    stream: str
    scope: str | None
    vector: Vector


def write_id(stream_id: str, scope: str | None, vector: Vector) -> bytes:
    """The id of an event after which a client of the scope is at `vector`."""
    return f"{stream_id[:STREAM_DIGITS]};{scope or ALL}{vector.text(scope)}".encode()


def read_id(text: str) -> Mark:
    """What `write_id` wrote. Raises NotAnId."""
    head, *topics = text.split(";", 2)[:2], *text.split(";")[2:]
    found = _HEAD.fullmatch(";".join(head))
    if found is None or len(text) > ID_LENGTH_MAX:
        raise NotAnId("Last-Event-ID is not one that this API gave")
    positions: dict[str, list[int]] = {}
    for topic in topics:
        each = _TOPIC.fullmatch(topic)
        if each is None:
            raise NotAnId("Last-Event-ID is not one that this API gave")
        positions[_LONG[each[1]] + each[2]] = [int(position) for position in each[3].split("-")]
    return Mark(found[1], None if found[2] == ALL else found[2], Vector(positions))
