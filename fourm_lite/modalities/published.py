"""What belongs to the published 4M models: tokenizers, text tokenizer, embedding networks, sizes.

A family is one value. A checkpoint of the original's layout belongs to it, so that its name alone
opens everything; a checkpoint of our own says so in its config. Tokenizers stand under the names
that the entries of `modalities.catalog` give them. Sizes are computed from the published configs
(parameters times four bytes), where the size of the file itself is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fourm_lite.modalities.catalog import TEXT_VOCAB
from fourm_lite.modalities.spec import Modality

SAMPLE_CODE = "Sample Code licence (non-commercial)"


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model on the hub: what goes into `from_pretrained`, and how large its file is."""

    source: str
    gigabytes: float
    licence: str = SAMPLE_CODE


@dataclass(frozen=True, kw_only=True)
class PublishedTokenizer:
    """A tokenizer on the hub.

    Units:
        codes: ids that a token may have; a modality with another vocabulary is not its own
    """

    source: str
    codes: int
    gigabytes: float
    is_diffusion: bool = False
    licence: str = SAMPLE_CODE


@dataclass(frozen=True, kw_only=True)
class EmbeddingNetwork:
    """The network whose outputs a tokenizer was trained on: what a gallery may be embedded by.

    Units:
        embedder: the family of `load_embedder` that opens it
        source: its hub id; None where it is published as a pickle alone, which `fourm-lite convert`
            turns into a folder
        options: of `load_embedder`, so that pictures are prepared as 4M prepared them, and the
            vector is the one that the global tokenizer reads
        kinds: what a folder of it says it is, by the family of `load_embedder` that opens it
        image_size: pixels of the pictures that 4M fed it
        width: numbers of its vector, and of a place of its map
    """

    title: str
    embedder: str
    source: str | None
    options: Mapping[str, str]
    kinds: Mapping[str, str]
    image_size: int
    width: int
    gigabytes: float
    licence: str


@dataclass(frozen=True, kw_only=True)
class PublishedFamily:
    """What is published for models that share tokenizers; how files are read says `families`.

    Units:
        tokenizers: by the name that a modality's entry gives its tokenizer, or its stem
        networks: by a short name, as in `--gallery dinov2`
        network_of_tokenizer: which of the networks a tokenizer was trained on
        text: the text tokenizer, as `load_text_tokenizer` names it
        text_vocab: its size
    """

    name: str
    tokenizers: Mapping[str, PublishedTokenizer]
    models: Mapping[str, PublishedModel]
    networks: Mapping[str, EmbeddingNetwork]
    network_of_tokenizer: Mapping[str, str]
    text: str
    text_vocab: int

    def tokenizer(self, entry: Modality) -> PublishedTokenizer | None:
        """The tokenizer of a grid, or of the masks and poses inside a sequence."""
        found = self.tokenizers.get(entry.tokenizer or entry.stem)
        fits = found is not None and (entry.kind != "grid" or found.codes == entry.vocab_size)
        return found if fits else None

    def network(self, entry: Modality) -> EmbeddingNetwork | None:
        """The network that made a feature map or a global embedding."""
        name = self.network_of_tokenizer.get(entry.tokenizer or entry.stem)
        return None if name is None or self.tokenizer(entry) is None else self.networks[name]

    def named(self, source: str) -> PublishedModel | PublishedTokenizer | None:
        """The model or tokenizer of a hub id."""
        models: list[PublishedModel | PublishedTokenizer] = [*self.models.values()]
        parts = [*models, *self.tokenizers.values()]
        return next((part for part in parts if part.source == source), None)

    def reads_text(self, entry: Modality) -> bool:
        """Whether the family's text tokenizer is that of a sequence."""
        return entry.kind == "sequence" and entry.vocab_size == self.text_vocab


def _tokenizer(name: str, codes: int, gigabytes: float, **more: Any) -> PublishedTokenizer:
    source = f"EPFL-VILAB/4M_tokenizers_{name}"
    return PublishedTokenizer(source=source, codes=codes, gigabytes=gigabytes, **more)


