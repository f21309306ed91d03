"""AION-1 and TerraMind through the verbs of everything else, by the name of a folder."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_aion import save_aion
from tiny_terramind import save_terramind_tokenizers, save_tiles, save_words, terramind_weights
from tiny_terramind import terramind as terramind_model
from verbs import exit_code

from fourm_lite import FourMPipeline, open_space
from fourm_lite.backbone.merged import MergedViT
from fourm_lite.embedders.terramind_files import convert_terramind
from fourm_lite.errors import ConfigError, FourMError, ShapeError, UnknownNameError
from fourm_lite.modalities.codecs import codec_of, tile_codec
from fourm_lite.modalities.forks import AION_MODALITIES, STATISTICS, TERRAMIND_MODALITIES
from fourm_lite.pipeline.sky_values import tokens_of, value_of_tokens
from fourm_lite.pipeline.terramind import Chain
from fourm_lite.search.encoder_space import placed
from fourm_lite.tokenization.aion.load import load_codecs


@pytest.fixture(scope="module")
def terramind(tmp_path_factory):
    root = tmp_path_factory.mktemp("terramind") / "TERRAMIND"
    convert_terramind(terramind_weights(), root)
    save_terramind_tokenizers(root / "tokenizers")
    return root


@pytest.fixture(scope="module")
def aion(tmp_path_factory):
    return save_aion(tmp_path_factory.mktemp("aion") / "AION")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    pytest.importorskip("rasterio")
    return save_tiles(tmp_path_factory.mktemp("tiles") / "TILES")


def pictures(size=(64, 96), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(c, *size, generator=generator) for n, c in (("S2L2A", 12), ("DEM", 1))}


@pytest.mark.parametrize("size", [(64, 96), (32, 32)])
def test_a_chain_by_the_pipeline_is_the_chain_of_its_own_class(terramind, size):
    pipe, given = FourMPipeline.from_pretrained(terramind), pictures(size)

    made = pipe.generate(given, ["LULC", "NDVI"], seed=5)
    chain = Chain(pipe.model, ["LULC", "NDVI"]).tokens(
        {n: x[None] for n, x in given.items()}, seed=5
    )

    for name, key in (("LULC", "tok_lulc@224"), ("NDVI", "tok_ndvi@224")):
        assert made[key].tokens.tolist() == chain[name][0].tolist()
    assert made["tok_lulc@224"].value.shape == size
    assert made["tok_lulc@224"].value.dtype == np.int64
    assert made["tok_ndvi@224"].value.shape == (1, *size)
    assert made["tok_ndvi@224"].picture.size == size[::-1]


def test_places_are_read_and_said_in_quarters_of_a_degree(terramind):
    pipe = FourMPipeline.from_pretrained(terramind)

    said = [pipe.read({"coords": v})["coords"].value for v in ((12.2, -45.1), "lat=-45.1 lon=12.2")]
    made = pipe.generate({"coords": (12.2, -45.1), **pictures()}, ["LULC"])

    assert torch.equal(*said)
    assert said[0].shape == (1, 3)
    text = pipe.tokenizers.text(pipe.model.modality("coords")).detokenize(said[0])[0]
    assert text == "lat=-45.00 lon=12.25"
    assert made["tok_lulc@224"].tokens.shape == (24,)
    for wrong in ((200, 0), "nowhere", (1.0, 2.0, 3.0)):
        with pytest.raises(FourMError, match="longitude, latitude"):
            pipe.read({"coords": wrong})


def test_the_captions_and_statistics_of_v01_are_its_own(tmp_path):
    model = terramind_model(inputs=("untok_sen2l2a@224", "caption"), outputs=("caption",))
    convert_terramind(dict(model.state_dict()), tmp_path / "V01")
    words = ["a", "lake", "near", "fields"]
    save_words(tmp_path / "V01" / "tokenizers" / "text" / "tokenizer.json", words, 30000)
    pipe = FourMPipeline.from_pretrained(tmp_path / "V01")

    ids = pipe.read({"caption": "a lake"})["caption"].value[0].tolist()
    made = pipe.generate({"caption": "a lake"}, ["caption"])["caption"]

    text = pipe.tokenizers.text()
    assert ids == [text.id_of(w) for w in ("a", "lake", "[S_1]", "[EOS]")]
    assert isinstance(made.text, str | None)
    entry = pipe.model.modality("untok_sen2l2a@224")
    assert entry.edition == "v01"
    assert codec_of(entry).mean == STATISTICS["v01"][entry.name].mean
    assert codec_of(TERRAMIND_MODALITIES[entry.name]).mean == STATISTICS["v1"][entry.name].mean
    for name, usual in STATISTICS["v1"].items():
        own = tile_codec(replace(TERRAMIND_MODALITIES[name], edition="v01"))
        assert own.mean == STATISTICS["v01"].get(name, usual).mean, name


def test_the_vector_of_an_item_is_the_mean_of_the_backbone_and_of_nobody_else(terramind):
    pipe, given = FourMPipeline.from_pretrained(terramind), pictures()

    vectors = pipe.embed([given, {"DEM": given["DEM"]}, pictures(seed=1)])
    alone = pipe.embed(given)
    thought = pipe.embed(given, think=["LULC"])

    backbone = MergedViT.from_pretrained(terramind, list(given))
    with torch.inference_mode():
        mean = backbone({n: x[None] for n, x in given.items()})[-1].mean(1)[0].numpy()
    assert np.allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-5)
    assert np.allclose(vectors[0], alone, atol=1e-6)
    assert not np.allclose(thought, alone, atol=1e-3)
    beside = pipe.embed({**given, "coords": (12.0, 45.0)})
    assert not np.allclose(beside, alone, atol=1e-5)
    with pytest.raises(FourMError, match="leave out `think`"):
        FourMPipeline.from_pretrained("mini").embed({"caption": "a dog"}, think=["caption"])


def test_tiles_of_the_earth_are_indexed_and_found_by_the_name_of_a_folder(
    terramind, tiles, tmp_path, capsys
):
    assert exit_code("index", tiles, "-o", tmp_path / "IDX", "--model", terramind) == 0
    assert exit_code("embed", tiles, "-o", tmp_path / "v.npy", "--model", terramind) == 0
    capsys.readouterr()
    for query in ([tiles / "water/1.tif"], ["--given", f"S2L2A={tiles / 'water/1.tif'}"]):
        assert exit_code("search", tmp_path / "IDX", *query, "-k", 8, "--json", "-") == 0
        ids = [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]]
        assert ids[0] == "water/1.tif"
        assert all(name.startswith("water") for name in ids)
    assert np.load(tmp_path / "v.npy").shape == (16, 64)
    broken = tmp_path / "more" / "a.tif"
    broken.parent.mkdir()
    broken.write_bytes(b"no tile")
    assert (
        exit_code("index", broken.parent, tiles, "-o", tmp_path / "IDX2", "--model", terramind) == 0
    )
    told = capsys.readouterr().out
    assert "not indexed" in told
    assert exit_code("index", tiles, "-o", tmp_path / "IDX", "--model", terramind) == 0
    assert "added" not in capsys.readouterr().out


def test_generate_writes_maps_in_their_units_beside_the_pictures(terramind, tiles, tmp_path):
    words = ["-i", f"S2L2A={tiles / 'forest/0.tif'}", "-t", "LULC", "-t", "NDVI"]
    assert exit_code("generate", "-m", terramind, *words, "-o", tmp_path / "out") == 0

    found = json.loads((tmp_path / "out/result.json").read_text())["outputs"]
    assert list(found) == ["tok_lulc@224", "tok_ndvi@224"]
    assert np.load(tmp_path / "out" / found["tok_ndvi@224"]["array"]).shape == (1, 224, 224)
    labels = np.load(tmp_path / "out" / found["tok_lulc@224"]["array"])
    assert labels.dtype == np.int64
    assert 0 <= labels.min() <= labels.max() < 10


def test_a_file_is_a_value_of_the_modality_that_its_bands_or_its_folder_say(
    terramind, tiles, tmp_path
):
    inputs = FourMPipeline.from_pretrained(terramind).model.config.inputs
    tile = tiles / "forest" / "0.tif"

    assert placed({"rgb": tile, "coords": (1, 2)}, inputs) == {
        "untok_sen2l2a@224": tile, "coords": (1, 2)
    }  # fmt: skip
    named = tmp_path / "LULC" / "a.npy"
    named.parent.mkdir()
    np.save(named, np.zeros((224, 224), np.int64))
    assert list(placed({"rgb": named}, inputs)) == ["tok_lulc@224"]
    with pytest.raises(ConfigError, match="may be any of S2L2A, S1GRD, DEM"):
        placed({"rgb": tmp_path / "a.npy"}, inputs)
    with pytest.raises(ConfigError, match="12 bands, this model's modalities have S1GRD 2"):
        placed({"rgb": tile}, [m for m in inputs if m.channels == 2])


def test_what_is_no_value_of_a_fork_is_told(terramind, tiles):
    pipe, given = FourMPipeline.from_pretrained(terramind), pictures()
    for item, error, match in (
        ({"S2L2A": given["S2L2A"][:4]}, ShapeError, "float32"),
        ({"S2L2A": given["S2L2A"][:, :30]}, ShapeError, "multiples of 16"),
        ({"S1GRD": tiles / "water/0.tif"}, ShapeError, "a tile of 2 bands .VV, VH., got 12"),
        ({"S9": given["DEM"]}, UnknownNameError, "no input 'S9'"),
        ({"DEM": given["DEM"], "S2L2A": pictures((32, 32))["S2L2A"]}, ShapeError, "one grid"),
    ):
        with pytest.raises(error, match=match):
            pipe.embed(item)
    alone = FourMPipeline.from_pretrained(pipe.model)
    assert alone.tokenizers.text_source is None
    reason = alone.generate(given, ["NDVI"], allow_tokens=True)["tok_ndvi@224"].reason
    assert "needs the tokenizer 'NDVI'" in reason


def test_numbers_of_the_sky_go_through_the_same_verbs(aion, tmp_path, capsys):
    codecs = load_codecs(aion)
    pipe = FourMPipeline.from_pretrained(aion)

    read = [pipe.read({"flux_g": value})["tok_flux_g"].value for value in (12.5, "12.5")]
    made = pipe.generate([{"flux_g": 12.5}, {"z": 0.3}], ["z"], seed=1)
    vectors = pipe.embed([{"flux_g": 12.5}, {"flux_g": 2.0, "z": 0.1}])

    want = codecs["tok_flux_g"].tokenize(torch.tensor([12.5]))
    assert read[0].tolist() == read[1].tolist() == [want.tolist()]
    assert all(isinstance(one["tok_z"].to_json()["value"], float | None) for one in made)
    assert (
        made[1]["tok_z"].tokens.tolist() == codecs["tok_z"].tokenize(torch.tensor([0.3])).tolist()
    )
    with torch.inference_mode():
        context = pipe.model.encode(pipe.read({"flux_g": 12.5})).context.tokens.mean(1)[0].numpy()
    assert np.allclose(vectors[0], context / np.linalg.norm(context), atol=1e-5)
    with pytest.raises(FourMError, match="finite numbers"):
        pipe.read({"flux_g": float("nan")})
    with pytest.raises(FourMError, match="cannot read 'bright'"):
        pipe.read({"flux_g": "bright"})
    rows = [{"id": f"g{i}", "flux_g": float(i), "z": i / 10} for i in range(6)]
    (tmp_path / "sky.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert exit_code("index", tmp_path / "sky.jsonl", "-o", tmp_path / "IDX", "-m", aion) == 0
    capsys.readouterr()
    words = ["--given", "flux_g=3", "--given", "z=0.3"]
    assert exit_code("search", tmp_path / "IDX", *words, "-k", 1, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["id"] == "g3"
    assert exit_code("generate", "-m", aion, "-i", "flux_g=3", "-t", "z", "-o", tmp_path / "o") == 0


def test_codecs_of_a_model_on_the_hub_are_fetched_one_by_one(aion, tmp_path, monkeypatch):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((aion / name).read_bytes())
    asked = []

    class Hub:
        @staticmethod
        def snapshot_download(hub_id, **options):
            asked.append((hub_id, options["allow_patterns"]))
            return str(aion if "codecs/" in str(options["allow_patterns"]) else tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    pipe = FourMPipeline.from_pretrained("polymathic-ai/aion-some")
    before = len(asked)

    pipe.read({"z": 0.3})
    pipe.read({"flux_g": 2.0})

    folders = [patterns[0].rpartition("/")[0] for _, patterns in asked[before:]]
    assert folders == ["codecs/Z", "codecs/FLUX_G"]
    assert load_codecs("polymathic-ai/aion-some")["tok_z"].vocab_size == 1024
    assert not [p for _, patterns in asked for p in patterns if p.endswith((".py", ".bin", "/*"))]


def sky_values(tmp_path):
    """A value of every kind of codec, as people write it, with its tokens and what they give."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "sky.npz", flux=rng.normal(size=(2, 100, 120)), bands=["DES-G", "DES-R"])
    np.save(tmp_path / "map.npy", rng.uniform(size=(96, 97)))
    spectrum = {"flux": rng.uniform(size=700), "wavelength": np.linspace(3600, 9800, 700)}
    star = {"X": 3, "Y": 4, "SHAPE_E1": 0.1, "SHAPE_E2": 0.2, "SHAPE_R": 1.5}
    return (
        ("tok_image", tmp_path / "sky.npz", 576, dict),
        ("tok_image_hsc", rng.normal(size=(5, 96, 96)), 576, dict),
        ("tok_spectrum_desi", spectrum, 17, dict),
        ("tok_segmap", str(tmp_path / "map.npy"), 144, np.ndarray),
        ("catalog", [star, star], 11, list),
        ("tok_ra", torch.tensor(12.0), 1, float),
        ("tok_parallax", "0.2", 1, float),
    )


