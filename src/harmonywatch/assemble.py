"""The composition root: which adapter stands behind which contract, by hand, from top to bottom.

A profile is nothing but URLs in the settings. Every function here takes the settings and gives a thing that is ready for
use; imports stand inside the functions, so that a service loads only what it needs. Nothing else in the package builds
adapters.
"""

from __future__ import annotations

import contextlib
import difflib
import getpass
import json
import os
import secrets
import socket
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harmonywatch.clock import SystemClock, from_wire, to_wire
from harmonywatch.registry.contract import (
    PARTITIONS_DEFAULT,
    PARTITIONS_KAFKA,
    AlreadyExists,
    Force,
    RegistryError,
    SchemaTooNew,
)
from harmonywatch.report.topics import ALERTS, DELIVERIES, DURABLE_GROUPS, EVENTS, REJECTS, REPORTS, topic_of
from harmonywatch.service import places
from harmonywatch.settings import BadSettings, Settings, load
from harmonywatch.stream.contract import WHOLE_STREAM, Stream, StreamError
from harmonywatch.supervisor import service_of

if TYPE_CHECKING:
    from harmonywatch.analysis.analyst import Analyst
    from harmonywatch.analysis.contract import EngineName, Limits
    from harmonywatch.analysis.notebook import Connection
    from harmonywatch.archive.compact import Compacted
    from harmonywatch.archive.lake import Lake
    from harmonywatch.archive.rejected import Reject
    from harmonywatch.archive.sealing import Sealer
    from harmonywatch.archive.verify import Verdict
    from harmonywatch.broker import Broker
    from harmonywatch.dispatch.store import IncidentStore
    from harmonywatch.fleet.plan import Target
    from harmonywatch.gateway.replay import Judged
    from harmonywatch.ops import Health
    from harmonywatch.registry.glance import Door
    from harmonywatch.registry.store import Registry

CLOCK = SystemClock()
KINDS = (REPORTS, ALERTS, REJECTS, EVENTS, DELIVERIES)


class NoSuchForce(Exception):
    """The command needs a force, and it is not clear which."""


class NoSuchReject(Exception):
    """The command names a reject that is not there."""


class NotRunning(Exception):
    """The command needs a service of this folder that is not up."""


class BadMoment(Exception):
    """A time on the command line is not RFC 3339."""


def expected_errors() -> tuple[type[Exception], ...]:
    """What a command may end in without it being our bug; the message says what to do. Asked for when an error is at hand:
    a room that was never loaded raised none."""
    rooms = (
        ("harmonywatch.analysis.contract", "QueryError"),
        ("harmonywatch.archive.lake", "LakeUnavailable"),
        ("harmonywatch.archive.lake", "KeyChanged"),
        ("harmonywatch.archive.sealing", "NotSealedHere"),
        ("harmonywatch.dispatch.incident", "IncidentError"),
        ("harmonywatch.gateway.replay", "ReplayStopped"),
    )
    loaded = [getattr(sys.modules[module], name) for module, name in rooms if module in sys.modules]
    return (NoSuchForce, NoSuchReject, NotRunning, BadMoment, RegistryError, StreamError, *loaded)


# --- the spine ---------------------------------------------------------------------------------------------------------


def is_embedded(settings: Settings) -> bool:
    """Whether the stream lives in this machine's processes: one worker a group, no broker that shares partitions out."""
    return settings.stream_url.partition(":")[0] in ("sqlite", "memory")


def open_stream(settings: Settings) -> Stream:
    """The stream behind `stream.url`. Raises BadSettings, StreamError."""
    scheme, _, rest = settings.stream_url.partition(":")
    if scheme == "sqlite":
        from harmonywatch.stream.sqlite import SqliteStream

        return SqliteStream(Path(rest), settings.stream, CLOCK)
    if scheme == "kafka":
        from harmonywatch.stream.kafka.address import parse
        from harmonywatch.stream.kafka.stream import KafkaStream

        return KafkaStream(parse(settings.stream_url, settings.stream.client_file, os.environ), settings.stream)
    if scheme == "memory":
        from harmonywatch.stream.memory import MemoryStream

        return MemoryStream()
    raise BadSettings(
        f"stream.url {settings.stream_url!r}: this version knows sqlite:DIR, kafka://HOST:PORT and memory:"
    )


