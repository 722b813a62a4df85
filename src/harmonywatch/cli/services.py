"""`up` and `run`: the services."""

from __future__ import annotations

import sys
from typing import Any

import click

from harmonywatch.cli.frame import NotDone, Shell, common
from harmonywatch.supervisor import AlreadyUp, Supervisor, services_of

DOORS = (
    ("--gateway-port", "gateway.port", int, "Port for watchers (default 8470; 0 = any)."),
    ("--console-port", "console.port", int, "Port for officers (default 8480; 0 = any)."),
    ("--gateway-host", "gateway.host", str, "Address for watchers (default 127.0.0.1)."),
    ("--console-host", "console.host", str, "Address for officers (default 127.0.0.1)."),
)


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


@click.command()
@doors
@common
def up(shell: Shell, **options: Any) -> None:
    """Run every service of a data folder, each a child process that is started again when it crashes.

    A new folder is set up by itself. SIGTERM or Ctrl-C stops everything within 20 seconds, losing nothing.

    \b
    harmonywatch up
    harmonywatch up --data /srv/harmony --gateway-port 8470 --tls-cert cert.pem --tls-key key.pem --gateway-host 0.0.0.0
    """
    from harmonywatch import assemble
    from harmonywatch.service import stop_on_signals
    from harmonywatch.telemetry import configure_logging

    settings = shell.with_flags(flags_of(options)).settings
    assemble.check_doors(settings)
    configure_logging("up", settings.log_level)
    stop = stop_on_signals()
    assemble.prepare(settings)
    try:
        services = services_of(bool(settings.mqtt.url))
        Supervisor(settings.folder, child_arguments(settings, options), services=services).run(stop.event)
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
@click.argument("service", type=click.Choice(services_of(mqtt=True)))
@doors
@common
def run(shell: Shell, service: str, **options: Any) -> None:
    """Run one service in this process until SIGTERM.

    \b
    harmonywatch run gateway --gateway-port 8470
    """
    from harmonywatch.processes import run as run_service

    sys.exit(run_service(service, shell.with_flags(flags_of(options)).settings))
