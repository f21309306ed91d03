"""A photo and a word together: does the answer go towards the word and stay near the photo?

For each word, photos whose captions lack it are asked with together with it, in each way to put the
two together. Told of the first ten hits (the photo itself left out): the share whose captions hold
the word; the cosine to the photo; how many of the photo's words their captions hold.

    python tests/benchmarks/bench_compose.py --data ../shared/data/captions --split val
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from fourm_lite.evaluate.caption_sets import CaptionPack, embed_photos
from fourm_lite.search.calibration.answer_features import CaptionRelevance, stem
from fourm_lite.search.query import Query
from fourm_lite.search.spaces import open_space

WORDS = (
    "snow beach water grass street ball bike rock mountain pool bench field child woman boy dog "
    "crowd red swing car tree jump night skateboard"
)
WAYS = {
    "photo alone": None,
    "word alone": None,
    "conditioning": ("conditioning", None),
    **{f"arithmetic, word x {w:g}": ("arithmetic", w) for w in (0.5, 0.75, 1.0, 1.5, 2.0)},
}
FIRST = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--photos", type=int, default=20, help="a word")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pack = CaptionPack.read(args.data, args.split)
    space, images, _ = embed_photos(pack, open_space(args.model))
    judge = CaptionRelevance.of({i: photo.captions for i, photo in enumerate(pack.photos)})
    held = [frozenset().union(*words) for words in judge.captions.values()]
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in WAYS}
    rng = np.random.default_rng(0)
    for word in WORDS.split():
        lacking = [i for i, words in enumerate(held) if stem(word) not in words]
        for photo in rng.choice(lacking, args.photos, replace=False):
            for name, vector in queries(space, pack, images, photo, word).items():
                scores = images @ vector
                scores[photo] = -np.inf
                first = np.argsort(-scores, kind="stable")[:FIRST]
                has = np.mean([stem(word) in held[i] for i in first])
                near = float((images[first] @ images[photo]).mean())
                found[name].append((has, near, likeness(judge, pack, photo, first)))
    chance = float(np.mean([stem(w) in words for w in WORDS.split() for words in held]))
    others = rng.integers(0, len(images), (200, 2))
    near = float(np.mean([images[a] @ images[b] for a, b in others if a != b]))
    alike = np.mean([likeness(judge, pack, a, [b]) for a, b in others if a != b])
    print("| | captions hold the word | cosine to the photo | its words held |")
    print("| --- | --- | --- | --- |")
    tell("any photo (chance)", [chance, near, alike])
    for name, rows in found.items():
        tell(name, np.mean(rows, axis=0))


def tell(name, values):  # type: ignore[no-untyped-def]
    """One line of the table."""
    print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in values) + " |", flush=True)


def queries(space, pack, images, photo, word):  # type: ignore[no-untyped-def]
    """The vector of each way."""
    picture = pack.photos[photo].open_image()
    text = space.encode_query([{"caption": word}])[0]
    out = {"photo alone": images[photo], "word alone": text}
    for name, how in WAYS.items():
        if how is None:
            continue
        way, weight = how
        if way == "conditioning":
            out[name] = Query.of(rgb=picture, caption=word, compose=way).vector(space)
        else:
            total = images[photo] + weight * text
            out[name] = total / np.linalg.norm(total)
    return out


def likeness(judge, pack, photo, first):  # type: ignore[no-untyped-def]
    """The mean share of the photo's caption words that the hits' captions hold."""
    text = " ".join(pack.photos[photo].captions)
    return float(np.mean([judge.match(text, int(i)) or 0.0 for i in first]))


if __name__ == "__main__":
    main()
