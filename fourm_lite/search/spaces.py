"""What makes vectors for search: a 4M model, or a twin encoder, behind one face.

A space embeds *items* (dicts of modality -> value) and *pictures* (a gallery) so that both can be
compared. With a 4M model the gallery may come from the model's own reading of the pixels, or from
the network whose vectors it learned to predict; either way the space is that network's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
import numpy.typing as npt
import torch

from fourm_lite.embedders.base import (
    NetworkEmbedder,
    Reads,
    fingerprint_module,
    sampled_fingerprint,
)
from fourm_lite.embedders.load import FAMILIES, load_embedder
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.embedding import Decode, EmbeddingPlan, sample_vectors
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.pipeline.readers import find_modality
from fourm_lite.pipeline.teacher import open_teacher, teacher_target, teacher_vectors
from fourm_lite.pipeline.tokenizers import Given, lasting, places, with_text
from fourm_lite.progress import Progress
from fourm_lite.search.dual_encoder import TwinSpace
from fourm_lite.search.search_file import Learnt, read_learnt
from fourm_lite.search.space import MODEL, PICTURE, TEXT, Codes, Item, Space
from fourm_lite.search.whitening import Centre, Floats, Spread, read_spread, unit
from fourm_lite.tokenization.vq.vqvae import VQTokenizer

CENTRED = ":centred"
"""The end of the name of a space whose vectors have a mean taken off."""

__all__ = [
    "CENTRED",
    "MODEL",
    "PICTURE",
    "TEXT",
    "Codes",
    "Item",
    "ModelSpace",
    "Space",
    "TwinSpace",
    "open_space",
]


@dataclass(frozen=True)
class ModelSpace:
    """The space of a global embedding that a 4M model predicts.

    Args:
        pipe: the model with its tokenizers
        target: the global embedding
        decode: how a prediction becomes a vector
        steps: forward passes a query
        samples: with decode="sample": vectors drawn and averaged
        teacher: the network that embeds galleries; None: the model does, from pixels
        centre: what is taken off both sides
        spread: what is done to queries after that
        seed: of what is sampled
        names: what the model and the gallery were asked for by, to be written down
        learnt: what is kept beside the model about reranking and confidence
    """

    pipe: FourMPipeline
    target: Modality
    decode: Decode = "expected"
    steps: int = 1
    samples: int = 1
    teacher: NetworkEmbedder | None = None
    centre: Centre = field(default_factory=Centre)
    spread: Spread | None = None
    seed: int = 0
    names: Mapping[str, Any] = field(default_factory=dict)
    learnt: Learnt | None = None

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
    def reads(self) -> Reads:
        """A 4M model reads photos."""
        return "pictures"

    @property
    def codebook_size(self) -> int | None:
        """How many values a code has."""
        return self.target.vocab_size

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

    def embed_items(
        self, items: Sequence[Item], *, batch_size: int = 32, progress: Progress | None = None
    ) -> Floats:
        """Unit vectors float32[N, E] of any subsets of modalities, to search by.

        They are spread where they are guessed: not where pixels or the vector's codes are given, as
        a photo shall find itself.
        """
        parts = []
        for start in range(0, len(items), batch_size):
            part = items[start : start + batch_size]
            found = unit(self.centre(self.raw_items(part)).mean(axis=1))
            if self.spread is not None:
                guessed = np.array([self._is_guessed(item) for item in part])
                found[guessed] = self.spread(found[guessed])
            parts.append(found)
            if progress is not None:
                progress(min(start + batch_size, len(items)), len(items))
        return np.concatenate(parts) if parts else np.empty((0, self.width), np.float32)

    def _is_guessed(self, item: Item) -> bool:
        entries = {m.name: m for m in self.pipe.model.config.inputs}
        given = [entries[find_modality(key, entries, role="input")] for key in item]
        return not any(m.kind == "pixels" or m.name == self.target.name for m in given)

    def raw_items(self, items: Sequence[Item]) -> Floats:
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

    def embed_pictures(
        self, pictures: Sequence[Any], *, batch_size: int = 32, progress: Progress | None = None
    ) -> tuple[Floats, Codes]:
        """Unit vectors float32[N, E] and codes int64[N, L] of a gallery."""
        vectors, codes = [], []
        for start in range(0, len(pictures), batch_size):
            part = list(pictures[start : start + batch_size])
            raw = self.raw_pictures(part)
            vectors.append(unit(self.centre(raw).mean(axis=1)))
            codes.append(self.codes(raw.mean(axis=1)))
            if progress is not None:
                progress(start + len(part), len(pictures))
        if not vectors:
            empty = np.empty((0, self.target.max_tokens), np.int64)
            return np.empty((0, self.width), np.float32), empty
        return np.concatenate(vectors), np.concatenate(codes)

    def raw_pictures(self, pictures: Sequence[Any]) -> Floats:
        """Vectors float32[N, 1 or samples, E] of a gallery, in the network's own scale.

        Raises:
            ShapeError: the teacher's vectors are of another width than the target's
        """
        if self.teacher is None:
            return self.raw_items([{PICTURE: picture} for picture in pictures])
        return teacher_vectors(self.teacher, pictures, self.target, self.width)[:, None]

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


def is_embedder(source: Any) -> bool:
    """Whether a name is the specification of an embedding network, such as `hf:...`."""
    return isinstance(source, NetworkEmbedder) or (
        isinstance(source, str) and source.partition(":")[0] in FAMILIES and ":" in source
    )


def open_space(
    model: str | Path | FourMPipeline | NetworkEmbedder,
    *,
    target: str | None = None,
    gallery: str | NetworkEmbedder = MODEL,
    decode: Decode = "expected",
    steps: int = 1,
    samples: int = 1,
    seed: int = 0,
    center: bool = True,
    spread: float | None = None,
    tokenizers: Given = None,
    text_tokenizer: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> Space:
    """The space of a model, ready to embed queries and galleries.

    Args:
        model: a 4M model (folder, name, hub id, open pipeline), or a twin encoder (`hf:...`)
        target: the global embedding to predict; by default the one that `gallery` made under its
            short name, else the model's first
        gallery: "model", or the network that embeds galleries: `onnx:FILE`, ...; of published
            models "dinov2", "imagebind", or with a folder of one's own "dinov2=FOLDER"
        decode: "expected", "argmax" or "sample"
        steps: forward passes a query
        samples: vectors drawn and averaged with "sample"
        seed: of what is sampled
        center: whether the tokenizer's mean, where it has one, is taken off
        spread: power of the partial whitening of queries that is kept beside the model
            (`search.whitening`), in place of its own; 0 for none
        tokenizers: as `FourMPipeline.from_pretrained`
        text_tokenizer: replaces the text tokenizer alone
        device: where the networks run
        dtype: of the model's weights
    Raises:
        ConfigError: a spread of vectors that are not centred, or options of 4M models with a twin
            encoder, for which `device` alone counts
        FourMError: a spread, and none is kept beside the model
    """
    if spread and not center:
        raise ConfigError(
            f"queries are spread around the centre, got a spread of {spread} without centring; "
            "leave out one of the two"
        )
    if is_embedder(model):
        _refuse_options(
            model, target=target is not None, gallery=gallery != MODEL,
            decode=decode != "expected", steps=steps != 1, samples=samples != 1,
            spread=bool(spread), tokenizers=bool(tokenizers),
            text_tokenizer=text_tokenizer is not None, dtype=dtype is not None,
        )  # fmt: skip
        options = {"device": device} if device else {}
        embedder = load_embedder(model, **options)  # type: ignore[arg-type]
        return TwinSpace(embedder, _lasting_spec(model) if isinstance(model, str) else "")
    given = with_text(tokenizers, text_tokenizer)
    pipe = model
    if not isinstance(pipe, FourMPipeline):
        pipe = FourMPipeline.from_pretrained(pipe, given, device=device, dtype=dtype)  # type: ignore[arg-type]
    teacher = None if isinstance(gallery, str) and gallery == MODEL else gallery
    family = pipe.tokenizers.family
    if teacher is not None:
        target = teacher_target(teacher, target, pipe.model.config.outputs, family)
    entry = pipe.embedding_target(target)
    names: dict[str, Any] = {"gallery": gallery if isinstance(gallery, str) else gallery.name}
    names["center"] = center
    if isinstance(model, str | Path):
        names["model"] = _lasting(model)
    if words := lasting(given):
        names["tokenizers"] = words
    return ModelSpace(
        pipe, entry, decode, steps, samples,
        teacher=None if teacher is None else open_teacher(teacher, family),
        centre=tokenizer_centre(pipe.tokenizers.vq(entry)) if center else Centre(),
        spread=_spread(pipe, entry, spread) if center else None,
        seed=seed, names=names,
        learnt=read_learnt(pipe.folder, entry.name, pipe.extra.get("rerank")),
    )  # fmt: skip


def _refuse_options(model: Any, **given: bool) -> None:
    """Names the options that are given to a twin encoder and would not count."""
    names = [name for name, is_given in given.items() if is_given]
    if names:
        what = model if isinstance(model, str) else model.name
        raise ConfigError(
            f"{', '.join(names)}: for 4M models; '{what}' is a twin encoder, leave it out"
        )


def _spread(pipe: FourMPipeline, entry: Modality, power: float | None) -> Spread | None:
    found = read_spread(pipe.folder, entry.name)
    if found is None and power:
        raise FourMError(
            f"a spread of queries was asked for, and none is kept beside the model for "
            f"{entry.name}; learn it with fourm-lite spread"
        )
    if found is None or power == 0:
        return None
    return found if power is None else replace(found, power=power)


def learnt_of(space: Space) -> Learnt | None:
    """What is kept beside a space's model about reranking and confidence."""
    return space.learnt if isinstance(space, ModelSpace) else None


def spread_of(space: Space) -> dict[str, float]:
    """The power by which a space spreads its queries, for a protocol."""
    held = space.spread if isinstance(space, ModelSpace) else None
    return {"query_spread": 0.0 if held is None else held.power}


def tokenizer_centre(tokenizer: VQTokenizer) -> Centre:
    """The mean that a tokenizer was trained around; nothing where it has none."""
    mean = tokenizer.config.mean
    if mean is None:
        return Centre()
    width = tokenizer.config.n_channels
    return Centre(np.broadcast_to(np.array(mean, np.float32), (width,)).copy(), "tokenizer")


def _lasting(source: str | Path) -> str:
    """A path that still works from another folder; a name stays a name."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else str(source)


def _lasting_spec(spec: str) -> str:
    """The same for the specification of an embedder: `hf:FOLDER?option=value`."""
    family, _, rest = spec.partition(":")
    source, mark, options = rest.partition("?")
    pairs = [(name, _lasting(value)) for name, value in parse_qsl(options, keep_blank_values=True)]
    return f"{family}:{_lasting(source)}{mark}{urlencode(pairs, safe='/:')}"
