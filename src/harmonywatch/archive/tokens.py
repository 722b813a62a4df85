"""Tokens in columns: every citizen of a force gets a small number, is sealed once, and is a number until a file is written.

A sighting then costs one look-up, and Parquet gets the dictionary that it would have had to find again.
Numbers mean something only between two calls of `forget`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harmonywatch.archive.sealing import Sealer

Numbers = npt.NDArray[np.int32]
REMEMBERED_MAX = 200_000
"""Citizens kept in memory, about 60 MB at most. Sealing one again costs some 3 microseconds, so forgetting all is cheap."""


Who = str | tuple[str, str]
"""A name alone, or a name and a citizen_id: most have none, and a look-up of one text touches half the memory."""


class _Numbers(dict[Who, int]):
    """Numbers of citizens; who is not there gets the next, and is sealed.

    `place`: of each number, where in `citizens` its token is, because two spellings may be one identity: a dictionary that
    says a text twice is refused by Parquet.
    """

    def __init__(self, sealer: Sealer) -> None:
        super().__init__()
        self.sealer = sealer
        self.place = array("i")
        self.citizens: dict[str, int] = {}
        self.sealed: list[str | None] = []

    def __missing__(self, who: Who) -> int:
        citizen, sealed = self.sealer.token(who, None) if isinstance(who, str) else self.sealer.token(*who)
        number = self[who] = len(self)
        self.place.append(self.citizens.setdefault(citizen, len(self.citizens)))
        self.sealed.append(sealed)
        return number


class Tokens:
    """The citizens of one force, as far as they are remembered. Used by one thread."""

    def __init__(self, sealer: Sealer) -> None:
        self._numbers = _Numbers(sealer)

    def number(self, whom: Sequence[Who]) -> Numbers:
        """The number of each citizen."""
        return np.fromiter(map(self._numbers.__getitem__, whom), np.int32, len(whom))

    def columns(self, numbers: Numbers) -> tuple[Any, Any]:
        """Columns `citizen` and `citizen_sealed`, by dictionary."""
        sealed = self._numbers.sealed
        having = [number for number in _distinct(numbers) if sealed[number] is not None]
        places = np.array(self._numbers.place, np.int32)[numbers]
        citizens = list(self._numbers.citizens)
        return _by_dictionary(citizens, _distinct(places), places), _by_dictionary(sealed, having, numbers)

    def forget(self) -> None:
        """Nobody holds numbers: if there are too many, begin again."""
        if len(self._numbers) > REMEMBERED_MAX:
            self._numbers = _Numbers(self._numbers.sealer)


def _distinct(numbers: Numbers) -> list[int]:
    found = np.zeros(numbers.max(initial=-1) + 1, np.bool_)
    found[numbers] = True
    return np.flatnonzero(found).tolist()


def _by_dictionary(texts: Sequence[str | None], having: list[int], numbers: Numbers) -> Any:
    """The texts of the numbers, null for those that are not among `having`."""
    place = np.full(len(texts) + 1, -1, np.int32)
    place[having] = np.arange(len(having), dtype=np.int32)
    indices = place[numbers]
    absent = indices < 0
    coded: Any = pa.array(indices, mask=absent if absent.any() else None)
    return pa.DictionaryArray.from_arrays(coded, pa.array([texts[number] for number in having], pa.string()))
