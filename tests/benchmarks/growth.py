"""Time and memory against tokens, batch, gallery rows and photos: four plots with their slopes.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python tests/benchmarks/growth.py growth.webp

Writes one picture, in which a dashed line has the slope that the measured one should have, and
prints the figures. Each case runs in a process of its own.
"""

from __future__ import annotations

import ctypes
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fourm_lite.batch import TokenBatch, Tokens
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
LEAST_MB = 0.5
"""What is shown of less."""
ROUNDS, SHORT = 5, 0.5
"""Runs of less seconds are made so many times, and the least counts."""
WANTED = {"tokens": (1, 1), "images": (1, 1), "rows": (1, 1), "photos": (1, 0)}
"""Slopes of time and memory: a text keeps keys and values of each token, photos leave nothing."""
TITLES = {
    "tokens": "A text of so many tokens",
    "images": "Global tokens of a batch of images",
    "rows": "One exact query of an opened index",
    "photos": "`index` of photos from files",
}


def small_model() -> FourM:
    """Random weights of width 256, which read photos and captions and say captions."""
    torch.manual_seed(0)
    inputs = tuple(MODALITIES[n] for n in ("rgb@224", "caption"))
    outputs = tuple(MODALITIES[n] for n in ("caption", "tok_dinov2_global"))
    config = FourMConfig(
        inputs=inputs, outputs=outputs, dim=256, encoder_depth=4, decoder_depth=4, num_heads=4
    )
    return FourM(config).init_weights().eval()


