"""Precomputed features: splitting, both ways of loading, published file forms, bad rows."""

from __future__ import annotations

import base64
import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from fourm_lite.cli import main
from fourm_lite.embedders.features import (
    Features,
    FeatureStore,
    read_features,
    read_place,
    split_features,
)
from fourm_lite.errors import ConfigError, FourMError, ShapeError


@pytest.fixture
def items() -> dict[str, Features]:
    rng = np.random.default_rng(0)
    return {
        key: Features(
            rng.normal(size=(count, 6)).astype(np.float32),
            rng.uniform(0, 99, (count, 4)).astype(np.float32),
            (60 + count, 80),
        )
        for key, count in {"17": 3, "val/000002": 1, "née.jpg": 5}.items()
    }


def row(key: str, item: Features) -> str:
    cells = [key, item.size[1], item.size[0], len(item.features)]
    arrays = [base64.b64encode(a.tobytes()).decode() for a in (item.boxes, item.features)]
    return "\t".join([*map(str, cells), *arrays])


@pytest.fixture
def tsv(items, tmp_path):
    path = tmp_path / "regions.tsv"
    path.write_text("\n".join(row(k, v) for k, v in items.items()) + "\n", encoding="utf-8")
    return path


def same(first: Features, second: Features) -> bool:
    return (
        np.array_equal(first.features, second.features)
        and np.array_equal(first.boxes, second.boxes)
        and first.size == second.size
    )


@pytest.mark.parametrize("preload", [False, True])
def test_a_split_tsv_gives_every_item_back(items, tsv, tmp_path, preload):
    split_features(tsv, tmp_path / "split")

    store = FeatureStore.open(tmp_path / "split", preload=preload)

    assert list(store) == list(items)
    assert all(same(store[key], item) for key, item in items.items())
    assert all(path.parent == tmp_path / "split" for path in (tmp_path / "split").iterdir())


def test_just_in_time_reads_only_what_is_asked_for(items, tsv, tmp_path):
    split_features(tsv, tmp_path / "split")
    lazy = FeatureStore.open(tmp_path / "split")
    eager = FeatureStore.open(tmp_path / "split", preload=True)
    for path in (tmp_path / "split").glob("*.npz"):
        path.unlink()

    assert same(eager["17"], items["17"])
    with pytest.raises(FourMError, match=r"17\.npz"):
        lazy["17"]


def test_a_dictionary_of_ids_names_the_files(items, tmp_path):
    np.savez(
        tmp_path / "a.npz",  # the names of bottom-up-attention.pytorch
        x=items["17"].features,
        bbox=items["17"].boxes,
        num_bbox=3,
        image_h=63,
        image_w=80,
    )
    grid = np.arange(24, dtype=np.float16).reshape(2, 2, 6)
    np.save(tmp_path / "b.npy", grid)
    save_file({"features": items["17"].features}, tmp_path / "c.safetensors")

    store = FeatureStore(
        {"cat": tmp_path / "a.npz", "dog": tmp_path / "b.npy", "boat": tmp_path / "c.safetensors"}
    )

    assert same(store["cat"], items["17"])
    assert np.array_equal(store["dog"].features, grid.reshape(4, 6))
    assert np.array_equal(store["boat"].features, items["17"].features)
    assert sorted(FeatureStore.open(tmp_path)) == ["a", "b", "c"]


def test_both_forms_of_npz_split_alike(items, tmp_path):
    same_count = {k: v.features[:1] for k, v in items.items()}
    np.savez(tmp_path / "named.npz", **{k.replace("/", "-"): v for k, v in same_count.items()})
    np.savez(
        tmp_path / "stacked.npz",
        ids=np.array(list(same_count)),
        features=np.stack(list(same_count.values())),
    )

    named = split_features(tmp_path / "named.npz", tmp_path / "one")
    stacked = split_features(tmp_path / "stacked.npz", tmp_path / "two")

    assert list(stacked) == list(items)
    for key, features in same_count.items():
        assert np.array_equal(stacked[key].features, features)
        assert np.array_equal(named[key.replace("/", "-")].features, features)


def test_an_item_becomes_the_unit_mean_of_its_regions(items, tsv, tmp_path):
    told = []
    store = split_features(tsv, tmp_path / "split", lambda *done: told.append(done))

    assert told == [(number, len(store)) for number in range(1, len(store) + 1)]
    vectors = store.vectors(["née.jpg", "17"])

    mean = items["17"].features.mean(axis=0)
    assert vectors.shape == (2, 6)
    assert np.allclose(vectors[1], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.allclose(store.vectors(normalize=False)[0], mean, atol=1e-6)


def test_unknown_ids_are_refused_with_the_nearest(tsv, tmp_path):
    store = split_features(tsv, tmp_path / "split")

    with pytest.raises(FourMError, match="Did you mean 'val/000002'"):
        store["val/00002"]
    assert store.get("nothing") is None
    with pytest.raises(ConfigError, match="1 ids, first 'x'"):
        FeatureStore.open(tmp_path / "split", ids=["17", "x"])
    assert list(FeatureStore.open(tmp_path / "split", ids=["17"])) == ["17"]
    with pytest.raises(ConfigError, match="does not exist"):
        FeatureStore.open(tmp_path / "nowhere")


def test_a_damaged_line_is_named_and_no_index_is_left(items, tsv, tmp_path):
    lines = tsv.read_text(encoding="utf-8").splitlines()
    cells = lines[1].split("\t")
    for broken in (cells[:5], [*cells[:3], "2", *cells[4:]], [*cells[:5], "!!!"]):
        tsv.write_text("\n".join([lines[0], "\t".join(broken)]), encoding="utf-8")
        with pytest.raises(FourMError, match="line 2"):
            split_features(tsv, tmp_path / "split")
    tsv.write_text(lines[0] + "\n" + lines[0], encoding="utf-8")
    with pytest.raises(ConfigError, match="'17' twice"):
        split_features(tsv, tmp_path / "split")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ConfigError, match=r"\.tsv, \.npz or \.pt"):
        split_features(tmp_path / "x.csv", tmp_path / "split")
    assert not (tmp_path / "split" / "index.json").exists()


