"""Photos of any source, shapes, figures, stages and the growth of a model, each by itself."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from growth_pack import WORDS
from tiny import tiny_batch, tiny_model
from tiny_pipeline import photo

from fourm_lite.add_embedding.extraction import (
    extract,
    list_photos,
    read_listing,
    read_vectors,
    source_paths,
)
from fourm_lite.add_embedding.figures import tokenizer_metrics
from fourm_lite.add_embedding.model_folder import grow, new_modality
from fourm_lite.add_embedding.options import Options
from fourm_lite.add_embedding.tokenizer import tokenizer_shape
from fourm_lite.data.linear import ridge_from_words
from fourm_lite.errors import ConfigError, UnknownNameError
from fourm_lite.modalities.pictures import open_rgb
from fourm_lite.photos.records import list_records
from fourm_lite.training.staged import Stages


def quiet(what, done, total):
    """Nobody is told."""


def png(i):
    buffer = io.BytesIO()
    photo(i).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, count):
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            for ending, data in (("png", png(i)), ("txt", WORDS[i % 3].encode())):
                member = tarfile.TarInfo(f"{i:03d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_parquet(path, count):
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "id": [f"p{i}" for i in range(count)],
        "image": [{"bytes": png(i), "path": None} for i in range(count)],
        "caption": [WORDS[i % 3] for i in range(count)],
    }
    parquet.write_table(pa.table(columns), path)


@pytest.mark.parametrize(("name", "write"), [("a.tar", write_tar), ("a.parquet", write_parquet)])
def test_pictures_of_containers_can_be_read_again(tmp_path, name, write):
    write(tmp_path / name, 32)

    made = list_photos(source_paths(tmp_path / name), Options(), tmp_path / "work", quiet)
    listing = read_listing(tmp_path / "work")

    assert listing == made
    assert len(listing.part("train")) == 27
    assert len(listing.part("held_out")) == 5
    record = min(listing.records, key=lambda r: r.id)
    assert record.captions == (WORDS[0],)
    assert open_rgb(record.image.read_bytes()).tobytes() == photo(0).tobytes()


def test_what_a_list_says_is_read_as_training_reads_it(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = [{"file": f"{i}.png", "captions": ["a dog", None, " "]} for i in range(40)]
    for i, row in enumerate(rows):
        photo(i).save(folder / row["file"])
    rows[3]["captions"] = [3]
    rows[4]["captions"] = {"en": "a dog"}
    (folder / "captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    made = list_photos(source_paths(folder), Options(), tmp_path / "work", quiet)

    trained = list_records(folder)
    assert made.skipped == trained.skipped
    assert len(made.skipped) == 2
    assert {r.captions for r in made.records} == {("a dog",)}
    assert len(made.records) + 2 == 40


def test_named_splits_are_learned_and_measured_on(tmp_path):
    lines = [
        f'{{"id": "{i}", "file": "{i}.png", "captions": "x", "split": "{s}"}}'
        for i, s in enumerate(["train"] * 30 + ["val"] * 6 + ["test"] * 4)
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    paths = source_paths(tmp_path)

    usual = list_photos(paths, Options(), tmp_path / "a", quiet)

    assert (len(usual.part("train")), len(usual.part("held_out"))) == (30, 6)
    with pytest.raises(UnknownNameError, match=r"'tset'.*test"):
        list_photos(paths, Options(held_out="tset"), tmp_path / "b", quiet)


def test_written_shards_are_not_computed_again(tmp_path, pack, network, monkeypatch):
    from fourm_lite.add_embedding import extraction
    from fourm_lite.embedders.load import load_embedder

    monkeypatch.setattr(extraction, "SHARD", 10)
    seen = []

    def net(pictures):
        seen.append(len(pictures))
        if sum(seen) > 25 and len(seen) < 99:
            raise KeyboardInterrupt
        return network(pictures)

    listing = list_photos(source_paths(pack), Options(), tmp_path / "l", quiet)
    with pytest.raises(KeyboardInterrupt):
        extract(listing, load_embedder(net), tmp_path / "v", tell=quiet)
    done = len(list((tmp_path / "v").glob("shard-*.npz")))
    seen[:] = [0] * 99
    extract(listing, load_embedder(net), tmp_path / "v", tell=quiet)

    assert done == 2
    assert sum(seen) == 40 - 10 * done
    found = read_vectors(listing, tmp_path / "v")
    assert [s.reason for s in found.skipped if "none" in s.reason]
    np.testing.assert_allclose(
        found.values[0], network([open_rgb(found.records[0].image.read_bytes())])[0], atol=1e-6
    )


@pytest.mark.parametrize(
    ("count", "width", "expected"),
    [(5586, 1280, (16, 1024, 8)), (300, 1280, (16, 32, 8)), (40, 48, (16, 16, 1)),
     (3000, 6, (6, 512, 1))],
)  # fmt: skip
def test_the_code_books_fit_the_photos(count, width, expected):
    shape = tokenizer_shape(count, width, Options())

    assert (shape.tokens, shape.codebook_size, shape.part) == expected


def test_more_tokens_than_components_are_refused():
    with pytest.raises(ConfigError, match="give fewer tokens"):
        tokenizer_shape(100, 8, Options(tokens=9))
    with pytest.raises(ConfigError, match="code book of 512"):
        tokenizer_shape(100, 8, Options(codebook_size=512))


def test_a_tokenizer_that_loses_nothing_has_perfect_figures():
    class Lossless:
        vocab_size = 4
        input_mean = torch.zeros(6)

        def tokenize(self, x):
            self.kept = x
            return torch.arange(len(x))[:, None] % 4

        def detokenize(self, tokens):
            return self.kept

    values = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)

    found = tokenizer_metrics(Lossless(), values, values)

    assert found.pop("perplexity") == 4
    assert all(value == 1 for value in found.values()), found


def test_ridge_from_words_finds_what_words_mean():
    rng = np.random.default_rng(0)
    meaning = rng.normal(size=(4, 8)).astype(np.float32)
    words = np.array(["dog", "sea", "red", "car"])
    pairs = rng.integers(0, 4, (200, 2))
    vectors = meaning[pairs].mean(axis=1)
    texts = [" ".join(words[p]) for p in pairs]

    made = ridge_from_words(texts, vectors, ["sea", "a car"], penalty=0.1)

    for row, wanted in zip(made, meaning[[1, 3]], strict=True):
        assert row @ wanted / np.linalg.norm(row) / np.linalg.norm(wanted) > 0.95
    assert not ridge_from_words(["only once"], vectors[:1], ["x"]).any()


@pytest.mark.parametrize("style", ["gelu", "swiglu", "registers"])
def test_a_grown_model_says_of_old_modalities_what_it_said(style):
    model = tiny_model(style)
    entry = new_modality("net", 4, 9, "")

    grown = grow(model, entry, seed=1)

    batch = tiny_batch(["rgb@16", "caption"])
    with torch.no_grad():
        before, after = model.encode(batch).output, grown.encode(batch).output
    assert torch.equal(before, after)
    assert grown.can(["net", "caption"], "net")
    twin, new = grown.decoder_embeddings["tok_global"], grown.decoder_embeddings["net"]
    assert torch.equal(twin.pos_emb, new.pos_emb)
    with pytest.raises(ConfigError, match="already has 'net'"):
        grow(grown, entry)


def test_a_changed_setting_makes_its_stage_and_the_later_ones_anew(tmp_path):
    made = []

    def stage(name):
        return lambda place: made.append((name, place.is_dir())) or {"n": len(made)}

    def run(second):
        stages = Stages.open(tmp_path / "out")
        facts = [stages.run(n, {"x": s}, stage(n)) for n, s in (("a", 1), ("b", second), ("c", 3))]
        return facts, stages.skipped

    first, again, changed = run(2), run(2), run(9)

    assert again == (first[0], ["a", "b", "c"])
    assert changed[1] == ["a"]
    assert made == [(n, True) for n in ("a", "b", "c", "b", "c")]
