"""How each kind of modality becomes vectors, on the encoder's and the decoder's side.

Attribute names are ml-4m's state-dict keys. A position vector is the sum of the position table's
row and the modality's own vector. Unusual: a sequence numbers its tokens by counting only those
that are present, and an absent token gets the modality's vector alone.
"""

from __future__ import annotations

import logging

import torch
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.batch import Tokens
from fourm_lite.errors import FourMError, ShapeError
from fourm_lite.modalities.codecs import codec_of
from fourm_lite.modalities.pixel_codecs import ImageCodec, Normalization, normalize, not_normalized
from fourm_lite.modalities.spec import SEQUENCE_ROWS, Modality
from fourm_lite.model.packing import Part
from fourm_lite.nn.convolutions import WIDTH, Convolutions
from fourm_lite.nn.layers import project
from fourm_lite.nn.posemb import sincos_1d, sincos_2d

log = logging.getLogger(__name__)
_told: set[str] = set()
"""Modalities whose pixels were warned of as unnormalised."""


def _position_table(modality: Modality, dim: int) -> Tensor:
    if modality.kind in ("sequence", "features"):
        return sincos_1d(SEQUENCE_ROWS, dim)
    assert modality.grid is not None
    if modality.grid[0] == 1 and modality.grid[1] > 1:
        return sincos_1d(modality.grid[1], dim)
    return sincos_2d(*modality.grid, dim)


class Embedding(nn.Module):
    """What every embedding has: the modality's own vector and its position table."""

    pos_emb: Tensor

    def __init__(self, modality: Modality, dim: int) -> None:
        super().__init__()
        self.modality = modality
        self.mod_emb = nn.Parameter(torch.zeros(1, 1, dim))
        table = _position_table(modality, dim)
        if modality.pos_embed == "learned":
            self.pos_emb = nn.Parameter(table)
        else:
            self.register_buffer("pos_emb", table)
        self.by_count = modality.kind in ("sequence", "features")

    def init_weights(self) -> None:
        """Draws the modality's vector and a learned position table."""
        nn.init.normal_(self.mod_emb, std=0.02)
        if isinstance(self.pos_emb, nn.Parameter):
            nn.init.normal_(self.pos_emb, std=0.02)

    def positions(self, present: Tensor, rows: int) -> Tensor:
        """Position and modality vectors.

        Shapes:
            present: bool[B, L]
            rows: positions with vectors of their own; later ones fall back to position 0, as in 4M
            returns: float[B, L, D]
        """
        if not self.by_count:
            if present.shape[1] != self.pos_emb.shape[1]:
                raise ShapeError(
                    f"'{self.modality.name}' has {self.pos_emb.shape[1]} tokens, "
                    f"got {present.shape[1]}"
                )
            return (self.pos_emb + self.mod_emb).expand(present.shape[0], -1, -1)
        count = present.cumsum(dim=1) - 1
        table = self.pos_emb[0]
        index = torch.where(present & (count < rows), count, 0)
        return table[index] * present[..., None].to(table.dtype) + self.mod_emb

    def at(self, positions: Tensor) -> Tensor:
        """Position and modality vectors of given positions: int64[B, k] -> float[B, k, D]."""
        return self.pos_emb[0][positions] + self.mod_emb

    def step(self, start: int, length: int) -> Tensor:
        """The vectors of consecutive decoder positions of a sequence: float[1, length, D]."""
        index = torch.arange(start, start + length, device=self.pos_emb.device)
        index = torch.where(index < self.modality.decoder_rows, index, 0)
        return self.pos_emb[:, index] + self.mod_emb


class TokenEncoder(Embedding):
    """Encoder side of a grid or a sequence."""

    def __init__(self, modality: Modality, dim: int) -> None:
        super().__init__(modality, dim)
        assert modality.vocab_size is not None
        self.token_emb = nn.Embedding(modality.vocab_size, dim)

    def content(self, tokens: Tokens) -> Tensor:
        """int64[B, L] -> float[B, L, D]."""
        return self.token_emb(tokens.value)

    def init_weights(self) -> None:
        """Draws the token table as well."""
        super().init_weights()
        nn.init.normal_(self.token_emb.weight, std=0.02)


