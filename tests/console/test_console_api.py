"""The API beside the live streams: who is let in, what is listed, pages that work offline, readiness, binding."""

from __future__ import annotations

import re
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from console_city import City
from console_client import alert, append_alerts, get
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from harmonywatch import assemble
from harmonywatch.clock import SystemClock
from harmonywatch.dispatch.dispatcher import Dispatcher, DispatchParts
from harmonywatch.registry.contract import KeyInfo, RegistryBusy
from harmonywatch.report.topics import ALERTS
from harmonywatch.settings import BadSettings, ConsoleSettings, Settings, load
from harmonywatch.telemetry import Telemetry

FORCES = ("north", "south")
GUARDED = ("/api/live", "/api/alerts", "/api/incidents")


def problem(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    status, headers, body = answer
    assert headers["content-type"] == "application/problem+json"
    document = msgspec.json.decode(body)
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    return status, document["code"]


@pytest.mark.parametrize("path", GUARDED)
def test_only_officers_get_in_and_only_to_their_force(quick_city: City, path: str) -> None:
    port = quick_city.console().port
    officer, everywhere = quick_city.officer("ada", "north"), quick_city.officer("all", None)
    watcher = quick_city.registry.add_watcher("w-1", "north").key
    assert problem(get(port, path)) == (401, "no-key")
    assert problem(get(port, path, "hw_o_" + "x" * 43)) == (401, "unknown-key")
    assert problem(get(port, path, headers={"Authorization": f"Basic {officer}"})) == (401, "no-key")
    assert problem(get(port, f"{path}?key={officer}")) == (401, "no-key")
    assert problem(get(port, path, watcher)) == (403, "not-an-officer")
    assert problem(get(port, f"{path}?force=south", officer)) == (403, "not-your-force")
    assert problem(get(port, f"{path}?force=west", everywhere)) == (404, "no-such-force")
    assert problem(get(port, f"{path}?since=yesterday", officer)) == (422, "invalid")
    assert problem(get(port, f"{path}?since=0001-01-01T00:00:00%2B10:00", officer)) == (422, "invalid")
    assert get(port, path)[1]["www-authenticate"].startswith("Bearer")


def test_keys_that_cannot_be_read_are_a_matter_of_time(quick_city: City) -> None:
    class Busy:
        def peek(self, _key: str) -> KeyInfo | None:
            return None

        def find(self, _key: str) -> KeyInfo | None:
            raise RegistryBusy("registry.db")

    answer = get(quick_city.console(keys=Busy()).port, "/api/alerts", "hw_o_" + "x" * 43)
    assert problem(answer) == (503, "registry")
    assert answer[1]["retry-after"] == "1"


def test_alerts_are_listed_of_the_officers_force_the_newest_so_many(quick_city: City) -> None:
    asked: list[tuple[str | None, datetime | None]] = []

    def listing(force: str | None, since: datetime | None) -> Iterable[object]:
        asked.append((force, since))
        return ({"id": n} for n in range(1000))

    port = quick_city.console(alerts=listing).port
    officer, everywhere = quick_city.officer("ada", "north"), quick_city.officer("all", None)
    status, headers, body = get(port, "/api/alerts?limit=3&since=2026-11-23T19:00:00%2B01:00", officer)
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "application/json", "no-store")
    assert msgspec.json.decode(body) == {"alerts": [{"id": 997}, {"id": 998}, {"id": 999}]}
    assert len(msgspec.json.decode(get(port, "/api/alerts", everywhere)[2])["alerts"]) == 500
    get(port, "/api/alerts?force=south", everywhere)
    assert asked[0] == ("north", datetime(2026, 11, 23, 19, tzinfo=timezone(timedelta(hours=1))))
    assert [force for force, _ in asked] == ["north", None, "south"]
    assert problem(get(port, "/api/alerts?limit=0", officer)) == (422, "invalid")
    assert asked[1][1] is not None
    assert timedelta(minutes=59) < SystemClock().now() - asked[1][1] < timedelta(minutes=61)


