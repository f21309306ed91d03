"""A start without gradients, written as weights: of a tokenizer, and of the logits of its codes.

A tokenizer begins as principal components and k-means. With few photos and no GPU this is minutes
ahead of training from noise: every code is used from the first step on, and the decoder begins as
the best linear one. The logits of a new global embedding begin as a regression from what a decoder
says already: one that knows one embedding of a photo knows much of another. Everything is
deterministic.

Source:
    Product Quantization for Nearest Neighbor Search (Jegou et al. 2011);
    Optimized Product Quantization (Ge et al. 2013)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fourm_lite.data.linear import Principal, kmeans, nearest_center, principal, solve_ridge
from fourm_lite.data.loader import MaskedBatch
from fourm_lite.errors import ConfigError
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.fourm import FourM
from fourm_lite.tokenization.vq.backbones import BottleneckMLP, ViTDecoder, ViTEncoder
from fourm_lite.tokenization.vq.memcodes import Memcodes
from fourm_lite.tokenization.vq.quantize import EuclideanCodebook, VectorQuantizer
from fourm_lite.tokenization.vq.vqvae import VQTokenizer


def balanced_groups(deviation: Tensor, groups: int) -> Tensor:
    """An order of components that gives each of `groups` equal parts an equal product of variances.

    Source:
        Ge et al. 2013, section 4.2 (eigenvalue allocation)
    """
    size = len(deviation) // groups
    parts: list[list[int]] = [[] for _ in range(groups)]
    sums = [0.0] * groups
    logs = deviation.clamp(min=1e-8).log().tolist()
    for component, value in enumerate(logs[: size * groups]):
        free = [g for g in range(groups) if len(parts[g]) < size]
        chosen = min(free, key=lambda g: (len(parts[g]) > 0, sums[g]))
        parts[chosen].append(component)
        sums[chosen] += value
    return torch.tensor([c for part in parts for c in part])


def product_codes(
    x: Tensor, heads: int, k: int, generator: torch.Generator, *, turns: int = 8
) -> tuple[Tensor, Tensor]:
    """A rotation and one codebook for each of its parts, found in turns.

    Shapes:
        x: float[N, d]; returns: rotation float[d, d], codes float[heads, k, d / heads]
    """
    rotation = torch.eye(x.shape[1])
    codes: list[Tensor | None] = [None] * heads
    for turn in range(turns + 1):
        parts = (x @ rotation).chunk(heads, dim=1)
        rounds = 12 if turn in (0, turns) else 3
        found = [
            kmeans(p, k, generator, rounds=rounds, start=c)
            for p, c in zip(parts, codes, strict=True)
        ]
        codes = list(found)
        if turn == turns:
            break
        rebuilt = torch.cat(
            [c[nearest_center(p, c)] for p, c in zip(parts, found, strict=True)], dim=1
        )
        u, _, vh = torch.linalg.svd(x.T @ rebuilt)
        rotation = u @ vh
    return rotation, torch.stack(found)


@torch.no_grad()
def start_vectors(
    tokenizer: VQTokenizer, values: Tensor, generator: torch.Generator, *, turns: int = 8
) -> None:
    """Begins a tokenizer of vectors (MLPs and memcodes) as an optimised product quantizer.

    The last channel of each head is a constant, so that attention to a code with the key
    (c, -|c|^2 / 2) picks the nearest one.

    Shapes:
        values: float[N, C]
    Raises:
        ConfigError: the tokenizer is of another form, or too narrow
    """
    encoder, quantizer, decoder = tokenizer.encoder, tokenizer.quantize, tokenizer.decoder
    if not (
        isinstance(encoder, BottleneckMLP)
        and isinstance(quantizer, Memcodes)
        and isinstance(decoder, BottleneckMLP)
    ):
        raise ConfigError("start_vectors is for BottleneckMLP encoders and decoders with memcodes")
    heads = quantizer.heads
    part = tokenizer.config.latent_dim // heads - 1
    dims, widths = heads * part, (encoder.linear_in.out_features, decoder.linear_in.in_features)
    if part < 1 or dims > min(*widths, values.shape[1]):
        raise ConfigError(
            f"{heads} heads of {part} components need MLPs at least {dims} wide, got {widths}"
        )
    x = (values - tokenizer.input_mean) * tokenizer.input_scale
    found = principal(x, dims, generator)
    order = balanced_groups(found.deviation, heads)
    z = found.project(x)[:, order]
    rotation, codes = product_codes(
        z, heads, tokenizer.config.codebook_size, generator, turns=turns
    )
    basis = found.directions[:, order] @ rotation  # [C, dims]
    scale = 1.0 / float(z.std())
    _as_linear(encoder, basis.T * scale, -(found.mean @ basis) * scale)
    placed = _before_constants(heads, part)  # [latent_dim, dims]
    _set_conv(tokenizer.quant_proj, placed, constant=_constants(heads, part))
    quantizer.codes.copy_(_with_key(codes * scale))
    eye = torch.eye(part + 1).expand(heads, -1, -1)
    quantizer.to_k.weight.copy_(eye)
    quantizer.to_v.weight.copy_(eye)
    _set_conv(tokenizer.post_quant_proj, placed.T)
    _as_linear(decoder, torch.eye(dims), None)
    _fill(decoder.linear_out, basis / scale, found.mean)


def _with_key(codes: Tensor) -> Tensor:
    return torch.cat([codes, -0.5 * codes.square().sum(dim=-1, keepdim=True)], dim=-1)


def _before_constants(heads: int, part: int) -> Tensor:
    """Places each head's components before its constant: [heads*(part+1), heads*part]."""
    one = torch.eye(part + 1)[:, :part]
    return torch.block_diag(*[one] * heads)


