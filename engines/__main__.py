"""`python -m engines install [PART...]` fetches what the engines need and this machine lacks; `play` is `make cluster`."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import click

from engines.install import CannotInstall, install, parts


@click.group()
def main() -> None:
    """Real engines on this machine, for tests/cluster and `make cluster`."""


@main.command("install")
@click.argument("names", nargs=-1, metavar="[PART]...")
def install_command(names: tuple[str, ...]) -> None:
    """Fetch what is missing (default: every part)."""
    unknown = set(names) - set(parts())
    if unknown:
        raise click.UsageError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts())}")
    try:
        fetched = install(names)
    except (CannotInstall, subprocess.CalledProcessError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"fetched {', '.join(fetched)}" if fetched else "everything is there")


@main.command("kafka")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--brokers", default=1, type=click.IntRange(1, 5), help="how many; three can miss one")
def kafka_command(folder: Path, brokers: int) -> None:
    """A Kafka cluster in FOLDER (made anew) until it is interrupted; prints what `stream.url` takes."""
    from engines.kafka import Cluster

    with Cluster(folder, brokers, jvm=()) as cluster:
        click.echo(cluster.url)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


@main.command("play", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def play_command(arguments: tuple[str, ...]) -> None:
    """Every engine, every service, the demo's fleet; ARGUMENTS are the demo's."""
    from engines.cluster import play

    raise SystemExit(play(arguments))


if __name__ == "__main__":
    main()