def test_every_kind_of_value_of_the_sky_is_read_and_shown(shared, tmp_path):
    folder = shared / "golden" / "forks" / "checkpoints" / "aion_tiny"
    if not folder.is_dir():
        pytest.skip("no golden cases of the forks")
    codecs = load_codecs(folder)
    for name, value, length, kind in sky_values(tmp_path):
        entry = AION_MODALITIES[name]

        tokens = tokens_of(codecs[name], entry, value)
        given, shown = value_of_tokens(codecs[name], entry, tokens)

        assert tokens.shape == (length,), name
        assert isinstance(given, kind), name
        assert isinstance(shown, str) == (kind in (float, list)), name
    for name, value in (("tok_image", tmp_path / "none.npz"), ("catalog", {"X": [1]}),
                        ("tok_spectrum_desi", {"flux": [1.0, 2.0]}), ("tok_ra", [1.0, 2.0]),
                        ("tok_segmap", np.full((96, 96), np.nan))):  # fmt: skip
        with pytest.raises(FourMError):
            tokens_of(codecs[name], AION_MODALITIES[name], value)
    star = sky_values(tmp_path)[4][1][0]
    with pytest.raises(ShapeError, match="keep the brightest"):
        tokens_of(codecs["catalog"], AION_MODALITIES["catalog"], [star] * 600)