class PixelEncoder(Embedding):
    """Encoder side of pixels: a linear map of patches, channels last, without a bias.

    Where the modality asks for it, a convolutional network beside the encoder's blocks sees the
    pixels around a patch too: those of patches that are given, zeros for the others.
    """

    def __init__(self, modality: Modality, dim: int) -> None:
        super().__init__(modality, dim)
        assert modality.channels is not None
        assert modality.patch_size is not None
        self.patch_size = modality.patch_size
        self.proj = nn.Linear(modality.channels * modality.patch_size**2, dim, bias=False)
        self.convolutions: Convolutions | None = None
        if modality.convolutions:
            self.convolutions = Convolutions(modality.channels)
            self.conv_map = nn.Linear(WIDTH, dim)

    def init_weights(self) -> None:
        """Draws the convolutions and their map as well."""
        super().init_weights()
        if self.convolutions is not None:
            self.convolutions.init_weights()
            nn.init.xavier_uniform_(self.conv_map.weight)
            nn.init.zeros_(self.conv_map.bias)

    def content(self, tokens: Tokens) -> Tensor:
        """float[B, C, H, W], or uint8 as `as_normalized` reads it, -> float[B, L, D]."""
        p = self.patch_size
        pixels = as_normalized(self.modality, tokens.value)
        patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        return project(self.proj, patches.to(self.proj.weight.dtype))

    def beside(self, tokens: Tokens) -> Tensor | None:
        """What is added to the encoder's output: float[B, C, H, W] -> float[B, L, D], or None."""
        return None if self.convolutions is None else project(self.conv_map, self.seen(tokens))

    def seen(self, tokens: Tokens) -> Tensor:
        """What the convolutions see of the patches that are given: float[B, L, 416]."""
        assert self.convolutions is not None
        p = self.patch_size
        pixels = as_normalized(self.modality, tokens.value).to(self.proj.weight.dtype)
        given = rearrange(tokens.inputs, "b (h w) -> b 1 h 1 w 1", h=pixels.shape[2] // p)
        cut = rearrange(pixels, "b c (h p) (w q) -> b c h p w q", p=p, q=p) * given
        return self.convolutions(cut.flatten(4, 5).flatten(2, 3))


def as_normalized(modality: Modality, pixels: Tensor) -> Tensor:
    """Pixels as the model reads them: normalised floats, or uint8 as the picture that they are.

    Floats that look like 0..255 or 0..1 are read as they are, with a warning.

    Raises:
        ShapeError: numbers of another type
    """
    # Pixels of other channels than a picture's are the caller's to standardise
    is_picture = modality.codec is not None or modality.channels in (1, 3)
    codec = codec_of(modality) if is_picture else None
    if pixels.is_floating_point():
        if isinstance(codec, ImageCodec) and pixels.device.type == "cpu" and not _is_traced():
            _tell_unnormalized(modality.name, pixels, codec.normalization)
        return pixels
    if pixels.dtype != torch.uint8 or not isinstance(codec, ImageCodec):
        raise ShapeError(
            f"'{modality.name}' expects normalised float pixels or uint8, got {pixels.dtype}; "
            "convert whole numbers 0..255 to uint8"
        )
    return normalize(pixels.float() / 255, codec.normalization)


def _tell_unnormalized(name: str, pixels: Tensor, normalization: Normalization) -> None:
    """Warns, once a process, of floats that look like a picture and not like normalised pixels."""
    if name not in _told and (said := not_normalized(pixels.detach(), normalization)):
        _told.add(name)
        log.warning("'%s' %s", name, said)


def _is_traced() -> bool:
    """Whether values are not there to be looked at: compiled, exported or traced."""
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]  # public, not exported
    return torch.compiler.is_compiling() or traced


class FeatureEncoder(Embedding):
    """Encoder side of foreign embeddings such as T5's: a linear map with a bias."""

    def __init__(self, modality: Modality, dim: int) -> None:
        super().__init__(modality, dim)
        assert modality.channels is not None
        self.emb_proj = nn.Linear(modality.channels, dim)

    def content(self, tokens: Tokens) -> Tensor:
        """float[B, L, E] -> float[B, L, D]."""
        return project(self.emb_proj, tokens.value.to(self.emb_proj.weight.dtype))


EncoderEmbedding = TokenEncoder | PixelEncoder | FeatureEncoder


def encoder_part(embedding: EncoderEmbedding, tokens: Tokens, index: int) -> Part:
    """One modality of a batch as the encoder packs it; `index` is its number there.

    Raises:
        FourMError: a sequence that is longer than the position table
    """
    rows = embedding.pos_emb.shape[1]
    if embedding.by_count and tokens.length > rows:
        count = int(tokens.inputs.sum(dim=1).max())
        if count > rows:
            raise FourMError(
                f"'{embedding.modality.name}' holds {count} tokens, its encoder tells at most "
                f"{rows} apart; shorten the sequence"
            )
    return Part(
        x=embedding.content(tokens),
        pos=embedding.positions(tokens.inputs, rows),
        keep=tokens.inputs,
        index=index,
        beside=embedding.beside(tokens) if isinstance(embedding, PixelEncoder) else None,
    )


class TokenDecoder(Embedding):
    """Decoder side of a grid or a sequence: a token table, and logits that are not tied to it."""

    def __init__(self, modality: Modality, dim: int) -> None:
        super().__init__(modality, dim)
        assert modality.vocab_size is not None
        self.token_emb = nn.Embedding(modality.vocab_size, dim)
        self.to_logits = nn.Linear(dim, modality.vocab_size, bias=False)

    def init_weights(self) -> None:
        """Draws the tables; the logits start as the token table."""
        super().init_weights()
        nn.init.normal_(self.token_emb.weight, std=0.02)
        with torch.no_grad():
            self.to_logits.weight.copy_(self.token_emb.weight)


ENCODERS: dict[str, type[EncoderEmbedding]] = {
    "grid": TokenEncoder,
    "sequence": TokenEncoder,
    "pixels": PixelEncoder,
    "features": FeatureEncoder,
}
