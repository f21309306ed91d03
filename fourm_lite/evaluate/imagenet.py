"""ImageNet in words: its 1,000 classes and the templates that everybody measures with.

Names and templates are open_clip's, the order of the classes is timm's; neither is typed here.
Photos may be of some of the classes only; each is judged against all 1,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fourm_lite.errors import ConfigError, FourMError, suggest
from fourm_lite.photos.labelled import LabelledSet

CLASSES = ("imagenet",)
# what users call them -> open_clip's names
TEMPLATES = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}


def imagenet_names() -> dict[str, list[str]]:
    """The name of each class, by its WordNet id, in the order of the classes.

    Raises:
        FourMError: open_clip is not installed
    """
    from timm.data.imagenet_info import ImageNetInfo

    ids = ImageNetInfo().label_names()
    names = _open_clip("IMAGENET_CLASSNAMES")
    if len(ids) != len(names):
        raise FourMError(f"timm knows {len(ids)} classes of ImageNet, open_clip {len(names)}")
    return {one: [name] for one, name in zip(ids, names, strict=True)}


def templates_of(name: str) -> tuple[str, ...]:
    """The sentences of a set of templates, `{}` in place of the class.

    Raises:
        ConfigError: no such set
        FourMError: open_clip is not installed
    """
    if name not in TEMPLATES:
        raise ConfigError(
            f"--templates is one of {', '.join(TEMPLATES)}, got '{name}'; for sentences of "
            f"your own repeat --template.{suggest(name, TEMPLATES)}"
        )
    return tuple(template("{}") for template in _open_clip(TEMPLATES[name]))


def as_imagenet(photos: LabelledSet, names: dict[str, list[str]]) -> LabelledSet:
    """Photos whose classes are WordNet ids, class numbers or names, among all of the classes.

    Raises:
        ConfigError: a class that ImageNet does not have
    """
    ids = list(names)
    known = {one: number for number, one in enumerate(ids)}
    known |= {str(number): number for number in range(len(ids))}
    for number, (name,) in enumerate(names.values()):
        known.setdefault(name, number)
    unknown = [label for label in photos.classes if label not in known]
    if unknown:
        raise ConfigError(
            f"{len(unknown)} classes are none of ImageNet's, such as '{unknown[0]}'; they are "
            "written as WordNet ids (n01440764), as numbers from 0 to 999, or as names."
            f"{suggest(unknown[0], known)}"
        )
    numbers = [known[label] for label in photos.classes]
    moved = tuple(replace(p, classes=tuple(numbers[c] for c in p.classes)) for p in photos.photos)
    return replace(photos, photos=moved, classes=tuple(ids))


def _open_clip(name: str) -> Sequence[Any]:
    try:
        import open_clip
    except ImportError as error:
        raise FourMError(
            "the classes and templates of ImageNet are open_clip's: pip install open_clip_torch"
        ) from error
    found: Sequence[Any] = getattr(open_clip, name)
    return found
