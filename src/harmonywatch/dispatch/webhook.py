"""A signed webhook, as a receiver sees it.

    POST URL
    Content-Type: application/json
    Idempotency-Key: INCIDENT_ID.VERSION          the same for every try: act once per key
    Harmonywatch-Timestamp: SECONDS               of this try, since 1970
    Harmonywatch-Signature: v1=HEX                HMAC-SHA256, keyed with the channel's secret (its text, in UTF-8), over
                                                  TIMESTAMP + "." + the body's bytes

    {"v": 1, "kind": "opened", "force": ..., "incident_id": ..., "at": ..., "incident": {...}, "alert_id": ...}

The body is the event as it stands on `events.<force>`; `incident` is what `harmonywatch incidents --json` prints. Any 2xx
means taken. Everything else, a redirect included (a signed name of a citizen goes where the administrator said, nowhere
else), is tried again. A receiver checks the signature in constant time and refuses timestamps older than five minutes;
`verify` does both.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

from harmonywatch.registry.contract import Channel

TIMEOUT_S = 10.0
"""For each step: connecting, sending, the answer's first line. Beyond it the receiver counts as failed."""

TOLERANCE_S = 300
"""How old a signature a receiver should take: longer than clocks differ, shorter than a copied request is of use."""


class NotDelivered(Exception):
    """The channel did not take it. The message names neither URL nor secret."""


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """The value of Harmonywatch-Signature."""
    return "v1=" + hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def verify(secret: str, headers: Mapping[str, str], body: bytes, now_s: float) -> bool:
    """What a receiver does with a request."""
    timestamp = headers.get("Harmonywatch-Timestamp", "")
    if not timestamp.isdecimal() or abs(now_s - int(timestamp)) > TOLERANCE_S:
        return False
    return hmac.compare_digest(sign(secret, int(timestamp), body), headers.get("Harmonywatch-Signature", ""))


def post(channel: Channel, body: bytes, idempotency_key: str, now_s: float) -> None:
    """One try. Raises NotDelivered."""
    parts = urlsplit(channel.url)
    timestamp = int(now_s)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "harmonywatch",
        "Idempotency-Key": idempotency_key,
        "Harmonywatch-Timestamp": str(timestamp),
        "Harmonywatch-Signature": sign(channel.secret or "", timestamp, body),
    }
    connection = _connection(parts.scheme, parts.hostname or "", parts.port)
    try:
        connection.request("POST", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), body, headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotDelivered(type(error).__name__) from None
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise NotDelivered(f"status {status}")


def _connection(scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
