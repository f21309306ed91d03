"""Networks that judge whether a text and a picture belong together: BLIP ITM, ViLT, `mmt:`, any
dual encoder.

Retrieve fast, rerank slowly with these: pairs in, a score each out. A cross-encoder takes one pass
a pair; its score is a probability for BLIP (its matching head has two classes) and a logit for
ViLT. A dual encoder takes one pass a text and one a picture; its score is their cosine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fourm_lite.embedders.base import NetworkEmbedder, Reads, Vectors
from fourm_lite.embedders.hf import (
    find_file,
    load_model,
    load_tokenizer,
    read_preprocess,
)
from fourm_lite.embedders.image_configs import Preprocess, by_size
from fourm_lite.embedders.load import FAMILIES, call_loader, load_embedder, parse_spec
from fourm_lite.embedders.tower_outputs import tokenize
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.modalities.pictures import PictureSource
from fourm_lite.nn.device import usable_device
from fourm_lite.progress import Progress, batches

Ints = npt.NDArray[np.int64]


ScorePairs = Callable[[Ints, Ints], Vectors]
"""Numbers of texts and of pictures, as pairs -> scores, larger is better."""


class PairReranker(ABC):
    """What scores pairs of text and picture; what all of them share.

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
        if not pairs:
            return np.zeros(0, np.float32)
        scores = self._scores(pairs, batch_size)
        if not np.isfinite(scores).all():
            raise FourMError(f"'{self.name}' gave NaN for pair {int(np.isnan(scores).argmax())}")
        return scores

    @abstractmethod
    def _scores(self, pairs: list[tuple[str, Any]], batch_size: int) -> Vectors:
        """One score a pair, float32[K]."""

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

    def over(
        self,
        texts: Sequence[str],
        pictures: Callable[[int], Any],
        count: int,
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> ScorePairs:
        """Scores of pairs out of fixed texts and `count` pictures, for many queries.

        Args:
            texts: all of them
            pictures: opens one by its number
            count: how many pictures there are
            batch_size: of what is embedded or judged together
            progress: told of what is embedded beforehand; a cross-encoder embeds nothing
        """

        def judge(asked: Ints, found: Ints) -> Vectors:
            some = [pictures(int(i)) for i in found]
            return self.score([texts[int(t)] for t in asked], some, batch_size)

        return judge


class CrossEncoder(PairReranker):
    """A network that reads text and picture together, one pass a pair."""

    def _scores(self, pairs: list[tuple[str, Any]], batch_size: int) -> Vectors:
        scores = np.zeros(len(pairs), np.float32)
        for positions, some in self._batches(pairs, batch_size):
            scores[positions] = self._forward(some).float().cpu().numpy()
        return scores

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


class MatchingReranker(CrossEncoder):
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


class EncoderReranker(PairReranker):
    """A dual encoder that judges pairs by the cosine of its two vectors."""

    def __init__(self, embedder: NetworkEmbedder):
        """Over an open embedder.

        Raises:
            ConfigError: it has no vectors of texts, or none of pictures
        """
        super().__init__(embedder.name)
        if missing := {"image", "text"}.difference(embedder.can):
            raise ConfigError(
                f"reranking compares words with photos; '{embedder.name}' embeds "
                f"{' and '.join(embedder.can)}, not {' and '.join(sorted(missing))}: give a dual "
                "encoder, such as joint:joint_space, or a cross-encoder"
            )
        self.reads = embedder.reads
        self._embedder = embedder

    def _scores(self, pairs: list[tuple[str, Any]], batch_size: int) -> Vectors:
        """Cosines; a text or picture that stands in many pairs is embedded once."""
        words = list(dict.fromkeys(text for text, _ in pairs))
        shown = {id(picture): picture for _, picture in pairs}
        asked = {text: number for number, text in enumerate(words)}
        found = {key: number for number, key in enumerate(shown)}
        pictures = list(shown.values())
        score = self.over(words, pictures.__getitem__, len(pictures), batch_size=batch_size)
        return score(
            np.array([asked[text] for text, _ in pairs]),
            np.array([found[id(picture)] for _, picture in pairs]),
        )

    def probabilities(
        self, texts: str | Sequence[str], images: Any, batch_size: int = 16
    ) -> Vectors:
        """Refused: a cosine is no probability.

        Raises:
            ConfigError: always
        """
        raise ConfigError(
            f"'{self.name}' compares by cosine, which is no probability of a match; use its "
            "scores, or a cross-encoder"
        )

    def over(
        self,
        texts: Sequence[str],
        pictures: Callable[[int], Any],
        count: int,
        *,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> ScorePairs:
        """Scores by two tables of vectors, made once."""
        numbers = batches(range(count), batch_size, progress)
        seen = [self._embedder.embed_image([pictures(i) for i in some]) for some in numbers]
        said, shown = self._embedder.embed_text(list(texts), batch_size), np.concatenate(seen)
        return lambda asked, found: np.asarray((said[asked] * shown[found]).sum(axis=1), np.float32)


def load_reranker(
    source: str, *, device: str = "cpu", preprocess: Preprocess | None = None, **options: Any
) -> PairReranker:
    """A matching cross-encoder from a transformers folder or Hub id, `mmt:FOLDER`, or an embedder.

    An "hf:" in front is allowed. `options` are those of `mmt.reranker.load_joint_reranker`; they
    may follow a question mark too: `mmt:FOLDER?features=STORE`. Any other name of `load_embedder`
    that has vectors of words and of pictures judges by their cosine.

    Raises:
        ConfigError: the model is neither a matching cross-encoder that is known here nor a dual
            encoder, or lacks files
        CheckpointError: no safetensors weights
    """
    device = str(usable_device(device))
    if source.startswith("mmt:"):
        return _joint(source, {"device": device, **options})
    if source.partition(":")[0] in FAMILIES and not source.startswith("hf:"):
        return _dual(source, device, options)
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
    config = read_json_object(path)
    kind = config.get("model_type")
    if kind not in CLASSES and {"text_config", "vision_config"} <= config.keys():
        return _dual(f"hf:{source}", device, {})
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


def _dual(spec: str, device: str, options: dict[str, Any]) -> PairReranker:
    where = {} if device == "cpu" else {"device": device}
    return EncoderReranker(load_embedder(spec, **where, **options))


def _joint(spec: str, options: dict[str, Any]) -> PairReranker:
    family, source, written = parse_spec(spec)
    loader = import_module("fourm_lite.embedders.mmt.embedder").load_joint_reranker
    found: PairReranker = call_loader(family, loader, source, written | options)
    return found
