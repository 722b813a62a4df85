"""The districts of the cities, and how agitation rises, spreads and cools in them.

Harmonyland does not exist: its islands lie in the open Atlantic, in real WGS84 coordinates, one city to an island,
one city to a force. Districts of a city sit on a jittered grid; agitation is 0 (calm) to 1, one number a district. Time
here is the city's own, in minutes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harmonywatch.fleet.vocabulary import PLACES

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CITY_CENTRES = ((47.1, -29.6), (41.3, -30.2), (44.2, -33.4), (38.4, -24.1))
SPACING_M = 2_400.0
RADIUS_M = 1_250.0
METRES_PER_DEGREE = 111_320.0
DISTRICTS_PER_CITY_MAX = 24
CITIZENS_PER_DISTRICT_MIN = 40
COOLING_PER_MIN = 0.035
SPREAD_PER_MIN = 0.05
OUTBREAKS_PER_DISTRICT_MIN = 0.01
WARM_UP_MIN = 600


class Districts:
    """Every district of every city, in columns; city c owns rows [c * per_city, (c + 1) * per_city)."""

    def __init__(self, cities: int, per_city: int, rng: np.random.Generator) -> None:
        self.per_city = per_city
        self.count = cities * per_city
        self.city = np.repeat(np.arange(cities), per_city)
        self.kind = rng.permutation(np.arange(self.count) % len(PLACES))
        north_m, east_m = _grid(cities, per_city, rng)
        centre_lat, centre_lon = _city_centres(cities)
        self.lat = centre_lat[self.city] + north_m / METRES_PER_DEGREE
        self.metres_per_degree_lon = METRES_PER_DEGREE * np.cos(np.radians(self.lat))
        self.lon = centre_lon[self.city] + east_m / self.metres_per_degree_lon
        self._neighbours = _neighbours(north_m, east_m, self.city)
        self.agitation = np.zeros(self.count)
        for _ in range(WARM_UP_MIN):
            self.advance(1.0, rng)

    def advance(self, minutes: float, rng: np.random.Generator) -> None:
        """Lets `minutes` of city time pass: outbreaks raise a district, neighbours catch it, all cool."""
        a = self.agitation
        a += minutes * (SPREAD_PER_MIN * (self._neighbours @ a - a) - COOLING_PER_MIN * a)
        for _ in range(int(rng.poisson(OUTBREAKS_PER_DISTRICT_MIN * self.count * minutes))):
            a[rng.integers(self.count)] += 0.3 + 0.6 * rng.random()
        np.clip(a, 0.0, 1.0, out=a)


def districts_per_city(citizens_per_city: int) -> int:
    """Small fleets live in small cities: a district needs people to be seen."""
    return max(1, min(DISTRICTS_PER_CITY_MAX, citizens_per_city // CITIZENS_PER_DISTRICT_MIN))


def _city_centres(cities: int) -> tuple[Floats, Floats]:
    """Where each city lies; cities beyond the known islands follow each other to the south."""
    which = np.arange(cities)
    centres = np.array(CITY_CENTRES)[which % len(CITY_CENTRES)]
    centres[:, 0] -= 1.0 * (which // len(CITY_CENTRES))
    return centres[:, 0], centres[:, 1]


def _grid(cities: int, per_city: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    side = int(np.ceil(np.sqrt(per_city)))
    place = np.tile(np.arange(per_city), cities)
    jitter = rng.uniform(-400.0, 400.0, (2, len(place)))
    middle = (side - 1) / 2
    return (place // side - middle) * SPACING_M + jitter[0], (place % side - middle) * SPACING_M + jitter[1]


def _neighbours(north_m: Floats, east_m: Floats, city: Ints) -> Floats:
    """Row-normalised weights: who is nearer than one and a half streets of the grid, in the same city."""
    distance = np.hypot(north_m[:, None] - north_m, east_m[:, None] - east_m)
    near = (distance < 1.5 * SPACING_M) & (city[:, None] == city)
    weights = near.astype(np.float64)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
