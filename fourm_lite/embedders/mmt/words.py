"""Sentences to token ids, with the tokens around them and cut as the family cuts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.families.joint import JointFamily

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
    try:
        if path.suffix == ".json":
            return tokenizers.Tokenizer.from_file(str(path))
        if path.suffix == ".model":
            return _sentencepiece(path)
        return _word_pieces(path, lower_case)
    except Exception as error:  # the library raises a bare Exception
        raise CheckpointError(f"'{path}' is no tokenizer that can be read: {error}") from error


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
