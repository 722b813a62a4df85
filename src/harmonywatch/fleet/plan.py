"""What a fleet is asked to do: one frozen value, handed from the command line (or the demo) to the sender.

A *target* is a force with the door it reports to. Watchers are dealt to the targets in turn, one city per force.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harmonywatch.fleet.faults import FaultRates

WATCHERS_FIRST_WAVE = 69_420
NO_FAULTS = FaultRates()
ENCODINGS = (None, "gzip", "zstd")


@dataclass(frozen=True)
class Target:
    """One force and its gateway: `url` is the root (`http://127.0.0.1:8470`), `key` a relay key of that force; or an MQTT
    broker: `mqtt://127.0.0.1:1884` and `USER:PASSWORD` of one that may publish for every watcher of the force.

    `ca` is a PEM file to trust when the URL is https or mqtts.
    """

    force: str
    url: str = ""
    key: str = ""
    ca: str | None = None

    @property
    def by_mqtt(self) -> bool:
        return self.url.startswith(("mqtt:", "mqtts:"))


HARMONYLAND = (Target("harmonyland"),)
"""The force of a fleet that is written to a file and told no other."""


@dataclass(frozen=True)
class FleetPlan:
    """A run of the fleet.

    `rate`: reports a second over all forces; None = one report a watcher and minute. `seconds`: length of the run; 0 =
    until stopped. `singles`: share of the watchers that send their own reports one by one, the others go through
    relays in batches (by MQTT all go one by one). `connections`: keep-alive connections over all targets (by MQTT one
    each). `encoding`: of relays' batches, one of ENCODINGS. `run`: tag inside every report_id, so that a second run of the
    same seed is not taken for a repeat of the first; None = the second the run starts at, in base 36. Raises ValueError on
    a plan that cannot be carried out.
    """

    watchers: int = WATCHERS_FIRST_WAVE
    rate: float | None = None
    seconds: float = 60.0
    seed: int = 1
    targets: tuple[Target, ...] = HARMONYLAND
    faults: FaultRates = NO_FAULTS
    singles: float = 0.05
    connections: int = 16
    encoding: str | None = None
    truth: Path | None = None
    truth_full: bool = False
    out: Path | None = None
    run: str | None = None
    batch_lines_max: int = 500
    batch_wait_s: float = 0.08
    timeout_s: float = 10.0
    give_up_s: float = 120.0
    backlog_lines_max: int = 50_000

    def __post_init__(self) -> None:
        if self.watchers < 1:
            raise ValueError("a fleet has at least one watcher")
        if self.rate is not None and not self.rate > 0:
            raise ValueError("rate is in reports a second, above 0")
        if self.seconds < 0:
            raise ValueError("seconds is 0 (until stopped) or more")
        if not 0.0 <= self.singles <= 1.0:
            raise ValueError("singles is a share between 0 and 1")
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding is one of none, gzip, zstd; not {self.encoding!r}")
        if not self.targets or self.watchers < len(self.targets):
            raise ValueError("a fleet has at least one target, and a watcher for each")
        if len({target.force for target in self.targets}) != len(self.targets):
            raise ValueError("each target is another force")
        if len({target.by_mqtt for target in self.targets}) > 1:
            raise ValueError("a fleet sends by HTTP or by MQTT, not by both at once")
        if self.connections < 1:
            raise ValueError("a fleet has at least one connection")

    @property
    def by_mqtt(self) -> bool:
        return self.targets[0].by_mqtt

    @property
    def forces(self) -> tuple[str, ...]:
        return tuple(target.force for target in self.targets)

    @property
    def reports_per_s(self) -> float:
        """The rate asked for, or one report a watcher and minute."""
        return self.watchers / 60 if self.rate is None else self.rate

    @property
    def reports_total(self) -> int | None:
        """Turns in the whole run (silent watchers miss theirs, faults add copies); None = until stopped."""
        return round(self.reports_per_s * self.seconds) or 1 if self.seconds else None

    def run_tag(self, start_s: int) -> str:
        """The tag of a run that starts at `start_s` seconds since 1970."""
        return self.run if self.run is not None else base36(start_s)


def watcher_id(watcher: int, forces: tuple[str, ...]) -> str:
    """The name of a watcher, `north-00017`."""
    return f"{forces[watcher % len(forces)]}-{watcher // len(forces):05d}"


def base36(number: int) -> str:
    """Digits 0-9a-z: seven are enough for any second until the year 4453."""
    digits = ""
    while number:
        number, rest = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[rest] + digits
    return digits or "0"
