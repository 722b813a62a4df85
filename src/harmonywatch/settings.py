"""Settings: one frozen tree, read once at the edge. Defaults < TOML file < environment < flags.

The file is `DATA/harmonywatch.toml` (or HARMONYWATCH_CONFIG); the environment is `HARMONYWATCH_` + the path with two
underscores: `HARMONYWATCH_GATEWAY__PORT=8471`. A key that nobody knows is refused, with the nearest known one. Each room
gets its own branch. `load` also tells where each value came from (`harmonywatch config show`).
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, get_type_hints

import msgspec

PREFIX = "HARMONYWATCH_"
NOT_SETTINGS = frozenset(PREFIX + name for name in ("CONFIG", "KEY", "SUPERVISED"))
"""Variables of ours that are read elsewhere: where the file is, the key of `send`, the mark of `up` on its children."""
DURABLE_RETENTION_S = 7 * 86_400


class BadSettings(Exception):
    """The operator's settings do not fit; the message names the key, where it stands and what would do."""


def Field(*, default: Any, description: str, **bounds: Any) -> Any:  # noqa: N802 it stands where a value does
    """A setting: its default, what it means, and its bounds as msgspec.Meta names them (ge, le, pattern)."""
    return field(default=default, metadata={"description": description, "bounds": msgspec.Meta(**bounds)})


@dataclass_transform(frozen_default=True, kw_only_default=False, field_specifiers=(Field,))
class Branch:
    """A frozen part of the tree. Its settings are declared by `Field`, further branches by an instance of them.

    Plain dataclasses, checked by msgspec when they are read: every command and service pays for this module at its start,
    and a library for models would be a quarter of a second of it.
    """

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True)(cls)


class StreamSettings(Branch):
    """The spine."""

    url: str = Field(
        default="", description="sqlite:DIR, kafka://HOST:PORT,.../NAMESPACE or memory: (default: sqlite:DATA/stream)"
    )
    retention_s: float = Field(
        default=DURABLE_RETENTION_S, description="age at which read segments are deleted, seconds"
    )
    retention_bytes: int = Field(default=200 << 30, description="bytes a topic may take before the gateway answers 503")
    segment_bytes: int = Field(default=1 << 30, description="a segment file is closed at this size, bytes")
    segment_s: float = Field(default=86_400, description="a segment file is closed at this age, seconds")
    poll_least_s: float = Field(default=0.001, description="how often a busy reader looks at the bell, seconds")
    poll_most_s: float = Field(default=0.005, description="how often an idle reader looks at the bell, seconds")
    client_file: str = Field(
        default="", description="Kafka: file of client settings that secure the connection (TLS, SASL)"
    )
    replicas: int = Field(
        default=3, ge=1, description="Kafka: copies of a topic that is made now; durable = on all but one"
    )
    member: str = Field(default="", description="Kafka: this worker's own lasting name; a restart then resumes at once")
    session_s: float = Field(
        default=6.0, ge=1, le=300, description="Kafka: a worker silent for so long loses its partitions, seconds"
    )


class GatewaySettings(Branch):
    """The door for watchers."""

    host: str = Field(
        default="127.0.0.1", description="address to listen on; any but the loopback needs TLS or behind_proxy"
    )
    port: int = Field(default=8470, ge=0, le=65535, description="0 = any free port")
    tls_cert: str = Field(default="", description="PEM file of the certificate chain")
    tls_key: str = Field(default="", description="PEM file of the certificate's key")
    behind_proxy: bool = Field(default=False, description="a proxy in front terminates TLS")
    shared_port: bool = Field(
        default=False, description="several gateways of this host listen on one port, which shares connections out"
    )
    request_bytes_max: int = Field(default=16 << 20, description="limit of a request's body after decompression, bytes")
    request_lines_max: int = Field(default=10_000, description="limit of lines in an NDJSON request")
    pending_bytes_max: int = Field(
        default=64 << 20, description="bytes waiting for the disk beyond which requests get 503"
    )
    body_timeout_s: float = Field(
        default=10.0, description="a request must have arrived whole after this long, seconds"
    )
    drain_s: float = Field(default=10.0, description="time that open requests have after SIGTERM, seconds")


