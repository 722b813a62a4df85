"""The two ways from the fleet to a force: HTTP to its gateway, or MQTT to a broker. What the sender need not tell apart.

A way makes the head of each request (HTTP: all but the body; MQTT: the topic) and has a pool for each target, which
answers each request once, as `wire.py` says. By MQTT there is no verdict: *accepted* then means that the broker has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from harmonywatch.fleet.plan import FleetPlan, watcher_id
from harmonywatch.fleet.wire import Door, Listener, Pool, Request


class Line(Protocol):
    """A `Pool`, or what does the same by MQTT."""

    def submit(self, request: Request) -> None: ...

    def sweep(self, oldest_s: float) -> None: ...

    async def close(self) -> None: ...


class Way(Protocol):
    """`pools`: by target."""

    pools: Sequence[Line]

    def head(self, target: int, body: bytes, watcher: int | None = None) -> bytes:
        """Of one report of a watcher, or, without one, of several that a relay sends together (HTTP only)."""


class HttpWay:
    """Kept connections to the gateway of each target."""

    def __init__(self, plan: FleetPlan, listener: Listener) -> None:
        doors = [Door.at(target.url, target.ca) for target in plan.targets]
        pairs = list(zip(doors, plan.targets, strict=True))
        self._single_heads = [door.head(target.key, "application/json") for door, target in pairs]
        self._batch_heads = [door.head(target.key, "application/x-ndjson", plan.encoding) for door, target in pairs]
        each = max(1, plan.connections // len(doors))
        self.pools: Sequence[Line] = [Pool(door, each, plan.timeout_s, listener) for door in doors]

    def head(self, target: int, body: bytes, watcher: int | None = None) -> bytes:
        heads = self._batch_heads if watcher is None else self._single_heads
        return heads[target] + b"%d\r\n\r\n" % len(body)


class MqttWay:
    """A session with the broker of each target."""

    def __init__(self, plan: FleetPlan, listener: Listener) -> None:
        try:
            from harmonywatch.fleet.mqtt import MqttPool  # its library is an extra
        except ImportError as error:
            raise ValueError(
                f"MQTT needs the extra `distributed`: pip install harmonywatch[distributed] ({error})"
            ) from None

        self._forces = plan.forces
        self.pools: Sequence[Line] = [MqttPool(target, plan.timeout_s, listener) for target in plan.targets]

    def head(self, target: int, body: bytes, watcher: int | None = None) -> bytes:  # noqa: ARG002
        assert watcher is not None, "by MQTT every report is a message"
        return f"forces/{self._forces[target]}/watchers/{watcher_id(watcher, self._forces)}/reports".encode()
