"""How many answers are called no good match: to captions of the gallery, and to others.

An index of the photos of two splits is calibrated on captions of the first, or as the model was
fitted, and asked with captions of the second; then with texts of photos that are not in it, of
which no photo's captions hold more than three tenths (rare words count more), and with a few short
queries, whose content is there or not.

    python tests/benchmarks/bench_confidence.py --data D --texts D/text_only_coco_val2017.txt.gz
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from pathlib import Path

import numpy as np
import torch

from fourm_lite.evaluate.caption_sets import CaptionPack, captioned
from fourm_lite.search.calibration.answer_features import Vocabulary, answer_features
from fourm_lite.search.calibration.calibrate import (
    VOCABULARY,
    calibrate_answers,
    calibrate_by_model,
)
from fourm_lite.search.calibration.captions import answers_to, questions_of
from fourm_lite.search.calibration.probability import Calibration
from fourm_lite.search.index.index import Index
from fourm_lite.search.spaces import open_space

THERE = (
    "two people at the beach; a dog runs through the grass; a black dog; a child on a "
    "swing; a man on a bicycle; people in the street; a skateboarder does a trick; a girl "
    "in a pink dress; a football player; a dog in the snow; a man climbing a rock; children "
    "playing in water; a boy jumping; a surfer on a wave; a crowd of people; a woman with a "
    "hat; two dogs playing; a dog with a ball; a man in a red shirt; a snowboarder in the "
    "air; a swimming pool; beach; dog; a motorcycle race; a white dog in a field; people "
    "sitting on a bench; a boy on a slide"
)
NOT_THERE = (
    "a nuclear submarine; a slice of pizza on a plate; an astronaut on the moon; a laptop "
    "on a desk; a white toilet in a bathroom; a giraffe eating leaves; a passenger airplane "
    "on the runway; a steam train at the station; a bowl of soup; a kitchen with a "
    "refrigerator; a church organ; the periodic table of elements; a microscope in a "
    "laboratory; a herd of elephants; two zebras; a stack of books; a screenshot of a "
    "spreadsheet; a map of europe; a wedding cake; a volcano; a circuit board; a bedroom "
    "with a large bed; a polar bear; a red double decker bus; a penguin; an ancient "
    "egyptian pyramid; a parking meter; a clock tower; a bar chart; a newspaper page; a "
    "rocket launch; a wristwatch; a pair of scissors; a parrot; a stock market crash; a "
    "bottle of wine and cheese; a bunch of bananas; a living room with a sofa"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True, help="of other photos, .txt.gz")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--splits", default="val,test", help="calibrated on, asked of")
    parser.add_argument("--queries", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    space, (first, second) = open_space(args.model), args.splits.split(",")
    with tempfile.TemporaryDirectory() as place:
        index = made(Path(place) / "idx", space, args.data, (first, second))
        asked = captioned(index, space, args.data, second).some(args.queries)
        with gzip.open(args.texts, "rt", encoding="utf-8") as file:
            lines = [line.strip() for line in file]
        order = np.random.default_rng(0).permutation(len(lines))[: 4 * args.queries]
        match = asked.judge.match
        absent = [
            lines[i]
            for i in order
            if all((match(lines[i], row) or 0) <= 0.3 for row in asked.judge.captions)
        ]
        kinds = {
            f"captions of {second}": list(asked.questions),
            "captions of photos that are not there": questions_of(absent[: args.queries], space),
            "short, there": questions_of(THERE.split("; "), space),
            "short, not there": questions_of(NOT_THERE.split("; "), space),
        }
        found = {
            name: (questions, answers_to(index, space, questions))
            for name, questions in kinds.items()
        }
        names = [f"{name} ({len(questions)})" for name, questions in kinds.items()]
        print("| calibrated | " + " | ".join(names) + " |\n" + "| --- " * (len(names) + 1) + "|")
        calibrate_answers(index, space, captioned(index, space, args.data, first))
        told(f"on captions of {first}", index, space, found)
        calibrate_by_model(index, space)
        told("without captions, by the model", index, space, found)


def made(place, space, data, splits):  # type: ignore[no-untyped-def]
    """An index of the photos of some splits."""
    index = Index.create(place, space=space.name, width=space.width)
    for split in splits:
        pack = CaptionPack.read(data, split)
        for start in range(0, len(pack.photos), 64):
            part = slice(start, start + 64)
            vectors, codes = space.encode_document(pack.pictures_at(part))
            index.add([photo.id for photo in pack.photos[part]], vectors, codes=codes)
    return index


def told(name, index, space, found):  # type: ignore[no-untyped-def]
    """One line: the share of each kind that is called no good match."""
    calibration = Calibration.of(index.manifest.calibration)
    words = Vocabulary(**index.manifest.extra[VOCABULARY])
    shares = []
    for questions, hits in found.values():
        evidence = answer_features(space, calibration.names, questions, hits, words)
        p = calibration.p_right(evidence)
        shares.append(f"{100 * np.mean(p < calibration.threshold):.1f}")
    print(f"| {name} | " + " | ".join(shares) + " |", flush=True)


if __name__ == "__main__":
    main()
