"""Connections that lie, trickle, flood or never read. Each has an end, and none costs another its answer."""

from __future__ import annotations

import gzip
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from gateway_rig import Gateway, Members, Wire, headers_of, report, request

from harmonywatch.settings import BadSettings, GatewaySettings
from harmonywatch.stream.memory import MemoryStream

HEAD = b"POST /v1/reports HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer relay\r\nContent-Type: application/json\r\n"


@pytest.fixture
def quick(members: Members) -> Iterator[Gateway]:
    """A gateway of little patience."""
    with Gateway(MemoryStream(), members, GatewaySettings(port=0, body_timeout_s=0.6)) as gateway:
        yield gateway


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1e3\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n123456789\r\n",
        HEAD + b"Authorization: Bearer other\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"Host: y\r\nContent-Length: 0\r\n\r\n",
        HEAD + b"Bad Header: 1\r\n\r\n",
        HEAD + b"Content-Length: 18446744073709551617\r\n\r\n",
    ],
)
def test_what_is_not_http_is_400_and_the_end_of_the_connection(quick: Gateway, raw: bytes) -> None:
    with quick.connect() as wire:
        wire.write(raw)
        answer = wire.answer()
        assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")
        assert answer.headers["connection"] == "close" and wire.closed()
    assert quick.reports() == [] and quick.send(report()).status == 202


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(1000)),
        b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000,
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n",
    ],
)
def test_a_flood_of_headers_is_431(quick: Gateway, raw: bytes) -> None:
    with quick.connect() as wire:
        for start in range(0, len(raw), 1000):
            try:
                wire.write(raw[start : start + 1000])
            except ConnectionError:
                break
        assert wire.answer().status == 431


def test_headers_in_many_pieces_are_read(quick: Gateway) -> None:
    with quick.connect() as wire:
        raw = request("POST", "/v1/reports", headers_of(), report())
        for at in range(0, len(raw), 7):
            wire.write(raw[at : at + 7])
        assert wire.answer().status == 202


def test_long_headers_of_many_requests_in_one_read_are_no_flood(quick: Gateway) -> None:
    with quick.connect() as wire:
        padded = request("GET", "/healthz", {"X-Padding": "x" * 9000})
        wire.write(padded * 40 + padded[:5000])
        assert {wire.answer().status for _ in range(40)} == {200}
        wire.write(padded[5000:])
        assert wire.answer().status == 200


def test_a_chunked_body_is_read(quick: Gateway) -> None:
    with quick.connect() as wire:
        body = report()
        wire.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 50):
            wire.write(b"%x\r\n%b\r\n" % (len(body[at : at + 50]), body[at : at + 50]))
        wire.write(b"0\r\n\r\n")
        assert wire.answer().status == 202


@pytest.mark.parametrize("raw", [b"", HEAD, HEAD + b"Content-Length: 50\r\n\r\n12345"])
def test_who_trickles_is_cut(quick: Gateway, raw: bytes) -> None:
    begun = time.monotonic()
    with quick.connect() as wire:
        wire.write(raw)
        answer = wire.answer()
        assert (answer.status, answer.json["code"]) == (408, "timeout")
        assert time.monotonic() - begun < 2 and wire.closed()


def test_a_hundred_slow_connections_do_not_slow_an_honest_one(quick: Gateway) -> None:
    slow = [quick.connect() for _ in range(100)]
    for wire in slow:
        wire.write(HEAD + b"Content-Length: 50\r\n\r\n1")
    assert quick.send(report()).status == 202
    assert {wire.answer().status for wire in slow} == {408}
    for wire in slow:
        wire.socket.close()


def test_a_sender_who_leaves_within_its_request_leaves_nothing(quick: Gateway) -> None:
    for _ in range(20):
        with quick.connect() as wire:
            wire.write(HEAD + b"Content-Length: 500\r\n\r\n{")
    assert quick.send(report()).status == 202
    assert len(quick.reports()) == 1 and quick.rejects() == [] and quick.metric("failed_total", kind="bug") == 0


def test_a_sender_who_closes_its_half_still_gets_the_answer(quick: Gateway) -> None:
    with quick.connect() as wire:
        wire.write(request("POST", "/v1/reports", headers_of(), report()))
        wire.socket.shutdown(1)
        assert wire.answer().status == 202


