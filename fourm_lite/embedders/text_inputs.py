"""Texts as a text tower of transformers takes them: cut, padded, and told apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fourm_lite.embedders.tower_outputs import as_vectors
from fourm_lite.errors import CheckpointError

# What each model was trained with; the others pad to the longest text of the batch.
PADDED_TEXT_LENGTH = {"align": 64, "siglip": 64, "siglip2": 64}

SENTENCES = ("a photo of a dog", "the red house")
"""Two that no text tower may take for one."""


def tokenize(model: Any, tokenizer: Any, texts: list[str], accepts: Callable[..., Any]) -> Any:
    """The text inputs that `accepts` takes, cut and padded as the model was trained."""
    fixed = PADDED_TEXT_LENGTH.get(model.config.model_type)
    known = (fixed, _positions(model), tokenizer.model_max_length)
    length = min([int(x) for x in known if x is not None and x < 10**6], default=10**6)
    inputs = tokenizer(
        texts,
        padding="max_length" if fixed else True,
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    names = inspect.signature(accepts).parameters
    return {key: value.to(model.device) for key, value in inputs.items() if key in names}


def _positions(model: Any) -> int | None:
    """How many tokens of a text the model tells apart.

    RoBERTa's kind numbers its positions from the padding id + 1 on, so that some rows of its table
    are never a token's.
    """
    text_config = getattr(model.config, "text_config", model.config)
    rows = getattr(text_config, "max_position_embeddings", None)
    if rows is None:
        return None
    skipped = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding)
        and name.endswith("position_embeddings")
        and module.padding_idx is not None
        and module.num_embeddings == rows
    ]
    return int(rows) - max(skipped, default=0)


@torch.inference_mode()
def check_texts(source: str, model: Any, tokenizer: Any, embed: Callable[[list[str]], Any]) -> None:
    """Refuses a text tower whose vectors are not those of its sentences.

    CLIP takes the token whose id is its configuration's end of text. Where the tokenizer ends its
    texts with another id, that is the first token, which knows no other, or one in the middle.

    Raises:
        CheckpointError: the ids differ, unlike sentences get one vector, or the tower has no
            vectors for the tokenizer's ids
    """
    ids = [tuple(tokenizer(sentence)["input_ids"]) for sentence in SENTENCES]
    ends = {getattr(module, "eos_token_id", None) for module in model.modules()}
    wrong = [end for end in ends if ids[0] and isinstance(end, int) and not _ends(ids[0], end)]
    if len(set(ids)) == len(ids) and not wrong:  # else the tokenizer knows none of these words
        vectors = _embedded(source, embed)
        wrong = [-1] if bool((vectors == vectors[:1]).all()) else []
    if wrong:
        text_config = getattr(model.config, "text_config", model.config)
        raise CheckpointError(
            f"'{source}' does not take its texts by their end, or gives every sentence one vector: "
            f"its tokenizer ends a text with the id {ids[0][-1]}, its config.json says "
            f"eos_token_id={getattr(text_config, 'eos_token_id', None)}; they belong to different "
            "models, or one of the two files is wrong"
        )


def _embedded(source: str, embed: Callable[[list[str]], Any]) -> Tensor:
    try:
        return as_vectors(embed(list(SENTENCES)))
    except Exception as error:  # an id beyond the table is an IndexError, a length a RuntimeError
        raise CheckpointError(
            f"the text tower of '{source}' cannot read what its tokenizer makes of a sentence "
            f"({type(error).__name__}: {str(error)[:200]}); they belong to different models"
        ) from error


def _ends(ids: tuple[int, ...], end: int) -> bool:
    """Whether a tower that looks for `end` finds the last token; 2 stands for the largest id."""
    first = ids.index(end) if end in ids else 0
    return first == len(ids) - 1 or (end == 2 and ids.index(max(ids)) == len(ids) - 1)
