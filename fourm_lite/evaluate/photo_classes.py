"""How well labelled photos are classified: by frozen features, or in words.

Frozen features are asked for their neighbours, through a linear map, and with a few photos a class.
In words a classifier of `evaluate.zero_shot` judges; ImageNet's 1,000 classes and the templates
that everybody measures with are open_clip's, their order is timm's, and photos of some of the
classes are judged against all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.backbone.config import HeadConfig
from fourm_lite.backbone.vit import FMViT
from fourm_lite.embedders.load import FAMILIES, load_embedder
from fourm_lite.errors import ConfigError, FourMError, check_choice, suggest
from fourm_lite.evaluate.zero_shot import BATCH, WordClassifier
from fourm_lite.finetune.pixels import readable
from fourm_lite.finetune.probe import choose_linear, fit_linear, photo_features
from fourm_lite.metrics.classification import (
    best_temperature,
    classification_report,
    knn_predict,
    log_loss,
)
from fourm_lite.photos.labelled import (
    LabelledSet,
    few_shots,
    has_split,
    hold_out,
    read_labelled,
    read_training,
)
from fourm_lite.progress import Progress, StageProgress, batches, of_stage, of_total
from fourm_lite.training.tokenizer_recipes import open_tokenizer

_FEW_SHOT_L2 = 0.1  # fixed: there are no photos left to choose it on


@dataclass(frozen=True)
class Features:
    """Frozen features of training, validation and test photos.

    Shapes:
        each pair: float[N, D] and int64[N]
    """

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor] | None
    test: tuple[Tensor, Tensor]
    sets: tuple[LabelledSet, LabelledSet]
    protocol: dict[str, Any]


def by_neighbours(found: Features, *, k: int = 20, temperature: float = 0.07) -> dict[str, Any]:
    """The report of a vote of the nearest training photos."""
    x, y = found.train
    answers = knn_predict(x.numpy(), y.numpy(), found.test[0].numpy(), k=k, temperature=temperature)
    return _report(found, answers, {"what": "kNN", "k": k, "temperature": temperature})


def by_linear_map(found: Features) -> dict[str, Any]:
    """The report of a linear map.

    The weight penalty is chosen on the validation photos, or on a tenth of the training photos.
    """
    train, val = _with_validation(found)
    linear = choose_linear(train, val, len(found.sets[0].classes))
    answers = linear(found.test[0]).argmax(dim=-1).numpy()
    return _report(found, answers, {"what": "linear probe, L-BFGS", "l2": linear.l2})


def by_few_photos(
    found: Features, shots: Sequence[int], *, draws: int = 5, seed: int = 0
) -> dict[str, Any]:
    """The report of linear maps that saw a few photos of each class, for each number of them.

    Args:
        found: the features
        shots: photos a class; the report is of the first, the others stand under "by_shots"
        draws: training sets drawn for each
        seed: of the drawing
    """
    by_shots = {n: _few_shot_answers(found, n, draws, seed) for n in shots}
    protocol = {"what": "few-shot linear probe", "shots": shots[0], "draws": draws, "seed": seed,
                "l2": _FEW_SHOT_L2, "accuracy_is": "the mean over the draws"}  # fmt: skip
    truth, names = found.test[1].numpy(), found.sets[0].classes
    more = {}
    for n, answers in by_shots.items():
        report = classification_report(answers, truth, names)
        more[str(n)] = {"accuracy": report["accuracy"], "interval": report["interval"]}
    return {**_report(found, by_shots[shots[0]], protocol), "by_shots": more}


def _report(found: Features, answers: Any, protocol: dict[str, Any]) -> dict[str, Any]:
    facts = {**found.protocol, **protocol}
    truth, names = found.test[1].numpy(), found.sets[1].classes
    return classification_report(answers, truth, names, protocol=facts)


def _few_shot_answers(found: Features, shots: int, draws: int, seed: int) -> Any:
    train = found.sets[0]
    answers = []
    for draw in range(draws):
        chosen = few_shots(train, shots, seed + draw)
        rows = _rows(train, chosen)
        x, y = found.train[0][rows], found.train[1][rows]
        linear = fit_linear(x, y, len(train.classes), l2=_FEW_SHOT_L2)
        answers.append(linear(found.test[0]).argmax(dim=-1).numpy())
    return np.stack(answers)


def _with_validation(found: Features) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    if found.val is not None:
        return found.train, found.val
    train = found.sets[0]
    kept, held = (_rows(train, part) for part in hold_out(train, 0.1))
    x, y = found.train
    return (x[kept], y[kept]), (x[held], y[held])


def _rows(data: LabelledSet, part: LabelledSet) -> Tensor:
    """Where the photos of a part stand in the whole: int64[n]."""
    place = {photo.record.id: row for row, photo in enumerate(data.photos)}
    return torch.tensor([place[photo.record.id] for photo in part.photos])


def features_of(
    model: str,
    data: str,
    test_data: str,
    features: str = "",
    dtype: str | None = None,
    *,
    progress: StageProgress | None = None,
) -> Features:
    """Features of the photos that a protocol needs.

    Of `--data` the photos of the split "train" are learnt from (those of no split, where there are
    none), of `--test-data` those of "test" are asked (all, where there are none).

    Raises:
        ConfigError: photos of several labels; or one source for both without a test split
    """
    asked = test_data or data
    own_test = has_split(asked, "test")
    if not own_test and Path(asked).resolve() == Path(data).resolve():
        raise ConfigError(
            f"{data} names no test photos (no split 'test'), and those learnt from are not asked; "
            "give other photos with --test-data"
        )
    train = readable(read_training(data))
    test = readable(read_labelled(asked, split="test" if own_test else None, classes=train.classes))
    val = None
    if has_split(data, "val"):
        val = readable(read_labelled(data, split="val", classes=train.classes))
    if train.multi_label:
        raise ConfigError("kNN, probe and few-shot protocols are for one label a photo")
    embed, what = feature_function(model, features, dtype)
    protocol = {
        "model": model,
        "features": what,
        "data": data,
        "test_data": asked,
        "train_photos": len(train),
        "val_photos": 0 if val is None else len(val),
        "classes": len(train.classes),
        "skipped": [vars(s) for part in (train, test) for s in part.skipped],
    }
    return Features(
        (embed(train, of_stage(progress, "training photos")), train.labels),
        None if val is None else (embed(val, of_stage(progress, "validation photos")), val.labels),
        (embed(test, of_stage(progress, "test photos")), test.labels),
        (train, test),
        protocol,
    )


Embed = Callable[[LabelledSet, Progress | None], Tensor]


def feature_function(model: str, features: str = "", dtype: str | None = None) -> tuple[Embed, str]:
    """What turns labelled photos into features float[N, D], and what these are.

    Raises:
        FourMError: the model or tokenizer cannot be used
    """
    if model.partition(":")[0] in FAMILIES:
        if dtype is not None:
            raise ConfigError(f"--dtype is for 4M models; '{model}' is an embedding network")
        return _network_features(model, features)
    if features == "embedding":
        return _generated_features(model, dtype), "the expected global embedding, from pixels"
    if features not in ("", "encoder"):
        raise ConfigError(f"--features of a 4M model is encoder or embedding, got {features!r}")
    vit = FMViT.from_pretrained(model, head=HeadConfig(num_classes=0), dtype=dtype)
    embed: Embed = lambda part, progress: photo_features(vit, part, progress=progress)  # noqa: E731
    return embed, "mean of the encoder's tokens, normed"


def _network_features(model: str, tokenizer: str) -> tuple[Embed, str]:
    embedder = load_embedder(model)

    def embed(part: LabelledSet, progress: Progress | None) -> Tensor:
        pictures = (photo.record.open_image() for photo in part.photos)
        tell = of_total(progress, len(part))
        return torch.from_numpy(embedder.embed_image(pictures, normalize=False, progress=tell))

    if tokenizer in ("", "raw"):
        return embed, "the embedder's vectors, raw"
    codes = open_tokenizer(tokenizer)

    def decoded(part: LabelledSet, progress: Progress | None) -> Tensor:
        return codes.detokenize(codes.tokenize(embed(part, progress)))

    return decoded, f"the embedder's vectors, tokenized and decoded by {tokenizer}"


def _generated_features(model: str, dtype: str | None) -> Embed:
    from fourm_lite.pipeline.pipeline import FourMPipeline

    pipe = FourMPipeline.from_pretrained(model, dtype=dtype)

    def embed(part: LabelledSet, progress: Progress | None) -> Tensor:
        pictures = [{"rgb": photo.record.open_image()} for photo in part.photos]
        return torch.from_numpy(pipe.embed(pictures, progress=progress))

    return embed


def evaluate_zeroshot(
    judge: WordClassifier,
    photos: LabelledSet,
    *,
    draws: int = 1000,
    facts: dict[str, Any] | None = None,
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """Accuracy with its interval, each class, and how good the probabilities are.

    Args:
        judge: over the classes of `photos`, in their order
        photos: from `labelled_photos`
        draws: of the bootstrap
        facts: more to write into the protocol
        progress: called with the stage, and what is done of how much

    Returns:
        `classification_report`, with ``"top_5"`` (how often the class is among the first five; None
        for five classes or less), ``"log_loss"`` (in nats), ``"temperature"`` and
        ``"best_temperature"``, the one that would make the right answers on these photos likeliest
    """
    parts = []
    for some in batches(photos.photos, BATCH, of_stage(progress, "photos")):
        parts.append(judge([photo.record.open_image() for photo in some]).logits)
    logits, truth = np.concatenate(parts), photos.labels.numpy()
    protocol = {"what": "zero-shot", "skipped": [vars(s) for s in photos.skipped], **(facts or {})}
    return {
        **classification_report(
            logits.argmax(axis=1), truth, photos.classes, protocol=protocol, draws=draws
        ),
        "top_5": _top_5(logits, truth),
        "log_loss": log_loss(logits, truth),
        "temperature": judge.temperature,
        "best_temperature": judge.temperature * best_temperature(logits, truth),
    }


def _top_5(logits: Any, truth: Any) -> float | None:
    """Classes of equal score stand in the order of their numbers, as in `accuracy`."""
    if logits.shape[1] <= 5:
        return None
    first = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    return float((first == truth[:, None]).any(axis=1).mean())


def labelled_photos(folder: str | Path, split: str, limit: int | None = None) -> LabelledSet:
    """The readable photos of a split; with a limit, so many, evenly over the list.

    Raises:
        ConfigError: photos of several labels
    """
    photos = read_labelled(folder, split=split)
    if photos.multi_label:
        raise ConfigError("zero-shot accuracy is for one label a photo")
    if limit is not None and limit < len(photos):
        photos = photos.rows(i * len(photos) // limit for i in range(limit))
    return readable(photos)


CLASSES = ("imagenet",)
# what users call them -> open_clip's names
TEMPLATES = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}


def imagenet_names() -> dict[str, list[str]]:
    """The name of each class, by its WordNet id, in the order of the classes.

    Raises:
        FourMError: open_clip is not installed
    """
    from timm.data.imagenet_info import ImageNetInfo

    ids = ImageNetInfo().label_names()
    names = _open_clip("IMAGENET_CLASSNAMES")
    if len(ids) != len(names):
        raise FourMError(f"timm knows {len(ids)} classes of ImageNet, open_clip {len(names)}")
    return {one: [name] for one, name in zip(ids, names, strict=True)}


def templates_of(name: str) -> tuple[str, ...]:
    """The sentences of a set of templates, `{}` in place of the class.

    Raises:
        ConfigError: no such set
        FourMError: open_clip is not installed
    """
    check_choice(
        "--templates", name, of=TEMPLATES, advice="For sentences of your own repeat --template."
    )
    return tuple(template("{}") for template in _open_clip(TEMPLATES[name]))


def as_imagenet(photos: LabelledSet, names: dict[str, list[str]]) -> LabelledSet:
    """Photos whose classes are WordNet ids, class numbers or names, among all of the classes.

    Raises:
        ConfigError: a class that ImageNet does not have
    """
    ids = list(names)
    known = {one: number for number, one in enumerate(ids)}
    known |= {str(number): number for number in range(len(ids))}
    for number, (name,) in enumerate(names.values()):
        known.setdefault(name, number)
    unknown = [label for label in photos.classes if label not in known]
    if unknown:
        raise ConfigError(
            f"{len(unknown)} classes are none of ImageNet's, such as '{unknown[0]}'; they are "
            "written as WordNet ids (n01440764), as numbers from 0 to 999, or as names."
            f"{suggest(unknown[0], known)}"
        )
    numbers = [known[label] for label in photos.classes]
    moved = tuple(replace(p, classes=tuple(numbers[c] for c in p.classes)) for p in photos.photos)
    return replace(photos, photos=moved, classes=tuple(ids))


def _open_clip(name: str) -> Sequence[Any]:
    try:
        import open_clip
    except ImportError as error:
        raise FourMError(
            "the classes and templates of ImageNet are open_clip's: pip install open_clip_torch"
        ) from error
    found: Sequence[Any] = getattr(open_clip, name)
    return found
