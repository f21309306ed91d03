"""`mmt:FOLDER`: OSCAR, UNITER and M3P as embedders of one space, and as cross-encoders of pairs.

A picture is the id of its region features; a picture alone is read with the first token alone, a
sentence alone as text. Vectors are not divided by their length in the original; here they are, as
everywhere, unless `normalize=False`. A cross-encoder reads words and regions in one pass, with a
matching head on top. Scored pairs are sorted by length, so that a batch holds little padding;
padding never changes a score. A text is read once however many pictures it meets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourm_lite.embedders.base import NetworkEmbedder, Towers, Vectors, fingerprint_module
from fourm_lite.embedders.mmt.batches import Regions, Text, join_batch
from fourm_lite.embedders.mmt.load import Joint, open_joint
from fourm_lite.embedders.mmt.network import States
from fourm_lite.embedders.rerankers import CrossEncoder, as_pairs
from fourm_lite.errors import ConfigError, check_choice


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


Read = tuple[tuple[list[int], list[int]], Regions]


def load_joint_reranker(
    source: str,
    *,
    features: Any = None,
    tokenizer: Any = None,
    heads: int | None = None,
    head: str | None = None,
    device: str = "cpu",
) -> JointReranker:
    """A cross-encoder from a folder of MMT-Retrieval or a file of OSCAR, UNITER or M3P.

    `head` is the matching head: by default that of MMT-Retrieval, else the family's own.

    Raises:
        ConfigError: the files hold no matching head, or none of that name
        CheckpointError: weights or the tokenizer are missing or do not fit
    """
    joint = open_joint(source, features=features, tokenizer=tokenizer, heads=heads, device=device)
    return JointReranker(f"mmt:{source}", joint, head)


class JointReranker(CrossEncoder):
    """OSCAR, UNITER or M3P over pairs of a text and a picture's regions.

    Pictures are ids of the feature store, `Features`, or the dictionaries of MMT-Retrieval. A score
    is the last number of the head: the logit of "they belong together".
    """

    reads = "regions"

    def __init__(self, name: str, joint: Joint, head: str | None = None) -> None:
        super().__init__(name)
        self.joint = joint
        present = [n for n in joint.config.layout.heads if n in joint.model.heads]
        if head is not None:
            check_choice(f"a head of '{name}'", head, of=present)
        if not present:
            raise ConfigError(
                f"'{name}' holds no matching head, so it cannot score pairs: it was trained as a "
                "dual encoder or not fine-tuned. Use load_embedder, or files with a head"
            )
        self.head = head or present[0]

    def logits(
        self, texts: Sequence[Text], pictures: Sequence[Any], batch_size: int = 16
    ) -> Vectors:
        """What the head says of pairs by position, float32[K, labels]."""
        if len(texts) != len(pictures):
            raise ConfigError(f"{len(texts)} texts need as many pictures, got {len(pictures)}")
        pairs = list(zip(texts, pictures, strict=True))
        linears = [
            m for m in self.joint.model.heads[self.head].modules() if isinstance(m, nn.Linear)
        ]
        labels = linears[-1].out_features
        found = np.zeros((len(pairs), labels), np.float32)
        for positions, some in self._batches(pairs, batch_size):
            found[positions] = self._logits(some).float().cpu().numpy()
        return found

    def probabilities(
        self, texts: str | Sequence[str], images: Any, batch_size: int = 16
    ) -> Vectors:
        """The probability that each pair matches, float32[K]: a softmax over labels."""
        texts, pictures = zip(*as_pairs(texts, images), strict=True)
        logits = torch.from_numpy(self.logits(texts, pictures, batch_size))
        if logits.shape[1] == 1:
            return logits[:, 0].sigmoid().numpy()
        return logits.softmax(dim=1)[:, -1].numpy()

    def _batches(self, pairs: list[Any], batch_size: int) -> Iterator[tuple[list[int], list[Any]]]:
        words = lru_cache(maxsize=None)(self.joint.words.read)
        read: list[Read] = [(words(text), self.joint.regions(item)) for text, item in pairs]
        lengths = [(len(regions.features), len(ids)) for (ids, _), regions in read]
        order = sorted(range(len(read)), key=lambda position: lengths[position])
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            yield some, [read[p] for p in some]

    def _forward(self, pairs: list[Read]) -> Tensor:
        return self._logits(pairs)[:, -1]

    @torch.inference_mode()
    def _logits(self, pairs: list[Read]) -> Tensor:
        texts, regions = zip(*pairs, strict=True)
        model = self.joint.model
        states: States = model(join_batch(texts, regions).to(model.words.weight.device))
        return model.head_logits(states, self.head)
