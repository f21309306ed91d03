"""Figures of search on photos with captions: retrieval in both directions, and decoding steps.

The folder holds ``captions.jsonl`` with id, file, captions and split a line. Every caption is a
query of its own; a caption that is longer than the model reads is cut, and the report says how
many were. What the measures mean stands in `evaluation.retrieval`, the centre in `search.centre`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fourm_lite.data.sources import Record, choose_split, read_caption_list
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.evaluation.retrieval import caption_retrieval
from fourm_lite.pipeline.embedding import Decode
from fourm_lite.search.centre import Floats, gallery_centre, unit
from fourm_lite.search.likelihood import (
    CAPTION_DEPTH,
    DEFAULT_WEIGHTS,
    check_weights,
    model_weights,
)
from fourm_lite.search.pairs import Direction, PairScores
from fourm_lite.search.spaces import TEXT, Codes, Item, ModelSpace, Space

if TYPE_CHECKING:
    from PIL.Image import Image

CAPTIONS = "captions.jsonl"
STEPS = (1, 2, 4, 8, 16)
DECODES: tuple[Decode, ...] = ("argmax", "sample", "expected")
Tell = Callable[[str, int, int], None]
"""Called with (what is done, done, in all)."""


@dataclass(frozen=True)
class CaptionPack:
    """Photos with captions.

    Shapes:
        owner: int64[T], the photo of each caption
    """

    photos: tuple[Record, ...]
    captions: tuple[str, ...]
    owner: npt.NDArray[np.int64]
    split: str
    without_caption: int = 0

    @classmethod
    def read(cls, folder: str | Path, split: str) -> CaptionPack:
        """One split of a folder; photos without a caption are counted and left out.

        Raises:
            FourMError: there is no list, or nothing in the split
        """
        place = Path(folder).expanduser()
        records = choose_split(read_caption_list(place / CAPTIONS), split)
        photos = [r for r in records if r.captions]
        if not photos:
            raise FourMError(f"no photo of the split {split!r} in {place} has a caption")
        owner = [i for i, photo in enumerate(photos) for _ in photo.captions]
        texts = [text for photo in photos for text in photo.captions]
        left_out = len(records) - len(photos)
        return cls(tuple(photos), tuple(texts), np.array(owner), split, left_out)

    def pictures(self, batch_size: int) -> Iterator[list[Image]]:
        """The photos, some at a time.

        Raises:
            FourMError: one cannot be opened
        """
        for start in range(0, len(self.photos), batch_size):
            yield [photo.open_image() for photo in self.photos[start : start + batch_size]]


@dataclass(frozen=True)
class Embedded:
    """A pack in a space.

    Shapes:
        images: float32[G, E], texts: float32[T, E], codes: int64[G, L] or None
    """

    pack: CaptionPack
    space: Space
    images: Floats
    texts: Floats
    codes: Codes | None
    items: tuple[Item, ...]
    cut: int


def embed_pack(
    pack: CaptionPack,
    space: Space,
    *,
    center: bool = True,
    batch_size: int = 32,
    tell: Tell | None = None,
) -> Embedded:
    """The photos and captions of a pack as vectors.

    Where the tokenizer has no mean and `center` is asked for, the gallery's own is taken off.
    """
    space, images, codes = embed_photos(
        pack, space, center=center, batch_size=batch_size, tell=tell
    )
    items, cut = caption_items(pack, space)
    told = None if tell is None else lambda done, total: tell("captions", done, total)
    texts = space.embed_items(items, batch_size=batch_size, progress=told)
    return Embedded(pack, space, images, texts, codes, items, cut)


def embed_photos(
    pack: CaptionPack,
    space: Space,
    *,
    center: bool = True,
    batch_size: int = 32,
    tell: Tell | None = None,
) -> tuple[Space, Floats, Codes | None]:
    """The gallery of a pack, and the space with the centre that was used."""
    parts: list[Floats] = []
    for pictures in pack.pictures(batch_size):
        if isinstance(space, ModelSpace):
            parts.append(space.raw_pictures(pictures))
        else:
            parts.append(space.embed_pictures(pictures, batch_size=batch_size)[0])
        if tell is not None:
            tell("photos", sum(map(len, parts)), len(pack.photos))
    raw = np.concatenate(parts)
    if not isinstance(space, ModelSpace):
        return space, raw, None
    if center and space.centre.mean is None:
        space = dataclasses.replace(space, centre=gallery_centre(raw.mean(axis=1)))
    return space, unit(space.centre(raw).mean(axis=1)), space.codes(raw.mean(axis=1))


def caption_items(pack: CaptionPack, space: Space) -> tuple[tuple[Item, ...], int]:
    """A query for each caption, and how many captions were too long and cut."""
    if not isinstance(space, ModelSpace):
        return tuple({TEXT: text} for text in pack.captions), 0
    config = space.pipe.model.config
    entry = next((m for m in config.inputs if m.name == TEXT), None)
    if entry is None or entry.kind != "sequence":
        raise ConfigError(
            f"this model reads no '{TEXT}'; it reads {[m.name for m in config.inputs]}"
        )
    tokenizer = space.pipe.tokenizers.text()
    items: list[Item] = []
    cut = 0
    for text in pack.captions:
        ids = tokenizer.encode(text)
        is_long = len(ids) + 1 > entry.max_tokens
        cut += is_long
        kept = [*ids[: entry.max_tokens - 1], tokenizer.eos] if is_long else text
        items.append({TEXT: kept})
    return tuple(items), cut


def evaluate_retrieval(
    space: Space,
    folder: str | Path,
    split: str,
    *,
    center: bool = True,
    rerank: int = 0,
    weights: Mapping[str, float] | None = None,
    fit_split: str | None = "val",
    caption_depth: int = CAPTION_DEPTH,
    batch_size: int = 32,
    draws: int = 1000,
    facts: Mapping[str, Any] | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Captions to photos and photos to captions, as `evaluate retrieval` writes it.

    Args:
        space: from `open_space`
        folder: holds captions.jsonl
        split: which of its photos
        center: whether cosines are centred
        rerank: how many of the first hits are reranked by likelihood; 0: none
        weights: of the reranker's parts, for both directions
        fit_split: where they are fitted if they are not given; None: the usual ones
        caption_depth: how many of the reranked are scored by the caption's likelihood too
        batch_size: items embedded together
        draws: of the bootstrap
        facts: more to write into the protocol
        tell: told of progress

    Returns:
        "text_to_image", "image_to_text", "protocol"; with reranking also "before_rerank"
    """
    pack = CaptionPack.read(folder, split)
    data = embed_pack(pack, space, center=center, batch_size=batch_size, tell=tell)
    protocol = {**protocol_of(data, center), **(facts or {})}
    first = caption_retrieval(data.texts, data.images, pack.owner, protocol=protocol, draws=draws)
    if not rerank:
        return first
    fit = (folder, fit_split, rerank, caption_depth, batch_size)
    chosen, source = _weights(data, weights, fit, tell)
    pairs = _pairs(data, caption_depth)
    forward, back = (
        pairs.rescore(w, Direction(pack.owner, b), rerank, tell)
        for w, b in zip(chosen, (True, False), strict=True)
    )
    protocol |= {
        "caption_depth": caption_depth,
        "score": "weighted sum of cosine, codes and caption; see search.likelihood",
        "rerank_weights": {"text_to_image": dict(chosen[0]), "image_to_text": dict(chosen[1])},
        "rerank_weights_from": source,
    }
    reranked = caption_retrieval(
        data.texts, data.images, pack.owner, protocol=protocol, draws=draws,
        rerank=(rerank, forward, back),
    )  # fmt: skip
    before = {k: first[k] for k in ("text_to_image", "image_to_text")}
    return {**reranked, "before_rerank": before}


