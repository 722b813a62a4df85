"""The sender: a fleet's traffic to its gateways, paced, open-loop, and honest about every report's fate.

Rules it keeps:
- The pace is the plan's, whatever the gateway does, until `backlog_lines_max` reports are unanswered; only then the
  fleet waits (`held_back_s`).
- What failed (429, 5xx, connection lost, timed out) is sent again, the very same bytes, with backoff and not before
  Retry-After, until it is accepted or refused or `give_up_s` has passed: then its outcome is unknown.
- Ground truth knows a report before the network does, and its outcome once there is one.
- Forces' relays know nothing of one another, so they are out of step: batches of two forces in the same instant, every
  time, would be an artefact of the simulator and measure nothing but their collision.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from harmonywatch.clock import Clock, SystemClock, micros
from harmonywatch.fleet.plan import FleetPlan
from harmonywatch.fleet.tally import FleetResult, Tally
from harmonywatch.fleet.traffic import Parcel, Traffic, header_of
from harmonywatch.fleet.truth import TruthWriter
from harmonywatch.fleet.verdicts import refusal_of_document, refusals_of_batch
from harmonywatch.fleet.ways import HttpWay, MqttWay, Way
from harmonywatch.fleet.wire import Answer, Listener, Request

PACE_S = 0.01
TURNS_MAX = 2_048
REST_S = 0.05
PROGRESS_EVERY_S = 1.0
SWEEP_EVERY_S = 0.25
RETRIED = (408, 429)
RETRY_MIN_S, RETRY_MAX_S = 0.05, 2.0
FILE_TURNS = 4_096

Progress = Callable[[Tally], None]


async def run_fleet(
    plan: FleetPlan,
    on_progress: Progress | None = None,
    stop: asyncio.Event | None = None,
    clock: Clock | None = None,
) -> FleetResult:
    """Sends the plan's traffic to its targets; returns when every report has its outcome.

    `on_progress` is called about once a second with the running tally. Setting `stop` ends the traffic; what is under
    way is still waited for, at most `give_up_s`. Raises ValueError when a target has no usable URL.
    """
    clock = clock or SystemClock()
    run = plan.run_tag(int(clock.now().timestamp()))
    truth = TruthWriter(plan.truth, header_of(plan, run)) if plan.truth else None
    try:
        sender = Sender(plan, truth)
        traffic = Traffic(plan, run, truth)
        await sender.run(traffic, _Pace(plan, clock, stop or asyncio.Event()), on_progress)
    finally:
        if truth is not None:
            truth.close()
    tally = sender.tally
    return FleetResult(tally, run, plan.truth, tally.sent / max(tally.elapsed_s, 1e-9))


def write_fleet(plan: FleetPlan, path: Path, clock: Clock | None = None) -> FleetResult:
    """Writes the plan's traffic as NDJSON instead of sending it, with the times it would have had if sent from now on.

    A plan without end (`seconds` 0) is refused with ValueError. In the ground truth every outcome stays unknown.
    """
    if plan.reports_total is None:
        raise ValueError("a fleet written to a file needs an end: seconds above 0")
    start = (clock or SystemClock()).now()
    run = plan.run_tag(int(start.timestamp()))
    truth = TruthWriter(plan.truth, header_of(plan, run)) if plan.truth else None
    tally, began, step_us = Tally(), time.monotonic(), 1e6 / plan.reports_per_s
    traffic = Traffic(plan, run, truth)
    with path.open("wb") as file:
        for turn in range(0, plan.reports_total, FILE_TURNS):
            turns = min(FILE_TURNS, plan.reports_total - turn)
            _write(file.write, traffic.take(turns, micros(start) + round(turn * step_us), step_us), tally)
        _write(file.write, traffic.rest(), tally)
    if truth is not None:
        truth.close()
    tally.elapsed_s = time.monotonic() - began
    return FleetResult(tally, run, plan.truth, tally.sent / max(tally.elapsed_s, 1e-9))


def _write(write: Callable[[bytes], int], parcel: Parcel, tally: Tally) -> None:
    tally.sent += len(parcel.lines)
    tally.json_bytes += sum(map(len, parcel.lines))
    write(b"".join(line + b"\n" for line in parcel.lines))


class _Pace:
    """When which turn is due: turn i at i / rate seconds after the start; nothing is due after `stop`."""

    def __init__(self, plan: FleetPlan, clock: Clock, stop: asyncio.Event) -> None:
        self._rate, self._total = plan.reports_per_s, plan.reports_total
        self._clock, self._stop = clock, stop
        self._start_s = time.monotonic()
        self._taken = 0

    def due(self) -> int:
        """Turns that are due and not taken."""
        due = int((time.monotonic() - self._start_s) * self._rate) + 1
        return (due if self._total is None else min(due, self._total)) - self._taken

    def over(self) -> bool:
        return self._stop.is_set() or self._taken == self._total

    def take(self, traffic: Traffic, turns: int) -> Parcel:
        self._taken += turns
        return traffic.take(turns, micros(self._clock.now()), 1.0)

    def late_s(self) -> float:
        """How far behind the next turn is."""
        return max(0.0, time.monotonic() - self._start_s - self._taken / self._rate)


@dataclass
class _Batch:
    """Lines that wait to go out together through the relay of one force."""

    lines: list[bytes] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    since_s: float = 0.0


class Sender:
    """Parcels in, requests out, outcomes counted. One per run; lives on one event loop."""

    def __init__(self, plan: FleetPlan, truth: TruthWriter | None) -> None:
        self.tally = Tally()
        self._plan, self._truth = plan, truth
        listener = Listener(self._answered, self._failed)
        if plan.by_mqtt:
            self._way: Way = MqttWay(plan, listener)
        else:
            self._way = HttpWay(plan, listener)
        self._pools = self._way.pools
        self._batches = [_Batch() for _ in plan.targets]
        count = len(plan.targets)
        self._head_start_s = [plan.batch_wait_s * number / count for number in range(count)]
        self._retries: set[asyncio.TimerHandle] = set()
        self._squeeze = _squeezer(plan.encoding)
        self._settled = asyncio.Event()

    async def run(self, traffic: Traffic, pace: _Pace, on_progress: Progress | None) -> None:
        """Sends until the pace is over, then waits for what is under way."""
        began, cpu_s = time.monotonic(), time.process_time()
        housekeeping = asyncio.ensure_future(self._keep_house(began, on_progress))
        try:
            await self._send_all(traffic, pace)
            await self._send_rest(traffic.rest())
            self.tally.elapsed_s = time.monotonic() - began
            await self._drain()
        finally:
            housekeeping.cancel()
            await asyncio.gather(housekeeping, return_exceptions=True)
            for retry in self._retries:
                retry.cancel()
            for pool in self._pools:
                await pool.close()
            self.tally.cpu_s = time.process_time() - cpu_s
            self.tally.unknown += self.tally.under_way
        if on_progress is not None:
            on_progress(self.tally)

    async def _send_all(self, traffic: Traffic, pace: _Pace) -> None:
        while not pace.over():
            waiting_since = time.monotonic()
            while self.tally.under_way > self._plan.backlog_lines_max and not pace.over():
                self._flush(0.0)
                await asyncio.sleep(PACE_S)
                self.tally.held_back_s += time.monotonic() - waiting_since
                waiting_since = time.monotonic()
            turns = pace.due()
            if turns > 0:
                self._dispatch(pace.take(traffic, min(turns, TURNS_MAX)))
                self.tally.late_max_s = max(self.tally.late_max_s, pace.late_s())
            self._flush(self._plan.batch_wait_s)
            await asyncio.sleep(0 if pace.due() > TURNS_MAX else PACE_S)

    async def _send_rest(self, rest: Parcel) -> None:
        """What was held back (copies, late ones) at the pace of the run: a burst at its end would be nobody's traffic."""
        each = max(1, round(self._plan.reports_per_s * REST_S))
        for i in range(0, len(rest.lines), each):
            part = slice(i, i + each)
            held = (rest.lines[part], rest.targets[part], rest.singles[part], rest.watchers[part])
            self._dispatch(Parcel(rest.first + i, *held))
            self._flush(0.0)
            await asyncio.sleep(REST_S)
        self._flush(0.0)

    async def _drain(self) -> None:
        deadline = time.monotonic() + self._plan.give_up_s + self._plan.timeout_s
        while self.tally.under_way and time.monotonic() < deadline:
            self._settled.clear()
            try:
                await asyncio.wait_for(self._settled.wait(), SWEEP_EVERY_S)
            except TimeoutError:
                continue

    async def _keep_house(self, began: float, on_progress: Progress | None) -> None:
        told = began
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            for pool in self._pools:
                pool.sweep(asyncio.get_running_loop().time() - self._plan.give_up_s)
            if time.monotonic() - told < PROGRESS_EVERY_S:
                continue
            told += PROGRESS_EVERY_S
            if self._truth is not None:
                self._truth.flush()
            if on_progress is not None:
                self.tally.elapsed_s = time.monotonic() - began
                on_progress(self.tally)

    def _dispatch(self, parcel: Parcel) -> None:
        """Singles go out at once; the others join the batch of their force's relay."""
        self.tally.sent += len(parcel.lines)
        self.tally.json_bytes += sum(map(len, parcel.lines))
        now, number = asyncio.get_running_loop().time(), parcel.first
        rows = zip(parcel.lines, parcel.targets, parcel.singles, parcel.watchers, strict=True)
        for line, target, single, watcher in rows:
            if single or self._plan.by_mqtt:
                self._post(Request(target, self._way.head(target, line, watcher), line, [number], now, batch=False))
            else:
                batch = self._batches[target]
                if not batch.lines:
                    batch.since_s = now - self._head_start_s[target]
                    self._head_start_s[target] = 0.0
                batch.lines.append(line)
                batch.attempts.append(number)
                if len(batch.lines) >= self._plan.batch_lines_max:
                    self._send_batch(target, now)
            number += 1

    def _flush(self, wait_s: float) -> None:
        now = asyncio.get_running_loop().time()
        for target, batch in enumerate(self._batches):
            if batch.lines and now - batch.since_s >= wait_s:
                self._send_batch(target, now)

    def _send_batch(self, target: int, now: float) -> None:
        batch, self._batches[target] = self._batches[target], _Batch()
        body = self._squeeze(b"\n".join(batch.lines) + b"\n")
        self._post(Request(target, self._way.head(target, body), body, batch.attempts, now, batch=True))

    def _post(self, request: Request) -> None:
        self.tally.requests += 1
        self._pools[request.target].submit(request)

    def _answered(self, request: Request, answer: Answer, latency_s: float) -> None:
        now = asyncio.get_running_loop().time()
        if answer.status in RETRIED or answer.status >= 500:
            self._retry(request, f"status {answer.status}", answer.retry_after_s)
            return
        self.tally.latency.add(latency_s)
        if 200 <= answer.status < 300:
            self.tally.succeeded(request.sent_s, now)
            self._count(request, refusals_of_batch(answer.body) if request.batch else {})
            return
        pointer, reason = refusal_of_document(answer.status, answer.body)
        self._count(request, dict.fromkeys(range(1, len(request.attempts) + 1), (pointer, reason)))

    def _count(self, request: Request, refused: dict[int, tuple[str, str]]) -> None:
        """Enters the outcome of each report of an answered request; `refused` by number of the line, from 1."""
        tally = self.tally
        tally.refused += len(refused)
        tally.accepted += len(request.attempts) - len(refused)
        accepted = request.attempts
        for line, (pointer, reason) in refused.items():
            tally.refusals[reason] += 1
            tally.last_problem = f"{pointer or 'report'}: {reason}"
            if self._truth is not None:
                self._truth.refused(request.attempts[line - 1], pointer, reason)
        if refused:
            accepted = [number for line, number in enumerate(accepted, 1) if line not in refused]
        if self._truth is not None:
            self._truth.outcome("accepted", accepted)
        self._settled.set()

    def _failed(self, request: Request, reason: str) -> None:
        self._retry(request, reason, None)

    def _retry(self, request: Request, reason: str, wait_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        now, tally = loop.time(), self.tally
        tally.failed(reason, now)
        tally.last_problem = reason
        backoff_s = min(RETRY_MIN_S * 2 ** min(request.tries, 10), RETRY_MAX_S)
        backoff_s = backoff_s if wait_s is None else max(wait_s, RETRY_MIN_S)
        if now + backoff_s - request.first_s > self._plan.give_up_s:
            tally.unknown += len(request.attempts)
            if self._truth is not None:
                self._truth.outcome("unknown", request.attempts)
            self._settled.set()
            return
        tally.retried += 1
        handle: list[asyncio.TimerHandle] = []

        def again() -> None:
            self._retries.discard(handle[0])
            self._pools[request.target].submit(request)

        handle.append(loop.call_later(backoff_s, again))
        self._retries.add(handle[0])


def _squeezer(encoding: str | None) -> Callable[[bytes], bytes]:
    """How a batch is compressed."""
    if encoding == "gzip":
        return lambda body: zlib.compress(body, 1, 31)
    if encoding == "zstd":
        return zstandard.ZstdCompressor(level=1).compress
    return lambda body: body
