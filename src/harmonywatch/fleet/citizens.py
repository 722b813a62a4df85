"""The citizens: who they are, where they live and work, and who is in which district at a given hour.

Identities are stable. A name belongs to one citizen of a force, except for namesakes, who are therefore always sent
with their citizen_id; so are a few others, and never only now and then: a citizen has one identity.
"""

from __future__ import annotations

import unicodedata

import numpy as np
import numpy.typing as npt

from harmonywatch.fleet import names
from harmonywatch.fleet.districts import Districts

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CITIZENS_PER_WATCHER = 1.35
CITIZENS_PER_CITY_MIN = 40
SHARE_NAMESAKES = 0.03
SHARE_WITH_ID = 0.15
SHARE_BLANKS = 0.02
SHARE_OFFENDERS = 0.008
OFFENDER_WEIGHT = 120.0


def citizens_of(watchers: int, cities: int) -> int:
    """How many people live in all cities together."""
    return max(int(watchers * CITIZENS_PER_WATCHER), CITIZENS_PER_CITY_MIN * cities)


class Citizens:
    """Everybody, in columns; citizen c lives in city c mod cities.

    `calm` is the baseline of the harmonyscore; `temper` weighs how often somebody falls below every threshold (repeat
    offenders weigh OFFENDER_WEIGHT).
    """

    def __init__(self, count: int, districts: Districts, rng: np.random.Generator) -> None:
        self.count = count
        cities = int(districts.city[-1]) + 1
        city = np.arange(count) % cities
        self.home = city * districts.per_city + rng.integers(0, districts.per_city, count)
        busy = np.minimum(rng.integers(0, districts.per_city, count), rng.integers(0, districts.per_city, count))
        self.work = city * districts.per_city + busy
        self.leaves_h = np.clip(rng.normal(8.0, 1.4, count), 4.0, 12.0)
        self.returns_h = np.clip(rng.normal(17.5, 1.8, count), 13.0, 23.5)
        self.stays = rng.random(count) < 0.45
        self.nights = rng.random(count) < 0.08
        self.calm = np.clip(rng.normal(69.0, 8.0, count), 46.0, 92.0)
        self.temper = np.where(rng.random(count) < SHARE_OFFENDERS, OFFENDER_WEIGHT, 1.0)
        self._names = _name_indices(count, cities, rng)
        self.with_id = (rng.random(count) < SHARE_WITH_ID) | self._names[1]
        self.with_blanks = rng.random(count) < SHARE_BLANKS

    def district_at(self, hour: float) -> Ints:
        """The district each citizen is in at that hour of the city's day."""
        away = (self.leaves_h <= hour) & (hour < self.returns_h)
        at_work = (away ^ self.nights) & ~self.stays
        return np.where(at_work, self.work, self.home)

    def names(self) -> list[str]:
        """The name of each citizen, in NFC, without blanks around it."""
        given, family = names.given_names(), names.family_names()
        return [names.name_of(index, given, family) for index in self._names[0].tolist()]


class Roster:
    """Who is in which district: `order[start[d] : start[d] + size[d]]` are the citizens in district d."""

    def __init__(self, district: Ints, districts: int) -> None:
        self.order = np.argsort(district.astype(np.int16), kind="stable")
        self.size = np.bincount(district, minlength=districts)
        self.start = np.cumsum(self.size) - self.size


def other_spelling(name: str, blanks: bool) -> str:
    """The same name as a careless watcher writes it: decomposed (NFD), or with blanks around; else unchanged."""
    if not name.isascii():
        return unicodedata.normalize("NFD", name)
    return f" {name}  " if blanks else name


def _name_indices(count: int, cities: int, rng: np.random.Generator) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """An index of a name for each citizen, and who has a namesake.

    Names are handed out by a permutation of all pairs, so that two citizens share one only when meant to: a namesake
    takes the name of the citizen before it in the same city, and only every second citizen may, so no chain forms.
    """
    pairs = len(names.given_names()) * len(names.family_names())
    step = next(k for k in range(pairs * 5 // 8, pairs) if np.gcd(k, pairs) == 1)
    plain = np.arange(count)
    index = np.where(plain < pairs, (plain * step + int(rng.integers(pairs))) % pairs, plain)
    place = plain // cities
    may = (place % 2 == 1) & (rng.random(count) < 2 * SHARE_NAMESAKES)
    copies = plain[may]
    index[copies] = index[copies - cities]
    has_namesake = may.copy()
    has_namesake[copies - cities] = True
    return index, has_namesake
