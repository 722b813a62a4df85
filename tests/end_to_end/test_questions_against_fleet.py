"""Every saved question's answer, asked of a real system, is the one computed from the fleet's ground truth.

The rules it keeps: the expected rows are made in plain Python from the bytes that the fleet says it sent, with the
gateway's rules written down a second time here (identity, cell, credible time, why a report is refused). Only what the
fleet cannot know is read from the archive, joined by report_id or by a reject's bytes: when each copy was received. How
many copies there are comes from the truth, so a report lost or stored twice fails before any question is asked.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h3
import pytest
from click.testing import CliRunner
from figures import Tell
from running_system import QUICK_ARCHIVE, Row, System, running, wait_for

import harmonywatch
from harmonywatch import assemble
from harmonywatch.analysis.questions import bound, question, questions
from harmonywatch.archive.sealing import Sealer, open_sealer
from harmonywatch.cli import main as command_line
from harmonywatch.clock import from_wire
from harmonywatch.fleet.truth import Attempt, Outcome, iter_truth
from harmonywatch.settings import load

sys.path.insert(0, str(Path(__file__).parent.parent / "analysis"))

from truth_answers import TRUTH

FORCES = ("north", "south")
SEED = 4
FAULTS = "twice=0.04,late=0.03,order=0.03,malformed=0.03,skew=0.1,silent=0.01"
WATCHERS, RATE, SECONDS = 120, 800, 6
ARCHIVED_S = 30.0
NAMES = [each.name for each in questions()]
PICTURES = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<svg", ".html": b"<!DOCTYPE html>"}

Rows = dict[str, list[Row]]


@dataclass
class Told:
    """A force's ground truth: the attempts that were accepted, by report, and those that were refused."""

    accepted: dict[tuple[str, str], list[Attempt]]
    refused: list[tuple[Attempt, Outcome]]

    @property
    def copies(self) -> int:
        return sum(map(len, self.accepted.values()))

    @property
    def bad(self) -> int:
        return sum(len(copies[0].bad) for copies in self.accepted.values())


@dataclass
class City:
    """A system that holds what a fleet sent, and what it should hold. `spans`: parameters, by name."""

    system: System
    told: dict[str, Told]
    rows: dict[str, Rows]
    spans: dict[str, dict[str, str]]

    def arguments(self, name: str, span: str) -> dict[str, str]:
        """Those of the span's parameters that the question has."""
        has = {param.name for param in question(name).params}
        return {key: value for key, value in self.spans[span].items() if key in has}

    def expected(self, name: str, force: str, span: str) -> list[Row]:
        """The answer by the ground truth, with times as they are written."""
        values = bound(question(name), self.arguments(name, span), datetime.now(UTC))
        return [_written(row) for row in TRUTH[name](self.rows[force], values)]


def _written(row: Row) -> Row:
    return {
        name: value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime) else value
        for name, value in row.items()
    }


# --- the ground truth ----------------------------------------------------------------------------------------------------


def read_told(path: Path) -> dict[str, Told]:
    """The truth by force. An attempt whose outcome is unknown would leave two right answers, so there must be none."""
    attempts: dict[int, Attempt] = {}
    refused: dict[int, Outcome] = {}
    accepted: set[int] = set()
    for entry in iter_truth(path):
        if isinstance(entry, Attempt):
            attempts[entry.attempt] = entry
        elif isinstance(entry, Outcome):
            numbers = [n for first, last in entry.attempts for n in range(first, last + 1)]
            accepted.update(numbers if entry.outcome == "accepted" else ())
            refused.update(dict.fromkeys(numbers, entry) if entry.outcome == "refused" else ())
    assert accepted | refused.keys() == attempts.keys(), "every attempt has its outcome"
    told = {force: Told(defaultdict(list), []) for force in FORCES}
    for number, attempt in sorted(attempts.items()):
        if number in accepted:
            told[attempt.force].accepted[attempt.watcher_id, attempt.report_id].append(attempt)
        else:
            told[attempt.force].refused.append((attempt, refused[number]))
    return told


@dataclass
class Inputs:
    """What only the archive knows: when each report, each copy of it, and each reject was received."""

    first: dict[tuple[str, str], datetime]
    again: dict[tuple[str, str], list[datetime]]
    rejects: dict[bytes, list[datetime]]


RECEIVED = {
    "reports": "select watcher_id, report_id, received_at from reports order by received_at",
    "repeats": "select watcher_id, report_id, received_at from repeats order by received_at",
}
COUNTS = """select (select count(*) from reports) as reports, (select count(*) from alerts) as alerts,
                   (select count(*) from rejects) as rejects"""


