"""Folders and files as their toolkits leave them, as one value: configuration, weights, tokenizer.

Read are: a folder of MultimodalTransformer.save, a fine-tuned checkpoint of Oscar, a file of UNITER
or VILLA, M3P's file, and what `fourm-lite convert` writes. Every weight must be used or be known as
not used: a file whose names do not fit is refused, never filled with random numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fourm_lite.embedders.mmt.network import (
    HeadInput,
    JointConfig,
    Pooling,
    published_heads,
    read_config,
)
from fourm_lite.embedders.pth import SUFFIXES, Weights, read_pth
from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.families import names_of
from fourm_lite.families.joint import JOINT_FAMILIES, JointFamily
from fourm_lite.io.weights_file import load_tensors

DOOR = "mmt"
MODULES = "modules.json"
POOLING: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt",
}
INPUTS: dict[str, HeadInput] = {
    "pooled_cls_token_embeddings": "pooled",
    "cls_token_embeddings": "cls",
}


@dataclass(frozen=True)
class Saved:
    """One network as it was found.

    Args:
        config: its numbers
        weights: under our names
        tokenizer: a file, a folder or a published name; None: nothing is known of it
    """

    config: JointConfig
    weights: Weights
    tokenizer: str | Path | None


def read_saved(source: str | Path, heads: int | None = None) -> Saved:
    """What a folder or file of OSCAR, UNITER or M3P holds; `heads` says what no file does.

    Raises:
        CheckpointError: there is nothing that can be read
        ConfigError: it is of a class or form that is not read; the message names it
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise CheckpointError(
            f"expected a folder or file of {names_of(JOINT_FAMILIES)}, '{path}' does not exist"
        )
    if path.is_file():
        return _from_file(path, {}, heads)
    if (path / MODULES).is_file():
        return _from_modules(path, heads)
    config = _json(path / "config.json") if (path / "config.json").is_file() else {}
    if config.get("door") == DOOR:
        return _converted(path, config)
    files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    if len(files) != 1:
        raise CheckpointError(
            f"expected {MODULES} of MMT-Retrieval or one file of weights in '{path}', it holds "
            f"{sorted(p.name for p in path.iterdir())}"
        )
    return _from_file(files[0], config, heads)


def _converted(folder: Path, values: Mapping[str, Any]) -> Saved:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"'{folder}' lacks model.safetensors; convert the original again")
    config, tokenizer = read_config(values), folder / "tokenizer.json"
    found = tokenizer if tokenizer.is_file() else config.layout.tokenizer
    return Saved(config, load_tensors(weights), found)


def _from_file(path: Path, config: Mapping[str, Any], heads: int | None) -> Saved:
    """A checkpoint of the family's own code; its config and vocabulary may lie beside it."""
    weights = read_pth(path).weights
    family = recognise(weights, path)
    values = _with_heads(config or _config_beside(path), heads)
    saved = _assembled(family, family.renamed(weights), values, path)
    vocabulary = next((p for p in _vocabularies(path.parent) if p.is_file()), None)
    inputs = _own_heads(saved, family)
    pooling: tuple[Pooling, ...] = () if inputs else ("mean",)
    return replace(
        saved,
        config=replace(saved.config, pooling=pooling, head_inputs=inputs),
        tokenizer=vocabulary or family.tokenizer,
    )


def recognise(weights: Mapping[str, Any], path: Path) -> JointFamily:
    """The family whose weights these are.

    Raises:
        ConfigError: they are of none
    """
    found = next((f for f in JOINT_FAMILIES.values() if f.owns(weights)), None)
    if found is None:
        raise ConfigError(
            f"'{path}' holds no network of {names_of(JOINT_FAMILIES)}: its first weights are "
            f"{sorted(weights)[:3]}"
        )
    return found


def _config_beside(path: Path) -> dict[str, Any]:
    found = [_json(p) for p in sorted(path.parent.glob("*.json"))]
    return next((v for v in found if isinstance(v, dict) and "hidden_size" in v), {})


