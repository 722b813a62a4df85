"""What every service shows its operator, and where a service may listen.

`/healthz`: alive. `/readyz`: 200 when the service can do its work, else 503 with the reasons; `degraded`, and 200, when
it cannot for some forces but does for others: who balances must not take the others' service away. `/metrics`: Prometheus'
text. One set of pure functions makes the answers; a service with an HTTP door of its own serves them there, any other
runs an `OpsServer`, a thread with the standard library's server, because no engine of another room should be imported for
three small pages. The answers hold no secret and no citizen, so they need no key.
"""

from __future__ import annotations

import ipaddress
import json
import ssl
import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import urlsplit

from harmonywatch.settings import BadSettings, OpsSettings

if TYPE_CHECKING:  # who asks a service how it is has no metrics of its own
    from harmonywatch.telemetry import Telemetry

Readiness = Callable[[], list[str]]
"""Why the service cannot do its work, one sentence each; empty when it can. Or why it cannot for some forces."""

OPS_PATHS = ("/healthz", "/readyz", "/metrics")
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CLIENT_TIMEOUT_S = 5.0


NOT_RUNNING = "not running"


class Health(NamedTuple):
    """What a service says of itself, as another asked for it. `status`: ready, degraded, not ready, not running."""

    status: str
    reasons: list[str]

    def __str__(self) -> str:
        return f"{self.status}: {'; '.join(self.reasons)}" if self.reasons else self.status

    @property
    def works(self) -> bool:
        """For some force at least."""
        return self.status in ("ready", "degraded")


class OpsAnswer(NamedTuple):
    status: int
    content_type: str
    body: bytes


def answer_ops(path: str, telemetry: Telemetry, readiness: Readiness, degraded: Readiness = list) -> OpsAnswer | None:
    """The answer to a GET of `path`, None if it is none of OPS_PATHS. Waits as long as `readiness` and `degraded` do."""
    if path == "/healthz":
        return _json(200, {"status": "alive", "service": telemetry.service})
    if path == "/readyz":
        reasons, partly = readiness(), degraded()
        status = "not ready" if reasons else "degraded" if partly else "ready"
        members: dict[str, object] = {
            "status": status,
            "service": telemetry.service,
            "reasons": list(dict.fromkeys(reasons + partly)),
        }
        return _json(503 if reasons else 200, members)
    if path == "/metrics":
        return OpsAnswer(200, METRICS_TYPE, telemetry.exposition())
    return None


def _json(status: int, members: dict[str, object]) -> OpsAnswer:
    return OpsAnswer(status, "application/json", json.dumps(members).encode())


ANYWHERE = OpsSettings()
"""A free port of the loopback."""


class OpsServer:
    """The three pages, from a thread."""

    def __init__(
        self, telemetry: Telemetry, readiness: Readiness, degraded: Readiness = list, place: OpsSettings = ANYWHERE
    ) -> None:
        self._answer = partial(answer_ops, telemetry=telemetry, readiness=readiness, degraded=degraded)
        self._place = place
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Listen; returns the bound port. Raises BadSettings if the port is taken."""
        at = (self._place.host, self._place.port)
        try:
            self._server = ThreadingHTTPServer(at, _handler(self._answer))
        except OSError as error:
            raise BadSettings(f"ops: cannot listen on {at[0]}:{at[1]}: {error}; ops.port = 0 takes any") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="ops", daemon=True)
        self._thread.start()
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening. Twice is once."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = self._thread = None


def _handler(answer_to: Callable[[str], OpsAnswer | None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_TIMEOUT_S

        def do_GET(self) -> None:
            answer = answer_to(urlsplit(self.path).path)
            answer = answer or _json(404, {"status": "not found", "paths": list(OPS_PATHS)})
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Nothing: a probe a second is no news."""

    return Handler


class DoorSettings(Protocol):
    """The settings that every door has (`GatewaySettings`, `ConsoleSettings`)."""

    @property
    def host(self) -> str: ...

    @property
    def tls_cert(self) -> str: ...

    @property
    def tls_key(self) -> str: ...

    @property
    def behind_proxy(self) -> bool: ...


def tls_of(door: DoorSettings, name: str) -> ssl.SSLContext | None:
    """The TLS context of a door, None without TLS. `name`: its branch of the settings.

    Raises BadSettings if keys and reports would cross a network in clear, or the files do not fit.
    """
    if bool(door.tls_cert) != bool(door.tls_key):
        raise BadSettings(f"{name}: tls_cert and tls_key belong together; only one is set")
    if not door.tls_cert:
        if not is_loopback(door.host) and not door.behind_proxy:
            raise BadSettings(
                f"{name}.host is {door.host}, not this machine's loopback: keys would cross the network in clear. Give "
                "--tls-cert and --tls-key, or --behind-proxy if a proxy in front terminates TLS"
            )
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(door.tls_cert, door.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise BadSettings(f"{name}: tls_cert {door.tls_cert}, tls_key {door.tls_key}: {error}") from error
    return context


def is_loopback(host: str) -> bool:
    """Whether what is sent there stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
