"""fourm_lite: any-to-any multimodal token generation, embedding and search with 4M models.

The names below are loaded when they are first used: `import fourm_lite` itself loads nothing heavy.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fourm_lite.former_paths import FormerPaths

__version__ = "0.1.0"

if FormerPaths not in sys.meta_path:
    sys.meta_path.append(FormerPaths)  # last: what is there under its name is found first

_HOMES: dict[str, str] = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "FMViT": "backbone.vit",
    "FourM": "model.fourm",
    "FourMConfig": "model.config",
    "FourMError": "errors",
    "FourMPipeline": "pipeline.pipeline",
    "Index": "search.index.index",
    "MODALITIES": "modalities.catalog",
    "Modality": "modalities.spec",
    "Plan": "sampling.plan",
    "Sampler": "sampling.sampler",
    "ShapeError": "errors",
    "Target": "sampling.plan",
    "TokenBatch": "batch",
    "Tokens": "batch",
    "embed_to_file": "search.embed_files",
    "load_embedder": "embedders.load",
    "load_model": "model.load",
    "load_text_tokenizer": "tokenization.words.text",
    "load_tokenizer": "tokenization.load",
    "open_space": "search.spaces",
    "open_vectors": "search.vectors",
    "register": "modalities.catalog",
    "register_embedding": "add_embedding.register",
}

if TYPE_CHECKING:
    from fourm_lite.add_embedding.register import register_embedding as register_embedding
    from fourm_lite.backbone.vit import FMViT as FMViT
    from fourm_lite.batch import TokenBatch as TokenBatch
    from fourm_lite.batch import Tokens as Tokens
    from fourm_lite.embedders.load import load_embedder as load_embedder
    from fourm_lite.errors import CheckpointError as CheckpointError
    from fourm_lite.errors import ConfigError as ConfigError
    from fourm_lite.errors import FourMError as FourMError
    from fourm_lite.errors import ShapeError as ShapeError
    from fourm_lite.modalities.catalog import MODALITIES as MODALITIES
    from fourm_lite.modalities.catalog import register as register
    from fourm_lite.modalities.spec import Modality as Modality
    from fourm_lite.model.config import FourMConfig as FourMConfig
    from fourm_lite.model.fourm import FourM as FourM
    from fourm_lite.model.load import load_model as load_model
    from fourm_lite.pipeline.pipeline import FourMPipeline as FourMPipeline
    from fourm_lite.sampling.plan import Plan as Plan
    from fourm_lite.sampling.plan import Target as Target
    from fourm_lite.sampling.sampler import Sampler as Sampler
    from fourm_lite.search.embed_files import embed_to_file as embed_to_file
    from fourm_lite.search.index.index import Index as Index
    from fourm_lite.search.spaces import open_space as open_space
    from fourm_lite.search.vectors import open_vectors as open_vectors
    from fourm_lite.tokenization.load import load_tokenizer as load_tokenizer
    from fourm_lite.tokenization.words.text import load_text_tokenizer as load_text_tokenizer

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Loads a public name from where it lives."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'fourm_lite' has no attribute {name!r}")
    value = getattr(import_module(f"fourm_lite.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
