"""Forces, watchers, relays, officers: what can be added, and what a wrong name is told."""

from __future__ import annotations

import json
import time

import pytest

from harmonywatch.clock import ManualClock, SystemClock
from harmonywatch.registry.contract import (
    DEFAULT_RULE_ID,
    AlreadyExists,
    InvalidName,
    InvalidValue,
    NotFound,
)
from harmonywatch.registry.glance import open_glance
from harmonywatch.registry.store import Registry
from harmonywatch.report.wire import Parsed, parse
from harmonywatch.report.words import ID_LENGTH_MAX, Refusal


def test_a_new_force_has_one_rule_strictly_below_25(registry: Registry, clock: ManualClock) -> None:
    force = registry.add_force("north", partitions=12)
    assert (force.name, force.partitions, force.created_at) == ("north", 12, clock.now())
    (rule,) = registry.rules("north")
    assert (rule.rule_id, rule.threshold, rule.enabled) == (DEFAULT_RULE_ID, 25.0, True)
    assert (rule.confidence_least, rule.area, rule.words, rule.hours) == (None,) * 4
    assert registry.forces() == [force] and registry.force("north") == force


@pytest.mark.parametrize("name", ["", "n", "North", "1north", "nor th", "north\n", "nörth", "n" * 42, "../x", "a_b"])
def test_a_force_whose_name_cannot_name_a_folder_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidName):
        registry.add_force(name)
    assert registry.forces() == [] and registry.audit() == []


def test_a_force_cannot_be_added_twice_nor_without_partitions(registry: Registry) -> None:
    registry.add_force("north")
    with pytest.raises(AlreadyExists):
        registry.add_force("north")
    with pytest.raises(InvalidValue):
        registry.add_force("south", partitions=0)


def test_an_unknown_name_is_told_the_near_ones(registry: Registry) -> None:
    registry.add_force("north")
    registry.add_force("south")
    registry.add_watcher("drone-0001", "north")
    with pytest.raises(NotFound) as force_error:
        registry.add_relay("base", "nroth")
    assert force_error.value.near[0] == "north" and "did you mean north" in str(force_error.value)
    with pytest.raises(NotFound) as watcher_error:
        registry.rotate("watcher", "drone-001", "north")
    assert watcher_error.value.near == ("drone-0001",)
    with pytest.raises(NotFound):
        registry.rotate("watcher", "drone-0001", "south")


def test_a_near_name_is_found_among_70_000_within_a_second(registry: Registry) -> None:
    registry.add_force("north")
    registry.enrol("north", [f"drone-{i:05}" for i in range(70_000)], "base")
    started = time.perf_counter()
    with pytest.raises(NotFound) as error:
        registry.rotate("watcher", "drone-4242", "north")
    assert time.perf_counter() - started < 1
    assert len(error.value.near) == 3
    for name in error.value.near:
        assert "drone-4242" in {name[:i] + name[i + 1 :] for i in range(len(name))}, "one character more"


def test_members_are_listed_by_force(registry: Registry) -> None:
    registry.add_force("north")
    registry.add_force("south")
    registry.add_relay("base", "north")
    registry.add_watcher("d1", "north")
    registry.enrol("south", ["d1", "d2"], "mast")
    registry.add_officer("ann", "north", "analyst")
    registry.add_officer("bob", None, "administrator")
    assert [(r.name, r.force) for r in registry.relays("north")] == [("base", "north")]
    assert registry.relays("south") == []
    assert [(w.watcher_id, w.via) for w in registry.watchers("north")] == [("d1", None)]
    assert [(w.watcher_id, w.via) for w in registry.watchers("south")] == [("d1", "mast"), ("d2", "mast")]
    assert [(o.name, o.force, o.role) for o in registry.officers()] == [
        ("ann", "north", "analyst"),
        ("bob", None, "administrator"),
    ]
    with pytest.raises(NotFound):
        registry.watchers("west")


def test_a_member_is_added_once_but_an_enrolled_watcher_may_get_its_first_key(registry: Registry) -> None:
    registry.add_force("north")
    registry.enrol("north", ["d1"], "base")
    first = registry.add_watcher("d1", "north")
    info = registry.keyring().find(first.key)
    assert info is not None and (info.kind, info.force, info.subject) == ("watcher", "north", "d1")
    registry.add_relay("base", "north")
    registry.add_officer("ann", None, "officer")
    with pytest.raises(AlreadyExists, match="rotate"):
        registry.add_watcher("d1", "north")
    with pytest.raises(AlreadyExists):
        registry.add_relay("base", "north")
    with pytest.raises(AlreadyExists):
        registry.add_officer("ann", "north", "officer")
    assert len(registry.keyring()) == 3


@pytest.mark.parametrize("name", ["", " d1", "d\x001", "d\n1", "\ud800", "d" * 201])
def test_a_member_whose_name_cannot_be_written_is_refused(registry: Registry, name: str) -> None:
    registry.add_force("north")
    with pytest.raises(InvalidName):
        registry.add_watcher(name, "north")
    with pytest.raises(InvalidName):
        registry.add_officer(name, None, "officer")


def test_a_watchers_id_is_as_long_as_a_report_may_name_it_on_every_road(registry: Registry, url: str) -> None:
    registry.add_force("north")
    longest = "d" * ID_LENGTH_MAX
    registry.add_watcher(longest, "north")
    door = open_glance(url, SystemClock())
    for add in (
        registry.add_watcher,
        lambda name, force: registry.enrol(force, [name], "base"),
        lambda name, force: door.enrol(force, [name], "base"),
    ):
        with pytest.raises(InvalidName, match=str(ID_LENGTH_MAX)):
            add(longest + "d", "north")
    door.close()
    report = {"watcher_id": longest, "location": {"lat": 0, "lon": 0}, "citizens": [], "words": []}
    assert isinstance(parse(json.dumps(report).encode()), Parsed)
    assert isinstance(parse(json.dumps(report | {"watcher_id": longest + "d"}).encode()), Refusal)


def test_an_officer_needs_a_role_that_exists(registry: Registry) -> None:
    with pytest.raises(InvalidValue, match="supervisor"):
        registry.add_officer("ann", None, "king")  # type: ignore[arg-type]
    assert registry.officers() == []
