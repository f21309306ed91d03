"""What an FMViT's blocks read and what they give: images of any size or modalities of a batch in,
features after several blocks out. timm's words, without timm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import ConfigError, ShapeError, check_choice
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.embeddings import EncoderEmbedding, PixelEncoder, encoder_part
from fourm_lite.model.packing import Part, pack
from fourm_lite.nn.attention import blocked
from fourm_lite.nn.device import threads_for
from fourm_lite.nn.posemb import resize_table


@dataclass(frozen=True)
class Embedded:
    """Tokens before the first block.

    Shapes:
        tokens: float[B, N, D], content and position added
        valid: bool[B, N], or None where every token is there
        grid: rows and columns, where the tokens are those of one image
        beside: float[B, N, D], what is added after the last norm; None where there is nothing
    """

    tokens: Tensor
    valid: Tensor | None = None
    grid: tuple[int, int] | None = None
    beside: Tensor | None = None


def embed_pixels(embedding: PixelEncoder, entry: Modality, x: Tensor) -> Embedded:
    """Patches of images of any size that is a multiple of the patch: float[B, C, H, W].

    Raises:
        ShapeError: wrong channels or sides
    """
    grid = pixel_grid(embedding, entry, x)
    length = grid[0] * grid[1]
    given = Tokens.given(x, length=length)
    content = embedding.content(given) + _positions(embedding, entry, grid)
    return Embedded(content + embedding.mod_emb, grid=grid, beside=embedding.beside(given))


def pixel_grid(embedding: PixelEncoder, entry: Modality, x: Tensor) -> tuple[int, int]:
    """Patch rows and columns of images."""
    p = embedding.patch_size
    fits = x.ndim == 4 and x.shape[1] == entry.channels
    if not fits or x.shape[2] % p or x.shape[3] % p or 0 in x.shape[2:]:
        raise ShapeError(
            f"FMViT expects float[B, {entry.channels}, H, W] with H and W multiples of {p}, "
            f"got {list(x.shape)}; resize or pad the images"
        )
    return x.shape[2] // p, x.shape[3] // p


def _positions(embedding: PixelEncoder, entry: Modality, grid: tuple[int, int]) -> Tensor:
    assert entry.grid is not None
    return resize_table(embedding.pos_emb, entry.grid, grid)


def embed_batch(
    embeddings: torch.nn.ModuleDict, entries: tuple[Modality, ...], batch: TokenBatch
) -> Embedded:
    """Whatever a batch gives, of the modalities that are read.

    Raises:
        ConfigError: a modality that is not read, or a sample of which nothing is given
    """
    known = {m.name: m for m in entries}
    check_choice(
        "an input of this FMViT", *batch, of=sorted(known),
        advice="Leave it out of the batch, or load the model with inputs=[...]",
    )  # fmt: skip
    parts = [
        _part(embeddings[name], known[name], tokens, index)  # type: ignore[arg-type]
        for index, (name, tokens) in enumerate(batch.items())
        if bool(tokens.inputs.any())
    ]
    if not parts:
        raise ConfigError(f"the batch {sorted(batch)} gives nothing to classify")
    packed = pack(parts, None)
    given = packed.valid.any(dim=1)
    if not bool(given.all()):
        raise ConfigError(
            f"sample {int((~given).nonzero()[0])} of the batch gives no modality at all; "
            "leave it out"
        )
    complete = bool(packed.valid.all())
    valid = None if complete else packed.valid
    return Embedded(packed.x + packed.pos, valid, beside=packed.beside)


def _part(embedding: EncoderEmbedding, entry: Modality, tokens: Tokens, index: int) -> Part:
    if not isinstance(embedding, PixelEncoder):
        return encoder_part(embedding, tokens, index)
    grid = pixel_grid(embedding, entry, tokens.value)
    if tokens.length != grid[0] * grid[1]:
        raise ShapeError(
            f"'{entry.name}' has {grid[0] * grid[1]} patches at this size, its masks tell of "
            f"{tokens.length}; make it with Tokens.given(images, length=...)"
        )
    pos = _positions(embedding, entry, grid) + embedding.mod_emb
    pos = pos.expand(tokens.size, -1, -1)
    return Part(
        x=embedding.content(tokens), pos=pos, keep=tokens.inputs, index=index,
        beside=embedding.beside(tokens),
    )  # fmt: skip


Indices = int | Sequence[int] | None
Call = Callable[[nn.Module, Tensor, Tensor | None], Tensor]


def take_indices(count: int, indices: Indices) -> tuple[list[int], int]:
    """Block numbers from 0, and the largest: None is all, n the last n, negative from the end.

    Raises:
        ConfigError: there is no such block

    >>> take_indices(12, 2), take_indices(12, (0, -1))
    (([10, 11], 11), ([0, 11], 11))
    """
    if indices is None:
        indices = count
    numbers = range(count - indices, count) if isinstance(indices, int) else indices
    chosen = [count + i if not isinstance(indices, int) and i < 0 else i for i in numbers]
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise ConfigError(f"there are {count} blocks, 0 to {count - 1}; got indices={indices}")
    return chosen, max(chosen)


def collect(
    embedded: Embedded, blocks: Iterable[nn.Module], *, registers: Tensor | None, call: Call
) -> Iterator[Tensor]:
    """The tokens float[B, N, D] after each block in turn; registers go with them and are dropped.

    Shapes:
        registers: float[1, R, D] or None
    """
    x, valid = embedded.tokens, embedded.valid
    skip = 0 if registers is None else registers.shape[1]
    if registers is not None:
        x = torch.cat([registers.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        valid = None if valid is None else nn.functional.pad(valid, (skip, 0), value=True)
    bias = None if valid is None else blocked(valid, x.dtype)[:, None, None, :]
    for block in blocks:
        with threads_for(x.shape[0] * x.shape[1]):
            x = call(block, x, bias)
        yield x[:, skip:] if skip else x


def refuse_masks(attn_mask: Tensor | None, is_causal: bool) -> None:
    """Refuses timm's words for less attention.

    Raises:
        ConfigError: one of them is given
    """
    if attn_mask is not None or is_causal:
        raise ConfigError(
            "every token of an FMViT attends to all that are there; leave out attn_mask and "
            "is_causal, or give a TokenBatch in which the tokens to ignore are no inputs"
        )


def as_format(tokens: Tensor, output_fmt: str, grid: tuple[int, int] | None) -> Tensor:
    """Tokens float[B, N, D] as they are ("NLC") or as maps float[B, D, Hq, Wq] ("NCHW")."""
    if output_fmt == "NLC":
        return tokens
    if output_fmt != "NCHW":
        raise ConfigError(f'output_fmt is "NCHW" or "NLC", got {output_fmt!r}')
    if grid is None:
        raise ShapeError('the tokens of a batch of modalities form no map; ask for "NLC"')
    return rearrange(tokens, "b (h w) d -> b d h w", h=grid[0]).contiguous()