def test_a_catalog_that_is_read_may_be_longer_than_one_that_is_made(aion):
    pipe = FourMPipeline.from_pretrained(aion)
    generator = torch.Generator().manual_seed(0)
    long, short = (torch.randint(204, 3468, (n,), generator=generator) for n in (512, 40))

    both = pipe.embed([{"catalog": long}, {"catalog": short, "z": 0.1}])

    assert np.allclose(both[0], pipe.embed({"catalog": long}), atol=1e-6)
    assert np.allclose(both[1], pipe.embed({"catalog": short, "z": 0.1}), atol=1e-6)
    assert not np.allclose(both[0], pipe.embed({"catalog": long[:100]}), atol=1e-4)
    with pytest.raises(FourMError, match="may hold 512 tokens, got 513"):
        pipe.read({"catalog": torch.cat([long, torch.tensor([3])])})
    made = pipe.generate({"z": 0.1}, ["catalog"], allow_tokens=True)["catalog"]
    assert len(made.tokens) <= 100


def test_a_space_of_an_encoder_joins_modalities_and_knows_its_model(terramind, aion):
    space, other = open_space(str(terramind)), open_space(str(aion))
    given = pictures()

    both, one = space.encode_query([given, {"DEM": given["DEM"]}])
    document = space.encode_document([given])[0][0]

    assert np.allclose(both, document, atol=1e-6)
    assert not np.allclose(both, one, atol=1e-3)
    assert space.identity != other.identity
    assert (space.name, other.name) == ("terramind:encoder", "aion:encoder")
    with pytest.raises(ConfigError, match="reads no 'caption'"):
        space.query_texts(["a lake"])
