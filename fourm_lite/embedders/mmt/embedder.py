"""`mmt:FOLDER`: sentences and pictures of OSCAR, UNITER and M3P to vectors of one space.

A picture is the id of its region features; a picture alone is read with the first token alone, a
sentence alone as text. Vectors are not divided by their length in the original; here they are, as
everywhere, unless `normalize=False`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fourm_lite.embedders.base import NetworkEmbedder, Towers, Vectors, fingerprint_module
from fourm_lite.embedders.mmt.load import Joint, open_joint
from fourm_lite.embedders.mmt.network import States
from fourm_lite.embedders.mmt.regions import join_batch
from fourm_lite.embedders.mmt.words import Text
from fourm_lite.errors import ConfigError


def load_mmt(
    source: str,
    *,
    features: Any = None,
    tokenizer: Any = None,
    heads: int | None = None,
    pooling: str | None = None,
    device: str = "cpu",
) -> JointEmbedder:
    """An embedder from a folder of MMT-Retrieval or a file of OSCAR, UNITER, VILLA or M3P.

    `features` is a FeatureStore or the path of one; without it pictures are given as `Features`.
    `tokenizer`, `heads` and `pooling` say what the files do not.

    Raises:
        CheckpointError: weights or the tokenizer are missing or do not fit
        ConfigError: a class that is not read, an unknown option, or a cross-encoder without pooling
    """
    joint = open_joint(
        source, features=features, tokenizer=tokenizer, heads=heads, pooling=pooling, device=device
    )
    if not joint.config.pooling:
        raise ConfigError(
            f"'{source}' is a cross-encoder: it says nothing of pooling, so it gives no vectors. "
            "Score pairs with load_reranker, or give pooling='mean'"
        )
    return JointEmbedder(f"mmt:{source}", joint)


class JointEmbedder(NetworkEmbedder):
    """A joint encoder as an embedder; made by `load_embedder`, not by hand."""

    def __init__(self, name: str, joint: Joint) -> None:
        self.joint = joint
        config = joint.config
        super().__init__(
            name,
            Towers(image=self._pictures, text=self._texts),
            identity=lambda: fingerprint_module(joint.model),
            preprocess=f"regions {config.max_regions}",
            facts={
                "pooling": config.pooling,
                "words": joint.words.limit,
                "heads": config.num_heads,
            },
            label=f"mmt:{config.family}",
            read=joint.regions,
            reads="regions",
            dim=len(config.pooling) * joint.model.sizes.width,
        )

    @torch.inference_mode()
    def embed_pairs(
        self,
        texts: Sequence[Text],
        pictures: Sequence[Any],
        batch_size: int = 32,
        *,
        normalize: bool = True,
    ) -> Vectors:
        """One vector a picture that is read together with a text, such as its object tags.

        Raises:
            ConfigError: not as many texts as pictures
        """
        if len(texts) != len(pictures):
            raise ConfigError(f"{len(texts)} texts need as many pictures, got {len(pictures)}")
        chunks = range(0, len(texts), batch_size)
        vectors = (
            self._pooled(texts[i : i + batch_size], pictures[i : i + batch_size]) for i in chunks
        )
        return self._collect((v.float().cpu().numpy() for v in vectors), normalize, None)

    def _pictures(self, pictures: Sequence[Any]) -> Tensor:
        return self._pooled([""] * len(pictures), pictures)

    def _texts(self, texts: Sequence[Text]) -> Tensor:
        return self._pooled(texts, [None] * len(texts))

    def _pooled(self, texts: Sequence[Text], pictures: Sequence[Any]) -> Tensor:
        return states_of(self.joint, texts, pictures).pooled(self.joint.config.pooling)


def states_of(joint: Joint, texts: Sequence[Text], pictures: Sequence[Any]) -> States:
    """States of texts and pictures by position; "" is no text, None no picture."""
    regions = [None if p is None else joint.regions(p) for p in pictures]
    batch = join_batch([joint.words.read(text) for text in texts], regions)
    device = joint.model.words.weight.device
    found: States = joint.model(batch.to(device))
    return found
