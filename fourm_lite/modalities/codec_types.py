"""What a codec is: the door between a file, a tensor and a picture.

Only the protocol and its small argument live here, so that `modalities.spec` can name them
without importing any reader. The readers themselves are in `modalities.codecs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Where one sample is cut: the same crop for every modality of the sample.

    Units:
        top, left, height, width: pixels of the file as it is shown (EXIF rotation applied)
        size: side or (height, width) of the result in pixels; `None` keeps the crop's own size
        hflip: mirrored left to right, after the cut
    """

    top: int
    left: int
    height: int
    width: int
    hflip: bool = False
    size: int | tuple[int, int] | None = None

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        if self.size is None:
            return self.height, self.width
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@runtime_checkable
class Codec(Protocol):
    """File <-> tensor, tensor -> picture, for one family of modalities.

    Shapes:
        value: pixels float32[C, H, W] | labels int64[H, W] | tokens int64[L] |
            features float32[L, E]; what it is, the modality's `kind` says
    """

    def read(self, data: bytes, crop: Crop | None = None) -> Any:
        """The tensor that the bytes of one file stand for."""
        ...

    def write(self, value: Any) -> bytes:
        """The bytes of a file that `read` turns back into `value`."""
        ...

    def picture(self, value: Any) -> Image | str:
        """What a person looks at: a picture, or a text."""
        ...
