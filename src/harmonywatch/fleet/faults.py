"""The faults of a real fleet, each with a rate, each drawn from the seed.

| name      | rate is a share of | what happens |
|-----------|--------------------|--------------|
| twice     | reports  | the very same bytes are sent once more, up to 20 s later in the same run |
| late      | reports  | `time` lies 1 to 10 minutes in the past |
| order     | reports  | held back until the watcher's next report has gone (or the run ends) |
| malformed | reports  | a broken copy goes out first, the whole report after it: a sequence keeps no gap |
| skew      | watchers | the watcher's clock is a day ahead, or in 1970, or in 2106 |
| silent    | reports  | the watcher misses this and the next 3 to 10 turns; likelier on a low battery, old firmware |
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields

import msgspec
import numpy as np
import numpy.typing as npt

DAY_US = 86_400_000_000
LATE_MIN_US, LATE_MAX_US = 60_000_000, 600_000_000
SECONDS_32_BIT_US = 2**32 * 1_000_000
SKEWS = ("none", "a day ahead", "1970", "2106")
MALFORMED_KINDS = ("cut", "missing", "wrong-type", "nan", "out-of-range", "not-utf8", "not-json")

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class FaultSpecError(ValueError):
    """The text is not a list of `name=rate`; the message says what was meant, or what is possible."""


@dataclass(frozen=True)
class FaultRates:
    """Each between 0 and 1; see the table above for what it is a share of."""

    twice: float = 0.0
    late: float = 0.0
    order: float = 0.0
    malformed: float = 0.0
    skew: float = 0.0
    silent: float = 0.0

    def any(self) -> bool:
        return any(getattr(self, field.name) > 0 for field in fields(self))


FAULT_NAMES = tuple(field.name for field in fields(FaultRates))


def parse_faults(spec: str) -> FaultRates:
    """`twice=0.02,late=0.01` -> FaultRates; an empty text is a fleet without faults. Raises FaultSpecError."""
    rates: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in spec.split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if name not in FAULT_NAMES:
            near = difflib.get_close_matches(name, FAULT_NAMES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(FAULT_NAMES)}"
            raise FaultSpecError(f"no fault is called {name!r}: {hint}")
        if name in rates:
            raise FaultSpecError(f"the fault {name!r} is given twice")
        rates[name] = _rate(name, value if equals else "")
    return FaultRates(**rates)


def _rate(name: str, value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        raise FaultSpecError(f"the fault {name!r} needs a rate, as in {name}=0.01") from None
    if not 0.0 <= rate <= 1.0:
        raise FaultSpecError(f"the rate of {name!r} is a share between 0 and 1, not {value}")
    return rate


@dataclass(frozen=True)
class Drawn:
    """The faults of some reports, one row each; `late_us`: how far in the past `time` lies."""

    late_us: Ints
    twice: Flags
    order: Flags
    malformed: Flags


class Faults:
    """Draws faults for rows of watchers. Its own random stream: switching faults on leaves the city as it was."""

    def __init__(self, rates: FaultRates, watchers: int, seed: int) -> None:
        self.rates = rates
        self._rng = np.random.Generator(np.random.PCG64([seed, 0xFA17]))
        self.skew = np.where(self._rng.random(watchers) < rates.skew, self._rng.integers(1, 4, watchers), 0)
        self._silent_until = np.zeros(watchers, np.int64)

    def speaking(self, watchers: Ints, turn: int, frailty: npt.NDArray[np.float64]) -> Flags:
        """Which watchers report in this turn. `frailty` (mean about 1) weighs who falls silent."""
        if self.rates.silent:
            falls = self._rng.random(len(watchers)) < self.rates.silent * frailty
            fallen = watchers[falls & (self._silent_until[watchers] <= turn)]
            self._silent_until[fallen] = turn + self._rng.integers(4, 12, len(fallen))
        return self._silent_until[watchers] <= turn

    def draw(self, rows: int) -> Drawn:
        """The faults of that many reports."""
        rates, rng = self.rates, self._rng
        late = rng.random(rows) < rates.late
        return Drawn(
            late_us=np.where(late, rng.integers(LATE_MIN_US, LATE_MAX_US, rows), 0),
            twice=rng.random(rows) < rates.twice,
            order=rng.random(rows) < rates.order,
            malformed=rng.random(rows) < rates.malformed,
        )

    def skew_us(self, watchers: Ints, now_us: Ints) -> Ints:
        """How far off the clock of each watcher is, in microseconds; `now_us` is the honest wall time of each."""
        in_1970 = now_us % DAY_US - now_us
        in_2106 = SECONDS_32_BIT_US - DAY_US + now_us % 3_600_000_000 - now_us
        return np.choose(self.skew[watchers], [np.zeros_like(now_us), np.full_like(now_us, DAY_US), in_1970, in_2106])

    def repeat_after(self, positions_max: int) -> int:
        """How many reports later the second copy of a report is sent."""
        return int(self._rng.integers(1, max(2, positions_max)))

    def malform(self, line: bytes) -> bytes:
        """A broken copy of a report, of a kind drawn at random; never valid, never with a line feed in it."""
        kind = MALFORMED_KINDS[int(self._rng.integers(len(MALFORMED_KINDS)))]
        return malformed(line, kind)


def malformed(line: bytes, kind: str) -> bytes:
    """`line` broken in the named way (one of MALFORMED_KINDS)."""
    if kind == "cut":
        return line[: len(line) * 2 // 3]
    if kind == "not-json":
        return b"watcher says: " + line[:60].replace(b'"', b"'")
    if kind == "not-utf8":
        return line.replace(b'"words":["', b'"words":["\xff\xfe', 1)
    report = msgspec.json.decode(line)
    if kind == "missing":
        del report["location"]
    elif kind == "wrong-type":
        report["words"] = "a great many"
    elif kind == "out-of-range":
        report["location"]["lat"] = 91.5
    elif kind == "nan":
        return re.sub(rb'"lat":-?[0-9.]+', b'"lat":NaN', line, count=1)
    else:
        raise ValueError(f"no way to break a report is called {kind!r}")
    return msgspec.json.encode(report)
