"""Forces, relays, watchers, officers, rules, channels and the audit: the registry's verbs at the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from harmonywatch import assemble
from harmonywatch.cli.frame import Shell, common, force_option, reading
from harmonywatch.clock import to_wire
from harmonywatch.registry.contract import ROLES, Issued, Rule


@click.group()
def force() -> None:
    """Forces: the tenants. Each has its own topics, tables, keys and rules; none sees another."""


@force.command("add")
@click.argument("name")
@common
def force_add(shell: Shell, name: str) -> None:
    """Add a force, with its topics and the rule `harmonyscore < 25`.

    \b
    harmonywatch force add north
    """
    added = assemble.add_force(shell.settings, shell.actor, name)
    shell.row({"force": added.name, "partitions": added.partitions}, f"force {added.name} added")


@force.command("list")
@reading
def force_list(shell: Shell) -> None:
    """Every force."""
    with assemble.opened_registry(shell.settings, shell.actor) as registry:
        rows = [
            {"force": f.name, "partitions": f.partitions, "created_at": to_wire(f.created_at)}
            for f in registry.forces()
        ]
    shell.table(rows, ["force", "partitions", "created_at"], "no force yet: harmonywatch force add NAME")


def _issued(shell: Shell, what: str, name: str, of_force: str | None, issued: Issued) -> None:
    shell.row(
        {what: name, "force": of_force, "key_id": issued.key_id, "key": issued.key},
        f"{what} {name} of force {of_force or 'all'}\nkey {issued.key}\n(shown this once; key id {issued.key_id})",
    )


def _key_verbs(group: click.Group, kind: Any) -> None:
    """`rotate`, `revoke` and `keys`, alike for whoever has keys."""

    @group.command("rotate", help=f"A new key for a {kind}; the one before stays valid until the next rotation.")
    @click.argument("name")
    @force_option()
    @reading
    def rotate(shell: Shell, name: str, force: str | None) -> None:
        with assemble.opened_registry(shell.settings, shell.actor) as registry:
            of_force = None if kind == "officer" else assemble.chosen_force(registry, force)
            _issued(shell, kind, name, of_force, registry.rotate(kind, name, of_force or force))

    @group.command("revoke", help=f"Revoke a {kind}'s keys, all or one; it bites within a second.")
    @click.argument("name")
    @click.option("--key-id", default=None, help="Only this key.")
    @force_option()
    @reading
    def revoke(shell: Shell, name: str, key_id: str | None, force: str | None) -> None:
        with assemble.opened_registry(shell.settings, shell.actor) as registry:
            of_force = force if kind == "officer" else assemble.chosen_force(registry, force)
            count = registry.revoke(kind, name, of_force, key_id)
        shell.row({kind: name, "force": of_force, "revoked": count}, f"{count} key(s) of {kind} {name} revoked")

    @group.command("keys", help=f"A {kind}'s keys, live and revoked (never the key itself).")
    @click.argument("name")
    @force_option()
    @reading
    def keys(shell: Shell, name: str, force: str | None) -> None:
        with assemble.opened_registry(shell.settings, shell.actor) as registry:
            of_force = force if kind == "officer" else assemble.chosen_force(registry, force)
            entries = registry.keys(kind, name, of_force)
        rows = [
            {
                "key_id": entry.key_id,
                "created_at": to_wire(entry.created_at),
                "revoked_at": None if entry.revoked_at is None else to_wire(entry.revoked_at),
            }
            for entry in entries
        ]
        shell.table(rows, ["key_id", "created_at", "revoked_at"], "no key")


def _adder(group: click.Group, kind: str, argument: str, add: Callable[[Any, str, str], Issued]) -> None:
    @group.command(
        "add", help=f"Add a {kind} and print its key, this once.\n\n\b\nharmonywatch {kind} add NAME --force north"
    )
    @click.argument("name", metavar=argument)
    @force_option()
    @reading
    def added(shell: Shell, name: str, force: str | None) -> None:
        with assemble.opened_registry(shell.settings, shell.actor) as registry:
            of_force = assemble.chosen_force(registry, force)
            _issued(shell, kind, name, of_force, add(registry, name, of_force))


@click.group()
def relay() -> None:
    """Relays: base stations that send for any watcher of their force."""


_adder(relay, "relay", "NAME", lambda registry, name, of_force: registry.add_relay(name, of_force))
_key_verbs(relay, "relay")


@relay.command("list")
@force_option()
@reading
def relay_list(shell: Shell, force: str | None) -> None:
    """The relays of a force."""
    with assemble.opened_registry(shell.settings, shell.actor) as registry:
        found = registry.relays(assemble.chosen_force(registry, force))
    rows = [{"relay": r.name, "force": r.force, "created_at": to_wire(r.created_at)} for r in found]
    shell.table(rows, ["relay", "force", "created_at"], "no relay yet: harmonywatch relay add NAME --force F")


@click.group()
def watcher() -> None:
    """Watchers. One that reports through a relay is enrolled by its first report and needs no key."""


_adder(watcher, "watcher", "ID", lambda registry, name, of_force: registry.add_watcher(name, of_force))
_key_verbs(watcher, "watcher")


@watcher.command("list")
@force_option()
@reading
def watcher_list(shell: Shell, force: str | None) -> None:
    """The watchers of a force."""
    with assemble.opened_registry(shell.settings, shell.actor) as registry:
        found = registry.watchers(assemble.chosen_force(registry, force))
    rows = [
        {"watcher_id": w.watcher_id, "force": w.force, "enrolled_at": to_wire(w.enrolled_at), "via": w.via}
        for w in found
    ]
    shell.table(rows, ["watcher_id", "force", "enrolled_at", "via"], "no watcher yet")


@click.group()
def officer() -> None:
    """Officers: people with a role, for one force or for all."""


@officer.command("add")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="officer", show_default=True)
@force_option("The officer's force; without it, all forces.")
@common
def officer_add(shell: Shell, name: str, role: Any, force: str | None) -> None:
    """Add an officer and print a key for the console's API, this once.

    \b
    harmonywatch officer add ada --role analyst --force north
    """
    with assemble.opened_registry(shell.settings, shell.actor) as registry:
        _issued(shell, "officer", name, force, registry.add_officer(name, force, role))


_key_verbs(officer, "officer")


@officer.command("list")
@reading
def officer_list(shell: Shell) -> None:
    """Every officer."""
    with assemble.opened_registry(shell.settings, shell.actor) as registry:
        rows = [{"officer": o.name, "force": o.force, "role": o.role} for o in registry.officers()]
    shell.table(rows, ["officer", "force", "role"], "no officer yet")


@click.group()
def rule() -> None:
    """Rules: when a harmonyscore is bad. Data, not code; changes are live within a second."""


@rule.command("add")
@click.argument("rule_id")
@click.option("--threshold", type=float, required=True, help="A score strictly below is bad.")
@click.option("--confidence", type=float, default=None, help="Least confidence of the recognition, 0 to 1.")
@click.option("--area", default=None, metavar="JSON", help="Ring of [lon, lat] pairs; the report lies inside.")
@click.option("--word", "words", multiple=True, help="At least one of these was heard (repeat the option).")
@click.option(
    "--hours", type=(int, int), default=None, help="From and to, hours of the day in UTC; 22 6 spans midnight."
)
@force_option()
@reading
def rule_add(
    shell: Shell,
    rule_id: str,
    threshold: float,
    confidence: float | None,
    area: str | None,
    words: tuple[str, ...],
    hours: tuple[int, int] | None,
    force: str | None,
) -> None:
    """Add a rule to a force.

    \b
    harmonywatch rule add night-watch --threshold 35 --hours 22 6 --force north
    """
    try:
        ring = None if area is None else tuple((float(lon), float(lat)) for lon, lat in json.loads(area))
    except (ValueError, TypeError):
        raise click.BadParameter(
            'expected JSON such as "[[2.2,48.8],[2.4,48.8],[2.3,48.9]]"', param_hint="--area"
        ) from None
    with assemble.opened_registry(shell.settings, shell.actor) as registry:
        added = registry.add_rule(
            Rule(
                rule_id=rule_id,
                force=assemble.chosen_force(registry, force),
                threshold=threshold,
                confidence_least=confidence,
                area=ring,
                words=words or None,
                hours=hours,
            )
        )
    shell.row({"rule": added.rule_id, "force": added.force}, f"rule {added.rule_id} added to {added.force}")


@rule.command("list")
@force_option()
@reading
def rule_list(shell: Shell, force: str | None) -> None:
    """The rules of a force."""
    with assemble.opened_registry(shell.settings, shell.actor) as registry:
        found = registry.rules(assemble.chosen_force(registry, force))
    rows = [
        {
            "rule": each.rule_id,
            "threshold": each.threshold,
            "confidence": each.confidence_least,
            "area": each.area,
            "words": each.words,
            "hours": each.hours,
            "enabled": each.enabled,
        }
        for each in found
    ]
    shell.table(
        rows, ["rule", "threshold", "confidence", "area", "words", "hours", "enabled"], "no rule: nothing alerts"
    )


@rule.command("remove")
@click.argument("rule_id")
@force_option()
@reading
def rule_remove(shell: Shell, rule_id: str, force: str | None) -> None:
    """Remove a rule; its open incidents stay."""
    with assemble.opened_registry(shell.settings, shell.actor) as registry:
        of_force = assemble.chosen_force(registry, force)
        registry.remove_rule(of_force, rule_id)
    shell.row({"rule": rule_id, "force": of_force, "removed": True}, f"rule {rule_id} removed from {of_force}")


@click.group()
def channel() -> None:
    """Channels: where a force's incidents are told (any service apprise knows, or a signed webhook)."""


