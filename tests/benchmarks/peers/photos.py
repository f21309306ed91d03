"""From files to vectors: `index` over JPEGs of 12 megapixels, as it is and with whole decoding.

python tests/benchmarks/peers/photos.py PHOTOS SPEC [COUNT]

PHOTOS is a folder of JPEGs, which are enlarged to 4000 x 3000; SPEC a network, such as
onnx:mobilenet_v2_imagenet.onnx. Prints seconds a photo, the cosine between both ways, and how much
memory each takes over the other's.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from turns import take_turns, tell

from fourm_lite.embedders.load import load_embedder
from fourm_lite.photos.sources import open_sources
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.ingest import index_items

LARGE = (4000, 3000)


def enlarged(photos: Path, folder: Path, count: int) -> None:
    """Large photos of many colours and edges; the noise of a sensor is added."""
    rng = np.random.default_rng(0)
    for i, path in enumerate(sorted(photos.glob("*.jpg"))[:count]):
        large = Image.open(path).convert("RGB").resize(LARGE, Image.Resampling.LANCZOS)
        noise = rng.normal(0, 4, (LARGE[1], LARGE[0], 1))
        pixels = (np.asarray(large) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}.jpg", quality=90)


def peak_mb() -> float:
    """The most memory since the last call."""
    told = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(told.split("VmHWM:")[1].split()[0]) / 1024


def main(photos: Path, spec: str, count: int) -> None:
    embedder = load_embedder(spec)
    made: dict[object, np.ndarray] = {}
    most: dict[object, float] = {}

    def run(short_side: int | None) -> None:
        with tempfile.TemporaryDirectory() as place:
            index = Index.create(place + "/idx", space="bench")
            peak_mb()
            index_items(
                open_sources([folder]), embedder.embed_image, index,
                workers=2, batch_size=32, short_side=short_side,
            )  # fmt: skip
            most[short_side] = peak_mb()
            made[short_side] = np.asarray(index.vectors([f"{i:04}.jpg" for i in range(count)]))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        enlarged(photos, folder, count)
        cases = {"whole": partial(run, None), "ours": partial(run, embedder.short_side)}
        for what, cpu in (("CPU", True), ("wall", False)):
            spent = take_turns(cases, rounds=3, cpu=cpu, warm=cpu)
            each = {n: [t / count for t in times] for n, times in spent.items()}
            tell(f"{what} ms a photo of 12 megapixels, {spec.split('/')[-1]}", each)
    whole, ours = made[None], made[embedder.short_side]
    cosines = (whole * ours).sum(axis=1)
    print(f"cosine of both ways: mean {cosines.mean():.5f}, least {cosines.min():.5f}")
    scores = ours @ whole.T
    print(f"own photo first: {(scores.argmax(axis=1) == np.arange(len(ours))).sum()} of {count}")
    print(f"peak memory: whole {most[None]:.0f} MB, ours {most[embedder.short_side]:.0f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 24)