def open_broker(settings: Settings) -> Broker:
    """The broker behind `mqtt.url`, and who we are there. Raises BadSettings."""
    from harmonywatch.ops import is_loopback

    url, password_file = settings.mqtt.url, settings.mqtt.password_file
    private = settings.mqtt.private_network or is_loopback(urlsplit(url).hostname or "")
    if url.startswith("mqtt:") and not private:
        raise BadSettings(
            f"mqtt.url {url}: over a network it is mqtts://, or mqtt.private_network if it is yours alone"
        )
    try:
        from harmonywatch.broker import Broker

        password = Path(password_file).read_text("utf-8").strip() if password_file else ""
        return Broker.at(url, settings.mqtt.user, password, settings.mqtt.ca)
    except ImportError as error:
        raise BadSettings(
            f"mqtt.url needs the extra `distributed`: pip install harmonywatch[distributed] ({error})"
        ) from None
    except (OSError, ValueError) as error:
        raise BadSettings(f"mqtt: {error}") from None


def ensure_topics(stream: Stream, force: str, partitions: int) -> None:
    """The topics of a force and their durable groups. Twice is once: a crash in the middle is mended by the next start.

    The last of KINDS, which nobody reads durably, is made last: where it is, everything is.
    """
    for kind in KINDS:
        stream.create_topic(topic_of(kind, force), partitions)
        for group, kinds in DURABLE_GROUPS.items():
            if kind in kinds:
                stream.register(group, topic_of(kind, force))


def ensure_all_topics(settings: Settings, stream: Stream, door: Door) -> None:
    """The topics of every force, should a crash have come between a force and its topics."""
    missing = [force for force in door.all_rules() if topic_of(KINDS[-1], force) not in stream.topics()]
    if missing:
        import structlog  # commands that find nothing amiss need not carry it

        with opened_registry(settings, "service:assemble") as registry:
            for name in missing:
                try:
                    ensure_topics(stream, name, registry.force(name).partitions)
                except WHOLE_STREAM:
                    raise
                except StreamError as error:  # one force's; its requests and its handlers will say so again
                    structlog.get_logger().error("a force has not all its topics", force=name, reason=str(error))


def operator_errors() -> tuple[type[Exception], ...]:
    """Errors of the rooms after which only the operator can help."""
    rooms = (
        ("harmonywatch.alerting.judge", "RecordTooNew"),
        ("harmonywatch.archive.decoding", "NewerRecord"),
        ("harmonywatch.archive.lake", "KeyChanged"),
        ("harmonywatch.dispatch.dispatcher", "AlertTooNew"),
    )
    loaded = [getattr(sys.modules[module], name) for module, name in rooms if module in sys.modules]
    return (BadSettings, SchemaTooNew, *loaded)


# --- the registry ------------------------------------------------------------------------------------------------------


def open_registry(settings: Settings, actor: str) -> Registry:
    """The whole registry, for administration. Costs some 0.3 s to import."""
    from harmonywatch.registry.store import open_registry as opened

    _state_folder(settings)
    return opened(settings.state_url("registry"), CLOCK, actor)


@contextlib.contextmanager
def opened_registry(settings: Settings, actor: str) -> Iterator[Registry]:
    registry = open_registry(settings, actor)
    try:
        yield registry
    finally:
        registry.close()


def open_door(settings: Settings) -> Door:
    """The few verbs a service needs of the registry, without its weight."""
    from harmonywatch.registry.glance import open_glance

    _state_folder(settings)
    return open_glance(settings.state_url("registry"), CLOCK)


def _state_folder(settings: Settings) -> None:
    if not settings.state:
        (settings.folder / "state").mkdir(parents=True, exist_ok=True, mode=0o700)


