"""`joint:FOLDER`: a space where pictures and words meet, of two frozen encoders and their heads.

The folder holds joint_space.json, heads.safetensors and, in folders of their own, the encoders.
A file that came with some weights does not decide what else is opened: it may name encoders that
lie in the folder or ship with fourm_lite; others are named by whoever opens it,
`joint:FOLDER?image=timm:NAME`.
`fourm-lite train` makes such a folder from a recipe with a `[joint_space]` table.

The heads are linear maps of frozen features to unit vectors of one width. Pictures have one, or the
vectors of the classes that a classifier sees (`class_names` makes these); texts have one of their
sentence vector, one of their words, or both, whose results are added. Words count by TF-IDF: a rare
one more than a frequent one, and the vector of a text's counts has length 1. A word that the
vocabulary lacks is left to the sentence encoder.
"""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm_lite.embedders.base import LogitScale, NetworkEmbedder, Towers, fingerprint_module
from fourm_lite.embedders.load import load_embedder, parse_spec
from fourm_lite.embedders.tower_outputs import ClassMean
from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.io.files import write_json
from fourm_lite.io.hub import resolve, shipped
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.io.weights_file import load_tensors
from fourm_lite.io.writing import write_file
from fourm_lite.names import is_inside

if TYPE_CHECKING:
    from PIL.Image import Image

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Bags:
    """Texts as the words that they hold.

    Shapes:
        ids: int64[n], words of all texts; weights: float32[n]; starts: int64[B], of each text
    """

    ids: Tensor
    weights: Tensor
    starts: Tensor

    def to(self, device: torch.device | str) -> Bags:
        """The same on another device."""
        return Bags(self.ids.to(device), self.weights.to(device), self.starts.to(device))

    @classmethod
    def joined(cls, rows: Sequence[tuple[Tensor, Tensor]]) -> Bags:
        """The bags of some texts, each (ids, weights)."""
        lengths = torch.tensor([0, *(len(ids) for ids, _ in rows[:-1])])
        empty = (torch.zeros(0, dtype=torch.int64), torch.zeros(0))
        ids, weights = zip(*rows, strict=True) if rows else ((empty[0],), (empty[1],))
        return cls(torch.cat(ids), torch.cat(weights), lengths.cumsum(0)[: len(rows)])


@dataclass(frozen=True)
class WordWeights:
    """The words that are known, and what each counts."""

    words: tuple[str, ...]
    idf: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuses tables that do not fit each other."""
        if len(self.words) != len(self.idf) or len(set(self.words)) != len(self.words):
            raise ConfigError(
                f"expected one weight for each of unlike words, got {len(self.words)} words "
                f"({len(set(self.words))} unlike) and {len(self.idf)} weights"
            )
        object.__setattr__(self, "_place", {word: i for i, word in enumerate(self.words)})

    @classmethod
    def of(cls, texts: Sequence[str], least: int) -> WordWeights:
        """The words that stand in at least so many of the texts."""
        counts = Counter(word for text in texts for word in set(_words(text)))
        known = sorted(word for word, n in counts.items() if n >= least)
        idf = [math.log((1 + len(texts)) / (1 + counts[word])) + 1 for word in known]
        return cls(tuple(known), tuple(round(value, 5) for value in idf))

    def row(self, text: str) -> tuple[Tensor, Tensor]:
        """Known words of a text: ids int64[n] and TF-IDF weights float32[n] of length 1."""
        place: dict[str, int] = self._place  # type: ignore[attr-defined]
        counts = Counter(place[word] for word in _words(text) if word in place)
        weights = torch.tensor([(1 + math.log(n)) * self.idf[i] for i, n in counts.items()])
        return torch.tensor(list(counts), dtype=torch.int64), F.normalize(weights, dim=0)

    def bags(self, texts: Sequence[str]) -> Bags:
        """The words of some texts."""
        return Bags.joined([self.row(text) for text in texts])


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


class Side(nn.Module):
    """A linear map of features that are brought to mean 0 and one spread first."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, width)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(()))

    def measure(self, values: Tensor) -> None:
        """Takes mean and spread from training features: float32[N, E]."""
        self.mean.copy_(values.mean(0))
        self.deviation.copy_((values - self.mean).std().clamp(min=1e-6))

    def forward(self, values: Tensor, dropout: float = 0.0) -> Tensor:
        """float[B, E] -> float[B, D]."""
        return self.linear(F.dropout((values - self.mean) / self.deviation, dropout, dropout > 0))


