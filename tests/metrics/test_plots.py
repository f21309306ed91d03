import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fourm_lite.errors import ConfigError
from fourm_lite.metrics.plots import COLOURS, plot_lines, plot_panels

LINES = {"R@1": [(1, 0.2), (16, 0.4), (4, 0.3)], "R@5": [(1, 0.5)]}


@pytest.mark.parametrize("plain", [True, False])
def test_a_plot_shows_every_line_in_its_colour(tmp_path, plain):
    path = plot_lines(
        LINES, tmp_path / "deep" / "p.png", title="t", x_label="steps", y_label="R", plain=plain
    )

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(axis=1).sum() > 20


def test_a_line_without_points_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one point"):
        plot_lines({"a": []}, tmp_path / "p.png", title="", x_label="", y_label="")


def test_the_module_does_not_import_matplotlib():
    code = "import sys, fourm_lite.metrics.plots; print('matplotlib' in sys.modules)"

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert told.stdout.strip() == "False"


@pytest.mark.parametrize("plain", [True, False])
def test_a_plot_shows_intervals_from_an_axis_that_begins_at_0(tmp_path, plain):
    names = {"title": "t", "x_label": "steps", "y_label": "R", "plain": plain}

    bare = plot_lines({"a": [(1, 0.8), (2, 0.9)]}, tmp_path / "bare.png", **names)
    told = plot_lines({"a": [(1, 0.8, 0.2, 0.9), (2, 0.9, 0.8, 0.95)]}, tmp_path / "t.png", **names)

    first, second = (_rows_of(path, COLOURS[0]) for path in (bare, told))
    assert first[-1] < 240  # nothing near the axis at 0.8 of the way up
    assert second[-1] > first[-1] + 100  # the interval reaches down to 0.2


@pytest.mark.parametrize("plain", [True, False])
def test_values_of_two_kinds_have_a_panel_each(tmp_path, plain):
    panels = {"loss": {"training": [(1, 40.0), (2, 30.0)]}, "accuracy": {"training": [(1, 0.5)]}}

    path = plot_panels(panels, tmp_path / "p.png", title="t", x_label="epoch", plain=plain)

    with Image.open(path) as image:
        half = image.height // 2
    rows = _rows_of(path, COLOURS[0])
    assert rows[0] < half < rows[-1]


def _rows_of(path, colour):
    """The rows of pixels that hold a colour."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    with Image.open(path) as image:
        found = (np.asarray(image.convert("RGB"))[:, :560] == rgb).all(axis=2)
    return found.any(axis=1).nonzero()[0]
