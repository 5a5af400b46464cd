"""Charts as SVG text for pages: no network, no script, colours that follow the page's scheme; and pixels for
trackers.
"""

from __future__ import annotations

import io
import re
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.text_rules import visible_line
from ochat_train.report.curves import binned, smoothed
from ochat_train.report.heat import HEAT_STEPS, row_shades
from ochat_train.suites.intervals import Estimate

# Okabe and Ito's palette, distinct for any colour vision; without black and yellow, which dark and light pages hide.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MOST_POINTS = 400
_DECADE = 10
_STYLES = ("-", "--", ":", "-.")  # of a seventh curve and those after it
_TRACKER_CHARACTERS = 24
_INK = "#010203"  # a placeholder for the page's text colour, replaced in the finished SVG
_DRAWING = threading.Lock()  # matplotlib's settings are the process's, and trackers draw in their own threads


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One chart as two SVG texts, for wide screens and for phones: a page shows the one that fits."""

    wide: str
    narrow: str


@dataclass(frozen=True, kw_only=True)
class _Screen:
    """What a drawing is for. width: inches. label_characters: of a name, longer ones are shortened."""

    name: str
    width: float
    label_characters: int

    @property
    def is_wide(self) -> bool:
        return self.name == "wide"


_WIDE = _Screen(name="wide", width=9.6, label_characters=48)
_NARROW = _Screen(name="narrow", width=4.1, label_characters=44)


@dataclass(frozen=True, kw_only=True)
class Series:
    """A curve. y: None where a value is missing. number: of its colour. points: dots instead of a line. is_noisy: drawn
    as a moving mean, with the curve itself faint behind it.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    number: int = 0
    points: bool = False
    is_noisy: bool = True


def line_chart(series: Sequence[Series], *, unit: str, logarithmic: bool = False) -> Picture:
    """Curves over optimizer steps. Long ones are drawn as means of bins (with a band from lowest to highest)."""
    return _on_screens(lambda screen: _line_chart(series, screen, unit=unit, logarithmic=logarithmic))


def bar_chart(labels: Sequence[str], means: Sequence[float], spreads: Sequence[float | None], *, unit: str) -> Picture:
    """A bar for each label, with its value, and its spread where there is one."""
    return _on_screens(lambda screen: _bar_chart(labels, means, spreads, screen, unit=unit))


def interval_chart(rows: Mapping[str, Sequence[Estimate | None]], names: Sequence[str], *, unit: str) -> Picture:
    """Shares with their intervals: a group of lines for each row, in it a line and colour for each of `names`.

    rows: a value from 0 to 1 for each name, None where it is missing.
    """
    return _on_screens(lambda screen: _interval_chart(rows, names, screen, unit=unit))


def _on_screens(draw: Callable[[_Screen], str]) -> Picture:
    return Picture(wide=draw(_WIDE), narrow=draw(_NARROW))


def _line_chart(series: Sequence[Series], screen: _Screen, *, unit: str, logarithmic: bool) -> str:
    has_legend = len(series) > 1
    below = 0.2 * len(series) if has_legend and not screen.is_wide else 0.0
    with _figure(screen, 2.9 + below) as (figure, axes):
        lines = [_draw(axes, entry) for entry in series]
        axes.set_xlabel("step")
        axes.set_ylabel(visible_line(unit))
        if logarithmic:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            if high / low > _DECADE:  # else there may be no other number on the axis
                axes.yaxis.set_minor_formatter("")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        if has_legend:
            # inside it would cover curves
            place = "outside right upper" if screen.is_wide else "outside lower left"
            legend = figure.legend(lines, ["-"] * len(lines), frameon=False, fontsize=8, loc=place)
            for text, entry in zip(legend.get_texts(), series, strict=True):
                # matplotlib leaves out labels that begin with `_`
                text.set_text(_short(entry.label, screen.label_characters))
        return _svg(figure)


