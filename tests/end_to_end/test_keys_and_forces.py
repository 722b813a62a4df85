"""Keys work at once and stop within a second; forces never see each other."""

from __future__ import annotations

import time

from figures import Tell
from running_system import Row, System, report, wait_for

REVOKED_S = 1.0


def test_a_new_key_works_at_once(system: System) -> None:
    key = system.add_force("new-keys")
    assert system.post(key, report("any-watcher", sequence=1)).status == 202
    own = system.run("watcher", "add", "w-1", "--force", "new-keys")[0]["key"]
    assert system.post(own, report("w-1", sequence=1)).status == 202
    assert system.post(own, report("w-2", sequence=1)).status == 403, "a watcher's key sends for that watcher"


def test_a_revoked_key_is_refused_within_a_second(system: System, tell: Tell) -> None:
    key = system.add_force("revoked")
    assert system.post(key, report("w", sequence=1)).status == 202
    system.run("relay", "revoke", "base", "--force", "revoked")
    revoked = time.monotonic()
    wait_for("the refusal", lambda: system.post(key, report("w", sequence=2)).status == 401, REVOKED_S, 0.01)
    tell(f"a revoked key was refused {time.monotonic() - revoked:.3f} s after the command ended")


def test_a_rotated_key_leaves_the_one_before_alive(system: System) -> None:
    system.run("force", "add", "rotated")
    first = system.run("watcher", "add", "w-1", "--force", "rotated")[0]["key"]
    second = system.run("watcher", "rotate", "w-1", "--force", "rotated")[0]["key"]
    third = system.run("watcher", "rotate", "w-1", "--force", "rotated")[0]["key"]
    assert system.post(third, report("w-1", sequence=1)).status == 202
    assert system.post(second, report("w-1", sequence=2)).status == 202
    wait_for("the oldest refused", lambda: system.post(first, report("w-1", sequence=3)).status == 401, REVOKED_S)


def test_no_key_and_a_wrong_key_are_answered_401(system: System) -> None:
    for key in ("", "nobody", "hw_r_" + "0" * 43):
        answer = system.post(key, report("w"))
        assert answer.status == 401
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_two_forces_with_the_same_watchers_and_citizens_stay_apart(system: System) -> None:
    keys = {force: system.add_force(force) for force in ("east", "west")}
    for force, key in keys.items():
        for number in range(3 if force == "east" else 2):
            body = report("same-watcher", 5.0, "Same Name", report_id=f"same-{number}", sequence=number)
            assert system.post(key, body).status == 202
    for force, count in (("east", 3), ("west", 2)):
        wait_for("the alerts", lambda of=force, n=count: len(system.run("alerts", "--force", of)) == n, 10)
        (incident,) = system.run("incidents", "--force", force)
        assert (incident["force"], incident["occurrences"]) == (force, count)
    tokens = [_only_citizen(system, force, count) for force, count in (("east", 3), ("west", 2))]
    assert tokens[0] != tokens[1], "the same name has another token in another force"


def _only_citizen(system: System, force: str, sightings: int) -> str:
    """The token of the one citizen in a force's archive, once so many sightings are there."""
    sql = "select citizen, count(*) as n from sightings group by citizen"

    def there() -> list[Row]:
        rows = system.query(sql, force)
        return rows if rows and rows[0]["n"] >= sightings else []

    rows = wait_for("the sightings in the archive", there, 15, 0.5)
    assert [row["n"] for row in rows] == [sightings]
    return str(rows[0]["citizen"])


def test_a_fleet_with_a_wrong_key_says_so_and_fails(system: System) -> None:
    done = system.call("fleet", "--key", "north=wrong", "--to", system.url, "--seconds", "1", "--watchers", "10")
    assert done.returncode == 2
    assert "nobody has this key" in done.stderr