class JointHeads(nn.Module):
    """Both sides of a joint space.

    Units:
        image, text: widths of the features, text 0 where there is no sentence encoder
        words: size of the vocabulary, 0 for none; width: of the space
        classes: the features of pictures are the logits of classes
    Raises:
        ConfigError: texts have neither sentence vectors nor words
    """

    def __init__(
        self, image: int, text: int, words: int, width: int, *, classes: bool = False
    ) -> None:
        super().__init__()
        if not text and not words:
            raise ConfigError("a joint space needs a sentence encoder, or words, or both")
        self.width = width
        self.image: Side | ClassMean = ClassMean(image, width) if classes else Side(image, width)
        self.text = Side(text, width) if text else None
        self.words = nn.EmbeddingBag(words, width, mode="sum") if words else None
        self.scale = nn.Parameter(torch.tensor(math.log(20.0)))  # of cosines, as CLIP's

    def init_weights(self, generator: torch.Generator) -> JointHeads:
        """Draws the maps."""
        for side in (self.image, self.text):
            if isinstance(side, Side):
                bound = side.linear.in_features**-0.5
                side.linear.weight.data.uniform_(-bound, bound, generator=generator)
                side.linear.bias.data.zero_()
        if self.words is not None:
            self.words.weight.data.normal_(0.0, 0.02, generator=generator)
        return self

    def embed_images(self, features: Tensor, dropout: float = 0.0) -> Tensor:
        """Features of pictures float[B, E] -> unit vectors float[B, D]."""
        return F.normalize(self.image(features, dropout), dim=-1)

    def embed_texts(
        self, sentences: Tensor | None, bags: Bags | None, dropout: float = 0.0
    ) -> Tensor:
        """Sentence vectors float[B, E] and words of texts -> unit vectors float[B, D]."""
        parts = []
        if self.text is not None and sentences is not None:
            parts.append(self.text(sentences, dropout))
        if self.words is not None and bags is not None:
            weights = F.dropout(bags.weights, dropout, dropout > 0)
            parts.append(self.words(bags.ids, bags.starts, per_sample_weights=weights))
        return F.normalize(torch.stack(parts).sum(0), dim=-1)

    def forward(
        self, images: Tensor, sentences: Tensor | None, bags: Bags | None, dropout: float = 0.0
    ) -> Tensor:
        """Scaled cosines of all texts of a batch to all its pictures: float[B, B]."""
        found = self.embed_images(images, dropout)
        texts = self.embed_texts(sentences, bags, dropout)
        return self.scale.exp().clamp(max=100.0) * texts @ found.T


CONFIG, HEADS, FORMAT = "joint_space.json", "heads.safetensors", 1
KEPT = (".json", ".safetensors", ".onnx", ".txt", ".model")
"""Files of an encoder's folder that are copied: weights and settings, and no code."""
SHELF = "generation/models/"
"""What the places of encoders that ship begin with."""
NAMED = frozenset({"output"})
"""Options of an encoder that a folder may name."""
OUTSIDE = ""
"""Stands for an encoder that the caller names when the folder is opened."""


