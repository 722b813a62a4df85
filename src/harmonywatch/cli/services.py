"""`up` and `run`: the services."""

from __future__ import annotations

import sys
from typing import Any

import click

from harmonywatch.cli.frame import NotDone, Shell, common
from harmonywatch.supervisor import SERVICES, AlreadyUp, Supervisor, copies_of, is_up, services_of

DOORS = (
    ("--gateway-port", "gateway.port", int, "Port for watchers (default 8470; 0 = any)."),
    ("--console-port", "console.port", int, "Port for officers (default 8480; 0 = any)."),
    ("--gateway-host", "gateway.host", str, "Address for watchers (default 127.0.0.1)."),
    ("--console-host", "console.host", str, "Address for officers (default 127.0.0.1)."),
)


COPIES_MAX = 64


def doors(command: Any) -> Any:
    """Where the two doors listen, for both `up` and `run`."""
    command = click.option("--behind-proxy", is_flag=True, help="A proxy in front terminates TLS.")(command)
    command = click.option("--tls-key", default=None, metavar="PEM", help="Key of the certificate.")(command)
    command = click.option("--tls-cert", default=None, metavar="PEM", help="Certificate chain for both doors.")(command)
    for name, _, kind, text in reversed(DOORS):
        command = click.option(name, type=kind, default=None, help=text)(command)
    return command


def flags_of(options: dict[str, Any]) -> dict[str, Any]:
    """The doors' options as settings."""
    flags = {key: options[name.removeprefix("--").replace("-", "_")] for name, key, _, _ in DOORS}
    for branch in ("gateway", "console"):
        flags[f"{branch}.tls_cert"], flags[f"{branch}.tls_key"] = options["tls_cert"], options["tls_key"]
        flags[f"{branch}.behind_proxy"] = options["behind_proxy"] or None
    return flags


class Copies(click.ParamType[dict[str, int]]):
    """`gateway=2,archive=2` as a mapping."""

    name = "copies"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, int]:
        found: dict[str, int] = {}
        for part in value.split(",") if value else ():
            service, _, count = part.partition("=")
            if service not in SERVICES or not count.isdecimal() or not 1 <= int(count) <= COPIES_MAX:
                self.fail(f"{part!r} is not SERVICE=COUNT, of {', '.join(SERVICES)}", param, ctx)
            found[service] = int(count)
        return found


class ServiceName(click.ParamType[str]):
    """A service, or one of its copies: `archive`, `archive:2`."""

    name = "service"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        service, colon, copy = str(value).partition(":")
        if service not in services_of(mqtt=True) or bool(colon) != (copy.isdecimal() and copy != "0"):
            self.fail(
                f"{value!r} is none of {', '.join(services_of(mqtt=True))}, nor a copy like archive:2", param, ctx
            )
        return str(value)


copies_option = click.option(
    "--copies", type=Copies(), default="", metavar="SERVICE=COUNT,...", help="Several processes of a service, on Kafka."
)


@click.command()
@doors
@copies_option
@common
def up(shell: Shell, copies: dict[str, int], **options: Any) -> None:
    """Run every service of a data folder, each a child process that is started again when it crashes.

    A new folder is set up by itself. SIGTERM or Ctrl-C stops everything within 20 seconds, losing nothing.

    \b
    harmonywatch up
    harmonywatch up --copies gateway=2,archive=2
    harmonywatch up --data /srv/harmony --gateway-port 8470 --tls-cert cert.pem --tls-key key.pem --gateway-host 0.0.0.0
    """
    from harmonywatch import assemble
    from harmonywatch.service import places, stop_on_signals
    from harmonywatch.telemetry import configure_logging

    settings = shell.with_flags(flags_of(options)).settings
    assemble.check_doors(settings)
    configure_logging("up", settings.log_level)
    stop = stop_on_signals()
    assemble.prepare(settings)
    if not is_up(settings.folder) and not places(settings.folder):  # else it may be services of ours, that still stop
        assemble.check_ports(settings)
    try:
        names = copies_of(services_of(bool(settings.mqtt.url)), copies)
        Supervisor(settings.folder, child_arguments(settings, options), services=names).run(stop.event)
    except AlreadyUp as error:
        raise NotDone(str(error)) from None


def child_arguments(settings: Any, options: dict[str, Any]) -> list[str]:
    """What a child is called with, so that it reads the same settings."""
    arguments = ["--data", settings.data]
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            arguments.append(option)
        elif value not in (None, False):
            arguments += [option, str(value)]
    return arguments


@click.command()
@click.argument("service", type=ServiceName())
@doors
@common
def run(shell: Shell, service: str, **options: Any) -> None:
    """Run one service in this process until SIGTERM: gateway, alerting, dispatch, console, archive or mqtt.

    On Kafka as many copies of it may run as its topics have partitions, here or on other hosts; those of one folder are
    told apart by a number. Each refuses to run twice. Exit status 0: stopped when asked; 3: stream or disk broke; 4: the
    operator must act (the last line of the log says how); 1: a bug.

    \b
    harmonywatch run gateway --gateway-port 8470
    harmonywatch run archive:2
    """
    from harmonywatch.processes import run as run_service

    sys.exit(run_service(service, shell.with_flags(flags_of(options)).settings))
