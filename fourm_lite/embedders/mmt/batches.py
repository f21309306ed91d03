"""What a joint encoder reads: sentences as token ids, pictures as their regions, both in one batch.

A sentence gets the tokens around it and is cut as the family cuts; a picture is the features of its
regions and where they lie.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fourm_lite.embedders.features import Features, FeatureStore
from fourm_lite.embedders.mmt.network import JointBatch
from fourm_lite.errors import CheckpointError, ConfigError, ShapeError, foreign_errors
from fourm_lite.families.joint import Geometry, JointFamily

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Text = str | tuple[str, str]
"""A sentence, or a caption and the object tags of the picture."""


@dataclass(frozen=True)
class Words:
    """A tokenizer with the rules of a family.

    Args:
        tokenizer: gives ids without the tokens around a sentence
        family: the rules
        limit: tokens of a sentence, without the two around it
    """

    tokenizer: Tokenizer
    family: JointFamily
    limit: int

    def read(self, text: Text) -> tuple[list[int], list[int]]:
        """Token ids and token types. An empty sentence is no sentence: the first token alone.

        Raises:
            ConfigError: a pair where the family knows none, or no text at all
        """
        if isinstance(text, str):
            return self._sentence(self._ids(text))
        if not isinstance(text, Sequence) or [type(part) for part in text] != [str, str]:
            raise ConfigError(
                f"a text is a sentence, or a pair of caption and object tags, got {text!r}"
            )
        if not self.family.pairs:
            raise ConfigError(
                f"{self.family.title} reads one sentence, got a pair; join caption and tags"
            )
        return self._pair(*(self._ids(part) for part in text))

    def _sentence(self, ids: list[int]) -> tuple[list[int], list[int]]:
        first, last = self._special(self.family.first), self._special(self.family.last)
        if not ids:
            found = [first]
        elif self.family.cut_last:
            found = [first, *ids, last][: self.limit + 2]
        else:
            found = [first, *ids[: self.limit], last]
        return found, [0] * len(found)

    def _pair(self, one: list[int], two: list[int]) -> tuple[list[int], list[int]]:
        # "longest first": the longer one loses its last token, on a tie the second
        while len(one) + len(two) + 3 > self.limit + 2 and (one or two):
            (one if len(one) > len(two) else two).pop()
        first, last = self._special(self.family.first), self._special(self.family.last)
        found = [first, *one, last, *two, last]
        return found, [0] * (len(one) + 2) + [1] * (len(two) + 1)

    def _ids(self, sentence: str) -> list[int]:
        return list(self.tokenizer.encode(sentence, add_special_tokens=False).ids)

    def _special(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ConfigError(
                f"{self.family.title} needs a tokenizer with the token {token!r}; this one has "
                "none, give another with tokenizer="
            )
        return int(found)


def open_tokenizer(source: str | Path | Any, *, lower_case: bool) -> Tokenizer:
    """The tokenizer of a vocab.txt, a tokenizer.json, or a folder or Hub id that holds one.

    Raises:
        CheckpointError: there is none, or it cannot be read
    """
    import tokenizers

    if isinstance(source, tokenizers.Tokenizer):
        return source
    path = Path(source).expanduser()
    if not path.exists():
        return _from_hub(str(source))
    if path.is_dir():
        names = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model")
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise CheckpointError(f"'{path}' holds none of {', '.join(names)}")
        path = found
    with foreign_errors(CheckpointError, f"'{path}' is no tokenizer that can be read: {{error}}"):
        if path.suffix == ".json":
            return tokenizers.Tokenizer.from_file(str(path))
        if path.suffix == ".model":
            return _sentencepiece(path)
        return _word_pieces(path, lower_case)


def _word_pieces(path: Path, lower_case: bool) -> Tokenizer:
    from tokenizers import BertWordPieceTokenizer

    options: dict[str, Any] = {"lowercase": lower_case}
    beside = path.with_name("tokenizer_config.json")
    if beside.is_file():
        stated = json.loads(beside.read_text(encoding="utf-8"))
        options["lowercase"] = bool(stated.get("do_lower_case", lower_case))
        if stated.get("strip_accents") is not None:
            options["strip_accents"] = bool(stated["strip_accents"])
        options["handle_chinese_chars"] = bool(stated.get("tokenize_chinese_chars", True))
    return BertWordPieceTokenizer(str(path), **options)._tokenizer


def _sentencepiece(path: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    # needs tokenizer_config.json beside it, as the Hub's folders have
    found: Tokenizer = AutoTokenizer.from_pretrained(str(path.parent)).backend_tokenizer
    return found


def _from_hub(name: str) -> Tokenizer:
    from fourm_lite.embedders.hf import find_file

    path = find_file(name, "tokenizer.json")
    if path is None:
        raise CheckpointError(
            f"the tokenizer '{name}' is neither a file nor a folder, and the Hub does not give it; "
            "give a vocab.txt, a tokenizer.json or a folder with one: tokenizer=PATH"
        )
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(path))


# of x1, y1, x2, y2 in parts of the picture's size
NUMBERS: dict[Geometry, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "x1": lambda box: box[:, 0],
    "y1": lambda box: box[:, 1],
    "x2": lambda box: box[:, 2],
    "y2": lambda box: box[:, 3],
    "w": lambda box: box[:, 2] - box[:, 0],
    "h": lambda box: box[:, 3] - box[:, 1],
    "area": lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
}


@dataclass(frozen=True)
class Regions:
    """Regions of one picture: features float32[R, F] and geometry float32[R, G]."""

    features: Tensor
    geometry: Tensor


@dataclass(frozen=True)
class RegionReader:
    """Turns ids, features or dictionaries of MMT-Retrieval into regions.

    Args:
        numbers: the geometry of the family
        width: of the features that the network was trained on
        limit: how many regions count, the first ones
        store: where ids are looked up
    """

    numbers: tuple[Geometry, ...]
    width: int
    limit: int
    store: FeatureStore | None = None

    def __call__(self, picture: Any) -> Regions:
        """The regions of an id of the store, of `Features`, or of a dictionary.

        Raises:
            ConfigError: something else, an id without a store, or no boxes
            ShapeError: features of another width
        """
        if isinstance(picture, Regions):
            return picture
        item, name = self._features(picture)
        if item.features.shape[1] != self.width:
            raise ShapeError(
                f"this network reads region features of width {self.width}, {name} has "
                f"{item.features.shape[1]}; extract them with the detector that it was trained on"
            )
        if item.boxes is None or item.size is None or not len(item.features):
            raise ConfigError(
                f"this network reads where regions lie, and {name} has no boxes or no size of its "
                "picture; extract features with boxes"
            )
        height, width = item.size
        scale = np.array([width, height, width, height], np.float64)
        boxes = item.boxes[: self.limit].astype(np.float64) / scale
        geometry = np.stack([NUMBERS[n](boxes) for n in self.numbers], axis=1)
        return Regions(
            torch.from_numpy(np.ascontiguousarray(item.features[: self.limit])),
            torch.from_numpy(geometry.astype(np.float32)),
        )

    def _features(self, picture: Any) -> tuple[Features, str]:
        if isinstance(picture, Features):
            return picture, "this picture"
        if isinstance(picture, Mapping):
            return _of_dictionary(picture), "this picture"
        if not isinstance(picture, str | int) or isinstance(picture, bool):
            raise ConfigError(
                "a network of words and regions reads pictures by the id of their features (or as "
                f"Features), got {type(picture).__name__}; photos need a detector first"
            )
        if self.store is None:
            raise ConfigError(
                f"the id {picture!r} cannot be looked up: give features=STORE, a FeatureStore or "
                "the path of one, when the network is loaded"
            )
        # a photo "1000.jpg" has its regions in "1000.npz"
        names = (str(picture), Path(str(picture)).stem)
        name = next((n for n in names if n in self.store), names[0])
        return self.store[name], f"'{picture}'"


def _of_dictionary(item: Mapping[str, Any]) -> Features:
    if missing := [name for name in ("features", "boxes", "img_w", "img_h") if name not in item]:
        raise ConfigError(f"a picture's dictionary needs {missing}, it has {sorted(item)}")
    features, boxes = (np.asarray(item[name], np.float32) for name in ("features", "boxes"))
    return Features(features, boxes, (float(item["img_h"]), float(item["img_w"])))


def join_batch(
    texts: Sequence[tuple[Sequence[int], Sequence[int]]], pictures: Sequence[Regions | None]
) -> JointBatch:
    """Texts (ids and types) and pictures by position, padded to one batch."""
    ids, words = _padded([torch.tensor(ids, dtype=torch.long) for ids, _ in texts])
    types, _ = _padded([torch.tensor(types, dtype=torch.long) for _, types in texts])
    some = next((p for p in pictures if p is not None), None)
    widths = (0, 0) if some is None else (some.features.shape[1], some.geometry.shape[1])
    empty = Regions(torch.zeros(0, widths[0]), torch.zeros(0, widths[1]))
    found = [empty if p is None else p for p in pictures]
    features, regions = _padded([p.features for p in found])
    geometry, _ = _padded([p.geometry for p in found])
    return JointBatch(ids, types, words, features, geometry, regions)


def _padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """[B, L, ...] with zeros behind each row, and bool[B, L], True where a row is."""
    lengths = torch.tensor([len(row) for row in rows])
    valid = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), valid
