"""Vectors by the network itself that a target was made of, for galleries of pictures.

The network sees the picture that an item holds and nothing else: where `embed` predicts what the
network would say, this is what it says. Those of published models have short names ("dinov2",
"imagebind"), under which they are opened with the preprocessing that 4M fed them with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fourm_lite.embedders.base import NetworkEmbedder, unit_length
from fourm_lite.embedders.image_configs import preset
from fourm_lite.embedders.load import Spec, load_embedder
from fourm_lite.errors import CheckpointError, ConfigError, FourMError, ShapeError, suggest
from fourm_lite.io.hub import resolve
from fourm_lite.io.layout import CONFIG
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.modalities.plain_items import PICTURE
from fourm_lite.modalities.published import FAMILIES, EmbeddingNetwork, PublishedFamily
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.readers import find_modality

WRITTEN = {"imagebind": "family", "timm": "architecture", "hf": "model_type"}
"""Where the config.json of a folder says which network it is, by who opens it."""


def teacher_target(
    spec: Spec, target: str | None, outputs: Iterable[Modality], family: PublishedFamily | None
) -> str | None:
    """The target that a network under a short name made; the given one for any other network.

    Raises:
        ConfigError: the network made none of the model's global embeddings, or not the given one
    """
    found = _published(spec, family)
    if found is None:
        return target
    network, _ = found
    entries = {m.name: m for m in outputs if m.kind == "grid"}
    learned = [m for m in entries.values() if m.pos_embed == "learned"]
    made = [m.name for m in learned if family and family.network(m) is network]
    if not made:
        raise ConfigError(
            f"{network.title} made none of this model's global embeddings, which are "
            f"{[m.name for m in learned] or 'none'}; name the network that made one"
        )
    if target is not None and find_modality(target, entries, role="target") not in made:
        raise ConfigError(
            f"{network.title} made {' and '.join(made)}, not '{target}': they are different "
            "spaces; leave out the target, or name the network that made it"
        )
    return target or made[0]


def open_teacher(spec: Spec, family: PublishedFamily | None) -> NetworkEmbedder:
    """The network of a specification, or of a short name: "dinov2", "imagebind=FOLDER".

    Under a short name it prepares pictures as 4M did, and gives the vector that the global
    tokenizer reads. A folder may be of transformers, of timm, or made by `fourm-lite convert`.

    Raises:
        NotFetchedError: it is not here and cannot be fetched
        CheckpointError: there is no such folder, or it is published as a pickle alone
    """
    found = _published(spec, family)
    if found is None:
        return load_embedder(spec)
    network, source = found
    if not (source or network.source):
        name = str(spec).partition("=")[0]
        raise CheckpointError(
            f"{network.title} is published as a .pth file alone: turn it into a folder with "
            f"`fourm-lite convert FILE.pth -o FOLDER` and name that: {name}=FOLDER"
        )
    place = resolve(source or str(network.source))
    kind = _kind_of(place, network)
    options: dict[str, Any] = dict(network.options)
    # A preset alone would take the network's own size: DINOv2's is 518
    options["preprocess"] = preset(options["preprocess"], size=network.image_size)
    if kind == "timm":
        options["image_size"] = network.image_size
    return load_embedder(f"{kind}:{place}", **options)


def _published(spec: Spec, family: PublishedFamily | None) -> tuple[EmbeddingNetwork, str] | None:
    """The network behind a short name, and the source that is named for it, if any."""
    name, _, source = spec.partition("=") if isinstance(spec, str) else ("", "", "")
    if family is not None and name in family.networks:
        return family.networks[name], source
    if any(name in other.networks for other in FAMILIES.values()):
        raise ConfigError(
            f"'{name}' names the network of a published 4M model, and this model is none; write "
            "what it is and where it lies: hf:FOLDER_OR_ID, timm:NAME, imagebind:FOLDER, onnx:FILE"
        )
    if name and family is not None and ":" not in str(spec):
        raise ConfigError(
            f"expected {', '.join(family.networks)} (with a folder of one's own: NAME=FOLDER) or a "
            f"specification such as hf:FOLDER_OR_ID, got {spec!r:.80}."
            f"{suggest(name, family.networks)}"
        )
    return None


def _kind_of(place: Path, network: EmbeddingNetwork) -> str:
    """Which loader the folder of a network is for, by its config.json.

    Raises:
        CheckpointError: it is a file
        ConfigError: it is the folder of another network
    """
    if place.is_file():
        raise CheckpointError(
            f"expected the folder of a network, got the file {place}; a .pth file becomes one by "
            "`fourm-lite convert FILE -o FOLDER`"
        )
    config = read_json_object(place / CONFIG) if (place / CONFIG).is_file() else {}
    told = [(kind, config[key]) for kind, key in WRITTEN.items() if key in config]
    found = next((kind for kind, name in told if network.kinds.get(kind) == name), None)
    if told and found is None:
        kind, name = told[0]
        raise ConfigError(
            f"expected {network.title}, {place} holds another network ({kind}: {name!s:.80}), "
            "whose vectors lie in another space; name the folder of the network itself"
        )
    return found or network.embedder


def require_width(teacher: NetworkEmbedder, found: int, target: Modality, width: int) -> None:
    """Refuses a network whose vectors are not as wide as those of the target.

    Raises:
        ShapeError: see above
    """
    if found != width:
        raise ShapeError(
            f"'{teacher.name}' gives vectors of width {found}, the model's target '{target.name}' "
            f"is of width {width}: they are different spaces; give the network that the target was "
            "made of, or name another target"
        )


def teacher_vectors(
    teacher: NetworkEmbedder, pictures: Sequence[Any], target: Modality, width: int
) -> npt.NDArray[np.float32]:
    """The network's vectors float32[N, E] in its own scale, checked against the target's width.

    Raises:
        ShapeError: they are of another width, so of another space
    """
    raw = teacher.embed_image(list(pictures), normalize=False)
    require_width(teacher, raw.shape[1], target, width)
    return raw


def picture_of(item: Mapping[str, Any], number: int) -> Any:
    """The picture of an item that holds nothing else.

    Raises:
        FourMError: it holds none, or something that the network cannot read
    """
    names = {key.partition("@")[0] for key in item}
    if names != {PICTURE}:
        raise FourMError(
            f"with teacher= an item holds one picture, {{'{PICTURE}': ...}}, item {number} holds "
            f"{sorted(item)}; leave teacher= out to embed any modalities by the model"
        )
    return next(iter(item.values()))


def embed_by_teacher(
    network: NetworkEmbedder,
    items: Sequence[Mapping[str, Any]],
    first: int,
    entry: Modality,
    width: int,
) -> npt.NDArray[np.float32]:
    """Unit vectors float32[N, E] of the pictures of some items, counted from `first` in messages.

    Raises:
        FourMError: an item holds no picture, or its vector is zero
        ShapeError: the network's vectors are of another width
    """
    pictures = [picture_of(item, first + i) for i, item in enumerate(items)]
    return unit_length(teacher_vectors(network, pictures, entry, width), first=first)
