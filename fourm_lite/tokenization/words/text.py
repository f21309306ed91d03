"""Text <-> token ids by WordPiece, with the special words of 4M's vocabulary.

Layout of the vocabulary: [PAD] [UNK] [SOS] [EOS], sentinels [S_0].., coordinates v0=0.., v1=..,
v2=.., v3=.., class names (each one token, "hot dog" too), then word pieces. A file of Hugging
Face's `tokenizers` holds all of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor

from fourm_lite.errors import ConfigError, FourMError, ShapeError, foreign_errors
from fourm_lite.io.files import write_whole
from fourm_lite.io.hub import (
    ORIGINAL_TEXT_TOKENIZER,
    RemoteFile,
    fetch,
    is_hub_id,
    resolve,
    shipped_names,
)
from fourm_lite.tokenization.vq.inputs import as_tensor
from fourm_lite.tokenization.words.spans import Marks
from fourm_lite.tokenization.words.wordpiece import CONTINUED, learn_pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer as WordPieces

PAD, UNK, SOS, EOS = SPECIAL = ("[PAD]", "[UNK]", "[SOS]", "[EOS]")
AXES = 4
_COORDINATE = re.compile(r"v[0-3]=([0-9]+)\Z")
_FILE_NAMES = ("tokenizer.json", "text_tokenizer.json")
_SPECIAL_WORD = re.compile(r"\[(?:PAD|UNK|SOS|EOS|S_[0-9]+)\]|\bv[0-3]=[0-9]+\b")
_MAX_FILE_BYTES = 64 << 20


class TextTokens(NamedTuple):
    """A padded batch of texts.

    Shapes:
        ids: int64[B, L]
        valid: bool[B, L], False at the padding
    """

    ids: Tensor
    valid: Tensor


class TextTokenizer:
    """Captions, boxes, metadata and all other texts as token ids.

    Raises:
        ConfigError: the vocabulary lacks a special word
    """

    def __init__(self, pieces: WordPieces) -> None:
        self._pieces = pieces
        words = pieces.get_vocab(with_added_tokens=True)
        missing = [word for word in (*SPECIAL, "[S_1]", "[S_2]") if word not in words]
        if missing:
            raise ConfigError(
                f"a text tokenizer for 4M needs the special words {missing}; "
                "train one with train_text_tokenizer(), or load the original's with '4m'"
            )
        self.pad, self.unk = words[PAD], words[UNK]
        self.sos, self.eos = words[SOS], words[EOS]
        self.sentinels = tuple(_in_order(words, "[S_{}]"))
        self.bins = 1 + max((int(m[1]) for m in map(_COORDINATE.match, words) if m), default=-1)
        self.amounts = tuple(_in_order(words, "v0={}"))
        self._unwanted = {self.pad, self.sos, self.eos, *self.sentinels}

    @property
    def vocab_size(self) -> int:
        """Number of ids, special words included."""
        return int(self._pieces.get_vocab_size(with_added_tokens=True))

    @property
    def marks(self) -> Marks:
        """The ids that span masking and decoding need."""
        return Marks(self.pad, self.eos, self.sentinels, self.amounts)

    def id_of(self, word: str) -> int | None:
        """The id of one token, or None where the vocabulary does not hold it."""
        found: int | None = self._pieces.token_to_id(word)
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of a text, nothing added."""
        if not isinstance(text, str):
            raise FourMError(f"a text tokenizer reads str, got {type(text).__name__}")
        ids: list[int] = self._pieces.encode(_encodable(text)).ids
        return ids

    def unknown_words(self, text: str) -> tuple[list[str], int]:
        """The words of a text that the vocabulary does not hold, and how many words there are.

        A word that is cut into its single letters is unknown too: training has hardly seen it.
        """
        found = self._pieces.encode(_encodable(text))
        words: dict[int, list[int]] = {}
        for place, word in enumerate(found.word_ids):
            if word is not None and any(c.isalnum() for c in text[slice(*found.offsets[place])]):
                words.setdefault(word, []).append(place)
        unknown = [places for places in words.values() if self._is_unknown(found, places)]
        spans = [(found.offsets[p[0]][0], found.offsets[p[-1]][1]) for p in unknown]
        return [text[start:end] for start, end in spans], len(words)

    def _is_unknown(self, found: Any, places: Sequence[int]) -> bool:
        sizes = [len(found.tokens[p].removeprefix(CONTINUED)) for p in places]
        return self.unk in (found.ids[p] for p in places) or (len(sizes) > 2 and max(sizes) == 1)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of some ids, special words written out.

        With `skip_special_tokens` all special words are left out, and coordinates and class names
        are special; `detokenize` leaves only the marks out.
        """
        return str(self._pieces.decode(self._checked(ids), skip_special_tokens=skip_special_tokens))

    def tokenize(
        self, texts: str | Sequence[str], *, max_tokens: int | None = None, eos: bool = True
    ) -> TextTokens:
        """A padded batch; a text that is too long is cut, its [EOS] with it.

        Shapes:
            returns: ids int64[B, L], valid bool[B, L]; L is the longest text of the batch
        """
        batch = [texts] if isinstance(texts, str) else list(texts)
        ends = [self.eos] if eos else []
        rows = [(self.encode(text) + ends)[:max_tokens] for text in batch]
        length = max(map(len, rows), default=0)
        ids = torch.full((len(rows), length), self.pad, dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return TextTokens(ids, torch.arange(length) < lengths[:, None])

    def detokenize(self, ids: Tensor | npt.NDArray[Any]) -> list[str]:
        """The texts of a batch: each up to its [EOS], without padding and sentinels.

        Shapes:
            ids: int64[B, L] or int64[L]
        """
        ids = as_tensor(ids)
        if ids.dtype.is_floating_point or ids.ndim not in (1, 2):
            raise ShapeError(
                f"detokenize() expects int64[B, L] or int64[L], got {ids.dtype}{list(ids.shape)}"
            )
        rows = ids.reshape(1, -1) if ids.ndim == 1 else ids
        return [self._plain(row) for row in rows.tolist()]

    def _plain(self, row: list[int]) -> str:
        end = row.index(self.eos) if self.eos in row else len(row)
        return self.decode(i for i in row[:end] if i not in self._unwanted)

    def _checked(self, ids: Iterable[int]) -> list[int]:
        checked = [int(i) for i in ids]
        for i in checked:
            if not 0 <= i < self.vocab_size:
                raise ShapeError(
                    f"this text vocabulary has ids 0..{self.vocab_size - 1}, got {i}; "
                    "was the text made with another tokenizer?"
                )
        return checked

    def to_json(self) -> str:
        """The content of a tokenizer file."""
        return str(self._pieces.to_str(pretty=False))

    def save(self, path: str | Path) -> None:
        """Writes a file that `load_text_tokenizer` reads, whole or not at all."""
        write_whole(path, self.to_json())


def _encodable(text: str) -> str:
    """Lone surrogates, which no UTF-8 text can hold, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _in_order(words: dict[str, int], form: str) -> Iterator[int]:
    """The ids of the words numbered 0, 1 and so on, up to the first that is missing."""
    for number in count():
        found = words.get(form.format(number))
        if found is None:
            return
        yield found


