"""Fine-tuning OSCAR, UNITER and M3P: vectors and matching in turn, on one set of weights.

A step is of one objective; the recipe says in which order. Negatives of matching are drawn at
random or, with `hard`, by how near they are to the current weights. What a step reads follows from
its number, so a run that was stopped goes on as if it had not been.

Source: Geigle et al. 2022, Retrieve Fast, Rerank Smart; ANCE (Xiong et al. 2021) for hard negatives
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourm_lite.embedders.features import FeatureStore
from fourm_lite.embedders.mmt.batches import Regions, join_batch
from fourm_lite.embedders.mmt.load import Joint, open_joint, write_joint
from fourm_lite.embedders.mmt.network import HeadInput
from fourm_lite.errors import ConfigError, check_choice, suggest
from fourm_lite.io.recipe import Recipe
from fourm_lite.photos.records import read_caption_list
from fourm_lite.training.loop import Losses, TrainConfig
from fourm_lite.training.losses import contrastive_loss, hardest_triplet_loss, matching_loss

Objective = Literal["twin", "match"]
TwinLoss = Literal["triplet", "contrastive"]
HEAD = "classifier"
Read = tuple[list[int], list[int]]


@dataclass(frozen=True, kw_only=True)
class PairsRecipe:
    """Captions of pictures, and the regions of these.

    Units:
        captions: a caption list; ids are those of the features, with or without an ending
        features: a store of region features
        split: of the list; "" takes everything
        batch_size: pairs a step
    """

    captions: Path
    features: Path
    split: str = "train"
    batch_size: int = 128


@dataclass(frozen=True, kw_only=True)
class JointRecipe(Recipe):
    """Everything about the fine-tuning of one joint encoder.

    Units:
        joint: a folder or file that `mmt:` opens
        tokenizer, heads: what its files do not say
        order: objectives of one round; either may come several times, or not at all
        loss: of the vectors; margin is the triplets', scale that of the cosines
        hard: share of the negatives of matching that are drawn by their nearness
        dropout: in place of the network's own
    """

    joint: Path
    data: PairsRecipe
    train: TrainConfig
    tokenizer: Path | None = None
    heads: int | None = None
    order: tuple[str, ...] = ("twin", "match")
    loss: TwinLoss = "triplet"
    margin: float = 0.1
    scale: float = 20.0
    hard: float = 0.0
    dropout: float | None = None

    def __post_init__(self) -> None:
        """Refuses objectives and shares that there are not."""
        check_choice("an objective of the order", *self.order, of=get_args(Objective))
        if not self.order or not 0 <= self.hard <= 1 or self.data.batch_size < 2:
            raise ConfigError(
                "a joint recipe needs an order, a share `hard` in 0..1 and batches of at least 2, "
                f"got {self.order}, {self.hard} and {self.data.batch_size}"
            )


@dataclass(frozen=True)
class PairBatch:
    """Pairs that belong together, by position; rows of one `picture`, int64[B], share it."""

    texts: Sequence[Read]
    regions: Sequence[Regions]
    picture: Tensor
    objective: Objective

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class PairStream:
    """Batches of captions, each with its picture, in an order of its own every epoch."""

    joint: Joint
    pairs: Sequence[tuple[str, str]]
    order: Sequence[str]
    batch_size: int
    seed: int = 0

    @property
    def fingerprint(self) -> str:
        """Tells these pairs, in this order, from others."""
        text = json.dumps([list(self.pairs), list(self.order), self.batch_size, self.seed])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> PairBatch:
        """The batch of a step; all objectives of a round see the pairs in one order."""
        size = min(self.batch_size, len(self.pairs))
        per_epoch = max(1, len(self.pairs) // size)
        number = step * world + rank
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number // per_epoch)
        order = torch.randperm(len(self.pairs), generator=generator)
        first = number % per_epoch * size
        chosen = [self.pairs[i] for i in order[first : first + size].tolist()]
        pictures = {picture: place for place, (_, picture) in enumerate(chosen)}
        return PairBatch(
            [self.joint.words.read(text) for text, _ in chosen],
            [self.joint.regions(picture) for _, picture in chosen],
            torch.tensor([pictures[picture] for _, picture in chosen]),
            self.order[step % len(self.order)],  # type: ignore[arg-type]
        )

    def epoch(self, step: int) -> float:
        """Passes over the pairs before that step."""
        return step * self.batch_size / len(self.pairs)


@dataclass
class JointTask:
    """The network and what it learns in each objective."""

    joint: Joint
    recipe: JointRecipe
    _objectives: Mapping[str, Callable[..., Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._objectives = {"twin": self._twin, "match": self._match}

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        return self.joint.model

    def step(self, model: nn.Module, batch: PairBatch, generator: torch.Generator) -> Losses:
        """The loss of one batch in its objective."""
        loss = self._objectives[batch.objective](model, batch, generator)
        return Losses(loss, {f"loss/{batch.objective}": loss}, len(batch))

    def _twin(self, model: nn.Module, batch: PairBatch, generator: torch.Generator) -> Tensor:
        texts, images = self._vectors(model, batch)
        if self.recipe.loss == "contrastive":
            return contrastive_loss(texts, images, self.recipe.scale)
        same = batch.picture.to(texts.device)
        return hardest_triplet_loss(texts, images, same, self.recipe.margin)

    def _match(self, model: nn.Module, batch: PairBatch, generator: torch.Generator) -> Tensor:
        """Each pair once, and once with another caption or another picture."""
        size = len(batch)
        swaps_text = torch.rand(size, generator=generator) < 0.5
        other = self._negatives(model, batch, swaps_text, generator)
        own = torch.arange(size)
        text = torch.cat([own, torch.where(swaps_text, other, own)])
        image = torch.cat([own, torch.where(swaps_text, own, other)])
        read = join_batch(
            [batch.texts[i] for i in text.tolist()], [batch.regions[i] for i in image.tolist()]
        )
        network = self.joint.model
        states = model(read.to(network.words.weight.device))
        labels = torch.cat([torch.ones(size), torch.zeros(size)]).long()
        logits = network.head_logits(states, HEAD)
        # pairs that are alone with their picture have no negative
        kept = torch.cat([torch.ones(size, dtype=torch.bool), other != own])
        return matching_loss(logits[kept], labels[kept].to(logits.device))

    def _negatives(
        self, model: nn.Module, batch: PairBatch, swaps_text: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Whose text or picture each gets instead, int64[B]: any, or likelier the nearer it is.

        What is near is asked of what stays: texts near the picture, or pictures near the text.
        """
        wrong = batch.picture[:, None] != batch.picture[None]
        chances = wrong.float()
        hard = torch.rand(len(batch), generator=generator) < self.recipe.hard
        if bool(hard.any()):
            was = model.training
            model.eval()
            with torch.no_grad():
                texts, images = (F.normalize(v, dim=1).cpu() for v in self._vectors(model, batch))
            model.train(was)
            cosines = texts @ images.T
            cosines = torch.where(swaps_text[:, None], cosines.T, cosines)
            near = (self.recipe.scale * cosines).softmax(dim=1) * wrong
            chances[hard] = near[hard] + 1e-9 * wrong[hard]
        alone = ~wrong.any(dim=1)
        chances[alone] = torch.eye(len(batch))[alone]
        return torch.multinomial(chances, 1, generator=generator)[:, 0]

    def _vectors(self, model: nn.Module, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Pooled states of the texts alone and of the pictures alone."""
        nothing = self.joint.words.read("")
        kinds, device = self.joint.config.pooling, self.joint.model.words.weight.device
        texts = join_batch(batch.texts, [None] * len(batch)).to(device)
        images = join_batch([nothing] * len(batch), batch.regions).to(device)
        return model(texts).pooled(kinds), model(images).pooled(kinds)

    def validate(self, step: int) -> dict[str, float]:
        """Nothing: figures of search are those of `search.rerank`."""
        return {}

    def save(self, folder: Path) -> None:
        """Writes what `mmt:FOLDER` opens."""
        weights = {k: v.detach().cpu() for k, v in self.joint.model.state_dict().items()}
        write_joint(folder, self.joint.config, weights, self.joint.words.tokenizer)


def joint_training(recipe: JointRecipe) -> tuple[JointTask, PairStream]:
    """The task and the stream of a recipe, ready for `fit`.

    Raises:
        ConfigError: a caption's picture has no features, or there are too few pairs
        CheckpointError: the model cannot be opened
    """
    store = FeatureStore.open(recipe.data.features)
    joint = open_joint(recipe.joint, features=store, tokenizer=recipe.tokenizer, heads=recipe.heads)
    joint = with_parts(joint, recipe.order, recipe.dropout)
    pairs = _pairs(recipe.data, store)
    if len({picture for _, picture in pairs}) < 2:
        raise ConfigError(f"'{recipe.data.captions}' has {len(pairs)} pairs; negatives need more")
    stream = PairStream(joint, pairs, recipe.order, recipe.data.batch_size, recipe.train.seed)
    return JointTask(joint, recipe), stream


def with_parts(joint: Joint, order: Sequence[str], dropout: float | None = None) -> Joint:
    """The network with what its objectives need: pooling by the mean, a matching head."""
    model, config = joint.model, joint.config
    if dropout is not None:
        config = replace(config, dropout=dropout)
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = dropout
    if not config.pooling:
        config = replace(config, pooling=("mean",))
    if "match" in order and HEAD not in model.heads:
        inputs: dict[str, HeadInput] = {**config.head_inputs, HEAD: "pooled"}
        config = replace(config, head_inputs=inputs)
        head = nn.Linear(model.sizes.width, 2)
        nn.init.normal_(head.weight, std=0.02, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(head.bias)
        model.heads[HEAD] = head
    model.config = config
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return joint


def _pairs(data: PairsRecipe, store: FeatureStore) -> list[tuple[str, str]]:
    """Every caption with the id of its picture's features."""
    found = []
    for record in read_caption_list(data.captions, split=data.split or None):
        names = (record.id, Path(record.id).stem)
        name = next((n for n in names if n in store), None)
        if name is None:
            raise ConfigError(
                f"'{data.features}' has no features of '{record.id}', which "
                f"'{data.captions}' describes.{suggest(record.id, store)}"
            )
        found += [(caption, name) for caption in record.captions]
    return found
