"""Crops, readers, token shards and pseudo-labels: round trips, alignment, and clear refusals."""

from __future__ import annotations

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_shards import write_tokens

from fourm_lite.data.label_rows import read_labels
from fourm_lite.data.labellers import (
    EdgeLabeller,
    GivenMaps,
    MetadataLabeller,
    NetworkLabeller,
    OnnxTeacher,
    PaletteLabeller,
    unpack_edges,
)
from fourm_lite.data.loader import Component, MaskedStream, Orders
from fourm_lite.data.pseudolabel import LabelRun, claim_labels, pseudolabel
from fourm_lite.data.shards import (
    AlignedSamples,
    aligned,
    caption_writer,
    read_tars,
    read_tokens,
    write_tar,
)
from fourm_lite.errors import ConfigError, FourMError, ShapeError
from fourm_lite.modalities.crops import (
    CropPolicy,
    center_crop,
    crops,
    cut_image,
    cut_labels,
    cut_pixels,
    from_settings,
    to_settings,
)
from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.photos.records import Record, read_caption_list
from fourm_lite.tokenization.vq.randomness import TorchSource
from fourm_lite.tokenization.words.spans import Marks


@pytest.fixture
def photos(tmp_path):
    """Five small pictures with a caption list beside them."""
    from PIL import Image

    rng = np.random.default_rng(0)
    lines = []
    for i in range(5):
        pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        split = "val" if i == 4 else "train"
        lines.append(
            {"id": f"p{i}", "file": f"{i}.png", "captions": [f"photo {i}"], "split": split}
        )
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_caption_list_gives_its_split(photos):
    records = read_caption_list(photos, split="train")

    assert [r.id for r in records] == ["p0", "p1", "p2", "p3"]
    assert records[2].captions == ("photo 2",)
    assert records[0].open_image().size == (60, 40)


