"""The recipe of a tokenizer: what it is made of, the values that it learns, its course."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fourm_lite.data.label_rows import read_labels
from fourm_lite.data.loader import ArrayStream
from fourm_lite.data.tokenized import FORMS, signed
from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.io.hub import resolve
from fourm_lite.io.recipe import Recipe
from fourm_lite.modalities.crops import CropPolicy, cut_image, random_crop
from fourm_lite.modalities.spec import Crop, Modality
from fourm_lite.photos.records import Record, read_caption_list
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.training.initial.closed_form import start_patches, start_vectors
from fourm_lite.training.loop import TrainConfig
from fourm_lite.training.tasks import TokenizerTask

CODE_PARTS = ("cls_emb.", "encoder.", "quant_proj.", "quantize.", "input_")
"""What of a tokenizer's weights decides its tokens."""
Form = Literal["classes", "edges", "features", "vectors", "photos"]


@dataclass(frozen=True, kw_only=True)
class ValuesRecipe:
    """The values that a tokenizer learns.

    Units:
        form: how a label is read; "photos" reads `captions` and no labels
        labels: folders of `pseudolabel`; all crops of all of them are used
        label: name of the label in these folders
        split: of the caption list
        start_count: values that the start without gradients looks at; 0 begins from noise
        hflip: half of the values are mirrored
        crop: smallest and largest share of a photo's area that is cut out; photos only
    """

    form: Form
    labels: tuple[Path, ...] = ()
    label: str = ""
    captions: Path | None = None
    split: str = "train"
    start_count: int = 1400
    hflip: bool = True
    crop: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe(Recipe):
    """Everything about the training of one tokenizer.

    Units:
        tokenizer: keyword arguments of `TokenizerConfig`
        centre: sets the config's mean and scale from the values
        loss: a name of `training.losses.LOSSES`
        start: a tokenizer whose encoder and codes are taken over, such as for another decoder
    """

    tokenizer: Mapping[str, Any]
    values: ValuesRecipe
    train: TrainConfig
    loss: str = "mse"
    start: str | None = None
    centre: bool = False
    batch_size: int = 32
    extra: Mapping[str, Any] = field(default_factory=dict)


