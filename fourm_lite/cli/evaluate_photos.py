"""`fourm-lite evaluate knn|probe|fewshot`: how well frozen features tell labelled photos apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.backbone.config import HeadConfig
from fourm_lite.backbone.vit import FMViT
from fourm_lite.cli.output import print_facts, require_file
from fourm_lite.cli.words import Option
from fourm_lite.embedders.load import FAMILIES, load_embedder
from fourm_lite.errors import ConfigError
from fourm_lite.finetune.pixels import readable
from fourm_lite.finetune.probe import choose_linear, fit_linear, photo_features
from fourm_lite.io.files import write_json
from fourm_lite.metrics.classification import classification_report, knn_predict
from fourm_lite.photos.labelled import (
    LabelledSet,
    few_shots,
    has_split,
    hold_out,
    read_labelled,
    read_training,
)
from fourm_lite.training.tokenizer_recipes import open_tokenizer

ModelOption = Annotated[
    str, Option("--model", "-m", help="A 4M model, an FMViT, or an embedder: timm:NAME, hf:FOLDER.")
]
DataOption = Annotated[str, Option("--data", help="Training photos with labels.")]
TestOption = Annotated[str, Option("--test-data", help="Test photos; by default those of --data.")]
FeaturesOption = Annotated[
    str,
    Option(
        "--features",
        help="Of a 4M model: encoder (mean of its tokens) or embedding (the expected global "
        "embedding). Of an embedder: raw, or a tokenizer's name: tokenized and decoded.",
    ),
]
JsonOption = Annotated[str, Option("--json", help="Write the report to this file.")]


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


def knn(
    model: ModelOption,
    data: DataOption,
    test_data: TestOption = "",
    as_json: JsonOption = "",
    features: FeaturesOption = "",
    k: Annotated[int, Option("--k", help="Neighbours.", min=1)] = 20,
    temperature: Annotated[float, Option(help="Of the votes.")] = 0.07,
) -> None:
    """Classify photos by their nearest neighbours among the training photos.

    Raises:
        FourMError: the photos or the model cannot be used
    """
    require_file(as_json, "--json")
    found = features_of(model, data, test_data, features)
    x, y = found.train
    answers = knn_predict(x.numpy(), y.numpy(), found.test[0].numpy(), k=k, temperature=temperature)
    _tell(found, answers, {"what": "kNN", "k": k, "temperature": temperature}, as_json)


def probe(
    model: ModelOption,
    data: DataOption,
    test_data: TestOption = "",
    as_json: JsonOption = "",
    features: FeaturesOption = "",
) -> None:
    """Classify photos by a linear map of frozen features.

    The weight penalty is chosen on the validation photos, or on a tenth of the training photos.

    Raises:
        FourMError: the photos or the model cannot be used
    """
    require_file(as_json, "--json")
    found = features_of(model, data, test_data, features)
    classes = len(found.sets[0].classes)
    train, val = _with_validation(found)
    linear = choose_linear(train, val, classes)
    answers = linear(found.test[0]).argmax(dim=-1).numpy()
    _tell(found, answers, {"what": "linear probe, L-BFGS", "l2": linear.l2}, as_json)


def fewshot(
    model: ModelOption,
    data: DataOption,
    test_data: TestOption = "",
    as_json: JsonOption = "",
    features: FeaturesOption = "",
    shots: Annotated[str, Option(help="Photos a class, the first is the headline.")] = "5,20",
    draws: Annotated[int, Option(help="Training sets drawn for each.", min=1)] = 5,
    seed: Annotated[int, Option(help="Of the drawing.")] = 0,
) -> None:
    """Classify photos by linear maps that saw a few photos of each class.

    Raises:
        FourMError: the photos or the model cannot be used
    """
    require_file(as_json, "--json")
    numbers = _numbers(shots)
    found = features_of(model, data, test_data, features)
    by_shots = {n: _few_shot_answers(found, n, draws, seed) for n in numbers}
    protocol = {"what": "few-shot linear probe", "shots": numbers[0], "draws": draws, "seed": seed,
                "l2": _FEW_SHOT_L2, "accuracy_is": "the mean over the draws"}  # fmt: skip
    truth, names = found.test[1].numpy(), found.sets[0].classes
    more = {}
    for n, answers in by_shots.items():
        report = classification_report(answers, truth, names)
        more[str(n)] = {"accuracy": report["accuracy"], "interval": report["interval"]}
    _tell(found, by_shots[numbers[0]], protocol, as_json, {"by_shots": more})


_FEW_SHOT_L2 = 0.1  # fixed: there are no photos left to choose it on


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"--shots are numbers of at least 1 with commas between, got {text!r}")
    return numbers


def _few_shot_answers(found: Features, shots: int, draws: int, seed: int) -> Any:
    train = found.sets[0]
    place = {photo.record.id: row for row, photo in enumerate(train.photos)}
    answers = []
    for draw in range(draws):
        chosen = few_shots(train, shots, seed + draw)
        rows = torch.tensor([place[photo.record.id] for photo in chosen.photos])
        x, y = found.train[0][rows], found.train[1][rows]
        linear = fit_linear(x, y, len(train.classes), l2=_FEW_SHOT_L2)
        answers.append(linear(found.test[0]).argmax(dim=-1).numpy())
    return np.stack(answers)


def _with_validation(found: Features) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    if found.val is not None:
        return found.train, found.val
    train = found.sets[0]
    place = {photo.record.id: row for row, photo in enumerate(train.photos)}
    parts = [
        torch.tensor([place[photo.record.id] for photo in part.photos])
        for part in hold_out(train, 0.1)
    ]
    x, y = found.train
    return (x[parts[0]], y[parts[0]]), (x[parts[1]], y[parts[1]])


def features_of(model: str, data: str, test_data: str, features: str = "") -> Features:
    """Features of the photos that a protocol needs.

    Of `--data` the photos of the split "train" are learnt from (those of no split, where there are
    none), of `--test-data` those of "test" are asked (all, where there are none).

    Raises:
        ConfigError: photos of several labels; or one source for both without a test split
    """
    asked = test_data or data
    own_test = has_split(asked, "test")
    if not own_test and Path(asked).resolve() == Path(data).resolve():
        raise ConfigError(f"{data} names no test photos; give others with --test-data")
    train = readable(read_training(data))
    test = readable(read_labelled(asked, split="test" if own_test else None, classes=train.classes))
    val = None
    if has_split(data, "val"):
        val = readable(read_labelled(data, split="val", classes=train.classes))
    if train.multi_label:
        raise ConfigError("kNN, probe and few-shot protocols are for one label a photo")
    embed, what = feature_function(model, features)
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
        (embed(train), train.labels),
        None if val is None else (embed(val), val.labels),
        (embed(test), test.labels),
        (train, test),
        protocol,
    )


Embed = Callable[[LabelledSet], Tensor]


def feature_function(model: str, features: str = "") -> tuple[Embed, str]:
    """What turns labelled photos into features float[N, D], and what these are.

    Raises:
        FourMError: the model or tokenizer cannot be used
    """
    if model.partition(":")[0] in FAMILIES:
        return _network_features(model, features)
    if features == "embedding":
        return _generated_features(model), "the expected global embedding, from pixels"
    if features not in ("", "encoder"):
        raise ConfigError(f"--features of a 4M model is encoder or embedding, got {features!r}")
    vit = FMViT.from_pretrained(model, head=HeadConfig(num_classes=0))
    return lambda part: photo_features(vit, part), "mean of the encoder's tokens, normed"


def _network_features(model: str, tokenizer: str) -> tuple[Embed, str]:
    embedder = load_embedder(model)

    def embed(part: LabelledSet) -> Tensor:
        pictures = (photo.record.open_image() for photo in part.photos)
        return torch.from_numpy(embedder.embed_image(pictures, normalize=False))

    if tokenizer in ("", "raw"):
        return embed, "the embedder's vectors, raw"
    codes = open_tokenizer(tokenizer)
    decoded: Embed = lambda part: codes.detokenize(codes.tokenize(embed(part)))  # noqa: E731
    return decoded, f"the embedder's vectors, tokenized and decoded by {tokenizer}"


def _generated_features(model: str) -> Embed:
    from fourm_lite.pipeline.pipeline import FourMPipeline

    pipe = FourMPipeline.from_pretrained(model)

    def embed(part: LabelledSet) -> Tensor:
        pictures = [{"rgb": photo.record.open_image()} for photo in part.photos]
        return torch.from_numpy(pipe.embed(pictures))

    return embed


def _tell(
    found: Features,
    answers: Any,
    protocol: dict[str, Any],
    path: str,
    more: dict[str, Any] | None = None,
) -> None:
    test = found.sets[1]
    facts = {**found.protocol, **protocol}
    report = classification_report(answers, found.test[1].numpy(), test.classes, protocol=facts)
    report |= more or {}
    if path:
        write_json(path, report)
    low, high = report["interval"]
    print_facts(
        {
            "protocol": facts["what"],
            "accuracy": f"{report['accuracy']:.4f} [{low:.4f}, {high:.4f}]",
            "photos": f"{facts['train_photos']} to learn from, {len(test)} asked",
            "left out": len(facts["skipped"]) or None,
            **{f"{n} shots": f"{r['accuracy']:.4f}" for n, r in report.get("by_shots", {}).items()},
            "written to": path or None,
        }
    )