def _models(sizes: Mapping[str, float]) -> dict[str, PublishedModel]:
    sources = ((name, f"EPFL-VILAB/{name}", size) for name, size in sizes.items())
    return {name: PublishedModel(source=source, gigabytes=size) for name, source, size in sources}


FOURM = PublishedFamily(
    name="4m",
    tokenizers={
        "rgb": _tokenizer("rgb_16k_224-448", 16384, 1.15, is_diffusion=True),
        "depth": _tokenizer("depth_8k_224-448", 8192, 1.15, is_diffusion=True),
        "normal": _tokenizer("normal_8k_224-448", 8192, 1.15, is_diffusion=True),
        "semseg": _tokenizer("semseg_4k_224-448", 4096, 0.88),
        "clip": _tokenizer("CLIP-B16_8k_224-448", 8192, 0.72),
        "edge": _tokenizer("edge_8k_224-512", 8192, 1.15, is_diffusion=True),
        "dinov2": _tokenizer("DINOv2-B14_8k_224-448", 8192, 0.73),
        "dinov2_global": _tokenizer("DINOv2-B14-global_8k_16_224", 8192, 0.46),
        "imagebind": _tokenizer("ImageBind-H14_8k_224-448", 8192, 0.73),
        "imagebind_global": _tokenizer("ImageBind-H14-global_8k_16_224", 8192, 0.46),
        "sam_instance": _tokenizer("sam-instance_1k_64", 1024, 0.69),
        "human_poses": _tokenizer("human-poses_1k_8", 1024, 0.43),
    },
    models=_models(
        {
            "4M-7_B_CC12M": 1.78,
            "4M-7_B_COYO700M": 1.78,
            "4M-7_L_CC12M": 4.13,
            "4M-7_L_COYO700M": 4.13,
            "4M-7_XL_CC12M": 13.9,
            "4M-7_XL_COYO700M": 13.9,
            "4M-7-T2I_B_CC12M": 1.78,
            "4M-7-T2I_L_CC12M": 4.13,
            "4M-7-T2I_XL_CC12M": 13.9,
            "4M-7-SR_L_CC12M": 3.86,
            "4M-21_B": 3.37,
            "4M-21_L": 6.26,
            "4M-21_XL": 18.2,
        }
    ),
    networks={
        "dinov2": EmbeddingNetwork(
            title="DINOv2-B/14",
            embedder="hf",
            source="facebook/dinov2-base",
            options={"output": "class_token", "preprocess": "imagenet"},
            kinds={"hf": "dinov2", "timm": "vit_base_patch14_dinov2"},
            image_size=224,
            width=768,
            gigabytes=0.35,
            licence="apache-2.0",
        ),
        "imagebind": EmbeddingNetwork(
            title="ImageBind-H/14",
            embedder="imagebind",
            source=None,
            options={"output": "class_token", "preprocess": "imagenet"},
            kinds={"imagebind": "imagebind"},
            image_size=224,
            width=1280,
            gigabytes=2.53,
            licence="cc-by-nc-4.0",
        ),
        "clip": EmbeddingNetwork(
            title="CLIP-B/16",
            embedder="hf",
            source="openai/clip-vit-base-patch16",
            options={"preprocess": "imagenet"},
            kinds={"hf": "clip"},
            image_size=224,
            width=512,
            gigabytes=0.60,
            licence="mit",
        ),
    },
    network_of_tokenizer={
        "clip": "clip",
        "dinov2": "dinov2",
        "dinov2_global": "dinov2",
        "imagebind": "imagebind",
        "imagebind_global": "imagebind",
    },
    text="4m",
    text_vocab=TEXT_VOCAB,
)
"""Everything published under EPFL-VILAB/ with 4M-7 and 4M-21."""

FAMILIES: dict[str, PublishedFamily] = {FOURM.name: FOURM}
"""Families by the name under which a config of our own keeps them."""


def family_of(config: Mapping[str, Any]) -> PublishedFamily | None:
    """The family of a model by its stored config: the original's layout, or our `extra.family`."""
    if "format" not in config:
        return FOURM if "domains_in" in config else None
    extra = config.get("extra")
    name = extra.get("family") if isinstance(extra, Mapping) else None
    return FAMILIES.get(name) if isinstance(name, str) else None
