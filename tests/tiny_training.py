"""Tiny tasks to train, each with its data: the stages of tests of the loop."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fourm_lite.data.loader import ArrayStream, Component, MaskedStream
from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.spans import Marks
from fourm_lite.training.loop import Losses, TrainConfig
from fourm_lite.training.optim import OptimConfig
from fourm_lite.training.recipes import ModelRecipe
from fourm_lite.training.tasks import PretrainTask, TokenizerTask

MODALITIES = {
    "pix": Modality(
        name="pix", kind="pixels", channels=3, patch_size=4, grid=(2, 2), max_tokens=4,
        directions=IN,
    ),
    "map": Modality(name="map", kind="grid", vocab_size=11, grid=(3, 3), max_tokens=9),
    "words": Modality(name="words", kind="sequence", vocab_size=40, max_tokens=8),
}  # fmt: skip
MARKS = Marks(pad=0, eos=1, sentinels=tuple(range(2, 12)))


class Toys:
    """A few aligned samples."""

    def __init__(self, count=7):
        self.count, self.fingerprint = count, f"toys {count}"

    def __len__(self):
        return self.count

    def sample(self, index, names, source):
        g = torch.Generator().manual_seed(index)
        values = {
            "pix": torch.randn(3, 8, 8, generator=g),
            "map": torch.randint(0, 11, (9,), generator=g),
            "words": torch.randint(12, 40, (5,), generator=g).tolist(),
        }
        return {n: values[n] for n in names}


class PairStream:
    """Pictures with labels."""

    fingerprint = "pairs"

    def epoch(self, step):
        return step * 4 / 16

    def batch(self, step, *, rank=0, world=1):
        g = torch.Generator().manual_seed(step)
        return Pair(torch.randn(4, 3, 8, 8, generator=g), torch.randint(0, 3, (4,), generator=g))


class Pair(tuple):
    def __new__(cls, *items):
        return super().__new__(cls, items)


def tiny_fourm(drop_path=0.0):
    torch.manual_seed(1)
    entries = tuple(MODALITIES.values())
    config = FourMConfig(
        inputs=entries, outputs=entries[1:], dim=16, num_heads=2, encoder_depth=2,
        decoder_depth=1, drop_path_rate_encoder=drop_path, drop_path_rate_decoder=drop_path,
    )  # fmt: skip
    return FourM(config).init_weights()


def pretraining():
    components = [
        Component(inputs={"pix": 1, "words": 1}, targets={"map": 1, "words": 1},
                  input_budget=(3, 8), target_budget=(4, 8), batch_size=3),
        Component(inputs={"map": 1}, targets={"map": 1}, input_budget=(2, 4),
                  target_budget=(2, 5), batch_size=2, weight=0.5),
    ]  # fmt: skip
    stream = MaskedStream({"train": Toys()}, components, MODALITIES, MARKS, seed=3)
    return PretrainTask(tiny_fourm(drop_path=0.3)), stream


def mixed_pretraining():
    """Two sources of other sizes, three components."""
    rest = {"target_budget": (3, 6), "batch_size": 2}
    components = [
        Component(inputs={"pix": 1, "words": 1}, targets={"map": 1}, input_budget=(3, 8), **rest),
        Component(inputs={"words": 1}, targets={"words": 1}, input_budget=(2, 5), source="more",
                  weight=0.7, **rest),
        Component(inputs={"map": 1}, targets={"words": 1}, input_budget=(2, 4), source="more",
                  weight=0.5, **rest),
    ]  # fmt: skip
    sources = {"train": Toys(), "more": Toys(11)}
    stream = MaskedStream(sources, components, MODALITIES, MARKS, seed=5)
    return PretrainTask(tiny_fourm(drop_path=0.2)), stream


def even_pretraining(batch_size):
    """Every sample is asked for as many tokens, so means of halves are means of the whole."""
    components = [
        Component(inputs={"pix": 1}, targets={"map": 1}, input_budget=(3, 3),
                  target_budget=(4, 4), batch_size=batch_size),
        Component(inputs={"map": 1}, targets={"map": 1}, input_budget=(2, 2),
                  target_budget=(5, 5), batch_size=batch_size),
    ]  # fmt: skip
    stream = MaskedStream({"train": Toys()}, components, MODALITIES, MARKS, seed=3)
    return PretrainTask(tiny_fourm()), stream


def tokenizing(quant_type="lucid"):
    torch.manual_seed(2)
    heads = {"num_codebooks": 2} if quant_type == "memcodes" else {}
    config = TokenizerConfig(
        image_size=4, n_channels=2, patch_proj=False, patch_size=1, codebook_size=8,
        latent_dim=8, enc_type="BottleneckMLP/B_1-Wi_12", dec_type="BottleneckMLP/B_1-Wi_12",
        quant_type=quant_type, threshold_ema_dead_code=1.0, **heads,
    )  # fmt: skip
    values = torch.randn(10, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    return TokenizerTask(VQTokenizer(config)), ArrayStream(values, 3, seed=1, name="maps")


@dataclass
class ClassifyTask:
    """A label a picture; batches are pairs (pixels, labels int64[B])."""

    model: nn.Module

    def step(self, model, batch, generator):
        pixels, labels = batch
        logits = model(pixels).float()
        accuracy = (logits.argmax(dim=-1) == labels).float().mean()
        return Losses(F.cross_entropy(logits, labels), {"accuracy": accuracy}, len(labels))

    def validate(self, step):
        return {}

    def save(self, folder):
        self.model.save(folder)


def classifying():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    model.save = lambda folder: folder.mkdir()
    return ClassifyTask(model), PairStream()


TASKS = {
    "pretrain": pretraining,
    "lucid": tokenizing,
    "memcodes": lambda: tokenizing("memcodes"),
    "classify": classifying,
}


def course(out, steps=10, **changes):
    optim = OptimConfig(lr=1e-2, warmup_steps=2, clip=1.0)
    base = {"optim": optim, "log_every": 1, "save_every": 5, "keep": 2, "ema": 0.9}
    return TrainConfig(steps=steps, out=out, **{**base, **changes})


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def read_recipe(root, text):
    """The recipe of a text in which {root} is the folder."""
    path = root / "recipe.toml"
    path.write_text(text.format(root=root))
    return ModelRecipe.read(path)