def _constants(heads: int, part: int) -> Tensor:
    out = torch.zeros(heads, part + 1)
    out[:, -1] = 1.0
    return out.flatten()


def _as_linear(mlp: BottleneckMLP, weight: Tensor, bias: Tensor | None) -> None:
    """An MLP that begins as one linear map: its blocks add nothing, its output is its stream."""
    _fill(mlp.linear_in, weight, bias)
    for block in mlp.blocks:
        _silence(block.block[-1])  # type: ignore[index,arg-type]
    out = mlp.linear_out
    _fill(out, torch.eye(out.out_features, out.in_features), None)


@torch.no_grad()
def start_patches(
    tokenizer: VQTokenizer, values: Tensor, generator: torch.Generator, *, max_rows: int = 60_000
) -> None:
    """Begins a tokenizer of maps (ViTs and one Euclidean codebook) as k-means of linear patches.

    Shapes:
        values: float[N, C, H, W] or int64[N, H, W], what `tokenizer.tokenize` takes
    Raises:
        ConfigError: the tokenizer is of another form, or too narrow
    """
    encoder, quantizer = tokenizer.encoder, tokenizer.quantize
    if not (
        isinstance(encoder, ViTEncoder)
        and isinstance(quantizer, VectorQuantizer)
        and isinstance(quantizer._codebook, EuclideanCodebook)
        and isinstance(tokenizer.decoder, ViTDecoder)
    ):
        raise ConfigError("start_patches is for ViTs with a Euclidean codebook (norm_codes=false)")
    dims = tokenizer.config.latent_dim
    if dims > encoder.dim_out:
        raise ConfigError(f"latent_dim {dims} is wider than the encoder ({encoder.dim_out})")
    if tokenizer.config.n_labels is not None:
        weight = tokenizer.cls_emb.weight
        weight.copy_(torch.eye(*weight.shape))
    rows = _patch_rows(tokenizer, values, encoder.patch, max_rows, generator)
    found = principal(rows, dims, generator)
    z = found.project(rows)
    scale = 1.0 / float(z.std())
    centers = kmeans(z * scale, tokenizer.config.codebook_size, generator)
    _start_encoder(tokenizer, encoder, found, scale)
    _start_codebook(quantizer._codebook, centers, nearest_center(z * scale, centers))
    _start_decoder(tokenizer, tokenizer.decoder, found, scale)


def _patch_rows(
    tokenizer: VQTokenizer, values: Tensor, patch: int, limit: int, generator: torch.Generator
) -> Tensor:
    """Some patches of the values: float[n, C * patch * patch]."""
    order = torch.randperm(len(values), generator=generator)
    rows: list[Tensor] = []
    total = 0
    for part in order.split(64):
        x = tokenizer._prepared(values[part])
        rows.append(rearrange(x, "b c (h p) (w q) -> (b h w) (c p q)", p=patch, q=patch))
        total += len(rows[-1])
        if total >= limit:
            break
    return torch.cat(rows)


def _start_encoder(
    tokenizer: VQTokenizer, encoder: ViTEncoder, found: Principal, scale: float
) -> None:
    shape = encoder.proj.weight.shape
    dims = found.directions.shape[1]
    weight = torch.zeros(shape[0], found.mean.numel())
    weight[:dims] = found.directions.T * scale
    bias = torch.zeros(shape[0])
    bias[:dims] = -(found.mean @ found.directions) * scale
    encoder.proj.weight.copy_(weight.view(shape))
    assert encoder.proj.bias is not None
    encoder.proj.bias.copy_(bias)
    encoder.pos_emb[:, :dims] = 0.0
    _silence_blocks(encoder.blocks)
    _set_conv(tokenizer.quant_proj, torch.eye(dims))


