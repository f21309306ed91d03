"""Vectors as files: in order, with ids, and continued where a run was stopped."""

import json

import lance
import numpy as np
import pytest
from pyarrow import parquet

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.search.embed_files import embed_to_file
from fourm_lite.search.gallery import Ingest
from fourm_lite.search.vectors import open_vectors


def read(path):
    """The ids and the vectors of a file, whatever its form."""
    if path.suffix == ".npy":
        lines = path.with_name(path.stem + ".ids.jsonl").read_text().splitlines()
        return [json.loads(line)["id"] for line in lines], np.load(path)
    table = (
        parquet.read_table(path) if path.suffix == ".parquet" else lance.dataset(path).to_table()
    )
    return table["id"].to_pylist(), np.stack(table["vector"].to_pylist())


@pytest.mark.parametrize("ending", ["npy", "parquet", "lance"])
def test_vectors_of_photos_stand_in_the_order_of_their_list(tmp_path, space, pack, ending):
    out = tmp_path / f"v.{ending}"

    done = embed_to_file([pack / "captions.jsonl"], out, space, Ingest(batch_size=5))

    ids, vectors = read(out)
    lines = (pack / "captions.jsonl").read_text().splitlines()
    assert ids == [json.loads(line)["id"] for line in lines]
    assert vectors.shape == (done.rows, space.width)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not out.with_name(out.name + ".draft").exists()


def test_a_file_that_was_written_is_searched_by_its_ids(tmp_path, space, pack):
    for ending in ("npy", "parquet"):
        out = tmp_path / f"v.{ending}"
        embed_to_file([pack / "captions.jsonl"], out, space)
        file = open_vectors(out)
        assert file.ids == read(out)[0]
        assert list(file.columns) == ["uri"]


def test_ids_of_another_number_are_refused(tmp_path, space, pack):
    embed_to_file([pack / "captions.jsonl"], tmp_path / "v.npy", space)
    names = tmp_path / "v.ids.jsonl"
    names.write_text("\n".join(names.read_text().splitlines()[1:]))

    with pytest.raises(ShapeError, match="20 vectors and 19 'id'"):
        open_vectors(tmp_path / "v.npy")


def test_texts_and_items_have_the_vectors_of_queries(tmp_path, space):
    texts = ["a red circle", "two dogs"]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    (tmp_path / "i.jsonl").write_text("\n".join(json.dumps({"caption": t}) for t in texts))

    for name in ("t.txt", "i.jsonl"):
        embed_to_file([tmp_path / name], tmp_path / "v.npy", space)
        ids, vectors = read(tmp_path / "v.npy")
        assert [i.split("/")[1] for i in ids] == ["1", "2"]
        assert np.allclose(vectors, space.embed_items([{"caption": t} for t in texts]), atol=1e-5)


def test_what_cannot_be_embedded_leaves_nothing_behind(tmp_path, space):
    (tmp_path / "broken.jpg").write_bytes(b"?")

    with pytest.raises(ConfigError, match="nothing to embed"):
        embed_to_file([tmp_path / "broken.jpg"], tmp_path / "v.npy", space)

    assert [path.name for path in tmp_path.iterdir()] == ["broken.jpg"]


def test_a_run_that_was_stopped_goes_on_and_embeds_nothing_twice(tmp_path, space, pack):
    def stop(report, total):
        assert total == 20
        if report.seen >= 10:
            raise KeyboardInterrupt

    how, out = Ingest(batch_size=5, commit_rows=5), tmp_path / "v.npy"
    with pytest.raises(KeyboardInterrupt):
        embed_to_file([pack / "captions.jsonl"], out, space, how, progress=stop)
    told = []
    embed_to_file(
        [pack / "captions.jsonl"], out, space, how, progress=lambda report, _: told.append(report)
    )

    embed_to_file([pack / "captions.jsonl"], tmp_path / "w.npy", space, how)
    assert told[-1].unchanged >= 5
    assert read(out)[0] == read(tmp_path / "w.npy")[0]
    assert np.array_equal(read(out)[1], read(tmp_path / "w.npy")[1])


def test_several_kinds_and_other_endings_are_refused(tmp_path, space, pack):
    (tmp_path / "t.txt").write_text("a dog")

    with pytest.raises(ConfigError, match="one kind"):
        embed_to_file([tmp_path / "t.txt", pack / "images"], tmp_path / "v.npy", space)
    with pytest.raises(ConfigError, match="rename"):
        embed_to_file([pack / "images"], tmp_path / "v.csv", space)
