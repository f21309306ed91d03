"""What the demo searches, and what it asks for: the user's photos, or photos inside installed
packages and drawings.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fourm_lite.demo.drawings import drawings
from fourm_lite.errors import ConfigError
from fourm_lite.io.files import write_whole
from fourm_lite.modalities.pictures import png
from fourm_lite.photos.content import FileContent
from fourm_lite.photos.item import Item
from fourm_lite.photos.records import ENDINGS
from fourm_lite.photos.sources import folder_items

# Photographs that come with packages which many environments hold, people first: package, file,
# and words that ask for it.
_INSTALLED = (
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "a woman in a uniform"),
    ("skimage", "data/astronaut.png", "a woman smiles"),
    ("sklearn", "datasets/images/china.jpg", "a tall building with trees"),
    ("skimage", "data/chelsea.png", "a cat"),
    ("skimage", "data/coffee.png", ""),
    ("skimage", "data/rocket.jpg", ""),
    ("sklearn", "datasets/images/flower.jpg", ""),
)
_OF_DRAWINGS = ("red on white", "a blue ball", "a green sign")
EXAMPLES = ("a dog runs through the grass", "two people at the beach", "a red flower")
"""What is asked of photos that are not known."""


def make_gallery(photos: Path | None, folder: Path, *, num_drawings: int = 60) -> Path:
    """A folder of pictures: `photos` itself, or one that is filled here.

    Raises:
        ConfigError: `photos` is no folder, or holds no picture
    """
    if photos is not None:
        if not photos.is_dir():
            raise ConfigError(f"--photos expects a folder with pictures, there is none at {photos}")
        if not pictures(photos):
            known = ", ".join(sorted(ENDINGS))
            raise ConfigError(
                f"--photos expects a folder with pictures, {photos} holds none; known endings: "
                f"{known}"
            )
        return photos
    for source, _ in _installed():
        write_whole(folder / source.name, source.read_bytes(), sync=False)
    for drawing in drawings(num_drawings):
        write_whole(folder / drawing.name, png(drawing.picture), sync=False)
    return folder


def pictures(folder: Path) -> list[Path]:
    """The pictures below a folder, as an index finds them; drawings of ours last."""
    items = (item for item in folder_items(folder, tars=False) if isinstance(item, Item))
    found = [item.read.path for item in items if isinstance(item.read, FileContent)]
    return sorted(found, key=lambda p: (is_drawing(p), p))


def is_drawing(path: Path) -> bool:
    """Whether a picture of the gallery is one of `drawings`."""
    return path.name.startswith("drawing_") and path.suffix == ".png"


def questions(photos: Path | None) -> tuple[str, ...]:
    """Three captions to search the gallery with; of our own gallery they suit what it holds."""
    if photos is not None:
        return EXAMPLES
    of_photos = [words for _, words in _installed() if words]
    return (*of_photos[:2], *_OF_DRAWINGS)[:3]


def _installed() -> list[tuple[Path, str]]:
    """Photographs inside installed packages, each with words that ask for it."""
    found: list[tuple[Path, str]] = []
    for package, below, words in _INSTALLED:
        spec = find_spec(package)
        roots = spec.submodule_search_locations or [] if spec else []
        found += [(Path(root) / below, words) for root in roots if (Path(root) / below).is_file()]
    return found
