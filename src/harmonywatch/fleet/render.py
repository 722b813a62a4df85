"""Reports as JSON bytes, from pre-rendered pieces: a block of the city becomes rows of indices, rows become lines.

Rules it keeps:
- Every line is one valid JSON document in UTF-8 without a line feed; harmonyscores have 1 decimal, coordinates 6,
  confidence 2; `time` is RFC 3339 with microseconds.
- The sequence of a watcher has no gap: it is given here, to the reports that are really made.
- `truth_heads` tells of the same rows what ground truth needs, without the closing brace.

`python -m harmonywatch.fleet.render --bench` measures it on one core, with and without ground truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from harmonywatch.fleet import watchers as fly
from harmonywatch.fleet.citizens import other_spelling
from harmonywatch.fleet.city import CITIZENS_MAX, UTTERANCES_MAX, Block, City
from harmonywatch.fleet.pieces import Pieces, Rows
from harmonywatch.fleet.plan import watcher_id
from harmonywatch.report.words import identity_of

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SCHEMA_VERSION = 1
MINUTE_US = 60_000_000
WIDTH_BEFORE_CITIZENS = 22
WIDTH = WIDTH_BEFORE_CITIZENS + 3 * CITIZENS_MAX + UTTERANCES_MAX
TRUTH_WIDTH = 9
SHELF_SIZE = 8192


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


@dataclass(frozen=True)
class Rendering:
    """A block made into rows, all but its times; `watcher` of each row, `bad` (JSON) only of rows that have any."""

    rows: Rows
    watcher: Ints
    bad: dict[int, bytes]


class Renderer:
    """Renders the blocks of one city. `run` is the tag inside each report_id."""

    def __init__(self, city: City, forces: tuple[str, ...], run: str) -> None:
        self._city = city
        self._sequence = np.zeros(city.watchers.count, np.int64)
        self._pieces = pieces = Pieces()
        self._numbers = _Numbers(pieces)
        self._heads = pieces.add(_heads(city.watchers.count, forces, run))
        self._kits = pieces.add(_kits())
        self._forces = pieces.add(b'"force":%b,' % _json(force) for force in forces)
        self._no_bad = pieces.add([b'"bad":[]\n'])
        self._add_citizens()
        said = city.utterances.rendered
        self._said, self._said_last = pieces.add(u + b"," for u in said), pieces.add(u + b"]}\n" for u in said)
        self._sequences, self._minutes, self._bads = (pieces.shelf(SHELF_SIZE) for _ in range(3))
        pieces.seal()

    def _add_citizens(self) -> None:
        """One piece a citizen, and another for those whom a careless watcher spells otherwise."""
        citizens, pieces = self._city.citizens, self._pieces
        names, with_id = citizens.names(), citizens.with_id.tolist()
        self._citizens = pieces.add(_citizen(name, c, with_id[c]) for c, name in enumerate(names))
        self._careless = np.arange(citizens.count) + self._citizens
        blanks = citizens.with_blanks.tolist()
        spelled = [
            (c, other_spelling(name, blanks[c])) for c, name in enumerate(names) if blanks[c] or not name.isascii()
        ]
        first = pieces.add(_citizen(name, c, with_id[c]) for c, name in spelled)
        self._careless[[c for c, _ in spelled]] = first + np.arange(len(spelled))

    def prepare(self, block: Block, speaking: Flags) -> Rendering:
        """The rows of the watchers that speak; gives each its next sequence number. Valid until the next `prepare`."""
        for shelf in (self._sequences, self._minutes, self._bads):
            shelf.make_room(SHELF_SIZE // 2)
        here = np.flatnonzero(speaking)
        watcher = block.watcher[here]
        self._sequence[watcher] += 1
        rows = np.zeros((len(here), WIDTH), np.int32)
        if len(here):
            self._identify(rows, watcher)
            self._place(rows, block, here)
            self._people(rows, block, here)
            self._speech(rows, block, here)
        return Rendering(rows, watcher, self._bad(rows, block, here))

    def lines(self, rendering: Rendering, which: slice | Ints, times_us: Ints) -> list[bytes]:
        """The reports of some rows, `time` in microseconds since 1970."""
        rows = rendering.rows[which]
        if not len(rows):
            return []
        self._stamp(rows, times_us)
        rows[:, 6] += self._numbers.micro_in_report
        return self._pieces.texts(rows)

    def truth_heads(self, rendering: Rendering, which: slice | Ints, times_us: Ints) -> list[bytes]:
        """`{"watcher_id":..,"report_id":..,"time":..,"force":..,"bad":[..]` of the same rows; the writer closes it."""
        source = rendering.rows[which]
        if not len(source):
            return []
        rows = np.empty((len(source), TRUTH_WIDTH), np.int32)
        rows[:, :3] = source[:, :3]
        self._stamp(rows, times_us)
        rows[:, 6] += self._numbers.micro_in_truth
        rows[:, 7] = self._forces + self._city.watchers.force[rendering.watcher[which]]
        rows[:, 8] = self._no_bad
        if rendering.bad:
            places = np.arange(len(rendering.rows))[which].tolist()
            for i, place in enumerate(places):
                if place in rendering.bad:
                    rows[i, 8] = self._bads.index(b'"bad":%b\n' % rendering.bad[place])
        return self._pieces.texts(rows)

    def _identify(self, rows: Rows, watcher: Ints) -> None:
        n, sequence = self._numbers, self._sequence[watcher]
        thousands, rest = sequence // 1000, sequence % 1000
        rows[:, 0] = self._heads + watcher
        rows[:, 1] = self._sequences.indices(thousands, b"%03d")
        rows[:, 2] = n.padded_before_time + rest
        rows[:, 7] = np.where(thousands > 0, self._sequences.indices(thousands, b"%d"), 0)
        rows[:, 8] = np.where(thousands > 0, n.padded_before_lat, n.plain_before_lat) + rest

    def _stamp(self, rows: Rows, times_us: Ints) -> None:
        n = self._numbers
        minute, within = times_us // MINUTE_US, times_us % MINUTE_US
        low, high = int(minute.min()), int(minute.max())
        if low == high:
            rows[:, 3] = self._minutes.index(_minute(low))
        else:
            distinct, inverse = np.unique(minute, return_inverse=True)
            rows[:, 3] = np.array([self._minutes.index(_minute(m)) for m in distinct.tolist()])[inverse]
        rows[:, 4] = n.seconds + within // 1_000_000
        rows[:, 5] = n.padded + within // 1000 % 1000
        rows[:, 6] = within % 1000

    def _place(self, rows: Rows, block: Block, here: Ints) -> None:
        n, p, w = self._numbers, block.patrol, self._city.watchers
        for column, udeg, last in ((9, p.lat_udeg[here], n.padded_before_lon), (12, p.lon_udeg[here], n.padded)):
            size = np.abs(udeg)
            rows[:, column] = np.where(udeg < 0, n.degrees_negative, n.degrees) + size // 1_000_000
            rows[:, column + 1] = n.padded + size // 1000 % 1000
            rows[:, column + 2] = last + size % 1000
        watcher = block.watcher[here]
        model = w.model[watcher]
        rows[:, 15] = n.accuracy + p.accuracy_dm[here]
        rows[:, 16] = np.where(model == fly.CARELESS_MODEL, n.no_altitude, n.altitude + p.altitude_m[here])
        rows[:, 17] = n.heading + p.heading_deg[here]
        rows[:, 18] = n.speed + p.speed_dmps[here]
        rows[:, 19] = n.battery + p.battery_pct[here]
        rows[:, 20] = n.signal - p.signal_dbm[here]
        kit = (model * len(fly.FIRMWARE) + w.firmware[watcher]) * 2
        rows[:, 21] = self._kits + kit + (block.seen[here] == 0)

    def _people(self, rows: Rows, block: Block, here: Ints) -> None:
        n, seen = self._numbers, block.seen[here][:, None]
        careless = (self._city.watchers.model[block.watcher[here]] == fly.CARELESS_MODEL)[:, None]
        citizens, place = block.citizens[here], np.arange(CITIZENS_MAX)
        there, last = place < seen, place == seen - 1
        tail = np.where(last, n.confidence_last, n.confidence) + block.confidence_pct[here]
        part = rows[:, WIDTH_BEFORE_CITIZENS : WIDTH_BEFORE_CITIZENS + 3 * CITIZENS_MAX]
        part[:, 0::3] = np.where(careless, self._careless[citizens], citizens + self._citizens) * there
        part[:, 1::3] = (n.score + block.score_tenths[here]) * there
        part[:, 2::3] = tail * there

    def _speech(self, rows: Rows, block: Block, here: Ints) -> None:
        spoken, place = block.spoken[here][:, None], np.arange(UTTERANCES_MAX)
        first = np.where(place == spoken - 1, self._said_last, self._said)
        rows[:, -UTTERANCES_MAX:] = (first + block.heard[here]) * (place < spoken)

    def _bad(self, rows: Rows, block: Block, here: Ints) -> dict[int, bytes]:
        """The bad scores of each row that has any, as ground truth has them: place, name as sent, identity, score."""
        bad: dict[int, list[dict[str, Any]]] = {}
        for row, place in np.argwhere(block.bad()[here]).tolist():
            piece = self._pieces.piece(int(rows[row, WIDTH_BEFORE_CITIZENS + 3 * place]))
            citizen = msgspec.json.decode(b'{"name":' + piece + b"0}")
            identity = identity_of(citizen["name"], citizen.get("citizen_id"))
            score = int(block.score_tenths[here[row], place]) / 10
            entry = {"place": place, "name": citizen["name"], "identity": identity, "score": score}
            bad.setdefault(row, []).append(entry)
        return {row: _json(entries) for row, entries in bad.items()}


class _Numbers:
    """Where the tables of rendered numbers begin; a table's index is the number."""

    def __init__(self, pieces: Pieces) -> None:
        thousand = range(1000)
        self.padded = pieces.add(b"%03d" % i for i in thousand)
        self.padded_before_time = pieces.add(b'%03d","time":"' % i for i in thousand)
        self.padded_before_lat = pieces.add(b'%03d,"location":{"lat":' % i for i in thousand)
        self.plain_before_lat = pieces.add(b'%d,"location":{"lat":' % i for i in thousand)
        self.padded_before_lon = pieces.add(b'%03d,"lon":' % i for i in thousand)
        self.micro_in_report = pieces.add(b'%03dZ","sequence":' % i for i in thousand)
        self.micro_in_truth = pieces.add(b'%03dZ",' % i for i in thousand)
        self.seconds = pieces.add(b"%02d." % i for i in range(60))
        self.degrees = pieces.add(b"%d." % i for i in range(181))
        self.degrees_negative = pieces.add(b"-%d." % i for i in range(181))
        self.accuracy = pieces.add(b',"accuracy_m":%.1f' % (i / 10) for i in range(200))
        self.altitude = pieces.add(b',"altitude_m":%d}' % i for i in range(200))
        self.no_altitude = pieces.add([b"}"])
        self.heading = pieces.add(b',"heading_deg":%d' % i for i in range(360))
        self.speed = pieces.add(b',"speed_mps":%.1f' % (i / 10) for i in range(200))
        self.battery = pieces.add(b',"battery":%.2f' % (i / 100) for i in range(101))
        self.signal = pieces.add(b',"signal_dbm":%d' % -i for i in range(160))
        self.score = pieces.add(b'%.1f,"confidence":' % (i / 10) for i in range(1001))
        self.confidence = pieces.add(b'%.2f},{"name":' % (i / 100) for i in range(101))
        self.confidence_last = pieces.add(b'%.2f}],"words":[' % (i / 100) for i in range(101))