def load_text_tokenizer(
    source: str | Path, *, remote: RemoteFile = ORIGINAL_TEXT_TOKENIZER
) -> TextTokenizer:
    """The text tokenizer of a file or folder; "4m" fetches the original's once and keeps it.

    Units:
        source: a `tokenizers` JSON file, a folder that holds one, a shipped name, a hub id, "4m"
        remote: where "4m" lies
    Raises:
        FourMError: there is no such file, it is broken, or it cannot be fetched
        ConfigError: the vocabulary lacks the special words of 4M
    """
    path = find_text_tokenizer(source, remote=remote)
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise FourMError(f"{path} is larger than any tokenizer file; is it a checkpoint?")
    return TextTokenizer(_parse(path))


def find_text_tokenizer(
    source: str | Path, *, remote: RemoteFile = ORIGINAL_TEXT_TOKENIZER
) -> Path:
    """The file of a text tokenizer, fetched where it is not here; as `load_text_tokenizer`."""
    if str(source) == "4m":
        return fetch(remote)
    path = Path(source).expanduser()
    if not path.exists() and (is_hub_id(source) or Path(source).name in shipped_names()):
        path = resolve(source)
    return _find(path)


def _find(path: Path) -> Path:
    candidates = [path / name for name in _FILE_NAMES] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FourMError(
        f"expected a tokenizer JSON file, found none at {path}; pass a file, a folder that holds "
        f"{' or '.join(_FILE_NAMES)}, a shipped name such as text_mini, or '4m' for the original's"
    )