def add_force(settings: Settings, actor: str, name: str) -> Force:
    """A force with its topics: it can take reports when this returns. Raises AlreadyExists, and then makes what topics are
    missing: whoever was interrupted tries again."""
    with opened_registry(settings, actor) as registry, contextlib.closing(open_stream(settings)) as stream:
        try:
            added = registry.add_force(name, PARTITIONS_DEFAULT if is_embedded(settings) else PARTITIONS_KAFKA)
        except AlreadyExists:
            ensure_topics(stream, name, registry.force(name).partitions)
            raise
        ensure_topics(stream, added.name, added.partitions)
    return added


@contextlib.contextmanager
def opened_door(settings: Settings, actor: str) -> Iterator[Door]:
    """The light view for a command that only chooses forces and is audited."""
    door = open_door(settings)
    try:
        yield door.acting_as(actor)
    finally:
        door.close()


def chosen_force(registry: Registry | Door, name: str | None) -> str:
    """The force that a command means: the named one, or the only one. Raises NoSuchForce."""
    if name is not None:
        return _known(registry, name)
    forces = list(registry.all_rules())
    if len(forces) == 1:
        return forces[0]
    if not forces:
        raise NoSuchForce("there is no force yet: harmonywatch force add NAME")
    raise NoSuchForce(f"which force? add --force, one of: {', '.join(forces)}")


def chosen_forces(registry: Registry | Door, name: str | None) -> list[str]:
    """The named force, or every force."""
    return [_known(registry, name)] if name is not None else list(registry.all_rules())


def _known(registry: Registry | Door, name: str) -> str:
    """A force that was named must be there: silence about a misspelt one would look like peace."""
    known = list(registry.all_rules())
    if name not in known:
        raise NoSuchForce(f"no force {name!r}{near(name, known)}")
    return name


def prepare(settings: Settings) -> None:
    """Make or bring forward a data folder, so that services only open it."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    stream, door = open_stream(settings), open_door(settings)
    try:
        ensure_all_topics(settings, stream, door)
    finally:
        door.close()
        stream.close()


def check_doors(settings: Settings) -> None:
    """Refuse doors that would carry keys in clear before anything starts. Raises BadSettings."""
    from harmonywatch.ops import tls_of

    tls_of(settings.gateway, "gateway")
    tls_of(settings.console, "console")
    if settings.mqtt.url:
        open_broker(settings)


def check_ports(settings: Settings) -> None:
    """Refuse ports on which somebody else listens, before services are started again and again for it. Raises BadSettings."""
    for name, door in (("gateway", settings.gateway), ("console", settings.console)):
        family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((door.host, door.port))
            except OSError as error:
                raise BadSettings(
                    f"{name}: cannot listen on {door.host}:{door.port}: {error.strerror}; is another `up` running? "
                    f"--{name}-port takes another port, 0 = any"
                ) from None


# --- incidents and alerts ----------------------------------------------------------------------------------------------


def open_incidents(settings: Settings) -> IncidentStore:
    from harmonywatch.dispatch.store import open_incidents as opened

    _state_folder(settings)
    return opened(settings.state_url("incidents"), settings.dispatch)


@contextlib.contextmanager
def opened_incidents(settings: Settings, force: str | None) -> Iterator[IncidentStore]:
    _check_force(settings, force)
    store = open_incidents(settings)
    try:
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def opened_stream(settings: Settings, force: str | None) -> Iterator[Stream]:
    _check_force(settings, force)
    stream = open_stream(settings)
    try:
        yield stream
    finally:
        stream.close()


def alerts_of(stream: Stream, force: str | None, since: datetime | None) -> Iterator[Any]:
    """Alerts as the command line lists them."""
    from harmonywatch.dispatch.listing import list_alerts

    return list_alerts(stream, force, since)


def incidents_of(
    settings: Settings, force: str | None, since: datetime | None, limit: int = 500, after: str | None = None
) -> list[Any]:
    """A page of incidents, see `listing.page_of_incidents`. The store is opened for the question: a console that nobody
    asks need not carry it."""
    from harmonywatch.dispatch.listing import page_of_incidents

    with opened_incidents(settings, force) as store:
        return list(page_of_incidents(store, force, since, limit, after))


def _check_force(settings: Settings, force: str | None) -> None:
    with opened_door(settings, "service:assemble") as door:
        chosen_forces(door, force)


# --- the lake and its questions ----------------------------------------------------------------------------------------


def open_lake(settings: Settings) -> Lake:
    from harmonywatch.archive.lake import Lake

    return Lake(settings.lake_url, store_options(settings))


def store_options(settings: Settings, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """How to reach the lake's store: what S3 clients everywhere read from the environment; empty for a folder."""
    if "://" not in settings.lake_url:
        return {}
    return {name: value for name, value in environment.items() if name.startswith("AWS_")}


