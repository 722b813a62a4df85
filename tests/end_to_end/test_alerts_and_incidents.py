"""The live path at its doors: alerts and incidents as the command line and the console's stream give them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from figures import Tell
from running_system import HARMONYWATCH, Row, System, clean_environment, report, wait_for

VISIBLE_S = 1.0
ALERT_FIELDS = {
    "alert_id", "force", "report_id", "watcher_id", "name", "harmonyscore", "lat", "lon", "time", "received_at",
    "judged_at", "delivered_at", "rule",
}  # fmt: skip
INCIDENT_FIELDS = {
    "incident_id", "force", "name", "rule", "state", "occurrences", "watchers", "opened_at", "last_seen_at", "lat", "lon",
}  # fmt: skip


def when(text: str) -> float:
    """Seconds since 1970; raises when the text is not RFC 3339 in UTC with microseconds."""
    assert len(text) == len("2026-01-01T00:00:00.000000Z") and text.endswith("Z"), text
    return datetime.fromisoformat(text).timestamp()


class Followed:
    """`alerts --follow --json` as it runs: its rows, each with the moment it was read."""

    def __init__(self, system: System, force: str) -> None:
        command = [HARMONYWATCH, "alerts", "--follow", "--force", force, "--data", str(system.folder), "--json"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment())
        self.rows: list[tuple[float, Row]] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.rows.append((time.time(), json.loads(line)))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def following(system: System, force: str) -> Iterator[Followed]:
    followed = Followed(system, force)
    try:
        yield followed
    finally:
        followed.close()


def test_one_citizen_seen_by_50_watchers_in_the_same_instant_is_one_incident(system: System) -> None:
    key = system.add_force("instant")
    connections, watchers = 8, 50
    start = threading.Barrier(connections)

    def send(connection: int) -> list[int]:
        mine = range(connection, watchers, connections)
        bodies = [json.dumps(report(f"w-{number}", 3.5, "Nora Loud", sequence=1)).encode() for number in mine]
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        with contextlib.closing(system.connection(system.gateway_port)) as http:
            http.connect()
            start.wait()
            statuses = []
            for body in bodies:
                http.request("POST", "/v1/reports", body, headers)
                response = http.getresponse()
                response.read()
                statuses.append(response.status)
        return statuses

    with ThreadPoolExecutor(connections) as pool:
        statuses = [status for each in pool.map(send, range(connections)) for status in each]
    assert statuses == [202] * watchers
    alerts = wait_for("50 alerts", lambda: _at_least(system.run("alerts", "--force", "instant"), watchers), 10)
    assert len(alerts) == len({row["alert_id"] for row in alerts}) == watchers

    def complete() -> list[Row]:
        rows = system.run("incidents", "--force", "instant")
        return rows if sum(row["occurrences"] for row in rows) >= watchers else []

    incidents = wait_for("an incident with every occurrence", complete, 10)
    assert len(incidents) == 1
    assert (incidents[0]["occurrences"], incidents[0]["watchers"]) == (watchers, watchers)


def _at_least(rows: list[Row], count: int) -> list[Row]:
    return rows if len(rows) >= count else []


def test_an_alert_is_followed_within_a_second_of_its_judgement(system: System, tell: Tell) -> None:
    key = system.add_force("followed")
    system.post(key, report("first", 1.0, "Already There", sequence=1))
    with following(system, "followed") as followed:
        wait_for("the alert from before", lambda: followed.rows, 15)
        for number in range(5):
            assert system.post(key, report("w", 1.0, f"Citizen {number}", sequence=number)).status == 202
            wait_for("the alert", lambda wanted=number + 2: len(followed.rows) >= wanted, 10, 0.005)
    delays = [read_at - when(row["judged_at"]) for read_at, row in followed.rows[1:]]
    tell(f"alerts --follow: shown after judgement, s: {', '.join(f'{delay:.3f}' for delay in delays)}")
    assert len({row["alert_id"] for _, row in followed.rows}) == len(followed.rows) == 6
    assert max(delays) < VISIBLE_S


def test_alerts_and_incidents_have_the_doors_fields_and_are_visible_within_a_second(system: System) -> None:
    key = system.add_force("fields")
    answer = system.post(key, report("w-1", 24.999, "Otto Kurz", report_id="r-1", time="2026-01-01T00:00:00Z"))
    assert answer.status == 202 and answer.json() == {"report_id": "r-1", "status": "accepted"}
    alert = _shown_in_time(system, "alerts", "fields", None)
    judged_at = when(alert["judged_at"])
    incident = _shown_in_time(system, "incidents", "fields", judged_at)
    assert alert.keys() >= ALERT_FIELDS
    assert (alert["force"], alert["report_id"], alert["watcher_id"], alert["name"], alert["harmonyscore"]) == (
        "fields", "r-1", "w-1", "Otto Kurz", 24.999,
    )  # fmt: skip
    assert (alert["lat"], alert["lon"]) == (48.8566, 2.3522)
    assert when(alert["received_at"]) <= judged_at
    assert when(alert["time"]) == when(alert["received_at"]), "a time of months ago is not believed"
    assert incident.keys() >= INCIDENT_FIELDS
    assert (incident["name"], incident["state"], incident["occurrences"], incident["watchers"]) == (
        "Otto Kurz", "new", 1, 1,
    )  # fmt: skip
    assert incident["rule"] == alert["rule"]
    assert when(incident["last_seen_at"]) == when(alert["time"])
    assert abs(when(incident["opened_at"]) - judged_at) < VISIBLE_S


def _shown_in_time(system: System, command: str, force: str, judged_at: float | None) -> Row:
    """The command's first row; a call that begins a second after the judgement must show it."""
    missed_at = 0.0
    end = time.monotonic() + 10
    while time.monotonic() < end:
        began = time.time()
        rows = system.run(command, "--force", force)
        if rows:
            judged_at = judged_at or when(rows[0]["judged_at"])
            assert missed_at <= judged_at + VISIBLE_S, f"{command} did not show it a second after judgement"
            return rows[0]
        missed_at = began
    raise AssertionError(f"{command} never showed it")


