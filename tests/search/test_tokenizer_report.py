"""What tokenizers keep: hand-worked counts, and the verb on drawn photos."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fourm_lite.cli import main
from fourm_lite.demo.examples import drawings
from fourm_lite.evaluate.tokenizer_report import code_use, neighbours_kept


def test_codes_in_even_use_have_the_perplexity_of_their_number():
    use = code_use(np.array([[0, 1], [2, 3]]), vocab_size=8)

    assert use == {"codes_used": 0.5, "perplexity": 4.0}


def test_neighbours_of_the_same_vectors_are_all_kept_and_of_turned_ones_are_not():
    angles = np.array([0.0, 0.1, 1.0, 1.1, 2.0, 2.1])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)

    assert neighbours_kept(vectors, vectors, k=1) == 1.0
    assert neighbours_kept(vectors[[0, 2, 4, 1, 3, 5]], vectors, k=1) == 0.0


def test_the_verb_tells_of_every_tokenizer_that_can_be_judged_without_a_teacher(tmp_path):
    rows = []
    for number, drawing in enumerate(drawings(3, size=64)):
        drawing.picture.save(tmp_path / drawing.name)
        rows.append({"id": str(number), "file": drawing.name, "captions": [drawing.caption]})
    text = "".join(json.dumps(row | {"split": "test"}) + "\n" for row in rows)
    (tmp_path / "captions.jsonl").write_text(text, encoding="utf-8")

    words = ["evaluate", "tokenizers", "--data", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        main([*words, "--json", str(tmp_path / "out.json")])

    assert end.value.code in (0, None)

    report = json.loads((tmp_path / "out.json").read_text())
    found = {row["tokenizer"]: row for row in report["rows"]}
    assert set(found) == {"edge_mini", "rgb_mini"}
    psnr = found["rgb_mini"]["measures"]["PSNR"]
    assert psnr["value"] > psnr["majority"]
    assert report["protocol"]["photos"] == 3
