"""What every command shares: the common options, printing for people or for programs, errors that say what to do.

Exit codes, the same for every command: 0 done; 1 done, and what was looked at is not all well (a line refused, a report
missing, something broken); 2 not done: misuse, a refusal, or nobody there. A traceback, also 1, is our bug.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any

import click
import msgspec

from harmonywatch.settings import BadSettings, Settings, load

EXIT_NOT_WELL, EXIT_NOT_DONE = 1, 2

HOLDINGS = ("stream", "state", "lake", "keys", "harmonywatch.toml")
"""A folder with any of these is a data folder; so is an empty one, which needs no set-up."""


class NotDone(click.ClickException):
    """The command could not be done; the message says what to do."""

    exit_code = EXIT_NOT_DONE

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"harmonywatch: {self.message}", file=file or sys.stderr)


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


def common(command: Callable[..., Any], needs_data: bool = False) -> Callable[..., Any]:
    """The options of every command; the command gets a Shell first."""

    @click.option("--data", metavar="DIR", default=None, help="Folder of everything (default: ./data).")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object per line on standard output, nothing else.")
    @functools.wraps(command)
    def wrapped(**given: Any) -> Any:
        context = click.get_current_context()
        if context.invoked_subcommand is not None:
            return  # a group with options of its own: they count for the subcommand, which acts
        _inherit(context, given)
        data, as_json = given.pop("data"), given.pop("as_json")

        def act() -> None:
            shell = _shell({"data": data}, as_json)
            if needs_data:
                check_data(shell.settings)
            command(shell, **given)

        with_errors(act)

    return wrapped


def reading(command: Callable[..., Any]) -> Callable[..., Any]:
    """`common` for a command that looks at a data folder or changes what is in it: it makes none of a misspelt name."""
    return common(command, needs_data=True)


def _inherit(context: click.Context, given: dict[str, Any]) -> None:
    """`incidents --data D acknowledge ID` is `incidents acknowledge ID --data D`; what is given inside wins."""
    outer = context.parent
    while outer is not None:
        for name in {"data", "as_json", "force"} & given.keys() & outer.params.keys():
            given[name] = given[name] or outer.params[name]
        outer = outer.parent


def check_data(settings: Settings) -> None:
    """Raises BadSettings for a folder that is none, or somebody else's."""
    folder = settings.folder
    if settings.state and settings.stream.url:
        return  # everything stands elsewhere
    if folder.is_dir() and (not any(folder.iterdir()) or any((folder / name).exists() for name in HOLDINGS)):
        return
    raise BadSettings(
        f"nothing here: {folder} holds no harmonywatch data; start one with `harmonywatch up --data {folder}`"
    )


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
        if isinstance(error, OSError) and error.filename is not None:
            raise NotDone(f"{error.filename}: {error.strerror}") from None
        if not isinstance(error, (BadSettings, *expected_errors())):
            raise
        raise NotDone(str(error)) from None


def force_option(help_text: str = "The force (needed when there are several).") -> Callable[..., Any]:
    return click.option("--force", metavar="F", default=None, help=help_text)
