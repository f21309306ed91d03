"""What feeds training, on one thread: masked captions and decoded photos, milliseconds a sample.

    python tests/benchmarks/bench_feed.py                # figures
    python tests/benchmarks/bench_feed.py --profile      # and where the time goes
    python -m pytest tests/benchmarks -m bench -s        # figures, within limits

Captions are of Flickr8k's length and go to 16 codes, as in mini's recipe; photos are noisy JPEG
files of 500 x 375 pixels, cut at random. The digest of each batch tells whether a change of the
code changed what is fed. The best of several batches counts: the machines are shared.
"""

from __future__ import annotations

import cProfile
import hashlib
import io
import json
import pstats
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fourm_lite.data.loader import Component, MaskedBatch, MaskedStream
from fourm_lite.data.shards import AlignedSamples, caption_writer
from fourm_lite.io.hub import resolve
from fourm_lite.modalities.crops import CropPolicy, crops, to_settings
from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.photos.records import Record
from fourm_lite.tokenization.words.text import load_text_tokenizer

COUNT, CROPS = 24, 4
LINES = (
    "A black dog is running through the tall green grass with a stick in its mouth .",
    "Two children in red shirts play on a slide .",
    "A man on a bicycle jumps over a ramp while a crowd of people watches him from the side .",
)
PIXELS = Modality(
    name="rgb@224", kind="pixels", channels=3, image_size=224, patch_size=16, grid=(14, 14),
    max_tokens=196, directions=IN,
)  # fmt: skip
CAPTION = Modality(name="caption", kind="sequence", vocab_size=5120, max_tokens=48, vocab="text")
CODES = Modality(name="codes", kind="grid", vocab_size=1024, grid=(4, 4), max_tokens=16)
ENTRIES = {m.name: m for m in (PIXELS, CAPTION, CODES)}
GIVEN = {
    "captions": ("caption", (22, 22), "all", 128),
    "captions, masked": ("caption", (5, 16), "random", 128),
    "photos": ("rgb@224", (80, 130), "random", 24),
}
"""Case: modality, input budget, what is kept of it, samples of a batch."""


def photo(seed: int) -> bytes:
    from PIL import Image

    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((500, 375), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def samples() -> tuple[AlignedSamples, object]:
    text = load_text_tokenizer(resolve("text_mini"))
    records = [Record(str(i), photo(i), LINES) for i in range(COUNT)]
    rng = np.random.default_rng(0)
    cut = [to_settings(crops(375, 500, CROPS, CropPolicy(), rng)) for _ in records]
    given = AlignedSamples(
        records=records,
        tokens={"codes": rng.integers(0, 1024, (COUNT, CROPS, 16))},
        settings=np.stack(cut),
        texts={"caption": caption_writer(records, text.encode)},
        pixels={"rgb@224": 224},
    )
    return given, text.marks


def stream(case: str) -> MaskedStream:
    name, budget, keep, size = GIVEN[case]
    given, marks = samples()
    component = Component(
        inputs={name: 1.0}, targets={"codes": 1.0}, input_budget=budget, target_budget=(16, 16),
        batch_size=size, keep={name: keep},  # type: ignore[dict-item]
    )  # fmt: skip
    return MaskedStream({"train": given}, [component], ENTRIES, marks, seed=1)  # type: ignore[arg-type]


def digest(batch: MaskedBatch) -> str:
    found = hashlib.sha256(f"{batch.input_budget} {batch.target_budget}".encode())
    for name, tokens in sorted(batch.batch.items()):
        found.update(name.encode())
        for part in (tokens.value, tokens.inputs, tokens.targets, tokens.groups):
            assert part is not None
            found.update(part.contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def best_ms(make: Callable[[int], MaskedBatch], size: int, batches: int) -> float:
    times = []
    for step in range(batches):
        start = time.perf_counter()
        make(step)
        times.append(time.perf_counter() - start)
    return round(1000 * min(times) / size, 4)


def figures(batches: int = 12) -> dict[str, dict[str, object]]:
    out = {}
    for case, (*_, size) in GIVEN.items():
        made = stream(case)
        first = digest(made.batch(0))
        out[case] = {"ms": best_ms(made.batch, size, batches), "digest": first}
    return out


@pytest.mark.bench
def test_a_sample_is_ready_in_time():
    torch.set_num_threads(1)

    found = figures()

    print(json.dumps(found, indent=1))
    assert found["captions"]["ms"] < 0.5
    assert found["photos"]["ms"] < 10


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(figures(), indent=1))
    if "--profile" in sys.argv:
        for case in ("captions, masked", "photos"):
            made, profile = stream(case), cProfile.Profile()
            profile.runcall(lambda made=made: [made.batch(step) for step in range(4)])
            pstats.Stats(profile).sort_stats("tottime").print_stats(18)