@channel.command("add")
@click.argument("kind", type=click.Choice(["apprise", "webhook"]))
@click.argument("url")
@force_option()
@reading
def channel_add(shell: Shell, kind: Any, url: str, force: str | None) -> None:
    """Add a channel. A webhook is given a secret, printed this once, that signs each call.

    \b
    harmonywatch channel add webhook http://127.0.0.1:9000/incidents --force north
    """
    with assemble.opened_registry(shell.settings, shell.actor) as registry:
        added = registry.add_channel(assemble.chosen_force(registry, force), kind, url)
    row = {"channel_id": added.channel_id, "force": added.force, "kind": added.kind, "secret": added.secret}
    shell.row(row, f"channel {added.channel_id} added" + (f"\nsecret {added.secret}" if added.secret else ""))


@channel.command("list")
@force_option()
@reading
def channel_list(shell: Shell, force: str | None) -> None:
    """The channels of a force, without their secrets."""
    with assemble.opened_registry(shell.settings, shell.actor) as registry:
        found = registry.channels(assemble.chosen_force(registry, force))
    rows = [{"channel_id": c.channel_id, "kind": c.kind, "url": c.shown_url, "enabled": c.enabled} for c in found]
    shell.table(rows, ["channel_id", "kind", "url", "enabled"], "no channel: incidents are shown, told to nobody")


