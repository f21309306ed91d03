"""Opens the space that a search is in: that of a 4M model, or of a dual encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
import torch

from fourm_lite.embedders.base import NetworkEmbedder
from fourm_lite.embedders.load import FAMILIES, load_embedder
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.embedding import THINKS_OF_NOTHING, Decode, pooled_of
from fourm_lite.pipeline.given import Given, lasting, with_text
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.pipeline.teacher import open_teacher, teacher_target
from fourm_lite.pipeline.together import thoughts
from fourm_lite.search.encoder_space import EncoderSpace
from fourm_lite.search.model_space import CENTRED, ModelSpace
from fourm_lite.search.search_file import read_fitted
from fourm_lite.search.space import MODEL, PICTURE, TEXT, Codes, DualEncoderSpace, Inputs, Space
from fourm_lite.search.whitening import Centre, QueryWhitening, read_whitening
from fourm_lite.tokenization.vq.vqvae import VQTokenizer

__all__ = [
    "CENTRED",
    "MODEL",
    "PICTURE",
    "TEXT",
    "Codes",
    "DualEncoderSpace",
    "Inputs",
    "ModelSpace",
    "Space",
    "open_space",
]


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
    think: Sequence[str] = (),
    tokenizers: Given = None,
    text_tokenizer: str | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
) -> Space:
    """The space of a model, ready to embed queries and galleries.

    Args:
        model: a 4M model (folder, name, hub id, open pipeline), or a dual encoder (`hf:...`)
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
        think: what is generated of each item first and read with it, by models of whose encoder's
            tokens the mean is taken (TerraMind)
        tokenizers: as `FourMPipeline.from_pretrained`
        text_tokenizer: replaces the text tokenizer alone
        device: where the networks run
        dtype: of the model's weights; see `load_model`
    Raises:
        ConfigError: a spread of vectors that are not centred, or options of 4M models with a dual
            encoder, for which `device` alone counts; or thoughts before a global embedding
        FourMError: a spread, and none is kept beside the model
    """
    if is_embedder(model):
        _refuse_options(
            model, target=target is not None, gallery=gallery != MODEL,
            decode=decode != "expected", steps=steps != 1, samples=samples != 1,
            spread=bool(spread), think=bool(think), tokenizers=bool(tokenizers),
            text_tokenizer=text_tokenizer is not None, dtype=dtype is not None,
        )  # fmt: skip
        options = {"device": device} if device else {}
        embedder = load_embedder(model, **options)  # type: ignore[arg-type]
        return DualEncoderSpace(embedder, _lasting_spec(model) if isinstance(model, str) else "")
    given = with_text(tokenizers, text_tokenizer)
    named = model if isinstance(model, str | Path) else None
    pipe: Any = model
    if named is not None:
        pipe = FourMPipeline.from_pretrained(named, given, device=device, dtype=dtype)
    if target is None and gallery == MODEL and pooled_of(pipe.model.config) is not None:
        name = None if named is None else _lasting(named)
        first = thoughts(pipe.plan(list(think)), pipe.model.config) if think else None
        return EncoderSpace(pipe, name, tuple(lasting(given)), first)
    if think:
        raise ConfigError(THINKS_OF_NOTHING)
    return open_model_space(
        pipe, target=target, gallery=gallery, decode=decode, steps=steps, samples=samples,
        seed=seed, center=center, spread=spread, tokenizers=tokenizers,
        text_tokenizer=text_tokenizer, device=device, dtype=dtype, named=named,
    )  # fmt: skip


def open_model_space(
    model: str | Path | FourMPipeline,
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
    dtype: str | torch.dtype | None = None,
    named: str | Path | None = None,
) -> ModelSpace:
    """The space of a 4M model; see `open_space`. An open pipeline is written down as `named`.

    Raises:
        ConfigError: a dual encoder, which predicts nothing; whitened queries without a centre
        FourMError: whitened queries, and nothing to whiten by is kept beside the model
    """
    if is_embedder(model):
        what = model if isinstance(model, str) else getattr(model, "name", model)
        raise ConfigError(f"'{what}' is a dual encoder and predicts nothing; give a 4M model")
    if spread and not center:
        raise ConfigError(
            f"queries are whitened around the centre, got a spread of {spread} without centring; "
            "leave out one of the two"
        )
    given = with_text(tokenizers, text_tokenizer)
    pipe = model
    if not isinstance(pipe, FourMPipeline):
        pipe = FourMPipeline.from_pretrained(pipe, given, device=device, dtype=dtype)
    teacher = None if isinstance(gallery, str) and gallery == MODEL else gallery
    family = pipe.tokenizers.family
    if teacher is not None:
        target = teacher_target(teacher, target, pipe.model.config.outputs, family)
    entry = pipe.embedding_target(target)
    names: dict[str, Any] = {"gallery": gallery if isinstance(gallery, str) else gallery.name}
    names["center"] = center
    source = model if isinstance(model, str | Path) else named
    if source is not None:
        names["model"] = _lasting(source)
    if words := lasting(given):
        names["tokenizers"] = words
    return ModelSpace(
        pipe, entry, decode, steps, samples,
        teacher=None if teacher is None else open_teacher(teacher, family),
        centre=tokenizer_centre(pipe.tokenizers.vq(entry)) if center else Centre(),
        whitening=_whitening(pipe, entry, spread) if center else None,
        seed=seed, names=names,
        fitted=read_fitted(pipe.folder, entry.name, pipe.extra.get("rerank")),
    )  # fmt: skip


def _refuse_options(model: Any, **given: bool) -> None:
    """Names the options that are given to a dual encoder and would not count."""
    names = [name for name, is_given in given.items() if is_given]
    if names:
        what = model if isinstance(model, str) else model.name
        raise ConfigError(
            f"{', '.join(names)}: for 4M models; '{what}' is a dual encoder, leave it out"
        )


def _whitening(pipe: FourMPipeline, entry: Modality, power: float | None) -> QueryWhitening | None:
    found = read_whitening(pipe.folder, entry.name)
    if found is None and power:
        raise FourMError(
            "a spread of queries was asked for, and nothing to whiten them by is kept beside the "
            f"model for {entry.name}; learn it with fourm-lite spread"
        )
    if found is None or power == 0:
        return None
    return found if power is None else replace(found, power=power)


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