def _pairs(data: Embedded, caption_depth: int) -> PairScores:
    return PairScores.of(
        data.space, data.items, data.codes, data.texts, data.images, caption_depth=caption_depth
    )


def _weights(
    data: Embedded,
    weights: Mapping[str, float] | None,
    fit: tuple[str | Path, str | None, int, int, int],
    tell: Tell | None,
) -> tuple[tuple[Mapping[str, float], Mapping[str, float]], str]:
    """Weights for both directions, and where they come from."""
    if weights is not None:
        check_weights(weights)
        return (weights, weights), "given"
    folder, fit_split, depth, caption_depth, batch_size = fit
    splits = {r.split for r in read_caption_list(Path(folder).expanduser() / CAPTIONS)}
    if fit_split is None or fit_split == data.pack.split or fit_split not in splits:
        own = model_weights(data.space)
        usual = (own or {}).get("text_to_image", DEFAULT_WEIGHTS)
        back = (own or {}).get("image_to_text", usual)
        return (usual, back), "default" if own is None else "the model's config"
    pack = CaptionPack.read(folder, fit_split)
    val = embed_pack(pack, data.space, batch_size=batch_size, tell=tell)
    pairs = _pairs(val, caption_depth)
    forward, back = (pairs.fit(Direction(pack.owner, b), depth, tell) for b in (True, False))
    return (forward, back), f"fitted on the split {fit_split!r}"


