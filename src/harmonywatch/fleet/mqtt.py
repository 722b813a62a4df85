"""The fleet's line to an MQTT broker: each report a message, QoS 1, at most as many at once as the broker allows.

As in `wire.py`, a request is answered exactly once: by `on_answer` when the broker has it (202), refuses it (403) or has
nobody to give it to (503), by `on_failure` when the session ended before that; sending again is the sender's decision.
"""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from harmonywatch.broker import NOBODY, QUOTA, REFUSED, Broker, BrokerAway, Session, SessionTerms
from harmonywatch.fleet.plan import Target
from harmonywatch.fleet.wire import RECONNECT_MAX_S, RECONNECT_MIN_S, Answer, Listener, Request


def _answer(code: int, words: str) -> Answer:
    """What HTTP would have said."""
    if code < REFUSED:
        return Answer(503 if code == NOBODY else 202, None, b"")
    return Answer(429 if code == QUOTA else 403, None, msgspec.json.encode({"reason": words}))


class MqttPool:
    """One session at a time, opened when there is something to send. `head` of a request is its topic.

    Raises ValueError where the target's URL is no broker's or its key not `USER:PASSWORD`.
    """

    def __init__(self, target: Target, timeout_s: float, listener: Listener) -> None:
        user, colon, password = target.key.partition(":")
        if not colon:
            raise ValueError(f"by MQTT the key of {target.force} is USER:PASSWORD of the broker")
        self._broker = Broker.at(target.url, user, password, target.ca or "")
        self._terms = SessionTerms(client_id=user)
        self._timeout_s, self._listener = timeout_s, listener
        self._waiting: deque[Request] = deque()
        self._under_way: dict[int, Request] = {}
        self._session: Session | None = None
        self._keeping: asyncio.Task[None] | None = None

    def submit(self, request: Request) -> None:
        self._waiting.append(request)
        self._publish()

    def sweep(self, oldest_s: float) -> None:
        """Ends the session if a message has had no answer for `timeout_s`, and requests waiting since before `oldest_s`."""
        now = asyncio.get_running_loop().time()
        first = next(iter(self._under_way.values()), None)
        if first is not None and self._session is not None and now - first.sent_s > self._timeout_s:
            self._session.close()
        while self._waiting and self._waiting[0].first_s < oldest_s:
            self._listener.on_failure(self._waiting.popleft(), "no connection")

    async def close(self) -> None:
        if self._session is not None:
            self._session.close()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    def _publish(self) -> None:
        session = self._session
        if session is None:
            if self._keeping is None or self._keeping.done():
                self._keeping = asyncio.ensure_future(self._keep_open())
            return
        now = asyncio.get_running_loop().time()
        while self._waiting and len(self._under_way) < session.window:
            request = self._waiting.popleft()
            request.tries += 1
            request.sent_s = now
            self._under_way[session.publish(request.head.decode(), request.body)] = request

    def _published(self, number: int, code: int, words: str) -> None:
        request = self._under_way.pop(number, None)
        if request is not None:
            latency_s = asyncio.get_running_loop().time() - request.sent_s
            self._listener.on_answer(request, _answer(code, words), latency_s)
        self._publish()

    async def _keep_open(self) -> None:
        """Sessions, one after the other, as long as somebody waits for one."""
        backoff_s = RECONNECT_MIN_S
        while self._waiting:
            session = Session(self._broker, self._terms, on_published=self._published)
            try:
                await session.open()
            except BrokerAway as error:
                if self._waiting:
                    self._listener.on_failure(self._waiting.popleft(), str(error))
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, RECONNECT_MAX_S)
                continue
            backoff_s, self._session = RECONNECT_MIN_S, session
            self._publish()
            reason = await session.ended()
            self._session = None
            lost, self._under_way = self._under_way, {}
            for request in lost.values():
                self._listener.on_failure(request, reason)
