"""TerraMind: its .pt converted, backbones of several modalities, chains, thinking."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_terramind import save_tiles, terramind, terramind_weights
from verbs import exit_code

from fourm_lite import FMViT, load_model
from fourm_lite.backbone.merged import MergedViT
from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.cli import main
from fourm_lite.errors import ConfigError, FourMError, ShapeError, UnknownNameError
from fourm_lite.modalities.forks import coords_of, key_of
from fourm_lite.model.load import narrowed
from fourm_lite.pipeline.terramind import Chain, ChainOptions, ThinkingViT, restored, standardized

GREEDY = ChainOptions(temperature=0.0, top_p=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("terramind")
    torch.save(terramind_weights(), root / "TerraMind_v1_tiny.pt")
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(root / "TerraMind_v1_tiny.pt"), "-o", str(root / "ours")])
    assert stopped.value.code == 0
    return root / "ours"


def pictures(size=64, batch=1):
    torch.manual_seed(1)
    bands = {"S2L2A": 12, "S1GRD": 2, "DEM": 1}
    return {name: torch.randn(batch, count, size, size) for name, count in bands.items()}


def test_a_pickle_without_a_config_opens_as_the_model_that_it_was(folder):
    model, original = load_model(folder), terramind()

    assert model.config == original.config
    for name, value in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for target in model.decoder_embeddings.values():
        assert target.token_emb.weight is target.to_logits.weight


def test_a_row_without_keys_gives_zero_and_the_others_do_not_notice():
    model = terramind()
    ids = torch.randint(0, 99, (2, 196))
    batch = TokenBatch({"tok_lulc@224": Tokens.given(ids, length=196)})
    empty = torch.ones(2, 196, dtype=torch.bool)
    empty[1] = False
    half = TokenBatch({"tok_lulc@224": Tokens.given(ids, empty, length=196)})

    with torch.no_grad():
        whole, found = model.encode(batch, 196), model.encode(half, 196)

    assert torch.allclose(whole.output[0], found.output[0], atol=1e-5)
    assert bool(found.output[1].isfinite().all())


def test_every_way_of_merging_keeps_the_order_and_the_argument(folder):
    given = pictures()
    before = dict(given)
    outputs = {
        merge: MergedViT.from_pretrained(folder, list(given), merge=merge)(given)
        for merge in ("mean", "max", "concat", "dict", "none")
    }

    assert given == before
    assert all(len(found) == 2 for found in outputs.values())
    parts = torch.stack(list(outputs["dict"][-1].values()))
    assert torch.allclose(outputs["mean"][-1], parts.mean(0), atol=1e-5)
    assert torch.allclose(outputs["max"][-1], parts.amax(0), atol=1e-5)
    assert torch.allclose(outputs["concat"][-1], torch.cat(list(parts), dim=-1), atol=1e-5)
    assert torch.allclose(outputs["none"][-1], torch.cat(list(parts), dim=1), atol=1e-5)
    vit = FMViT.from_pretrained(folder, inputs=["untok_dem@224"], num_classes=0)
    alone = MergedViT.from_pretrained(folder, ["DEM"])(given["DEM"])[-1]
    assert torch.allclose(vit.forward_features(given["DEM"]), alone, atol=1e-5)


def test_the_weights_of_bands_are_kept_in_the_order_that_is_asked_for(folder):
    image = pictures()["S1GRD"]
    both = MergedViT.from_pretrained(folder, ["S1GRD"])(image)[-1]
    swapped = MergedViT.from_pretrained(folder, ["S1GRD"], bands={"S1GRD": ["VH", "VV"]})

    assert torch.allclose(swapped(image.flip(1))[-1], both, atol=1e-5)
    with pytest.raises(ConfigError, match="Did you mean 'VV'"):
        MergedViT.from_pretrained(folder, ["S1GRD"], bands={"S1GRD": ["VV_"]})
    with pytest.raises(ShapeError, match="2, H, W"):
        swapped(pictures()["DEM"])


@pytest.mark.parametrize("beside", [["S2L2A"], []])
def test_new_modalities_of_pixels_are_read_beside_the_models_own(folder, beside):
    torch.manual_seed(0)
    backbone = MergedViT.from_pretrained(folder, [*beside, {"PLANET": 4}], merge="dict")
    given = {name: pictures()[name] for name in beside} | {"PLANET": torch.randn(1, 4, 64, 64)}

    last = backbone(given)[-1]

    assert {name: x.shape for name, x in last.items()} == {name: (1, 16, 64) for name in given}
    assert backbone(given["PLANET"] if not beside else given)[-1]["PLANET"].std() > 0.1
    last["PLANET"].sum().backward()
    assert backbone.vit.encoder_embeddings["PLANET@224"].proj.weight.grad.abs().sum() > 0
    with pytest.raises(ShapeError, match="4, H, W"):
        backbone({"PLANET": torch.randn(1, 3, 64, 64)})


@pytest.mark.parametrize("channels", [0, -1])
def test_a_new_modality_has_channels(folder, channels):
    with pytest.raises(ConfigError, match="channels"):
        MergedViT.from_pretrained(folder, ["S2L2A", {"PLANET": channels}])


def test_inputs_that_cannot_be_merged_are_told_apart(folder):
    model = MergedViT.from_pretrained(folder, ["S2L2A", "DEM"])
    given = pictures()

    for bad, match, error in (
        ({"S2L2A": given["S2L2A"], "DEM": given["DEM"][..., :32, :32]}, "one size", ShapeError),
        ({"S1GRD": given["S1GRD"]}, "input of this backbone", ConfigError),
        ({}, "nothing", ConfigError),
        ({"DEM": given["DEM"][..., :30]}, "multiples of 16", ShapeError),
    ):
        with pytest.raises(error, match=match):
            model(bad)
    with pytest.raises(UnknownNameError, match="no input called 'S2'"):
        MergedViT.from_pretrained(folder, ["S2"])
    with pytest.raises(ConfigError, match="merge is one of"):
        MergedViT.from_pretrained(folder, ["DEM"], merge="sum")


@pytest.mark.parametrize("size", [64, 224])
def test_a_chain_makes_its_targets_at_the_size_of_the_picture_and_changes_nothing(folder, size):
    model, given = load_model(folder), {"DEM": pictures(size)["DEM"]}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    chain = Chain(model, ["LULC", "NDVI"], GREEDY)

    made = chain.tokens(given)

    count = (size // 16) ** 2
    assert {n: list(v.shape) for n, v in made.items()} == {"LULC": [1, count], "NDVI": [1, count]}
    assert all(torch.equal(made[n], chain.tokens(given, seed=9)[n]) for n in made)
    drawn = Chain(model, ["LULC"], ChainOptions(temperature=3.0, top_p=0.0))
    assert not torch.equal(drawn.tokens(given, seed=0)["LULC"], drawn.tokens(given, seed=1)["LULC"])
    assert list(given) == ["DEM"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert chain({"DEM": given["DEM"]})["LULC"].shape == made["LULC"].shape


def test_what_is_generated_is_read_with_the_picture(folder):
    chain = Chain(load_model(folder), ["LULC"], GREEDY)
    backbone = MergedViT.from_pretrained(folder, ["DEM", "LULC"], merge="dict")
    given = {"DEM": pictures()["DEM"]}

    found = ThinkingViT(chain, backbone)(given)[-1]

    assert list(found) == ["DEM", "LULC"]
    want = backbone({**given, **chain.tokens(given)})[-1]
    assert torch.allclose(found["DEM"], want["DEM"], atol=1e-6)
    assert list(given) == ["DEM"]
    with pytest.raises(ConfigError, match="does not read"):
        ThinkingViT(Chain(load_model(folder), ["NDVI"]), backbone)


def test_pictures_of_one_place_have_one_size_and_statistics(folder):
    chain = Chain(load_model(folder), ["LULC"], GREEDY)
    given = pictures()
    with pytest.raises(ShapeError, match="one grid"):
        chain.tokens({"DEM": given["DEM"], "S1GRD": pictures(32)["S1GRD"]})
    with pytest.raises(ShapeError, match="12 bands"):
        chain.tokens({"S2L2A": given["S1GRD"]})
    with pytest.raises(ConfigError, match="needs inputs and targets"):
        chain.tokens({})
    raw = torch.rand(1, 12, 16, 16) * 4000
    key = key_of("S2L2A")
    assert torch.allclose(restored(standardized(raw, key), key), raw, atol=0.1)
    with pytest.raises(ConfigError, match="no statistics"):
        standardized(raw, "caption")


def test_a_model_of_stored_positions_reads_one_size(folder):
    model = load_model(folder)
    small = narrowed(model, inputs=["untok_dem@224"], outputs=[], grids={"untok_dem@224": (4, 6)})

    assert small.modality("untok_dem@224").max_tokens == 24
    assert (
        small.encoder[0].attn.qkv.weight.data_ptr() == model.encoder[0].attn.qkv.weight.data_ptr()
    )
    from dataclasses import replace

    model.config = replace(model.config, positions="stored")
    with pytest.raises(ConfigError, match="reads one size"):
        narrowed(model, grids={"untok_dem@224": (4, 6)})


def test_coordinates_that_cannot_be_read_are_no_numbers():
    assert coords_of("lat=-0.25 lon=180.00 [EOS]") == (180.0, -0.25)
    assert all(value != value for value in coords_of("nowhere"))


def test_a_file_of_another_width_says_what_it_needs(tmp_path):
    weights = terramind_weights()
    weights["encoder.0.norm1.weight"] = torch.ones(48)
    torch.save(weights, tmp_path / "x.pt")
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(tmp_path / "x.pt"), "-o", str(tmp_path / "o")])
    assert stopped.value.code == 2
    with pytest.raises(FourMError):
        load_model(tmp_path / "o")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    pytest.importorskip("rasterio")
    root = save_tiles(tmp_path_factory.mktemp("tiles") / "TILES")
    (root / "water" / "photo.tif").write_bytes(b"no tile")
    return root


@pytest.mark.parametrize("mode", ["probe", "full"])
def test_a_folder_of_tiles_becomes_a_classifier(folder, tiles, tmp_path, capsys, mode):
    words = ["finetune", tiles, "-m", folder, "-o", tmp_path / "out", "--input", "S2L2A"]
    words += ["--mode", mode, "--epochs", 3, "--batch-size", 4, "--image-size", 32]

    assert exit_code(*words) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["protocol"]["skipped"] == 1
    assert report["accuracy"] == 1.0

    assert exit_code("classify", tiles / "forest" / "0.tif", "--model", tmp_path / "out") == 0
    assert "forest" in capsys.readouterr().out


def test_colours_and_tiles_are_not_taken_for_each_other(folder, tiles, tmp_path, capsys):
    words = ["finetune", str(tiles), "-m", str(folder), "-o", str(tmp_path / "out")]
    for more, told in (
        (["--input", "S1GRD"], "a tile of 2 bands (VV, VH), got 12"),
        (["--input", "S2L2A", "--mode", "full", "--augment", "rand-m9"], "is for colours"),
        (["--input", "S9"], "S9"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*words, *more])
        assert stopped.value.code == 2
        assert told in " ".join(capsys.readouterr().err.split())
