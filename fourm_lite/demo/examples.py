"""What the demo and examples run on: photos and questions, drawings, a model.

`photos/` beside this file holds photographs under free licences, each with a caption of ours, its
author, licence and source in `captions.jsonl`; a user's own photos may take their place. The model
is the shipped one, or a small complete family with random weights: everything works with it, and
nothing that it says means anything.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.io.files import write_whole
from fourm_lite.modalities.pictures import open_picture, png
from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.photos.item import FileContent, Item
from fourm_lite.photos.records import CAPTIONS, ENDINGS, Record, read_caption_list
from fourm_lite.photos.sources import folder_items
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.text import train_text_tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

SHIPPED_PHOTOS = "photos"
EXAMPLES = ("a dog runs through the grass", "two people at the beach", "a red flower")
"""What is asked of photos that are not known."""
ANSWERED = 3


def make_gallery(photos: Path | None, folder: Path, *, num_drawings: int = 0) -> Path:
    """A folder of pictures: `photos` itself, or `folder` with copies of the photos that ship.

    Args:
        photos: the user's folder, which is only read; None for the photos that ship
        folder: where copies of the photos that ship go
        num_drawings: how many of `drawings` are added to them

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
    for source in files("fourm_lite.demo").joinpath(SHIPPED_PHOTOS).iterdir():
        write_whole(folder / source.name, source.read_bytes(), sync=False)
    for drawing in drawings(num_drawings):
        write_whole(folder / drawing.name, png(drawing.picture), sync=False)
    return folder


def shipped_pictures(count: int = 12) -> list[Image]:
    """Some of the photos that ship, opened."""
    place = files("fourm_lite.demo").joinpath(SHIPPED_PHOTOS)
    names = sorted(f.name for f in place.iterdir() if f.name.endswith(".jpg"))
    return [open_picture(place.joinpath(name).read_bytes()) for name in names[:count]]


def pictures(folder: Path) -> list[Path]:
    """The pictures below a folder, as an index finds them."""
    items = (item for item in folder_items(folder, tars=False) if isinstance(item, Item))
    return sorted(item.read.path for item in items if isinstance(item.read, FileContent))


def shipped_records(gallery: Path) -> dict[str, Record]:
    """What is known of each photo of a gallery that `make_gallery` filled, by its file's name."""
    return {Path(str(r.image)).name: r for r in read_caption_list(gallery / CAPTIONS)}


def credit(fields: Mapping[str, Any]) -> str:
    """Author and licence of a photo that ships, as a page must name them."""
    return f"{fields['author']}, {fields['licence']}"


@dataclass(frozen=True)
class Questions:
    """What the demo asks in words.

    Args:
        answered: each has its own photo as the first hit
        failed: the words whose photo comes last of all, and its rank; None where all are answered
    """

    answered: tuple[str, ...]
    failed: tuple[str, int] | None = None


def choose_questions(captions: Sequence[str], scores: Any) -> Questions:
    """Chooses captions by a rule, not by hand.

    Answered are those whose photo comes first with the largest lead over the second hit; failed is
    the one whose photo has the worst rank.

    Shapes:
        scores: float[captions, photos], the photo of a caption in its own place
    """
    table = np.asarray(scores, np.float64)
    own = np.diagonal(table)
    others = np.where(np.eye(len(table), dtype=bool), -np.inf, table)
    lead, ranks = own - others.max(axis=1), 1 + (others >= own[:, None]).sum(axis=1)
    best = [int(i) for i in np.argsort(-lead, kind="stable")[:ANSWERED] if lead[i] > 0]
    worst = int(ranks.argmax())
    failed = (captions[worst], int(ranks[worst])) if ranks[worst] > 1 else None
    return Questions(tuple(captions[i] for i in best), failed)


COLORS = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (33, 96, 196),
    "yellow": (244, 196, 48),
    "purple": (128, 64, 160),
    "orange": (240, 128, 32),
}
SHAPES = ("circle", "square", "triangle", "cross")
GROUNDS = {"white": (245, 245, 240), "grey": (150, 150, 150), "black": (24, 24, 28)}
PLACES = {"on the left": 0.28, "in the middle": 0.5, "on the right": 0.72}


class Drawing(NamedTuple):
    """A picture with its name and what it shows."""

    name: str
    caption: str
    picture: Image


def drawings(count: int, *, size: int = 224, seed: int = 0) -> Iterator[Drawing]:
    """Different drawings, always the same ones for a seed."""
    rng = random.Random(seed)
    every = [(c, s, g, p) for c in COLORS for s in SHAPES for g in GROUNDS for p in PLACES]
    for number, (color, shape, ground, place) in enumerate(rng.sample(every, min(count, 216))):
        caption = f"a {color} {shape} {place} of a {ground} picture"
        picture = draw(color, shape, ground, PLACES[place], size=size, jitter=rng.random())
        yield Drawing(f"drawing_{number:03d}.png", caption, picture)


