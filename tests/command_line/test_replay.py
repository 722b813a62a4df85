"""`send --replay`: the folder's owner says when reports were received; nobody else, and not unseen."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from harmonywatch import assemble
from harmonywatch.cli import main
from harmonywatch.gateway.replay import LINES_MAX, Ground, ReplayStopped, replay
from harmonywatch.report.topics import topic_of
from harmonywatch.settings import load
from harmonywatch.stream.memory import MemoryStream

Run = Callable[..., Result]
AT = "2026-01-05T06:07:08.900000Z"
REPORT = {"watcher_id": "w1", "location": {"lat": 1, "lon": 2}, "citizens": [], "words": ["é"]}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str, **given: Any) -> Result:
        return CliRunner().invoke(main, [*arguments, "--data", str(tmp_path / "data")], catch_exceptions=False, **given)

    assert run("force", "add", "north").exit_code == 0
    return run


def written(folder: Path, *lines: object) -> str:
    path = folder / "received.ndjson"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def on_the_stream(folder: Path, kind: str) -> list[dict[str, Any]]:
    settings, _ = load({"data": str(folder / "data")}, {})
    stream, topic = assemble.open_stream(settings), topic_of(kind, "north")
    batches = [batch for number in range(stream.topics()[topic]) for batch in stream.read(topic, number, 0)]
    stream.close()
    return [msgspec.json.decode(value) for batch in batches for value in batch.values]


def test_a_replayed_report_was_received_when_its_line_says(run: Run, tmp_path: Path) -> None:
    timed = {**REPORT, "time": "2026-01-05T06:07:00Z", "report_id": "r2"}
    file = written(tmp_path, {"received_at": AT, "report": REPORT}, {"received_at": AT, "report": timed})
    done = run("send", file, "--replay", "--json")
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["accepted", "accepted"]
    first, second = on_the_stream(tmp_path, "reports.")
    assert first["received_at"] == first["time"] == AT
    assert (second["received_at"], second["time"], second["report_id"]) == (AT, "2026-01-05T06:07:00.000000Z", "r2")
    assert "clock_suspect" not in second


def test_a_replay_passes_no_check_and_what_it_refuses_is_a_reject_of_that_moment(run: Run, tmp_path: Path) -> None:
    broken = b'{"watcher_id": \xff'
    lines = [
        {"received_at": AT, "report": {"watcher_id": "w1"}},
        {"received_at": AT, "bytes": b64encode(broken).decode()},
        {"received_at": AT, "report": REPORT},
    ]
    done = run("send", written(tmp_path, *lines), "--replay", "--json")
    assert done.exit_code == 1, done.output
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["refused", "refused", "accepted"]
    rejects = on_the_stream(tmp_path, "rejects.")
    assert [each["received_at"] for each in rejects] == [AT, AT]
    assert [each["line"] for each in rejects] == [1, 2]
    assert rejects[1]["bytes"] == b64encode(broken).decode()
    assert len(on_the_stream(tmp_path, "reports.")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "nothing",
        REPORT,
        {"received_at": AT},
        {"received_at": "yesterday", "report": REPORT},
        {"received_at": "2026-01-05T06:07:08", "report": REPORT},
        {"received_at": "2999-01-01T00:00:00Z", "report": REPORT},
        {"received_at": AT, "report": REPORT, "bytes": "aGk="},
        {"received_at": AT, "bytes": "not base64!"},
        {"received_at": AT, "report": REPORT, "force": "south"},
    ],
    ids=str,
)
def test_a_line_of_another_form_is_refused_and_its_neighbour_taken(run: Run, tmp_path: Path, line: object) -> None:
    done = run("send", written(tmp_path, line, {"received_at": AT, "report": REPORT}), "--replay", "--json")
    assert done.exit_code == 1, done.output
    verdicts = [json.loads(each) for each in done.stdout.splitlines()]
    assert [each["status"] for each in verdicts] == ["refused", "accepted"]
    assert "not kept" in verdicts[0]["reason"]
    assert len(on_the_stream(tmp_path, "reports.")) == 1
    assert on_the_stream(tmp_path, "rejects.") == []


def test_a_replay_is_audited_and_enrols_its_watchers(run: Run, tmp_path: Path) -> None:
    file = written(tmp_path, {"received_at": AT, "report": REPORT})
    assert run("send", file, "--replay").exit_code == 0
    entries = [json.loads(line) for line in run("audit", "--json").stdout.splitlines()]
    told = {each["action"]: each for each in entries}
    assert told["replay"]["actor"] == assemble.os_user()
    assert told["replay"]["force"] == "north"
    assert told["replayed"]["detail"] == {"file": file, "accepted": 1, "refused": 0}
    watchers = run("watcher", "list", "--force", "north", "--json").stdout
    assert json.loads(watchers)["watcher_id"] == "w1"


def test_a_key_cannot_say_when_something_was_received(run: Run, tmp_path: Path) -> None:
    file = written(tmp_path, {"received_at": AT, "report": REPORT})
    for more in (["--key", "hw_r_x"], ["--to", "http://127.0.0.1:1"]):
        refused = run("send", file, "--replay", *more)
        assert refused.exit_code == 2
        assert "--force" in refused.stderr
    assert run("send", file).exit_code == 2
    assert run("send", file, "--key", "k", "--force", "north").exit_code == 2
    assert on_the_stream(tmp_path, "reports.") == []
    assert run("send", file, "--replay", env={"HARMONYWATCH_KEY": "of-another-command"}).exit_code == 0


def test_a_force_must_be_named_where_there_are_several(run: Run, tmp_path: Path) -> None:
    run("force", "add", "south")
    refused = run("send", written(tmp_path, {"received_at": AT, "report": REPORT}), "--replay")
    assert refused.exit_code == 2
    assert "north, south" in refused.stderr


def test_more_lines_than_a_group_holds_all_have_their_verdict_in_order(run: Run, tmp_path: Path) -> None:
    file = written(tmp_path, *({"received_at": AT, "report": {**REPORT, "sequence": n}} for n in range(2_500)))
    done = run("send", file, "--replay", "--json")
    assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == list(range(1, 2_501))
    assert sorted(each["sequence"] for each in on_the_stream(tmp_path, "reports.")) == list(range(2_500))


def test_a_cut_file_ends_in_one_line_and_the_audit_tells_how_far_it_came(run: Run, tmp_path: Path) -> None:
    lines = b"".join(
        json.dumps({"received_at": AT, "report": {**REPORT, "sequence": n}}).encode() + b"\n" for n in range(3_000)
    )
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(lines, 1)[:-200])
    refused = run("send", str(cut), "--replay")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("harmonywatch: ")
    (ended,) = [
        entry
        for line in run("audit", "--json").stdout.splitlines()
        if (entry := json.loads(line))["action"] == "replayed"
    ]
    assert ended["detail"]["accepted"] == len(on_the_stream(tmp_path, "reports.")) >= 1_000


def test_a_stream_that_takes_no_more_is_told_with_the_line() -> None:
    stream = MemoryStream()
    stream.create_topic("reports.north", 2)
    ground = Ground("north", stream, lambda _: None, assemble.CLOCK.now, assemble.fresh_id)
    line = json.dumps({"received_at": AT, "report": REPORT}).encode()
    judged = replay(((n, line) for n in range(1, 2 * LINES_MAX + 1)), ground)
    assert [next(judged).line for _ in range(LINES_MAX)] == list(range(1, LINES_MAX + 1))
    stream.close()
    with pytest.raises(ReplayStopped, match=f"from line {LINES_MAX + 1} on") as told:
        next(judged)
    assert told.value.line == LINES_MAX + 1
