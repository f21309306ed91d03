"""Cross-encoders that judge whether a text and a picture belong together: BLIP ITM, ViLT, `mmt:`.

Retrieve fast with vectors of a dual encoder, rerank slowly with these: pairs in, a score each out,
one pass a pair. A score is a probability for BLIP (its matching head has two classes) and a logit
for ViLT.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fourm_lite.embedders.base import Reads, Vectors
from fourm_lite.embedders.hf import (
    find_file,
    load_model,
    load_tokenizer,
    read_preprocess,
)
from fourm_lite.embedders.image_configs import Preprocess, by_size
from fourm_lite.embedders.load import call_loader, parse_spec
from fourm_lite.embedders.tower_outputs import tokenize
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.modalities.pictures import PictureSource
from fourm_lite.nn.device import usable_device


class PairReranker(ABC):
    """A cross-encoder over pairs of text and picture; what all of them share.

    `name` is the specification it was loaded from; `reads` says what a picture is to it.
    """

    reads: Reads = "pictures"

    def __init__(self, name: str) -> None:
        self.name = name

    def score(
        self,
        texts: str | Sequence[str],
        images: Any,
        batch_size: int = 16,
    ) -> Vectors:
        """How well each pair matches, larger is better; one text or one picture meets all others.

        Shapes:
            returns: float32[K], K pairs
        Raises:
            ConfigError: neither side is single and their numbers differ
            FourMError: a score is NaN
        """
        pairs = as_pairs(texts, images)
        scores = np.zeros(len(pairs), np.float32)
        for positions, some in self._batches(pairs, batch_size):
            scores[positions] = self._forward(some).float().cpu().numpy()
        if not np.isfinite(scores).all():
            raise FourMError(f"'{self.name}' gave NaN for pair {int(np.isnan(scores).argmax())}")
        return scores

    def probabilities(
        self, texts: str | Sequence[str], images: Any, batch_size: int = 16
    ) -> Vectors:
        """The probability that each pair matches, float32[K]; pairs as in `score`."""
        logits = torch.from_numpy(self.score(texts, images, batch_size))
        found: Vectors = logits.sigmoid().numpy()
        return found

    def __call__(self, query: str, candidates: Any) -> Vectors:
        """Scores of a search's hits, by the picture that their column "uri" names.

        This is what `search.rerank` calls; `query` is the text.

        Raises:
            ConfigError: the hits say nothing about where their pictures are
        """
        uris = candidates.columns.get("uri")
        if uris is None:
            raise ConfigError(
                f"a cross-encoder reads pictures: the hits need a column 'uri', they have "
                f"{sorted(candidates.columns)}"
            )
        return self.score(query, list(uris))

    def rank(
        self,
        text: str,
        images: Sequence[PictureSource],
        *,
        ids: Sequence[Any] | None = None,
        k: int | None = None,
        batch_size: int = 16,
    ) -> list[tuple[Any, float]]:
        """The pictures by falling score, as (id, score); ids are positions unless given."""
        names = list(range(len(images))) if ids is None else list(ids)
        if len(names) != len(images):
            raise ConfigError(f"{len(images)} pictures need as many ids, got {len(names)}")
        scores = self.score(text, images, batch_size)
        order = np.argsort(-scores, kind="stable")[:k]
        return [(names[i], float(scores[i])) for i in order]

    @abstractmethod
    def _batches(self, pairs: list[Any], batch_size: int) -> Iterator[tuple[list[int], Any]]:
        """Positions of pairs that are scored together, and what `_forward` reads of them."""

    @abstractmethod
    def _forward(self, some: Any) -> Tensor:
        """One score a pair, [B]."""


def as_pairs(texts: Any, images: Any) -> list[tuple[str, Any]]:
    """Texts and pictures by position; one of either meets all of the others.

    Raises:
        ConfigError: neither side is single and their numbers differ
    """
    many_texts = [texts] if isinstance(texts, str) else list(texts)
    many_images = list(images) if isinstance(images, list | tuple) else [images]
    count = max(len(many_texts), len(many_images))
    if 0 in (len(many_texts), len(many_images)):
        return []
    for what, items in (("texts", many_texts), ("pictures", many_images)):
        if len(items) not in (1, count):
            raise ConfigError(
                f"{len(many_texts)} texts and {len(many_images)} pictures do not pair; give as "
                f"many of both, or one of the {what}"
            )
    many_texts = many_texts * (count if len(many_texts) == 1 else 1)
    many_images = many_images * (count if len(many_images) == 1 else 1)
    return list(zip(many_texts, many_images, strict=True))


Kind = Literal["blip", "vilt"]
# model_type -> the auto class and how its output becomes one score a pair
CLASSES: dict[str, str] = {
    "blip": "BlipForImageTextRetrieval",
    "vilt": "ViltForImageAndTextRetrieval",
}
SCORES: dict[str, Callable[[Any], Tensor]] = {
    "blip": lambda output: output.itm_score.softmax(dim=1)[:, 1],
    "vilt": lambda output: output.logits[:, 0],
}


class MatchingReranker(PairReranker):
    """BLIP's matching head or ViLT; made by `load_reranker`."""

    def __init__(self, name: str, kind: str, model: Any, tokenizer: Any, prepare: Preprocess):
        super().__init__(name)
        self.kind = kind
        self._model = model
        self._tokenizer = tokenizer
        self._prepare = prepare

    def probabilities(
        self, texts: str | Sequence[str], images: Any, batch_size: int = 16
    ) -> Vectors:
        """The probability that each pair matches, float32[K]; BLIP's score is one."""
        if self.kind == "blip":
            return self.score(texts, images, batch_size)
        return super().probabilities(texts, images, batch_size)

    def _batches(self, pairs: list[Any], batch_size: int) -> Iterator[tuple[list[int], Any]]:
        for start in range(0, len(pairs), batch_size):
            some = pairs[start : start + batch_size]
            # Pictures of one input size together: padding would let neighbours change a score.
            for places, inputs in by_size(self._prepare, [picture for _, picture in some]):
                yield [start + p for p in places], ([some[p][0] for p in places], inputs)

    @torch.inference_mode()
    def _forward(self, some: tuple[list[str], dict[str, Tensor]]) -> Tensor:
        texts, pixels = some
        inputs = tokenize(self._model, self._tokenizer, texts, self._model.forward)
        inputs |= {name: value.to(self._model.device) for name, value in pixels.items()}
        # ViLT draws the order of its patches from the global generator; it is given back unchanged.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return SCORES[self.kind](self._model(**inputs))