def open_incidents(city: City, settings: Settings, count: int) -> dict[str, list[str]]:
    """Real ones, so many in each force; their ids in the order they opened."""
    stream = city.stream
    with assemble.opened_registry(settings, "os:test") as registry:
        for force in FORCES:
            registry.add_force(force)
            for n in range(count):
                append_alerts(
                    stream, msgspec.structs.replace(alert(n, force), alert_id=f"{n:04x}{force.encode().hex():0<28}")
                )
        store = assemble.open_incidents(settings)
        dispatcher = Dispatcher(DispatchParts(store, stream, registry, SystemClock(), Telemetry("dispatch")))
        for topic, partitions in stream.topics().items():
            for partition in range(partitions if topic.startswith(ALERTS) else 0):
                dispatcher.start(topic, partition)
                dispatcher.handle(stream.read(topic, partition, 0))
        ids = {force: [each.incident_id for each in store.incidents(force)] for force in FORCES}
        store.close()
    return ids


def test_incidents_are_listed_by_the_page_at_the_cost_of_the_page(quick_city: City, tmp_path: Path) -> None:
    settings, _ = load({"data": str(tmp_path)}, {})
    ids = open_incidents(quick_city, settings, 25)
    read: list[int] = []

    def page(force: str | None, since: datetime | None, limit: int, after: str | None) -> list[Any]:
        read.append(limit)
        return assemble.incidents_of(settings, force, since, limit, after)

    port = quick_city.console(incidents=page).port
    officer, everywhere = quick_city.officer("ada", "north"), quick_city.officer("all", None)

    def listed(query: str, key: str = officer) -> list[str]:
        status, headers, body = get(port, f"/api/incidents{query}", key)
        assert (status, headers["content-type"], headers["cache-control"]) == (200, "application/json", "no-store")
        return [each["incident_id"] for each in msgspec.json.decode(body)["incidents"]]

    assert listed("?limit=3") == ids["north"][-3:]
    assert listed("") == ids["north"] and len(listed("", everywhere)) == 50
    walked, after = [], ""
    while found := listed(f"?limit=10&after={after}"):
        walked += found
        after = found[-1]
    assert walked == ids["north"]
    assert max(read) == 500, "never more than was asked for"
    assert problem(get(port, "/api/incidents?after=nothing", officer)) == (404, "no-such-incident")
    assert problem(get(port, f"/api/incidents?after={ids['south'][0]}", officer)) == (404, "no-such-incident")
    assert problem(get(port, "/api/incidents?limit=0", officer)) == (422, "invalid")


def test_a_bug_is_answered_without_its_inside(quick_city: City) -> None:
    def listing(_force: str | None, _since: datetime | None) -> Iterable[object]:
        raise ZeroDivisionError("secret")

    answer = get(quick_city.console(alerts=listing).port, "/api/alerts", quick_city.officer("ada", "north"))
    assert problem(answer) == (500, "bug")
    assert b"secret" not in answer[2]


def test_what_is_not_there_is_a_problem_document(quick_city: City) -> None:
    port = quick_city.console().port
    assert problem(get(port, "/api/nothing")) == (404, "not-found")
    assert problem(get(port, "/docs")) == (404, "not-found")


@pytest.mark.parametrize("path", ["/", "/api/docs"])
def test_the_pages_need_nothing_from_elsewhere(quick_city: City, path: str) -> None:
    port = quick_city.console().port
    status, headers, body = get(port, path)
    page = body.decode()
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(r"<script|<link|<img|<iframe|https?:|//|@import|url\(", page, re.IGNORECASE)
    for link in re.findall(r"href='([^']+)'", page):
        assert get(port, link)[0] == 200, link


def test_the_front_page_leads_to_the_docs(quick_city: City) -> None:
    assert "href='/api/docs'" in get(quick_city.console().port, "/")[2].decode()


def test_the_docs_show_every_operation_and_parameter_of_the_openapi_document(quick_city: City) -> None:
    port = quick_city.console().port
    openapi: dict[str, Any] = msgspec.json.decode(get(port, "/api/openapi.json")[2])
    page = get(port, "/api/docs")[2].decode()
    assert {*GUARDED, "/readyz"} <= set(openapi["paths"])
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path}" in page
            assert operation["summary"]
            for parameter in operation.get("parameters", []):
                assert parameter["description"]
                assert parameter["name"] in page
        if path in GUARDED:
            assert operations["get"]["security"]
            assert {"401", "403"} <= set(operations["get"]["responses"])
    assert "text/event-stream" in openapi["paths"]["/api/live"]["get"]["responses"]["200"]["content"]


