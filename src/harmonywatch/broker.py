"""A session with an MQTT broker (MQTT 5), on an asyncio event loop. The one file that knows paho.

Used at both ends: by the service that takes watchers' reports from the broker, and by the fleet that sends them. Its rules:

1. A `Session` is one connection. It ends once, for a reason, and does not come back: who wants to go on opens another.
   So an acknowledgement can never reach a later connection, where its number may stand for another message.
2. A message is acknowledged by `ack` and by nothing else. What was not is sent again by the broker, in a later session of
   the same `client_id`, for `keep_s`.
3. `on_message` and `on_published` are called on the event loop; they must not wait and must not raise.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

SCHEMES = {"mqtt": 1883, "mqtts": 8883}
CONNECT_S = 5.0
KEEPALIVE_S = 30
TICK_S = 1.0
QOS = 1
READ_MAX = 512
"""Packets read before others get their turn on the event loop."""

NOBODY, REFUSED, QUOTA = 0x10, 0x80, 0x97
"""Reason codes (MQTT 5, 2.4): taken, but nobody subscribes; from here on they say no; no room now."""


class BrokerAway(Exception):
    """The broker cannot be reached, does not let us in, or ended the connection; the message says which."""


@dataclass(frozen=True, slots=True)
class Broker:
    """Where a broker is, and who we are there."""

    host: str
    port: int
    tls: ssl.SSLContext | None = field(default=None, compare=False)
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def at(cls, url: str, user: str = "", password: str = "", ca: str = "") -> Broker:
        """`mqtt://host:port` or `mqtts://host:port`; `ca`: PEM file to trust instead of the system's. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"{url!r} is not the mqtt:// or mqtts:// URL of a broker")
        tls = None
        if parts.scheme == "mqtts":
            try:
                tls = ssl.create_default_context(cafile=ca or None)
            except (OSError, ssl.SSLError) as error:
                raise ValueError(f"{ca}: {error}") from error
        return cls(parts.hostname, parts.port or SCHEMES[parts.scheme], tls, user, password)


class Message(NamedTuple):
    """What the broker handed over. `number`: what `ack` wants, 0 for a message that needs none (QoS 0); `content_type`:
    "" unless its sender speaks MQTT 5 and gave one. `topic` is "" where it is not UTF-8."""

    topic: str
    payload: bytes
    content_type: str
    number: int


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """`client_id`: names the session at the broker; a second one of that name ends the first. `keep_s`: how long the broker
    keeps the session once we are gone, 0 = not at all. `in_flight_max`: messages either side may leave unacknowledged."""

    client_id: str
    keep_s: int = 0
    in_flight_max: int = 256


