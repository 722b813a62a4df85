"""Reports in: a synthetic fleet, or a file that someone else wrote."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from harmonywatch import assemble
from harmonywatch.cli.frame import EXIT_NOT_WELL, NotDone, Shell, check_data, common, force_option


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--key", default=None, envvar="HARMONYWATCH_KEY", help="Watcher or relay key (or HARMONYWATCH_KEY).")
@click.option("--to", default=None, metavar="URL", help="The gateway (default: the one of this data folder).")
@click.option("--ca", default=None, metavar="PEM", help="Certificate to trust, for https.")
@click.option("--give-up", type=float, default=60.0, show_default=True, help="Seconds without an answer until it ends.")
@click.option(
    "--replay", is_flag=True, help="Each line says when it was received; see above. Needs no key, but the folder."
)
@force_option("With --replay: whose reports they are (needed when there are several forces).")
@common
def send(shell: Shell, file: str, replay: bool, force: str | None, **how: Any) -> None:
    """Send a file of reports: NDJSON, one JSON document or an array of them, also gzipped; `-` reads standard input.

    Every line gets a verdict; lines that are no reports are sent too, and kept as rejects. Exit status 0: all accepted;
    1: some refused (each is printed with its number, pointer and reason); 2: not sent, or not all of it.

    With --replay a line is {"received_at": "2026-11-23T18:00:00Z", "report": {...}}, the report as a watcher sent it, or
    {"received_at": ..., "bytes": BASE64} for what was no JSON. Only who owns the data folder may say when something was
    received, so it goes from here to the stream, past the gateway but not past its checks, and into the audit. A line
    of another form, or received in the future, is refused and not kept.

    \b
    harmonywatch send reports.ndjson --key hw_r_...
    zcat day.ndjson.gz | harmonywatch send - --key hw_r_... --json
    harmonywatch send received.ndjson --replay --force north
    """
    if replay and (how["to"] or click.get_current_context().get_parameter_source("key") == ParameterSource.COMMANDLINE):
        raise click.UsageError(
            "--replay goes to the stream of this folder: it takes --force, and neither --key nor --to"
        )
    if not replay and (how["key"] is None or force is not None):
        raise click.UsageError(
            "--key is missing" if force is None else "the force is the key's; --force is for --replay"
        )
    judged = assemble.replayed(shell.settings, shell.actor, force, file) if replay else _sent(shell, file, **how)
    try:
        refused = _told(shell, judged)
    except BrokenPipeError:  # who reads our output, not the file
        raise
    except (OSError, EOFError) as error:  # the file: missing, cut, or not what gzip wrote
        raise NotDone(str(error)) from None
    sys.exit(EXIT_NOT_WELL if refused else 0)


def _told(shell: Shell, judged: Iterator[Any]) -> int:
    """Print the verdicts as they come; how many lines were refused."""
    accepted = refused = 0
    for verdict in judged:
        fine = verdict.status == "accepted"
        accepted, refused = accepted + fine, refused + (not fine)
        row = {name: getattr(verdict, name) for name in ("line", "status", "pointer", "reason")}
        if shell.as_json:
            shell.row(row)
        elif not fine:
            shell.row(row, f"line {verdict.line}: {verdict.pointer or '/'} {verdict.reason}")
    shell.say(f"{accepted} accepted, {refused} refused" + (" (kept: harmonywatch rejects list)" if refused else ""))
    return refused


def _sent(shell: Shell, file: str, key: str, to: str | None, ca: str | None, give_up: float) -> Iterator[Any]:
    from harmonywatch.fleet.sendfile import GatewayAwayError, KeyRefusedError, send_file

    url = to or _own_gateway(shell)
    try:
        yield from send_file(file, url, key, ca=ca, give_up_s=give_up)
    except (GatewayAwayError, KeyRefusedError, ValueError) as error:
        raise NotDone(str(error)) from None


def _own_gateway(shell: Shell) -> str:
    """The gateway of the data folder. A folder that was named and is none must not mean whoever listens at the usual port."""
    if "data" in shell.origins:
        check_data(shell.settings)
    return assemble.gateway_url(shell.settings)


@click.command()
@click.option("--watchers", type=int, default=69_420, show_default=True, help="How many; the first wave is 69,420.")
@click.option("--rate", type=float, default=None, help="Reports a second over all (default: one a watcher and minute).")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Length of the run; 0 = until stopped.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed makes the same city.")
@click.option(
    "--to", default=None, metavar="URL", help="The gateway (default: the one of this data folder), or mqtt://HOST:PORT."
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="FORCE=KEY",
    help="A relay key (MQTT: USER:PASSWORD); repeat for more forces.",
)
@click.option("--faults", default="", metavar="SPEC", help="E.g. twice=0.02,late=0.01,malformed=0.005,skew=0.001.")
@click.option(
    "--singles", type=float, default=0.05, show_default=True, help="Share of watchers that send by themselves."
)
@click.option("--connections", type=int, default=16, show_default=True)
@click.option("--encoding", type=click.Choice(["gzip", "zstd"]), default=None, help="Compression of relays' batches.")
@click.option("--out", default=None, metavar="FILE", help="Write the reports as NDJSON instead of sending them.")
@click.option("--truth", default=None, metavar="FILE", help="Write the ground truth as it goes.")
@click.option("--truth-full", is_flag=True, help="With the reports themselves in the truth.")
@click.option("--ca", default=None, metavar="PEM", help="Certificate to trust, for https.")
@common
def fleet(shell: Shell, keys: tuple[str, ...], to: str | None, ca: str | None, **asked: Any) -> None:
    """Let a seeded fleet of watchers send reports. All of it is invented: nobody is watched.

    Exit status 0: every report has its answer; 1: the outcome of some is unknown; 2: nothing was accepted.

    \b
    harmonywatch fleet --key north=hw_r_... --seconds 60
    harmonywatch fleet --watchers 1000 --rate 5000 --seconds 10 --out reports.ndjson
    harmonywatch fleet --to mqtt://127.0.0.1:1884 --key north=base:PASSWORD
    """
    from harmonywatch.fleet.faults import FaultSpecError, parse_faults
    from harmonywatch.fleet.plan import HARMONYLAND, FleetPlan
    from harmonywatch.fleet.send import run_fleet, write_fleet

    if not keys and asked["out"] is None:
        raise click.UsageError(
            "a fleet needs --key FORCE=KEY (harmonywatch relay add NAME --force F prints one) or --out FILE"
        )
    try:
        asked["faults"] = parse_faults(asked["faults"])
        for name in ("out", "truth"):
            asked[name] = Path(asked[name]) if asked[name] else None
        url = "" if asked["out"] else to or _own_gateway(shell)
        targets = tuple(assemble.target(key, url, ca) for key in keys) or HARMONYLAND
        plan = FleetPlan(targets=targets, **asked)
    except (FaultSpecError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    if plan.out is not None:
        result = write_fleet(plan, plan.out)
    else:
        try:
            result = asyncio.run(run_fleet(plan, lambda tally: _progress(shell, tally)))
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    tally = result.tally
    row = {
        "run": result.run,
        "sent": tally.sent,
        "accepted": tally.accepted,
        "refused": tally.refused,
        "unknown": tally.unknown,
        "retried": tally.retried,
        "bytes": tally.json_bytes,
    }
    shell.row(row)
    if plan.out is None and tally.sent and not tally.accepted:
        raise NotDone(f"nothing was accepted: {tally.last_problem or 'no answer'}")
    if tally.unknown:
        sys.exit(EXIT_NOT_WELL)


def _progress(shell: Shell, tally: Any) -> None:
    if sys.stderr.isatty() and not shell.as_json:
        click.echo(f"\r{tally.sent} sent, {tally.accepted} accepted, {tally.refused} refused ", err=True, nl=False)
