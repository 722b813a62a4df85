"""The synthetic city: turns the plan's seed into what every watcher sees, a block of reports at a time.

Rules it keeps:
- Deterministic: the same seed, watchers and forces give the same blocks, in any process. No clock is read: the city's
  clock advances one minute with each round (every watcher once), so at one report a watcher and minute it runs at wall
  speed, and faster above that.
- Bad scores (below 25) are rare: BAD_SHARE of the reports on average, by city-wide agitation between its bounds, and a
  token bucket (BAD_SHARE_CAP) keeps any minute's share under 1 %, however unlucky the draw.
- Vectorised: nothing here loops over reports.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harmonywatch.fleet.citizens import Citizens, Roster, citizens_of
from harmonywatch.fleet.districts import Districts, districts_per_city
from harmonywatch.fleet.vocabulary import MOODS, UTTERANCES_PER_POOL, Utterances, utterances
from harmonywatch.fleet.watchers import Patrol, Watchers

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

BLOCK = 512
"""Reports made at once: small enough not to stall a paced sender (about 5 ms), large enough for numpy."""
CITIZENS_MAX = 9
UTTERANCES_MAX = 7
THRESHOLD_TENTHS = 250
BAD_SHARE = 0.0058
BAD_SHARE_BOUNDS = (0.0045, 0.0070)
BAD_SHARE_CAP = 0.0080
AGITATION_USUAL = 0.1
START_H = 16.5
ROSTER_EVERY_MIN = 5.0
EMPTY_SKY = 0.004


@dataclass(frozen=True)
class Block:
    """Consecutive reports of one round, in columns. `citizens`, `score_tenths`, `confidence_pct` are CITIZENS_MAX wide:
    the first `seen` count; `heard`, indices of utterances, is UTTERANCES_MAX wide: the first `spoken` count.
    """

    turn: int
    watcher: Ints
    patrol: Patrol
    seen: Ints
    citizens: Ints
    score_tenths: Ints
    confidence_pct: Ints
    spoken: Ints
    heard: Ints

    def bad(self) -> Flags:
        """Which scores are below the threshold; CITIZENS_MAX wide."""
        return np.asarray((self.score_tenths < THRESHOLD_TENTHS) & (np.arange(CITIZENS_MAX) < self.seen[:, None]))


class City:
    """All cities of all forces. `block()` gives the next reports, for ever."""

    def __init__(self, watchers: int, forces: int, seed: int) -> None:
        self._rng = np.random.Generator(np.random.PCG64([seed, 0xC17]))
        people = citizens_of(watchers, forces)
        self.districts = Districts(forces, districts_per_city(people // forces), self._rng)
        self.citizens = Citizens(people, self.districts, self._rng)
        self.watchers = Watchers(watchers, forces, self.districts, self._rng)
        self.utterances: Utterances = utterances(self._rng)
        self.minutes = 0.0
        self._roster_due = 0.0
        self._next = 0
        self._turn = 0
        self._bad_allowed = 1.0
        self._refresh_roster()

    def hour(self) -> float:
        """Hour of the city's day, 0 to 24."""
        return (START_H + self.minutes / 60) % 24

    def block(self) -> Block:
        """The next reports, at most BLOCK, never across the end of a round."""
        first, last = self._next, min(self._next + BLOCK, self.watchers.count)
        rows, turn = slice(first, last), self._turn
        self._pass_time((last - first) / self.watchers.count)
        patrol = self.watchers.step(rows, self._rng)
        seen, citizens = self._see(rows, patrol)
        scores = self._score(rows, seen, citizens)
        heard, spoken = self._hear(rows, (scores < THRESHOLD_TENTHS).max(axis=1))
        confidence = 99 - np.minimum(self._rng.exponential(5.0, scores.shape), 48).astype(np.int64)
        self._next, self._turn = (last, turn) if last < self.watchers.count else (0, turn + 1)
        return Block(turn, np.arange(first, last), patrol, seen, citizens, scores, confidence, spoken, heard)

    def _pass_time(self, minutes: float) -> None:
        self.minutes += minutes
        self.districts.advance(minutes, self._rng)
        if self.minutes >= self._roster_due:
            self._refresh_roster()

    def _refresh_roster(self) -> None:
        self._roster = Roster(self.citizens.district_at(self.hour()), self.districts.count)
        self._roster_due = self.minutes + ROSTER_EVERY_MIN

    def _see(self, rows: slice, patrol: Patrol) -> tuple[Ints, Ints]:
        """How many citizens each watcher sees, and whom: neighbours in the roster of its district."""
        at, rng = self.watchers.district[rows], self._rng
        size, start = self._roster.size[at], self._roster.start[at]
        wanted = 6 + rng.integers(0, 4, len(at)) - (self.hour() < 6.0)
        seen = np.where(rng.random(len(at)) < EMPTY_SKY, 0, np.minimum(wanted, size))
        offset = (patrol.along * size).astype(np.int64) + rng.integers(0, 12, len(at))
        place = start[:, None] + (offset[:, None] + np.arange(CITIZENS_MAX)) % np.maximum(size, 1)[:, None]
        return seen, self._roster.order[np.minimum(place, self.citizens.count - 1)]

    def _score(self, rows: slice, seen: Ints, citizens: Ints) -> Ints:
        """Each score anew: the citizen's calm, the district's agitation, noise, and now and then an outburst."""
        rng, agitation = self._rng, self.districts.agitation[self.watchers.district[rows]]
        noise = rng.standard_normal(citizens.shape)
        score = self.citizens.calm[citizens] - 18.0 * agitation[:, None] + 6.0 * noise
        tenths: Ints = np.clip(np.rint(score * 10), THRESHOLD_TENTHS + 1, 1000).astype(np.int64)
        visible = np.arange(CITIZENS_MAX) < seen[:, None]
        outburst = self._outbursts(self.citizens.temper[citizens] * (0.15 + agitation[:, None]) * visible)
        tenths[outburst] = (249 * np.sqrt(rng.random(int(outburst.sum())))).astype(np.int64)
        return tenths

    def _outbursts(self, weight: Floats) -> Flags:
        """Which scores are bad: about BAD_SHARE of the reports, by weight, never more than the bucket allows."""
        n = len(weight)
        share = np.clip(BAD_SHARE * (0.7 + 0.3 * self.districts.agitation.mean() / AGITATION_USUAL), *BAD_SHARE_BOUNDS)
        bad: Flags = self._rng.random(weight.shape) * max(weight.sum(), 1e-9) < share * n * weight
        self._bad_allowed = min(self._bad_allowed + BAD_SHARE_CAP * n, BAD_SHARE_CAP * n + 2)
        reports = np.flatnonzero(bad.any(axis=1))
        excess = reports[int(self._bad_allowed) :]
        bad[excess] = False
        self._bad_allowed -= len(reports) - len(excess)
        return bad

    def _hear(self, rows: slice, outburst: Flags) -> tuple[Ints, Ints]:
        """What each watcher hears: utterances of the place and mood; heated ones go with outbursts."""
        rng, at = self._rng, self.watchers.district[rows]
        agitation = self.districts.agitation[at]
        heat = agitation[:, None] * 1.6 + 0.8 * outburst[:, None] + 0.25 * rng.random((len(at), UTTERANCES_MAX))
        mood = (heat > 0.45).astype(np.int64) + (heat > 0.8)
        pool = self.districts.kind[at][:, None] * len(MOODS) + mood
        pick = (UTTERANCES_PER_POOL * rng.random(pool.shape) ** 2).astype(np.int64)
        spoken = rng.integers(5, UTTERANCES_MAX + 1, len(at)) - (self.hour() < 5.0)
        return pool * UTTERANCES_PER_POOL + pick, spoken