def evaluate_steps(
    space: ModelSpace,
    folder: str | Path,
    split: str,
    *,
    steps: Sequence[int] = STEPS,
    decodes: Sequence[Decode] = DECODES,
    center: bool = True,
    batch_size: int = 32,
    draws: int = 1000,
    most: int | None = None,
    facts: Mapping[str, Any] | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Quality of text to image against decoding steps, for each way to decode, with intervals.

    The gallery is embedded once, as the space says; steps and decoding are those of the captions.

    Args:
        space: a 4M model's
        folder: holds captions.jsonl
        split: which of its photos
        steps: numbers of forward passes
        decodes: ways to make a vector of a prediction
        center: whether cosines are centred
        batch_size: captions embedded together
        draws: of the bootstrap
        most: at most so many captions, drawn evenly; all by default
        facts: more to write into the protocol
        tell: told of progress
    """
    pack = CaptionPack.read(folder, split)
    fitted, images, _ = embed_photos(pack, space, center=center, batch_size=batch_size, tell=tell)
    assert isinstance(fitted, ModelSpace)
    items, cut = caption_items(pack, fitted)
    chosen = _evenly(len(items), most)
    points = []
    settings = [(d, s) for d in decodes for s in steps]
    for number, (decode, count) in enumerate(settings):
        asked = dataclasses.replace(fitted, decode=decode, steps=count)
        start = time.perf_counter()
        texts = asked.embed_items([items[i] for i in chosen], batch_size=batch_size)
        seconds = (time.perf_counter() - start) / len(chosen)
        measured = _text_to_image(texts, images, pack.owner[chosen], draws)
        points.append({"decode": decode, "steps": count, "seconds_per_query": seconds, **measured})
        if tell is not None:
            tell(f"{decode}, {count} steps", number + 1, len(settings))
    data = Embedded(pack, fitted, images, images[:0], None, items, cut)
    protocol = {**protocol_of(data, center), "queries_text": len(chosen), **(facts or {})}
    protocol.pop("decode")
    return {"points": points, "protocol": protocol}


def _evenly(count: int, most: int | None) -> npt.NDArray[np.int64]:
    if most is None or most >= count:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64))


def _text_to_image(
    texts: Floats, images: Floats, owner: npt.NDArray[np.int64], draws: int
) -> dict[str, Any]:
    from fourm_lite.evaluation import metrics
    from fourm_lite.evaluation.bootstrap import interval
    from fourm_lite.evaluation.retrieval import measure

    ranks = measure(texts, images, lambda rows: owner[rows][:, None] == np.arange(len(images)))[
        "rank"
    ]
    bounds = {
        f"R@{k}": interval(metrics.recall_at(ranks, k), groups=owner, draws=draws).to_list()
        for k in (1, 5, 10)
    }
    return {**metrics.summary(ranks), "interval": bounds}


def steps_lines(
    report: Mapping[str, Any], measure: str = "R@10"
) -> dict[str, list[tuple[float, float]]]:
    """A report of `evaluate_steps` as lines to plot: decode -> (steps, value)."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in report["points"]:
        lines.setdefault(point["decode"], []).append((point["steps"], point[measure]))
    return lines


def protocol_of(data: Embedded, center: bool) -> dict[str, Any]:
    """What a figure must be quoted with."""
    space, pack = data.space, data.pack
    facts: dict[str, Any] = {
        "split": pack.split,
        "photos": len(pack.photos),
        "photos_without_caption": pack.without_caption,
        "captions_cut": data.cut,
        "space": space.name,
        **{k: v for k, v in space.provenance().items() if k in ("model", "tokenizer")},
        "center": center and isinstance(space, ModelSpace),
    }
    if isinstance(space, ModelSpace):
        facts |= {
            "gallery": space.names.get("gallery", "model"),
            "decode": space.decode,
            "steps": space.steps,
            "samples": space.samples,
            "centre": space.centre.source,
        }
        plain = space.centre.mean is None
        facts["score"] = "cosine" if plain else f"centred cosine, mean of the {space.centre.source}"
    else:
        facts |= {"gallery": "model", "decode": None}
    return facts