def _heads(watchers: int, forces: tuple[str, ...], run: str) -> list[bytes]:
    """`{"watcher_id":"north-00017","report_id":"north-00017-<run>-` of each watcher."""
    ids = [watcher_id(w, forces) for w in range(watchers)]
    return [b'{"watcher_id":%b,"report_id":%b' % (_json(i), _json(f"{i}-{run}-")[:-1]) for i in ids]


def _kits() -> list[bytes]:
    """What the model and firmware say of themselves, up to the first citizen (even) or without any (odd)."""
    kits = []
    for model in fly.MODELS:
        for firmware in fly.FIRMWARE:
            kit = b',"firmware":"%b","model":"%b","schema_version":%d,"citizens":[' % (
                firmware.encode(),
                model.encode(),
                SCHEMA_VERSION,
            )
            kits += [kit + b'{"name":', kit + b'],"words":[']
    return kits


def _citizen(name: str, citizen: int, with_id: bool) -> bytes:
    """From the value of `name` to where the score goes."""
    known = f',"citizen_id":"c-{citizen:06x}"' if with_id else ""
    return f'"{name}"{known},"harmonyscore":'.encode()


def _minute(minute: int) -> bytes:
    """`2026-11-23T18:04:` of a minute counted from 1970; numpy reaches 2106, and 1970, alike."""
    return str(np.datetime64(minute, "m")).encode() + b":"
