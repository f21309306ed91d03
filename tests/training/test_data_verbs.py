"""`pseudolabel` and `tokenize`: one set of crops, what is missing alone, clear refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from verbs import exit_code

from fourm_lite.data.label_rows import read_labels
from fourm_lite.data.labellers import Cuts, GivenMaps, NetworkLabeller, formulas, onnx_teachers
from fourm_lite.data.shards import read_tokens
from fourm_lite.errors import ConfigError, FourMError, UnknownNameError
from fourm_lite.photos.records import read_records
from fourm_lite.tokenization.load import load_tokenizer
from fourm_lite.training.recipes import open_job


@pytest.fixture
def photos(tmp_path):
    """Three photos in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p.{i}.png")
    return folder


def test_labels_then_tokens_hold_the_same_crops(photos, tmp_path):
    labels, tokens = tmp_path / "labels", tmp_path / "tokens"

    assert exit_code("pseudolabel", photos, "-o", labels, "--crops", 2, "--shard-size", 2,
               "--workers", 2) == 0  # fmt: skip
    assert exit_code("tokenize", labels, "--photos", photos, "-t", "edge_mini", "-t", "rgb_mini",
               "-o", tokens) == 0  # fmt: skip

    ids, settings = read_labels(labels, "crop_settings")
    assert ids == ["p.0", "p.1", "p.2"]
    found, same = read_tokens(tokens, "crop_settings")
    assert (found, same.tolist()) == (ids, settings.tolist())
    for folder in ("tok_edge_mini", "tok_rgb_mini"):
        assert read_tokens(tokens, folder)[1].shape[:2] == (3, 2)


def test_tokens_are_those_of_the_photo_itself_and_need_no_labels(photos, tmp_path):
    assert exit_code("tokenize", photos, "-t", "rgb_mini", "-o", tmp_path / "t") == 0

    image = read_records(photos)[1].open_image().resize((224, 224), box=(15, 0, 105, 90))
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    expected = load_tokenizer("rgb_mini").tokenize_flat(x)

    ids, tokens = read_tokens(tmp_path / "t", "tok_rgb_mini")
    assert tokens[ids.index("p.1"), 0].tolist() == expected[0].tolist()


def test_what_is_missing_alone_is_made_again(photos, tmp_path):
    words = ("tokenize", photos, "-t", "rgb_mini", "-o", tmp_path / "t")
    exit_code(*words)
    path = tmp_path / "t" / "tok_rgb_mini" / "shard-00000.tar"
    before = path.read_bytes()
    path.write_bytes(b"kept")

    assert exit_code(*words) == 0
    assert path.read_bytes() == b"kept"
    path.unlink()
    assert exit_code(*words) == 0
    assert path.read_bytes() == before


def test_a_folder_of_other_crops_or_another_tokenizer_is_refused(photos, tmp_path, capsys):
    out = tmp_path / "t"
    exit_code("tokenize", photos, "-t", "rgb_mini", "-o", out)

    assert exit_code("tokenize", photos, "-t", "rgb_mini", "-o", out, "--crops", 2) != 0
    assert "other photos or crops" in capsys.readouterr().err
    assert exit_code("tokenize", photos, "-t", "tok_rgb_mini=edge_mini#canny_edge", "-o", out) != 0
    assert "another tokenizer" in capsys.readouterr().err


def test_pixels_that_are_not_there_are_asked_for(photos, tmp_path, capsys):
    exit_code("pseudolabel", photos, "-o", tmp_path / "l", "--labels", "metadata")

    assert exit_code("tokenize", tmp_path / "l", "-t", "rgb_mini", "-o", tmp_path / "t") != 0
    assert "--photos" in capsys.readouterr().err
    assert exit_code("tokenize", tmp_path / "l", "-t", "edge_mini", "-o", tmp_path / "t") != 0
    assert "expected the label 'canny_edge'" in capsys.readouterr().err


def test_a_recipe_beside_a_tokenizer_says_what_it_reads():
    assert (open_job("semseg_mini").folder, open_job("semseg_mini").label) == (
        "tok_semseg_mini", "semseg",
    )  # fmt: skip
    assert open_job("x=rgb_mini#depth").label == "depth"


def test_maps_of_a_network_are_square_and_half():
    cuts = Cuts([], [], [], np.zeros((2, 3, 8, 8, 3), dtype=np.uint8))
    rows = np.arange(4, dtype=np.float32)

    made = NetworkLabeller("m", lambda p: np.tile(rows[:, None], (len(p), 1, 5)))(cuts)["m"]

    assert (made.shape, made.dtype) == ((2, 3, 5, 2, 2), np.float16)
    assert made[0, 0, 0].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(FourMError, match="no square"):
        NetworkLabeller("m", lambda p: np.zeros((len(p), 3, 5)))(cuts)


def test_words_that_name_nothing_are_refused(photos):
    with pytest.raises(UnknownNameError, match="canny_edge"):
        formulas(["canny_edges"])
    with pytest.raises(ConfigError, match="NAME=FILE"):
        onnx_teachers(["net.onnx"])
    with pytest.raises(FourMError, match=r"no class map, such as 'p\.0'"):
        GivenMaps({})(Cuts(read_records(photos), [], [], np.zeros((3, 1, 4, 4, 3), np.uint8)))


def test_what_is_left_out_is_told_to_people_and_programs(photos, tmp_path, capsys):
    (photos / "p.1.png").write_bytes(b"no picture")
    rows = [{"id": f"p.{i}", "file": f"p.{i}.png"} for i in range(3)]
    rows.append({"id": "lost", "captions": [1]})
    (photos / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given, labels = photos / "list.jsonl", tmp_path / "labels"
    tokens = ("-t", "rgb_mini", "-o")
    verbs = {
        "labels": ("pseudolabel", given, "-o", labels),
        "of labels": ("tokenize", labels, "--photos", given, *tokens, tmp_path / "a"),
        "of photos": ("tokenize", given, *tokens, tmp_path / "b"),
        "mixtures": ("mix-photos", given, "--count", 4, "-o", tmp_path / "mixed.jsonl"),
    }

    for name, words in verbs.items():
        assert exit_code(*words) == 0
        told = capsys.readouterr().out
        assert "p.1" in told
        assert "list.jsonl:4" in told
        if name == "mixtures":
            (tmp_path / "mixed.jsonl").unlink()
        assert exit_code(*words, "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["photos"] == 2
        assert len(facts["left_out"]) == 2
        assert all(set(one) == {"uri", "reason"} for one in facts["left_out"])
