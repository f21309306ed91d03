"""Embedders from open_clip's zoo (MobileCLIP, EVA, CoCa, ...); an optional extra.

`open_clip:ViT-B-32/laion2b_s34b_b79k` names an architecture and its weights, `open_clip:hf-hub:ID`
a Hub repository, `open_clip:FOLDER` a folder with open_clip_config.json and safetensors weights.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fourm_lite.embedders.base import LogitScale, NetworkEmbedder, Towers, fingerprint_module
from fourm_lite.embedders.folder_configs import check_config
from fourm_lite.embedders.image_configs import Preprocess, from_open_clip, pixels_of
from fourm_lite.errors import CheckpointError, ConfigError, FourMError, foreign_errors, suggest
from fourm_lite.io.strict_json import read_json_object

log = logging.getLogger(__name__)

ANOTHER = {
    "MobileCLIP-B": (
        "its first convolution is padded by 0 instead of 1 and its norms have eps 1e-6 instead of "
        "1e-5; mobileclip:mobileclip_b.pt gives Apple's vectors"
    )
}

if TYPE_CHECKING:
    from PIL.Image import Image


def load_open_clip(
    source: str, *, device: str = "cpu", preprocess: Preprocess | None = None
) -> NetworkEmbedder:
    """An embedder from an open_clip name, Hub id or folder.

    Raises:
        FourMError: open_clip is not installed
        ConfigError: unknown architecture or weights
        CheckpointError: a folder without configuration or safetensors weights
    """
    name, tag = _name_and_weights(source)
    library = _library()
    model = _model(library, name, tag, device)
    prepare = preprocess or from_open_clip(model.visual.preprocess_cfg)
    tokenizer = library.get_tokenizer(name)
    bias = getattr(model, "logit_bias", None)
    scale = float(model.logit_scale.detach().exp())
    return NetworkEmbedder(
        f"open_clip:{source}",
        Towers(
            image=_image_tower(model, prepare, device),
            text=lambda texts: model.encode_text(tokenizer(texts).to(device)),
        ),
        identity=lambda: fingerprint_module(model),
        preprocess=prepare,
        logit_scale=LogitScale(scale, 0.0 if bias is None else float(bias.detach())),
        facts={"output": "projected"},
        label="open_clip" if name.startswith("local-dir:") else f"open_clip:{source}",
    )


def _model(library: Any, name: str, tag: str | None, device: str) -> Any:
    told = f"open_clip cannot load '{name}' with '{tag}': {{error}}"
    with foreign_errors(CheckpointError, told):  # truncated weights, other shapes, ...
        return library.create_model(name, pretrained=tag, device=device, precision="fp32").eval()


def _library() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise FourMError("this embedder needs open_clip: pip install open_clip_torch") from error
    return open_clip


def _name_and_weights(source: str) -> tuple[str, str | None]:
    folder = Path(source)
    if folder.is_dir():
        names = sorted(p.name for p in folder.iterdir())
        weights = [n for n in names if n.endswith(".safetensors")]
        if "open_clip_config.json" not in names or not weights:
            raise CheckpointError(
                f"an open_clip folder holds open_clip_config.json and open_clip_model.safetensors, "
                f"'{source}' holds {names}; a .bin or .pt file is turned into safetensors by "
                "`fourm-lite convert FILE -o OUT`; what that makes of MobileCLIP's files opens as "
                "mobileclip:OUT"
            )
        file = folder / "open_clip_config.json"
        check_config(read_json_object(file), file)
        return f"local-dir:{folder}", None
    if source.startswith("hf-hub:"):
        return source, None
    library = _library()
    name, _, tag = source.partition("/")
    if name not in library.list_models():
        raise ConfigError(
            f"'{source}' is no folder and open_clip knows no model '{name}'."
            f"{_same_name(name, library.list_models())}{_advice(name)}"
        )
    if name in ANOTHER:
        log.warning("open_clip's %s is another network than Apple's: %s", name, ANOTHER[name])
    tags = library.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise ConfigError(
            f"'{name}' needs weights, open_clip:{name}/TAG with TAG one of {tags}; got '{tag}'."
            f"{suggest(tag, tags)}"
        )
    return name, tag


def _same_name(name: str, known: list[str]) -> str:
    """A name that is spelled otherwise or not to its end: any other near one is another network."""
    asked = _plain(name)
    found = next((k for k in known if _plain(k) == asked), None)
    found = found or next((k for k in sorted(known) if asked and _plain(k).startswith(asked)), None)
    return f" Did you mean '{found}'?" if found else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _advice(name: str) -> str:
    if not name.lower().startswith("mobileclip"):
        return ""
    return " Apple's own files open as mobileclip:FILE, with their text tower and preprocessing."


def _image_tower(model: Any, prepare: Preprocess, device: str) -> Callable[[list[Image]], Tensor]:
    def embed(images: list[Any]) -> Tensor:
        return model.encode_image(pixels_of(prepare, images).to(device))

    return embed