def test_pickles_nan_and_wrong_boxes_are_refused(tmp_path):
    (tmp_path / "evil.npy").write_bytes(pickle.dumps({"features": 1}))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "other.npz", pixels=np.ones((2, 2)))

    for name in ("evil.npy", "object.npy", "other.npz", "missing.npz"):
        with pytest.raises(FourMError, match=name):
            read_features(tmp_path / name)
    with pytest.raises(FourMError, match="NaN"):
        Features(np.full((1, 2), np.nan, np.float32))
    with pytest.raises(ShapeError, match="boxes"):
        Features(np.ones((2, 3), np.float32), np.ones((1, 4), np.float32))
    with pytest.raises(ShapeError, match=r"\[R, E\]"):
        Features(np.ones(3, np.float32))


def test_the_command_line_splits_and_names_a_bad_file(items, tsv, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["split-features", str(tsv), "-o", str(tmp_path / "split"), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert stopped.value.code == 0
    assert shown == {"folder": str(tmp_path / "split"), "items": 3}
    store = FeatureStore.open(tmp_path / "split")
    assert all(same(store[key], item) for key, item in items.items())

    with pytest.raises(FourMError, match=r"none\.tsv' does not exist"):
        split_features(tmp_path / "none.tsv", tmp_path / "other")
    (tmp_path / "regions.csv").write_text("1,2")
    with pytest.raises(SystemExit) as stopped:
        main(["split-features", str(tmp_path / "regions.csv"), "-o", str(tmp_path / "other")])
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "expected a .tsv, .npz or .pt file of features, got 'regions.csv'" in " ".join(
        err.split()
    )
    assert not (tmp_path / "other").exists()


def test_every_published_form_gives_the_same_regions(tmp_path):
    """A folder of .npz, M3P's .pt with arrays, Oscar's .pt, both tables: alone and split."""
    import torch

    rng = np.random.default_rng(3)
    boxes = np.array([[0, 0, 50, 50], [25, 10, 75, 80]], np.float32)
    features = rng.normal(size=(2, 9)).astype(np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]
    wide = np.concatenate([features, boxes / 100, sides / 100], 1).astype(np.float32)
    code = lambda a: base64.b64encode(a.tobytes()).decode()  # noqa: E731
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "7.npz", x=features, bbox=boxes, image_h=100, image_w=100)
    (tmp_path / "m3p").mkdir()
    item = {"features": features, "boxes": boxes, "num_boxes": 2, "img_h": 100, "img_w": 100}
    torch.save(item, tmp_path / "m3p" / "7.pt")
    torch.save({7: torch.from_numpy(wide)}, tmp_path / "oscar.pt")
    (tmp_path / "up.tsv.1").write_text(f"7\t100\t100\t2\t{code(boxes)}\t{code(features)}\n")
    (tmp_path / "vinvl.tsv").write_text(f"7\t2\t{code(wide)}\n")

    for name in ("npz", "m3p", "oscar.pt", "up.tsv.1", "vinvl.tsv"):
        split_features(tmp_path / name, tmp_path / "split" / name)
        for place in (tmp_path / name, tmp_path / "split" / name):
            store = FeatureStore.open(place, preload=name == "npz")
            height, width = store["7"].size
            assert np.array_equal(store["7"].features, features)
            assert np.allclose(store["7"].boxes / [width, height, width, height], boxes / 100)
            assert same(read_place(store.where("7")), store["7"])


def test_uniters_files_give_the_regions_that_its_detector_was_sure_of(tmp_path):
    rng = np.random.default_rng(3)
    corners = np.sort(rng.uniform(0, 1, (40, 2, 2)), axis=1).reshape(40, 4).astype(np.float32)
    places = np.concatenate([corners, corners[:, 2:] - corners[:, :2]], axis=1)
    features = rng.normal(size=(40, 9)).astype(np.float16)
    for name, sure, kept in (("few", 3, 10), ("some", 25, 25)):
        confidence = np.where(np.arange(40) < sure, 0.9, 0.1)
        np.savez(tmp_path / f"{name}.npz", norm_bb=places, features=features, conf=confidence)

        item = FeatureStore.open(tmp_path)[name]

        assert item.features.shape == (kept, 9)
        assert np.array_equal(item.boxes, corners[:kept])
        assert item.size == (1, 1)


def test_a_store_without_features_says_what_is_there(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "b.jpg").write_bytes(b"x")

    with pytest.raises(ConfigError, match=r"found 2 \.jpg"):
        FeatureStore.open(tmp_path)
    (tmp_path / "empty.tsv").write_text("\n")
    with pytest.raises(ConfigError, match="holds no item"):
        FeatureStore.open(tmp_path / "empty.tsv")


def test_features_are_no_photos_and_index_says_so(tmp_path, items, capsys):
    from fourm_lite.embedders.load import load_embedder
    from fourm_lite.search.gallery import index_photos, open_index
    from fourm_lite.search.spaces import open_space

    np.savez(tmp_path / "17.npz", features=items["17"].features)
    space = open_space(load_embedder(lambda pictures: np.ones((len(pictures), 3))))
    index = open_index(tmp_path / "idx", space)

    with pytest.raises(ConfigError, match=r"1 \.npz.*--model mmt:"):
        index_photos([tmp_path], index, space)
