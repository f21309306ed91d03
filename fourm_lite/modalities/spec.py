"""What a modality is: one frozen entry that holds everything particular to it.

Embedding, mask rule, default decoding scheme, reader and picture are *derived* from the entry, so
a new modality needs no edit elsewhere. If code wants to ask for a name, this type lacks a field.
What a codec is stands here too; the readers themselves are in `modalities.codecs`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

from fourm_lite.errors import ConfigError, ShapeError, UnknownNameError, suggest
from fourm_lite.io.recipe import convert
from fourm_lite.names import check_name, is_inside

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in 0..1, over ImageNet."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""The same over the pictures that OpenAI's CLIP was trained on."""


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
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom."""
        return self.left, self.top, self.left + self.width, self.top + self.height

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


Kind = Literal["pixels", "grid", "sequence", "features", "raw"]
"""
pixels    float32[B, C, H, W]  read through a patch projection, never a target
grid      int64[B, Hq*Wq]      a VQ token map (global tokens too), decoded in parallel
sequence  int64[B, L]          a text vocabulary, spans and sentinels, decoded autoregressively
features  float32[B, L, E]     foreign embeddings (T5), input only
raw       float32[B, C, H, W]  read by a tokenizer alone; the model never sees it
"""
Direction = Literal["in", "out"]

IN_OUT: frozenset[Direction] = frozenset({"in", "out"})
IN: frozenset[Direction] = frozenset({"in"})
NEITHER: frozenset[Direction] = frozenset()

MAX_NUMBER = 1 << 31  # of a stored field
SEQUENCE_ROWS = 512  # 4M stores this many position rows for every sequence, whatever its length
CONV_STRIDE = 16  # pixels a side for which `nn.convolutions` give one vector
_SCHEME_OF_KIND: dict[str, Literal["maskgit", "autoregressive"]] = {
    "grid": "maskgit",
    "sequence": "autoregressive",
}
_DTYPE_OF_KIND = {"pixels": "float32", "grid": "int64", "sequence": "int64", "features": "float32"}


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One modality.

    Units:
        image_size, patch_size: pixels; grid: token rows, token columns
        max_tokens: tokens of one sample
        raw: name of the modality that its tokenizer reads, where that is registered; of features:
            the texts that its sentence encoder (`tokenizer`) reads, so that they come with a text
        text_format: how a sequence says its value: a name of `tokenization.words.sequences.FORMATS`
        max_given: tokens of a sequence that is read, where they may be more than `max_tokens`
        max_positions: position rows that the decoder of a sequence uses (later ones fall back to 0)
        convolutions: of pixels: MobileNetV2's blocks see them too, beside the encoder's blocks
        input_names, target_names: what else it is called, in lower case, where it is read or made
        edition: of a family's statistics, where it published several
    Raises:
        ConfigError: fields that contradict each other
    """

    name: str
    kind: Kind
    max_tokens: int = 0
    max_given: int | None = None
    vocab_size: int | None = None
    grid: tuple[int, int] | None = None
    image_size: int | None = None
    patch_size: int | None = None
    channels: int | None = None
    num_labels: int | None = None
    max_positions: int | None = None
    pos_embed: Literal["sincos", "learned"] = "sincos"
    convolutions: bool = False
    follows_model_size: bool = False
    directions: frozenset[Direction] = IN_OUT
    vocab: str = "own"
    tokenizer: str | None = None
    raw: str | None = None
    text_format: str = "text"
    folder: str | None = None
    title: str = ""
    input_names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    edition: str = ""
    codec: Codec | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuses entries that contradict themselves."""
        needs_vocab = self.kind in ("grid", "sequence")
        for f in fields(self):
            value = getattr(self, f.name)
            numbers = value if f.name == "grid" and value is not None else (value,)
            if any(isinstance(n, int) and not 0 <= n < MAX_NUMBER for n in numbers):
                raise ConfigError(
                    f"{f.name} of '{self.name}' should be 0 to {MAX_NUMBER - 1}, got {value!r:.80}"
                )
        if not self.name:
            raise ConfigError("a modality needs a name, got an empty one")
        check_name(self.name, "the name of a modality")
        if self.folder is not None and not is_inside(self.folder):
            raise ConfigError(f"folder of '{self.name}' should lie below, got {self.folder!r:.80}")
        for what, value, choices in (
            ("kind", {self.kind}, get_args(Kind)),
            ("pos_embed", {self.pos_embed}, ("sincos", "learned")),
            ("directions", self.directions, get_args(Direction)),
        ):
            if not value <= set(choices):
                raise ConfigError(
                    f"{what} of '{self.name}' should be of {list(choices)}, got {sorted(value)}"
                )
        if needs_vocab and not (self.vocab_size and self.vocab_size > 0):
            raise ConfigError(f"'{self.name}' is a {self.kind}: give it a positive vocab_size")
        if self.kind in ("pixels", "features") and not self.channels:
            raise ConfigError(f"'{self.name}' is of kind {self.kind}: give it channels")
        if self.kind != "raw" and self.max_tokens < 1:
            raise ConfigError(f"'{self.name}' needs max_tokens >= 1, got {self.max_tokens}")
        if self.kind in ("pixels", "grid"):
            if self.grid is None or self.grid[0] * self.grid[1] != self.max_tokens:
                raise ConfigError(
                    f"'{self.name}' needs a grid whose cells are its max_tokens, "
                    f"got grid={self.grid}, max_tokens={self.max_tokens}"
                )
            if self.kind == "pixels" and not self.patch_size:
                raise ConfigError(f"'{self.name}' is of kind pixels: give it a patch_size")
        if self.convolutions and (self.kind != "pixels" or self.patch_size != CONV_STRIDE):
            raise ConfigError(
                f"'{self.name}' asks for convolutions, which are for pixels with a patch_size of "
                f"{CONV_STRIDE}; it is of kind {self.kind}, patch_size {self.patch_size}"
            )
        if "out" in self.directions and not needs_vocab:
            raise ConfigError(
                f"'{self.name}' is of kind {self.kind} and cannot be a target; "
                "set directions=frozenset({'in'})"
            )

    @property
    def stem(self) -> str:
        """The name without its resolution: "tok_depth" of "tok_depth@224"."""
        return self.name.split("@", 1)[0]

    @property
    def legacy_id(self) -> int:
        """The number of this modality in 4M: sha256 of its name, modulo 2^15."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % (1 << 15)

    @property
    def is_input(self) -> bool:
        """Whether an encoder can read it."""
        return "in" in self.directions

    @property
    def is_target(self) -> bool:
        """Whether a decoder can predict it."""
        return "out" in self.directions

    @property
    def scheme(self) -> Literal["maskgit", "autoregressive"] | None:
        """How it is decoded by default; None for what is never a target."""
        return _SCHEME_OF_KIND.get(self.kind)

    @property
    def dtype(self) -> str:
        """The dtype of its values: "int64" or "float32"."""
        return _DTYPE_OF_KIND.get(self.kind, "float32")

    @property
    def decoder_rows(self) -> int:
        """How many positions the decoder of a sequence has."""
        return self.max_positions or self.max_tokens

    @property
    def path(self) -> str:
        """The folder in which its samples lie in 4M's layout."""
        return self.folder or self.stem

    def value_shape(self, batch: int | None = None) -> tuple[int | None, ...]:
        """The shape of a value; None where any size goes."""
        if self.kind == "pixels":
            assert self.grid is not None
            assert self.patch_size is not None
            h, w = (side * self.patch_size for side in self.grid)
            return (batch, self.channels, h, w)
        if self.kind == "features":
            return (batch, None, self.channels)
        if self.kind == "raw":
            return (batch, self.channels, None, None)
        return (batch, self.max_tokens if self.kind == "grid" else None)

    def sized(self, resolution: int) -> Modality:
        """The same modality for images of another size: grid and max_tokens are recomputed.

        Raises:
            ConfigError: it has no patches, or the resolution is not a multiple of the patch size
        """
        if self.patch_size is None:
            raise ConfigError(f"'{self.name}' has no patches and so no resolution")
        if resolution < 1 or resolution % self.patch_size:
            raise ConfigError(
                f"'{self.name}' has patches of {self.patch_size} pixels: give a resolution that is "
                f"a multiple of it, got {resolution}"
            )
        side = resolution // self.patch_size
        return replace(self, grid=(side, side), max_tokens=side * side, image_size=resolution)

    def at(self, resolution: int) -> Modality:
        """This modality at another resolution, named for it: tok_rgb@224 -> tok_rgb@448."""
        return replace(self.sized(resolution), name=f"{self.stem}@{resolution}")

    def to_dict(self) -> dict[str, Any]:
        """All fields but the codec, as JSON values, defaults left out."""
        out: dict[str, Any] = {"name": self.name, "kind": self.kind}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in ("name", "kind", "codec") and value != f.default:
                out[f.name] = _json_value(value)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Modality:
        """The entry behind `to_dict`.

        Raises:
            ConfigError: a key is unknown, or a value has the wrong type
        """
        try:
            if isinstance(data, Mapping) and "codec" in data:
                raise ConfigError("has no field 'codec': a codec is code, and not stored")
            return convert(cls, data, "")
        except ConfigError as error:
            name = data.get("name") if isinstance(data, Mapping) else data
            raise ConfigError(f"the modality {name!r:.80}: {error}") from error


def _json_value(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    return list(value) if isinstance(value, tuple) else value


class Registry(Mapping[str, Modality]):
    """The modalities that are known by name; a clash raises."""

    def __init__(self, entries: Iterable[Modality] = ()) -> None:
        self._entries: dict[str, Modality] = {}
        self.register(*entries)

    def register(self, *entries: Modality, replace: bool = False) -> None:
        """Adds entries.

        Raises:
            ConfigError: a name is taken by a different entry and `replace` is False
        """
        for entry in entries:
            if not isinstance(entry, Modality):
                raise ConfigError(f"register() takes Modality entries, got {type(entry).__name__}")
            known = self._entries.get(entry.name)
            if known is not None and known != entry and not replace:
                raise ConfigError(
                    f"the modality '{entry.name}' is already registered with other values; "
                    "choose another name, or pass replace=True"
                )
        for entry in entries:
            self._entries[entry.name] = entry

    def __getitem__(self, name: str) -> Modality:
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(
                f"no modality is called {name!r}.{suggest(name, self._entries)} "
                "Register your own with fourm_lite.register(Modality(...))."
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
