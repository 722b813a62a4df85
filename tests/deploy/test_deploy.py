"""What is deployed is what the code knows: every command, setting, port, probe and metric in deploy/ is checked against it.

Nothing here can run a container: rendering and checking is what these tests do (docs/gaps.md says so). The systemd units'
own commands are run, on a folder of this test.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from harmonywatch.cli import main
from harmonywatch.ops import OPS_PATHS
from harmonywatch.settings import Settings, describe
from harmonywatch.telemetry import Telemetry

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "harmonywatch"
COMPOSE = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
SETTINGS = {"HARMONYWATCH_" + key.upper().replace(".", "__") for key in describe()}
OURS = ("gateway", "mqtt", "alerting", "dispatch", "archive", "console")


def check_command(arguments: list[str]) -> None:
    """Parse as the command line does, without running it. Raises click.ClickException."""
    command: click.Command = main
    context, left = click.Context(main, info_name="harmonywatch"), list(arguments)
    while isinstance(command, click.Group):
        name, found, left = command.resolve_command(context, left)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    command.make_context(command.name, left, parent=context.parent)


def test_a_wrong_command_would_be_seen() -> None:
    with pytest.raises(click.ClickException):
        check_command(["run", "gatway"])
    with pytest.raises(click.ClickException):
        check_command(["run", "gateway", "--no-such-option"])


@pytest.mark.parametrize("service", OURS)
def test_compose_commands_are_the_programs(service: str) -> None:
    check_command(COMPOSE["services"][service]["command"])


def test_compose_sets_only_settings_that_exist() -> None:
    named = {name for service in OURS for name in COMPOSE["services"][service]["environment"]}
    ours = {name for name in named if name.startswith("HARMONYWATCH_")}
    assert "HARMONYWATCH_STREAM__URL" in ours
    assert ours <= SETTINGS
    assert {name for name in named - ours if not name.startswith("AWS_")} == set()


def test_compose_ports_are_the_doors() -> None:
    settings = Settings()
    assert COMPOSE["services"]["gateway"]["ports"] == [f"127.0.0.1:{settings.gateway.port}:{settings.gateway.port}"]
    assert COMPOSE["services"]["console"]["ports"] == [f"127.0.0.1:{settings.console.port}:{settings.console.port}"]
    jobs = yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())["scrape_configs"]
    ops = int(COMPOSE["services"]["archive"]["environment"]["HARMONYWATCH_OPS__PORT"])
    doors = {"gateway": settings.gateway.port, "console": settings.console.port}
    for job in jobs:
        (place,) = job["dns_sd_configs"]
        assert place == {"names": [job["job_name"]], "type": "A", "port": doors.get(job["job_name"], ops)}
    assert {job["job_name"] for job in jobs} == set(OURS)


def test_compose_mounts_files_that_are_there() -> None:
    mounted = [
        mount.split(":")[0]
        for service in COMPOSE["services"].values()
        for mount in service.get("volumes", [])
        if mount.startswith(".")
    ]
    assert len(mounted) >= 5
    for name in mounted:
        assert (DEPLOY / "compose" / name).is_file(), name


def test_the_image_exposes_the_ports_and_starts_the_program() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    settings = Settings()
    assert f"EXPOSE {settings.gateway.port} {settings.console.port} 9470" in text
    assert 'ENTRYPOINT ["harmonywatch"]' in text
    (command,) = re.findall(r"^CMD (.*)$", text, re.M)
    check_command(json.loads(command))
    for source in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.M):
        for name in source.split():
            assert (ROOT / name).exists(), name
    assert set(re.findall(r"HARMONYWATCH_\w+", text)) <= SETTINGS


# --- the chart, as text: what helm renders of it is checked in tests/cluster


def chart_text() -> str:
    return "\n".join(path.read_text() for path in sorted((CHART / "templates").iterdir()))


def test_the_chart_sets_only_settings_that_exist() -> None:
    named = set(re.findall(r"HARMONYWATCH_\w+", chart_text() + (CHART / "values.yaml").read_text()))
    assert len(named) >= 7
    assert named <= SETTINGS


def test_the_charts_commands_are_the_programs() -> None:
    lists = re.findall(r'^ +"(\w+)" \(list ((?:"[^"]+" ?)+)\)', chart_text(), re.M)
    assert {service for service, _ in lists} >= {"gateway", "console", "alerting", "dispatch", "archive"}
    for _, words in lists:
        check_command(shlex.split(words))
    for words in re.findall(r"args: \[([a-z, ]+)\]", chart_text()):
        check_command(words.split(", "))


def test_the_charts_probes_are_pages_that_exist() -> None:
    assert set(re.findall(r"path: (/[a-z]+z)", chart_text())) <= set(OPS_PATHS)


def test_version_and_image_are_one() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == values["image"]["tag"] == version
    assert {COMPOSE["services"][service]["image"] for service in OURS} == {f"harmonywatch:{version}"}


def test_every_service_has_copies_and_resources() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values["replicas"]) == set(values["resources"]) == set(OURS)


# --- what is watched


def series() -> set[str]:
    """Names of every series that a service can show."""
    found = set()
    for metric in Telemetry("any").registry.collect():
        kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        found |= {metric.name + suffix for suffix in kinds.get(metric.type, ("",))}
    return found


def expressions() -> Iterator[tuple[str, str]]:
    rules: Any = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    board = json.loads((CHART / "files" / "dashboard.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_rules_and_panels_ask_for_metrics_that_exist(where: str, expression: str) -> None:
    asked = set(re.findall(r"harmonywatch_\w+", expression))
    assert asked, where
    assert asked <= series(), where
    assert set(re.findall(r'job=~?"([^"]+)"', expression)) <= {*OURS, "gateway|mqtt"}


# --- systemd: executed


UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def started_by(unit: Path) -> list[str]:
    (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.M)
    program, *arguments = shlex.split(line)
    assert Path(program).name == "harmonywatch"
    return arguments


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_start_the_program(unit: Path) -> None:
    for service in OURS if "@" in unit.name else ("",):
        check_command([word.replace("%i", service) for word in started_by(unit)])


def test_the_environments_example_names_settings_that_exist() -> None:
    text = (DEPLOY / "systemd" / "environment.example").read_text()
    assert set(re.findall(r"^(HARMONYWATCH_\w+)=", text, re.M)) <= SETTINGS


def test_the_one_machine_units_command_runs(tmp_path: Path) -> None:
    words = [word.replace("/var/lib/harmonywatch", str(tmp_path)) for word in started_by(UNITS_BY_NAME["compact"])]
    done = subprocess.run(
        [sys.executable, "-m", "harmonywatch", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


UNITS_BY_NAME = {unit.stem.removeprefix("harmonywatch-"): unit for unit in UNITS}