def sealer(settings: Settings, force: str) -> Sealer:
    """What turns a force's citizens into tokens, and back for who may."""
    from harmonywatch.archive.sealing import open_sealer

    return open_sealer(settings.keys_folder, force)


def verdicts(settings: Settings, actor: str, force: str | None, everything: bool = False) -> list[Verdict]:
    """The proof of completeness, three tables a force. `everything`: days proven before are read again too."""
    from harmonywatch.archive.verify import Terms, Watch, verify

    with opened_door(settings, actor) as door:
        forces = chosen_forces(door, force)
    watch = Watch(settings.folder / "state" if "://" in settings.lake_url else Path(settings.lake_url))
    with opened_stream(settings, force) as stream:
        lake, terms = open_lake(settings), Terms(settings.archive.repeat_window_s, everything)
        return [verdict for name in forces for verdict in verify(lake, stream, name, watch, terms)]


def compacted(settings: Settings, actor: str, force: str | None, vacuum: bool) -> Iterator[Compacted]:
    """Merge the small files of the chosen forces, all of them, now."""
    from harmonywatch.archive.compact import compact

    with opened_door(settings, actor) as door:
        forces = chosen_forces(door, force)
    for name in forces:
        yield from compact(open_lake(settings), name, settings.archive, everything=True, vacuum=vacuum)


@contextlib.contextmanager
def opened_analyst(
    settings: Settings, actor: str, deadline_s: float | None = None, engine: EngineName = "duckdb"
) -> Iterator[tuple[Analyst, Door]]:
    """Who answers questions on an engine, with the view of the registry that audits them."""
    from harmonywatch.analysis.analyst import Analyst

    with opened_door(settings, actor) as door:
        yield Analyst(open_lake(settings), door, CLOCK, _limits(settings, deadline_s, engine)), door


def _limits(settings: Settings, deadline_s: float | None = None, engine: EngineName = "duckdb") -> Limits:
    from harmonywatch.analysis.contract import Limits

    asked = settings.analysis
    properties = str(Path(asked.spark_properties).resolve()) if asked.spark_properties else ""
    within = (deadline_s or asked.deadline_s, asked.memory, asked.threads, asked.nice)
    return Limits(*within, engine, properties, store_options(settings))


class _AuditOnDemand:
    """The audit of a program that may live for days: the registry is open only while an entry is written."""

    def __init__(self, settings: Settings, actor: str) -> None:
        self._settings, self._actor = settings, actor

    def record_audit(
        self,
        action: str,
        force: str | None = None,
        target: str = "",
        detail: Mapping[str, object] | None = None,
        reason: str = "",
    ) -> int:
        with opened_door(self._settings, self._actor) as door:
            return door.record_audit(action, force, target, detail, reason)


