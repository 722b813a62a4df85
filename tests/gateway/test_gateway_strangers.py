"""Keys that nobody knows: however many come, whoever is known, and whoever asks how the gateway is, does not wait."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from gateway_rig import Gateway, Members, eventually, headers_of, report, request

from harmonywatch.clock import SystemClock
from harmonywatch.gateway import company, server
from harmonywatch.gateway.company import Company
from harmonywatch.registry.contract import KeyInfo, RegistryBusy
from harmonywatch.registry.keyring import EMPTY, Keyring, KeyringCache, hash_of, key_text
from harmonywatch.stream.memory import MemoryStream

LOOK_S = 0.03


class SlowSource:
    """A registry of which each look takes `LOOK_S`."""

    def __init__(self) -> None:
        self.keys: dict[str, KeyInfo] = {}
        self.looks = 0
        self.busy = False

    def version(self) -> int:
        self.looks += 1
        threading.Event().wait(LOOK_S)
        if self.busy:
            raise RegistryBusy("registry")
        return len(self.keys)

    def keyring(self, _since: Keyring | None = None) -> Keyring:
        live = {hash_of(key): info for key, info in self.keys.items()}
        return EMPTY.changed(len(live), {digest: info for digest, info in live.items() if digest is not None})

    def add(self, number: int) -> str:
        key = key_text("relay", number.to_bytes(32))
        self.keys[key] = KeyInfo(f"k-{number}", "relay", "north", f"base-{number}")
        return key


def unknown(number: int) -> str:
    return key_text("watcher", number.to_bytes(32))


async def ask(port: int, head: bytes) -> tuple[int, float]:
    """Status and seconds of one request on a connection of its own."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    status = int((await reader.readline()).split()[1])
    writer.close()
    await writer.wait_closed()
    return status, time.monotonic() - began


def post(key: str) -> bytes:
    return request("POST", "/v1/reports", headers_of(key) | {"Connection": "close"}, report())


def test_a_flood_of_unknown_keys_delays_neither_known_ones_nor_the_operator(members: Members) -> None:
    source = SlowSource()
    known = source.add(1)
    keys = KeyringCache(source, SystemClock(), revalidate_s=3600)
    keys.refresh()
    source.looks = 0

    async def flood(port: int) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        strangers = [asyncio.create_task(ask(port, post(unknown(number)))) for number in range(400)]
        await asyncio.to_thread(eventually, lambda: source.looks)  # the flood is under way
        served = [await ask(port, post(known)), await ask(port, request("GET", "/readyz", {"Connection": "close"}))]
        return served, await asyncio.gather(*strangers)

    with Gateway(MemoryStream(), members, keys=keys) as door:
        served, strangers = asyncio.run(flood(door.port))
    assert [status for status, _ in served] == [202, 200]
    assert {status for status, _ in strangers} == {401}
    assert source.looks < 100, "a look for every stranger"
    assert max(seconds for _, seconds in served) < 1.0


def test_a_key_made_while_a_look_is_under_way_is_found_by_the_next(members: Members) -> None:
    source = SlowSource()
    keys = KeyringCache(source, SystemClock(), revalidate_s=3600)
    keys.refresh()
    with Gateway(MemoryStream(), members, keys=keys) as door:
        for number in range(5):
            stranger = threading.Thread(target=door.send, args=(report(), unknown(number)))
            looks = source.looks
            stranger.start()
            eventually(lambda looks=looks: source.looks > looks)  # it is in the middle of its look
            assert door.send(report(), source.add(100 + number)).status == 202
            stranger.join()


def test_a_busy_registry_is_told_to_all_who_wait_and_not_for_ever(members: Members) -> None:
    source = SlowSource()
    keys = KeyringCache(source, SystemClock(), revalidate_s=3600)
    keys.refresh()

    async def several(port: int) -> set[int]:
        return {status for status, _ in await asyncio.gather(*(ask(port, post(unknown(n % 3))) for n in range(20)))}

    with Gateway(MemoryStream(), members, keys=keys) as door:
        source.busy = True
        assert asyncio.run(several(door.port)) == {503}
        source.busy = False
        assert asyncio.run(several(door.port)) == {401}


@pytest.mark.parametrize(("size_bytes", "lingers"), [(2_000, True), (16 << 10, False)])
def test_a_batch_is_company_enough(size_bytes: int, lingers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(company.time, "sleep", slept.append)

    async def one_after_the_other() -> None:
        gathering = Company(60.0)
        for size in (20 << 10, size_bytes):
            begun = asyncio.Event()
            gathering.join(begun.set, size)
            await begun.wait()

    asyncio.run(one_after_the_other())
    assert slept == ([60.0] if lingers else [])


def test_a_large_request_is_taken_at_once(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much comes is known by Content-Length, before it has come."""
    slept: list[float] = []
    monkeypatch.setattr(server, "LINGER_S", 60.0)
    monkeypatch.setattr(company.time, "sleep", slept.append)
    batch = b"\n".join(report(f"W-{number}") for number in range(200))
    with Gateway(MemoryStream(), members) as door:
        for _ in range(3):
            assert door.send(batch, media="application/x-ndjson").json["accepted"] == 200
        assert slept == []
        assert door.send(report()).status == 202
        assert slept == [60.0]
