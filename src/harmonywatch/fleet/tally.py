"""What a run of the fleet counted, as plain numbers: the demo's table and the kill tests read them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

BUCKETS_PER_DOUBLING = 8
BUCKET_FIRST_S = 50e-6


class Histogram:
    """Durations in seconds, in buckets that are exact to 9 %."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.count = 0
        self.max_s = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.max_s = max(self.max_s, seconds)
        self.counts[math.ceil(BUCKETS_PER_DOUBLING * math.log2(max(seconds, BUCKET_FIRST_S) / BUCKET_FIRST_S))] += 1

    def quantile_s(self, share: float) -> float:
        """The duration that `share` of all do not exceed (upper end of its bucket); 0 without any."""
        left = share * self.count
        for bucket in sorted(self.counts):
            left -= self.counts[bucket]
            if left <= 0:
                return float(min(BUCKET_FIRST_S * 2 ** (bucket / BUCKETS_PER_DOUBLING), self.max_s))
        return self.max_s


@dataclass
class Tally:
    """Counts of reports unless said otherwise, copies (faults) included.

    `sent`: handed to the network; each ends as accepted, refused or unknown (given up, or still under way). `retried`:
    requests sent again. `failures`: why, by kind, in requests. `recoveries_s`: from the first failure of an outage to
    the first 2xx of a request sent after it. `held_back_s`: how long the fleet waited as too much was unanswered.
    """

    sent: int = 0
    accepted: int = 0
    refused: int = 0
    unknown: int = 0
    requests: int = 0
    retried: int = 0
    json_bytes: int = 0
    elapsed_s: float = 0.0
    held_back_s: float = 0.0
    late_max_s: float = 0.0
    cpu_s: float = 0.0
    refusals: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)
    latency: Histogram = field(default_factory=Histogram)
    last_problem: str = ""
    outage_since_s: float | None = None

    @property
    def under_way(self) -> int:
        """Reports sent without an outcome yet."""
        return self.sent - self.accepted - self.refused - self.unknown

    def failed(self, kind: str, now_s: float) -> None:
        self.failures[kind] += 1
        if self.outage_since_s is None:
            self.outage_since_s = now_s

    def succeeded(self, sent_s: float, now_s: float) -> None:
        """A 2xx came for a request that went out at `sent_s`; it ends an outage if it went out after its begin."""
        if self.outage_since_s is not None and sent_s > self.outage_since_s:
            self.recoveries_s.append(now_s - self.outage_since_s)
            self.outage_since_s = None


@dataclass(frozen=True)
class FleetResult:
    """A finished run: its counts, its tag, where the ground truth is, and the rate that was kept, in reports/s."""

    tally: Tally
    run: str
    truth: Path | None
    rate: float
