"""The published schemas agree with what is accepted."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import msgspec
import pytest
from report_documents import BASE, RIGHT, WRONG, with_members

from harmonywatch.fleet.plan import FleetPlan, Target
from harmonywatch.fleet.traffic import Traffic
from harmonywatch.report import topics
from harmonywatch.report.record import canonical
from harmonywatch.report.schema import json_schema, record_schema
from harmonywatch.report.wire import Parsed, parse
from harmonywatch.report.words import Citizen, Location, Report

NOW = datetime(2026, 11, 23, 18, 4, 5, 123, tzinfo=UTC)
WIRE = jsonschema.Draft202012Validator(json_schema())
RECORDS = {name: jsonschema.Draft202012Validator(schema) for name, schema in record_schema().items()}


def _is_for_the_schema(raw: bytes, code: str) -> bool:
    """Formats, depth and the range of a double are beyond what a schema asserts."""
    beyond = (b"1e400", b"1e309", b"9" * 400)
    return code not in ("not-a-time", "too-deep") and not any(number in raw for number in beyond)


def fleet_reports() -> list[bytes]:
    traffic = Traffic(FleetPlan(watchers=500, seed=7, targets=(Target("north"),)), "t", None)
    return [bytes(line).strip() for line in traffic.take(300, 1_790_000_000_000_000, 1000).lines]


@pytest.mark.parametrize("schema", [json_schema(), *record_schema().values()], ids=lambda schema: str(schema["title"]))
def test_a_schema_is_one_and_says_what_it_is(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["title"]
    assert schema["description"]
    assert schema["additionalProperties"] is True
    assert json.loads(json.dumps(schema)) == schema


def test_every_member_of_a_report_has_a_meaning() -> None:
    schema = json_schema()
    for kind, at in ((Report, schema), (Location, schema["$defs"]["Location"]), (Citizen, schema["$defs"]["Citizen"])):
        assert set(at["properties"]) == {field.name for field in msgspec.structs.fields(kind)}
        assert all(member["description"] for member in at["properties"].values())
    assert schema["required"] == ["watcher_id", "location", "citizens", "words"]


def test_the_examples_are_reports() -> None:
    for example in json_schema()["examples"]:
        WIRE.validate(example)
        assert isinstance(parse(json.dumps(example).encode()), Parsed)


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_accepted_is_valid(name: str) -> None:
    WIRE.validate(json.loads(RIGHT[name]))


@pytest.mark.parametrize("name", [name for name, (raw, code, _) in WRONG.items() if _is_for_the_schema(raw, code)])
def test_what_is_refused_is_invalid(name: str) -> None:
    assert not WIRE.is_valid(json.loads(WRONG[name][0]))


def test_the_fleet_speaks_the_schema_and_its_records_theirs() -> None:
    for raw in fleet_reports():
        WIRE.validate(json.loads(raw))
        parsed = parse(raw)
        assert isinstance(parsed, Parsed)
        RECORDS["reports"].validate(json.loads(canonical(parsed, raw, "north", NOW, lambda: "f").value))


def test_the_other_topics_carry_what_their_schemas_say() -> None:
    alert = topics.AlertRecord(
        1, "a-1", "north", "rule", "r-1", "w-1", 0, "name:Ada", "Ada", 3.5, 1.0, 2.0, "t", "t", "t"
    )
    reject = topics.RejectRecord(1, "x-1", "north", "gateway", "r", "t", "not-json", "", "no", "AA==", line=3)
    event = topics.EventRecord(1, "opened", "north", "i-1", "t", msgspec.Raw(b'{"name":"Ada"}'))
    delivery = topics.DeliveryRecord(1, "a-1", "t", "console")
    for name, record in (("alerts", alert), ("rejects", reject), ("events", event), ("deliveries", delivery)):
        RECORDS[name].validate(json.loads(topics.encode(record)))
        assert not RECORDS[name].is_valid({})


def test_a_schema_belongs_to_its_caller() -> None:
    json_schema()["properties"].clear()
    assert json_schema()["properties"]
    assert WIRE.is_valid(json.loads(with_members(b'"unheard":{"of":1}')))
    assert WIRE.is_valid(json.loads(BASE))
