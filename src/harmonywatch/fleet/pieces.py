"""Pre-rendered pieces of JSON: a text is a row of indices into one table of bytes.

Rendering is then one gather and one join for a whole block of reports, with no Python code per report. The table has a
fixed part, filled once, and regions for pieces that come up as the run goes (`Shelf`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]


class Pieces:
    """The table. `add` while filling; the index of the empty piece is 0."""

    def __init__(self) -> None:
        self._filling: list[bytes] = [b""]
        self._table: npt.NDArray[Any] = np.empty(0, object)

    def add(self, pieces: Iterable[bytes]) -> int:
        """Adds pieces side by side; the index of the first."""
        first = len(self._filling)
        self._filling.extend(pieces)
        return first

    def shelf(self, size: int) -> Shelf:
        """A region of `size` pieces that are put there later."""
        return Shelf(self, self.add([b""] * size), size)

    def seal(self) -> None:
        """Ends the filling; from here on pieces may be gathered."""
        self._table = np.array(self._filling, dtype=object)
        self._filling = []

    def put(self, index: int, piece: bytes) -> None:
        self._table[index] = piece

    def piece(self, index: int) -> bytes:
        found: bytes = self._table[index]
        return found

    def texts(self, rows: Rows) -> list[bytes]:
        """The text of each row; each row's last piece must end with a line feed, which is not part of the text."""
        lines = b"".join(self._table[rows.ravel()].tolist()).split(b"\n")
        lines.pop()
        return lines


class Shelf:
    """Pieces made on demand, each kept once. `make_room` may forget them all: call it only between blocks."""

    def __init__(self, pieces: Pieces, first: int, size: int) -> None:
        self._pieces, self._first, self._size = pieces, first, size
        self._kept: dict[bytes, int] = {}

    def index(self, piece: bytes) -> int:
        found = self._kept.get(piece)
        if found is None:
            if len(self._kept) >= self._size:
                raise OverflowError(f"more than {self._size} pieces in one block")
            found = self._kept[piece] = self._first + len(self._kept)
            self._pieces.put(found, piece)
        return found

    def make_room(self, wanted: int) -> None:
        """Forgets every piece unless `wanted` more fit."""
        if len(self._kept) + wanted > self._size:
            self._kept.clear()

    def indices(self, values: Ints, form: bytes) -> Ints:
        """The piece `form % value` of each value; fast as long as few values differ."""
        low, high = int(values.min()), int(values.max())
        if low == high:
            return np.full(len(values), self.index(form % low))
        distinct, inverse = np.unique(values, return_inverse=True)
        return np.array([self.index(form % value) for value in distinct.tolist()])[inverse]
