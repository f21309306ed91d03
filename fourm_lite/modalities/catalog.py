"""The built-in table: every modality of 4M-7, 4M-21, the 448 super-resolution set, and what only
tokenizers read. Facts from the published models; codecs are attached in `modalities.codecs`.
"""

from __future__ import annotations

from typing import Any

from fourm_lite.modalities.spec import IN, NEITHER, Modality, Registry

TEXT_VOCAB = 30000


def _pixels(name: str, *, image_size: int, title: str, patch_size: int = 16) -> Modality:
    side = image_size // patch_size
    return Modality(
        name=name,
        kind="pixels",
        channels=3,
        image_size=image_size,
        patch_size=patch_size,
        grid=(side, side),
        max_tokens=side * side,
        directions=IN,
        title=title,
    )


def _grid(
    name: str, vocab_size: int, *, title: str, tokenizer: str | None = None, **fields: Any
) -> Modality:
    size = fields.setdefault("image_size", 224)
    patch_size = fields.setdefault("patch_size", 16)
    side = size // patch_size
    return Modality(
        name=name,
        kind="grid",
        vocab_size=vocab_size,
        grid=(side, side),
        max_tokens=side * side,
        tokenizer=tokenizer or name.split("@", 1)[0].removeprefix("tok_"),
        title=title,
        **fields,
    )


def _global(name: str, *, raw: str, title: str) -> Modality:
    # 4M lays the 16 tokens of a global embedding on a 4x4 grid of 56-pixel patches, and learns
    # their positions; the grid follows the model's image size.
    return _grid(
        name,
        8192,
        title=title,
        raw=raw,
        patch_size=56,
        pos_embed="learned",
        follows_model_size=True,
    )


def _sequence(name: str, max_tokens: int, *, title: str, **fields: Any) -> Modality:
    return Modality(
        name=name,
        kind="sequence",
        vocab_size=TEXT_VOCAB,
        max_tokens=max_tokens,
        vocab="text",
        title=title,
        **fields,
    )


def _raw(name: str, channels: int, *, title: str, **fields: Any) -> Modality:
    return Modality(
        name=name, kind="raw", channels=channels, directions=NEITHER, title=title, **fields
    )


_ENTRIES_224 = (
    _pixels("rgb@224", image_size=224, title="RGB"),
    _sequence("caption", 256, title="Caption"),
    _sequence("det", 256, text_format="boxes", title="Bounding boxes"),
    Modality(
        name="t5_caption",
        kind="features",
        channels=4096,
        max_tokens=77,
        directions=IN,
        title="T5-XXL caption embedding",
    ),
    _sequence("metadata", 40, text_format="metadata", title="Metadata"),
    # 4M's pose sequence may hold 275 tokens, but its decoder tells only 263 positions apart.
    _sequence(
        "human_poses",
        275,
        max_positions=263,
        channels=207,
        text_format="human_poses",
        title="Human poses",
    ),
    _sequence("color_palette", 23, text_format="color_palette", title="Colour palette"),
    _sequence("sam_instance", 290, text_format="sam_instances", title="SAM instances"),
    _grid("tok_rgb@224", 16384, raw="rgb", title="RGB (tokens)"),
    _grid("tok_depth@224", 8192, raw="depth", title="Depth"),
    _grid("tok_normal@224", 8192, raw="normal", title="Surface normals"),
    _grid("tok_semseg@224", 4096, raw="semseg_coco", title="Semantic segmentation"),
    _grid("tok_clip@224", 8192, raw="CLIP-B16", title="CLIP-B/16 features"),
    _grid("tok_canny_edge@224", 8192, raw="canny_edge", tokenizer="edge", title="Canny edges"),
    _grid("tok_sam_edge@224", 8192, raw="canny_edge", tokenizer="edge", title="SAM edges"),
    _grid("tok_dinov2@224", 8192, raw="DINOv2-B14", patch_size=14, title="DINOv2-B/14 features"),
    _grid(
        "tok_imagebind@224",
        8192,
        raw="ImageBind-H14",
        patch_size=14,
        title="ImageBind-H/14 features",
    ),
    _global("tok_dinov2_global", raw="DINOv2-B14-global", title="DINOv2-B/14 global embedding"),
    _global(
        "tok_imagebind_global", raw="ImageBind-H14-global", title="ImageBind-H/14 global embedding"
    ),
)
_ENTRIES_448 = (
    _pixels("rgb@448", image_size=448, title="RGB"),
    _grid("tok_rgb@448", 16384, raw="rgb", image_size=448, title="RGB (tokens)"),
    _grid("tok_depth@448", 8192, raw="depth", image_size=448, title="Depth"),
    _grid("tok_normal@448", 8192, raw="normal", image_size=448, title="Surface normals"),
    _grid("tok_semseg@448", 4096, raw="semseg_coco", image_size=448, title="Semantic segmentation"),
    _grid("tok_clip@448", 8192, raw="CLIP-B16", image_size=448, title="CLIP-B/16 features"),
)
_ENTRIES_RAW = (
    _raw("rgb", 3, title="RGB"),
    _raw("depth", 1, title="Depth"),
    _raw("normal", 3, title="Surface normals"),
    _raw("semseg_coco", 64, num_labels=134, title="COCO segmentation"),
    _raw("canny_edge", 1, title="Canny edges"),
    _raw("sam_mask", 1, max_tokens=64, title="SAM mask"),
    _raw("CLIP-B16", 512, title="CLIP-B/16 features"),
    _raw("DINOv2-B14", 768, title="DINOv2-B/14 features"),
    _raw("ImageBind-H14", 1280, title="ImageBind-H/14 features"),
    _raw("DINOv2-B14-global", 768, title="DINOv2-B/14 global embedding"),
    _raw("ImageBind-H14-global", 1280, title="ImageBind-H/14 global embedding"),
)

MODALITIES = Registry((*_ENTRIES_224, *_ENTRIES_448, *_ENTRIES_RAW))
"""Every modality that is known by name; `register` adds to it."""


def register(*entries: Modality, replace: bool = False) -> None:
    """Adds modalities to `MODALITIES`.

    Raises:
        ConfigError: a name is taken by a different entry and `replace` is False
    """
    MODALITIES.register(*entries, replace=replace)
