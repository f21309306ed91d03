"""The data of a recipe: its mixture, and its sources as aligned samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fourm_lite.data.label_rows import LabelRows, read_labels
from fourm_lite.data.labellers import METADATA
from fourm_lite.data.loader import Component
from fourm_lite.data.shards import (
    CROPS,
    AlignedSamples,
    Writer,
    aligned,
    caption_writer,
    read_tokens,
)
from fourm_lite.data.tokenized import PHOTOS, TokenJob
from fourm_lite.data.unread import usable
from fourm_lite.errors import ConfigError, suggest
from fourm_lite.io.hub import resolve
from fourm_lite.io.recipe import from_dict
from fourm_lite.modalities.spec import Modality
from fourm_lite.photos.records import Record, read_records, read_spoken
from fourm_lite.tokenization.load import load_tokenizer
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.metadata import metadata_to_chunks, palette_to_text
from fourm_lite.tokenization.words.text import TextTokenizer
from fourm_lite.training.tokenizer_recipes import TokenizerRecipe


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """One source of samples: photos, captions, or photos with captions.

    Units:
        captions: a JSONL or Parquet list, a folder of photos, or captions alone (.txt, .txt.gz)
        split: which of the list's splits, "" for all
        tokens: folder of token shards; labels: folder of pseudo-labels (palette, numbers)
        texts: each caption is a sample of its own, and photos are not read
    """

    captions: Path
    split: str = "train"
    tokens: Path | None = None
    labels: Path | None = None
    texts: bool = False


def changed(
    components: Sequence[Component], changes: Mapping[str, Mapping[str, Any]]
) -> tuple[Component, ...]:
    """The components with what differs of them, without those whose weight became 0.

    Raises:
        ConfigError: no component has such a name, or it has no such key
    """
    known = {c.name: c for c in components}
    for name in changes:
        if name not in known:
            raise ConfigError(f"changes: there is no component {name!r}.{suggest(name, known)}")
    made = []
    for component in components:
        change = changes.get(component.name, {})
        if change.get("weight") != 0:
            where = f"changes.{component.name}"
            made.append(from_dict(Component, {**vars(component), **change}, where=where))
    return tuple(made)


def read_samples(
    data: DataRecipe,
    modalities: Mapping[str, Modality],
    text: TextTokenizer,
    labels: Iterable[str] = (),
) -> AlignedSamples:
    """The samples of one source: its photos, captions, tokens and labels.

    Units:
        labels: names of what a teacher says, which losses ask for; features are read from the
            label of their encoder's name, of captions in a source with `texts = true`
    Raises:
        FourMError: tokens or labels of a modality are missing, or lack a photo
        ConfigError: tokens and labels were cut at different places
    """
    read = read_spoken if data.texts else read_records
    records = _usable(read(data.captions, split=data.split), data)
    ids = [r.id for r in records]
    tokens = {
        m.name: aligned(*in_order(ids, read_tokens(data.tokens, m.path)))
        for m in modalities.values()
        if m.kind == "grid" and data.tokens is not None
    }
    return AlignedSamples(
        records=records,
        tokens=tokens,
        settings=_settings(data, ids),
        texts=_writers(records, data, modalities, text),
        pixels={m.name: m.image_size or 224 for m in modalities.values() if m.kind == "pixels"},
        labels={name: _label_rows(data, name, ids) for name in sorted(labels)},
        features={
            m.name: _label_rows(data, m.tokenizer or m.stem, ids)
            for m in modalities.values()
            if m.kind == "features" and data.labels is not None
        },
    )


def _usable(records: list[Record], data: DataRecipe) -> list[Record]:
    """The records less photos that cannot be read and so have no tokens or labels; these are told.

    Photos whose tokens or labels were only never made stay, and are asked for.
    """
    known = []
    if data.tokens is not None:
        known.append(set(read_tokens(data.tokens, CROPS)[0]))
    if data.labels is not None:
        known.append(set(read_labels(data.labels, CROPS)[0]))
    return usable(records, *known)


def _label_rows(data: DataRecipe, name: str, ids: Sequence[str]) -> LabelRows:
    if data.labels is None:
        raise ConfigError(
            f"a component asks for the label {name!r} of {data.captions}, and its source names no "
            "folder of labels; give `labels` (made by fourm-lite pseudolabel)"
        )
    return LabelRows.read(data.labels, name, ids)


def _settings(data: DataRecipe, ids: Sequence[str]) -> Any:
    """Where the crops of a source were cut: int64[N, crops, 5], or None if nothing was cut."""
    found = []
    if data.tokens is not None:
        found.append(aligned(*in_order(ids, read_tokens(data.tokens, CROPS))))
    if data.labels is not None:
        found.append(aligned(*in_order(ids, read_labels(data.labels, CROPS))))
    if len(found) == 2 and not np.array_equal(found[0], found[1]):
        raise ConfigError(
            f"{data.tokens} and {data.labels} hold other crops of the photos, so a palette would "
            "tell of another place than the tokens; make the tokens of these labels "
            "(fourm-lite tokenize)"
        )
    return found[0] if found else None


def in_order(
    ids: Sequence[str], found: tuple[list[str], Any]
) -> tuple[list[str], Sequence[str], Any]:
    """The arguments of `aligned`: found ids and values in the order of `ids`."""
    return found[0], ids, found[1]


def _writers(
    records: Sequence[Record],
    data: DataRecipe,
    modalities: Mapping[str, Modality],
    text: TextTokenizer,
) -> dict[str, Writer]:
    out: dict[str, Writer] = {}
    for m in modalities.values():
        if m.kind != "sequence":
            continue
        if m.stem == "caption" and any(r.captions for r in records):
            out[m.name] = caption_writer(records, text.encode)
        elif m.stem != "caption" and data.labels is not None:
            if m.stem not in _LABEL_TEXTS:
                raise ConfigError(
                    f"no text can be made for '{m.name}'.{suggest(m.stem, _LABEL_TEXTS)} Known: "
                    f"caption, {', '.join(_LABEL_TEXTS)}"
                )
            values = aligned(*in_order([r.id for r in records], read_labels(data.labels, m.stem)))
            out[m.name] = _label_writer(values, _LABEL_TEXTS[m.stem], text)
    return out


def _palette_chunks(row: Any, bins: int) -> list[str]:
    return [palette_to_text((int(r), int(g), int(b)) for r, g, b in row if r >= 0)]


def _metadata_chunks(row: Any, bins: int) -> list[str]:
    numbers = dict(zip(METADATA, (float(v) for v in row), strict=True))
    return metadata_to_chunks(numbers, bins=bins)


_LABEL_TEXTS = {"color_palette": _palette_chunks, "metadata": _metadata_chunks}


def _label_writer(values: Any, chunks: Any, text: TextTokenizer) -> Writer:
    def write(index: int, crop: int, source: Any) -> Any:
        return [text.encode(chunk) for chunk in chunks(values[index, crop], text.bins)]

    return write


def read_of(
    source: str, components: Sequence[Component], entries: Mapping[str, Modality]
) -> dict[str, Modality]:
    """The modalities that some component reads of a source."""
    names = {name for c in components if c.source == source for name in c.names}
    return {name: entry for name, entry in entries.items() if name in names}


def check_sources(components: Sequence[Component], samples: Mapping[str, AlignedSamples]) -> None:
    """Refuses a component whose source holds nothing of one of its modalities.

    Raises:
        ConfigError: see above
    """
    for number, component in enumerate(components):
        if component.source not in samples:
            continue  # the stream names the sources that there are
        known = samples[component.source].names
        absent = [name for name in component.names if name not in known]
        if absent:
            raise ConfigError(
                f"component {component.name or number!r} reads {absent} of the source "
                f"{component.source!r}, which holds {sorted(known)}; leave them out, or make their "
                "tokens and labels (fourm-lite pseudolabel, fourm-lite tokenize)"
            )


def open_job(word: str, labels: Path | None = None, *, device: str = "cpu") -> TokenJob:
    """The job behind `[FOLDER=]NAME_OR_PATH[#LABEL]`.

    The folder is "tok_" and the tokenizer's name unless said; the label is what its recipe says
    that it learned, or the one of its own name, or the pixels where it reads three channels.

    Raises:
        CheckpointError: there is no such tokenizer
        ConfigError: nothing says which label it reads
    """
    folder, equals, rest = word.partition("=")
    source, _, label = (rest if equals else word).partition("#")
    place = resolve(source)
    name = place.parent.name if place.name == "weights" else place.stem
    tokenizer = load_tokenizer(place, device=device)
    return TokenJob(
        tokenizer,
        folder if equals else f"tok_{name}",
        _label(label, name, place, labels, tokenizer),
    )


def _label(said: str, name: str, place: Path, labels: Path | None, tokenizer: VQTokenizer) -> str:
    if said:
        return PHOTOS if said == "photos" else said
    recipe = place.parent / "recipe.toml"
    if recipe.is_file():
        values = TokenizerRecipe.read(recipe).values
        return PHOTOS if values.form == "photos" else values.label
    if labels is not None and (labels / name).is_dir():
        return name
    if tokenizer.config.n_channels == 3 and tokenizer.config.n_labels is None:
        return PHOTOS
    known = sorted(p.name for p in labels.iterdir() if p.is_dir()) if labels else []
    raise ConfigError(
        f"nothing says what the tokenizer '{name}' reads; write NAME#LABEL, with 'photos' for the "
        f"pixels or one of the labels {known}"
    )