def _with_heads(values: Mapping[str, Any], heads: int | None) -> dict[str, Any]:
    """A config with the number of attention heads that somebody says.

    Raises:
        ConfigError: it is no table
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"a network's config.json is a table, got {values!r:.80}")
    return dict(values) if heads is None else {**values, "num_attention_heads": int(heads)}


def _vocabularies(folder: Path) -> list[Path]:
    return [folder / "vocab.txt", folder / "tokenizer.json", folder / "sentencepiece.bpe.model"]


def _assembled(
    family: JointFamily, weights: Weights, values: Mapping[str, Any], path: Path
) -> Saved:
    """The network alone, without what modules.json says of heads and pooling."""
    kind = values.get("img_feature_type", "faster_r-cnn")
    if kind != "faster_r-cnn":
        raise ConfigError(
            f"'{path}' has img_feature_type '{kind}', whose embeddings are not read; only "
            "'faster_r-cnn' is"
        )
    weights = {k: v.float() for k, v in weights.items()}
    if family.joined is not None:
        weights = _split(weights, family)
    width = weights["words.weight"].shape[1] if "words.weight" in weights else 0
    config = JointConfig(
        family=family.name,
        num_heads=values.get("num_attention_heads") or published_heads(width),
        max_words=family.max_words,
        max_regions=family.max_regions,
        lower_case=family.lower_case,
        eps=values.get("layer_norm_eps", 1e-12),
        region_eps=values.get("img_layer_norm_eps", 1e-12),
        dropout=values.get("hidden_dropout_prob", 0.1),
    )
    return Saved(config, weights, None)


def _split(weights: Weights, family: JointFamily) -> Weights:
    """One matrix over features and geometry, as two; the bias stays with the features."""
    weight, bias = f"{family.joined}.weight", f"{family.joined}.bias"
    if weight not in weights or bias not in weights:
        return weights
    rest = {k: v for k, v in weights.items() if k not in (weight, bias)}
    features, geometry = weights[weight].tensor_split([-len(family.geometry)], dim=1)
    return {
        **rest,
        "regions.features.weight": features.contiguous(),
        "regions.features.bias": weights[bias],
        "regions.geometry.weight": geometry.contiguous(),
    }


def _from_modules(folder: Path, heads: int | None) -> Saved:
    """A folder of MultimodalTransformer.save: one sub-folder a module, in any order."""
    modules = {}
    for entry in _json(folder / MODULES):
        if not isinstance(entry, dict) or not {"type", "path"} <= set(entry):
            raise ConfigError(f"'{folder / MODULES}' lists modules with 'type' and 'path'")
        modules[str(entry["type"]).rpartition(".")[2]] = _inside(folder, str(entry["path"]))
    networks = {f.title: f for f in JOINT_FAMILIES.values()}
    known = [*networks, "ClassificationHead", "Pooling"]
    if unknown := [name for name in modules if name not in known]:
        raise ConfigError(
            f"'{folder}' holds a module of the class {unknown[0]}, which is not read; known are "
            f"{known}. Load it where it was made and save it as those"
        )
    name = next((name for name in modules if name in networks), None)
    if name is None:
        raise ConfigError(f"'{folder}' holds no network, only {sorted(modules)}")
    saved = _network(networks[name], modules[name], heads)
    saved = _with_pooling(saved, modules.get("Pooling"))
    return _with_head(saved, modules.get("ClassificationHead"))


def _network(family: JointFamily, folder: Path, heads: int | None) -> Saved:
    files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES) if folder.is_dir() else []
    if len(files) != 1:
        raise CheckpointError(f"expected one file of weights in '{folder}', found {len(files)}")
    weights = read_pth(files[0]).weights
    if not family.owns(weights):
        raise ConfigError(
            f"'{files[0]}' should be of {family.title} and lacks {list(family.marks)}; its first "
            f"weights are {sorted(weights)[:3]}"
        )
    path = folder / "config.json"
    values = _with_heads(_json(path) if path.is_file() else {}, heads)
    saved = _assembled(family, family.renamed(weights), values, files[0])
    lengths = next(iter(sorted(folder.glob("sentence_*_config.json"))), None)
    stated = _json(lengths) if lengths is not None else {}
    config = replace(
        saved.config,
        max_words=stated.get("max_seq_length") or saved.config.max_words,
        max_regions=stated.get("max_image_seq_len") or saved.config.max_regions,
    )
    vocabulary = next((p for p in _vocabularies(folder) if p.is_file()), None)
    return Saved(config, saved.weights, vocabulary or family.tokenizer)


def _with_pooling(saved: Saved, folder: Path | None) -> Saved:
    if folder is None:
        return replace(saved, config=replace(saved.config, pooling=()))
    stated = _json(folder / "config.json")
    kinds = tuple(kind for key, kind in POOLING.items() if stated.get(key))
    return replace(saved, config=replace(saved.config, pooling=kinds))


def _own_heads(saved: Saved, family: JointFamily) -> dict[str, HeadInput]:
    """The family's own heads that the weights hold, and what they read."""
    own = {n for n in family.heads if any(k.startswith(f"heads.{n}.") for k in saved.weights)}
    return dict.fromkeys(sorted(own), "pooled")


def _with_head(saved: Saved, folder: Path | None) -> Saved:
    """The ClassificationHead of MMT-Retrieval; a family's own heads stay beside it."""
    family = saved.config.layout
    inputs = _own_heads(saved, family)
    weights = dict(saved.weights)
    if folder is not None:
        stated = _json(
            next(iter(sorted(folder.glob("sentence_*_config.json"))), folder / "config.json")
        )
        key = stated.get("input_key", "pooled_cls_token_embeddings")
        if key not in INPUTS:
            raise ConfigError(f"a head reads one of {sorted(INPUTS)}, '{folder}' says '{key}'")
        path = folder / "class_head.pt"
        if not path.is_file():
            raise CheckpointError(f"'{folder}' lacks class_head.pt, the weights of its head")
        head = read_pth(path).weights
        weights |= {f"heads.{k}": v.float() for k, v in head.items() if k.startswith("classifier.")}
        inputs["classifier"] = INPUTS[key]
    return replace(saved, weights=weights, config=replace(saved.config, head_inputs=inputs))


def _inside(folder: Path, path: str) -> Path:
    found = folder / path
    if not found.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"'{folder / MODULES}' names a folder outside of it: {path}")
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' cannot be read as JSON: {error}") from error
