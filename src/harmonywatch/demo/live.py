"""An officer's screen without a screen: listens to the console's live stream and says each incident as it opens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp

RETRY_S = 0.2


async def listen(url: str, key: str, on_event: Callable[[str, dict[str, Any]], None], stop: asyncio.Event) -> None:
    """Call `on_event(kind, data)` for every event until `stop`; a broken connection is resumed where it broke."""
    last_id = ""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=30)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while not stop.is_set():
            headers = {"Authorization": f"Bearer {key}"} | ({"Last-Event-ID": last_id} if last_id else {})
            try:
                async with session.get(f"{url}/api/live", headers=headers) as answer:
                    answer.raise_for_status()
                    async for event_id, kind, data in events(answer.content):
                        last_id = event_id or last_id
                        on_event(kind, json.loads(data) if data else {})
                        if stop.is_set():
                            return
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(RETRY_S)


async def events(lines: aiohttp.StreamReader) -> AsyncIterator[tuple[str, str, str]]:
    """(id, event, data) of each server-sent event."""
    event_id = kind = ""
    data: list[str] = []
    async for raw in lines:
        line = raw.decode().rstrip("\r\n")
        if not line:
            if data or kind:
                yield event_id, kind, "\n".join(data)
            event_id = kind = ""
            data = []
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "id":
                event_id = value
            elif field == "event":
                kind = value
            elif field == "data":
                data.append(value)