def load_reranker(
    source: str, *, device: str = "cpu", preprocess: Preprocess | None = None, **options: Any
) -> PairReranker:
    """A matching cross-encoder from a transformers folder or Hub id, or `mmt:FOLDER`.

    An "hf:" in front is allowed. `options` are those of `mmt.reranker.load_joint_reranker`; they
    may follow a question mark too: `mmt:FOLDER?features=STORE`.

    Raises:
        ConfigError: the model is no matching cross-encoder that is known here, or lacks files
        CheckpointError: no safetensors weights
    """
    device = str(usable_device(device))
    if source.startswith("mmt:"):
        return _joint(source, {"device": device, **options})
    if options:
        raise ConfigError(f"{sorted(options)}: for mmt:FOLDER; '{source}' reads photos")
    source = source.removeprefix("hf:")
    source = str(Path(source).expanduser()) if source.startswith("~") else source
    path = find_file(source, "config.json")
    if path is None:
        raise ConfigError(
            f"expected a transformers folder or Hub id of a matching cross-encoder, '{source}' has "
            "no config.json; give one of BLIP ITM or ViLT, such as hf:Salesforce/blip-itm-base-coco"
        )
    kind = read_json_object(path).get("model_type")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ConfigError(
            f"expected a matching cross-encoder, one of {sorted(CLASSES)}, got '{kind}' in "
            f"'{source}'"
        )
    tokenizer, prepare = load_tokenizer(source), preprocess or read_preprocess(source)
    if tokenizer is None or prepare is None:
        raise ConfigError(f"'{source}' lacks its tokenizer or its preprocessor_config.json")
    model, _ = load_model(CLASSES[kind], source, device=device)
    return MatchingReranker(f"hf:{source}", kind, model, tokenizer, prepare)


def _joint(spec: str, options: dict[str, Any]) -> PairReranker:
    family, source, written = parse_spec(spec)
    loader = import_module("fourm_lite.embedders.mmt.embedder").load_joint_reranker
    found: PairReranker = call_loader(family, loader, source, written | options)
    return found
