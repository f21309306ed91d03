"""Embedders from transformers: dual encoders (CLIP, SigLIP, ALIGN, MOFI), DINOv2/v3 and others.

A dual encoder is any model with `get_image_features`; everything else is an image network whose
class token (or pooled map) is the vector. Weights are read from safetensors only and code from the
Hub is never run.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from fourm_lite.embedders.base import LogitScale, NetworkEmbedder, Towers, fingerprint_module
from fourm_lite.embedders.folder_configs import check_config
from fourm_lite.embedders.image_configs import Preprocess, by_size, from_transformers, preset
from fourm_lite.embedders.tower_outputs import as_patches, as_vectors, check_texts, tokenize
from fourm_lite.errors import CheckpointError, ConfigError, FourMError, ShapeError, foreign_errors
from fourm_lite.io.strict_json import read_json_object

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)

Output = Literal["auto", "class_token", "pooled", "mean_patch"]


def load_hf(
    source: str,
    *,
    device: str = "cpu",
    output: Output = "auto",
    preprocess: Preprocess | str | None = None,
    revision: str | None = None,
) -> NetworkEmbedder:
    """An embedder from a transformers folder or Hub id.

    `output` chooses the vector of an image network: "class_token" (DINO's), "pooled" (the model's
    own pooler), "mean_patch"; "auto" is the pooler where there is one, else the class token.
    `preprocess` overrides the folder's file, by value or by preset name ("mofi", "imagenet", ...).

    Raises:
        CheckpointError: no safetensors weights, or no such folder
        ConfigError: the preprocessing is missing or unknown
    """
    if output not in ("auto", "class_token", "pooled", "mean_patch"):
        raise ConfigError(f"output is auto, class_token, pooled or mean_patch, got '{output}'")
    folder = network_folder(source)
    model, untrained = load_model("AutoModel", folder, device=device, revision=revision)
    prepare = _preprocess(folder, model, preprocess, revision)
    twin = hasattr(model, "get_image_features")
    if untrained and output == "auto":
        output = "class_token"  # a classifier's file has no weights for the base model's pooler
    image = _twin_image(model, prepare) if twin else _image_network(model, prepare, output)
    return NetworkEmbedder(
        f"hf:{source}",
        Towers(image, _text_tower(folder, model, revision), _patch_tower(model, prepare)),
        identity=lambda: fingerprint_module(model),
        preprocess=prepare,
        logit_scale=logit_scale(model),
        facts={"output": "projected" if twin else output},
        label=f"hf:{model.config.model_type}",
    )


def network_folder(source: str) -> str:
    """The folder with the network: older sentence-transformers keep it in `0_CLIPModel`."""
    if (Path(source) / "config.json").is_file():
        return source
    inside = sorted(Path(source).glob("0_*/config.json"))
    return str(inside[0].parent) if inside else source


def load_model(
    auto: str, source: str, *, device: str, revision: str | None = None
) -> tuple[Any, bool]:
    """A transformers model in float32 and evaluation mode, and whether its pooler has no weights.

    Raises:
        CheckpointError: no such model, no safetensors, or weights other than a pooler's are missing
            (transformers would fill them with random numbers; a pooler's are zeros here)
    """
    import transformers

    check_folder(source)
    told = (
        f"'{source}' is no transformers folder or Hub id with safetensors weights: {{error}}. "
        "A .bin or .pth file is turned into safetensors by `fourm-lite convert FILE -o OUT`; code "
        "that comes with a model is never run"
    )
    with foreign_errors(CheckpointError, told):  # a damaged configuration or file
        model, found = getattr(transformers, auto).from_pretrained(
            source,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,  # left out, transformers asks on the terminal
            dtype=torch.float32,
            output_loading_info=True,
            return_dict=True,
        )
    missing = sorted(key for key in found["missing_keys"] if not key.endswith("position_ids"))
    poolers = [key for key in missing if "pooler." in key]
    if len(missing) > len(poolers):
        raise CheckpointError(
            f"'{source}' has no weights for {len(missing)} tensors of {type(model).__name__}, "
            f"such as '{missing[0]}'; it is a checkpoint of another model"
        )
    # transformers draws them, and the fingerprint would be new in every process
    for key in poolers:
        model.get_parameter(key).data.zero_()
    return model.to(device).eval(), bool(poolers)


def load_tokenizer(source: str, revision: str | None = None) -> Any | None:
    """The folder's tokenizer, or None where there is none."""
    import transformers

    if not any(find_file(source, name, revision) for name in TOKENIZER_FILES):
        return None
    told = f"the tokenizer in '{source}' cannot be read: {{error}}"
    with foreign_errors(CheckpointError, told):  # a damaged file
        return transformers.AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )


