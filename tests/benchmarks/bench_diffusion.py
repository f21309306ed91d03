"""How near few steps of a trained diffusion decoder are to many, and what they cost.

The published decoders cannot be had here, so small ones are trained on photos with captions, each
with another noise schedule and network, at 64 pixels (minutes of one core):

    python tests/benchmarks/bench_diffusion.py train unet PHOTOS FOLDER --minutes 8
    python tests/benchmarks/bench_diffusion.py nearness FOLDER PHOTOS
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_diffusion.py speed

`nearness` prints the PSNR to 100 DDIM steps from the same noise, of as many photos as are held out.
`speed` times one 224-pixel map of a decoder of the published size (random weights), and passes of
it with channels last and over two maps.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fourm_lite.tokenization.load import load_tokenizer
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.vqvae import VQTokenizer

SIDE, HELD_OUT = 64, 16
COMMON = {
    "kind": "DiVAE", "image_size": SIDE, "patch_size": 8, "enc_type": "vit_96x3x3_enc",
    "quant_type": "fsq", "levels": (8, 8, 8, 5, 5), "latent_dim": 5, "codebook_size": 12800,
}  # fmt: skip
KINDS = {
    "unet": {
        "dec_type": "unet_patched_64", "prediction_type": "sample", "beta_schedule": "linear",
        "clip_sample": True, "thresholding": False,
    },
    "uvit": {
        "dec_type": "uvit_128x4x4_p4_f8", "prediction_type": "v_prediction",
        "beta_schedule": "shifted_cosine:0.5",
    },
    "uvit_cosine": {"dec_type": "uvit_128x4x4_p4_f8"},
    "epsilon": {
        "dec_type": "unet_patched_64", "prediction_type": "epsilon", "beta_schedule": "linear",
        "zero_terminal_snr": False, "clip_sample": True, "thresholding": False,
    },
}  # fmt: skip
"""Published tokenizers have the first, configs that say nothing `uvit_cosine`."""


def pictures(folder: Path, count: int) -> torch.Tensor:
    """Photos cut to their middle square: float32[N, 3, SIDE, SIDE] in [-1, 1]."""
    rows = []
    for path in sorted(folder.glob("*.jpg"))[:count]:
        with Image.open(path) as photo:
            photo.draft("RGB", (2 * SIDE, 2 * SIDE))
            edge = min(photo.size)
            left, top = (photo.width - edge) // 2, (photo.height - edge) // 2
            box = (left, top, left + edge, top + edge)
            small = photo.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)
        rows.append(np.asarray(small).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(rows)).float() / 127.5 - 1


def train(kind: str, photos: torch.Tensor, folder: Path, minutes: float) -> None:
    torch.manual_seed(0)
    model = VQTokenizer(TokenizerConfig(**COMMON, **KINDS[kind])).train()
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    generator, start, step, losses = torch.Generator().manual_seed(0), time.time(), 0, []
    while (spent := (time.time() - start) / (60 * minutes)) < 1:
        rate = min(1, (step + 1) / 50) * min(1, 4 * (1 - spent))
        optimizer.param_groups[0]["lr"] = 1e-3 * rate
        batch = photos[torch.randint(len(photos), (16,), generator=generator)]
        made = model(batch, generator=generator)
        loss = (made.output - made.target).square().mean() + made.quantized.loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(weight, max(0.01, 1 / (step + 1)))
        losses.append(loss.item())
        step += 1
        if step % 50 == 0:
            print(f"{kind}: step {step}, loss {statistics.mean(losses[-50:]):.4f}", flush=True)
    average.eval().save(folder / kind)


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of each image of values in [-1, 1]: float32[N]."""
    return 10 * torch.log10(4 / (a - b).square().flatten(1).mean(dim=1).clamp(min=1e-12))


def nearness(folder: Path, photos: torch.Tensor) -> None:
    for path in sorted(folder.iterdir()):
        model = load_tokenizer(path)
        noise = torch.randn(photos.shape, generator=torch.Generator().manual_seed(1))
        tokens = model.tokenize(photos)

        def made(path: str = "", **options: object) -> torch.Tensor:
            return model.detokenize(tokens, noise=noise, **options)  # noqa: B023

        many = made(scheduler="ddim", steps=100)
        photo = float(psnr(many, photos).mean())
        print(f"{path.name}: 100 DDIM steps, PSNR to the photos {photo:.2f} dB")
        ways = {f"DDIM {n}": {"scheduler": "ddim", "steps": n} for n in (25, 8)}
        ways |= {f"second order {n}": {"scheduler": "dpm++", "steps": n} for n in range(5, 13)}
        for name, options in ways.items():
            image = made(**options)
            near, true = psnr(image, many), psnr(image, photos)
            print(f"  {name:16} to 100 steps: mean {near.mean():.2f} dB, least {near.min():.2f}; "
                  f"to the photos {true.mean():.2f}", flush=True)  # fmt: skip


@torch.inference_mode()
def speed() -> None:
    sys.path.append(str(Path(__file__).parent / "peers"))
    from turns import take_turns, tell

    torch.manual_seed(0)
    shape = {"n_channels": 3, "latent_dim": 32, "codebook_size": 1024, "enc_type": "vit_96x3x3_enc"}
    published = {**KINDS["unet"], "dec_type": "unet_patched"}
    model = VQTokenizer(TokenizerConfig(kind="DiVAE", **shape, **published)).eval()
    tokens = torch.randint(1024, (2, 14, 14))
    tell("one map, CPU seconds", take_turns({
        "DDIM 25": lambda: model.detokenize(tokens[:1], scheduler="ddim"),
        "usual": lambda: model.detokenize(tokens[:1]),
    }, rounds=3, cpu=True, warm=0), unit=1)  # fmt: skip
    last = copy.deepcopy(model.decoder).to(memory_format=torch.channels_last)
    latents, at = model.lookup(tokens), torch.tensor([500, 500])
    noise = torch.randn(2, 3, 224, 224)
    tell("passes, CPU seconds", take_turns({
        "one map, twice": lambda: [model.decoder(noise[:1], at[:1], latents[:1]) for _ in "12"],
        "the same, channels last": lambda: [last(noise[:1], at[:1], latents[:1]) for _ in "12"],
        "two maps at once": lambda: model.decoder(noise, at, latents),
    }, rounds=5, cpu=True), unit=1)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("train")
    one.add_argument("kind", choices=KINDS)
    one.add_argument("photos", type=Path)
    one.add_argument("folder", type=Path)
    one.add_argument("--minutes", type=float, default=8)
    one.add_argument("--count", type=int, default=6000)
    two = verbs.add_parser("nearness")
    two.add_argument("folder", type=Path)
    two.add_argument("photos", type=Path)
    verbs.add_parser("speed")
    chosen = parser.parse_args(sys.argv[1:])
    torch.set_num_threads(1)
    if chosen.verb == "speed":
        speed()
    elif chosen.verb == "train":
        train(chosen.kind, pictures(chosen.photos, chosen.count)[HELD_OUT:], chosen.folder,
              chosen.minutes)  # fmt: skip
    else:
        nearness(chosen.folder, pictures(chosen.photos, HELD_OUT))


if __name__ == "__main__":
    main()