def read_inputs(system: System, force: str) -> Inputs:
    kept: dict[str, dict[tuple[str, str], list[datetime]]] = {}
    for view, sql in RECEIVED.items():
        kept[view] = defaultdict(list)
        for row in _run(system, "query", sql, "--force", force):
            kept[view][row["watcher_id"], row["report_id"]].append(from_wire(row["received_at"]))
    assert all(len(moments) == 1 for moments in kept["reports"].values())
    rejects: dict[bytes, list[datetime]] = defaultdict(list)
    settings, _ = load({"data": str(system.folder)})
    with assemble.opened_rejects(settings, "os:test", force, None) as (_, found):
        for reject in found:
            rejects[reject.bytes].append(from_wire(reject.facts["received_at"]))
    return Inputs({key: moments[0] for key, moments in kept["reports"].items()}, kept["repeats"], rejects)


def rows_of(told: Told, inputs: Inputs, sealer: Sealer) -> Rows:
    """The rows that should be in the lake, in plain dicts."""
    assert inputs.first.keys() == told.accepted.keys()
    assert {key: len(moments) for key, moments in inputs.again.items()} == {
        key: len(copies) - 1 for key, copies in told.accepted.items() if len(copies) > 1
    }
    rows: Rows = {"reports": [], "alerts": [], "rejects": []}
    for key, copies in told.accepted.items():
        for place, received_at in enumerate([inputs.first[key], *inputs.again[key]]):
            report = _report(json.loads(copies[0].sent()), received_at, sealer) | {"repeat": place > 0}
            rows["reports"].append(report)
            if not place:
                rows["alerts"] += [_alert(report, bad.identity, bad.score, sealer) for bad in copies[0].bad]
    sent = Counter(attempt.sent() for attempt, _ in told.refused)
    assert sent == {raw: len(moments) for raw, moments in inputs.rejects.items()}
    for attempt, outcome in told.refused:
        rows["rejects"].append(_reject(attempt.sent(), outcome, inputs.rejects[attempt.sent()].pop()))
    return rows


def _report(body: Row, received_at: datetime, sealer: Sealer) -> Row:
    """The archive's row of what a watcher sent. Of a report these rules are all that a question can see."""
    device_time = datetime.fromisoformat(body["time"])
    credible = received_at - timedelta(days=30) <= device_time <= received_at + timedelta(minutes=5)
    place = body["location"]
    return {
        **{name: body.get(name) for name in ("report_id", "watcher_id", "sequence", "battery", "firmware", "model")},
        "device_time": device_time, "received_at": received_at, "clock_suspect": not credible,
        "time": device_time if credible else received_at, "h3": h3.latlng_to_cell(place["lat"], place["lon"], 9),
        "words": body["words"], "partition": 0, "offset": 0,
        "citizens": [
            {"citizen": _token(_identity(each), sealer), "harmonyscore": each["harmonyscore"]}
            for each in body["citizens"]
        ],
    }  # fmt: skip


def _identity(citizen: Row) -> str:
    if "citizen_id" in citizen:
        return f"id:{citizen['citizen_id']}"
    return "name:" + unicodedata.normalize("NFC", citizen["name"]).strip()


def _token(identity: str, sealer: Sealer) -> str:
    """Answers hold tokens, and are sorted by them: so the identity becomes its token, and must come back from it."""
    kind, _, rest = identity.partition(":")
    token, _ = sealer.token(rest, rest if kind == "id" else None)
    assert sealer.reveal(token) == identity
    return token


def _alert(report: Row, identity: str, score: float, sealer: Sealer) -> Row:
    """An alert as the fleet foretold it."""
    kept = {name: report[name] for name in ("time", "h3", "watcher_id")}
    return kept | {"citizen": _token(identity, sealer), "harmonyscore": score, "repeat": False}


def _reject(raw: bytes, outcome: Outcome, received_at: datetime) -> Row:
    code, pointer = _fault(raw)
    assert pointer == outcome.pointer, f"the sender was told {outcome.pointer} ({outcome.reason})"
    return {"code": code, "pointer": pointer, "source": "gateway", "sender": "base", "received_at": received_at}


def _fault(raw: bytes) -> tuple[str, str]:
    """Why a gateway must refuse these bytes, of the ways in which the fleet breaks a report."""

    def no_constant(name: str) -> None:
        raise ValueError(name)

    try:
        body = json.loads(raw.decode(), parse_constant=no_constant)
    except ValueError:
        return "not-json", ""
    if "location" not in body:
        return "missing", "/location"
    if not isinstance(body["words"], list):
        return "wrong-type", "/words"
    assert abs(body["location"]["lat"]) > 90
    return "out-of-range", "/location/lat"


