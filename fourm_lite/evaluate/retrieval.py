"""Figures of search on photos: with captions in both directions, plain and reranked; by class.

Every caption is a query of its own (`evaluate.caption_sets`). What the measures mean stands in
`metrics.ranking`, the centre in `search.whitening`, reranking in `search.likelihood_scores`.
By class (the GPR1200 protocol) every photo asks for the others of its class, and the figure is the
mean average precision; photos that cannot be read, or are alone in their class, are left out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fourm_lite.embedders.rerankers import PairReranker
from fourm_lite.errors import ConfigError
from fourm_lite.evaluate.caption_sets import (
    READ,
    CaptionPack,
    Embedded,
    embed_pack,
    protocol_of,
    space_facts,
)
from fourm_lite.evaluate.pair_scores import Direction, PairScores, judged_by
from fourm_lite.finetune.pixels import readable
from fourm_lite.metrics.ranking import Rescore, caption_retrieval, curve, same_class_retrieval
from fourm_lite.photos.labelled import LabelledSet, read_labelled
from fourm_lite.progress import StageProgress, batches, of_stage
from fourm_lite.search.likelihood_scores import Likelihood
from fourm_lite.search.rerank_weights import (
    CAPTION_DEPTH,
    FIT_QUERIES,
    NOTHING_FITTED,
    Fit,
    fitted_choice,
)
from fourm_lite.search.search_file import (
    DIRECTIONS,
    GIVEN,
    Given,
    Weights,
    check_given,
    check_weights,
)
from fourm_lite.search.space import PICTURE, Space

log = logging.getLogger(__name__)
WORTH = 0.02
"""Gain in log probability, both directions together, that reading the photos' pixels must bring."""


@dataclass(frozen=True)
class Reranking:
    """How the first hits are reranked by likelihood.

    Args:
        depth: how many of the first hits; 0: none
        weights: of the parts, for both directions; None: those kept beside the model
        fit_split: where they are fitted instead; what they then reach is not what a user gets
        caption_depth: how many of the reranked are scored by the caption's likelihood too
        given: what of a photo captions are said from; "auto": what the model's weights were fitted
            for, or what fits the fit split best
        depths: further depths to measure, for a curve
    """

    depth: int = 0
    weights: Weights | None = None
    fit_split: str | None = None
    caption_depth: int = CAPTION_DEPTH
    given: Given | Literal["auto"] = "auto"
    depths: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.given != "auto":
            check_given(self.given)
        if min(self.depth, *self.depths, 0) < 0:
            raise ConfigError(f"a depth is at least 0, got {self.depth} and {list(self.depths)}")

    @property
    def deepest(self) -> int:
        """The depth of the figures under the fixed names."""
        return self.depth or max(self.depths, default=0)


@dataclass(frozen=True)
class Chosen:
    """Weights of both directions, what captions are predicted from, and how both were found."""

    forward: Weights
    back: Weights
    given: Given
    source: str
    fits: Mapping[str, float] = dataclasses.field(default_factory=dict)


