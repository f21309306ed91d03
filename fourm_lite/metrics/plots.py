"""Lines of quality against a setting (decoding steps, rerank depth), as a PNG.

Axes of values begin at 0, so that a difference looks as large as it is; values with an interval
show it. Drawn by matplotlib where it is installed, else by Pillow: a plot must not need an extra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fourm_lite.errors import ConfigError
from fourm_lite.io.files import replacing
from fourm_lite.modalities.legend import font

Lines = Mapping[str, Sequence[tuple[float, ...]]]
"""Name -> points (x, y), or (x, y, low, high) with the interval of y."""

COLOURS = ("#1f6fb4", "#d9570f", "#2a8f3c", "#8e44ad", "#b8860b", "#555555")
SIZE = (720, 480)
MARGIN = (70, 40, 150, 60)  # left, top, right, bottom
TICKS = 5


def plot_lines(
    lines: Lines, path: str | Path, *, title: str, x_label: str, y_label: str, plain: bool = False
) -> Path:
    """Draws one line a name through its points and writes a PNG; see `plot_panels`."""
    return plot_panels({y_label: lines}, path, title=title, x_label=x_label, plain=plain)


def plot_panels(
    panels: Mapping[str, Lines],
    path: str | Path,
    *,
    title: str,
    x_label: str,
    plain: bool = False,
) -> Path:
    """Draws lines into panels below each other, one for each kind of value, and writes a PNG.

    Args:
        panels: lines by what their values are, such as "loss" and "accuracy"
        path: where the PNG goes
        title: above the plot
        x_label: under it
        plain: draws with Pillow even where matplotlib is installed

    Raises:
        ConfigError: there is no point to draw
    """
    if not panels or not all(lines and all(lines.values()) for lines in panels.values()):
        raise ConfigError("every line needs at least one point to plot")
    target = Path(path)
    draw = _draw_plain if plain or find_spec("matplotlib") is None else _draw_matplotlib
    with replacing(target) as draft:
        draw(panels, draft, (title, x_label))
    return target


def _draw_matplotlib(panels: Mapping[str, Lines], path: Path, labels: tuple[str, str]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure of its own, not pyplot: pyplot keeps global state and may ask for a display.
    figure = Figure(figsize=(7.2, 1.2 + 3.6 * len(panels)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(labels[0])
    for axes, (y_label, lines) in zip(
        figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels.items(), strict=True
    ):
        for (name, points), colour in zip(lines.items(), _colours(len(lines)), strict=True):
            x, y, below, above = zip(*map(_bars, sorted(points)), strict=True)
            axes.errorbar(
                x, y, yerr=(below, above), marker="o", capsize=3, label=name, color=colour
            )
        axes.set_ylabel(y_label)
        axes.set_ylim(_heights(lines))
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    axes.set_xlabel(labels[1])
    figure.savefig(path, format="png")


def _bars(point: tuple[float, ...]) -> tuple[float, float, float, float]:
    """A point with how far its interval reaches below and above it."""
    x, y, *interval = point
    low, high = interval or (y, y)
    return x, y, max(y - low, 0.0), max(high - y, 0.0)


def _heights(lines: Lines) -> tuple[float, float]:
    """From 0, or from below it where a value is, to a little above the highest interval."""
    values = [v for points in lines.values() for point in points for v in point[1:]]
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.05 * (high - low) or 0.5
    return (low - room if low < 0 else low, high + room)


def _draw_plain(panels: Mapping[str, Lines], path: Path, labels: tuple[str, str]) -> None:
    from PIL import Image

    sheet = Image.new("RGB", (SIZE[0], SIZE[1] * len(panels)), "white")
    for number, (y_label, lines) in enumerate(panels.items()):
        sheet.paste(_panel(lines, (*labels, y_label)), (0, number * SIZE[1]))
    sheet.save(path, "PNG")


def _panel(lines: Lines, labels: tuple[str, str, str]) -> Any:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)
    xs, ys = _range([point[0] for points in lines.values() for point in points]), _heights(lines)
    _draw_frame(pen, xs, ys, labels)
    for row, (name, colour) in enumerate(zip(lines, _colours(len(lines)), strict=True)):
        points = sorted(lines[name])
        places = [_place(x, y, xs, ys) for x, y, *_ in points]
        if len(places) > 1:
            pen.line(places, fill=colour, width=2)
        for (x, y), (left, value, below, above) in zip(places, map(_bars, points), strict=True):
            ends = [_place(left, value + by, xs, ys) for by in (-below, above)]
            pen.line(ends, fill=colour, width=1)
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        top = MARGIN[1] + 18 * row
        pen.text((SIZE[0] - MARGIN[2] + 12, top), name, fill=colour, font=font())
    return image


def _draw_frame(
    pen: Any, xs: tuple[float, float], ys: tuple[float, float], labels: tuple[str, str, str]
) -> None:
    left, top, right, bottom = MARGIN[0], MARGIN[1], SIZE[0] - MARGIN[2], SIZE[1] - MARGIN[3]
    pen.rectangle([left, top, right, bottom], outline="black")
    for step in range(TICKS):
        share = step / (TICKS - 1)
        x, y = left + share * (right - left), bottom - share * (bottom - top)
        pen.line([x, bottom, x, bottom + 4], fill="black")
        pen.line([left - 4, y, left, y], fill="black")
        pen.text((x, bottom + 8), f"{_at(xs, share):g}", fill="black", anchor="ma", font=font())
        pen.text((left - 8, y), f"{_at(ys, share):.3g}", fill="black", anchor="rm", font=font())
    title, x_label, y_label = labels
    middle = (left + right) / 2
    pen.text((middle, 12), title, fill="black", anchor="ma", font=font())
    pen.text((middle, bottom + 30), x_label, fill="black", anchor="ma", font=font())
    pen.text((8, top - 18), y_label, fill="black", font=font())


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _at(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + share * (bounds[1] - bounds[0])


def _place(
    x: float, y: float, xs: tuple[float, float], ys: tuple[float, float]
) -> tuple[float, float]:
    left, top, right, bottom = MARGIN[0], MARGIN[1], SIZE[0] - MARGIN[2], SIZE[1] - MARGIN[3]
    across, up = (x - xs[0]) / (xs[1] - xs[0]), (y - ys[0]) / (ys[1] - ys[0])
    return left + across * (right - left), bottom - up * (bottom - top)


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
