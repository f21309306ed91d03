"""What the demo searches: the user's photos, or photos inside installed packages and drawings."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from fourm_lite.demo.drawings import drawings
from fourm_lite.errors import ConfigError

# Photographs that come with packages which many environments hold: (package, folder).
_INSTALLED = (("sklearn", "datasets/images"), ("skimage", "data"))
_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"})


def make_gallery(photos: Path | None, folder: Path, *, num_drawings: int = 60) -> Path:
    """A folder of pictures: `photos` itself, or one that is filled here.

    Raises:
        ConfigError: `photos` holds no picture
    """
    if photos is not None:
        if not photos.is_dir() or not any(p.suffix.lower() in _PICTURES for p in photos.rglob("*")):
            raise ConfigError(f"--photos expects a folder with pictures, got {photos}")
        return photos
    folder.mkdir(parents=True, exist_ok=True)
    for source in installed_photos():
        shutil.copyfile(source, folder / source.name)
    for drawing in drawings(num_drawings):
        drawing.picture.save(folder / drawing.name)
    return folder


def installed_photos() -> list[Path]:
    """Photographs inside installed packages."""
    found: list[Path] = []
    for package, below in _INSTALLED:
        spec = find_spec(package)
        for root in spec.submodule_search_locations or [] if spec else []:
            place = Path(root) / below
            found += sorted(p for p in place.glob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    return found
