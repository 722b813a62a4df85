"""Times on the wire: UTC, microseconds, one length; the manual clock stands until it is moved."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonywatch.clock import ManualClock, from_wire, micros, to_wire

MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))


@given(MOMENTS)
def test_a_time_comes_back_from_the_wire_as_it_was(moment: datetime) -> None:
    text = to_wire(moment)
    assert from_wire(text) == moment
    assert len(text) == len("2026-11-23T18:04:05.000123Z")


@given(MOMENTS, MOMENTS)
def test_text_order_is_time_order(one: datetime, other: datetime) -> None:
    assert (to_wire(one) < to_wire(other)) == (one < other)
    assert (micros(one) < micros(other)) == (one < other)


def test_another_zone_is_told_in_utc() -> None:
    moment = datetime(2026, 11, 23, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    assert to_wire(moment) == "2026-11-22T23:30:00.000000Z"


def test_a_time_without_a_zone_is_no_time() -> None:
    with pytest.raises(ValueError, match="time zone"):
        from_wire("2026-11-23T18:00:00")


def test_the_manual_clock_moves_both_times_together_and_never_back() -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    clock.advance(90.5)
    assert clock.now() == datetime(2026, 1, 1, 0, 1, 30, 500_000, tzinfo=UTC)
    assert clock.monotonic() == 90.5
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)