# --- the system ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    folder = tmp_path_factory.mktemp("questions")
    truth = folder / "truth.ndjson"
    with running(folder / "data", environment=QUICK_ARCHIVE) as system:
        began = datetime.now(UTC)
        _send(system, truth)
        ended = datetime.now(UTC)
        told, rows = read_told(truth), {}
        for force in FORCES:
            _wait_for_all(system, force, told[force])
            inputs, sealer = read_inputs(system, force), open_sealer(system.folder / "keys", force)
            rows[force] = rows_of(told[force], inputs, sealer)
        received = [
            row["received_at"] for each in rows.values() for name in ("reports", "rejects") for row in each[name]
        ]
        assert began <= min(received) <= max(received) <= ended
        yield City(system, told, rows, _spans(min(received), max(received)))


def _send(system: System, truth: Path) -> None:
    keys = []
    for force in FORCES:
        _run(system, "force", "add", force)
        (relay,) = _run(system, "relay", "add", "base", "--force", force)
        keys += ["--key", f"{force}={relay['key']}"]
    plan = ("--watchers", WATCHERS, "--rate", RATE, "--seconds", SECONDS, "--seed", SEED, "--faults", FAULTS)
    door = ("--to", system.url, "--truth", str(truth), "--truth-full")
    _run(system, "fleet", *keys, *map(str, plan), *door)


def _wait_for_all(system: System, force: str, told: Told) -> None:
    """Until reports, alerts and rejects are in the lake; then nothing may wait, or be there twice."""
    expected = {"reports": len(told.accepted), "alerts": told.bad, "rejects": len(told.refused)}

    def counted() -> bool:
        return _run(system, "query", COUNTS, "--force", force) == [expected]

    wait_for(f"{expected} in the lake of {force}", counted, ARCHIVED_S, 0.2)

    def verified() -> Row:
        (row,) = _run(system, "lake", "verify", "--force", force)
        return row if row["lag"] == 0 else {}

    copies = told.copies
    assert wait_for(f"nothing of {force} that waits", verified, ARCHIVED_S, 0.2) == {
        "force": force, "accepted": copies, "stored": copies, "missing": 0, "repeated": 0,
        "repeats": copies - len(told.accepted), "lag": 0,
    }  # fmt: skip


def _spans(first: datetime, last: datetime) -> dict[str, dict[str, str]]:
    """Moments are pinned, so that it does not matter when a question is asked. The part begins and ends amid the run: late
    reports fall out of it, so sequences have gaps; and its thresholds are others, so defaults would not meet its answers."""
    eighth = (last - first) / 8
    part = {
        "since": first + eighth, "until": last - eighth, "minutes": "0", "threshold": "55.5", "least": "1", "most": "7",
    }  # fmt: skip
    whole = {"since": first - timedelta(hours=1), "until": last + timedelta(minutes=10)}
    return {name: {key: str(value) for key, value in span.items()} for name, span in (("whole", whole), ("part", part))}


def _run(system: System, *arguments: str) -> list[Row]:
    """`harmonywatch ...` in this process: a command spends a second or two on imports, and there are many here."""
    done = CliRunner().invoke(command_line, [*arguments, "--data", str(system.folder), "--json"])
    assert done.exit_code == 0, f"{arguments} ended with {done.exit_code}: {done.output} {done.exception!r}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def _params(arguments: dict[str, str]) -> list[str]:
    return [word for name, value in arguments.items() for word in ("--param", f"{name}={value}")]


# --- the tests -----------------------------------------------------------------------------------------------------------


def test_the_fleet_sent_what_the_questions_ask_for(city: City, tell: Tell) -> None:
    """Every fault was there, in both forces, and the truth's bad scores are those of its own lines."""
    for force, told in city.told.items():
        attempts = [attempt for copies in told.accepted.values() for attempt in copies]
        faults = Counter(attempt.fault for attempt in attempts) + Counter(attempt.fault for attempt, _ in told.refused)
        assert {"twice", "late", "order", "malformed", "skew"} <= faults.keys()
        assert {attempt.fault for attempt, _ in told.refused} == {"malformed"}
        assert {row["code"] for row in city.rows[force]["rejects"]} == {
            "missing", "not-json", "out-of-range", "wrong-type"
        }  # fmt: skip
        for attempt in attempts:
            seen = json.loads(attempt.sent())["citizens"]
            low = [(place, each["harmonyscore"]) for place, each in enumerate(seen) if each["harmonyscore"] < 25]
            assert [(bad.place, bad.score) for bad in attempt.bad] == low
        tables = {table: len(rows) for table, rows in city.rows[force].items()}
        tell(f"{force}: {tables}, {len(attempts) - len(told.accepted)} of them sent again; faults {dict(faults)}")


def test_clocks_are_wrong_in_every_way(city: City) -> None:
    """A day ahead is what a belief of some minutes refuses; 1970 and 2106 are what everybody thinks of."""
    told = [row for rows in city.rows.values() for row in rows["reports"] if row["clock_suspect"]]
    off = {round((row["device_time"] - row["received_at"]) / timedelta(days=1)) for row in told}
    assert 1 in off and min(off) < -10_000 and max(off) > 10_000


