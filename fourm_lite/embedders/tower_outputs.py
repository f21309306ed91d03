"""What text towers of transformers take, and what networks return, as tensors.

transformers 5 changed `get_image_features` from a tensor to an output object; timm returns tensors;
users' own functions return tensors, arrays, tuples or dictionaries. All are read here and nowhere
else. Texts are cut and padded as the network was trained, and told apart before it is used. The
logits of a classifier become vectors by `ClassMean`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.errors import CheckpointError, ShapeError, foreign_errors

VECTOR_NAMES = ("image_embeds", "text_embeds", "embeddings", "embedding", "pooler_output", "logits")
MAP_NAMES = ("last_hidden_state", "feature_map", "patches", "features")


def as_vectors(output: Any) -> Tensor:
    """One vector an item, from whatever a network returned.

    Shapes:
        returns: [B, E]; maps of size 1x1 lose their two last axes
    Raises:
        ShapeError: there is no tensor of that shape in the output
    """
    found = _pick(output, VECTOR_NAMES)
    if found is not None and found.ndim == 4 and found.shape[2:] == (1, 1):
        found = rearrange(found, "b e 1 1 -> b e")
    if found is not None and found.ndim == 2:
        return found
    got = "nothing" if found is None else f"shape {tuple(found.shape)}"
    raise ShapeError(
        f"an embedder must return one vector an item, [B, E]; {type(output).__name__} held {got}. "
        f"Return a tensor or array of that shape, or an output with one of {VECTOR_NAMES}"
    )


def as_patches(output: Any) -> Tensor:
    """A feature map as tokens, from [B, L, E] or [B, E, H, W].

    Shapes:
        returns: [B, L, E], rows first
    """
    found = _pick(output, MAP_NAMES)
    if found is not None and found.ndim == 4:
        return rearrange(found, "b e h w -> b (h w) e")
    if found is not None and found.ndim == 3:
        return found
    got = "nothing" if found is None else f"shape {tuple(found.shape)}"
    raise ShapeError(f"a feature map must be [B, L, E] or [B, E, H, W]; got {got}")


def _pick(output: Any, names: tuple[str, ...]) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(output))
    for name in names:
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor | np.ndarray):
            return _pick(value, names)
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list) and output:
        if all(_is_row(row) for row in output):
            return _stacked(output)
        return _first_of_rank(output, (2, 4) if "logits" in names else (3, 4), names)
    return None


def _is_row(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(number, int | float) for number in value)
    return isinstance(value, Tensor | np.ndarray) and value.ndim == 1


def _stacked(rows: tuple[Any, ...] | list[Any]) -> Tensor:
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise ShapeError(
            f"an embedder gave vectors of different widths {widths} in one batch; "
            f"it must keep one width"
        )
    return torch.stack([torch.as_tensor(row) for row in rows]).float()


def _first_of_rank(
    values: tuple[Any, ...] | list[Any], ranks: tuple[int, ...], names: tuple[str, ...]
) -> Tensor | None:
    tensors = [v for v in values if isinstance(v, Tensor | np.ndarray)]
    fitting = [v for rank in ranks for v in tensors if v.ndim == rank]
    return _pick(fitting[0], names) if fitting else None


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
    """How many positions of a text the model knows.

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
    told = (
        f"the text tower of '{source}' cannot read what its tokenizer makes of a sentence "
        "({error}); they belong to different models"
    )
    with foreign_errors(CheckpointError, told):  # an id beyond the table, a length
        return as_vectors(embed(list(SENTENCES)))


def _ends(ids: tuple[int, ...], end: int) -> bool:
    """Whether a tower that looks for `end` finds the last token; 2 stands for the largest id."""
    first = ids.index(end) if end in ids else 0
    return first == len(ids) - 1 or (end == 2 and ids.index(max(ids)) == len(ids) - 1)


class ClassMean(nn.Module):
    """Logits of classes to the mean of the classes' vectors, each by its probability.

    Shapes:
        classes: float32[K, D], one vector a class
    Units:
        sharpness: what logits are multiplied by; below 1 second guesses count for more
    """

    classes: Tensor
    sharpness: Tensor

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("classes", Tensor(classes, width).zero_())
        self.register_buffer("sharpness", Tensor([1.0]).squeeze(0))

    def forward(self, logits: Tensor, dropout: float = 0.0) -> Tensor:
        """float[B, K] -> float[B, D]; `dropout` has nothing to act on."""
        return (logits * self.sharpness).softmax(dim=-1) @ self.classes