def connect(
    force: str | None = None, data: str | Path = "data", reason: str = "", engine: EngineName = "duckdb"
) -> Connection:
    """The archive of a force from a notebook or program (docs/how-to/notebooks.md).

    `force`: its name; None = the only one. `data`: the folder that `harmonywatch ... --data` names; the settings of its
    file and of the environment count as they do there. `reason`: why you ask; it stands in the audit, with every query,
    under the user of the operating system. `engine`: who computes the answers, duckdb or spark. Works while the services
    run and while they do not. Nothing stays open between two queries. Raises BadSettings, NoSuchForce, RegistryError.
    """
    from harmonywatch.analysis.analyst import Analyst
    from harmonywatch.analysis.notebook import Connection

    folder = Path(data).resolve()  # a notebook may change its folder after this
    settings, _ = load({"data": str(folder)})
    if not folder.is_dir():
        raise BadSettings(f"there is no folder {folder}; `data` names the one that holds the archive")
    with opened_door(settings, os_user()) as door:
        name = chosen_force(door, force)
    audit = _AuditOnDemand(settings, os_user())
    return Connection(Analyst(open_lake(settings), audit, CLOCK, _limits(settings, engine=engine)), name, CLOCK, reason)


def os_user() -> str:
    """Who the audit names when nobody has logged in: the user of the operating system."""
    try:
        return "os:" + getpass.getuser()
    except (KeyError, OSError):
        return f"os:uid-{os.getuid()}"


def drawn(analyst: Analyst, name: str, force: str, arguments: dict[str, str], target: Path, reason: str) -> Any:
    """Ask, draw the answer into a file; the answer, an Arrow table. `reason` stands in the audit."""
    from harmonywatch.analysis.notebook import Connection

    given: dict[str, Any] = dict(arguments)
    return Connection(analyst, force, CLOCK, reason).plot(name, target, **given)


@contextlib.contextmanager
def opened_rejects(
    settings: Settings, actor: str, force: str | None, since: datetime | None
) -> Iterator[tuple[str, Iterator[Reject]]]:
    """A force's rejects, with the force's name. Reading them is in the audit: their bytes may hold names."""
    from harmonywatch.archive.rejected import rejects

    with opened_door(settings, actor) as door:
        name = chosen_force(door, force)
        door.record_audit("rejects", name, "lake", {"since": since and to_wire(since)})
    with opened_stream(settings, name) as stream:
        yield name, rejects(open_lake(settings), stream, name, sealer(settings, name), since)


def one_reject(settings: Settings, actor: str, force: str | None, reject_id: str) -> Reject:
    """Raises NoSuchReject."""
    with opened_rejects(settings, actor, force, None) as (name, found):
        for reject in found:
            if reject.reject_id == reject_id:
                return reject
    raise NoSuchReject(f"no reject {reject_id!r} in force {name}; `harmonywatch rejects list` shows them")


def redriven(
    settings: Settings, actor: str, force: str | None, wanted: set[str] | None, since: datetime | None
) -> list[dict[str, Any]]:
    """Admit rejects again, as of now; a row each. `wanted` None: all of them."""
    from harmonywatch.gateway.admit import Terms, admit_single
    from harmonywatch.registry.contract import KeyInfo

    rows: list[dict[str, Any]] = []
    with opened_rejects(settings, actor, force, since) as (name, found), opened_stream(settings, name) as stream:
        owner, partitions = KeyInfo("redrive", "relay", name, "redrive"), stream.topics()[topic_of(REPORTS, name)]
        for reject in found:
            if wanted is not None and reject.reject_id not in wanted:
                continue
            if reject.facts["code"] == "not-yours":  # its sender had no right to it, and has none now
                rows.append({"reject_id": reject.reject_id, "status": "refused", "reason": "not the sender's watcher"})
                continue
            admission = admit_single(
                reject.bytes, Terms(owner, name, CLOCK.now(), partitions, partial(str, f"r-{reject.reject_id}"))
            )
            if admission.records:
                stream.append(topic_of(REPORTS, name), admission.records)
            refusal = admission.verdicts[0].refusal if admission.verdicts else None
            rows.append(
                {
                    "reject_id": reject.reject_id,
                    "status": "accepted" if admission.accepted else "refused",
                    "report_id": admission.report_id or None,
                    "pointer": refusal and refusal.pointer,
                    "reason": refusal and refusal.reason,
                }
            )
    with opened_door(settings, actor) as door:
        door.record_audit("redrive", name, "rejects", {"reject_ids": [row["reject_id"] for row in rows][:1000]})
    return rows