def test_a_score_of_25_is_not_bad(system: System) -> None:
    key = system.add_force("strict")
    system.post(key, report("w", 25.0, "Just Fine", sequence=1))
    system.post(key, report("w", 24.9, "Not Fine", sequence=2))
    assert wait_for("an alert", lambda: system.run("alerts", "--force", "strict"), 10)
    assert [row["name"] for row in system.run("alerts", "--force", "strict")] == ["Not Fine"]


def test_an_alert_that_reached_a_live_stream_says_when(system: System, tell: Tell) -> None:
    key = system.add_force("live")
    officer = system.run("officer", "add", "grace", "--role", "officer", "--force", "live")[0]["key"]
    with contextlib.closing(system.connection(system.console_port, 20)) as http:
        http.request("GET", "/api/live", headers={"Authorization": f"Bearer {officer}", "Accept": "text/event-stream"})
        response = http.getresponse()
        assert response.status == 200, response.read()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        began = time.time()
        assert system.post(key, report("w", 2.0, "Ida Neu", sequence=1)).status == 202
        while b"Ida Neu" not in response.readline():
            pass
        tell(f"/api/live: seen {time.time() - began:.3f} s after sending")

    def delivered() -> list[Row]:
        return [row for row in system.run("alerts", "--force", "live") if row["delivered_at"]]

    (alert,) = wait_for("delivered_at", delivered, 10)
    assert 0 <= when(alert["delivered_at"]) - when(alert["judged_at"]) < VISIBLE_S


def test_since_narrows_what_is_listed(system: System) -> None:
    key = system.add_force("since")
    system.post(key, report("w", 2.0, "Early Bird", sequence=1))
    wait_for("the first alert", lambda: system.run("alerts", "--force", "since"), 10)
    between = datetime.now(UTC).isoformat()
    system.post(key, report("w", 2.0, "Late Bird", sequence=2))
    wait_for("the second alert", lambda: len(system.run("alerts", "--force", "since")) == 2, 10)
    assert [row["name"] for row in system.run("alerts", "--force", "since", "--since", between)] == ["Late Bird"]