def test_continue_is_said_to_who_may_send_and_waits_for_it(quick: Gateway) -> None:
    with quick.connect() as wire:
        body = report()
        wire.write(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert wire.answer().status == 100
        wire.write(body)
        assert wire.answer().status == 202
    with quick.connect() as wire:
        wire.write(HEAD.replace(b"relay", b"nobody") + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        assert wire.answer().status == 401


def test_without_a_key_no_body_is_taken(quick: Gateway) -> None:
    with quick.connect() as wire:
        wire.write(HEAD.replace(b"relay", b"nobody") + b"Content-Length: 16000000\r\n\r\n")
        assert wire.answer().status == 401


def test_a_body_over_the_limit_is_413_before_or_while_it_arrives(quick: Gateway) -> None:
    with quick.connect() as wire:
        wire.write(HEAD + b"Content-Length: 16777217\r\n\r\n")
        assert wire.answer().status == 413
    with quick.connect() as wire:
        wire.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        for _ in range(17):
            try:
                wire.write(chunk)
            except ConnectionError:
                break
        answer = wire.answer()
        assert (answer.status, answer.json["code"]) == (413, "too-large")


def test_an_upgrade_is_answered_and_goes_no_further(quick: Gateway) -> None:
    with quick.connect() as wire:
        wire.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nrubbish")
        assert wire.answer().status == 200 and wire.closed()


def test_pipelining_has_a_bound(quick: Gateway) -> None:
    with quick.connect() as wire:
        wire.write(request("GET", "/healthz", {}) * 2000)
        statuses = [wire.answer().status]
        while statuses[-1] == 200:
            statuses.append(wire.answer().status)
        assert statuses[-1] == 429 and wire.closed()


def test_who_never_reads_is_cut(quick: Gateway) -> None:
    with quick.connect() as wire:
        padded = request("GET", "/openapi.json", {"X-Padding": "x" * 8000})
        with pytest.raises(ConnectionError):
            for _ in range(10_000):
                wire.write(padded)
    assert quick.metric("failed_total", kind="bug") == 0
    assert quick.send(report()).status == 202


def test_old_clients_and_absolute_targets_are_served(quick: Gateway) -> None:
    with quick.connect() as wire:
        wire.write(b"GET http://gateway/healthz?x=1 HTTP/1.1\r\nHost: gateway\r\n\r\n")
        assert wire.answer().status == 200
    with quick.connect() as wire:
        wire.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert wire.answer().status == 200 and wire.closed()


def test_fifty_bombs_at_once_cost_little_memory(members: Members) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    process = psutil.Process()
    with Gateway(MemoryStream(), members) as door:
        wires = [door.connect() for _ in range(50)]
        before, peak = process.memory_info().rss, 0
        for wire in wires:
            wire.write(request("POST", "/v1/reports", headers_of(coding="gzip"), bomb))
        for wire in wires:
            assert wire.answer().status == 413
            peak = max(peak, process.memory_info().rss)
            wire.socket.close()
    assert peak - before < (64 << 20) + 50 * 2 * len(bomb)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    return folder / "cert.pem", folder / "key.pem"


def test_tls(members: Members, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    settings = GatewaySettings(port=0, host="0.0.0.0", tls_cert=str(cert), tls_key=str(key))
    context = ssl.create_default_context(cafile=str(cert))
    with Gateway(MemoryStream(), members, settings) as door, door.connect(context) as wire:
        for _ in range(2):
            assert wire.ask("POST", "/v1/reports", headers_of(), report()).status == 202
        wire.write(b"nonsense\r\n\r\n")
        assert wire.answer().status == 400 and wire.closed()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"host": "0.0.0.0"}, "--behind-proxy"),
        ({"host": "::"}, "--behind-proxy"),
        ({"tls_cert": "cert.pem"}, "belong together"),
        ({"tls_cert": "nowhere.pem", "tls_key": "nowhere.pem"}, "nowhere.pem"),
    ],
)
def test_keys_never_cross_a_network_in_clear(members: Members, more: dict[str, str], says: str) -> None:
    with pytest.raises(BadSettings, match=says), Gateway(MemoryStream(), members, GatewaySettings(port=0, **more)):
        pass


def test_a_proxy_in_front_may_terminate_tls(members: Members) -> None:
    settings = GatewaySettings(port=0, host="0.0.0.0", behind_proxy=True)
    with Gateway(MemoryStream(), members, settings) as door:
        assert door.send(report()).status == 202


def test_a_taken_port_is_said_plainly(quick: Gateway, members: Members) -> None:
    settings = GatewaySettings(port=quick.port)
    with pytest.raises(BadSettings, match="another gateway"), Gateway(MemoryStream(), members, settings):
        pass


def test_a_connection_reset_in_the_middle_of_the_answer_harms_nobody(quick: Gateway) -> None:
    import socket
    import struct

    for _ in range(20):
        wire = Wire(quick.port)
        wire.write(request("POST", "/v1/reports", headers_of(), report()))
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.socket.close()
    assert quick.send(report()).status == 202
    assert quick.metric("failed_total", kind="bug") == 0