def replayed(settings: Settings, actor: str, force: str | None, file: str) -> Iterator[Judged]:
    """Take in a file of reports with the moments at which they were received; a verdict a line. In the audit twice: that it
    began, and what came of it."""
    from harmonywatch.fleet.units import read_units
    from harmonywatch.gateway.replay import VIA, Ground, replay

    with opened_stream(settings, force) as stream, opened_door(settings, actor) as door:
        name = chosen_force(door, force)
        door.record_audit("replay", name, "reports", {"file": file})
        ground = Ground(name, stream, partial(door.enrol, name, via=VIA), CLOCK.now, fresh_id)
        counts = {"accepted": 0, "refused": 0}
        try:
            for judged in replay(((unit.number, unit.data) for unit in read_units(file)), ground):
                counts[judged.status] += 1
                yield judged
        finally:
            door.record_audit("replayed", name, "reports", {"file": file, **counts})


def fresh_id() -> str:
    """An id for a report that has nothing to be recognised by."""
    return "u-" + secrets.token_hex(16)


# --- the command line's other needs ------------------------------------------------------------------------------------


def moment(text: str | None) -> datetime | None:
    """A time from the command line. Raises BadMoment."""
    if text is None:
        return None
    try:
        return from_wire(text)
    except ValueError:
        raise BadMoment(f"{text!r} is no time with a zone; write 2026-11-23T18:00:00Z") from None


def gateway_url(settings: Settings) -> str:
    """Where this folder's gateway listens now, else where its settings say."""
    note = next((note for name, note in places(settings.folder).items() if service_of(name) == "gateway"), {})
    door = settings.gateway
    scheme = "https" if note.get("tls", bool(door.tls_cert)) else "http"
    return f"{scheme}://{address(note.get('host', door.host), note.get('port', door.port))}"


def address(host: str, port: int) -> str:
    """Where somebody of this machine finds a door that listens there, as in a URL: IPv6 stands in brackets, and who listens
    everywhere is found on the loopback."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def target(text: str, url: str, ca: str | None) -> Target:
    """`FORCE=KEY` of the command line. Raises ValueError."""
    from harmonywatch.fleet.plan import Target

    force, equals, key = text.partition("=")
    if not equals or not force or not key:
        raise ValueError(f"--key {text!r} is not FORCE=KEY")
    return Target(force, url, key, ca)


def health_of_services(settings: Settings, timeout_s: float = 2.0, besides: str = "") -> dict[str, Health]:
    """By service, or copy of one: how it is, asked at its own operations port."""
    from harmonywatch.ops import NOT_RUNNING, Health
    from harmonywatch.supervisor import services_of

    found: dict[str, Health] = {}
    notes = places(settings.folder)
    for service in services_of(bool(settings.mqtt.url)):
        if service != besides:
            copies = [name for name in notes if service_of(name) == service]
            found |= {name: _health_at(notes[name], timeout_s) for name in copies}
            found |= {} if copies else {service: Health(NOT_RUNNING, [])}
    return found


def _health_at(note: dict[str, Any], timeout_s: float) -> Health:
    from harmonywatch.ops import Health

    scheme = "https" if note.get("tls") else "http"
    url = f"{scheme}://{address(note.get('host', ''), note['ops_port'])}/readyz"
    # a process of this folder noted it, and nothing secret is sent: the certificate need not name this address
    trust = ssl._create_unverified_context() if note.get("tls") else None
    try:
        with urllib.request.urlopen(url, timeout=timeout_s, context=trust) as answer:
            told = json.load(answer)
            return Health(told.get("status", "ready"), list(told.get("reasons", [])))
    except urllib.error.HTTPError as error:
        with error:
            return Health("not ready", list(json.loads(error.read() or b"{}").get("reasons", ["not ready"])))
    except (OSError, ValueError) as error:
        return Health("not ready", [f"does not answer: {error}"])


def near(name: str, known: list[str]) -> str:
    """A suggestion for a name that nobody knows, or nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
