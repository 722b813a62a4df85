"""The command line. Each command's module is imported when it is called, so that a service starts in a fraction of a second.

Options come after the subcommand and its arguments; every command takes `--data DIR` and `--json` (one object per line on
standard output, nothing else). Whoever owns the data folder is administrator, and is audited by their name on this system.
"""

from __future__ import annotations

import importlib

import click

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("services", "every service of a data folder, kept up"),
    "run": ("services", "one service, in this process"),
    "demo": ("show", "the whole city on this machine, ending with truth against result"),
    "fleet": ("send", "let a synthetic fleet send reports"),
    "send": ("send", "send a file of reports, with a verdict for every line"),
    "alerts": ("live", "alerts from the live path"),
    "incidents": ("live", "incidents, and what officers do with them"),
    "query": ("ask", "ask the archive in SQL"),
    "ask": ("ask", "ask the archive a saved question"),
    "questions": ("ask", "the saved questions"),
    "force": ("members", "add and list forces"),
    "relay": ("members", "base stations and their keys"),
    "watcher": ("members", "watchers and their keys"),
    "officer": ("members", "officers, their roles and keys"),
    "rule": ("members", "when a score is bad, by force"),
    "channel": ("members", "where incidents are told"),
    "audit": ("members", "who did and asked what"),
    "lake": ("lake", "prove and tidy the archive"),
    "rejects": ("lake", "refused reports: look, and send again"),
    "status": ("operate", "rates, lag and health, now"),
    "doctor": ("operate", "is this machine and folder fit to run"),
    "config": ("operate", "settings and where each came from"),
    "schema": ("operate", "JSON Schema of reports and records"),
}
"""Name -> module in this package, and its line in `--help`."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"harmonywatch.cli.{COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="harmonywatch")
def main() -> None:
    """Reports go in, alerts come out, the archive answers.

    \b
    harmonywatch demo                            see it
    harmonywatch up                              run it
    harmonywatch force add north                 a tenant
    harmonywatch relay add base --force north    a key to send with
    harmonywatch send reports.ndjson --key K     reports in
    harmonywatch alerts --follow                 alerts out
    harmonywatch query "select count(*) from reports"

    Exit status of every command: 0 done; 1 done, and not all is well (a line refused, a report missing, something broken);
    2 not done: misuse, a refusal, or nobody there.
    """
