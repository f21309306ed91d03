"""The space of an encoder's own tokens, for models that predict no global embedding.

AION-1's and TerraMind's users take the mean over the tokens. Any subset of modalities is one item,
in a query as in a gallery; a file of a gallery is the value of one of them. Which one, where nobody
says it: a picture that is given without a name is called `rgb`. For a model of tiles or arrays the
bands of a tile say what it is; where several modalities have as many, and for arrays, the folder in
which the file lies bears the name (`S1GRD/0.tif`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from fourm_lite.batch import TokenBatch
from fourm_lite.embedders.base import Reads, sampled_fingerprint
from fourm_lite.errors import ConfigError, UnknownNameError
from fourm_lite.families.masked import fork_of
from fourm_lite.modalities.array_codecs import number_of_bands
from fourm_lite.modalities.codecs import tile_codec
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.embedding import embed_pooled
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.pipeline.readers import find_modality
from fourm_lite.progress import Progress
from fourm_lite.reading.regular import read_bytes
from fourm_lite.sampling.plan import Plan
from fourm_lite.search.gallery import item_of
from fourm_lite.search.space import MODEL, PICTURE, TEXT, Inputs, Space
from fourm_lite.unit import Floats


@dataclass(frozen=True)
class EncoderSpace(Space):
    """Means over the tokens of a model's encoder.

    Args:
        pipe: the model with its tokenizers
        source: what the model was asked for by, to be written down
        tokenizers: likewise
        think: what is generated of each item first and read with it, always from the seed 0
    """

    pipe: FourMPipeline
    source: str | None = None
    tokenizers: tuple[str, ...] = ()
    think: Plan | None = None

    joins: ClassVar[bool] = True
    without_likelihood: ClassVar[str] = (
        "vectors that are means over an encoder's tokens have no codes whose likelihood could be "
        "told: search without --rerank (rerank=), or give a reranker of your own"
    )

    @property
    def reads(self) -> Reads:
        """Items of modalities and values, and files that are one."""
        return "items"

    @property
    def name(self) -> str:
        """The family, whose encoder it is, and what it thinks of first."""
        name = f"{fork_of(self.pipe.model.config.modalities).name}:encoder"
        return name + "".join(f"+{thought}" for thought in self._thoughts)

    @property
    def _thoughts(self) -> list[str]:
        return [] if self.think is None else self.think.names

    @property
    def width(self) -> int:
        """The width of a token."""
        return self.pipe.model.config.dim

    @cached_property
    def identity(self) -> dict[str, str]:
        """The weights decide, and the type in which they count."""
        text = f"{sampled_fingerprint(self.pipe.model)} {self.pipe.model.dtype}"
        return {"model": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def former_fingerprints(self, name: str) -> tuple[str, ...]:
        """There were none before."""
        return ()

    def query_texts(self, texts: Sequence[str]) -> tuple[tuple[Inputs, ...], int]:
        """Captions, where the model reads any.

        Raises:
            ConfigError: it does not
        """
        names = [m.name for m in self.pipe.model.config.inputs]
        if TEXT not in names:
            raise ConfigError(f"this model reads no '{TEXT}'; it reads {names}")
        return tuple({TEXT: text} for text in texts), 0

    def encode_query(
        self, items: Sequence[Inputs], *, batch_size: int = 32, progress: Progress | None = None
    ) -> Floats:
        """Unit vectors float32[N, E] of any subsets of modalities; sizes may differ."""
        starts = range(0, len(items), batch_size)
        batches = ([self._read(i) for i in items[s : s + batch_size]] for s in starts)
        pipe = self.pipe
        return embed_pooled(pipe.model, batches, self.think, [0] * len(items), pipe.marks, progress)

    def encode_document(
        self, pictures: Sequence[Any], *, batch_size: int = 32, progress: Progress | None = None
    ) -> tuple[Floats, None]:
        """Unit vectors float32[N, E] of a gallery's items, files among them; there are no codes."""
        items = [one if isinstance(one, Mapping) else {PICTURE: one} for one in pictures]
        return self.encode_query(items, batch_size=batch_size, progress=progress), None

    @property
    def opener(self) -> Callable[[bytes], Any]:
        """The model reads an item as soon as it is opened."""
        return self.open_document

    def open_document(self, data: bytes) -> TokenBatch:
        """An item of a gallery as a batch of one, so that a damaged one is told of alone.

        Raises:
            FourMError: it holds no value of a modality of the model
        """
        return self._read(item_of(data))

    def _read(self, item: Inputs) -> TokenBatch:
        if isinstance(item, TokenBatch):
            return item
        return self.pipe.read([placed(item, self.pipe.model.config.inputs)])

    def provenance(self) -> dict[str, Any]:
        """Fields of a manifest."""
        extra: dict[str, Any] = {"gallery": MODEL, "centre": "none"}
        if self.tokenizers:
            extra["tokenizers"] = list(self.tokenizers)
        if self._thoughts:
            extra["think"] = self._thoughts
        return {"model": self.source, "preprocessing": "of the modality's codec", "extra": extra}

    def comparison(self) -> dict[str, Any]:
        """Plain cosines of the encoder's means."""
        return {"gallery": MODEL, "decode": None, "score": "cosine"}


TILES, ARRAYS = (".tif", ".tiff"), (".npy", ".npz")


def placed(item: Mapping[str, Any], inputs: Iterable[Modality]) -> dict[str, Any]:
    """The item with a file that has no name of its own under that of its modality.

    Raises:
        ConfigError: it may be a value of several modalities, or of none
    """
    entries = {m.name: m for m in inputs}
    value = item.get(PICTURE)
    if not isinstance(value, str | Path) or Path(value).suffix.lower() not in (*TILES, *ARRAYS):
        return dict(item)
    name = _modality_of(Path(value), entries)
    if name in item:
        raise ConfigError(f"the item says '{name}' twice, the second time as {value}")
    return {name if key == PICTURE else key: v for key, v in item.items()}


def _modality_of(file: Path, entries: Mapping[str, Modality]) -> str:
    fitting = dict(entries)
    if file.suffix.lower() in TILES:
        count = number_of_bands(read_bytes(file))
        bands = {n: len(c.mean) for n, m in entries.items() if (c := tile_codec(m)) is not None}
        fitting = {n: m for n, m in entries.items() if bands.get(n) == count}
        if not fitting:
            have = ", ".join(f"{called(entries[n])} {have}" for n, have in bands.items())
            raise ConfigError(f"{file} has {count} bands, this model's modalities have {have}")
    named = _by_folder(file, fitting)
    pixels = [name for name, m in fitting.items() if m.kind == "pixels"]
    if named is None and len(pixels) != 1:
        raise ConfigError(
            f"{file} may be any of {', '.join(map(called, fitting.values()))}; say which: "
            'NAME=FILE in a query, {"NAME": "FILE"} in a list of items (.jsonl), or put files into '
            "folders of these names"
        )
    return named or pixels[0]


def _by_folder(file: Path, entries: Mapping[str, Modality]) -> str | None:
    """The nearest folder above that is called as one of the modalities."""
    for folder in file.absolute().parents:
        with suppress(UnknownNameError):
            return find_modality(folder.name, entries, role="input")
    return None


def called(entry: Modality) -> str:
    """What its users call a modality."""
    return entry.input_names[0].upper() if entry.input_names else entry.name
