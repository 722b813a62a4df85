"""`python -m engines install [PART...]`: fetch what the engines need and this machine lacks."""

from __future__ import annotations

import subprocess

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


if __name__ == "__main__":
    main()
