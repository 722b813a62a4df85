"""What every command shares: the common options, printing for people or for programs, errors that say what to do."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
import msgspec

from harmonywatch.settings import BadSettings, Settings, load

EXIT_REFUSED = 2


class Shell:
    """A command's surroundings: settings, who acts, and how to print."""

    def __init__(self, settings: Settings, origins: Mapping[str, str], as_json: bool, flags: Mapping[str, Any]) -> None:
        self.settings, self.origins, self.as_json, self._flags = settings, origins, as_json, flags

    def with_flags(self, flags: Mapping[str, Any]) -> Shell:
        """The shell with more settings given as flags (dotted keys; None = not given)."""
        return _shell({**self._flags, **flags}, self.as_json)

    @property
    def actor(self) -> str:
        """Who the audit names: the owner of the shell."""
        from harmonywatch.assemble import os_user

        return os_user()

    def say(self, text: str) -> None:
        """For people only: with --json it goes to standard error."""
        click.echo(text, err=self.as_json)

    def row(self, row: Mapping[str, Any], text: str | None = None) -> None:
        """One result: a JSON object, or its line for people."""
        if self.as_json:
            click.echo(msgspec.json.encode(row).decode())
        else:
            click.echo(text if text is not None else "  ".join(f"{key} {value}" for key, value in row.items()))

    def table(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], empty: str = "nothing") -> int:
        """Results as a table, or one object a line; how many there were."""
        count = 0
        if self.as_json:
            for row in rows:
                click.echo(msgspec.json.encode(row).decode())
                count += 1
            return count
        kept = [[_cell(row.get(column)) for column in columns] for row in rows]
        if not kept:
            click.echo(empty)
            return 0
        widths = [max(map(len, column)) for column in zip(columns, *kept, strict=True)]
        for line in [list(columns), *kept]:
            click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
        return len(kept)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command; the command gets a Shell first."""

    @click.option("--data", metavar="DIR", default=None, help="Folder of everything (default: ./data).")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object per line on standard output, nothing else.")
    @functools.wraps(command)
    def wrapped(*args: Any, data: str | None, as_json: bool, **kwargs: Any) -> Any:
        with_errors(lambda: command(_shell({"data": data}, as_json), *args, **kwargs))

    return wrapped


def _shell(flags: Mapping[str, Any], as_json: bool) -> Shell:
    settings, origins = load(flags)
    return Shell(settings, origins, as_json, flags)


def with_errors(act: Callable[[], Any]) -> None:
    """Run a command: what it refuses ends in one clear line and exit code 2, never in a traceback."""
    from harmonywatch.assemble import expected_errors

    try:
        act()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader (head, less) has seen enough
        sys.exit(0)
    except Exception as error:
        if not isinstance(error, (BadSettings, *expected_errors())):
            raise
        click.echo(f"harmonywatch: {error}", err=True)
        sys.exit(EXIT_REFUSED)


def force_option(help_text: str = "The force (needed when there are several).") -> Callable[..., Any]:
    return click.option("--force", metavar="F", default=None, help=help_text)
