import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fourm_lite.errors import ConfigError
from fourm_lite.metrics.plots import COLOURS, plot_lines

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
