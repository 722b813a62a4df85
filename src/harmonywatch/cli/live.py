"""The live path: alerts and incidents, from the stream and the state, within a second of their judgement."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import msgspec

from harmonywatch import assemble
from harmonywatch.cli.frame import Shell, force_option, reading

if TYPE_CHECKING:
    from harmonywatch.dispatch.incident import Incident

ALERT_LINE = "{judged_at}  {force}  {name}  score {harmonyscore:g}  at {lat:.5f}, {lon:.5f}  by {watcher_id}  ({rule})"
INCIDENT_COLUMNS = (
    "incident_id", "force", "name", "rule", "state", "occurrences", "watchers", "opened_at", "last_seen_at", "lat",
    "lon", "owner",
)  # fmt: skip
VERBS = ("acknowledge", "dispatch", "release", "resolve", "reopen", "note")


@click.command()
@click.option("--follow", is_flag=True, help="Go on: print new ones as they come.")
@click.option("--since", default=None, metavar="TIME", help="Judged at or after; RFC 3339 with a zone.")
@force_option("Only this force.")
@reading
def alerts(shell: Shell, follow: bool, since: str | None, force: str | None) -> None:
    """Alerts of the last 7 days, oldest judged first, each once, with name and place.

    These are all that the live path keeps (setting stream.retention_s). Every alert that ever was, older ones too, is in
    the lake, where its citizen is a token instead of a name: view alerts of query.

    \b
    harmonywatch alerts --since 2026-11-23T18:00:00Z
    harmonywatch alerts --follow --json
    harmonywatch query "select * from alerts where time < '2026-11-16'"
    """
    from harmonywatch.dispatch.listing import follow_alerts, list_alerts
    from harmonywatch.service import stop_on_signals

    moment = assemble.moment(since)
    with assemble.opened_stream(shell.settings, force) as stream:
        rows: Iterator[Any] = (
            follow_alerts(stream, stop_on_signals().event, force, moment)
            if follow
            else list_alerts(stream, force, moment)
        )
        for row in rows:
            fields = msgspec.structs.asdict(row)
            shell.row(fields, ALERT_LINE.format(**fields))
            if follow:
                sys.stdout.flush()


@click.group(invoke_without_command=True)
@click.option("--since", default=None, metavar="TIME", help="With an alert or a change since; RFC 3339 with a zone.")
@force_option("Only this force.")
@reading
def incidents(shell: Shell, since: str | None, force: str | None) -> None:
    """Incidents of all states, in the order they opened: one per citizen and rule while it lasts.

    They are kept for 400 days after they closed (setting dispatch.keep_s); what `show` tells beyond the row, its last
    alerts, for 3 days (dispatch.detail_s).

    \b
    harmonywatch incidents --force north
    harmonywatch incidents acknowledge i0123 --note "on my way"
    harmonywatch incidents resolve i0123 --reason "false alarm"
    """
    from harmonywatch.dispatch.listing import list_incidents

    moment = assemble.moment(since)
    with assemble.opened_incidents(shell.settings, force) as store:
        rows = (msgspec.structs.asdict(row) for row in list_incidents(store, force, moment))
        shell.table(rows, INCIDENT_COLUMNS, "no incident")


@incidents.command("show")
@click.argument("incident_id")
@force_option("Only if it is of this force.")
@reading
def show(shell: Shell, incident_id: str, force: str | None) -> None:
    """An incident with its occurrences and what was done, oldest first. The beginning of an id is enough."""
    from harmonywatch.dispatch.told import told, wire

    with assemble.opened_incidents(shell.settings, force) as store:
        incident = _of_force(store.incident(incident_id), force)
        row = msgspec.structs.asdict(told(incident))
        row["log"] = [_with_times(entry, wire) for entry in store.log(incident.incident_id)]
        row["alerts"] = [_with_times(entry, wire) for entry in store.occurrences(incident.incident_id)]
    if shell.as_json:
        shell.row(row)
        return
    for name, value in row.items():
        if isinstance(value, list):
            click.echo(f"{name}:")
            for entry in value:
                click.echo("  " + "  ".join(f"{key} {each}" for key, each in entry.items() if each not in (None, "")))
        else:
            click.echo(f"{name}: {value}")


def _of_force(incident: Incident, force: str | None) -> Incident:
    """The incident, unless it is another force's. Raises NoIncident."""
    from harmonywatch.dispatch.incident import NoIncident

    if force not in (None, incident.force):
        raise NoIncident(incident.incident_id)
    return incident


def _with_times(entry: dict[str, Any], wire: Any) -> dict[str, Any]:
    """Microseconds (`judged_us`, `at_us`, `time_us`) as RFC 3339 (`judged_at`, `at`, `time`)."""
    told: dict[str, Any] = {}
    for key, value in entry.items():
        if key.endswith("_us"):
            name = key.removesuffix("_us")
            told[name if name in ("at", "time") else name + "_at"] = None if value is None else wire(value)
        elif key != "incident_id":
            told[key] = value
    return told


def _verb(name: str) -> None:
    @incidents.command(name, help=f"An officer's act: {name}. It is in the incident's log and on every screen at once.")
    @click.argument("incident_id")
    @click.option("--note", default="", help="For those who read it later.")
    @click.option("--reason", default=None, help="Of a resolve: handled, false alarm, nobody found, duplicate, other.")
    @click.option("--version", type=int, default=None, help="Refuse if somebody changed it since this version.")
    @force_option("Only if it is of this force.")
    @reading
    def act(
        shell: Shell, incident_id: str, note: str, reason: str | None, version: int | None, force: str | None
    ) -> None:
        from harmonywatch.dispatch.listing import change_incident, officer_act
        from harmonywatch.dispatch.told import told

        verb: Any = name
        with assemble.opened_incidents(shell.settings, force) as store:
            of_force = _of_force(store.incident(incident_id), force)
            deed = officer_act(verb, shell.actor, assemble.CLOCK, note, reason)
            done = change_incident(store, of_force.incident_id, deed, version)
        row = msgspec.structs.asdict(told(done))
        shell.row(row, f"{row['incident_id']} {row['name']}: {row['state']} (version {row['version']})")


for _name in VERBS:
    _verb(_name)