def test_alive_and_figures_need_no_key(quick_city: City) -> None:
    port = quick_city.console().port
    assert msgspec.json.decode(get(port, "/healthz")[2]) == {"status": "alive", "service": "console"}
    status, headers, body = get(port, "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b"harmonywatch_live_streams 0.0" in body


def test_ready_means_that_every_service_is(quick_city: City) -> None:
    services: dict[str, list[str]] = {"gateway": [], "archive": []}
    calls: list[int] = []

    def health() -> dict[str, list[str]]:
        calls.append(1)
        return services

    status, _, body = get(quick_city.console(health=health).port, "/readyz")
    assert status == 200
    assert msgspec.json.decode(body)["services"] == {"gateway": [], "archive": [], "console": []}
    services["archive"] = ["lag above half the retention"]
    port = quick_city.console(health=health).port
    status, _, body = get(port, "/readyz")
    assert status == 503
    assert msgspec.json.decode(body)["reasons"] == ["archive: lag above half the retention"]
    asked = len(calls)
    get(port, "/readyz")
    assert len(calls) <= asked + 1


def test_another_address_needs_tls_or_a_proxy(quick_city: City) -> None:
    with pytest.raises(BadSettings, match="behind-proxy"):
        quick_city.console(settings=ConsoleSettings(host="0.0.0.0", port=0))
    with pytest.raises(BadSettings, match="belong together"):
        quick_city.console(settings=ConsoleSettings(port=0, tls_cert="cert.pem"))
    port = quick_city.console(settings=ConsoleSettings(host="0.0.0.0", port=0, behind_proxy=True)).port
    assert get(port, "/healthz")[0] == 200


def test_a_port_that_is_taken_is_named(quick_city: City) -> None:
    port = quick_city.console().port
    with pytest.raises(BadSettings, match=str(port)):
        quick_city.console(settings=ConsoleSettings(port=port))


def test_with_a_certificate_the_console_speaks_tls(quick_city: City, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    port = quick_city.console(settings=ConsoleSettings(port=0, tls_cert=str(cert), tls_key=str(key))).port
    context = ssl.create_default_context(cafile=str(cert))
    with urllib.request.urlopen(f"https://localhost:{port}/healthz", context=context, timeout=10) as answer:
        assert answer.status == 200


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    cert_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_path, key_path


SLIM = r"""
import asyncio, re, sys
from pathlib import Path
import uvloop
from harmonywatch.clock import SystemClock
from harmonywatch.console.server import ConsoleParts, serve_console
from harmonywatch.registry.glance import open_glance
from harmonywatch.registry.keyring import KeyringCache
from harmonywatch.settings import ConsoleSettings, StreamSettings
from harmonywatch.stream.sqlite import SqliteStream
from harmonywatch.telemetry import Telemetry

async def main(folder):
    clock, stop = SystemClock(), asyncio.Event()
    with KeyringCache(open_glance(f"sqlite:///{folder / 'registry.db'}", clock), clock) as keys:
        await serve_console(ConsoleParts(
            ConsoleSettings(port=0), SqliteStream(folder / "stream", StreamSettings(), clock), keys, Telemetry("console"),
            clock, lambda force, since: [], lambda force, since: [], dict,
        ), stop, lambda port: stop.set())

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main(Path(sys.argv[1])))
print(int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024, *(m for m in
    ("pyarrow", "duckdb", "deltalake", "altair", "sqlalchemy", "sqlglot", "apprise", "numpy") if m in sys.modules))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_the_process_is_slim_and_loads_no_heavy_engine(quick_city: City, tmp_path: Path) -> None:
    quick_city.registry.close()
    done = subprocess.run(
        [sys.executable, "-c", SLIM, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    *_, line = done.stdout.strip().splitlines()
    resident_mib, *heavy = line.split()
    assert heavy == []
    assert int(resident_mib) < 120
