"""Ids of live streams: what is written is read back, and nothing else is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonywatch.console.positions import NotAnId, Vector, read_id, write_id
from harmonywatch.stream.contract import TopicPartition

STREAM = "9f3ab2c1" + "0" * 24
forces = st.from_regex(r"[a-z][a-z0-9-]{1,10}", fullmatch=True)
topics = st.builds(lambda kind, force: kind + force, st.sampled_from(["alerts.", "events."]), forces)
vectors = st.dictionaries(topics, st.lists(st.integers(0, 10**15), min_size=1, max_size=12), max_size=6)


@given(vectors, st.one_of(st.none(), forces))
def test_an_id_is_read_as_it_was_written(positions: dict[str, list[int]], scope: str | None) -> None:
    vector = Vector(positions)
    mark = read_id(write_id(STREAM, scope, vector).decode())
    assert (mark.stream, mark.scope) == (STREAM[:8], scope)
    inside = vector.of(scope)
    assert mark.vector.topics() == inside.topics()
    assert all(mark.vector.get(at) == inside.get(at) for at in inside.partitions())


@given(vectors, topics, st.integers(0, 20), st.integers(0, 10**15))
def test_an_advance_shows_in_the_next_id(
    positions: dict[str, list[int]], topic: str, partition: int, position: int
) -> None:
    vector, at = Vector(positions), TopicPartition(topic, partition)
    vector.text(None)
    vector.advance(at, position)
    assert read_id(write_id(STREAM, None, vector).decode()).vector.get(at) == position


@given(st.text(max_size=60))
def test_any_other_text_is_refused_or_is_an_id(text: str) -> None:
    try:
        mark = read_id(text)
    except NotAnId:
        return
    assert read_id(write_id(mark.stream.ljust(32, "0"), mark.scope, mark.vector).decode()) is not None


def test_an_id_of_unreasonable_length_is_refused() -> None:
    with pytest.raises(NotAnId):
        read_id("9f3ab2c1;*" + ";a.north:1" * 10_000)


def test_how_far_one_vector_is_behind_another() -> None:
    behind, ahead = Vector({"alerts.north": [1, 5]}), Vector({"alerts.north": [4, 5, 2], "events.north": [1]})
    assert behind.behind(ahead) == 6
    assert ahead.behind(ahead) == 0
