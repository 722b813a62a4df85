"""Commands on a folder without running services: what they print, how they fail, what the audit remembers."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from harmonywatch import assemble
from harmonywatch.cli import COMMANDS, main
from harmonywatch.clock import to_wire
from harmonywatch.gateway.admit import Terms, admit_lines
from harmonywatch.registry.contract import KeyInfo
from harmonywatch.report.topics import RejectRecord, encode
from harmonywatch.settings import load

Run = Callable[..., Result]

ALERTING = b'{"watcher_id":"w","location":{"lat":1,"lon":2},"citizens":[{"name":"Ada","harmonyscore":3}],"words":[]}'


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "--data", str(tmp_path / "data")], catch_exceptions=False)

    return run


def rows(result: Result, code: int = 0) -> list[dict[str, Any]]:
    assert result.exit_code == code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def put(folder: Path, force: str, lines: bytes) -> None:
    """Put reports and rejects on the stream as the gateway would."""
    settings, _ = load({"data": str(folder)}, {})
    stream = assemble.open_stream(settings)
    key = KeyInfo("k", "relay", force, "base")
    admission = admit_lines(lines, Terms(key, force, assemble.CLOCK.now(), 4, assemble.fresh_id), 100)
    for kind, records in (("reports.", admission.records), ("rejects.", admission.rejects)):
        if records:
            stream.append(kind + force, records)
    stream.close()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output) > 150


def test_a_relay_key_is_printed_once_and_works_in_the_registry(run: Run, tmp_path: Path) -> None:
    assert run("force", "add", "north").exit_code == 0
    [row] = rows(run("relay", "add", "base", "--force", "north", "--json"))
    settings, _ = load({"data": str(tmp_path / "data")}, {})
    door = assemble.open_door(settings)
    found = door.keyring().find(row["key"])
    door.close()
    assert found is not None
    assert (found.kind, found.subject, found.force) == ("relay", "base", "north")
    assert row["key"] not in run("audit", "--json").output


def test_the_only_force_need_not_be_named_but_of_two_one_must(run: Run) -> None:
    run("force", "add", "north")
    assert rows(run("relay", "add", "a", "--json"))[0]["force"] == "north"
    run("force", "add", "south")
    refused = run("relay", "add", "b")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert "north, south" in refused.stderr


def test_a_misspelt_name_is_answered_with_the_near_one(run: Run) -> None:
    run("force", "add", "north")
    for arguments in (
        ("alerts", "--force", "nort"),
        ("relay", "add", "x", "--force", "nort"),
        ("lake", "verify", "--force", "nort"),
    ):
        refused = run(*arguments)
        assert refused.exit_code == 2
        assert "did you mean north" in refused.stderr


def test_a_rule_is_data(run: Run) -> None:
    run("force", "add", "north")
    run("rule", "add", "night", "--threshold", "35", "--hours", "22", "6", "--word", "storm", "--force", "north")
    found = {row["rule"]: row for row in rows(run("rule", "list", "--json"))}
    assert found.keys() == {"harmonyscore-below-25", "night"}
    assert found["night"]["hours"] == [22, 6]
    assert run("rule", "add", "bad", "--threshold", "35", "--area", "[[1,2]]").exit_code == 2
    assert rows(run("rule", "remove", "night", "--json")) == [{"rule": "night", "force": "north", "removed": True}]


def test_a_reject_is_listed_shown_to_the_byte_and_redriven(run: Run, tmp_path: Path) -> None:
    run("force", "add", "north")
    put(tmp_path / "data", "north", b"not json\r\n" + ALERTING + b"\n")
    [reject] = rows(run("rejects", "list", "--json"))
    assert (reject["code"], reject["line"]) == ("not-json", 1)
    shown = run("rejects", "show", reject["reject_id"])
    assert shown.stdout_bytes == b"not json"
    [again] = rows(run("rejects", "redrive", reject["reject_id"], "--json"), code=1)
    assert (again["status"], again["report_id"]) == ("refused", None)
    actions = [row["action"] for row in rows(run("audit", "--json"))]
    assert actions.count("rejects") == 3
    assert "redrive" in actions


def redriven(run: Run, folder: Path, code: str) -> tuple[list[dict[str, Any]], int]:
    """Redrive, twice, one reject that holds a report: the rows, and the different ids on the stream."""
    run("force", "add", "north")
    settings, _ = load({"data": str(folder)}, {})
    stream = assemble.open_stream(settings)
    reject = RejectRecord(
        1, "r1", "north", "gateway", "base", to_wire(assemble.CLOCK.now()), code, "", "", b64encode(ALERTING).decode()
    )
    stream.append("rejects.north", {0: [encode(reject)]})
    again = 1 if code == "not-yours" else 0
    found = rows(run("rejects", "redrive", "--all", "--json"), again)
    found += rows(run("rejects", "redrive", "r1", "--json"), again)
    ids = {
        json.loads(value)["report_id"]
        for partition in range(4)
        for batch in stream.read("reports.north", partition, 0)
        for value in batch.values
    }
    stream.close()
    return found, len(ids)


def test_a_reject_that_is_a_report_now_goes_on_the_stream_under_one_id(run: Run, tmp_path: Path) -> None:
    """As after an upgrade that reads what the old version refused."""
    found, ids = redriven(run, tmp_path / "data", "too-deep")
    assert [row["status"] for row in found] == ["accepted", "accepted"]
    assert ids == 1


def test_a_forged_report_is_not_let_in_by_redriving(run: Run, tmp_path: Path) -> None:
    found, ids = redriven(run, tmp_path / "data", "not-yours")
    assert [row["status"] for row in found] == ["refused", "refused"]
    assert ids == 0


def test_an_empty_force_is_verified_queried_and_listed(run: Run) -> None:
    run("force", "add", "north")
    assert rows(run("lake", "verify", "--json")) == [
        {"force": "north", "accepted": 0, "stored": 0, "missing": 0, "repeated": 0, "repeats": 0, "lag": 0}
    ]
    assert rows(run("alerts", "--json")) == []
    assert rows(run("incidents", "--json")) == []
    cost = rows(run("query", "select count(*) from reports", "--dry-run", "--json"))
    assert cost == [{"days": {"reports": [None, None]}, "files": 0, "bytes": 0}]


def test_the_doctor_finds_a_key_that_others_can_read(run: Run, tmp_path: Path) -> None:
    run("force", "add", "north")
    keys = tmp_path / "data" / "keys"
    keys.mkdir(mode=0o700)
    (keys / "north.keys").write_text("{}")
    (keys / "north.keys").chmod(0o644)
    result = run("doctor", "--json")
    assert result.exit_code == 1
    broken = [row["what"] for row in map(json.loads, result.stdout.splitlines()) if row["verdict"] == "broken"]
    assert broken == ["key north.keys"]


def test_settings_are_shown_with_their_origin(run: Run) -> None:
    found = {row["key"]: row for row in rows(run("config", "show", "--json"))}
    assert found["data"]["origin"] == "flag"
    assert found["gateway.port"] == {
        "key": "gateway.port", "value": 8470, "origin": "default", "meaning": "0 = any free port",
    }  # fmt: skip


def test_a_time_without_a_zone_is_refused_with_an_example(run: Run) -> None:
    run("force", "add", "north")
    refused = run("alerts", "--since", "yesterday")
    assert refused.exit_code == 2
    assert "2026-11-23T18:00:00Z" in refused.stderr