def draw(color: str, shape: str, ground: str, x: float, *, size: int, jitter: float = 0.5) -> Image:
    """One shape on a plain ground."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (size, size), GROUNDS[ground])
    pen = ImageDraw.Draw(picture)
    r = size * (0.14 + 0.08 * jitter)
    cx, cy, fill = x * size, size * (0.4 + 0.2 * jitter), COLORS[color]
    if shape == "circle":
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill)
    elif shape == "square":
        pen.rectangle((cx - r, cy - r, cx + r, cy + r), fill=fill)
    elif shape == "triangle":
        pen.polygon([(cx, cy - r), (cx - r, cy + r), (cx + r, cy + r)], fill=fill)
    else:
        pen.rectangle((cx - r, cy - r / 3, cx + r, cy + r / 3), fill=fill)
        pen.rectangle((cx - r / 3, cy - r, cx + r / 3, cy + r), fill=fill)
    return picture


SHIPPED = "mini"
SIZE, PATCH, CODES, EMBEDDING = 112, 16, 64, 32
_SIDE = SIZE // PATCH
_MLP = "BottleneckMLP/B_2-Wi_64"


def example_model(folder: str | Path = "random_model") -> Path:
    """The shipped model's folder; where none ships, `folder`, into which random weights go."""
    from fourm_lite.io.hub import shipped

    try:
        return shipped(SHIPPED)
    except CheckpointError:
        captions = [d.caption for d in drawings(216, size=8)]
        return write_random_family(Path(folder), [*captions, *EXAMPLES] * 3)


def write_random_family(folder: Path, captions: Iterable[str], *, seed: int = 0) -> Path:
    """A model with its tokenizers beside it; returns the model's folder."""
    if (folder / "model.safetensors").is_file():
        return folder
    place = folder / "tokenizers"
    # torch's initialisers know no generator of their own, so the global one is put back afterwards
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = train_text_tokenizer(list(captions), vocab_size=1400, bins=256, num_sentinels=16)
        for name, config in _tokenizer_configs().items():
            VQTokenizer(config).eval().save(place / name)
        text.save(place / "text" / "tokenizer.json")
        model = FourM(_model_config(text.vocab_size)).init_weights().eval()
        model.save(folder, extra={"note": "random weights", "licence": "Apache-2.0"})
    return folder


def _tokenizer_configs() -> dict[str, TokenizerConfig]:
    vit = TokenizerConfig(
        image_size=SIZE,
        patch_size=PATCH,
        enc_type="vit_96x2x2_enc",
        dec_type="vit_96x2x2_dec",
        codebook_size=CODES,
        latent_dim=16,
    )
    vector = TokenizerConfig(
        image_size=1,
        patch_size=1,
        patch_proj=False,
        n_channels=EMBEDDING,
        enc_type=_MLP,
        dec_type=_MLP,
        quant_type="memcodes",
        codebook_size=CODES,
        num_codebooks=16,
        latent_dim=64,
    )
    return {"rgb": vit, "edge": replace(vit, n_channels=1), "vector_global": vector}


def _model_config(vocab_size: int) -> FourMConfig:
    maps = [_grid(f"tok_{name}@{SIZE}", name) for name in ("rgb", "edge")]
    vector = Modality(
        name="tok_vector_global", kind="grid", vocab_size=CODES, grid=(4, 4), max_tokens=16,
        pos_embed="learned", tokenizer="vector_global", title="Global embedding",
    )  # fmt: skip
    texts = [
        Modality(
            name=name, kind="sequence", vocab_size=vocab_size, max_tokens=24, vocab="text",
            text_format=form, title=title,
        )
        for name, form, title in (
            ("caption", "text", "Caption"),
            ("color_palette", "color_palette", "Colour palette"),
        )
    ]  # fmt: skip
    pixels = Modality(
        name=f"rgb@{SIZE}", kind="pixels", channels=3, image_size=SIZE, patch_size=PATCH,
        grid=(_SIDE, _SIDE), max_tokens=_SIDE**2, directions=IN, title="RGB",
    )  # fmt: skip
    outputs = (*maps, vector, *texts)
    return FourMConfig(
        inputs=(pixels, *outputs), outputs=outputs, dim=96, encoder_depth=3, decoder_depth=3,
        num_heads=4, image_size=SIZE, patch_size=PATCH,
    )  # fmt: skip


def _grid(name: str, tokenizer: str) -> Modality:
    return Modality(
        name=name, kind="grid", vocab_size=CODES, image_size=SIZE, patch_size=PATCH,
        grid=(_SIDE, _SIDE), max_tokens=_SIDE**2, tokenizer=tokenizer, title=tokenizer.title(),
    )  # fmt: skip