def _start_codebook(codebook: EuclideanCodebook, centers: Tensor, tokens: Tensor) -> None:
    counts = torch.bincount(tokens, minlength=len(centers)).float()
    codebook.embed.copy_(centers)
    codebook.cluster_size.copy_(counts)
    codebook.embed_avg.copy_(centers * counts[:, None])
    codebook.initted.fill_(1.0)


def _start_decoder(
    tokenizer: VQTokenizer, decoder: ViTDecoder, found: Principal, scale: float
) -> None:
    dims = found.directions.shape[1]
    decoder.pos_emb[:, :dims] = 0.0
    _silence_blocks(decoder.blocks)
    _set_conv(tokenizer.post_quant_proj, torch.eye(dims))
    # Class scores of a soft one-hot map: a slope makes them decided
    slope = 8.0 if tokenizer.config.n_labels is not None else 1.0
    _fill(decoder.out_proj, slope * found.directions / scale, slope * found.mean)


def _silence_blocks(blocks: nn.Module) -> None:
    """Blocks that begin by adding nothing to their stream."""
    for block in blocks.children():
        _silence(block.attn.proj)  # type: ignore[union-attr,arg-type]
        _silence(block.mlp.fc2)  # type: ignore[union-attr,arg-type]


def _silence(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _fill(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Writes a smaller matrix into the corner of a layer, zeros elsewhere."""
    layer.weight.zero_()
    layer.weight[: weight.shape[0], : weight.shape[1]] = weight
    layer.bias.zero_()
    if bias is not None:
        layer.bias[: len(bias)] = bias


def _set_conv(layer: nn.Conv2d, weight: Tensor, constant: Tensor | None = None) -> None:
    full = F.pad(
        weight, (0, layer.in_channels - weight.shape[1], 0, layer.out_channels - weight.shape[0])
    )
    layer.weight.copy_(full[:, :, None, None])
    assert layer.bias is not None
    layer.bias.zero_()
    if constant is not None:
        layer.bias[: len(constant)] = constant


TRIED = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # inverse variances of the start of the logits


def code_parts(tokenizer: VQTokenizer) -> Tensor:
    """The codes without the constant channel of `start_vectors`: float[heads, V, d]."""
    if not isinstance(tokenizer.quantize, Memcodes):
        raise ConfigError("a read-out needs a tokenizer with memcodes")
    return tokenizer.quantize.tables()[1][..., :-1].detach().float()


@torch.no_grad()
def start_logits(
    model: FourM,
    entry: Modality,
    tokenizer: VQTokenizer,
    batches: Iterable[MaskedBatch],
    *,
    penalty: float = 1e-3,
) -> float:
    """Writes a read-out found by regression into the new logits; returns its cross-entropy.

    What is regressed is the score of each code under a Gaussian around the true vector: of the
    decoder's outputs the best linear map gives its mean, so far as they tell it.
    """
    codes = code_parts(tokenizer)  # [L, V, d]
    half = codes.square().sum(dim=-1) / 2
    width = model.config.dim
    gram, moment = torch.zeros(width, width), torch.zeros(width, entry.vocab_size or 0)
    held: list[tuple[Tensor, Tensor]] = []
    for number, batch in enumerate(batches):
        y, ids = _outputs(model, entry, batch)
        if number % 8 == 7:
            held.append((y, ids))
            continue
        places = torch.arange(entry.max_tokens).expand_as(ids)
        own = codes[places, ids]  # [B, L, d]: the code stands for the vector
        scores = torch.einsum("bld,lvd->blv", own, codes) - half
        flat = y.flatten(0, 1)
        gram += flat.T @ flat
        moment += flat.T @ scores.flatten(0, 1)
    linear = solve_ridge(gram, moment, penalty * gram.diagonal().mean()).T  # [V, D]
    losses = {sharp: _loss(linear * sharp, held) for sharp in TRIED}
    best = min(losses, key=lambda sharp: losses[sharp])
    decoder = model.decoder_embeddings[entry.name]
    assert isinstance(decoder.to_logits, nn.Linear)
    decoder.to_logits.weight.copy_(linear * best)
    return losses[best]


def _loss(weight: Tensor, held: Sequence[tuple[Tensor, Tensor]]) -> float:
    losses = [F.cross_entropy((y @ weight.T).flatten(0, 1), ids.flatten()) for y, ids in held]
    return float(torch.stack(losses).mean())


def _outputs(model: FourM, entry: Modality, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
    """The decoder's outputs at all positions of the new modality, and the true codes there."""
    encoded = model.encode(batch.batch, batch.input_budget)
    targets = model.pack_targets(batch.batch, batch.target_budget, order=[entry.name])
    y = model.decode(targets, encoded)
    rows = targets.valid.all(dim=1)
    return y[rows].float(), targets.ids[rows]
