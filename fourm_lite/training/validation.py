"""Quick metrics of a model while it trains: does search work, and does the model know the teacher.

They choose a checkpoint and a recipe. What is reported of a finished model comes from
`fourm-lite evaluate`, which knows protocols, galleries and intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.data.shards import normalized
from fourm_lite.model.fourm import FourM
from fourm_lite.model.likelihood import grid_log_probs
from fourm_lite.photos.records import Record
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.text import TextTokenizer
from fourm_lite.training.losses import directions


@dataclass(frozen=True, kw_only=True)
class ValRecipe:
    """Photos with captions and a teacher's embeddings that training does not see.

    Units:
        captions, split: as in the data; labels: a folder of `pseudolabel`; label: its embeddings
        target: the modality of that embedding; pixels, text: what it is predicted from
        batch_size: items a pass
    """

    captions: Path
    labels: Path
    label: str
    target: str
    split: str = "val"
    pixels: str = "rgb@224"
    text: str = "caption"
    batch_size: int = 128


def ranks(scores: Tensor, owner: Tensor) -> Tensor:
    """Place of each query's own item, from 1: float[Q, N], int64[Q] -> int64[Q]."""
    return (scores > scores.gather(1, owner[:, None])).sum(dim=1) + 1


@dataclass(frozen=True)
class SearchMetrics:
    """Recall of captions among the teacher's embeddings, and the cosine that photos reach.

    Shapes:
        gallery: float[N, E], the teacher's embeddings of the N records
    """

    model: FourM
    tokenizer: VQTokenizer
    text: TextTokenizer
    records: Sequence[Record]
    gallery: Tensor
    recipe: ValRecipe

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """R@1, R@5, R@10 and the median rank of all captions; mean centred cosine of photos."""
        device = self.model.device
        self.tokenizer.to(device)
        gallery = self._centered(self.gallery.to(device))
        owner = torch.tensor([i for i, r in enumerate(self.records) for _ in r.captions])
        said = self._directions(self._texts([c for r in self.records for c in r.captions]))
        seen = self._directions(self._photos())
        rank = ranks(said @ gallery.T, owner.to(device))
        metrics = {f"R@{k}": float((rank <= k).float().mean()) for k in (1, 5, 10)}
        metrics["median_rank"] = float(rank.float().median())
        own = ranks(said @ seen.T, owner.to(device))
        metrics["pixel_gallery_R@10"] = float((own <= 10).float().mean())
        metrics["pixels_cosine"] = float((seen * gallery).sum(dim=1).mean())
        return metrics

    def _centered(self, vectors: Tensor) -> Tensor:
        mean = self.tokenizer.input_mean if self.tokenizer.config.mean is not None else 0.0
        return F.normalize(vectors.float() - mean, dim=1)

    def _directions(self, batches: Sequence[TokenBatch]) -> Tensor:
        rows = []
        for batch in batches:
            moved = batch.to(self.model.device)
            context = self.model.encode(moved).context
            probs = grid_log_probs(self.model, self.recipe.target, context, moved.size).exp()
            rows.append(directions(self.tokenizer, self.tokenizer.expected_latents(probs)))
        return torch.cat(rows)

    def _texts(self, texts: Sequence[str]) -> list[TokenBatch]:
        limit = self.model.modality(self.recipe.text).max_tokens
        out = []
        for start in range(0, len(texts), self.recipe.batch_size):
            made = self.text.tokenize(texts[start : start + self.recipe.batch_size])
            ids, valid = made.ids[:, :limit], made.valid[:, :limit]
            given = Tokens.given(ids, valid, length=ids.shape[1])
            out.append(TokenBatch({self.recipe.text: given}))
        return out

    def _photos(self) -> list[TokenBatch]:
        entry = self.model.modality(self.recipe.pixels)
        size = entry.image_size or 224
        out = []
        for start in range(0, len(self.records), self.recipe.batch_size):
            part = self.records[start : start + self.recipe.batch_size]
            pixels = [normalized(r.open_image().resize((size, size))) for r in part]
            given = Tokens.given(torch.stack(pixels), length=entry.max_tokens)
            out.append(TokenBatch({entry.name: given}))
        return out
