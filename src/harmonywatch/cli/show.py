"""`demo`: see all of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harmonywatch.cli.frame import EXIT_NOT_WELL, NotDone, Shell, common
from harmonywatch.cli.services import copies_option

FAULTS = "twice=0.01,late=0.005,order=0.01,malformed=0.002,skew=0.0005,silent=0.001"


@click.command()
@click.option("--seconds", type=float, default=60.0, show_default=True, envvar="DEMO_SECONDS", help="0 = stay up.")
@click.option(
    "--rate", type=float, default=None, envvar="DEMO_RATE", help="Reports/s (default: one a watcher and minute)."
)
@click.option("--watchers", type=int, default=69_420, show_default=True, envvar="DEMO_WATCHERS")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed makes the same city.")
@click.option("--faults", default=FAULTS, show_default=True, help="What goes wrong on the way; '' for nothing.")
@click.option("--gateway-port", type=int, default=8470, show_default=True, help="Another is taken if it is in use.")
@click.option("--console-port", type=int, default=8480, show_default=True, help="Another is taken if it is in use.")
@copies_option
@common
def demo(shell: Shell, gateway_port: int, console_port: int, faults: str, copies: dict[str, int], **asked: Any) -> None:
    """The whole product on this machine: services, two forces, a fleet of which everything is known, and a table of truth
    against result. The exit status is not 0 if anything disagrees. Everything is invented: nobody is watched.

    It plays in ./demo-data or the --data you give: new, empty, or a former demo's, which it empties first. Any other
    folder, and one in which something runs, is refused.

    \b
    harmonywatch demo
    harmonywatch demo --seconds 20 --rate 5000 --data demo-data
    """
    from harmonywatch.demo.ground import DemoFailed
    from harmonywatch.demo.play import Stage, play
    from harmonywatch.fleet.faults import FaultSpecError, parse_faults
    from harmonywatch.fleet.plan import FleetPlan
    from harmonywatch.supervisor import copies_of, services_of
    from harmonywatch.telemetry import configure_logging

    configure_logging("demo", "error")
    folder = Path("demo-data") if "data" not in shell.origins else shell.settings.folder
    try:
        plan = FleetPlan(faults=parse_faults(faults), **asked)
        services = copies_of(services_of(bool(shell.settings.mqtt.url)), copies)
        outcome = play(Stage(folder, plan, shell.say, gateway_port, console_port, services))
    except (DemoFailed, FaultSpecError, ValueError) as error:
        raise NotDone(str(error)) from None
    _print(shell, outcome)
    if not outcome.fine:
        sys.exit(EXIT_NOT_WELL)
    shell.say(
        f"\nEverything agrees. The archive stays: harmonywatch questions; harmonywatch ask NAME --force north --data {folder}"
    )


def _print(shell: Shell, outcome: Any) -> None:
    shell.say("")
    rows = [
        {"what": check.what, "truth": check.truth, "result": check.result, "agrees": check.fine}
        for check in outcome.checks
    ]
    if shell.as_json:
        rows += [
            {"latency": what, "p50_ms": p50, "p99_ms": p99, "max_ms": most}
            for what, p50, p99, most in outcome.latencies
        ]
        rows += [{"figure": what, "value": value} for what, value in outcome.figures]
        shell.table(rows, [])
        return
    marks = {True: "yes", False: "NO", None: ""}
    shell.table([row | {"agrees": marks[row["agrees"]]} for row in rows], ["what", "truth", "result", "agrees"])
    shell.say("")
    shell.table(
        [
            {"latency, ms": what, "p50": f"{p50:.1f}", "p99": f"{p99:.1f}", "max": f"{most:.1f}"}
            for what, p50, p99, most in outcome.latencies
        ],
        ["latency, ms", "p50", "p99", "max"],
    )
    shell.say("")
    for what, value in outcome.figures:
        shell.say(f"{what}: {value}")