class MqttSettings(Branch):
    """Watchers that report through an MQTT broker."""

    url: str = Field(default="", description="the broker, mqtt://127.0.0.1:1883 or mqtts://host:8883; empty = no MQTT")
    user: str = Field(default="harmonywatch", description="our user name at the broker")
    password_file: str = Field(default="", description="file with our password at the broker")
    ca: str = Field(default="", description="PEM file to trust for mqtts (default: what the system trusts)")
    private_network: bool = Field(
        default=False, description="mqtt:// may leave this machine: the network to the broker is ours alone"
    )
    client_id: str = Field(
        default="harmonywatch", description="begins the names of our sessions; each machine needs its own"
    )
    session_s: int = Field(
        default=DURABLE_RETENTION_S, ge=60, description="the broker keeps our sessions so long, seconds"
    )
    in_flight_max: int = Field(
        default=256, ge=1, le=65535, description="messages of a force not yet acknowledged, at most"
    )


class OpsSettings(Branch):
    """Health and metrics of the services without a door of their own; the pages hold no secret and no citizen."""

    host: str = Field(default="127.0.0.1", description="address of /healthz, /readyz and /metrics")
    port: int = Field(default=0, ge=0, le=65535, description="0 = any free port")


class ConsoleSettings(Branch):
    """The door for officers."""

    host: str = Field(
        default="127.0.0.1", description="address to listen on; any but the loopback needs TLS or behind_proxy"
    )
    port: int = Field(default=8480, ge=0, le=65535, description="0 = any free port")
    tls_cert: str = Field(default="", description="PEM file of the certificate chain")
    tls_key: str = Field(default="", description="PEM file of the certificate's key")
    behind_proxy: bool = Field(default=False, description="a proxy in front terminates TLS")


class AlertingSettings(Branch):
    """Rules applied to reports."""

    commit_interval_s: float = Field(default=1.0, description="how often the group's positions are saved, seconds")
    rules_interval_s: float = Field(default=0.5, description="how often changed rules are looked for, seconds")


class DispatchSettings(Branch):
    """Alerts to incidents."""

    reopen_s: float = Field(
        default=1800, description="an alert within this of a resolve re-opens the incident, seconds"
    )
    lapse_s: float = Field(default=86_400, description="an incident unseen for this long closes as lapsed, seconds")
    seen_s: float = Field(default=2 * 86_400, description="how long an alert_id is remembered against repeats, seconds")
    occurrences_max: int = Field(default=100, description="last occurrences of an incident kept in the state database")
    detail_s: float = Field(
        default=3 * 86_400,
        ge=86_400,
        description="an incident closed for this long is history: its details go, its row stays, seconds",
    )
    keep_s: float = Field(default=400 * 86_400, description="an incident closed for this long is forgotten, seconds")
    retry_most_s: float = Field(default=300, description="longest wait between two tries of a notification, seconds")


class ArchiveSettings(Branch):
    """Reports to the lake."""

    flush_interval_s: float = Field(
        default=10.0, description="a record waits at most this long for its commit, seconds"
    )
    flush_bytes: int = Field(default=96 << 20, description="bytes of records that make a commit at once")
    repeat_window_s: float = Field(default=86_400, description="a report sent again within this is recognised, seconds")
    compact_interval_s: float = Field(default=60, description="how often small files are merged, seconds; 0 = never")
    compact_bytes: int = Field(default=256 << 20, description="target size of a merged file, bytes")
    vacuum_s: float = Field(default=3600, ge=3600, description="files out of use are deleted after this, seconds")
    nice: int = Field(default=10, ge=0, le=19, description="priority given up to the alert path")


class AnalysisSettings(Branch):
    """Questions to the lake."""

    deadline_s: float = Field(default=60, description="a query is stopped after this, seconds")
    memory: str = Field(default="2GB", description="memory limit of a query, as DuckDB writes it")
    threads: int = Field(default=2, ge=1, description="threads of a query")
    nice: int = Field(default=10, ge=0, le=19, description="priority given up to the alert path")
    spark_properties: str = Field(
        default="",
        description="Spark's properties file: master, archives, credentials (default: Spark on this machine)",
    )


