"""A saved question's answer as a picture: the chart of its header, drawn by Vega-Lite, to PNG, SVG or HTML by suffix.

Everything is drawn on this machine: no tile, font or script is fetched, and the HTML carries its scripts within. A map
is the H3 cells as polygons, in a projection fitted to them, with a scale bar, since there is no street to judge by.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from harmonywatch.analysis.contract import QueryError
from harmonywatch.analysis.formats import plain_column
from harmonywatch.analysis.questions import Question

SUFFIXES = (".png", ".svg", ".html")
PIXELS_PER_POINT = 2.0
ROWS_MAX = 20_000
"""More marks than this no eye can tell apart, and the renderer's time grows with each."""

WIDTH, HEIGHT = 640, 380
MAP_SIZE = 560
BAND_HEIGHT = 18

STYLE: dict[str, Any] = {
    "font": "DejaVu Sans, Arial, sans-serif",
    "background": "#ffffff",
    "title": {"anchor": "start", "fontSize": 18, "subtitleFontSize": 12, "subtitleColor": "#555", "offset": 14,
              "subtitlePadding": 6},
    "axis": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "#e6e6e6",
             "domainColor": "#999", "tickColor": "#999", "labelLimit": 190},
    "legend": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "titleLimit": 220},
    "view": {"stroke": None},
    "bar": {"color": "#2f6db3"},
    "line": {"color": "#2f6db3", "strokeWidth": 2, "strokeJoin": "round", "point": {"size": 18}},
    "point": {"color": "#2f6db3", "filled": True, "opacity": 0.7},
    "geoshape": {"stroke": "#ffffff", "strokeWidth": 0.4},
}  # fmt: skip


class PlotError(QueryError):
    """The answer cannot be drawn as asked; the message says what would do."""


def draw(asked: Question, answer: pa.Table, values: Mapping[str, object], target: Path) -> None:
    """Draws the answer of `asked` into `target`. `values`: the parameters it was asked with, for the subtitle.

    Raises PlotError for another suffix or too many rows, OSError where the file cannot be written.
    """
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        raise PlotError(
            f"a plot is written to {', '.join(SUFFIXES)}, not to {target.suffix or 'a file without suffix'}"
        )
    chart = spec(asked, answer, values)
    import vl_convert as vl  # type: ignore[import-untyped,unused-ignore]

    if suffix == ".png":
        target.write_bytes(vl.vegalite_to_png(chart, scale=PIXELS_PER_POINT))
    elif suffix == ".svg":
        target.write_text(vl.vegalite_to_svg(chart), "utf-8")
    else:
        target.write_text(vl.vegalite_to_html(chart, bundle=True), "utf-8")


def spec(asked: Question, answer: pa.Table, values: Mapping[str, object]) -> dict[str, Any]:
    """The Vega-Lite specification with its data in it: built and checked by altair. Raises PlotError."""
    import altair as alt

    chart = dict(copy.deepcopy(asked.chart))
    top = chart.pop("top", None)
    rows = _rows(answer.slice(0, top) if top else answer)
    if len(rows) > ROWS_MAX:
        raise PlotError(f"{len(rows)} rows are too many to draw; the limit is {ROWS_MAX}: ask for fewer")
    drawn = _cells(chart, rows) if chart["mark"] == "cells" else _plain_chart(chart, rows)
    shown = f" (the first {top} of {answer.num_rows})" if top and answer.num_rows > top else ""
    if not rows:
        shown = " (there is nothing to draw)"
    title = {"text": asked.title + shown, "subtitle": [_sentence(asked), _subtitle(values)]}
    whole = {"$schema": alt.SCHEMA_URL, "title": title, "config": STYLE, **drawn}
    return dict(alt.Chart.from_dict(whole).to_dict(validate=True, format="vega-lite", context={"pre_transform": False}))


def _sentence(asked: Question) -> str:
    return asked.sentence if len(asked.sentence) <= 110 else asked.sentence[:109].rstrip() + "…"


def _subtitle(values: Mapping[str, object]) -> str:
    """`2026-11-16 10:00 to 2026-11-23 10:00 UTC · least 5`."""
    rest = {name: value for name, value in values.items() if name not in ("since", "until")}
    parts = [f"{name} {value}" for name, value in rest.items()]
    if "since" in values and "until" in values:
        parts.insert(0, f"{_minute(values['since'])} to {_minute(values['until'])} UTC")
    return " · ".join(parts)


def _minute(value: object) -> str:
    return str(value)[:16].replace("T", " ")


