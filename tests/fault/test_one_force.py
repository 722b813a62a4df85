"""A force whose stream is damaged, in every topic it has, is its own misfortune: the other force is served in full, no
service ends, the operator is told, and what he restores is taken up without a restart."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from figures import Tell
from running_system import QUICK_ARCHIVE, System, made, report, wait_for

pytestmark = pytest.mark.fault
FOLLOWERS = ("alerting", "dispatch", "archive")


def alerted(system: System, force: str) -> set[str]:
    return {row["report_id"] for row in system.run("alerts", "--force", force)}


def shortened(topics: Path) -> None:
    """As after a disk that forgot: all that follows was acknowledged, and is not there."""
    for place in topics.glob("*.north"):
        ends = place / "ends"
        ends.write_bytes(b"".join((99).to_bytes(8, "little") for _ in range(ends.stat().st_size // 8)))


def test_a_force_with_a_damaged_stream_holds_up_no_other(tmp_path: Path, tell: Tell) -> None:
    topics = tmp_path / "data" / "stream" / "topics"
    with made(tmp_path / "data", environment=QUICK_ARCHIVE) as system:
        north, south = system.add_force("north"), system.add_force("south")
        system.start()
        for key in (north, south):
            assert system.post(key, report("w", 1.0, report_id="before", sequence=1)).status == 202
        for force in ("north", "south"):
            wait_for("the first alert", lambda force=force: alerted(system, force) == {"before"}, 20)
            system.wait_archived(force, 1)
        system.stop()
        shutil.copytree(topics, tmp_path / "backup")
        shortened(topics)

        system.start()
        pids = system.pids()
        refused = system.post(north, report("w", 1.0, report_id="lost", sequence=2))
        assert (refused.status, refused.json()["code"]) == (503, "topic-damaged")
        assert "Retry-After" in refused.headers
        assert system.post(south, report("w", 1.0, report_id="during", sequence=2)).status == 202
        wait_for("an alert of the south", lambda: alerted(system, "south") == {"before", "during"}, 20)
        wait_for("a row of the south", lambda: len(system.query("select * from reports", "south")) == 2, 30)
        incidents = system.run("incidents", "--force", "south")
        assert [row["occurrences"] for row in incidents] == [2]
        told = {row["service"]: row for row in system.run("status", codes=(0, 1)) if "service" in row}
        assert {name: told[name]["status"] for name in FOLLOWERS} == dict.fromkeys(FOLLOWERS, "degraded")
        assert all("north" in told[name]["reasons"][0] for name in FOLLOWERS)
        assert system.pids() == pids, f"a service ended:\n{system.log_end()}"

        for place in topics.glob("*.north"):
            shutil.copy(tmp_path / "backup" / place.name / "ends", place / "ends")
        answer = wait_for(
            "the north's door",
            lambda: system.post(north, report("w", 1.0, report_id="after", sequence=3)).status == 202,
            60,
            0.5,
        )
        assert answer
        wait_for("an alert of the north", lambda: "after" in alerted(system, "north"), 60, 0.5)
        row = system.wait_archived("north", 2, 60)
        assert system.pids() == pids, f"a service ended:\n{system.log_end()}"
        tell(
            f"the north was damaged and mended while the south was served: {row['stored']} stored of {row['accepted']}"
        )
