"""The recipe of a model as dataclasses: what it is, its data, its losses, its course.

Paths in a recipe are relative to the current folder; a shipped tokenizer is named by name alone.
`pretraining` makes a task and a stream of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourm_lite.data.loader import Component
from fourm_lite.errors import ConfigError
from fourm_lite.io.recipe import from_dict, from_toml
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.training.initial.code_tables import CodesRecipe
from fourm_lite.training.initial.token_statistics import Calibration
from fourm_lite.training.loop import TrainConfig
from fourm_lite.training.recipe_data import DataRecipe, changed
from fourm_lite.training.tasks import LossRecipe
from fourm_lite.training.validation import ValRecipe


@dataclass(frozen=True, kw_only=True)
class StartRecipe:
    """What the weights begin with.

    Units:
        model: a trained model to go on from, of the recipe's sizes and modalities
        tables: modality that `model` lacks -> one of its own whose tables it begins with; "" draws
            them. Those of `model` that the recipe has not are then left out
        said: features modality -> source with captions, from which its map is solved so that a
            vector begins as the words that it goes with
        vit: safetensors of a timm ViT for the encoder
        calibration: word vectors and a read-out by regression; needs `embeddings`
        codes: vectors of the codes of maps by regression; needs `embeddings`
        embeddings: name of the label that holds the teacher's embeddings, in `data.labels`
        logits: global embedding -> batches from which its logits are solved
        convolutions: ONNX file of a MobileNetV2 whose first layers those beside the encoder take;
            a `model` may then be without any, and one that has trained ones keeps them
        heads: batches from which the heads of `losses.distill` are solved; 0 draws them
    """

    vit: Path | None = None
    calibration: Calibration | None = None
    codes: CodesRecipe | None = None
    embeddings: str = ""
    model: Path | None = None
    tables: Mapping[str, str] = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)
    logits: Mapping[str, int] = field(default_factory=dict)
    convolutions: Path | None = None
    heads: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """Everything about the training of one model.

    Units:
        text: the text tokenizer, a file, folder or shipped name
        modalities: entries that the table does not hold, or that differ from it
        inputs, outputs: names, in the order of the model
        model: keyword arguments of `FourMConfig`
        data: the source that components read unless they say another, by the name of "train"
        sources: further ones, by the names that components give as their `source`
        val: metrics on unseen photos, at each `train.eval_every`
        added: components beside `components`, which are those of the base
        changes: name of a component -> what of it differs; a weight of 0 leaves it out. So a recipe
            changes a mixture that its base describes.
    """

    text: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    model: Mapping[str, Any]
    data: DataRecipe
    components: tuple[Component, ...]
    train: TrainConfig
    modalities: tuple[Mapping[str, Any], ...] = ()
    start: StartRecipe = field(default_factory=StartRecipe)
    losses: LossRecipe = field(default_factory=LossRecipe)
    sources: Mapping[str, DataRecipe] = field(default_factory=dict)
    val: ValRecipe | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    added: tuple[Component, ...] = ()
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Adds to the components, changes them; refuses a source by the name of the first."""
        if "train" in self.sources:
            raise ConfigError("[data] is the source 'train'; give sources.train another name")
        object.__setattr__(self, "components", changed(self.components + self.added, self.changes))

    @classmethod
    def read(cls, path: Path) -> ModelRecipe:
        """The recipe of a TOML file."""
        return from_toml(cls, path)

    @property
    def all_sources(self) -> Mapping[str, DataRecipe]:
        """The sources by the names that components give them: `data` is "train"."""
        return {"train": self.data, **self.sources}

    def config(self) -> FourMConfig:
        """The model's configuration.

        Raises:
            UnknownNameError: a modality is neither described here nor in the table
        """
        if twice := sorted({"inputs", "outputs"} & self.model.keys()):
            raise ConfigError(f"{twice} stand at the top of a recipe, not in its table [model]")
        own = {m.name: m for m in (Modality.from_dict(dict(entry)) for entry in self.modalities)}
        sides = {"inputs": self.inputs, "outputs": self.outputs}
        known = {side: tuple(own.get(n) or MODALITIES[n] for n in sides[side]) for side in sides}
        return from_dict(FourMConfig, {**self.model, **known}, where="model")