def _rows(answer: pa.Table) -> list[dict[str, Any]]:
    names = answer.schema.names
    columns = [plain_column(answer[name].combine_chunks()) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _plain_chart(chart: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    encodings = {name: _channel(name, channel) for name, channel in chart.items() if name != "mark"}
    bands = encodings.get("y", {}).get("type") in ("nominal", "ordinal")
    columns = [encodings[name]["field"] for name in encodings]
    for name in ("x", "y"):
        channel = encodings.get(name, {})
        if channel.get("type") == "quantitative" and all(isinstance(row[channel["field"]], int) for row in rows):
            channel["axis"] = {**channel.get("axis", {}), "tickMinStep": 1}  # there is no 1.5th alert
    mark: dict[str, Any] = {"type": chart["mark"]}
    return {
        "data": {"values": [{name: row[name] for name in columns} for row in rows]},
        "mark": mark,
        "encoding": {**encodings, "tooltip": [{"field": name} for name in dict.fromkeys(columns)]},
        "width": WIDTH,
        "height": {"step": BAND_HEIGHT} if bands and rows else HEIGHT,
    }


def _channel(name: str, channel: dict[str, Any]) -> dict[str, Any]:
    """The header's short forms as Vega-Lite has them."""
    scale: dict[str, Any] = {}
    for short in ("scheme", "domain", "zero"):
        if short in channel:
            scale[short] = channel.pop(short)
    if channel.get("type") == "temporal":
        scale["type"] = "utc"
        channel["axis"] = {"format": "%d %b %H:%M", "labelAngle": -35, "labelOverlap": True}
    elif name == "x" and channel.get("type") in ("ordinal", "nominal"):
        channel["axis"] = {"labelAngle": 0}
    if "format" in channel:
        channel["axis"] = {**channel.get("axis", {}), "format": channel.pop("format")}
    return {**channel, **({"scale": scale} if scale else {})}


def _cells(chart: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    colour = chart["colour"]
    features = [_feature(row, chart["cell"]) for row in rows if row[chart["cell"]]]
    scale: dict[str, Any] = {"scheme": colour.get("scheme", "orangered")}
    if "domain" in colour:
        scale |= {"domain": colour["domain"], "clamp": True}
    tooltip = [{"field": f"properties.{name}", "title": name} for name in (rows[0] if rows else ())]
    cells = {
        "data": {"values": features},
        "mark": {"type": "geoshape"},
        "encoding": {
            "color": {"field": f"properties.{colour['field']}", "type": "quantitative", "title": colour["title"],
                      "scale": scale},
            "tooltip": tooltip,
        },
    }  # fmt: skip
    projection = {"type": "mercator"}
    layers = [cells, *_scale_bar(features)]
    return {"layer": layers, "projection": projection, "width": MAP_SIZE, "height": MAP_SIZE}


def _feature(row: Mapping[str, Any], cell_column: str) -> dict[str, Any]:
    """A cell as GeoJSON. The ring runs clockwise: the renderer fills the other side of one that does not."""
    import h3  # type: ignore[import-untyped,unused-ignore]

    ring = [[lon, lat] for lat, lon in h3.cell_to_boundary(row[cell_column])]
    west = min(lon for lon, _ in ring)
    ring = [[lon - 360 if lon - west > 180 else lon, lat] for lon, lat in ring]
    if sum((b[0] - a[0]) * (b[1] + a[1]) for a, b in zip(ring, ring[1:] + ring[:1], strict=True)) < 0:
        ring.reverse()
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
        "properties": dict(row),
    }


METRES_PER_DEGREE = 111_195.0
BAR_LENGTHS_M = tuple(lead * 10**power for power in range(1, 8) for lead in (1, 2, 5))


def _scale_bar(features: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A bar of about a quarter of the map's width below it, with its length, and north up."""
    corners = [corner for feature in features for corner in feature["geometry"]["coordinates"][0]]
    if not corners:
        return []
    west, east = min(lon for lon, _ in corners), max(lon for lon, _ in corners)
    south, north = min(lat for _, lat in corners), max(lat for _, lat in corners)
    metre = 1 / (METRES_PER_DEGREE * max(0.01, math.cos(math.radians(south))))
    wanted = (east - west) / metre / 4
    length_m = max((each for each in BAR_LENGTHS_M if each <= wanted), default=BAR_LENGTHS_M[0])
    lat = south - (north - south) * 0.05
    label = f"{length_m // 1000} km" if length_m >= 1000 else f"{length_m} m"
    end = west + length_m * metre
    line = {"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[west, lat], [end, lat]]}}
    return [
        {"data": {"values": [line]}, "mark": {"type": "geoshape", "filled": False, "stroke": "#333", "strokeWidth": 2}},
        {
            "data": {"values": [{"lon": end, "lat": lat, "label": f"{label} · north is up"}]},
            "mark": {"type": "text", "align": "left", "dx": 8, "color": "#333", "fontSize": 11},
            "encoding": {
                "longitude": {"field": "lon", "type": "quantitative"},
                "latitude": {"field": "lat", "type": "quantitative"},
                "text": {"field": "label"},
            },
        },
    ]