def pixels(size: int) -> TokenBatch:
    drawn = torch.randn(size, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    return TokenBatch({"rgb@224": Tokens.given(drawn, length=196)})


def tokens(model: FourM) -> Iterator[tuple[int, Run]]:
    """A text of so many tokens, one after the other."""
    plan = Plan.of(Target("caption", temperature=0))
    for length in (8, 64, 128, 256, 512, 1024):
        batch = pixels(1).with_({"caption": empty_sequence(1, length, LEGACY_MARKS)})

        def run(batch: TokenBatch = batch, length: int = length) -> None:
            said = [0]
            Sampler(model).run(batch, plan, on_token=lambda done, _: said.append(done))
            assert said[-1] == length - 1, "random weights said the end: take another seed"

        yield length, run


def batch(model: FourM) -> Iterator[tuple[int, Run]]:
    """The DINOv2 tokens of so many photos at once."""
    plan = Plan.of(Target("tok_dinov2_global", scheme="roar", steps=1, temperature=0))
    for size in (1, 2, 4, 8, 16, 32):
        yield size, partial(_sampled, model, pixels(size), plan)


def _sampled(model: FourM, given: TokenBatch, plan: Plan) -> None:
    """By a sampler that remembers nothing."""
    Sampler(model).run(given, plan)


def rows(folder: Path) -> Iterator[tuple[int, Run]]:
    """A query of an index of so many rows of width 256, which the first one reads."""
    rng = np.random.default_rng(0)
    query = rng.standard_normal(256, np.float32)
    for count in (3_000, 25_000, 50_000, 100_000, 200_000):
        place = folder / f"rows{count}"
        index = Index.create(place, space="growth")
        for start in range(0, count, 10_000):
            names = range(start, min(start + 10_000, count))
            index.add(names, rng.standard_normal((len(names), 256), np.float32))

        yield count, partial(Index.open(place).search, query, k=10, columns=["id"])


def files(folder: Path) -> Iterator[tuple[int, Run]]:
    """`index` of so many photos from files, with a network of a few numbers."""
    rng = np.random.default_rng(0)
    photos = []
    for _ in range(10):
        small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
        out = io.BytesIO()
        small.resize((1600, 1200), Image.Resampling.BICUBIC).save(out, "JPEG")
        photos.append(out.getvalue())
    for count in (5, 100, 200, 400):
        place = folder / f"photos{count}"
        place.mkdir()
        for i in range(count):
            (place / f"{i}.jpg").write_bytes(photos[i % len(photos)])

        def run(place: Path = place) -> None:
            with tempfile.TemporaryDirectory() as idx:
                index = Index.create(f"{idx}/i", space="growth")
                index_items(open_sources([place]), tiny_vectors, index, short_side=448)

        yield count, run


def tiny_vectors(pictures: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
    """What a network of a few numbers says of pictures."""
    return np.stack([np.asarray(p.resize((8, 8)), np.float32).ravel() for p in pictures])


@dataclass(frozen=True)
class Spent:
    """What a run took: CPU seconds, and MB of its peak beyond that of the smallest."""

    seconds: float
    megabytes: float


def spent(cases: Iterable[tuple[int, Run]]) -> dict[int, Spent]:
    """What growing sizes take, memory beyond that of the first, a small one, which warms up.

    The first run of a size tells its memory, later ones the time.
    """
    (_, warm), *growing = list(cases)
    warm()
    base, found = peak(warm), {}
    for size, run in growing:
        more = max(peak(run) - base, LEAST_MB)
        seconds = timed(run)
        if seconds < SHORT:
            seconds = min(seconds, *(timed(run) for _ in range(ROUNDS)))
        found[size] = Spent(seconds, more)
    return found


def peak(run: Run) -> float:
    """MB of a run's peak beyond what was held before."""
    before = resident()
    run()
    return megabytes("VmHWM") - before


def timed(run: Run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def resident() -> float:
    """MB that the process holds, after what is free was given back; the peak begins anew."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return megabytes("VmRSS")


def megabytes(what: str) -> float:
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def draw(found: Mapping[str, Mapping[int, Spent]], path: Path) -> None:
    """Seconds above and memory below, one column a case, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), dpi=80, layout="constrained")
    grid = figure.subplots(2, len(found), squeeze=False)
    for column, (what, rows) in zip(grid.T, found.items(), strict=True):
        sizes = sorted(rows)
        for axes, field, wanted in zip(column, ("seconds", "megabytes"), WANTED[what], strict=True):
            values = [getattr(rows[s], field) for s in sizes]
            middle = float(np.exp(np.log(values).mean() - wanted * np.log(sizes).mean()))
            axes.loglog(sizes, values, "o-", label=f"measured: slope {slope(sizes, values):.2f}")
            axes.loglog(sizes, [middle * s**wanted for s in sizes], "--", label=f"slope {wanted}")
            axes.set_ylabel("CPU seconds" if field == "seconds" else "MB more than the smallest")
            axes.set_ylim(min(values) / 3, max(values) * 3)
            axes.set_xticks(sizes, [f"{s:,}" for s in sizes])
            axes.minorticks_off()
            axes.grid(visible=True, alpha=0.3)
            axes.legend()
        column[0].set_title(TITLES[what])
        column[1].set_xlabel(what)
    figure.savefig(path)


CASES: dict[str, Callable[[Path], Iterator[tuple[int, Run]]]] = {
    "tokens": lambda _: tokens(small_model()),
    "images": lambda _: batch(small_model()),
    "rows": rows,
    "photos": files,
}


def main(out: Path) -> None:
    found = {}
    for what in CASES:  # a process each: peaks of memory only rise
        command = [sys.executable, __file__, "--case", what]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[what] = {int(s): Spent(*told) for s, told in json.loads(done.stdout).items()}
        sizes = sorted(found[what])
        seconds = [found[what][s].seconds for s in sizes]
        peaks = [found[what][s].megabytes for s in sizes]
        told = ", ".join(
            f"{s}: {a:.3f} s {b:.1f} MB" for s, a, b in zip(sizes, seconds, peaks, strict=True)
        )
        time_slope, last = slope(sizes, seconds), slope(sizes[-2:], seconds[-2:])
        print(f"{what}: slope of time {time_slope:.2f}, at the end {last:.2f}, of memory "
              f"{slope(sizes, peaks):.2f} ({told})", flush=True)  # fmt: skip
    draw(found, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "--case":
        with tempfile.TemporaryDirectory() as place:
            rows_of = spent(CASES[sys.argv[2]](Path(place)))
        print(json.dumps({s: [r.seconds, r.megabytes] for s, r in rows_of.items()}))
    else:
        main(Path(sys.argv[1]))