class Session:
    """One connection; see the header.

    `on_published` is told the number of a message, the broker's reason code (0: it has it; NOBODY: it has dropped it, as
    nobody subscribes; from REFUSED on: no) and that in words. `window`: messages that may be published before the first
    of them is told.
    """

    def __init__(
        self,
        broker: Broker,
        terms: SessionTerms,
        on_message: Callable[[Message], None] | None = None,
        on_published: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self._broker, self._terms = broker, terms
        self._tell, self._tell_published = on_message, on_published
        self.window = terms.in_flight_max
        self._loop = asyncio.get_running_loop()
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._subscribed: asyncio.Future[list[Any]] | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._steps = 0
        self._unacknowledged = 0
        self._holding = False
        self._client = self._made()

    async def open(self) -> None:
        """Connect and be let in. Raises BrokerAway."""
        try:
            await asyncio.to_thread(self._dial)  # paho resolves names and shakes hands without an event loop
        except (OSError, ValueError) as error:
            self._end(f"no connection: {error}")
            raise BrokerAway(self._ended.result()) from error
        client, link = self._client, self._client.socket()
        if link is None:
            raise BrokerAway(self._end("no connection: it was lost at once"))
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_wants_write
        client.on_socket_unregister_write = self._on_wants_no_write
        self._loop.add_reader(link.fileno(), self._readable)
        if client.want_write():
            self._on_wants_write(client, None, link)
        self._tick()
        await self._within(self._connected, "the broker did not answer")

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Ask for all messages of these topics, QoS 1. Raises BrokerAway, also where one of them is refused."""
        self._subscribed = self._loop.create_future()
        self._client.subscribe([(each, QOS) for each in filters])
        codes = await self._within(self._subscribed, "the broker did not answer a subscription")
        refused = [each for each, code in zip(filters, codes, strict=True) if code.value >= REFUSED]
        if refused:
            raise BrokerAway(f"the broker refuses the subscription to {', '.join(refused)}; mind its access list")

    def publish(self, topic: str, payload: bytes) -> int:
        """Hand a message to the broker, QoS 1; its number. `on_published` tells when the broker has it."""
        return self._client.publish(topic, payload, QOS).mid

    def ack(self, number: int) -> None:
        """The message need not be sent again. Nothing happens once the session has ended."""
        if not self._ended.done() and number:
            self._client.ack(number, QOS)
            self._unacknowledged -= 1
            if self._holding and self._unacknowledged < self._terms.in_flight_max:
                self._go_on()

    @property
    def open_now(self) -> bool:
        return self._connected.done() and not self._ended.done()

    async def ended(self) -> str:
        """Wait for the end; the reason."""
        return await asyncio.shield(self._ended)

    def close(self) -> None:
        """Send what waits to be sent, take leave, end. The broker keeps the session. Twice is once."""
        if not self._ended.done():
            self._client.disconnect()
            self._client.loop_write()
            link: Any = self._client.socket()
            if link is not None:  # it takes no more now, and we do not wait for it
                with contextlib.suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)
            self._end("closed")

    async def _within(self, future: asyncio.Future[Any], otherwise: str) -> Any:
        """The future's value, unless the session ends first or it takes too long."""
        done, _ = await asyncio.wait((future, self._ended), timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
        if future in done:
            return future.result()
        reason = self._ended.result() if self._ended in done else otherwise
        self.close()
        raise BrokerAway(reason)

    def _end(self, reason: str) -> str:
        if not self._ended.done():
            self._ended.set_result(reason)
        if self._ticking is not None:
            self._ticking.cancel()
        return self._ended.result()

    # --- paho and the event loop

    def _made(self) -> Client:
        broker, terms = self._broker, self._terms
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=terms.client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        if broker.user:
            client.username_pw_set(broker.user, broker.password)
        if broker.tls is not None:
            client.tls_set_context(broker.tls)
        client.connect_timeout = CONNECT_S
        client.max_inflight_messages_set(terms.in_flight_max)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_message, client.on_publish = self._on_message, self._on_publish
        client.on_subscribe = self._on_subscribe
        return client

    def _dial(self) -> None:
        wishes = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        wishes.SessionExpiryInterval = self._terms.keep_s
        wishes.ReceiveMaximum = self._terms.in_flight_max
        self._client.connect(
            self._broker.host, self._broker.port, KEEPALIVE_S, clean_start=not self._terms.keep_s, properties=wishes
        )

    def _readable(self) -> None:
        """Read what is there: paho takes one packet a call, and does not say whether there was one."""
        for _ in range(READ_MAX):
            if self._unacknowledged >= self._terms.in_flight_max:
                self._hold()
                return
            before = self._steps
            self._read_packet()
            link: Any = self._client.socket()
            if link is None:
                return
            if self._steps == before and not (self._broker.tls is not None and link.pending()):
                return
        if self._broker.tls is not None:  # what TLS has unpacked already wakes nobody
            self._loop.call_soon(self._readable)

    def _hold(self) -> None:
        """Read nothing until something is acknowledged. The broker knows the limit (Receive Maximum), but Mosquitto 2.0.11
        keeps it only until the first acknowledgements come together: then it sends a multiple."""
        link: Any = self._client.socket()
        if link is not None and not self._holding:
            self._holding = True
            self._loop.remove_reader(link.fileno())

    def _go_on(self) -> None:
        link: Any = self._client.socket()
        if link is not None:
            self._holding = False
            self._loop.add_reader(link.fileno(), self._readable)
            self._loop.call_soon(self._readable)  # what TLS has unpacked already wakes nobody

    def _read_packet(self) -> None:
        try:
            self._client.loop_read()
        except Exception:
            self.close()  # a packet half handled: what follows could not be told apart from it
            raise

    def _tick(self) -> None:
        self._client.loop_misc()
        if not self._ended.done():
            self._ticking = self._loop.call_later(TICK_S, self._tick)

    def _on_wants_write(self, _client: Client, _data: Any, link: Any) -> None:
        self._loop.add_writer(link.fileno(), self._client.loop_write)

    def _on_wants_no_write(self, _client: Client, _data: Any, link: Any) -> None:
        self._loop.remove_writer(link.fileno())

    def _on_socket_close(self, _client: Client, _data: Any, link: Any) -> None:
        self._loop.remove_reader(link.fileno())
        self._loop.remove_writer(link.fileno())

    # --- what paho tells

    def _on_connect(self, _client: Client, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        self._steps += 1
        if reason.is_failure:
            self._end(f"the broker does not let {self._broker.user or 'us'} in: {reason}")
            return
        self.window = min(getattr(properties, "ReceiveMaximum", self.window), self.window)
        if not self._connected.done():
            self._connected.set_result(None)

    def _on_disconnect(self, _client: Client, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:
        by_broker = flags.is_disconnect_packet_from_server
        self._end(f"the broker ended the connection: {reason}" if by_broker else f"connection lost: {reason}")

    def _on_subscribe(self, _client: Client, _data: Any, _number: int, codes: list[Any], _properties: Any) -> None:
        self._steps += 1
        if self._subscribed is not None and not self._subscribed.done():
            self._subscribed.set_result(codes)

    def _on_publish(self, _client: Client, _data: Any, number: int, reason: Any, _properties: Any) -> None:
        self._steps += 1
        if self._tell_published is not None:
            self._tell_published(number, reason.value, str(reason))

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self._steps += 1
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        self._unacknowledged += message.qos > 0
        content_type = getattr(message.properties, "ContentType", "")
        if self._tell is not None:
            self._tell(Message(topic, bytes(message.payload), content_type, message.mid if message.qos else 0))