def evaluate_retrieval(
    space: Space,
    folder: str | Path,
    split: str,
    *,
    center: bool = True,
    rerank: int | Reranking = 0,
    reranker: PairReranker | None = None,
    batch_size: int = 32,
    draws: int = 1000,
    facts: Mapping[str, Any] | None = None,
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """Captions to photos and photos to captions, as `evaluate retrieval` writes it.

    Args:
        space: from `open_space`
        folder: holds captions.jsonl
        split: which of its photos
        center: whether cosines are centred
        rerank: how many of the first hits are reranked by likelihood, or how; 0: none
        reranker: a network that reranks them instead
        batch_size: items embedded together
        draws: of the bootstrap
        facts: more to write into the protocol
        progress: called with the stage, and what is done of how much

    Returns:
        "text_to_image", "image_to_text", "protocol"; with reranking these are the reranked figures
        and "before_rerank" holds those by cosine; with depths also "by_depth"
    """
    how = Reranking(rerank) if isinstance(rerank, int) else rerank
    pack = CaptionPack.read(folder, split)
    data = embed_pack(pack, space, center=center, batch_size=batch_size, progress=progress)
    protocol = {**protocol_of(data, center), **(facts or {})}
    first = caption_retrieval(data.texts, data.images, pack.owner, protocol=protocol, draws=draws)
    if not how.deepest:
        return first
    if reranker is not None:
        judged = judged_by(reranker, pack, batch_size, of_stage(progress, "photos to rerank"))
        named = protocol | {"reranker": reranker.name}
        return _with_before(how, partial(_ranked, data, named, draws, judged), first)

    def embed(other: CaptionPack) -> Embedded:
        return embed_pack(other, space, center=center, batch_size=batch_size, progress=progress)

    chosen = _chosen(data, how, folder, embed, progress)
    pairs = _pairs(data, how.caption_depth, chosen.given)
    protocol |= {
        "caption_depth": how.caption_depth,
        "score": "weighted sum of cosine, codes, caption and prior; see search.likelihood_scores",
        "rerank_weights": dict(
            zip(DIRECTIONS, map(dict, (chosen.forward, chosen.back)), strict=True)
        ),
        "rerank_weights_from": chosen.source,
        "rerank_given": chosen.given,
    }
    if chosen.fits:
        protocol["rerank_fits"] = dict(chosen.fits)

    def at(depth: int) -> dict[str, Any]:
        forward, back = (
            pairs.rescore(weights, Direction(pack.owner, by_text), depth, progress)
            for weights, by_text in ((chosen.forward, True), (chosen.back, False))
        )
        found = _ranked(data, protocol, draws, (forward, back), depth)
        both = zip(DIRECTIONS, (chosen.forward, chosen.back), strict=True)
        alone = [name for name, weights in both if not any({**weights, "cosine": 0.0}.values())]
        return {**found, **{name: first[name] for name in alone}}  # cosines that are equal, too

    return _with_before(how, at, first)


def _ranked(
    data: Embedded,
    protocol: Mapping[str, Any],
    draws: int,
    rescore: tuple[Rescore, Rescore],
    depth: int,
) -> dict[str, Any]:
    """The figures with the first hits in the order of new scores."""
    return caption_retrieval(
        data.texts, data.images, data.pack.owner, protocol=protocol, draws=draws,
        rerank=(depth, *rescore),
    )  # fmt: skip


def _with_before(
    how: Reranking, at: Callable[[int], dict[str, Any]], first: Mapping[str, Any]
) -> dict[str, Any]:
    """The reranked figures of the deepest, beside those by cosine and those of other depths."""
    report, before = at(how.deepest), {k: first[k] for k in DIRECTIONS}
    return {**report, "before_rerank": before, **_by_depth(how, report, before, at)}


def _by_depth(how: Reranking, report: Any, before: Any, at: Any) -> dict[str, Any]:
    """The figures of each depth that a curve is wanted of."""
    known = {0: before, how.deepest: report}
    found = []
    for depth in sorted(set(how.depths)):
        figures = known[depth] if depth in known else at(depth)
        found.append({"depth": depth, **{name: figures[name] for name in DIRECTIONS}})
    return {"by_depth": found} if found else {}


def depth_lines(report: Mapping[str, Any]) -> dict[str, list[tuple[float, ...]]]:
    """The figures by depth as lines to plot: measure and direction -> (depth, value, interval)."""
    lines = {}
    for name in DIRECTIONS:
        points = {point["depth"]: point[name] for point in report["by_depth"]}
        for measure, line in curve(points, ("R@1", "R@10")).items():
            lines[f"{name.replace('_', ' ')} {measure}"] = line
    return lines


def _pairs(data: Embedded, caption_depth: int, given: Given = "codes") -> PairScores:
    return PairScores.of(
        data.space, data.items, data.codes, data.texts, data.images, caption_depth=caption_depth,
        given=given, pictures=data.pack.pictures_at,
    )  # fmt: skip


def _chosen(
    data: Embedded,
    how: Reranking,
    folder: str | Path,
    embed: Callable[[CaptionPack], Embedded],
    progress: StageProgress | None,
) -> Chosen:
    """Weights for both directions, what captions are predicted from, and where both come from.

    `embed` gives the fit split as the measured one was: centred by its own mean, or not at all.
    """
    learnt = data.space.fitted
    given = None if how.given == "auto" else how.given
    forward, back = (fitted_choice(learnt, given, direction) for direction in DIRECTIONS)
    if how.weights is not None:
        check_weights(how.weights)
        return Chosen(how.weights, how.weights, forward.given, "given")
    if how.fit_split is not None:
        if how.fit_split == data.pack.split:
            raise ConfigError(
                f"weights that are fitted on the split that is measured ({how.fit_split!r}) tell "
                "nothing; name another --fit-split, or leave it out"
            )
        return _fitted(embed(CaptionPack.read(folder, how.fit_split)), how, progress)
    if not forward.source:
        log.warning(NOTHING_FITTED)
    source = f"kept beside the model: {forward.source}" if forward.source else "none fitted"
    return Chosen(forward.weights, back.weights, forward.given, source)


def _fitted(val: Embedded, how: Reranking, progress: StageProgress | None) -> Chosen:
    """What fits a split best, by the mean log probability of right answers in both directions."""
    found, log_p = fits_of(val, how, progress)
    best = best_given(log_p)
    forward, back = (fit.weights for fit in found[best])
    told = {str(name): value for name, value in log_p.items() if np.isfinite(value)}
    return Chosen(forward, back, best, f"fitted on the split {val.pack.split!r}", told)


def best_given(log_p: Mapping[Given, float]) -> Given:
    """What captions are best predicted from: reading photos must bring `WORTH` more."""
    best = next(iter(log_p))
    for given, value in log_p.items():
        # not a number where nothing could be fitted
        best = given if value - log_p[best] > WORTH else best
    return best


def fits_of(
    val: Embedded, how: Reranking, progress: StageProgress | None = None, *, most: int = FIT_QUERIES
) -> tuple[dict[Given, tuple[Fit, Fit]], dict[Given, float]]:
    """The fits of both directions for each input of captions, and how well they fit."""
    names = _possible(val.space) if how.given == "auto" else (how.given,)
    pairs = _pairs(val, how.caption_depth, names[0])
    found: dict[Given, tuple[Fit, Fit]] = {}
    for given in names:
        if given != names[0]:
            assert val.codes is not None
            pairs = pairs.with_given(given, val.codes, val.pack.pictures_at)
        forward, back = (
            pairs.fit(Direction(val.pack.owner, b), how.deepest, progress, most=most)
            for b in (True, False)
        )
        found[given] = forward, back
        if not pairs.speaks:
            break
    return found, {given: sum(fit.log_p for fit in both) for given, both in found.items()}


def _possible(space: Space) -> tuple[Given, ...]:
    """What of a photo this model can read."""
    model = Likelihood.of(space).space.pipe.model
    inputs = {m.name.partition("@")[0] for m in model.config.inputs}
    return GIVEN if PICTURE in inputs else ("codes",)


ALL = "all"


def evaluate_same_class(
    space: Space,
    folder: str | Path,
    split: str = "test",
    *,
    batch_size: int = 32,
    draws: int = 1000,
    facts: Mapping[str, Any] | None = None,
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """mAP, R@K, MRR and nDCG with intervals, as `evaluate same-class` writes it.

    Args:
        space: from `open_space`; its gallery says who embeds the photos
        folder: with labels.jsonl, or a folder of classes; see `photos.labelled`
        split: which of its photos; "all" for all of them
        batch_size: photos embedded together
        draws: of the bootstrap
        facts: more to write into the protocol
        progress: called with the stage, and what is done of how much

    Raises:
        ConfigError: photos of several labels, or no class with two photos
    """
    photos = read_labelled(folder, split=None if split == ALL else split)
    photos = readable(photos) if space.reads == "pictures" else photos
    if photos.multi_label:
        raise ConfigError("the same-class protocol is for one label a photo")
    rows, alone = _with_others(photos)
    vectors = _embedded(space, photos, rows, batch_size, progress)
    labels = [photos.classes[int(photos.labels[i])] for i in rows]
    protocol = {
        "split": split,
        "data": str(folder),
        **space_facts(space),
        "skipped": [vars(skip) for skip in photos.skipped],
        "left_out_alone_in_class": alone,
        **(facts or {}),
    }
    return same_class_retrieval(vectors, labels, protocol=protocol, draws=draws)


def _with_others(photos: LabelledSet) -> tuple[list[int], list[str]]:
    """Numbers of photos whose class has another photo, and the ids of those without."""
    labels = photos.labels.tolist()
    count = Counter(labels)
    rows = [i for i, label in enumerate(labels) if count[label] > 1]
    if not rows:
        raise ConfigError("no class has two readable photos, so there is nothing to find")
    return rows, [photos.photos[i].record.id for i, c in enumerate(labels) if count[c] == 1]


def _embedded(
    space: Space,
    photos: LabelledSet,
    rows: list[int],
    batch_size: int,
    progress: StageProgress | None,
) -> Any:
    parts = []
    for part in batches(rows, batch_size, of_stage(progress, "photos")):
        some = [READ[space.reads](photos.photos[i].record) for i in part]
        parts.append(space.encode_document(some, batch_size=batch_size)[0])
    return np.concatenate(parts)
