"""The data of every release that was made, opened by this one: nothing is lost, and it goes on.

`releases/N.tar.xz` is a data folder as release N left it after SIGTERM: a force `north` with 56 reports (50 of a fleet, 6
sent by a stranger with an unknown member, of them 6 bad scores of 3 citizens), one reject, one incident acknowledged. It
was written by that release's own `up`, `fleet --seed 7`, `send` and `incidents acknowledge`.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_system import QUICK_ARCHIVE, System, made, report, wait_for

RELEASES = sorted(Path(__file__).with_name("releases").glob("*.tar.xz"))


@pytest.fixture(params=RELEASES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def upgraded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[System]:
    """The release's folder, with nothing running yet."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    with made(tmp_path / request.param.name.removesuffix(".tar.xz"), environment=QUICK_ARCHIVE) as system:
        yield system


def check(system: System, reports: int, alerts: int, verified: int) -> None:
    (north,) = system.run("lake", "verify")
    assert (north["accepted"], north["stored"], north["missing"], north["repeated"]) == (verified, verified, 0, 0)
    assert system.query("select count(*) as n from reports", "north") == [{"n": reports}]
    assert len(system.run("alerts")) == alerts
    assert system.query("select count(*) as n from alerts", "north") == [{"n": alerts}]


def test_there_is_a_release_to_upgrade() -> None:
    assert RELEASES


def test_a_releases_data_is_read_and_goes_on(upgraded: System) -> None:
    check(upgraded, reports=56, alerts=6, verified=56)
    incidents = upgraded.run("incidents")
    assert Counter(row["state"] for row in incidents) == {"acknowledged": 1, "new": 2}
    assert sum(row["occurrences"] for row in incidents) == 6
    (extra,) = upgraded.query("select distinct extra from reports where extra is not null", "north")
    assert json.loads(extra["extra"])["mood"] == {"colour": "grey"}
    (reject,) = upgraded.run("rejects", "list")
    assert reject["code"]

    upgraded.start()
    key = upgraded.run("relay", "add", "second", "--force", "north")[0]["key"]
    for each in (report("w0", 10, "Ada Example 0", report_id="r0-after"), report("w9", 90, report_id="fresh")):
        assert upgraded.post(key, each).status == 202
    wait_for("the alert after the upgrade", lambda: len(upgraded.run("alerts")) == 7, 10, 0.2)
    wait_for("its row", lambda: upgraded.query("select count(*) as n from alerts", "north") == [{"n": 7}], 15, 0.5)
    wait_for("rows", lambda: upgraded.query("select count(*) as n from reports", "north") == [{"n": 58}], 15, 0.5)
    # one incident while it is open; a day after the release it has lapsed, and the alert opens another
    seen = [row["occurrences"] for row in upgraded.run("incidents") if row["name"] == "Ada Example 0"]
    assert sum(seen) == 3
    upgraded.stop()
    check(upgraded, reports=58, alerts=7, verified=58)
