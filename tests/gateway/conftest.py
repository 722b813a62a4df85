"""The gateway's tests run against both embedded streams, real sockets, real threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gateway_rig import Gateway, HeldStream, Members

from embedded_streams import stream  # noqa: F401 a fixture
from harmonywatch.stream.contract import Stream
from harmonywatch.stream.memory import MemoryStream


@pytest.fixture
def members() -> Members:
    members = Members()
    members.add("relay", "relay", "north", "base-1")
    members.add("south-relay", "relay", "south", "base-1")
    members.add("watcher", "watcher", "north", "W-1")
    members.add("officer", "officer", None, "alice")
    return members


@pytest.fixture
def door(stream: Stream, members: Members) -> Iterator[Gateway]:  # noqa: F811 the fixture above
    with Gateway(stream, members) as gateway:
        yield gateway


@pytest.fixture
def held() -> HeldStream:
    return HeldStream(MemoryStream())


@pytest.fixture
def held_door(held: HeldStream, members: Members) -> Iterator[Gateway]:
    with Gateway(held, members) as gateway:  # type: ignore[arg-type]
        yield gateway
        held.release.set()