def test_no_question_is_without_a_truth() -> None:
    assert sorted(NAMES) == sorted(TRUTH)


@pytest.mark.parametrize("force", FORCES)
@pytest.mark.parametrize("name", NAMES)
def test_the_answer_at_the_command_line_is_that_of_the_ground_truth(name: str, force: str, city: City) -> None:
    expected = city.expected(name, force, "whole")
    found = _run(city.system, "ask", name, "--force", force, *_params(city.arguments(name, "whole")))
    assert found == expected
    if name == "sequence-gaps":
        assert expected == [], "the fleet's sequences have no gap, so whoever loses nothing finds none"
    else:
        assert expected


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_in_a_notebook_is_that_of_the_ground_truth(name: str, city: City, tmp_path: Path) -> None:
    """Of a part of the run, with other parameters; and the picture drawn from the same answer."""
    suffix, begins = list(PICTURES.items())[NAMES.index(name) % len(PICTURES)]
    picture = tmp_path / f"{name}{suffix}"
    connection = harmonywatch.connect("south", data=city.system.folder)
    found = connection.plot(name, picture, **city.arguments(name, "part"))
    expected = city.expected(name, "south", "part")
    assert [_written(row) for row in found.to_pylist()] == expected
    assert expected
    assert picture.read_bytes().startswith(begins)


@pytest.mark.parametrize("suffix", list(PICTURES))
def test_a_question_is_drawn_at_the_command_line(suffix: str, city: City, tmp_path: Path) -> None:
    picture = tmp_path / f"picture{suffix}"
    arguments = _params(city.arguments("score-trend", "whole"))
    told = _run(city.system, "ask", "score-trend", "--force", "north", "--plot", str(picture), *arguments)
    rows = len(city.expected("score-trend", "north", "whole"))
    assert told == [{"question": "score-trend", "rows": rows, "plot": str(picture)}]
    assert picture.read_bytes().startswith(PICTURES[suffix])


def test_every_question_is_listed_and_explained(city: City) -> None:
    assert [row["question"] for row in _run(city.system, "questions")] == NAMES
    for name in NAMES:
        (row,) = _run(city.system, "questions", name)
        assert row["question"] == name and row["sentence"] and row["sql"]
        assert {param["name"] for param in row["params"]} >= {"since", "until"}


def test_a_notebook_reads_one_force_under_its_users_name(city: City) -> None:
    with pytest.raises(assemble.NoSuchForce, match="which force"):
        harmonywatch.connect(data=city.system.folder)
    connection = harmonywatch.connect("north", data=str(city.system.folder))
    table = connection.sql("select count(*) as n from reports where watcher_id <> $other", other="nobody")
    assert table.to_pylist() == [{"n": len(city.told["north"].accepted)}]
    assert [each.name for each in connection.questions()] == NAMES
    assert connection.cost("select count(*) as n from reports").files > 0
    *_, newest = _run(city.system, "audit", "--force", "north")
    assert (newest["action"], newest["actor"]) == ("query", assemble.os_user())
    assert newest["detail"]["parameters"] == {"other": "nobody"}


def test_the_recipe_for_notebooks_runs_as_it_stands(
    city: City, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = city.system.folder.parent
    monkeypatch.chdir(folder)
    page = (Path(__file__).parents[2] / "docs/how-to/notebooks.md").read_text("utf-8")
    cells = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for cell in cells:
        exec(cell, names)
    reports = city.rows["north"]["reports"]
    seen = [each["harmonyscore"] for row in reports if not row["repeat"] for each in row["citizens"]]
    assert (names["sightings"], names["low"].num_rows) == (len(seen), sum(score < 25 for score in seen))
    assert (folder / "trend.png").read_bytes().startswith(PICTURES[".png"])
    assert "repeat-offenders - " in capsys.readouterr().out


def test_a_notebook_at_the_wrong_folder_or_force_is_told_so(city: City, tmp_path: Path) -> None:
    with pytest.raises(assemble.BadSettings, match="no folder"):
        harmonywatch.connect("north", data=tmp_path / "elsewhere")
    assert not list(tmp_path.iterdir()), "nothing was made there"
    with pytest.raises(assemble.NoSuchForce, match="did you mean north"):
        harmonywatch.connect("norht", data=city.system.folder)
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        harmonywatch.conect  # type: ignore[attr-defined]  # noqa: B018


def test_the_package_itself_carries_nothing() -> None:
    """Every service and the sandbox import it."""
    code = "import sys, harmonywatch; print([name for name in sys.modules if name.startswith('harmonywatch.')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "[]\n"
