"""Lines of quality against a setting (decoding steps, rerank depth), as a PNG.

Drawn by matplotlib where it is installed, else by Pillow alone: a plot must not need an extra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fourm_lite.errors import ConfigError
from fourm_lite.io.files import replacing

Lines = Mapping[str, Sequence[tuple[float, float]]]

COLOURS = ("#1f6fb4", "#d9570f", "#2a8f3c", "#8e44ad", "#b8860b", "#555555")
SIZE = (720, 480)
MARGIN = (70, 40, 150, 60)  # left, top, right, bottom
TICKS = 5


def plot_lines(
    lines: Lines, path: str | Path, *, title: str, x_label: str, y_label: str, plain: bool = False
) -> Path:
    """Draws one line a name through its (x, y) points and writes a PNG.

    Args:
        lines: points by name
        path: where the PNG goes
        title: above the plot
        x_label: under it
        y_label: beside it
        plain: draws with Pillow even where matplotlib is installed

    Raises:
        ConfigError: there is no point to draw
    """
    if not lines or not all(lines.values()):
        raise ConfigError("every line needs at least one point to plot")
    target = Path(path)
    labels = (title, x_label, y_label)
    draw = _draw_plain if plain or find_spec("matplotlib") is None else _draw_matplotlib
    with replacing(target) as draft:
        draw(lines, draft, labels)
    return target


def _draw_matplotlib(lines: Lines, path: Path, labels: tuple[str, str, str]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure of its own, not pyplot: pyplot keeps global state and may ask for a display.
    figure = Figure(figsize=(7.2, 4.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (name, points), colour in zip(lines.items(), _colours(len(lines)), strict=True):
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name, color=colour)
    axes.set_title(labels[0])
    axes.set_xlabel(labels[1])
    axes.set_ylabel(labels[2])
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png")


def _draw_plain(lines: Lines, path: Path, labels: tuple[str, str, str]) -> None:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)
    xs = _range([x for points in lines.values() for x, _ in points])
    ys = _range([y for points in lines.values() for _, y in points])
    _draw_frame(pen, xs, ys, labels)
    for row, (name, colour) in enumerate(zip(lines, _colours(len(lines)), strict=True)):
        points = [_place(x, y, xs, ys) for x, y in sorted(lines[name])]
        if len(points) > 1:
            pen.line(points, fill=colour, width=2)
        for x, y in points:
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        top = MARGIN[1] + 18 * row
        pen.text((SIZE[0] - MARGIN[2] + 12, top), name, fill=colour)
    image.save(path, "PNG")


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
        pen.text((x, bottom + 8), f"{_at(xs, share):g}", fill="black", anchor="ma")
        pen.text((left - 8, y), f"{_at(ys, share):.3g}", fill="black", anchor="rm")
    title, x_label, y_label = labels
    pen.text(((left + right) / 2, 12), title, fill="black", anchor="ma")
    pen.text(((left + right) / 2, bottom + 30), x_label, fill="black", anchor="ma")
    pen.text((8, top - 16), y_label, fill="black")


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