def _parse(path: Path) -> WordPieces:
    from tokenizers import Tokenizer

    told = f"{path} is not a `tokenizers` JSON file: {{error}}; write one with save()"
    with foreign_errors(FourMError, told):
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))


def train_text_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    classes: Sequence[str] = (),
    bins: int = 1000,
    num_sentinels: int = 200,
    min_frequency: int = 2,
) -> TextTokenizer:
    """A WordPiece vocabulary of the texts, in the layout of 4M's.

    Units:
        vocab_size: ids in all, special words included; fewer where the texts do not hold more
        classes: names that become one token each, such as "hot dog"
        bins: coordinates an axis (v0=0 .. v0=bins-1)
        num_sentinels: [S_0] .. ; a text of n tokens needs up to n / 2 + 2
    Raises:
        ConfigError: the special words alone do not fit
    """
    special = special_words(classes=classes, bins=bins, num_sentinels=num_sentinels)
    room = vocab_size - len(special)
    if room < 1:
        raise ConfigError(
            f"{len(special)} special words do not fit into a vocabulary of {vocab_size}; "
            "raise vocab_size, or take fewer bins, sentinels or classes"
        )
    learned = learn_pieces(_word_counts(texts), limit=room, min_frequency=min_frequency)
    words = [*special, *(piece for piece in learned if piece not in set(special))]
    return TextTokenizer(_assemble(words, special, set(classes)))


def _word_counts(texts: Iterable[str]) -> Counter[str]:
    """Words of the texts as the tokenizer will see them, special words left out."""
    from tokenizers import normalizers, pre_tokenizers

    normalize = normalizers.BertNormalizer(lowercase=True).normalize_str
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    counts: Counter[str] = Counter()
    for text in texts:
        plain = normalize(_SPECIAL_WORD.sub(" ", _encodable(text)))
        counts.update(word for word, _ in split(plain))
    return counts


def _assemble(words: Sequence[str], special: Sequence[str], classes: set[str]) -> WordPieces:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab = {word: i for i, word in enumerate(words)}
    pieces = Tokenizer(models.WordPiece(vocab, unk_token=UNK, max_input_chars_per_word=100))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece(prefix=CONTINUED, cleanup=True)
    pieces.add_special_tokens(_added_tokens(special, classes))
    return pieces


def special_words(*, classes: Sequence[str], bins: int, num_sentinels: int) -> list[str]:
    """The words before the word pieces, in the order of their ids.

    Raises:
        ConfigError: a class name is empty or doubled, or there are too few bins or sentinels
    """
    if num_sentinels < 3 or bins < 2:
        raise ConfigError(f"needs 3 sentinels and 2 bins at least, got {num_sentinels} and {bins}")
    sentinels = (f"[S_{k}]" for k in range(num_sentinels))
    coordinates = (f"v{axis}={value}" for axis in range(AXES) for value in range(bins))
    words = list(chain(SPECIAL, sentinels, coordinates, classes))
    if len(set(words)) != len(words) or not all(word.strip() for word in words):
        raise ConfigError("class names must be unique, not empty, and no special word themselves")
    return words


def _added_tokens(words: Sequence[str], classes: set[str]) -> list[Any]:
    from tokenizers import AddedToken

    # Class names match whole words after lowercasing; the other special words match as written.
    return [
        AddedToken(
            word,
            single_word=word not in SPECIAL,
            normalized=word in classes,
            special=True,
        )
        for word in words
    ]
