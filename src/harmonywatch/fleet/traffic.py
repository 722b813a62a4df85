"""What is sent, in order: city, rendering, faults and ground truth put together, independent of how it is sent.

A *turn* is a place in the round of all watchers; a turn gives one report, none (silent watcher) or, with faults, more.
The bytes depend on the plan, the run tag and the times asked for; not on how many turns are taken at once.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np

from harmonywatch.fleet.city import Block, City, Flags, Ints
from harmonywatch.fleet.faults import Drawn, Faults
from harmonywatch.fleet.plan import FleetPlan
from harmonywatch.fleet.render import Renderer, Rendering
from harmonywatch.fleet.truth import Header, Label, TruthWriter

REPEAT_WITHIN_S = 20.0


@dataclass(frozen=True)
class Parcel:
    """Reports to send now, in order: line i is attempt `first + i`, of watcher `watchers[i]`, for target `targets[i]`;
    `singles[i]`: by itself."""

    first: int
    lines: list[bytes] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    singles: list[bool] = field(default_factory=list)
    watchers: list[int] = field(default_factory=list)


@dataclass(order=True)
class _Kept:
    """A report that is sent at or after turn `due`."""

    due: int
    number: int
    line: bytes = field(compare=False)
    head: bytes = field(compare=False)
    watcher: int = field(compare=False)
    label: Label = field(compare=False)


class _Slice:
    """The reports of one `take` inside one block, still in columns."""

    def __init__(self, rows: Ints, watchers: Ints, times_us: Ints) -> None:
        self.rows, self.watchers, self.times_us = rows, watchers, times_us


class Traffic:
    """The endless traffic of a plan. With `truth`, every report is written there before it is handed out."""

    def __init__(self, plan: FleetPlan, run: str, truth: TruthWriter | None = None) -> None:
        self._forces = len(plan.targets)
        self._city = City(plan.watchers, self._forces, plan.seed)
        self._renderer = Renderer(self._city, plan.forces, run)
        self._faults = Faults(plan.faults, plan.watchers, plan.seed)
        self._faulty = plan.faults.any()
        self._truth = truth
        self._repeat_within = max(2, int(plan.reports_per_s * REPEAT_WITHIN_S))
        rng = np.random.Generator(np.random.PCG64([plan.seed, 0x51]))
        self._single: Flags = rng.random(plan.watchers) < plan.singles
        self._kept: list[_Kept] = []
        self._number = 0
        self._attempts = 0
        self._turns = 0
        self._load()

    def _load(self) -> None:
        block = self._city.block()
        w = block.watcher
        speaking = np.ones(len(w), np.bool_)
        if self._faulty:
            frailty = self._city.watchers.frailty(slice(int(w[0]), int(w[-1]) + 1))
            speaking = self._faults.speaking(w, block.turn, frailty)
        self._block: Block = block
        self._rendering: Rendering = self._renderer.prepare(block, speaking)
        self._drawn: Drawn | None = self._faults.draw(len(self._rendering.watcher)) if self._faulty else None
        self._taken = 0

    def take(self, turns: int, first_us: int, step_us: float) -> Parcel:
        """The reports of the next turns; turn i happens at wall time `first_us + i * step_us` (microseconds, 1970)."""
        parcel = Parcel(self._attempts)
        start = 0
        while start < turns:
            if self._taken == len(self._block.watcher):
                self._load()
            n = min(turns - start, len(self._block.watcher) - self._taken)
            self._take_rows(parcel, n, first_us + start * step_us, step_us)
            start += n
        return parcel

    def rest(self) -> Parcel:
        """What is still held back, at the end of a run."""
        parcel = Parcel(self._attempts)
        self._send_due(parcel, None)
        return parcel

    def _take_rows(self, parcel: Parcel, turns: int, first_us: float, step_us: float) -> None:
        watchers = self._rendering.watcher
        first = int(self._block.watcher[0]) + self._taken
        low, high = np.searchsorted(watchers, [first, first + turns]).tolist()
        mine = watchers[low:high]
        times = int(first_us) + np.rint((mine - first) * step_us).astype(np.int64)
        self._taken += turns
        self._turns += turns
        if self._drawn is None:
            self._send(parcel, _Slice(np.arange(low, high), mine, times), {})
            return
        self._take_faulty(parcel, _Slice(np.arange(low, high), mine, times), self._drawn)
        self._send_due(parcel, self._turns)

    def _take_faulty(self, parcel: Parcel, part: _Slice, drawn: Drawn) -> None:
        rows, skew = part.rows, self._faults.skew[part.watchers]
        times = part.times_us - drawn.late_us[rows] + self._faults.skew_us(part.watchers, part.times_us)
        late, order = drawn.late_us[rows] > 0, drawn.order[rows]
        for i in np.flatnonzero(order).tolist():
            one = _Slice(rows[i : i + 1], part.watchers[i : i + 1], times[i : i + 1])
            self._keep(one, self._turns + self._city.watchers.count, Label("order"))
        for i in np.flatnonzero(drawn.malformed[rows] & ~order).tolist():
            self._send_malformed(parcel, _Slice(rows[i : i + 1], part.watchers[i : i + 1], times[i : i + 1]))
        now = np.flatnonzero(~order)
        special = np.flatnonzero(late[now] | (skew[now] > 0)).tolist()
        labels = {i: Label("late" if late[now[i]] else "skew") for i in special}
        first = self._attempts
        self._send(parcel, _Slice(rows[now], part.watchers[now], times[now]), labels)
        for i in np.flatnonzero(drawn.twice[rows][now]).tolist():
            j = now[i]
            one = _Slice(rows[j : j + 1], part.watchers[j : j + 1], times[j : j + 1])
            due = self._turns + self._faults.repeat_after(self._repeat_within)
            self._keep(one, due, Label("twice", first + i))

    def _render(self, part: _Slice) -> tuple[list[bytes], list[bytes]]:
        contiguous = len(part.rows) and part.rows[-1] - part.rows[0] + 1 == len(part.rows)
        which = slice(int(part.rows[0]), int(part.rows[-1]) + 1) if contiguous else part.rows
        lines = self._renderer.lines(self._rendering, which, part.times_us)
        heads = self._renderer.truth_heads(self._rendering, which, part.times_us) if self._truth else []
        return lines, heads

    def _send(self, parcel: Parcel, part: _Slice, labels: dict[int, Label]) -> None:
        lines, heads = self._render(part)
        self._hand_out(parcel, lines, heads, part.watchers, labels)

    def _send_malformed(self, parcel: Parcel, part: _Slice) -> None:
        lines, heads = self._render(part)
        broken = [self._faults.malform(line) for line in lines]
        self._hand_out(parcel, broken, heads, part.watchers, {0: Label("malformed")})

    def _keep(self, part: _Slice, due: int, label: Label) -> None:
        lines, heads = self._render(part)
        self._number += 1
        kept = _Kept(due, self._number, lines[0], heads[0] if heads else b"", int(part.watchers[0]), label)
        heapq.heappush(self._kept, kept)

    def _send_due(self, parcel: Parcel, turn: int | None) -> None:
        while self._kept and (turn is None or self._kept[0].due <= turn):
            kept = heapq.heappop(self._kept)
            heads = [kept.head] if self._truth else []
            self._hand_out(parcel, [kept.line], heads, np.array([kept.watcher]), {0: kept.label})

    def _hand_out(
        self, parcel: Parcel, lines: list[bytes], heads: list[bytes], watchers: Ints, labels: dict[int, Label]
    ) -> None:
        if self._truth is not None:
            self._truth.sent(self._attempts, heads, lines, labels)
        self._attempts += len(lines)
        parcel.lines.extend(lines)
        parcel.targets.extend((watchers % self._forces).tolist())
        parcel.singles.extend(self._single[watchers].tolist())
        parcel.watchers.extend(watchers.tolist())


def header_of(plan: FleetPlan, run: str) -> Header:
    """The first line of the plan's ground truth."""
    return Header(1, plan.seed, plan.watchers, list(plan.forces), run, plan.truth_full)