def check_folder(source: str) -> None:
    """Refuses a local folder whose configuration sends transformers elsewhere.

    Raises:
        CheckpointError: it does, or there is no config.json
    """
    folder = Path(source)
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"'{source}' is no transformers folder: it holds no config.json")
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            check_config(read_json_object(folder / name), folder / name)


def find_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a folder or Hub id, or None where it does not exist."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    import transformers.utils.hub as hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(source)
    except HFValidationError:  # a folder that is not there, transformers would ask the Hub for it
        return None
    found = hub.cached_file(
        source,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


def read_preprocess(source: str, revision: str | None = None) -> Preprocess | None:
    """The preprocessing of a folder, or None where it says nothing about it."""
    path = find_file(source, "preprocessor_config.json", revision)
    nested = None if path is None else read_json_object(path)
    if path is None and (path := find_file(source, "processor_config.json", revision)):
        nested = read_json_object(path).get("image_processor")
    if not nested:
        return None
    config = find_file(source, "config.json", revision)
    kind = None if config is None else read_json_object(config).get("model_type")
    if not isinstance(nested, dict):
        raise ConfigError(f"'image_processor' in {path} should be a table, got {nested!r:.80}")
    return from_transformers(nested, model_type=kind)


def logit_scale(model: Any) -> LogitScale | None:
    """The scale and bias that a dual encoder applies to cosines before its softmax."""
    if hasattr(model, "logit_scale"):
        bias = getattr(model, "logit_bias", None)
        return LogitScale(_number(model.logit_scale.exp()), 0.0 if bias is None else _number(bias))
    temperature = getattr(model, "temperature", None)  # ALIGN
    return None if temperature is None else LogitScale(1.0 / _number(temperature))


def _preprocess(
    source: str, model: Any, given: Preprocess | str | None, revision: str | None
) -> Preprocess:
    if isinstance(given, str):
        return preset(given, size=_image_size(model))
    found = given or read_preprocess(source, revision)
    if found is not None:
        return found
    if model.config.model_type == "clip":
        # MOFI's folders hold a model and a tokenizer; the preprocessing stands in its README only.
        log.warning("'%s' has no preprocessor_config.json: taking the preset 'mofi'", source)
        return preset("mofi", size=_image_size(model))
    raise ConfigError(
        f"'{source}' has no preprocessor_config.json or processor_config.json; pass "
        f"preprocess='imagenet', 'clip', 'mofi', 'unit' or an ImagePreprocess (in a specification: "
        f"hf:{source}?preprocess=imagenet)"
    )


def _image_size(model: Any) -> int | None:
    vision = getattr(model.config, "vision_config", model.config)
    size = getattr(vision, "image_size", None)
    return size if isinstance(size, int) else None


def _by_size(
    prepare: Preprocess, images: list[Image], accepts: Callable[..., Any], device: Any,
    run: Callable[[dict[str, Tensor]], Tensor],
) -> Tensor:  # fmt: skip
    """Rows of all pictures in order, of a network that sees pictures of one size together.

    Inputs that the network has no argument for, such as sizes before padding, are left out.

    Raises:
        ConfigError: it has no argument for the pictures themselves
        ShapeError: pictures of unlike sizes give unlike numbers of patches
    """
    names = inspect.signature(accepts).parameters
    rows: list[Any] = [None] * len(images)
    for places, made in by_size(prepare, images):
        inputs = {name: value.to(device) for name, value in made.items() if name in names}
        if getattr(prepare, "main_input", "pixel_values") not in inputs:
            raise ConfigError(
                f"the preprocessing gives {sorted(made)}, the network takes {sorted(names)}; it is "
                "that of another network. Pass preprocess='imagenet' or an ImagePreprocess(...)"
            )
        for place, row in zip(places, run(inputs), strict=True):
            rows[place] = row
    if len(shapes := {row.shape for row in rows}) > 1:
        raise ShapeError(
            f"pictures of unlike sizes give results of unlike shapes {sorted(map(list, shapes))}; "
            "embed pictures of one size together"
        )
    return torch.stack(rows)


def _twin_image(model: Any, prepare: Preprocess) -> Callable[[list[Image]], Tensor]:
    network = model.get_image_features

    def embed(images: list[Image]) -> Tensor:
        run = lambda inputs: as_vectors(network(**inputs))  # noqa: E731
        return _by_size(prepare, images, network, model.device, run)

    return embed


def _image_network(
    model: Any, prepare: Preprocess, output: Output
) -> Callable[[list[Image]], Tensor]:
    def vectors(inputs: dict[str, Tensor]) -> Tensor:
        found = model(**inputs)
        pooled = getattr(found, "pooler_output", None)
        if output == "pooled" or (output == "auto" and pooled is not None):
            if pooled is None:
                raise FourMError("this network has no pooler; choose output='class_token'")
            return pooled.flatten(1)
        states = found.last_hidden_state
        if output == "mean_patch":
            return patch_tokens(states, inputs["pixel_values"], model.config).mean(dim=1)
        return states[:, 0]

    return lambda images: _by_size(prepare, images, model.forward, model.device, vectors)


def _text_tower(source: str, model: Any, revision: str | None) -> Callable[[list[str]], Any] | None:
    tokenizer = load_tokenizer(source, revision) if hasattr(model, "get_text_features") else None
    if tokenizer is None:
        return None

    def embed(texts: list[str]) -> Any:
        return model.get_text_features(**tokenize(model, tokenizer, texts, model.get_text_features))

    told = f"the text tower in '{source}' takes no text: {{error}}"
    with foreign_errors(CheckpointError, told):  # a damaged tokenizer
        check_texts(source, model, tokenizer, embed)
    return embed


def _patch_tower(model: Any, prepare: Preprocess) -> Callable[[list[Image]], Tensor] | None:
    vision = getattr(model, "vision_model", model)
    config = getattr(model.config, "vision_config", model.config)
    if "pixel_values" not in inspect.signature(vision.forward).parameters:
        return None

    def tokens(inputs: dict[str, Tensor]) -> Tensor:
        states = vision(**inputs).last_hidden_state
        return as_patches(patch_tokens(states, inputs["pixel_values"], config))

    return lambda images: _by_size(prepare, images, vision.forward, model.device, tokens)


def patch_tokens(states: Tensor, pixels: Tensor, config: Any) -> Tensor:
    """The patch tokens of a feature map: class and register tokens in front are left out.

    Shapes:
        states [B, P + L, E] or [B, E, H, W] -> [B, L, E]
    """
    if states.ndim == 4:
        return rearrange(states, "b e h w -> b (h w) e")
    if pixels.ndim != 4:  # NaFlex: no tokens in front
        return states
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int):
        side = math.isqrt(states.shape[1])
        return states[:, states.shape[1] - side * side :]
    return states[:, states.shape[1] - (pixels.shape[2] // patch) * (pixels.shape[3] // patch) :]


def _number(value: Tensor) -> float:
    return float(value.detach().reshape(-1)[0])
