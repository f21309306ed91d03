"""Making a joint space of two encoders: heads that bring pictures and their captions together.

The encoders stay as they are and see everything once; what they say is kept in shards, so a run
that was stopped goes on. The heads learn by InfoNCE in both directions. A batch holds each photo
once, with one of its captions: a second one would be its own wrong answer.
Source: CLIP (Radford et al. 2021); frozen towers: LiT (Zhai et al. 2022)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourm_lite.data.label_rows import read_vectors
from fourm_lite.data.labellers import NetworkLabeller
from fourm_lite.data.pseudolabel import LabelRun, pseudolabel
from fourm_lite.data.shards import aligned
from fourm_lite.data.text_labels import label_by_encoder
from fourm_lite.data.unread import usable
from fourm_lite.embedders.base import NetworkEmbedder
from fourm_lite.embedders.joint_space import (
    Bags,
    JointHeads,
    Side,
    WordWeights,
    save_joint_space,
)
from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.io.recipe import Recipe
from fourm_lite.photos.records import Record, read_records
from fourm_lite.progress import StageProgress, of_stage
from fourm_lite.training.loop import Losses, TrainConfig
from fourm_lite.training.losses import info_nce
from fourm_lite.training.tasks import ranks, recall

IMAGE, TEXT = "image", "text"
LEAST_PHOTOS = 8


@dataclass(frozen=True, kw_only=True)
class SpaceRecipe:
    """The two encoders, and what brings them together.

    Units:
        image, text: encoders as `load_embedder` reads them; text "" for words alone
        captions: a list of photos with captions; split: to learn, held_out: to measure ("" none)
        labels: folder of what the encoders give; more may lie in it
        width: of the space
        least: captions that a word stands in to be known by itself; 0 for no words
        views: crops a photo that the image encoder sees, the first of them whole
        dropout: share of features left out of a step
    """

    image: str
    captions: Path
    labels: Path
    text: str = ""
    split: str = "train"
    held_out: str = "val"
    width: int = 512
    least: int = 3
    views: int = 1
    dropout: float = 0.3
    batch_size: int = 512

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be."""
        if min(self.width, self.views) < 1 or self.least < 0 or self.batch_size < 2:
            raise ConfigError("a joint space needs width and views of at least 1, batches of at "
                              f"least 2 and least >= 0, got {self}")  # fmt: skip
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a share in 0..1, got {self.dropout}")
        if not self.text and not self.least:
            raise ConfigError("without `text` a joint space needs words: least >= 1")


@dataclass(frozen=True, kw_only=True)
class JointSpaceRecipe(Recipe):
    """Everything about the making of one joint space.

    Units:
        facts: what joint_space.json says of it beside its sizes, such as licence and data
    """

    joint_space: SpaceRecipe
    train: TrainConfig
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    """Photos with what the encoders give for them and for their captions.

    Shapes:
        images: float32[N, views, E]; sentences: float32[T, S] or None
        first: int64[N + 1], the captions of photo i are first[i] .. first[i + 1]
    """

    images: Tensor
    captions: Sequence[str]
    sentences: Tensor | None
    first: Tensor

    @property
    def owner(self) -> Tensor:
        """The photo of each caption: int64[T]."""
        return torch.repeat_interleave(torch.arange(len(self.images)), self.first.diff())


@dataclass(frozen=True)
class PairBatch:
    """Rows that belong together: float32[B, E], float32[B, S] or None, words or None."""

    images: Tensor
    sentences: Tensor | None
    bags: Bags | None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> PairBatch:
        """The same on another device."""
        sentences = None if self.sentences is None else self.sentences.to(device)
        bags = None if self.bags is None else self.bags.to(device)
        return PairBatch(self.images.to(device), sentences, bags)


