"""Time and memory against tokens, batch, gallery rows and photos: four plots with their slopes.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/growth.py FOLDER

Writes FOLDER/growth_tokens.png and so on, and prints for each line the slope of log(CPU seconds)
against log(size), which should be about 1, and how much memory the largest size took over the
smallest. Sizes take turns, and the least of three rounds counts.
"""

from __future__ import annotations

import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.metrics.plots import plot_lines
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.photos.sources import open_sources
from fourm_lite.sampling.passes import LEGACY_MARKS
from fourm_lite.sampling.plan import Plan, Target
from fourm_lite.sampling.sampler import Sampler, empty_sequence
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.ingest import index_items

Run = Callable[[], object]
ROUNDS = 3


def small_model() -> FourM:
    """Random weights of width 256, which read photos and captions and say captions."""
    torch.manual_seed(0)
    inputs = tuple(MODALITIES[n] for n in ("rgb@224", "caption"))
    outputs = tuple(MODALITIES[n] for n in ("caption", "tok_dinov2_global"))
    config = FourMConfig(
        inputs=inputs, outputs=outputs, dim=256, encoder_depth=4, decoder_depth=4, num_heads=4
    )
    return FourM(config).init_weights().eval()


def photos(size: int) -> TokenBatch:
    pixels = torch.randn(size, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    return TokenBatch({"rgb@224": Tokens.given(pixels, length=196)})


def tokens(model: FourM) -> Iterator[tuple[int, Run]]:
    """A text of so many tokens, one after the other."""
    for length in (32, 64, 128, 256, 512):
        batch = photos(1).with_({"caption": empty_sequence(1, length, LEGACY_MARKS)})
        plan = Plan.of(Target("caption", temperature=0))
        yield length, lambda b=batch, p=plan: Sampler(model).run(b, p)  # type: ignore[misc]


def batch(model: FourM) -> Iterator[tuple[int, Run]]:
    """The DINOv2 tokens of so many photos at once."""
    plan = Plan.of(Target("tok_dinov2_global", scheme="roar", steps=1, temperature=0))
    for size in (1, 2, 4, 8, 16, 32):
        yield size, lambda b=photos(size): Sampler(model).run(b, plan)  # type: ignore[misc]  # noqa: B008


def rows(folder: Path) -> Iterator[tuple[int, Run]]:
    """One query of an exact search over so many rows of width 256."""
    rng = np.random.default_rng(0)
    query = rng.standard_normal(256, np.float32)
    for count in (20_000, 40_000, 80_000, 160_000):
        index = Index.create(folder / f"rows{count}", space="growth")
        index.add(range(count), rng.standard_normal((count, 256), np.float32))
        yield count, lambda i=index: [i.search(query, k=10, columns=["id"]) for _ in range(5)]  # type: ignore[misc]


def files(folder: Path) -> Iterator[tuple[int, Run]]:
    """`index` of so many photos from files, with a network of a few numbers."""
    rng = np.random.default_rng(0)
    for count in (50, 100, 200, 400):
        place = folder / f"photos{count}"
        place.mkdir()
        for i in range(count):
            small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
            out = io.BytesIO()
            small.resize((1600, 1200), Image.Resampling.BICUBIC).save(out, "JPEG")
            (place / f"{i}.jpg").write_bytes(out.getvalue())

        def run(place: Path = place) -> None:
            with tempfile.TemporaryDirectory() as idx:
                index = Index.create(f"{idx}/i", space="growth")
                embed = lambda ps: np.stack([np.asarray(p.resize((8, 8))).ravel() for p in ps])  # noqa: E731
                index_items(open_sources([place]), embed, index, short_side=448)

        yield count, run


def measured(cases: dict[int, Run]) -> dict[int, float]:
    spent = dict.fromkeys(cases, float("inf"))
    for _ in range(ROUNDS):
        for size, run in cases.items():
            start = time.process_time()
            run()
            spent[size] = min(spent[size], time.process_time() - start)
    return spent


@contextmanager
def memory() -> Iterator[list[float]]:
    """MB of peak memory that a block adds to what was reached before."""
    before, told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [0.0]
    yield told
    told[0] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model = small_model()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, made in {
            "tokens": tokens(model), "batch": batch(model), "rows": rows(folder),
            "photos": files(folder),
        }.items():  # fmt: skip
            cases = dict(made)
            sizes = sorted(cases)
            cases[sizes[0]]()
            with memory() as more:
                cases[sizes[-1]]()
            spent = measured(cases)
            x, y = np.log(sizes), np.log([spent[s] for s in sizes])
            slope, last = np.polyfit(x, y, 1)[0], (y[-1] - y[-2]) / (x[-1] - x[-2])
            points = [(float(s), spent[s]) for s in sizes]
            plot_lines(
                {f"slope {slope:.2f}": points}, out / f"growth_{what}.png",
                title=f"CPU seconds against {what}", x_label=what, y_label="CPU seconds",
            )  # fmt: skip
            told = ", ".join(f"{s}: {spent[s]:.3f}" for s in sizes)
            print(f"{what}: slope {slope:.2f}, at the end {last:.2f} ({told} s); "
                  f"{more[0]:.0f} MB more than the smallest", flush=True)  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
