"""A force and its topics are made in two places: wherever a crash comes between, the next try makes what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmonywatch import assemble
from harmonywatch.registry.contract import AlreadyExists
from harmonywatch.report.topics import DURABLE_GROUPS, topic_of
from harmonywatch.settings import Settings, load
from harmonywatch.stream.sqlite import SqliteStream

STEPS = len(assemble.KINDS) + sum(len(kinds) for kinds in DURABLE_GROUPS.values())


class Killed(BaseException):
    """Where the process died."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings, _ = load({"data": str(tmp_path)}, {})
    return settings


def _whole(steps: list[tuple[str, str]]) -> bool:
    wanted = {("", topic_of(kind, "north")) for kind in assemble.KINDS}
    wanted |= {(group, topic_of(kind, "north")) for group, kinds in DURABLE_GROUPS.items() for kind in kinds}
    return set(steps) == wanted


def _kill_after(monkeypatch: pytest.MonkeyPatch, settings: Settings, steps: int) -> None:
    """`force add`, killed after so many steps on the stream."""
    left = steps
    for name in ("create_topic", "register"):
        real = getattr(SqliteStream, name)

        def counted(self: SqliteStream, *arguments: object, of: object = real) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            of(self, *arguments)  # type: ignore[operator]

        monkeypatch.setattr(SqliteStream, name, counted)
    with pytest.raises(Killed):
        assemble.add_force(settings, "os:test", "north")
    monkeypatch.undo()


@pytest.mark.parametrize("steps", range(STEPS))
def test_force_add_again_after_a_kill_makes_the_topics_and_says_that_the_force_exists(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, steps: int
) -> None:
    _kill_after(monkeypatch, settings, steps)
    with pytest.raises(AlreadyExists):
        assemble.add_force(settings, "os:test", "north")
    stream = assemble.open_stream(settings)
    assert set(stream.topics()) == {topic_of(kind, "north") for kind in assemble.KINDS}
    stream.close()


@pytest.mark.parametrize("steps", range(STEPS))
def test_a_service_that_starts_after_a_kill_makes_topics_and_groups(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, steps: int
) -> None:
    done: list[tuple[str, str]] = []
    _kill_after(monkeypatch, settings, steps)
    for name, group in (("create_topic", False), ("register", True)):
        real = getattr(SqliteStream, name)

        def noted(self: SqliteStream, first: str, second: object, of: object = real, is_group: bool = group) -> None:
            of(self, first, second)  # type: ignore[operator]
            done.append((first, str(second)) if is_group else ("", first))

        monkeypatch.setattr(SqliteStream, name, noted)
    assemble.prepare(settings)
    assert _whole(done), f"killed after {steps} steps, the next start did {done}"
