"""Delivery reports of one append, as the client library hands them in. Needs no broker."""

from __future__ import annotations

from harmonywatch.stream.kafka.client import OFFSET_UNKNOWN, _Waiting


class Report:
    """A delivery report as far as it is asked."""

    def __init__(self, partition: int, offset: int | None) -> None:
        self._partition, self._offset = partition, offset

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int | None:
        return self._offset


def test_an_offset_that_nobody_can_tell_is_not_told_as_the_first() -> None:
    """A broker that had the record already, from a try whose answer was lost, says only that it has it."""
    waiting = _Waiting(3)
    for report in (Report(0, None), Report(1, 0), Report(2, 7)):
        waiting.told(None, report)  # type: ignore[arg-type]
    assert waiting.done.is_set() and not waiting.failures
    assert waiting.first == {0: OFFSET_UNKNOWN, 1: 0, 2: 7}
