"""The sender against a real HTTP door: everything gets an outcome, whatever the door does."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from door import DoorDouble, refusal

from harmonywatch.clock import ManualClock
from harmonywatch.fleet.faults import parse_faults
from harmonywatch.fleet.plan import FleetPlan, Target
from harmonywatch.fleet.send import run_fleet, write_fleet
from harmonywatch.fleet.tally import FleetResult, Histogram, Tally
from harmonywatch.fleet.truth import read_truth

ALL = "twice=0.05,late=0.02,order=0.02,malformed=0.03,skew=0.01,silent=0.005"


def plan_to(door: DoorDouble, **changes: object) -> FleetPlan:
    targets = (Target("north", door.url, "kn"), Target("south", door.url, "ks"))
    settings: dict[str, object] = {
        "watchers": 400,
        "rate": 3_000.0,
        "seconds": 0.5,
        "targets": targets,
        "give_up_s": 10.0,
    }
    return FleetPlan(**{**settings, **changes})  # type: ignore[arg-type]


def with_door(work: object, **start: object) -> FleetResult:
    """Runs `work(door)` on a loop of its own beside a started door."""

    async def run() -> FleetResult:
        door = DoorDouble({"kn", "ks"})
        await door.start(**start)  # type: ignore[arg-type]
        try:
            return await work(door)  # type: ignore[operator, no-any-return]
        finally:
            await door.stop()

    return asyncio.run(run())


@pytest.mark.parametrize("encoding", [None, "gzip", "zstd"])
def test_every_report_gets_through_with_its_verdict(tmp_path: Path, encoding: str | None) -> None:
    truth = tmp_path / "truth.ndjson"
    seen: list[int] = []

    async def work(door: DoorDouble) -> FleetResult:
        plan = plan_to(door, truth=truth, faults=parse_faults(ALL), encoding=encoding)
        result = await run_fleet(plan, lambda tally: seen.append(tally.sent))
        stored = [line for lines in door.lines.values() for line in lines]
        summary = read_truth(truth)
        assert summary.total("accepted") == result.tally.accepted == len(stored)
        assert summary.total("refused") == result.tally.refused == len(door.rejects) > 10
        assert summary.total("stored") == len(set(stored))
        assert {k: len(v) for k, v in door.lines.items()} == {
            "kn": summary.forces["north"].accepted,
            "ks": summary.forces["south"].accepted,
        }
        assert all(line.startswith(b'{"watcher_id":"north') for line in door.lines["kn"])
        assert {kind for kind, _ in door.requests} == {"application/json", "application/x-ndjson"}
        return result

    result = with_door(work)
    tally = result.tally
    assert tally.unknown == 0 and tally.retried == 0 and tally.under_way == 0
    assert tally.sent == tally.accepted + tally.refused and seen[-1] == tally.sent
    assert tally.latency.count == tally.requests


def test_the_pace_and_the_share_of_singles_are_the_plans() -> None:
    async def work(door: DoorDouble) -> FleetResult:
        result = await run_fleet(plan_to(door, watchers=1_000, rate=2_000.0, seconds=1.0, singles=0.3))
        assert 0.24 < sum(kind == "application/json" for kind, _ in door.requests) / result.tally.sent < 0.36
        return result

    result = with_door(work)
    assert result.tally.sent == 2_000
    assert 0.9 < result.tally.elapsed_s < 2.0


def test_the_relays_of_two_forces_are_out_of_step() -> None:
    arrived: dict[str, list[float]] = {"Bearer kn": [], "Bearer ks": []}

    async def note(request: web.Request) -> None:
        arrived[request.headers["Authorization"]].append(time.monotonic())

    async def work(door: DoorDouble) -> FleetResult:
        door.fault = note
        return await run_fleet(plan_to(door, seconds=2.0, rate=500.0, singles=0.0, batch_wait_s=0.3))

    with_door(work)
    north, south = arrived.values()
    apart = sorted(min(abs(one - other) for other in south) for one in north[:-1])
    assert len(apart) >= 4
    assert apart[len(apart) // 2] > 0.06, f"batches of both forces came together: {apart}"


def test_pressure_is_answered_by_patience_and_the_very_same_bytes(tmp_path: Path) -> None:
    answered: Counter[bytes] = Counter()

    async def work(door: DoorDouble) -> FleetResult:
        async def busy(request: web.Request) -> web.StreamResponse | None:
            body = await request.read()
            answered[body] += 1
            if answered[body] == 1 and len(answered) % 3 == 0:
                return web.json_response({"title": "busy"}, status=503, headers={"Retry-After": "0"})
            return None

        door.fault = busy
        result = await run_fleet(plan_to(door, truth=tmp_path / "truth.ndjson"))
        assert sum(map(len, door.lines.values())) == result.tally.sent
        return result

    tally = with_door(work).tally
    assert tally.accepted == tally.sent and tally.retried > 20
    assert tally.retried == sum(count - 1 for count in answered.values()) and max(answered.values()) == 2
    assert tally.failures["status 503"] == tally.retried and tally.recoveries_s
    assert read_truth(tmp_path / "truth.ndjson").total("accepted") == tally.sent


def test_an_answer_that_was_lost_is_asked_for_again() -> None:
    async def work(door: DoorDouble) -> FleetResult:
        judged = 0

        async def cut(request: web.Request) -> web.StreamResponse | None:
            nonlocal judged
            judged += 1
            if judged % 10 == 0:
                assert request.transport is not None
                request.transport.close()
            return None

        door.fault = cut
        return await run_fleet(plan_to(door))

    tally = with_door(work).tally
    assert tally.accepted == tally.sent and tally.unknown == 0
    assert tally.retried > 10


def test_a_restarted_gateway_gets_everything() -> None:
    async def work(door: DoorDouble) -> FleetResult:
        running = asyncio.ensure_future(run_fleet(plan_to(door, rate=1_000.0, seconds=1.5)))
        port = int(door.url.rsplit(":", 1)[1])
        deadline = time.monotonic() + 5
        while not door.requests and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        before = len(door.requests)
        await door.stop()
        await asyncio.sleep(0.3)
        await door.start(port)
        result = await running
        assert 0 < before < len(door.requests)
        assert len({line for lines in door.lines.values() for line in lines}) == result.tally.sent
        return result

    tally = with_door(work).tally
    assert tally.accepted == tally.sent and tally.unknown == 0
    assert tally.recoveries_s and max(tally.recoveries_s) < 5


def test_nobody_there_ends_as_unknown(tmp_path: Path) -> None:
    async def work(door: DoorDouble) -> FleetResult:
        await door.stop()
        plan = plan_to(door, rate=2_000.0, seconds=0.2, give_up_s=0.6, timeout_s=0.5, truth=tmp_path / "truth.ndjson")
        return await run_fleet(plan)

    tally = with_door(work).tally
    assert tally.sent == 400 and tally.unknown == 400 and tally.under_way == 0
    assert read_truth(tmp_path / "truth.ndjson").total("unknown") == 400


def test_a_gateway_that_does_not_answer_is_timed_out() -> None:
    async def work(door: DoorDouble) -> FleetResult:
        slept = asyncio.Event()
        calls = 0

        async def hang(_: web.Request) -> web.StreamResponse | None:
            nonlocal calls
            calls += 1
            if calls <= 3:
                await slept.wait()
            return None

        door.fault = hang
        result = await run_fleet(plan_to(door, seconds=0.3, timeout_s=0.3))
        slept.set()
        return result

    tally = with_door(work).tally
    assert tally.accepted == tally.sent and tally.failures["timed out"] >= 3


def test_a_wrong_key_is_refused_and_said() -> None:
    async def work(door: DoorDouble) -> FleetResult:
        door.keys = {"kn"}
        return await run_fleet(plan_to(door, seconds=0.5))

    tally = with_door(work).tally
    assert tally.accepted == tally.refused == tally.sent // 2
    assert tally.refusals == {"unknown key": tally.refused}


def test_a_run_without_end_stops_when_told() -> None:
    async def work(door: DoorDouble) -> FleetResult:
        stop = asyncio.Event()
        plan = plan_to(door, seconds=0)
        return await run_fleet(plan, lambda tally: stop.set() if tally.sent else None, stop)

    tally = with_door(work).tally
    assert tally.accepted == tally.sent > 1_000


def test_a_slow_gateway_holds_the_fleet_back_instead_of_filling_memory() -> None:
    async def work(door: DoorDouble) -> FleetResult:
        most = 0

        def look(tally: Tally) -> None:
            nonlocal most
            most = max(most, tally.under_way)

        result = await run_fleet(plan_to(door, rate=100_000.0, seconds=0.2, backlog_lines_max=1_000), look)
        assert most <= 1_000 + 2_048
        return result

    tally = with_door(work).tally
    assert tally.accepted == tally.sent == 20_000 and tally.held_back_s > 0


def test_tls_with_a_given_ca(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    async def work(door: DoorDouble) -> FleetResult:
        targets = (Target("north", door.url, "kn", ca=str(cert)),)
        return await run_fleet(plan_to(door, targets=targets, rate=2_000.0, seconds=0.3))

    tally = with_door(work, ssl=context).tally
    assert tally.accepted == tally.sent == 600


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1."""
    import ipaddress
    from datetime import timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    cert_path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_path, key_path


