"""Does reranking help on galleries unlike the one that its weights were fitted on?

Drawings asked for by their captions, and photos of labelled sets asked for by the names of their
classes: the first 100 by cosine, and reranked with the weights that are kept beside the model.

    python tests/benchmarks/bench_galleries.py --labels ../shared/data/labels
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fourm_lite.demo.examples import drawings
from fourm_lite.evaluate.pair_scores import Direction, PairScores
from fourm_lite.photos.labelled import read_labelled
from fourm_lite.search.rerank_weights import fitted_choice
from fourm_lite.search.spaces import open_space

DEPTH = 100
SENTENCES = ("{}", "a photo of {}", "a picture of {}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--model", default="mini")
    args = parser.parse_args()
    torch.set_num_threads(1)
    space = open_space(args.model)
    print("| gallery | queries | R@1 | R@10 | mAP of the first 100 | reranked: R@1 | R@10 | mAP |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    drawn = list(drawings(216))
    right = np.eye(len(drawn), dtype=bool)
    told("drawings", space, [d.picture for d in drawn], [d.caption for d in drawn], right)
    for folder in sorted(args.labels.iterdir()):
        if folder.is_dir():
            photos = read_labelled(folder, split=args.split)
            pictures = [photo.record.open_image() for photo in photos.photos]
            names = [s.format(c) for s in SENTENCES for c in photos.classes]
            own = photos.labels.numpy()[None] == np.arange(len(photos.classes))[:, None]
            told(folder.name, space, pictures, names, np.tile(own, (len(SENTENCES), 1)))


def told(name: str, space: Any, pictures: Sequence[Any], texts: Sequence[str], right: Any) -> None:
    """One line of the table."""
    images, codes = space.encode_document(pictures)
    items, _ = space.query_texts(texts)
    choice = fitted_choice(space.fitted)
    pairs = PairScores.of(
        space, items, codes, space.encode_query(items), images, given=choice.given,
        pictures=lambda part: pictures[part],
    )  # fmt: skip
    score = pairs.rescore(choice.weights, Direction(np.zeros(len(texts), int), True), DEPTH)
    plain, again = [], []
    for query, row in enumerate(pairs.cosine):
        first = np.argsort(-row, kind="stable")[:DEPTH]
        best = first[np.argsort(-score(query, first), kind="stable")]
        plain.append(measures(right[query][first], right[query].sum()))
        again.append(measures(right[query][best], right[query].sum()))
    cells = [*np.mean(plain, axis=0), *np.mean(again, axis=0)]
    values = " | ".join(f"{100 * value:.1f}" for value in cells)
    print(f"| {name} | {len(texts)} | {values} |", flush=True)


def measures(right: Any, total: int) -> tuple[float, float, float]:
    """R@1, R@10 and average precision of one ranking."""
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    average = float((precision * right).sum() / min(total, len(right)))
    return float(right[0]), float(right[:10].any()), average


if __name__ == "__main__":
    main()