class Settings(Branch):
    """The whole tree."""

    data: str = Field(default="data", description="folder of everything that is not given a URL")
    lake: str = Field(default="", description="folder or URL of the lake (default: DATA/lake)")
    state: str = Field(default="", description="SQLAlchemy URL of the state (default: SQLite files in DATA/state)")
    keys: str = Field(default="", description="folder of the encryption keys (default: DATA/keys)")
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="least level that is logged"
    )
    stream: StreamSettings = StreamSettings()
    gateway: GatewaySettings = GatewaySettings()
    mqtt: MqttSettings = MqttSettings()
    console: ConsoleSettings = ConsoleSettings()
    ops: OpsSettings = OpsSettings()
    alerting: AlertingSettings = AlertingSettings()
    dispatch: DispatchSettings = DispatchSettings()
    archive: ArchiveSettings = ArchiveSettings()
    analysis: AnalysisSettings = AnalysisSettings()

    @property
    def folder(self) -> Path:
        return Path(self.data)

    @property
    def stream_url(self) -> str:
        return self.stream.url or f"sqlite:{self.folder / 'stream'}"

    @property
    def lake_url(self) -> str:
        return self.lake or str(self.folder / "lake")

    @property
    def keys_folder(self) -> Path:
        return Path(self.keys) if self.keys else self.folder / "keys"

    def state_url(self, database: str) -> str:
        """SQLAlchemy URL of `registry` or `incidents`: two files on SQLite, one server database elsewhere."""
        return self.state or f"sqlite:///{self.folder / 'state' / f'{database}.db'}"


def load(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> tuple[Settings, dict[str, str]]:
    """Read the settings and the origin of each value that is not a default, by dotted key.

    `flags`: dotted keys to values, None = not given. Raises BadSettings.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    from_environment = _from_environment(environment)
    given = {key: value for key, value in flags.items() if value is not None}
    data = given.get("data") or from_environment.get("data") or "data"
    path = Path(environment.get(PREFIX + "CONFIG") or Path(data) / "harmonywatch.toml")
    if path.is_file():
        layers.append((str(path), dict(_flat(_read_toml(path)))))
    layers += [("environment", from_environment), ("flag", given)]

    known = flat(Settings())
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        for key, value in layer.items():
            if key not in known:
                raise BadSettings(_unknown(key, origin, known))
            values[key], origins[key] = value, origin
    return _grown(Settings, "", values, origins), origins


B = TypeVar("B", bound=Branch)


def _grown(branch: type[B], at: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> B:
    """The branch with the given values. Raises BadSettings."""
    kinds = get_type_hints(branch)
    given: dict[str, Any] = {}
    for each in fields(branch):  # type: ignore[arg-type]
        key = at + each.name
        if isinstance(each.default, Branch):
            given[each.name] = _grown(type(each.default), f"{key}.", values, origins)
        elif key in values:
            kind: Any = Annotated[kinds[each.name], each.metadata["bounds"]]
            try:
                given[each.name] = msgspec.convert(values[key], kind, strict=False)
            except msgspec.ValidationError as error:
                raise BadSettings(f"{key} ({origins[key]}): {error}, not {values[key]!r}") from None
    return branch(**given)


def describe() -> dict[str, str]:
    """Every key with what it means."""
    return {key: each.metadata["description"] for key, each, _ in _leaves(Settings(), "")}


def flat(settings: Settings) -> dict[str, Any]:
    """The settings by dotted key."""
    return {key: value for key, _, value in _leaves(settings, "")}


def _leaves(branch: Branch, at: str) -> Iterator[tuple[str, Any, Any]]:
    """Every setting: its key, its declaration, its value."""
    for each in fields(branch):  # type: ignore[arg-type]
        value = getattr(branch, each.name)
        if isinstance(value, Branch):
            yield from _leaves(value, f"{at}{each.name}.")
        else:
            yield at + each.name, each, value


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        name.removeprefix(PREFIX).lower().replace("__", "."): value
        for name, value in environment.items()
        if name.startswith(PREFIX) and name not in NOT_SETTINGS
    }


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSettings(f"{path}: {error}") from None


def _flat(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{name}.")
        else:
            yield at + name, value


def _unknown(key: str, origin: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; `harmonywatch config show` lists all"
    return f"no setting {key} ({origin}){hint}"
