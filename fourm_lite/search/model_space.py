"""The space of a global embedding that a 4M model predicts.

The gallery may come from the model's own reading of the pixels, or from the network whose vectors
it learned to predict; either way the space is that network's.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from fourm_lite.embedders.base import (
    NetworkEmbedder,
    fingerprint_module,
    sampled_fingerprint,
)
from fourm_lite.errors import ConfigError, FourMError, UnknownNameError
from fourm_lite.modalities.pictures import SPARE
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.caption_vectors import beside
from fourm_lite.pipeline.embedding import Decode, EmbeddingPlan, dispersion, sample_vectors
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.pipeline.readers import find_modality
from fourm_lite.pipeline.teacher import require_width, teacher_vectors
from fourm_lite.pipeline.tokenizers import places
from fourm_lite.progress import Progress, batches
from fourm_lite.search.search_file import FittedSearch
from fourm_lite.search.space import MODEL, PICTURE, TEXT, Codes, Inputs, Space
from fourm_lite.search.whitening import UNCENTRED, Centre, QueryWhitening
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.unit import Floats, unit

CENTRED = ":centred"
"""The end of the name of a space whose vectors have a mean taken off."""
SAMPLED = 16
"""Queries whose sampled vectors are made at once."""


@dataclass(frozen=True)
class ModelSpace(Space):
    """The space of a global embedding that a 4M model predicts.

    Args:
        pipe: the model with its tokenizers
        target: the global embedding
        decode: how a prediction becomes a vector
        steps: forward passes a query
        samples: with decode="sample": vectors drawn and averaged
        teacher: the network that embeds galleries; None: the model does, from pixels
        centre: what is taken off both sides
        whitening: what is done to queries after that
        seed: of what is sampled
        names: what the model and the gallery were asked for by, to be written down
        fitted: what is kept beside the model about reranking and confidence
    """

    pipe: FourMPipeline
    target: Modality
    decode: Decode = "expected"
    steps: int = 1
    samples: int = 1
    teacher: NetworkEmbedder | None = None
    centre: Centre = UNCENTRED
    whitening: QueryWhitening | None = None
    seed: int = 0
    names: Mapping[str, Any] = field(default_factory=dict)
    fitted: FittedSearch | None = None

    joins: ClassVar[bool] = True
    takes_centre: ClassVar[bool] = True

    @property
    def tokenizer(self) -> VQTokenizer:
        """The tokenizer whose decoder gives the vectors."""
        return self.pipe.tokenizers.vq(self.target)

    @property
    def name(self) -> str:
        """The target's name; centred vectors are another space than plain ones."""
        return self.target.name + ("" if self.centre.mean is None else CENTRED)

    @property
    def width(self) -> int:
        """The width of the network's vectors."""
        return self.tokenizer.config.n_channels

    @property
    def short_side(self) -> int | None:
        """Pixels of a photo's short side that the model, or the gallery's network, needs."""
        if self.teacher is not None:
            return self.teacher.short_side
        entries = {m.name: m for m in self.pipe.model.config.inputs}
        with contextlib.suppress(UnknownNameError):
            size = entries[find_modality(PICTURE, entries, role="input")].image_size
            return None if size is None else SPARE * size
        return None

    @property
    def codebook_size(self) -> int | None:
        """How many values a code has."""
        return self.target.vocab_size

    @property
    def decoder(self) -> Callable[[npt.NDArray[Any]], Floats]:
        """What a codes-only index searches by."""
        return self.decode_codes

    @property
    def predictor(self) -> ModelSpace:
        """The model itself."""
        return self

    @property
    def wants_centre(self) -> bool:
        """Whether it was not opened to be compared without."""
        return self.centre.mean is not None or bool(self.names.get("center", True))

    def with_centre(self, centre: Centre) -> Self:
        """The space with another centre."""
        return replace(self, centre=centre)

    @cached_property
    def identity(self) -> dict[str, str]:
        """The tokenizer and what is taken off fix the space."""
        digest = hashlib.sha256(fingerprint_module(self.tokenizer).encode())
        digest.update(b"" if self.centre.mean is None else self.centre.mean.tobytes())
        return {"tokenizer": digest.hexdigest()[:16]}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """`model` and `gallery` are who made the rows."""
        model = self._maker(sampled_fingerprint(self.pipe.model))
        gallery = model if self.teacher is None else self.teacher.space.fingerprint
        return {**self.identity, "model": model, "gallery": gallery[:16]}

    def former_fingerprints(self, name: str) -> tuple[str, ...]:
        """Earlier versions hashed every value of a model; a teacher's pixels had other fields."""
        if name == "gallery" and self.teacher is not None:
            return tuple(space.fingerprint[:16] for space in self.teacher.former_spaces)
        return (self._former_model,) if name in ("model", "gallery") else ()

    @cached_property
    def _former_model(self) -> str:
        return self._maker(fingerprint_module(self.pipe.model))

    def _maker(self, weights: str) -> str:
        """Who makes rows: a hash of the weights, and of how vectors are read off."""
        how = f"{self.decode} {self.steps} {self.samples} {self.pipe.model.dtype}"
        return hashlib.sha256(f"{weights} {how}".encode()).hexdigest()[:16]

    def encode_query(
        self, items: Sequence[Inputs], *, batch_size: int = 32, progress: Progress | None = None
    ) -> Floats:
        """Unit vectors float32[N, E] of any subsets of modalities, to search by.

        They are whitened where they are guessed: not where pixels or the vector's codes are given,
        as a photo shall find itself.
        """
        parts = []
        for part in batches(items, batch_size, progress):
            found = self.compared(self.raw_queries(part))
            if self.whitening is not None:
                guessed = np.array([self._is_guessed(item) for item in part])
                found[guessed] = self.whitening(found[guessed])
            parts.append(found)
        return np.concatenate(parts) if parts else np.empty((0, self.width), np.float32)

    def _is_guessed(self, item: Inputs) -> bool:
        entries = {m.name: m for m in self.pipe.model.config.inputs}
        given = [entries[find_modality(key, entries, role="input")] for key in item]
        return not any(m.kind == "pixels" or m.name == self.target.name for m in given)

    def raw_queries(self, items: Sequence[Inputs]) -> Floats:
        """Decoded vectors float32[N, samples, E] in the network's own scale, not centred.

        Raises:
            FourMError: a prediction is not finite
        """
        plan = EmbeddingPlan(self.target, self.tokenizer, self.decode, self.steps, self.samples)
        seeds, batch = [self.seed] * len(items), self.pipe.read(items)
        found = sample_vectors(self.pipe.model, batch, plan, seeds, self.pipe.marks)
        raw: Floats = found.float().cpu().numpy()
        if not np.isfinite(raw).all():
            raise FourMError(
                "the embedding holds numbers that are not finite; were the weights or inputs "
                "damaged, or is the dtype too narrow?"
            )
        return raw

    def encode_document(
        self, pictures: Sequence[Any], *, batch_size: int = 32, progress: Progress | None = None
    ) -> tuple[Floats, Codes]:
        """Unit vectors float32[N, E] and codes int64[N, L] of a gallery."""
        vectors, codes = [], []
        for part in batches(pictures, batch_size, progress):
            raw = self.raw_documents(part)
            vectors.append(self.compared(raw))
            codes.append(self.codes(raw.mean(axis=1)))
        if not vectors:
            empty = np.empty((0, self.target.max_tokens), np.int64)
            return np.empty((0, self.width), np.float32), empty
        return np.concatenate(vectors), np.concatenate(codes)

    def raw_documents(self, pictures: Sequence[Any]) -> Floats:
        """Vectors float32[N, 1 or samples, E] of a gallery, in the network's own scale.

        Raises:
            ShapeError: the teacher's vectors are of another width than the target's
        """
        if self.teacher is None:
            return self.raw_queries([{PICTURE: picture} for picture in pictures])
        return teacher_vectors(self.teacher, pictures, self.target, self.width)[:, None]

    def compared(self, raw: Floats) -> Floats:
        """Unit vectors float32[N, E] of the mean of samples float32[N, samples, E], centred."""
        return unit(self.centre(raw).mean(axis=1))

    def query_texts(self, texts: Sequence[str]) -> tuple[tuple[Inputs, ...], int]:
        """A query for each text, and how many were too long and cut.

        None is refused: one that the model cannot read counts as one that it answers wrongly.
        """
        config = self.pipe.model.config
        entry = next((m for m in config.inputs if m.name == TEXT), None)
        if entry is None or entry.kind != "sequence":
            raise ConfigError(
                f"this model reads no '{TEXT}'; it reads {[m.name for m in config.inputs]}"
            )
        tokenizer, source = self.pipe.tokenizers.text(), self.pipe.tokenizers.source
        entries = {m.name: m for m in config.inputs}
        items: list[Inputs] = []
        cut = 0
        for text in texts:
            ids = tokenizer.encode(text)
            cut += len(ids) + 1 > entry.max_tokens
            words = {TEXT: [*ids[: entry.max_tokens - 1], tokenizer.eos]}
            items.append(words | beside(source, {TEXT: text}, entries))
        return tuple(items), cut

    def dispersion(self, items: Sequence[Inputs], samples: int) -> Floats | None:
        """How much sampled vectors differ, float32[N] (`pipeline.embedding`); None below two."""
        if samples < 2:
            return None
        drawn = replace(self, decode="sample", steps=1, samples=samples)
        parts = [
            dispersion(self.centre(drawn.raw_queries(part))) for part in batches(items, SAMPLED)
        ]
        return np.concatenate(parts)

    def check_gallery(self) -> None:
        """Refuses a teacher whose vectors are of another width than the target's."""
        if self.teacher is not None:
            require_width(self.teacher, self.teacher.dim, self.target, self.width)

    @torch.inference_mode()
    def codes(self, raw: Floats) -> Codes:
        """What the tokenizer makes of raw vectors float32[N, E]: int64[N, L]."""
        device = self.tokenizer.quant_proj.weight.device
        found = self.tokenizer.tokenize_flat(torch.from_numpy(np.ascontiguousarray(raw)).to(device))
        return found.cpu().numpy().astype(np.int64)

    @torch.inference_mode()
    def decode_codes(self, codes: npt.NDArray[Any]) -> Floats:
        """Unit vectors float32[N, E] of codes: what a codes-only index searches by."""
        device = self.tokenizer.quant_proj.weight.device
        ids = torch.from_numpy(codes.astype(np.int64)).to(device)
        grid = places(self.target, self.tokenizer)
        raw = self.tokenizer.detokenize(ids, grid=grid).float().flatten(1).cpu().numpy()
        return self.centre(raw)

    def provenance(self) -> dict[str, Any]:
        """Fields of a manifest."""
        size = self.target.image_size
        pixels = {"crop": "centred square", "size": size, "resample": "of the modality's codec"}
        return {
            "model": self.names.get("model"),
            "tokenizer": self.target.tokenizer or self.target.stem,
            "preprocessing": pixels if self.teacher is None else repr(self.teacher.preprocess),
            "extra": {
                "target": self.target.name,
                "gallery": self.names.get("gallery", MODEL),
                "decode": self.decode,
                "steps": self.steps,
                "samples": self.samples,
                "centre": self.centre.source,
                **{k: self.names[k] for k in ("tokenizers",) if k in self.names},
            },
        }

    def comparison(self) -> dict[str, Any]:
        """Cosines, centred where the target or the gallery has a mean."""
        source = self.centre.source
        plain = self.centre.mean is None
        return {
            "gallery": self.names.get("gallery", MODEL),
            "decode": self.decode,
            "steps": self.steps,
            "samples": self.samples,
            "centre": source,
            "score": "cosine" if plain else f"centred cosine, mean of the {source}",
        }
