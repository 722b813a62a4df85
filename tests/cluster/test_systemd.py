"""The systemd units, executed without systemd: each unit's own command, with the example's environment pointed at real
engines, as processes; reports in, a proof out, and stopped as systemd stops them. And what systemd itself says of the units.
"""

from __future__ import annotations

import http.client
import json
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_system import HARMONYWATCH, QUICK_ARCHIVE, System, clean_environment, free_ports, made, report, wait_for

from engines.cluster import engines

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
PROGRAM, FOLDER = "/opt/harmonywatch/bin/harmonywatch", "/var/lib/harmonywatch"
INSTANCES = ("gateway", "mqtt", "alerting", "dispatch", "archive", "archive:2", "console")
REPORTS = 200
HERE = ("HARMONYWATCH_STREAM__URL", "HARMONYWATCH_LAKE", "HARMONYWATCH_STATE")
"""What the example says of engines, and every AWS_... with it."""


def setting(unit: str, name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", (UNITS / unit).read_text(), re.M)
    return str(value)


def example() -> dict[str, str]:
    lines = (UNITS / "environment.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def pointed_at(real: dict[str, str], folder: Path) -> dict[str, str]:
    """The example's variables, all of them: of engines to these engines, paths below the folder, the rest as they are."""
    found = {name: value.replace(FOLDER, str(folder)) for name, value in example().items()}
    for name in found:
        if name in HERE or name.startswith("AWS_"):
            found[name] = real[name]
    beside = ("AWS_ALLOW_HTTP", "HARMONYWATCH_MQTT__URL", "HARMONYWATCH_MQTT__PASSWORD_FILE")
    return found | {name: real[name] for name in beside} | {"HARMONYWATCH_STREAM__REPLICAS": "1", **QUICK_ARCHIVE}


class Host:
    """The instances of `harmonywatch@.service` on one host."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, instance: str) -> None:
        program, *words = shlex.split(setting("harmonywatch@.service", "ExecStart").replace("%i", instance))
        assert program == PROGRAM
        command = [str(HARMONYWATCH), *(word.replace(FOLDER, str(self.system.folder)) for word in words)]
        environment = {**clean_environment(), **self.system.environment}
        with self.system.log.open("ab") as log:
            self.processes[instance] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def ready(self) -> bool:
        """Every instance has noted where it is and answers 200 at its operations port."""
        for instance, process in self.processes.items():
            assert process.poll() is None, f"{instance} ended with {process.returncode}:\n{self.system.log_end()}"
            note = self.system.folder / "run" / f"{instance}.json"
            if not note.exists() or self._readyz(json.loads(note.read_text())["ops_port"]) != 200:
                return False
        return True

    def _readyz(self, port: int) -> int:
        try:
            return self.system.get(port, "/readyz").status
        except (OSError, http.client.HTTPException):
            return 0

    def stop(self, instance: str) -> tuple[int, float]:
        """As systemd does: SIGTERM, and time to end. Its exit status, and how long it took."""
        process, began = self.processes.pop(instance), time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(float(setting("harmonywatch@.service", "TimeoutStopSec")))
        return code, time.monotonic() - began


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    ports = free_ports(2)
    with engines(tmp_path, brokers=1) as real:
        doors = {"HARMONYWATCH_GATEWAY__PORT": str(ports[0]), "HARMONYWATCH_CONSOLE__PORT": str(ports[1])}
        folder = tmp_path / "var"
        folder.mkdir(mode=0o700)  # StateDirectory= makes it
        environment = {**pointed_at(dict(real), folder), **doors}
        with made(folder, gateway_port=ports[0], console_port=ports[1], environment=environment) as system:
            started = Host(system)
            yield started
            for instance in list(started.processes):
                started.processes[instance].kill()
                started.processes[instance].wait()


def test_every_unit_runs_takes_reports_proves_them_and_stops_in_order(host: Host) -> None:
    for instance in INSTANCES:
        host.start(instance)
    wait_for("every unit ready", host.ready, 60.0, 0.2)
    key = host.system.add_force("north")
    sent = [
        report(f"w{n % 7}", score=10.0 if n % 50 == 0 else 80.0, name=f"Citizen {n}", report_id=f"r{n}")
        for n in range(REPORTS)
    ]
    body = b"".join(json.dumps(each).encode() + b"\n" for each in sent)
    answer = host.system.post(key, body, "application/x-ndjson")
    assert (answer.status, answer.json()) == (200, {"accepted": REPORTS, "rejected": []})
    proof = host.system.wait_archived("north", REPORTS, 60.0)
    assert (proof["accepted"], proof["stored"], proof["missing"], proof["repeated"]) == (REPORTS, REPORTS, 0, 0)
    wait_for("four alerts", lambda: len(host.system.run("alerts", "--force", "north")) == 4, 20.0, 0.5)
    wait_for("four incidents", lambda: len(host.system.run("incidents", "--force", "north")) == 4, 20.0, 0.5)
    keys = Path(host.system.environment["HARMONYWATCH_KEYS"])
    assert [path.name for path in keys.iterdir()] == ["north.keys"]
    assert not any((host.system.folder / engine).exists() for engine in ("stream", "lake"))
    stopped = {instance: host.stop(instance) for instance in INSTANCES}
    assert {code for code, _ in stopped.values()} == {0}, (stopped, host.system.log_end())
    assert max(took for _, took in stopped.values()) < 20
    host.system.run("lake", "compact")
    assert host.system.verified("north")["stored"] == REPORTS


def test_a_unit_writes_only_where_it_may() -> None:
    assert setting("harmonywatch@.service", "ProtectSystem") == "strict"
    assert setting("harmonywatch@.service", "StateDirectory") == Path(FOLDER).name
    assert Path(example()["HARMONYWATCH_KEYS"]).is_relative_to(FOLDER)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for unit in UNITS.glob("harmonywatch*"):
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, str(HARMONYWATCH)))
    assert verified(tmp_path) == ""
    broken = tmp_path / "harmonywatch.service"
    broken.write_text(broken.read_text().replace("RestartSec=1", "RestartSek=1"))
    assert "RestartSek" in verified(tmp_path)


def verified(folder: Path) -> str:
    names = sorted(str(path) for path in folder.iterdir())
    done = subprocess.run(
        ["systemd-analyze", "verify", *names], capture_output=True, text=True, check=False, cwd=folder
    )
    return "\n".join(line for line in (done.stdout + done.stderr).splitlines() if "harmonywatch" in line)
