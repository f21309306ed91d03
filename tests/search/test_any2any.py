"""The table of all sources and targets, on the shipped model and drawn photos."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fourm_lite.cli import main
from fourm_lite.demo.examples import drawings
from fourm_lite.embedders.base import NetworkEmbedder, Towers
from fourm_lite.errors import ConfigError
from fourm_lite.evaluate import any_to_any
from fourm_lite.evaluate.any_to_any_sheet import SIDE, _is_free, _may_show, write_gallery
from fourm_lite.evaluate.caption_sets import CaptionPack
from fourm_lite.evaluate.references import References, Teachers, read_references, role_of
from fourm_lite.modalities.pictures import decode
from fourm_lite.photos.records import Record


@pytest.fixture(scope="module")
def pipe():
    from fourm_lite.pipeline.pipeline import FourMPipeline

    return FourMPipeline.from_pretrained("mini")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Four drawings with captions, and class maps of them."""
    folder = tmp_path_factory.mktemp("pack")
    rows, maps = [], []
    for number, drawing in enumerate(drawings(4, size=64)):
        drawing.picture.save(folder / drawing.name)
        rows.append({"id": str(number), "file": drawing.name, "captions": [drawing.caption, "a"]})
        maps.append(np.full((8, 8), number, np.uint8))
    text = "".join(json.dumps(row | {"split": "test"}) + "\n" for row in rows)
    (folder / "captions.jsonl").write_text(text, encoding="utf-8")
    np.savez(folder / "maps.npz", ids=[row["id"] for row in rows], semseg=np.stack(maps))
    return folder


@pytest.fixture(scope="module")
def known(pack, pipe) -> References:
    photos = CaptionPack.read(pack, "test").photos
    return read_references(photos, pipe, Teachers(segmentation=pack / "maps.npz"), batch_size=3)


@pytest.mark.parametrize(
    "held", [None, {"semseg": np.zeros((1, 4, 4))}, {"ids": [1], "semseg": []}]
)
def test_class_maps_in_a_file_of_another_kind_are_refused(tmp_path, held):
    path = tmp_path / "maps.npz"
    if held is None:
        path.write_text("no maps")
    else:
        np.savez(path, **held)

    with pytest.raises(ConfigError, match="`ids` and as many `semseg`"):
        Teachers(segmentation=path).class_maps(4)


def test_every_output_of_the_shipped_model_has_a_role(pipe):
    found = {role_of(m, pipe) for m in pipe.model.config.outputs}

    assert found == {
        "caption", "embedding", "segmentation", "edges", "features", "rgb", "palette", "numbers",
    }  # fmt: skip


def test_references_are_those_of_the_photo_and_teachers_that_are_absent_say_nothing(known):
    assert len(known) == 4
    assert known.values["segmentation"].shape == (4, 56, 56)
    assert [int(m[0, 0]) for m in known.values["segmentation"]] == [0, 1, 2, 3]
    assert known.values["edges"].shape == (4, 224, 224)
    assert known.values["edges"].any()
    assert len(known.values["palette"][0]) >= 2
    assert not {"embedding", "features"} & set(known.values)


def test_every_role_can_be_given(known, pipe):
    for role in ("pixels", "caption", "segmentation", "edges", "rgb"):
        batch = pipe.read([known.item(row, (role,), pipe) for row in range(2)])

        assert batch.size == 2


def test_the_verb_measures_every_cell_and_draws_no_photo(tmp_path, capsys, pack, pipe):
    words = ["evaluate", "any2any", "--data", str(pack), "--segmentation", str(pack / "maps.npz")]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--limit", "2", "--json", str(tmp_path / "out.json")])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0, err
    report = json.loads((tmp_path / "out.json").read_text())

    cells = {(row["source"], row["target"]) for row in report["rows"]}
    assert {s for s, _ in cells} == {
        "pixels", "caption", "segmentation", "edges", "caption + segmentation", "majority",
    }  # fmt: skip
    assert ("caption + segmentation", "caption") not in cells
    assert ("pixels", "segmentation") in cells
    assert report["protocol"]["photos"] == 2
    for row in report["rows"]:
        for measure in row["measures"].values():
            low, high = measure["interval"]
            assert low <= measure["value"] <= high or row["target"] == "segmentation"
            assert (measure["chance"] is None) == (row["source"] == "majority")
    assert "mIoU" in out


def test_a_gallery_credits_free_photos_and_shows_no_others(tmp_path, monkeypatch, pack, pipe):
    photos = CaptionPack.read(pack, "test").photos[:2]
    free = [replace(p, fields={"author": "Ann", "licence": "CC0-1.0"}) for p in photos]
    monkeypatch.setattr(any_to_any, "SOURCES", (("caption",),))

    for place, shown in (("free", free), ("closed", photos)):
        paths = write_gallery(
            pipe, shown, Teachers(), tmp_path / place, options={"model": "mini", "limit": 2}
        )

    assert [path.name for path in paths] == ["from_caption.webp"]
    open_page, closed_page = (
        (tmp_path / place / "README.md").read_text("utf-8") for place in ("free", "closed")
    )
    assert "Ann, CC0-1.0" in open_page
    assert "## The photos" not in closed_page
    assert "fourm-lite evaluate any2any --model mini --limit 2 --gallery DIR" in closed_page
    wide, narrow = (
        decode(tmp_path / place / "from_caption.webp").width for place in ("free", "closed")
    )
    assert wide - narrow == SIDE + 8  # a column of photos


@pytest.mark.parametrize(
    ("licence", "free"),
    [("CC0-1.0", True), ("public domain", True), ("CC-BY-SA-3.0", True), ("CC BY 4.0", True),
     ("CC-BY-NC-4.0", False), ("", False), ("research only", False)],
)  # fmt: skip
def test_photos_are_shown_by_their_licence(licence, free):
    photo = Record("a", b"", fields={"licence": licence})

    assert _is_free(photo) is free
    assert _may_show(("pixels",), "rgb", free) is free  # colours made from pixels tell the photo
    assert _may_show(("caption",), "rgb", free)


def test_all_names_every_split_of_a_list(pack):
    assert len(CaptionPack.read(pack, "all").photos) == 4


def test_each_network_says_what_is_as_wide_as_its_own_vectors():
    def network(width):
        towers = Towers(image=lambda pictures: torch.ones(len(pictures), width))
        return NetworkEmbedder(f"{width} wide", towers, identity=lambda: str(width))

    wide, narrow = network(8), network(4)

    assert Teachers((wide, narrow)).of(4) is narrow
    assert Teachers((wide, narrow)).of(8) is wide
    assert Teachers((narrow,)).of(8) is narrow
