"""What a codec is: the door between a file, a tensor and a picture.

Only the protocol and its small argument live here, so that `modalities.spec` can name them
without importing any reader. The readers themselves are in `modalities.codecs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fourm_lite.errors import ShapeError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in 0..1, over ImageNet."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Where one sample is cut: the same crop for every modality of the sample.

    Units:
        top, left, height, width: pixels of the file as it is shown (EXIF rotation applied)
        size: side or (height, width) of the result in pixels; `None` keeps the crop's own size
        hflip: mirrored left to right, after the cut
        whole: (height, width) of the uncut picture; boxes and points need it, pictures know it
    Raises:
        ShapeError: a length is not positive, or the cut does not lie within `whole`
    """

    top: int
    left: int
    height: int
    width: int
    hflip: bool = False
    size: int | tuple[int, int] | None = None
    whole: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuses a cut without area, or outside of its picture."""
        if min(self.height, self.width, *self.output_size) < 1 or min(self.top, self.left) < 0:
            raise ShapeError(
                f"a crop needs a corner >= 0 and sides >= 1, got {self}; check the crop settings"
            )
        if self.whole is not None:
            self.check_inside(*self.whole)

    def check_inside(self, height: int, width: int) -> None:
        """Refuses a cut that leaves a picture of this size.

        Raises:
            ShapeError: the cut does not lie within the picture
        """
        if self.top + self.height > height or self.left + self.width > width:
            raise ShapeError(
                f"the crop {self.height}x{self.width} at ({self.top}, {self.left}) leaves the "
                f"picture of {height}x{width} pixels; were its settings made for another file?"
            )

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        if self.size is None:
            return self.height, self.width
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @classmethod
    def center(cls, height: int, width: int, size: int | tuple[int, int] | None = None) -> Crop:
        """The largest middle part of a picture that has the proportions of `size`.

        >>> Crop.center(100, 200, 224).left
        50
        """
        want_h, want_w = (1, 1) if size is None or isinstance(size, int) else size
        scale = min(height / want_h, width / want_w)
        h = min(height, max(1, round(want_h * scale)))
        w = min(width, max(1, round(want_w * scale)))
        top, left = (height - h) // 2, (width - w) // 2
        return cls(top=top, left=left, height=h, width=w, size=size, whole=(height, width))


@runtime_checkable
class Codec(Protocol):
    """File <-> tensor, tensor -> picture, for one family of modalities.

    Shapes:
        value: pixels float32[C, H, W] | labels int64[H, W] | tokens int64[L] |
            features float32[L, E] | a value of `modalities.values` | str;
            which one, the modality's `kind` and codec say
    """

    def read(self, data: bytes, crop: Crop | None = None) -> Any:
        """The value that the bytes of one file stand for."""
        ...

    def write(self, value: Any) -> bytes:
        """The bytes of a file that `read` turns back into `value`."""
        ...

    def picture(self, value: Any) -> Image | str:
        """What a person looks at: a picture, or a text."""
        ...
