"""Vector quantizers with a codebook learned by moving averages: cosine and Euclidean.

Unusual: the returned vectors are the raw rows of the codebook, also where codes are compared by
angle. The codebook changes only in the training step (`update=True`), never while tokenizing.
With torch.distributed initialised all processes keep the same codebook. Module names are 4M's
keys.

Source:
    Neural Discrete Representation Learning (van den Oord et al. 2017), appendix A.1;
    cosine codes: Vector-quantized Image Modeling with Improved VQGAN (Yu et al. 2021)
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from fourm_lite.errors import ShapeError
from fourm_lite.nn.device import is_without_storage
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.inputs import Quantized, check_range
from fourm_lite.tokenization.vq.randomness import randn, randperm

# Scores of this many row-code pairs are held at once: 64 MB
CHUNK = 2**24
KMEANS_STEPS = 10


class Codebook(nn.Module):
    """A table of code vectors with the statistics of its use.

    Shapes:
        initted: float[1]; cluster_size: float[K]; embed: float[K, d]
    """

    initted: Tensor
    cluster_size: Tensor
    embed: Tensor

    def __init__(self, config: TokenizerConfig, dim: int) -> None:
        super().__init__()
        self.decay = config.ema_decay
        self.threshold = config.threshold_ema_dead_code
        self.policy = config.code_replacement_policy
        shape = (config.codebook_size, dim)
        drawn_later = config.kmeans_init or is_without_storage()
        embed = torch.zeros(shape) if drawn_later else self._initial(shape)
        self.register_buffer("initted", torch.tensor([0.0 if config.kmeans_init else 1.0]))
        self.register_buffer("cluster_size", torch.zeros(config.codebook_size))
        self._register_averages(embed)
        self.register_buffer("embed", embed)

    def nearest(self, rows: Tensor) -> Tensor:
        """The code of each row: float[N, d] -> int64[N]; the first one on ties."""
        return self._assigned(self._comparable(rows.float()), self._comparable(self.embed.float()))

    def _assigned(self, rows: Tensor, table: Tensor) -> Tensor:
        bias = self._score_bias(table)
        step = max(1, CHUNK // table.shape[0])
        parts = [(part @ table.t() + bias).argmax(dim=-1) for part in rows.split(step)]
        return torch.cat(parts)

    @torch.no_grad()
    def initialise(self, rows: Tensor, generator: torch.Generator | None) -> None:
        """Fills a fresh codebook with the centres of the first batch (`kmeans_init`)."""
        if bool(self.initted):
            return
        centers, counts = self._kmeans(self._comparable(rows.detach().float()), generator)
        self.cluster_size.copy_(counts)
        self.embed.copy_(centers)
        self._restart(torch.ones_like(counts, dtype=torch.bool), centers, counts)
        self.initted.fill_(1.0)

    @torch.no_grad()
    def update(self, rows: Tensor, tokens: Tensor, generator: torch.Generator | None) -> None:
        """Moves the codes toward the rows they won, then replaces dead ones.

        Shapes:
            rows: float[N, d]; tokens: int64[N]
        """
        rows = rows.detach().float()
        counts, sums = self._tally(self._comparable(rows), tokens)
        self.cluster_size.lerp_(counts.to(self.cluster_size), 1 - self.decay)
        self._move(counts, sums)
        if self.threshold > 0:
            self._replace_dead(rows, generator)

    def _tally(self, rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """How often each code won and the sum of its rows, over all processes."""
        size = self.embed.shape[0]
        counts = torch.bincount(tokens, minlength=size).to(rows)
        sums = torch.zeros_like(self.embed, dtype=rows.dtype).index_add_(0, tokens, rows)
        return total(counts), total(sums)

    def _replace_dead(self, rows: Tensor, generator: torch.Generator | None) -> None:
        dead = self.cluster_size < self.threshold
        amount = int(dead.sum())
        if amount == 0:
            return
        source = rows if self.policy == "batch_random" else self._most_used(amount)
        fresh = F.normalize(self._drawn(source, amount, generator), dim=-1)
        self.embed[dead] = fresh.to(self.embed)
        # A new code starts with the least use that keeps it, so that it has a step to win rows
        self.cluster_size[dead] = self.threshold
        self._restart(dead, self.embed[dead], self.cluster_size[dead])

    def _drawn(self, source: Tensor, amount: int, generator: torch.Generator | None) -> Tensor:
        """Rows for dead codes; the first process decides for all."""
        if self.policy == "batch_random":
            return from_first(_sample(source, amount, generator))
        noise = 1e-10 * randn(tuple(source.shape), generator).to(source)
        return from_first(source + noise)

    def _most_used(self, amount: int) -> Tensor:
        """The codes used most, repeated where more are wanted than there are."""
        order = self.cluster_size.argsort(descending=True, stable=True)
        return self.embed[order[torch.arange(amount, device=order.device) % len(order)]].float()

    def _kmeans(self, rows: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        size = self.embed.shape[0]
        centers = from_first(_sample(rows, size, generator))
        counts = rows.new_zeros(size)
        for _ in range(KMEANS_STEPS):
            tokens = self._assigned(rows, self._comparable(centers))
            counts = total(torch.bincount(tokens, minlength=size).to(rows))
            sums = total(torch.zeros_like(centers).index_add_(0, tokens, rows))
            means = self._comparable(sums / counts.clamp(min=1)[:, None])
            centers = torch.where(counts[:, None] > 0, means, centers)
        return centers, counts

    # What the two kinds of codebook do differently

    def _initial(self, shape: tuple[int, int]) -> Tensor:
        raise NotImplementedError

    def _register_averages(self, embed: Tensor) -> None:
        """Adds the buffers that only one kind keeps."""

    def _comparable(self, rows: Tensor) -> Tensor:
        """Rows in the form in which they are compared."""
        raise NotImplementedError

    def _score_bias(self, table: Tensor) -> Tensor:
        """What is added to the dot products, one number a code."""
        raise NotImplementedError

    def _move(self, counts: Tensor, sums: Tensor) -> None:
        raise NotImplementedError

    def _restart(self, chosen: Tensor, codes: Tensor, counts: Tensor) -> None:
        """Brings further averages in line with codes that were set anew."""


class CosineCodebook(Codebook):
    """Codes compared by angle; each moves toward the mean direction of its rows."""

    def _initial(self, shape: tuple[int, int]) -> Tensor:
        return F.normalize(nn.init.kaiming_uniform_(torch.empty(shape)), dim=-1)

    def _comparable(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1)

    def _score_bias(self, table: Tensor) -> Tensor:
        return table.new_zeros(())

    def _move(self, counts: Tensor, sums: Tensor) -> None:
        means = F.normalize(sums / counts.clamp(min=1)[:, None], dim=-1)
        # A code that won nothing is pulled toward its own direction, that is: toward unit length
        goals = torch.where(counts[:, None] > 0, means, F.normalize(self.embed.float(), dim=-1))
        self.embed.lerp_(goals.to(self.embed), 1 - self.decay)


class EuclideanCodebook(Codebook):
    """Codes compared by distance; each is the moving average of its rows.

    Shapes:
        embed_avg: float[K, d], the moving average of the sums
    """

    embed_avg: Tensor

    def _initial(self, shape: tuple[int, int]) -> Tensor:
        return nn.init.kaiming_uniform_(torch.empty(shape))

    def _register_averages(self, embed: Tensor) -> None:
        self.register_buffer("embed_avg", embed.clone())

    def _comparable(self, rows: Tensor) -> Tensor:
        return rows

    def _score_bias(self, table: Tensor) -> Tensor:
        # |x - e|^2 = |x|^2 - 2 (x.e - |e|^2 / 2)
        return -0.5 * table.square().sum(dim=-1)

    def _move(self, counts: Tensor, sums: Tensor) -> None:
        self.embed_avg.lerp_(sums.to(self.embed_avg), 1 - self.decay)
        size = self.cluster_size
        smoothed = (size + 1e-5) / (size.sum() + len(size) * 1e-5) * size.sum()
        self.embed.copy_(self.embed_avg / smoothed[:, None])

    def _restart(self, chosen: Tensor, codes: Tensor, counts: Tensor) -> None:
        self.embed_avg[chosen] = codes.to(self.embed_avg) * counts[:, None].to(self.embed_avg)


class VectorQuantizer(nn.Module):
    """Replaces each latent by its nearest code (quant_type 'lucid'); heads share one codebook."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.heads = config.num_codebooks
        self.norm_latents = config.norm_latents
        self.commitment_weight = config.commitment_weight
        dim = config.codebook_dim or config.latent_dim
        inner = self.heads * dim
        kind = CosineCodebook if config.norm_codes else EuclideanCodebook
        self._codebook = kind(config, dim)  # 4M key
        projects = inner != config.latent_dim
        self.project_in = nn.Linear(config.latent_dim, inner) if projects else nn.Identity()
        self.project_out = nn.Linear(inner, config.latent_dim) if projects else nn.Identity()

    def forward(
        self, x: Tensor, *, update: bool = False, generator: torch.Generator | None = None
    ) -> Quantized:
        """Quantizes a latent map; `update` is the training step, which moves the codebook.

        Shapes:
            x: float[B, latent_dim, Hq, Wq]
        """
        with torch.autocast(x.device.type, enabled=False):
            rows = self._rows(x)
            if update:
                self._codebook.initialise(rows, generator)
            tokens = self._codebook.nearest(rows.detach())
            codes = F.embedding(tokens, self._codebook.embed).float()
            loss = rows.new_zeros(())
            if update:
                loss = self.commitment_weight * F.mse_loss(codes, rows)
                self._codebook.update(rows, tokens, generator)
            if update or (self.training and rows.requires_grad):
                codes = rows + (codes - rows).detach()  # straight-through
            return Quantized(self._as_map(codes, x), self._token_map(tokens, x), loss)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Code vectors of tokens.

        Shapes:
            tokens: int64[B, Hq, Wq], or int64[B, heads, Hq, Wq]
            returns: float[B, latent_dim, Hq, Wq]
        """
        check_range(tokens, self._codebook.embed.shape[-2], "token", "codebook")
        if self.heads == 1:
            tokens = tokens.unsqueeze(1)
        codes = F.embedding(tokens, self._codebook.embed)  # [B, heads, Hq, Wq, d]
        flat = self.project_out(rearrange(codes, "b n h w d -> b (h w) (n d)"))
        return rearrange(flat, "b (h w) d -> b d h w", h=tokens.shape[-2])

    def expected(self, probs: Tensor) -> Tensor:
        """The mean code vector: probabilities float[B, heads, N, V] -> float[B, latent_dim, N]."""
        codes = probs.to(self._codebook.embed.dtype) @ self._codebook.embed
        flat = self.project_out(rearrange(codes, "b n l d -> b l (n d)"))
        return rearrange(flat, "b l d -> b d l")

    def _rows(self, x: Tensor) -> Tensor:
        """Latents as rows in the codebook's space: float[B*Hq*Wq*heads, d]."""
        flat = self.project_in(rearrange(x.to(self._codebook.embed.dtype), "b d h w -> (b h w) d"))
        rows = rearrange(flat, "l (n d) -> (l n) d", n=self.heads).float()
        return F.normalize(rows, dim=-1) if self.norm_latents else rows

    def _as_map(self, codes: Tensor, like: Tensor) -> Tensor:
        b, _, h, w = like.shape
        flat = rearrange(codes.to(self._codebook.embed.dtype), "(l n) d -> l (n d)", n=self.heads)
        flat = self.project_out(flat).to(like.dtype)
        return rearrange(flat, "(b h w) d -> b d h w", b=b, h=h, w=w)

    def _token_map(self, tokens: Tensor, like: Tensor) -> Tensor:
        b, _, h, w = like.shape
        grid = rearrange(tokens, "(b h w n) -> b n h w", b=b, h=h, w=w, n=self.heads)
        return grid.squeeze(1) if self.heads == 1 else grid


def _sample(rows: Tensor, amount: int, generator: torch.Generator | None) -> Tensor:
    """Some of the rows, each at most once where there are enough."""
    if rows.shape[0] == 0:
        raise ShapeError("a codebook cannot learn from an empty batch; give at least one latent")
    order = randperm(rows.shape[0], generator)
    order = repeat(order, "n -> (r n)", r=-(-amount // len(order)))
    return rows[order[:amount].to(rows.device)]


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def total(x: Tensor) -> Tensor:
    """The sum of x over all processes, in place."""
    if is_distributed():
        dist.all_reduce(x)
    return x


def from_first(x: Tensor) -> Tensor:
    """The first process's x, on every process."""
    if is_distributed():
        x = x.contiguous()
        dist.broadcast(x, src=0)
    return x