class PairStream:
    """Batches of photos, each with one of its captions; every pass takes the next caption."""

    def __init__(self, pairs: Pairs, words: WordWeights, batch_size: int, seed: int) -> None:
        self.pairs, self.seed = pairs, seed
        self.size = min(batch_size, len(pairs.images))
        self._rows = [words.row(text) for text in pairs.captions] if words.words else None

    @property
    def fingerprint(self) -> str:
        """Tells these captions, in this order, from others."""
        text = json.dumps([list(self.pairs.captions), self.size, self.seed])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def epoch(self, step: int) -> float:
        """Passes over the photos before that step."""
        return step * self.size / len(self.pairs.images)

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> PairBatch:
        """The batch of a step."""
        pairs, number = self.pairs, step * world + rank
        turn, within = divmod(number, len(pairs.images) // self.size)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
        order = torch.randperm(len(pairs.images), generator=generator)
        photos = order[within * self.size :][: self.size]
        views = torch.randint(pairs.images.shape[1], (len(photos),), generator=generator)
        counts = pairs.first.diff()[photos]
        captions = pairs.first[photos] + (turn + self._offsets()[photos]) % counts
        return PairBatch(
            pairs.images[photos, views],
            None if pairs.sentences is None else pairs.sentences[captions],
            None if self._rows is None else Bags.joined([self._rows[i] for i in captions.tolist()]),
        )

    def _offsets(self) -> Tensor:
        """Which caption a photo begins with, so that no turn has all of the first: int64[N]."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(1 << 30, (len(self.pairs.images),), generator=generator)


@dataclass
class JointSpaceTask:
    """The heads and what they learn."""

    model: JointHeads
    words: WordWeights
    recipe: JointSpaceRecipe
    held_out: Pairs | None = None

    def step(self, model: nn.Module, batch: PairBatch, generator: torch.Generator) -> Losses:
        """InfoNCE of one batch: each row finds its own column, each column its own row."""
        dropout = self.recipe.joint_space.dropout
        loss = info_nce(model(batch.images, batch.sentences, batch.bags, dropout))
        return Losses(loss, {"scale": self.model.scale.exp()}, len(batch))

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Recall of the held-out captions among their photos."""
        pairs = self.held_out
        if pairs is None:
            return {}
        bags = self.words.bags(pairs.captions) if self.words.words else None
        asked = PairBatch(pairs.images[:, 0], pairs.sentences, bags).to(self.model.scale.device)
        images = self.model.embed_images(asked.images)
        texts = self.model.embed_texts(asked.sentences, asked.bags)
        return recall(ranks((texts @ images.T).cpu(), pairs.owner))

    def save(self, folder: Path) -> None:
        """Writes what `joint:FOLDER` opens."""
        space = self.recipe.joint_space
        encoders = {IMAGE: space.image} | ({TEXT: space.text} if space.text else {})
        facts = {**self.recipe.facts, **self.validate(0)}
        save_joint_space(folder, self.model, self.words, encoders, facts)


def joint_space_training(
    recipe: JointSpaceRecipe, progress: StageProgress | None = None
) -> tuple[JointSpaceTask, PairStream]:
    """The task and the stream of a recipe, ready for `fit`; the encoders see what they have not.

    Raises:
        ConfigError: too few photos with captions
        FourMError: an encoder reads no pictures, or no texts
    """
    space, seed = recipe.joint_space, recipe.train.seed
    encoders = {IMAGE: load_embedder(space.image)}
    if space.text:
        encoders[TEXT] = load_embedder(space.text)
    for side, encoder in encoders.items():
        if side not in encoder.can:
            raise FourMError(f"'{encoder.name}' embeds {', '.join(encoder.can)}, {side} is needed")
    pairs = read_pairs(space, space.split, encoders, progress)
    if len(pairs.images) < LEAST_PHOTOS:
        raise ConfigError(f"expected at least {LEAST_PHOTOS} photos with captions, got "
                          f"{len(pairs.images)}")  # fmt: skip
    words = WordWeights.of(pairs.captions, space.least) if space.least else WordWeights((), ())
    held_out = read_pairs(space, space.held_out, encoders, progress) if space.held_out else None
    text_width = 0 if pairs.sentences is None else pairs.sentences.shape[1]
    heads = JointHeads(pairs.images.shape[-1], text_width, len(words.words), space.width)
    heads.init_weights(torch.Generator().manual_seed(seed))
    assert isinstance(heads.image, Side)
    heads.image.measure(pairs.images.flatten(0, 1))
    if heads.text is not None and pairs.sentences is not None:
        heads.text.measure(pairs.sentences)
    stream = PairStream(pairs, words, space.batch_size, seed)
    return JointSpaceTask(heads, words, recipe, held_out), stream


def read_pairs(
    space: SpaceRecipe,
    split: str,
    encoders: dict[str, NetworkEmbedder],
    progress: StageProgress | None,
) -> Pairs:
    """One split, with what the encoders give for it; what is there already is read."""
    records = [r for r in read_records(space.captions, split=split) if r.captions and r.has_photo]
    folder = space.labels / (split or "all")
    images = _image_vectors(records, encoders[IMAGE], folder, space.views, progress)
    records = usable(records, set(images[0]))
    values = aligned(images, [r.id for r in records])
    counts = torch.tensor([0, *(len(r.captions) for r in records)])
    sentences = None
    if TEXT in encoders:
        sentences = _sentence_vectors(records, encoders[TEXT], folder / "captions", progress)
    return Pairs(
        torch.from_numpy(values).float(),
        [c for r in records for c in r.captions],
        sentences,
        counts.cumsum(0),
    )


def _image_vectors(
    records: Sequence[Record],
    encoder: NetworkEmbedder,
    folder: Path,
    views: int,
    progress: StageProgress | None,
) -> tuple[list[str], Any]:
    run = partial(encoder.embed_image, normalize=False)
    labeller = NetworkLabeller(IMAGE, run, spec=f"vector of {encoder.space}")
    pseudolabel(
        records,
        [labeller],
        folder,
        run=LabelRun(num_crops=views),
        progress=of_stage(progress, "photos"),
    )
    return read_vectors(folder, IMAGE)


def _sentence_vectors(
    records: Sequence[Record],
    encoder: NetworkEmbedder,
    folder: Path,
    progress: StageProgress | None,
) -> Tensor:
    spoken = [
        Record(f"{r.id}#{k}", b"", (caption,))
        for r in records
        for k, caption in enumerate(r.captions)
    ]
    run = partial(encoder.embed_text, normalize=False)
    labeller = NetworkLabeller(TEXT, run, spec=f"vector of {encoder.space}")
    label_by_encoder(spoken, labeller, folder, progress=of_stage(progress, "captions"))
    rows = aligned(read_vectors(folder, TEXT), [r.id for r in spoken])[:, 0]
    return torch.from_numpy(np.ascontiguousarray(rows)).float()
