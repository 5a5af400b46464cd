"""Charts as SVG text for pages: no network, no script, colours that follow the page's scheme; and pixels for
trackers.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.text_rules import visible

# Okabe and Ito's palette, distinct for any colour vision; without black and yellow, which dark and light pages hide.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MOST_POINTS = 400
_MOST_LABEL_CHARACTERS = 24
_INK = "#010203"  # a placeholder for the page's text colour, replaced in the finished SVG
_SHARPEST_SHADE = 0.55
_DRAWING = threading.Lock()  # matplotlib's settings are the process's, and trackers draw in their own threads


@dataclass(frozen=True, kw_only=True)
class Series:
    """A curve. y: None where a value is missing. number: of its colour. points: dots instead of a line."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    number: int = 0
    points: bool = False


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its interval."""

    mean: float
    low: float
    high: float


def line_chart(series: Sequence[Series], *, unit: str, logarithmic: bool = False) -> str:
    """Curves over optimizer steps. Long ones are drawn as means of bins (with a band from lowest to highest)."""
    with _figure(9.6, 2.9) as (figure, axes):
        lines = []
        for entry in series:
            color = COLORS[entry.number % len(COLORS)]
            if entry.points:
                lines += axes.plot(entry.x, _numbers(entry.y), "o--", color=color, markersize=5, linewidth=0.8)
                continue
            bins = binned(np.asarray(entry.x, dtype=float), _numbers(entry.y), most_points=_MOST_POINTS)
            if len(entry.x) > _MOST_POINTS:
                axes.fill_between(bins.x, bins.low, bins.high, color=color, alpha=0.2, linewidth=0)
            lines += axes.plot(bins.x, bins.mean, color=color, linewidth=1.5)
        axes.set_xlabel("step")
        axes.set_ylabel(_label(unit))
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter("")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        if len(series) > 1:
            # inside it would cover curves
            legend = figure.legend(lines, ["-"] * len(lines), frameon=False, fontsize=8, loc="outside right upper")
            for text, entry in zip(legend.get_texts(), series, strict=True):
                text.set_text(_label(entry.label))  # matplotlib leaves out labels that begin with `_`
        return _svg(figure)


def bar_chart(labels: Sequence[str], means: Sequence[float], spreads: Sequence[float | None], *, unit: str) -> str:
    """A bar for each label, with its spread where there is one."""
    with _figure(9.6, 0.6 + 0.36 * len(labels)) as (figure, axes):
        places = np.arange(len(labels))[::-1]
        axes.barh(places, means, xerr=[spread or 0.0 for spread in spreads], color=COLORS[0], ecolor=_INK, height=0.6)
        axes.set_yticks(places, [_label(label) for label in labels])
        axes.set_xlabel(_label(unit))
        return _svg(figure)


def interval_chart(rows: Mapping[str, Sequence[Interval | None]], names: Sequence[str], *, unit: str) -> str:
    """Shares with their intervals: a group of lines for each row, in it a line and colour for each of `names`.

    rows: a value from 0 to 1 for each name, None where it is missing.
    """
    height = 0.24 * len(names) + 0.14
    with _figure(9.6, 0.9 + height * len(rows)) as (figure, axes):
        lines = []
        for number, _ in enumerate(names):
            color = COLORS[number % len(COLORS)]
            known = [(group, values[number]) for group, values in enumerate(rows.values())]
            places = [-(group * height + number * 0.24) for group, value in known if value is not None]
            found = [value for _, value in known if value is not None]
            means = [value.mean for value in found]
            reach = [[value.mean - value.low for value in found], [value.high - value.mean for value in found]]
            lines.append(axes.errorbar(means, places, xerr=reach, fmt="o", color=color, markersize=5, capsize=3))
        middles = [-(group * height + 0.12 * (len(names) - 1)) for group in range(len(rows))]
        axes.set_yticks(middles, [_short(label) for label in rows])
        axes.grid(False, axis="y")
        axes.set_xlabel(_label(unit))
        axes.set_ylim(-(height * len(rows)) + 0.02, 0.26)
        axes.set_xlim(-0.02, 1.02)
        legend = figure.legend(lines, ["-"] * len(lines), frameon=False, fontsize=8, loc="outside right upper")
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(_short(name))
        return _svg(figure)


def heat_map(
    rows: Mapping[str, Sequence[float | None]], conditions: Sequence[str], own_conditions: Mapping[str, str]
) -> np.ndarray:
    """A condition matrix as uint8[height, width, 3]: each row shaded from its lowest value, each class's own outlined.

    rows: values of each class, one for each of `conditions`. own_conditions: of each class.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.patches import Rectangle

    with _figure(2.4 + 1.6 * len(conditions), 1.0 + 0.5 * len(rows)) as (figure, axes):
        axes.grid(False)
        axes.imshow([row_shades(values) for values in rows.values()], cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        axes.set_xticks(range(len(conditions)), [_short(condition or "no condition") for condition in conditions])
        axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
        axes.set_xlabel("nats per token of each class's answers, under each condition")
        for y, (name, values) in enumerate(rows.items()):
            for x, (value, condition) in enumerate(zip(values, conditions, strict=True)):
                axes.text(x, y, "-" if value is None else f"{value:.4f}", ha="center", va="center")
                if condition == own_conditions[name]:
                    axes.add_patch(
                        Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, fill=False, edgecolor=_INK, linewidth=1.5)
                    )
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(120)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            canvas.draw()
        return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def row_shades(values: Sequence[float | None]) -> list[float]:
    """Shades of one row, from its lowest to its highest value: rows differ in level, and only columns are compared."""
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = high - low or 1.0
    return [0.0 if value is None else _SHARPEST_SHADE * (value - low) / span for value in values]


def _label(text: str) -> str:
    """A text from data in a picture: in one line, and nothing of it hidden."""
    return visible(text, kept="")


def _short(text: str) -> str:
    text = _label(text)
    return text if len(text) <= _MOST_LABEL_CHARACTERS else text[: _MOST_LABEL_CHARACTERS - 3] + "..."


def as_file(svg: str) -> str:
    """A picture of a page as the text of an SVG file."""
    return svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    import matplotlib
    from matplotlib.figure import Figure

    colors = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "ochat-train",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.parse_math": False,
        **colors,
    }
    with _DRAWING, matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        yield figure, axes


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # of scripts that matplotlib's own font lacks: the browser has them
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # HTML needs no namespaces, and the page names no address
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    return text.replace("xlink:href", "href").replace(_INK, "currentColor")


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


@dataclass(frozen=True, kw_only=True)
class Bins:
    """A long curve in few points: float64[n] each. x: where a bin starts."""

    x: np.ndarray
    low: np.ndarray
    mean: np.ndarray
    high: np.ndarray


def binned(x: np.ndarray, y: np.ndarray, *, most_points: int) -> Bins:
    """A curve as at most `most_points` bins of consecutive points; NaN in y is skipped."""
    known = ~np.isnan(y)
    x, y = x[known], y[known]
    if not len(x):
        return Bins(x=x, low=y, mean=y, high=y)
    starts = np.unique(np.linspace(0, len(x), min(most_points, len(x)), endpoint=False).astype(int))
    sizes = np.diff([*starts, len(x)])
    return Bins(
        x=x[starts],
        low=np.minimum.reduceat(y, starts),
        mean=np.add.reduceat(y, starts) / sizes,
        high=np.maximum.reduceat(y, starts),
    )