@channel.command("remove")
@click.argument("channel_id")
@force_option()
@reading
def channel_remove(shell: Shell, channel_id: str, force: str | None) -> None:
    """Remove a channel."""
    with assemble.opened_registry(shell.settings, shell.actor) as registry:
        of_force = assemble.chosen_force(registry, force)
        registry.remove_channel(of_force, channel_id)
    shell.row({"channel_id": channel_id, "removed": True}, f"channel {channel_id} removed")


@click.command()
@force_option("Only this force.")
@click.option("--since", default=None, metavar="TIME", help="RFC 3339, with a zone.")
@click.option("--limit", type=int, default=1000, show_default=True, help="The newest so many.")
@reading
def audit(shell: Shell, force: str | None, since: str | None, limit: int) -> None:
    """Who did and asked what, oldest first. It only grows: the database refuses to change or delete an entry."""
    moment = assemble.moment(since)
    with assemble.opened_registry(shell.settings, shell.actor) as registry:
        rows = [
            {
                "id": entry.id,
                "at": to_wire(entry.at),
                "actor": entry.actor,
                "action": entry.action,
                "force": entry.force,
                "target": entry.target,
                "detail": dict(entry.detail),
                "reason": entry.reason,
            }
            for entry in registry.audit(force, moment, limit)
        ]
    shell.table(rows, ["id", "at", "actor", "action", "force", "target", "detail"], "nothing yet")