class Values:
    """Values by number, read when they are asked for."""

    def __init__(self, count: int, read: Callable[[int], Tensor]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        return self._read(index)

    def first(self, count: int) -> Tensor:
        """The first `count` values (or all), stacked."""
        return torch.stack([self[i] for i in range(min(count, len(self)))])


def read_values(recipe: ValuesRecipe, size: int | tuple[int, int]) -> Values:
    """The values of a recipe; of photos, the middles at the tokenizer's size.

    Raises:
        ConfigError: the recipe names no source
    """
    if recipe.form == "photos":
        if recipe.captions is None:
            raise ConfigError("form 'photos' needs `captions`, a caption list")
        records = read_caption_list(recipe.captions, split=recipe.split)
        return Values(len(records), lambda i: _photo(records[i], size))
    if not recipe.labels or not recipe.label:
        raise ConfigError(f"form {recipe.form!r} needs `labels` (folders) and `label` (a name)")
    arrays = [read_labels(folder, recipe.label)[1] for folder in recipe.labels]
    flat = [a.reshape(-1, *a.shape[2:]) for a in arrays]
    ends = np.cumsum([len(a) for a in flat])
    convert = FORMS[recipe.form]

    def read(index: int) -> Tensor:
        which = int(np.searchsorted(ends, index, side="right"))
        place = index - int(ends[which]) + len(flat[which])
        return convert(flat[which][place : place + 1])[0]

    return Values(int(ends[-1]), read)


def _photo(record: Record, size: int | tuple[int, int]) -> Tensor:
    image = record.open_image()
    return signed(cut_image(image, Crop.center(image.height, image.width, size)))


def build_tokenizer(recipe: TokenizerRecipe, values: Values) -> VQTokenizer:
    """The tokenizer with the weights that it begins with."""
    config = TokenizerConfig(**recipe.tokenizer)
    sample = values.first(recipe.values.start_count or 512)
    if recipe.centre:
        axes = [0, *range(2, sample.ndim)]
        mean = sample.mean(dim=axes)
        deviation = (sample - mean.view(-1, *[1] * (sample.ndim - 2))).std()
        numbers = tuple(round(float(m), 6) for m in mean)
        config = replace(config, mean=numbers, scale=round(float(1 / deviation), 6))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        tokenizer = VQTokenizer(config)
    if recipe.start is not None:
        _take_codes(tokenizer, recipe.start)
    elif recipe.values.start_count:
        generator = torch.Generator().manual_seed(recipe.train.seed)
        start = start_vectors if recipe.values.form == "vectors" else start_patches
        start(tokenizer, sample, generator)
    return tokenizer


def _take_codes(tokenizer: VQTokenizer, source: str) -> None:
    """Writes another tokenizer's encoder and codebook into this one.

    Raises:
        CheckpointError: they are of another size
    """
    theirs = open_tokenizer(source).state_dict()
    own = tokenizer.state_dict()
    shared = [name for name in own if name.startswith(CODE_PARTS)]
    for name in shared:
        if name not in theirs or theirs[name].shape != own[name].shape:
            raise CheckpointError(
                f"'{name}' is {list(own[name].shape)} here and "
                f"{list(theirs[name].shape) if name in theirs else 'absent'} in {source}; copy the "
                "sizes of its encoder and codebook into the recipe"
            )
    tokenizer.load_state_dict({name: theirs[name] for name in shared}, strict=False)


def open_tokenizer(source: str) -> VQTokenizer:
    """A tokenizer by name, folder or file, or the weights of a shipped one."""
    from fourm_lite.tokenization.load import load_tokenizer

    folder = resolve(source)
    weights = folder / "weights"
    return load_tokenizer(weights if weights.is_dir() else folder)


def tokenizer_of(entry: Modality) -> VQTokenizer:
    """The tokenizer that a modality names, not to be trained.

    Raises:
        ConfigError: it names none
    """
    if entry.tokenizer is None:
        raise ConfigError(f"'{entry.name}' names no tokenizer, and its codes are needed")
    return open_tokenizer(entry.tokenizer).requires_grad_(False)


def tokenizer_training(recipe: TokenizerRecipe) -> tuple[TokenizerTask, ArrayStream]:
    """The task and the stream of a recipe, ready for `fit`."""
    values = read_values(recipe.values, TokenizerConfig(**recipe.tokenizer).image_size)
    task = TokenizerTask(build_tokenizer(recipe, values), recipe.loss)
    name = f"{recipe.values.form}:{recipe.values.label}"
    stream = ArrayStream(
        values, recipe.batch_size, recipe.train.seed, _augmentation(recipe.values), name
    )
    return task, stream


def _augmentation(recipe: ValuesRecipe) -> Any:
    """What is done to each value that is drawn: (value, rng) -> value, or None."""
    if recipe.crop is not None:
        if recipe.form != "photos":
            raise ConfigError("values.crop cuts photos; labels hold their own crops (pseudolabel)")
        policy = CropPolicy(scale=recipe.crop, hflip=0.5 if recipe.hflip else 0.0)
        return partial(_cropped, policy)
    return _flipped if recipe.hflip and recipe.form != "vectors" else None


def _cropped(policy: CropPolicy, value: Tensor, rng: np.random.Generator) -> Tensor:
    height, width = value.shape[-2:]
    crop = random_crop(height, width, policy, rng)
    part = value[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    out = F.interpolate(part[None], (height, width), mode="bicubic", antialias=True)[0]
    return (out.flip(-1) if crop.hflip else out).clamp(-1, 1)


def _flipped(value: Tensor, rng: np.random.Generator) -> Tensor:
    return value.flip(-1) if rng.random() < 0.5 else value