def test_parquet_holds_the_same_and_may_hold_the_bytes(photos, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    data = (photos.parent / "1.png").read_bytes()
    table = {"id": ["a"], "image": [{"bytes": data, "path": None}], "text": ["one caption"]}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")

    (record,) = read_caption_list(tmp_path / "x.parquet", image_key="image", captions_key="text")

    assert record.captions == ("one caption",)
    assert record.open_image().size == (60, 40)


def test_a_missing_key_is_named_with_its_row(photos):
    with pytest.raises(FourMError, match=r"row 1 has no key 'caption'.*Did you mean 'captions'"):
        read_caption_list(photos, image_key="caption")


def test_a_broken_picture_is_named():
    with pytest.raises(FourMError, match="'x'"):
        Record("x", b"no picture").open_image()


def test_tars_are_read_in_lock_step_and_must_agree(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.jpg", b"1"), ("y.jpg", b"2")])
    write_tar(tmp_path / "b.tar", [("x.npy", b"3"), ("y.npy", b"4")])
    write_tar(tmp_path / "c.tar", [("x.npy", b"3"), ("z.npy", b"4")])
    write_tar(tmp_path / "d.tar", [("x.npy", b"3")])

    samples = list(read_tars({"rgb": tmp_path / "a.tar", "tok": tmp_path / "b.tar"}))

    assert [s.key for s in samples] == ["x", "y"]
    assert samples[1].files == {"rgb": b"2", "tok": b"4"}
    with pytest.raises(FourMError, match="disagree"):
        list(read_tars({"rgb": tmp_path / "a.tar", "tok": tmp_path / "c.tar"}))
    with pytest.raises(FourMError, match="length"):
        list(read_tars({"rgb": tmp_path / "a.tar", "tok": tmp_path / "d.tar"}))


def test_crops_round_trip_and_the_first_is_the_centre():
    drawn = crops(50, 80, 4, CropPolicy(size=32), np.random.default_rng(1))

    assert drawn[0] == center_crop(50, 80, 32)
    assert from_settings(to_settings(drawn), 32) == drawn
    for crop in drawn:
        assert 0 <= crop.top <= crop.top + crop.height <= 50
        assert 0 <= crop.left <= crop.left + crop.width <= 80
    with pytest.raises(ShapeError):
        from_settings(np.zeros((2, 4)))


def test_labels_and_pixels_are_cut_at_one_place():
    from PIL import Image

    labels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    image = Image.fromarray(labels.repeat(4, axis=0).repeat(4, axis=1))  # 32 x 32
    crop = from_settings(np.array([[4, 8, 16, 16, 1]]), 4)[0]

    pixels = np.asarray(cut_image(image, crop, nearest=True))

    assert np.array_equal(pixels, cut_labels(labels, crop, of=(32, 32), size=4))
    assert np.array_equal(pixels[0], labels[1, 2:6][::-1])


@pytest.mark.parametrize("settings", [[3, 8, 90, 120, 1], [0, 0, 150, 200, 0], [40, 60, 31, 47, 0]])
def test_bytes_are_cut_as_pictures_are(settings):
    from PIL import Image

    rough = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    image = Image.fromarray(rough).resize((200, 150), Image.Resampling.BICUBIC)
    crop = from_settings(np.array([settings]), 64)[0]

    made = cut_pixels(image, crop)

    cut = np.asarray(cut_image(image, crop)).astype(int)
    off = abs(made.permute(1, 2, 0).numpy().astype(int) - cut)
    rim = 5 if min(crop.height, crop.width) < 64 else 0  # enlarged, Pillow sees what lies around
    assert made.is_contiguous()
    assert off[rim : 64 - rim, rim : 64 - rim].max() <= 2
    assert off.mean() < 0.5
    with pytest.raises(ShapeError, match="leaves"):
        cut_pixels(image, from_settings(np.array([[0, 0, 151, 200, 0]]), 64)[0])


def test_tokens_round_trip_in_16_bits(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 16384, (5, 2, 9))
    ids = [f"n{i}" for i in range(5)]

    write_tokens(tmp_path, "tok_x", ids, tokens, shard_size=2)
    found, values = read_tokens(tmp_path, "tok_x")

    assert found == ids
    assert np.array_equal(values, tokens)
    assert len(list((tmp_path / "tok_x").glob("*.tar"))) == 3
    first = next(read_tars({"t": tmp_path / "tok_x" / "shard-00000.tar"}))
    assert np.load(io.BytesIO(first.files["t"])).dtype == np.int16


def test_values_are_put_in_the_order_asked_for():
    assert aligned((["a", "b"], np.array([1, 2])), ["b", "a"]).tolist() == [2, 1]
    with pytest.raises(FourMError, match="'c'"):
        aligned((["a"], np.array([1])), ["c"])


def labellers(records):
    maps = {r.id: np.zeros((8, 8), dtype=np.uint8) for r in records}
    return [EdgeLabeller(), PaletteLabeller(3), MetadataLabeller(), GivenMaps(maps, 8)]


def test_labels_made_in_two_goes_are_those_of_one(photos, tmp_path):
    records = read_caption_list(photos)
    run = LabelRun(num_crops=2, policy=CropPolicy(size=16), shard_size=2)
    heard = []

    pseudolabel(records, labellers(records), tmp_path / "one", run=run)
    pseudolabel(records, labellers(records)[:1], tmp_path / "two", run=run)
    (tmp_path / "two" / "canny_edge" / "shard-00001.npz").unlink()
    pseudolabel(
        records, labellers(records), tmp_path / "two", run=run,
        progress=lambda done, total: heard.append((done, total)),
    )  # fmt: skip

    assert heard == [(2, 5), (4, 5), (5, 5)]
    for name in ("canny_edge", "color_palette", "metadata", "semseg", "crop_settings"):
        ids, values = read_labels(tmp_path / "one", name)
        again, others = read_labels(tmp_path / "two", name)
        assert ids == again == [r.id for r in records]
        assert np.array_equal(values, others)
        assert values.shape[:2] == (5, 2)
    assert unpack_edges(read_labels(tmp_path / "one", "canny_edge")[1]).shape == (5, 2, 16, 16)


def test_a_folder_of_labels_belongs_to_its_records(photos, tmp_path):
    records = read_caption_list(photos)
    run = LabelRun(policy=CropPolicy(size=16))
    pseudolabel(records, [EdgeLabeller()], tmp_path / "l", run=run)

    with pytest.raises(ConfigError, match="another folder"):
        pseudolabel(records[:2], [EdgeLabeller()], tmp_path / "l", run=run)
    with pytest.raises(FourMError, match="canny_edge"):
        read_labels(tmp_path / "l", "depth")


def network(spec):
    return NetworkLabeller("net", lambda pictures: np.zeros((len(pictures), 3)), spec=spec)


CHANGES = {
    "network": (network("timm:a"), network("timm:b")),
    "map size": (GivenMaps({}, 8), GivenMaps({}, 9)),
    "formula": (EdgeLabeller(), EdgeLabeller(sigma=2.0)),
    "output": tuple(OnnxTeacher(Path("a.onnx"), {"net": output}) for output in "xy"),
}


@pytest.mark.parametrize("labellers", CHANGES.values(), ids=CHANGES)
def test_a_label_belongs_to_what_made_it(tmp_path, labellers):
    first, other = labellers
    claim_labels(tmp_path, [first])
    claim_labels(tmp_path, [first])

    with pytest.raises(ConfigError, match="give it another name"):
        claim_labels(tmp_path, [other])


def test_another_file_of_the_same_name_is_another_teacher(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"1")
    claim_labels(tmp_path / "l", [OnnxTeacher(path, {"net": "x"})])
    claim_labels(tmp_path / "l", [OnnxTeacher(path, {"net": "x", "more": "y"}, threads=2)])
    path.write_bytes(b"2")

    with pytest.raises(ConfigError, match="give it another name"):
        claim_labels(tmp_path / "l", [OnnxTeacher(path, {"net": "x"})])


def test_a_run_with_another_teacher_is_refused_and_older_labels_go_on(photos, tmp_path):
    records = read_caption_list(photos)
    run = LabelRun(policy=CropPolicy(size=16), shard_size=2)
    pseudolabel(records, [EdgeLabeller()], tmp_path, run=run)
    other = [EdgeLabeller(sigma=2.0)]

    with pytest.raises(ConfigError, match="canny_edge"):
        pseudolabel(records, other, tmp_path, run=run)
    (tmp_path / "canny_edge" / "source.json").unlink()
    pseudolabel(records, other, tmp_path, run=run)
    assert not (tmp_path / "canny_edge" / "source.json").exists()


MODALITIES = {
    "rgb": Modality(
        name="rgb", kind="pixels", channels=3, patch_size=8, grid=(2, 2), max_tokens=4,
        directions=IN,
    ),
    "map": Modality(name="map", kind="grid", vocab_size=9, grid=(2, 2), max_tokens=4),
    "caption": Modality(name="caption", kind="sequence", vocab_size=60, max_tokens=8),
}  # fmt: skip
MARKS = Marks(pad=0, eos=1, sentinels=tuple(range(2, 20)))


def stream_of(photos, seed=0):
    records = read_caption_list(photos)
    settings = np.tile(np.array([[0, 0, 40, 40, 0], [0, 0, 40, 40, 1]]), (5, 1, 1))
    tokens = np.arange(5 * 2 * 4).reshape(5, 2, 4) % 9
    samples = AlignedSamples(
        records=records,
        tokens={"map": tokens},
        settings=settings,
        texts={"caption": caption_writer(records, lambda text: [30 + len(text), 31])},
        pixels={"rgb": 16},
    )
    components = [
        Component(inputs={"rgb": 1, "caption": 1}, targets={"map": 1}, input_budget=(2, 6),
                  target_budget=(1, 4), batch_size=2),
        Component(inputs={"map": 1}, targets={"caption": 1}, input_budget=(1, 3),
                  target_budget=(4, 8), batch_size=3),
    ]  # fmt: skip
    return MaskedStream({"train": samples}, components, MODALITIES, MARKS, seed=seed)


def test_a_batch_follows_from_its_step_alone(photos):
    forward, direct = stream_of(photos), stream_of(photos)

    batches = [forward.batch(s) for s in range(6)]
    again = direct.batch(5)

    for name, tokens in batches[5].batch.items():
        for field in ("value", "inputs", "targets", "groups"):
            assert torch.equal(getattr(tokens, field), getattr(again.batch[name], field))
    assert stream_of(photos).fingerprint == forward.fingerprint
    assert stream_of(photos, seed=1).fingerprint != forward.fingerprint


def test_budgets_hold_and_nothing_is_both_given_and_asked_for(photos):
    stream = stream_of(photos)

    for step in range(20):
        made = stream.batch(step)
        given = sum(t.inputs.sum(dim=1) for t in made.batch.values())
        assert int(given.max()) == made.input_budget <= 6
        for tokens in made.batch.values():
            assert not (tokens.inputs & tokens.targets).any()


def test_processes_share_a_pass_without_overlap():
    orders = Orders(12, 0)

    seen = [orders[(step * 2 + slot) * 3 + rank]
            for step in range(2) for slot in range(2) for rank in range(3)]  # fmt: skip

    assert sorted(seen) == list(range(12))
    assert [orders[12 + i] for i in range(12)] != [orders[i] for i in range(12)]


def test_threads_may_share_an_order():
    class Slow(dict):
        """Lets other threads in between the look and the taking."""

        def __contains__(self, key):
            found = super().__contains__(key)
            time.sleep(1e-4)
            return found

    order = Orders(3, seed=0)
    want = [order[place] for place in range(300)]
    shared = Orders(3, seed=0)
    shared._passes = Slow()

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(shared.__getitem__, range(300)))

    assert got == want


def test_threads_draw_the_components_of_a_step_once(photos):
    class Slow(list):
        """Lets other threads in between the look and the taking."""

        def __len__(self):
            found = super().__len__()
            time.sleep(1e-3)
            return found

    want = [stream_of(photos).turn(step) for step in range(16)]
    stream = stream_of(photos)
    stream._turns = Slow()

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(stream.turn, range(16)))

    assert got == want
    assert len(stream._turns) == 1


def test_both_components_are_drawn_and_counted_in_turn(photos):
    stream = stream_of(photos)

    turns = [stream.turn(s) for s in range(50)]

    for which in (0, 1):
        assert [n for w, n in turns if w == which] == list(range(sum(w == which for w, _ in turns)))
        assert any(w == which for w, _ in turns)


def test_a_crop_is_drawn_once_for_all_modalities(photos):
    samples = stream_of(photos).samples["train"]

    plain = samples.at(0, 0, ["rgb", "map"], TorchSource.seeded(0))
    mirrored = samples.at(0, 1, ["rgb", "map"], TorchSource.seeded(0))

    torch.testing.assert_close(mirrored["rgb"], plain["rgb"].flip(-1))
    assert plain["map"].tolist() == [0, 1, 2, 3]
    assert mirrored["map"].tolist() == [4, 5, 6, 7]


def test_tables_of_different_photos_are_refused(photos):
    with pytest.raises(ShapeError, match="records"):
        AlignedSamples(records=read_caption_list(photos), tokens={"map": np.zeros((3, 1, 4))})
