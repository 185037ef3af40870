"""Charts with two axes of numbers: figures over a field, dollars against hours, predicted against measured.

Series are told apart by the shape of their points and their dashes as well as by colour, and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from explorer import vega
from explorer.vega import Row, Spec

# Okabe and Ito's, told apart with any colour vision.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
KINDS = ("on the front", "beaten", "outside the limits")
_POINT = {"filled": True, "size": 80, "opacity": 0.85}


@dataclass(frozen=True, slots=True)
class Curve:
    """A named series of points."""

    name: str
    points: tuple[tuple[float, float], ...]


def curves(
    lines: Sequence[Curve], x_title: str, y_title: str, limit: float | None = None, limit_name: str = ""
) -> None:
    """Lines over a field whose values double; a limit is a rule with its name on it."""
    rows = [
        {"x": x, "y": y, "series": line.name, x_title: f"{x:g}", y_title: f"{y:,.4g}"}
        for line in lines
        for x, y in line.points
    ]
    names = [line.name for line in lines]
    ticks = sorted({x for line in lines for x, _ in line.points})
    x = vega.number("x", title=x_title, scale={"type": "log", "base": 2}, axis={"values": ticks, "format": "d"})
    y = vega.number("y", title=y_title, scale={"zero": True})
    colour, shape = _series("series", names, PALETTE), _series("series", names, SHAPES)
    tooltip = vega.tip(("series", x_title, y_title))
    layers = [
        vega.layer(
            *(rows, "line", {"strokeWidth": 2}),
            x=x,
            y=y,
            color=colour,
            strokeDash=_series("series", names, DASHES) | {"legend": None},
        ),
        vega.layer(rows, "point", _POINT, x=x, y=y, color=colour, shape=shape, tooltip=tooltip),
    ]
    if limit is not None:
        ruled = [{"y": limit, "text": f"{limit_name} {limit:,.2f}"}]
        look = {"align": "left", "dx": 4, "dy": -7, "color": vega.ink()}
        layers.append(vega.layer(ruled, "rule", {"color": vega.LINE, "strokeWidth": 2}, y=y))
        layers.append(vega.layer(ruled, "text", look, x={"value": 0}, y=y, text={"field": "text"}))
    words = "; ".join(f"{line.name}: {', '.join(f'{y:,.3g} at {x:g}' for x, y in line.points)}" for line in lines)
    vega.show(layers, 320, words)


def _series(field: str, names: Sequence[str], values: Sequence[object], columns: int = 2) -> Spec:
    """A channel that tells series apart, with one legend for all of them."""
    taken = [values[number % len(values)] for number in range(len(names))]
    legend = {"title": None, "orient": "bottom", "columns": columns, "labelLimit": 260}
    return vega.name(field, scale={"domain": list(names), "range": taken}, legend=legend)


def front(rows: Sequence[Row], words: str) -> None:
    """Dollars against hours: a front, joined by a line, and what it beats. Rows: hours, usd, kind and words."""
    x = vega.number("hours", title="hours of the run", scale={"type": "log"})
    y = vega.number("usd", title="US dollars of the run", scale={"type": "log"})
    colour = _series("kind", KINDS, (PALETTE[0], vega.LINE, PALETTE[1]), 3)
    shape = _series("kind", KINDS, ("diamond", "circle", "cross"), 3)
    tooltip = vega.tip(("cards", "provider", "time", "dollars", "price", "memory", "why"))
    best = [row for row in rows if row["kind"] == KINDS[0]]
    look = {"align": "left", "dx": 8, "dy": -8, "color": vega.ink()}
    vega.show(
        [
            vega.layer(rows, "point", _POINT, x=x, y=y, color=colour, shape=shape, tooltip=tooltip),
            vega.layer(
                best, "line", {"color": PALETTE[0], "strokeWidth": 1.5}, x=x, y=y, order=vega.number("hours")
            ),
            vega.layer(best, "text", look, x=x, y=y, text={"field": "label"}),
        ],
        420,
        words,
    )


def scatter(rows: Sequence[Row], unit: str, words: str) -> None:
    """Predicted against measured, both axes alike; on the line they agree. Rows: measured, predicted, words."""
    sources = list(dict.fromkeys(str(row["source"]) for row in rows))
    sizes = [row[name] for row in rows for name in ("measured", "predicted")]
    ends = [min(sizes) * 0.9, max(sizes) * 1.1]
    scale = {"type": "log", "domain": ends, "nice": False}
    x = vega.number("measured", title=f"measured [{unit}]", scale=scale)
    y = vega.number("predicted", title=f"predicted [{unit}]", scale=scale)
    # a second round of the colours comes with other shapes
    shapes = [SHAPES[(place + place // len(PALETTE)) % len(SHAPES)] for place in range(len(sources))]
    colour, shape = _series("source", sources, PALETTE), _series("source", sources, shapes)
    fields = (
        "source",
        "file",
        "row",
        "model",
        "method",
        "metric",
        "prediction",
        "measurement",
        "error",
        "in interval",
    )
    equal = [{"measured": end, "predicted": end} for end in ends]
    vega.show(
        [
            vega.layer(equal, "line", {"color": vega.LINE, "strokeDash": [4, 4]}, x=x, y=y),
            vega.layer(rows, "point", _POINT, x=x, y=y, color=colour, shape=shape, tooltip=vega.tip(fields)),
        ],
        460,
        words,
    )
