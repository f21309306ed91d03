"""The VQ tokenizer of a network's vectors: a product quantizer to begin with, then a decoder.

The codes stay as k-means found them; the decoder alone is trained, by the cosine of the centred
vectors. Where that gains nothing on photos it has not seen, the start is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.add_embedding.options import Options
from fourm_lite.data.loader import ArrayStream
from fourm_lite.errors import ConfigError
from fourm_lite.progress import StageProgress
from fourm_lite.tokenization.load import load_tokenizer
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.training.loop import TrainConfig, fit
from fourm_lite.training.optim import OptimConfig
from fourm_lite.training.tasks import TokenizerTask
from fourm_lite.training.tokenizer_recipes import (
    TokenizerRecipe,
    Values,
    ValuesRecipe,
    build_tokenizer,
)
from fourm_lite.unit import Floats

PART = 8  # components a code stands for, where there are enough of them
PASSES = 18
MAX_START = 20_000  # vectors that the start looks at
FROZEN = ("encoder", "quant_proj", "quantize")


@dataclass(frozen=True)
class Shape:
    """Numbers of a tokenizer: codes of a vector, entries of a code book, components of a code."""

    tokens: int
    codebook_size: int
    part: int


def tokenizer_shape(count: int, width: int, options: Options) -> Shape:
    """The numbers that fit `count` vectors of a width.

    Raises:
        ConfigError: more tokens are asked for than the vectors have components
    """
    room = min(width, count - 1)
    tokens = options.tokens or max(1, min(16, room))
    if tokens > room:
        raise ConfigError(
            f"{tokens} tokens need vectors of at least {tokens} components and {tokens + 1} "
            f"photos, got a width of {width} and {count} photos; give fewer tokens"
        )
    # With few photos many components fit noise: leave some photos for each of them
    part = max(1, min(PART, room // tokens, count // (2 * tokens)))
    size = options.codebook_size
    if size is None:
        size = 16
        while size < 1024 and size * 2 * 5 <= count:
            size *= 2
    if size > count:
        raise ConfigError(
            f"a code book of {size} entries needs at least as many photos, got {count}; give fewer"
        )
    return Shape(tokens, size, part)


def train_tokenizer(
    values: Floats, options: Options, folder: Path, out: Path, tell: StageProgress
) -> Mapping[str, Any]:
    """Trains the tokenizer into `out`; goes on from `folder`, where it was stopped.

    Shapes:
        values: float32[N, E], raw
    """
    shape = tokenizer_shape(len(values), values.shape[1], options)
    learned, kept = _apart(values, options.seed)
    recipe = _recipe(shape, learned, options, folder)
    data = Values(len(learned), lambda i: learned[i])
    tokenizer = build_tokenizer(recipe, data)
    start_folder = folder / "start"
    tokenizer.save(start_folder)
    stream = ArrayStream(data, recipe.batch_size, options.seed, None, "vectors")
    fit(
        TokenizerTask(tokenizer, recipe.loss),
        stream,
        recipe.train,
        resume=True,
        progress=lambda step, steps, _: tell("training the tokenizer", step, steps),
    )
    before, after = load_tokenizer(start_folder), load_tokenizer(recipe.train.out / "final")
    cosines = [_cosine(t, kept) for t in (before, after)]
    (before if cosines[0] >= cosines[1] else after).save(out)
    return {
        "tokens": shape.tokens,
        "codebook_size": shape.codebook_size,
        "components_of_a_code": shape.part,
        "width": int(values.shape[1]),
        "photos": len(values),
        "steps": recipe.train.steps,
        "decoder": "start" if cosines[0] >= cosines[1] else "trained",
        "cosine_of_start": round(cosines[0], 4),
        "cosine_after_training": round(cosines[1], 4),
    }


def _apart(values: Floats, seed: int) -> tuple[Tensor, Tensor]:
    """The vectors to train on, and a tenth to choose the decoder by."""
    order = np.random.default_rng(seed).permutation(len(values))
    count = max(2, len(values) // 10)
    rows = torch.from_numpy(np.ascontiguousarray(values[order])).float()
    return rows[count:], rows[:count]


def _recipe(shape: Shape, learned: Tensor, options: Options, folder: Path) -> TokenizerRecipe:
    width = learned.shape[1]
    batch = min(256, len(learned))
    steps = options.tokenizer_steps or max(1, PASSES * len(learned) // batch)
    dims = shape.tokens * shape.part
    inner = max(64, -(-max(dims, min(width, 256)) // 32) * 32)
    return TokenizerRecipe(
        tokenizer={
            "image_size": 1,
            "n_channels": width,
            "enc_type": f"BottleneckMLP/B_1-Wi_{inner}-E_2",
            "dec_type": f"BottleneckMLP/B_2-Wi_{2 * inner}-E_2",
            "patch_proj": False,
            "patch_size": 1,
            "quant_type": "memcodes",
            "codebook_size": min(shape.codebook_size, len(learned)),
            "num_codebooks": shape.tokens,
            "latent_dim": shape.tokens * (shape.part + 1),
            "freeze_enc": True,
        },
        values=ValuesRecipe(form="vectors", start_count=min(MAX_START, len(learned)), hflip=False),
        train=TrainConfig(
            steps=steps,
            out=folder / "run",
            seed=options.seed,
            ema=0.98,
            save_every=100,
            keep=1,
            optim=OptimConfig(
                lr=5e-4,
                betas=(0.9, 0.99),
                warmup_steps=min(20, steps),
                clip=1.0,
                lr_scale=dict.fromkeys(FROZEN, 0.0),
            ),
        ),
        loss="cosine_1d",
        centre=True,
        batch_size=batch,
    )


@torch.no_grad()
def _cosine(tokenizer: VQTokenizer, values: Tensor) -> float:
    """Mean cosine of reconstructed and raw vectors, the tokenizer's mean taken off both."""
    mean = tokenizer.input_mean
    made = tokenizer.detokenize(tokenizer.tokenize(values)) - mean
    return float(torch.nn.functional.cosine_similarity(made, values - mean, dim=1).mean())
