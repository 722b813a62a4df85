"""The watchers: models, firmware, and the patrol they fly, one step for each report.

Watcher w reports in turn w of every round of the fleet (so the columns are in sending order), belongs to force w mod
forces, and stays in one district. A step is one minute of the city's time, whatever the wall clock says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harmonywatch.fleet.districts import METRES_PER_DEGREE, RADIUS_M, Districts

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MODELS = ("Lark-2", "Lark-3", "Heron-1", "Swift-4", "Wren-1")
CARELESS_MODEL = MODELS.index("Wren-1")
"""The old model that sends names decomposed or with blanks, and has no altimeter."""
FIRMWARE = ("1.8.2", "2.0.0", "2.0.4", "2.1.0", "2.1.3", "3.0.1")
FRAILTY = np.array([3.0, 1.8, 1.2, 0.9, 0.6, 0.5])
"""How prone to failure each firmware is; about 1 on average."""
STEP_S = 60.0
DRAIN_PER_MIN = 0.009
CHARGE_PER_MIN = 0.04


@dataclass(frozen=True)
class Patrol:
    """Where some watchers are and how they are; one row each. Micro-degrees, degrees, dm/s, percent, dBm."""

    lat_udeg: Ints
    lon_udeg: Ints
    heading_deg: Ints
    speed_dmps: Ints
    altitude_m: Ints
    accuracy_dm: Ints
    battery_pct: Ints
    signal_dbm: Ints
    along: Floats


class Watchers:
    """Every watcher of every force, in columns."""

    def __init__(self, count: int, forces: int, districts: Districts, rng: np.random.Generator) -> None:
        self.count = count
        self.force = np.arange(count) % forces
        self.district = self.force * districts.per_city + rng.integers(0, districts.per_city, count)
        self.model = rng.choice(len(MODELS), count, p=[0.3, 0.25, 0.2, 0.15, 0.1])
        self.firmware = rng.choice(len(FIRMWARE), count, p=[0.08, 0.12, 0.2, 0.25, 0.2, 0.15])
        self._districts = districts
        self._x_m, self._y_m = rng.uniform(-RADIUS_M / 1.5, RADIUS_M / 1.5, (2, count))
        self._heading = rng.uniform(0.0, 2 * np.pi, count)
        self._speed = rng.uniform(3.0, 12.0, count)
        self._battery = rng.uniform(0.15, 1.0, count)
        self._charging = rng.random(count) < 0.12
        self._signal = np.clip(rng.normal(-72.0, 9.0, count), -105.0, -48.0)

    def frailty(self, rows: slice) -> Floats:
        """How prone to falling silent each is: by firmware, and threefold on a nearly empty battery."""
        return np.asarray(FRAILTY[self.firmware[rows]] * np.where(self._battery[rows] < 0.15, 3.0, 0.9))

    def step(self, rows: slice, rng: np.random.Generator) -> Patrol:
        """Moves the watchers of `rows` by one step, drains or charges them, and tells where they are."""
        self._fly(rows, rng)
        self._power(rows, rng)
        at = self.district[rows]
        lat = self._districts.lat[at] + self._y_m[rows] / METRES_PER_DEGREE
        lon = self._districts.lon[at] + self._x_m[rows] / self._districts.metres_per_degree_lon[at]
        moving = ~self._charging[rows]
        n = len(at)
        return Patrol(
            lat_udeg=np.rint(lat * 1e6).astype(np.int64),
            lon_udeg=np.rint(lon * 1e6).astype(np.int64),
            heading_deg=np.degrees(self._heading[rows]).astype(np.int64) % 360,
            speed_dmps=(self._speed[rows] * 10 * moving).astype(np.int64),
            altitude_m=np.where(moving, rng.integers(30, 90, n), 2),
            accuracy_dm=rng.integers(10, 60, n),
            battery_pct=np.rint(self._battery[rows] * 100).astype(np.int64),
            signal_dbm=np.rint(self._signal[rows] + rng.integers(-3, 4, n)).astype(np.int64),
            along=np.clip((self._x_m[rows] / RADIUS_M + 1) / 2, 0.0, 0.999),
        )

    def _fly(self, rows: slice, rng: np.random.Generator) -> None:
        x, y, heading = self._x_m[rows], self._y_m[rows], self._heading[rows]
        turn = rng.normal(0.0, 0.5, len(x))
        astray = x * x + y * y > RADIUS_M * RADIUS_M
        heading[:] = (np.where(astray, np.arctan2(-x, -y), heading) + turn) % (2 * np.pi)
        speed = self._speed[rows]
        speed[:] = np.clip(speed + 0.8 * turn, 2.0, 14.0)
        metres = np.where(self._charging[rows], 0.0, speed * STEP_S * 0.5)
        x += np.sin(heading) * metres
        y += np.cos(heading) * metres

    def _power(self, rows: slice, rng: np.random.Generator) -> None:
        battery, charging = self._battery[rows], self._charging[rows]
        battery += np.where(charging, CHARGE_PER_MIN, -DRAIN_PER_MIN * rng.uniform(0.7, 1.3, len(battery)))
        charging |= battery < 0.1
        charging &= battery < 0.97
        np.clip(battery, 0.0, 1.0, out=battery)
