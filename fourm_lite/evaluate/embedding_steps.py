"""Quality of search against decoding steps, for each way to make a vector of a prediction."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.evaluate.caption_sets import (
    CaptionPack,
    Embedded,
    caption_items,
    embed_photos,
    protocol_of,
)
from fourm_lite.metrics.measures import evenly
from fourm_lite.pipeline.embedding import Decode
from fourm_lite.progress import StageProgress
from fourm_lite.search.model_space import ModelSpace
from fourm_lite.unit import Floats

STEPS = (1, 2, 4, 8, 16)
DECODES: tuple[Decode, ...] = ("argmax", "sample", "expected")


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
    progress: StageProgress | None = None,
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
        progress: called with the stage, and what is done of how much
    """
    pack = CaptionPack.read(folder, split)
    fitted, images, _ = embed_photos(
        pack, space, center=center, batch_size=batch_size, progress=progress
    )
    items, cut = caption_items(pack, fitted)
    chosen = evenly(len(items), most)
    points = []
    settings = [(d, s) for d in decodes for s in steps]
    for number, (decode, count) in enumerate(settings):
        asked = dataclasses.replace(fitted, decode=decode, steps=count)
        start = time.perf_counter()
        texts = asked.encode_query([items[i] for i in chosen], batch_size=batch_size)
        seconds = (time.perf_counter() - start) / len(chosen)
        measured = _text_to_image(texts, images, pack.owner[chosen], draws)
        points.append({"decode": decode, "steps": count, "seconds_per_query": seconds, **measured})
        if progress is not None:
            progress(f"{decode}, {count} steps", number + 1, len(settings))
    data = Embedded(pack, fitted, images, images[:0], None, items, cut)
    protocol = {**protocol_of(data, center), "queries_text": len(chosen), **(facts or {})}
    protocol.pop("decode")
    return {"points": points, "protocol": protocol}


def _text_to_image(
    texts: Floats, images: Floats, owner: npt.NDArray[np.int64], draws: int
) -> dict[str, Any]:
    from fourm_lite.metrics import measures as metrics
    from fourm_lite.metrics.measures import interval
    from fourm_lite.metrics.ranking import measure

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
) -> dict[str, list[tuple[float, ...]]]:
    """A report of `evaluate_steps` as lines to plot: decode -> (steps, value, its interval)."""
    lines: dict[str, list[tuple[float, ...]]] = {}
    for point in report["points"]:
        drawn = (point["steps"], point[measure], *point["interval"][measure])
        lines.setdefault(point["decode"], []).append(drawn)
    return lines
