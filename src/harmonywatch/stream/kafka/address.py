"""Where the brokers are and how to speak to them: `kafka://host:9092,other:9092/namespace`, and a file of client settings.

The namespace is optional: it goes before every topic and group, so that several installations share a cluster. The file
holds what secures the connection, `key = value` a line, in librdkafka's names (`security.protocol`, `sasl.username`,
`ssl.ca.location`, ...); `${NAME}` in a value is taken from the environment, so secrets need not stand in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harmonywatch.settings import BadSettings

SCHEME = "kafka://"
PORT_DEFAULT = 9092
NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", re.ASCII)
"""With a topic of 200 characters it stays below Kafka's 249."""

PASSED_ON = (
    "security.",
    "sasl.",
    "ssl.",
    "enable.ssl.",
    "https.",
    "client.rack",
    "broker.address.",
    "socket.keepalive.",
)
"""Settings of the client that are the operator's. All others decide on durability and order, and are ours."""

_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Address:
    """`servers`: host:port, comma between; `client`: settings that secure the connection (secrets among them)."""

    servers: str
    namespace: str = ""
    client: Mapping[str, str] = field(default_factory=dict, repr=False)

    def outer(self, name: str) -> str:
        """The broker's name of one of our topics or groups."""
        return f"{self.namespace}.{name}" if self.namespace else name

    def inner(self, name: str) -> str | None:
        """Our name of a broker's topic; None if it is not of our namespace."""
        if not self.namespace:
            return None if name.startswith("__") else name
        return name[len(self.namespace) + 1 :] if name.startswith(self.namespace + ".") else None


def parse(url: str, client_file: str, environment: Mapping[str, str]) -> Address:
    """Raises BadSettings."""
    if not url.startswith(SCHEME):
        raise BadSettings(f"stream.url {url!r}: write {SCHEME}host:9092,other:9092")
    hosts, _, namespace = url.removeprefix(SCHEME).partition("/")
    servers = [_server(host.strip(), url) for host in hosts.split(",")]
    if namespace and not NAMESPACE.fullmatch(namespace):
        raise BadSettings(f"stream.url {url!r}: a namespace has 1 to 40 letters, digits, hyphens and underscores")
    return Address(",".join(servers), namespace, _client(client_file, environment))


def _server(host: str, url: str) -> str:
    if not host or "@" in host or "/" in host:
        raise BadSettings(f"stream.url {url!r}: {host!r} is no host:port; secrets belong into stream.client_file")
    bare = host.rpartition("]")[2]  # an IPv6 address stands in brackets
    return host if ":" in bare else f"{host}:{PORT_DEFAULT}"


def _client(client_file: str, environment: Mapping[str, str]) -> dict[str, str]:
    if not client_file:
        return {}
    try:
        lines = Path(client_file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"stream.client_file {client_file}: {error}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text, where = line.strip(), f"stream.client_file {client_file}, line {number}"
        if text and not text.startswith("#"):
            key, equals, value = (part.strip() for part in text.partition("="))
            if not equals or not key.startswith(PASSED_ON):
                raise BadSettings(f"{where}: {key!r} is not a setting that can be given here ({', '.join(PASSED_ON)})")
            found[key] = _filled(value, environment, where)
    return found


def _filled(value: str, environment: Mapping[str, str], where: str) -> str:
    missing = [name for name in _VARIABLE.findall(value) if name not in environment]
    if missing:
        raise BadSettings(f"{where}: the environment has no {missing[0]}")
    return _VARIABLE.sub(lambda match: environment[match[1]], value)