def _draw(axes: Any, entry: Series) -> Any:
    """Draw a curve; its line, for the legend."""
    color = COLORS[entry.number % len(COLORS)]
    style = _STYLES[entry.number // len(COLORS) % len(_STYLES)]
    x, y = np.asarray(entry.x, dtype=float), _numbers(entry.y)
    if entry.points:
        return axes.plot(x, y, "o--", color=color, markersize=5, linewidth=0.8)[0]
    bins = binned(x, y, most_points=_MOST_POINTS)
    if len(entry.x) > _MOST_POINTS:
        axes.fill_between(bins.x, bins.low, bins.high, color=color, alpha=0.2, linewidth=0)
    mean = smoothed(bins.mean) if entry.is_noisy else bins.mean
    if not np.array_equal(mean, bins.mean):
        axes.plot(bins.x, bins.mean, color=color, linewidth=0.8, alpha=0.35)
    marker = "o" if len(bins.x) == 1 else ""  # a line needs two points
    return axes.plot(bins.x, mean, color=color, linewidth=1.6, linestyle=style, marker=marker)[0]


def _bar_chart(
    labels: Sequence[str], means: Sequence[float], spreads: Sequence[float | None], screen: _Screen, *, unit: str
) -> str:
    names = [_wrapped(label, screen) for label in labels]
    lines = sum(name.count("\n") + 1 for name in names)
    with _figure(screen, 0.6 + 0.36 * len(labels) + 0.1 * (lines - len(labels))) as (figure, axes):
        places = np.arange(len(labels))[::-1]
        known = [spread or 0.0 for spread in spreads]
        axes.barh(places, means, xerr=known, color=COLORS[0], ecolor=_INK, height=0.6)
        for place, mean, spread in zip(places, means, known, strict=True):
            axes.annotate(_value(mean), (mean + spread, place), (4, 0), textcoords="offset points", va="center")
        axes.margins(x=0.12 if screen.is_wide else 0.25)
        axes.set_xlim(left=min(0.0, *means))
        axes.set_yticks(places, names)
        axes.set_xlabel(visible_line(unit) if screen.is_wide else textwrap.fill(visible_line(unit), 50))
        return _svg(figure)


def _interval_chart(
    rows: Mapping[str, Sequence[Estimate | None]], names: Sequence[str], screen: _Screen, *, unit: str
) -> str:
    height = 0.24 * len(names) + 0.14
    below = 0.0 if screen.is_wide else 0.2 * len(names)
    with _figure(screen, 0.9 + below + height * len(rows)) as (figure, axes):
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
        axes.set_yticks(middles, [_wrapped(label, screen) for label in rows])
        axes.grid(False, axis="y")
        axes.set_xlabel(visible_line(unit))
        axes.set_ylim(-(height * len(rows)) + 0.02, 0.26)
        axes.set_xlim(-0.02, 1.02)
        place = "outside right upper" if screen.is_wide else "outside lower left"
        legend = figure.legend(lines, ["-"] * len(lines), frameon=False, fontsize=8, loc=place)
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(_short(name, screen.label_characters))
        return _svg(figure)


def _value(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"


def _wrapped(label: str, screen: _Screen) -> str:
    text = _short(label, screen.label_characters)
    return text if screen.is_wide else textwrap.fill(text, 17)


def heat_map(
    rows: Mapping[str, Sequence[float | None]], conditions: Sequence[str], own_conditions: Mapping[str, str]
) -> np.ndarray:
    """A condition matrix as uint8[height, width, 3], with the colours of `heat.py`; each class's own is outlined.

    rows: values of each class, one for each of `conditions`. own_conditions: of each class.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.patches import Rectangle

    screen = _Screen(name="tracker", width=2.4 + 1.6 * max(2, len(conditions)), label_characters=_TRACKER_CHARACTERS)
    with _figure(screen, 1.3 + 0.5 * len(rows)) as (figure, axes):
        axes.grid(False)
        axes.imshow([row_shades(values) for values in rows.values()], cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        most = screen.label_characters
        axes.set_xticks(range(len(conditions)), [_short(condition or "no condition", most) for condition in conditions])
        axes.set_yticks(range(len(rows)), [_short(name, most) for name in rows])
        edges = ", ".join(f"{step.least:g}" for step in HEAT_STEPS[1:])
        axes.set_xlabel(
            f"nats per token of each class's answers, under each condition\ncolours from {edges} above "
            "the lowest of the row"
        )
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


def _short(text: str, most_characters: int) -> str:
    text = visible_line(text)
    return text if len(text) <= most_characters else text[: most_characters - 3] + "..."


def as_file(picture: Picture) -> str:
    """A picture of a page as the text of an SVG file."""
    return picture.wide.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)


@contextmanager
def _figure(screen: _Screen, height: float) -> Iterator[tuple[Any, Any]]:
    import matplotlib
    from matplotlib.figure import Figure

    colors = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"ochat-train {screen.name}",  # ids of both drawings are on one page
        "font.family": "sans-serif",
        "font.size": 9,
        "text.parse_math": False,
        **colors,
    }
    with _DRAWING, matplotlib.rc_context(settings):
        figure = Figure(figsize=(screen.width, height), layout="constrained")
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
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    return text.replace("xlink:href", "href").replace(_INK, "currentColor")


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
