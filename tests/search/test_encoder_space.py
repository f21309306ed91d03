"""Means over an encoder's tokens: what is thought first, what cannot be reranked, what is measured.

The models are tiny ones of the forks, which predict no global embedding.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_aion import save_aion
from tiny_terramind import (
    INPUTS,
    save_terramind_tokenizers,
    save_tile,
    save_tiles,
    save_words,
    terramind,
    terramind_weights,
)

from fourm_lite import FourMPipeline, open_space
from fourm_lite.cli import main
from fourm_lite.embedders.terramind_files import convert_terramind
from fourm_lite.errors import ConfigError
from fourm_lite.search.engine import Search


@pytest.fixture(scope="module")
def earth(tmp_path_factory):
    """A TerraMind with its tokenizers."""
    root = tmp_path_factory.mktemp("earth") / "TERRAMIND"
    convert_terramind(terramind_weights(), root)
    save_terramind_tokenizers(root / "tokenizers")
    return root


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    return save_aion(tmp_path_factory.mktemp("sky") / "AION")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A list of items, each a map of heights."""
    pytest.importorskip("rasterio")
    root = tmp_path_factory.mktemp("places")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(4):
        heights = rng.normal(700, 900, (1, 32, 32)).astype(np.float32)
        tile = save_tile(root / f"{number}.tif", heights)
        rows.append({"id": f"p{number}", "DEM": str(tile)})
    (root / "places.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root / "places.jsonl"


@pytest.fixture
def run(capsys):
    """A command: what it answers in JSON, or the words of its error."""

    def ask(*words, code=0):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        told = capsys.readouterr()
        assert stopped.value.code == code, told.err
        if code:
            return " ".join(told.err.split())
        return json.loads(told.out) if "--json" in words else None

    return ask


def test_what_is_thought_first_counts_in_files_indexes_and_their_queries(
    earth, places, tmp_path, run
):
    items = [{"DEM": places.parent / f"{number}.tif"} for number in range(4)]
    want = FourMPipeline.from_pretrained(earth).embed(items, think=["LULC"])
    common = ["--model", earth, "--json", "-"]

    run("embed", places, "-o", tmp_path / "v.npy", "--think", "LULC", *common)
    run("index", places, "-o", tmp_path / "IDX", "--think", "LULC", *common)
    file = f"DEM={places.parent / '2.tif'}"
    found = run("search", tmp_path / "IDX", "--given", file, "-k", 1, "--json", "-")["hits"][0]

    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), want, atol=1e-5)
    assert found["id"] == "p2"
    assert found["score"] == pytest.approx(1, abs=1e-4)
    info = run("index", "info", tmp_path / "IDX", "--json", "-")["manifest"]
    assert info["space"] == "terramind:encoder+tok_lulc@224"
    assert info["extra"]["think"] == ["tok_lulc@224"]
    vectors = ["search", tmp_path / "v.npy", "--given", file, *common]
    assert run(*vectors, "--think", "LULC")["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert run(*vectors)["hits"][0]["score"] < 0.999
    with pytest.raises(ConfigError, match="holds vectors of the space"):
        Search.open(tmp_path / "IDX", open_space(str(earth)))


def test_a_thought_that_nothing_reads_is_refused(earth, sky, places, tmp_path, run):
    words = ["embed", places, "-o", tmp_path / "v.npy"]

    assert "changes nothing" in run(*words, "--model", earth, "--think", "NDVI", code=2)
    assert "no target 'S9'" in run(*words, "--model", earth, "--think", "S9", code=2)
    assert "leave out `think`" in run(*words, "--model", "mini", "--think", "depth", code=2)
    pipe = FourMPipeline.from_pretrained(sky)
    vectors = pipe.embed([{"flux_g": 2.0}, {"flux_g": 2.0, "z": 0.1}], think=["z"])
    assert vectors.shape == (2, 32)


def test_a_thought_is_read_by_targets_and_not_written(earth, places, tmp_path, run):
    file = f"DEM={places.parent / '0.tif'}"
    words = ["generate", "-m", earth, "-i", file, "--json", "-"]
    pipe = FourMPipeline.from_pretrained(earth)
    heights = {"DEM": places.parent / "0.tif"}

    found = run(*words, "-t", "NDVI", "--think", "LULC", "-o", tmp_path / "a")
    chain = pipe.generate(heights, ["LULC", "NDVI"])
    alone = pipe.generate(heights, ["NDVI"])

    assert list(found["outputs"]) == ["tok_ndvi@224"]
    made = pipe.generate(heights, ["NDVI"], think=["LULC"])["tok_ndvi@224"].tokens.tolist()
    assert made == chain["tok_ndvi@224"].tokens.tolist()
    assert made != alone["tok_ndvi@224"].tokens.tolist()
    again = run(*words, "-t", "LULC", "--think", "LULC", "-o", tmp_path / "b", code=2)
    assert "generates a modality once" in again


def test_reranking_by_likelihood_is_refused_in_a_sentence(earth, sky, places, tmp_path, run):
    run("index", places, "-o", tmp_path / "IDX", "--model", earth)
    (tmp_path / "sky.jsonl").write_text(json.dumps({"id": "g", "flux_g": 2.0}))
    run("index", tmp_path / "sky.jsonl", "-o", tmp_path / "SKY", "--model", sky)

    for index, value in (("IDX", f"DEM={places.parent / '0.tif'}"), ("SKY", "flux_g=2")):
        words = ["search", tmp_path / index, "--given", value, "--rerank", 2]
        assert "means over an encoder's tokens have no codes" in run(*words, code=2)
    search = Search.open(tmp_path / "IDX")
    query = {"DEM": places.parent / "0.tif"}
    turned = search(query, rerank=4, reranker=lambda item, hits: -np.asarray(hits.scores))
    assert turned.ids[-1] == "p0"


def test_captions_and_classes_are_measured_where_the_model_reads_them(earth, tmp_path, run):
    pytest.importorskip("rasterio")
    tiles = save_tiles(tmp_path / "TILES", count=3)
    rows = [
        {"id": f"{name}{i}", "file": f"{name}/{i}.tif", "captions": [f"a {name}"], "split": "test"}
        for name in ("forest", "water")
        for i in range(3)
    ]
    (tiles / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = terramind(inputs=("untok_sen2l2a@224", "caption"), outputs=("caption",))
    convert_terramind(dict(model.state_dict()), tmp_path / "V01")
    words = ["a", "water", "forest"]
    save_words(tmp_path / "V01" / "tokenizers" / "text" / "tokenizer.json", words, 30000)

    asked = ["evaluate", "retrieval", "--data", tiles, "--json", "-", "--model"]
    found = run(*asked, tmp_path / "V01")
    assert found["protocol"]["photos"] == 6
    assert 0 <= found["text_to_image"]["R@1"] <= 1
    assert "reads no 'caption'" in run(*asked, earth, code=2)
    assert "have no codes" in run(*asked, tmp_path / "V01", "--rerank", 3, code=2)
    (tiles / "captions.jsonl").unlink()
    same = run("evaluate", "same-class", "--data", tiles, "--split", "all", "-m", earth,
               "--json", "-")  # fmt: skip
    assert same["mAP"] == 1.0


def test_maps_that_a_tokenizer_reads_are_given_as_files(tmp_path, run):
    pytest.importorskip("rasterio")
    model = terramind(inputs=(*INPUTS, "tok_ndvi@224"))
    convert_terramind(dict(model.state_dict()), tmp_path / "EARTH")
    save_terramind_tokenizers(tmp_path / "EARTH" / "tokenizers")
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 10, (1, 224, 224)).astype("uint8")
    green = rng.uniform(-0.2, 0.9, (1, 224, 224)).astype("float64")
    files = {"LULC": save_tile(tmp_path / "LULC" / "0.tif", classes),
             "NDVI": save_tile(tmp_path / "NDVI" / "0.tif", green)}  # fmt: skip
    pipe = FourMPipeline.from_pretrained(tmp_path / "EARTH")

    read = pipe.read(files)

    tokenizers = {n: pipe.tokenizers.vq(pipe.model.modality(f"tok_{n.lower()}@224")) for n in files}
    with torch.inference_mode():
        labels = tokenizers["LULC"].tokenize_flat(torch.from_numpy(classes.astype(np.int64)))
        values = torch.from_numpy((green - 0.327) / 0.322).float()[None]
        indices = tokenizers["NDVI"].tokenize_flat(values)
    assert torch.equal(read["tok_lulc@224"].value, labels)
    assert torch.equal(read["tok_ndvi@224"].value, indices)
    both = pipe.embed(files)
    assert not np.allclose(both, pipe.embed({"NDVI": files["NDVI"]}), atol=1e-4)
    for name in ("LULC", "NDVI"):  # a file alone: the folder that it lies in says what it is
        out = tmp_path / f"{name}.npy"
        run("embed", tmp_path / name, "-o", out, "--model", tmp_path / "EARTH")
        np.testing.assert_allclose(np.load(out)[0], pipe.embed({name: files[name]}), atol=1e-5)
    words = ["generate", "-m", tmp_path / "EARTH", "-t", "NDVI", "-o", tmp_path / "o"]
    run(*words, "-i", f"LULC={files['LULC']}")
    two = save_tile(tmp_path / "two.tif", np.zeros((2, 32, 32)))
    assert "got 2" in run(*words, "-i", f"LULC={two}", code=2)
