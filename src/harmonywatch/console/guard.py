"""What one connection may cost: time and bytes of a request's head, and time to take what is written to it.

uvicorn bounds none of these: a client that never reads keeps its buffers until the kernel gives up, one that sends half a
head, or a head without an end, keeps its connection and its bytes for ever. Here each is cut: with a reset, because what
waits in the kernel for a client that takes nothing would otherwise outlive the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: closing throws away what was not sent, and tells the other side at once."""


@dataclass(frozen=True, slots=True)
class Patience:
    """`head_s`: from the connection's begin, or a later request's, to the end of its head; `head_bytes_max`: of that head;
    `untaken_s`: how long more than the transport's high-water mark may wait for a client that takes nothing."""

    head_s: float = 10.0
    head_bytes_max: int = 64 << 10
    untaken_s: float = 30.0


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's connection, cut where it outlasts our patience."""

    def __init__(self, *arguments: Any, patience: Patience, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._patience = patience
        self._head_bytes = 0
        self._head_ends: asyncio.TimerHandle | None = None
        self._taking_ends: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        self._taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_ends is not None and self._head_bytes > self._patience.head_bytes_max:
            self._cut()

    def on_message_begin(self) -> None:
        if self._head_ends is None:
            self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_came()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._taking_ends is None:
            self._taking_ends = self.loop.call_later(self._patience.untaken_s, self._cut)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taken()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_ends = self.loop.call_later(self._patience.head_s, self._head_overdue)

    def _head_overdue(self) -> None:
        if self.flow.read_paused:  # by us, until the answers to earlier requests are written
            self._await_head()
        else:
            self._cut()

    def _head_came(self) -> None:
        if self._head_ends is not None:
            self._head_ends.cancel()
            self._head_ends = None

    def _taken(self) -> None:
        if self._taking_ends is not None:
            self._taking_ends.cancel()
            self._taking_ends = None

    def _cut(self) -> None:
        descriptor = self.transport.get_extra_info("socket").fileno()
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()