def test_a_fleet_written_to_a_file_is_the_same_twice(tmp_path: Path) -> None:
    clock = ManualClock(datetime(2026, 11, 23, 18, 4, 5, tzinfo=UTC))
    plan = FleetPlan(watchers=300, seconds=120, truth=tmp_path / "truth.ndjson", faults=parse_faults("late=0.01"))
    first = write_fleet(plan, tmp_path / "a.ndjson", clock)
    write_fleet(plan, tmp_path / "b.ndjson", clock)
    lines = (tmp_path / "a.ndjson").read_bytes().splitlines()
    assert (tmp_path / "a.ndjson").read_bytes() == (tmp_path / "b.ndjson").read_bytes()
    assert first.tally.sent == len(lines) == 600 and all(refusal(line) is None for line in lines)
    assert msgspec.json.decode(lines[5])["time"] == "2026-11-23T18:04:06.000000Z"
    assert read_truth(tmp_path / "truth.ndjson", assume_accepted=True).total("stored") == 600
    with pytest.raises(ValueError, match="needs an end"):
        write_fleet(FleetPlan(seconds=0), tmp_path / "c.ndjson")


def test_the_histogram_is_exact_to_nine_percent() -> None:
    histogram = Histogram()
    for i in range(1, 1001):
        histogram.add(i / 1000)
    assert 0.5 <= histogram.quantile_s(0.5) <= 0.55 and histogram.quantile_s(1.0) == 1.0
    assert Histogram().quantile_s(0.5) == 0.0