@dataclass(frozen=True)
class JointSpace:
    """Two encoders and their heads; `text` is None where words alone are read."""

    heads: JointHeads
    words: WordWeights
    image: NetworkEmbedder
    text: NetworkEmbedder | None

    @torch.inference_mode()
    def embed_images(self, pictures: list[Image]) -> Tensor:
        """Unit vectors of pictures."""
        found = self.image.embed_image(pictures, len(pictures), normalize=False)
        return self.heads.embed_images(torch.from_numpy(found))

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit vectors of texts; zero where nothing of a text is known."""
        sentences = None
        if self.text is not None:
            found = self.text.embed_text(texts, len(texts), normalize=False)
            sentences = torch.from_numpy(found)
        bags = self.words.bags(texts) if self.words.words else None
        return self.heads.embed_texts(sentences, bags)


def load_joint_space(
    source: str, *, device: str = "cpu", image: str | None = None, text: str | None = None
) -> NetworkEmbedder:
    """An embedder of pictures and words from the folder of a joint space.

    `image` and `text` are specifications of encoders in place of those that lie in the folder.

    Raises:
        CheckpointError: the folder is none, or its files do not fit each other
        ConfigError: an encoder lies elsewhere, and is not told
    """
    folder = resolve(source)
    space = open_joint_space(folder, device=device, image=image, text=text)
    encoders = [e.space.fingerprint for e in (space.image, space.text) if e is not None]
    return NetworkEmbedder(
        f"joint:{source}",
        Towers(image=space.embed_images, text=space.embed_texts),
        identity=lambda: fingerprint_module(space.heads),
        preprocess=space.image.preprocess,
        logit_scale=LogitScale(float(space.heads.scale.detach().exp())),
        facts={"encoders": encoders, "words": space.words.words},
        label="joint",
        dim=space.heads.width,
    )


def open_joint_space(
    folder: Path, *, device: str = "cpu", image: str | None = None, text: str | None = None
) -> JointSpace:
    """The parts of a joint space; see `load_joint_space`."""
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"'{folder}' is no joint space: it holds no {CONFIG}; `fourm-lite train` makes one "
            "from a recipe with a [joint_space] table"
        )
    told = read_json_object(folder / CONFIG)
    if told.get("format") != FORMAT:
        raise CheckpointError(f"{folder / CONFIG} is of format {told.get('format')!r:.40}, known "
                              f"is {FORMAT}; update fourm_lite")  # fmt: skip
    weights = load_tensors(folder / HEADS)
    words = _word_weights(told, folder)
    heads = _heads(weights, words, folder)
    reads_text = heads.text is not None
    return JointSpace(
        heads,
        words,
        _encoder("image", told, folder, image, device),
        _encoder("text", told, folder, text, device) if reads_text else None,
    )


def _word_weights(told: dict[str, Any], folder: Path) -> WordWeights:
    words, idf = told.get("words", []), told.get("idf", [])
    plain = isinstance(words, list) and all(isinstance(w, str) for w in words)
    if not plain or not (isinstance(idf, list) and all(isinstance(v, int | float) for v in idf)):
        raise CheckpointError(f"'words' and 'idf' in {folder / CONFIG} should be lists of texts "
                              "and of numbers")  # fmt: skip
    try:
        return WordWeights(tuple(words), tuple(float(v) for v in idf))
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error


def _heads(weights: dict[str, Tensor], words: WordWeights, folder: Path) -> JointHeads:
    classes, text = weights.get("image.classes"), weights.get("text.linear.weight")
    linear = weights.get("image.linear.weight")
    image = classes if linear is None else linear
    if image is None or image.ndim != 2:
        raise CheckpointError(f"{folder / HEADS} holds no 'image.linear.weight' [D, E] and no "
                              "'image.classes' [K, D]")  # fmt: skip
    features, width = image.shape if linear is None else image.shape[::-1]
    try:
        heads = JointHeads(features, text.shape[1] if text is not None else 0,
                           len(words.words), width, classes=linear is None)  # fmt: skip
        heads.load_state_dict({name: value.float() for name, value in weights.items()})
    except (ConfigError, RuntimeError, IndexError) as error:
        raise CheckpointError(
            f"{folder / HEADS} does not fit {CONFIG}: {str(error)[:300]}"
        ) from error
    return heads.eval().requires_grad_(False)


def _encoder(
    side: str, told: dict[str, Any], folder: Path, given: str | None, device: str
) -> NetworkEmbedder:
    """The encoder of one side: the caller's, or the folder's own."""
    spec, options = given, dict[str, Any]()
    if spec is None:
        spec, options = _own_encoder(side, told, folder)
    if parse_spec(spec)[0] != "onnx":
        options = {**options, "device": device}
    encoder = load_embedder(spec, **options)
    if side not in encoder.can:
        raise FourMError(f"'{spec}' embeds {', '.join(encoder.can)}, and {side} is needed")
    return encoder


def _own_encoder(side: str, told: dict[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """The encoder that a folder names, and what it says of its output."""
    spec = told.get(side, OUTSIDE)
    if not isinstance(spec, str) or spec == OUTSIDE:
        raise ConfigError(
            f"the {side} encoder of '{folder}' lies elsewhere; say where it is: "
            f"joint:{folder}?{side}=FAMILY:PLACE"
        )
    family, place, options = parse_spec(spec)
    if not is_inside(place) or not set(options) <= NAMED:
        raise CheckpointError(
            f"{folder / CONFIG} names {spec!r:.80} as its {side} encoder; a folder may name what "
            "lies in it or ships with fourm_lite, other places and options are told by whoever "
            "opens it"
        )
    ships = place.startswith(SHELF) and not (folder / place).exists()
    return f"{family}:{shipped(place) if ships else folder / place}", options


def save_joint_space(
    folder: Path, heads: JointHeads, words: WordWeights, encoders: dict[str, str], facts: Any
) -> Path:
    """Writes a joint space that can be moved: local encoders are copied, those that ship named.

    Units:
        encoders: "image", "text" -> specification
        facts: what else joint_space.json says, such as what it was trained on
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().half() for name, value in heads.state_dict().items()}
    write_file(folder / HEADS, state, metadata=None)
    copied = {side: _copied(spec, folder / side) for side, spec in encoders.items()}
    told = {"format": FORMAT, "width": heads.width, **copied, **facts}
    write_json(folder / CONFIG, {**told, "words": words.words, "idf": words.idf}, indent=None)
    return folder


def _copied(spec: str, target: Path) -> str:
    """The specification of an encoder that was copied to `target`, or that it lies elsewhere."""
    family, place, options = parse_spec(spec)
    source = _local(place)
    if source is None or not set(options) <= NAMED:
        return OUTSIDE
    asked = "".join(f"?{name}={value}" for name, value in options.items())
    if _ships(place, source):
        return f"{family}:{place}{asked}"
    if source.is_dir():
        for file in source.rglob("*"):
            if file.suffix in KEPT:
                copied = target / file.relative_to(source)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, copied)
        return f"{family}:{target.name}{asked}"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target / source.name)
    return f"{family}:{target.name}/{source.name}{asked}"


def _ships(place: str, source: Path) -> bool:
    try:
        return place.startswith(SHELF) and source.samefile(shipped(place))
    except CheckpointError:  # a folder of the reader's own, of such a name
        return False


def _local(place: str) -> Path | None:
    path = Path(place).expanduser()
    if path.exists():
        return path
    try:
        return resolve(place) if "/" not in place else None
    except CheckpointError:
        return None
