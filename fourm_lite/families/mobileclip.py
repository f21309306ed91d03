"""MobileCLIP: Apple's files and what no file says, the sizes of the published towers.

Apple's own layout (`image_encoder.model.*`) is read by our networks (`embedders/mobileclip`);
open_clip's (`visual.trunk.*`), in which MobileCLIP2 is published, by open_clip's.

Source: MobileCLIP (Vasu et al. 2024), MobileCLIP2 (Faghri et al. 2025)
"""

from __future__ import annotations

from dataclasses import dataclass

from fourm_lite.families import Family
from fourm_lite.modalities.spec import CLIP_MEAN, CLIP_STD

CONTEXT = 77
NO_CHANGE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
OPENAI = CLIP_MEAN, CLIP_STD


@dataclass(frozen=True, kw_only=True)
class MobileClipFamily(Family):
    """Apple's two towers as they are published.

    Args:
        image_size: of the convolutional towers, where no config says it
        conv_head: width of an attention head of the convolutional towers
        head: width of an attention head of the transformers
        eps: of their LayerNorms
        causal_with_vit: whether the text tower is causal where the image tower is a ViT
    """

    image_size: int
    conv_head: int
    head: int
    eps: float
    causal_with_vit: bool


MOBILECLIP = MobileClipFamily(
    name="mobileclip",
    title="MobileCLIP",
    door="mobileclip",
    marks=("image_encoder.model.", "text_encoder."),
    prefixes=("module.",),
    unused=(r".*num_batches_tracked$",),
    image_size=256,
    conv_head=32,
    head=64,
    eps=1e-5,
    causal_with_vit=True,
)


@dataclass(frozen=True)
class OpenClipTower:
    """A published file in open_clip's layout.

    Args:
        architecture: open_clip's name
        size: of the picture
        interpolation, statistics: of its preprocessing; open_clip itself takes OpenAI's
    """

    architecture: str
    size: int
    interpolation: str = "bilinear"
    statistics: tuple[tuple[float, ...], tuple[float, ...]] = NO_CHANGE


# by the stem of the published file; v1's S3, S4 and L-14 have the architectures of MobileCLIP2
OPEN_CLIP_FILES: dict[str, OpenClipTower] = {
    "mobileclip2_s0": OpenClipTower("MobileCLIP2-S0", 256),
    "mobileclip2_s2": OpenClipTower("MobileCLIP2-S2", 256),
    "mobileclip2_b": OpenClipTower("MobileCLIP2-B", 224),
    "mobileclip2_s3": OpenClipTower("MobileCLIP2-S3", 256, statistics=OPENAI),
    "mobileclip2_s4": OpenClipTower("MobileCLIP2-S4", 256, statistics=OPENAI),
    "mobileclip2_l14": OpenClipTower("MobileCLIP2-L-14", 224, "bicubic", OPENAI),
    "mobileclip_s3": OpenClipTower("MobileCLIP2-S3", 256, statistics=OPENAI),
    "mobileclip_s4": OpenClipTower("MobileCLIP2-S4", 256, statistics=OPENAI),
    "mobileclip_l14": OpenClipTower("MobileCLIP2-L-14", 224, "bicubic", OPENAI),
}
