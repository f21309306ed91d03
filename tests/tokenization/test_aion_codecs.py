"""AION-1's codecs: numbers, catalogs and folders; networks are compared in tests/parity."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from fourm_lite.errors import CheckpointError, ConfigError, ShapeError, UnknownNameError
from fourm_lite.modalities.forks import CATALOG_END, CATALOG_OFFSET, CATALOG_PAD
from fourm_lite.tokenization.aion.images import SkyImage, cropped
from fourm_lite.tokenization.aion.load import Codecs, load_codec, load_codecs
from fourm_lite.tokenization.aion.scalars import Catalog, CatalogCodec, ScalarCodec, functions
from fourm_lite.tokenization.aion.spectra import interpolated

TABLE = torch.linspace(0, 1, 5)


def save_codec(folder, config, **weights):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_number_rounds_up_to_the_next_entry_of_its_table(tmp_path):
    codec = load_codec(
        save_codec(tmp_path / "ra", {"codebook_size": 5}, **{"_quantizer._index_to_val": TABLE})
    )
    values = torch.tensor([-1.0, 0.0, 0.01, 0.25, 0.26, 7.0, math.nan, math.inf])
    before = values.clone()

    tokens = codec.tokenize(values)

    assert tokens.tolist() == [0, 0, 1, 1, 2, 4, 4, 4]
    assert torch.equal(values.nan_to_num(), before.nan_to_num())
    assert torch.equal(codec.detokenize(tokens), TABLE[tokens])
    with pytest.raises(ShapeError, match=r"0\.\.4"):
        codec.detokenize(torch.tensor([5]))


@pytest.mark.parametrize("name", ["quantizer", "_quantizer"])
def test_logarithms_and_columns_are_read_under_either_name(tmp_path, name):
    log = load_codec(
        save_codec(tmp_path / "f", {"codebook_size": 5, "min_log_value": -2},
                   **{f"{name}._index_to_val": torch.linspace(-2, 2, 5)})
    )  # fmt: skip
    several = load_codec(
        save_codec(
            tmp_path / "x",
            {"num_quantizers": 2, "compression_fns": ["arcsinh"], "decompression_fns": ["sinh"]},
            **{f"{name}.quantizers.{i}._index_to_val": (i + 1) * TABLE for i in range(2)},
        )
    )

    assert log.tokenize(torch.tensor([-5.0, math.exp(-2), 1.0])).tolist() == [0, 0, 2]
    tokens = several.tokenize(torch.tensor([[0.2, 9.0]]))
    assert tokens.tolist() == [[1, 4]]
    assert torch.allclose(several.detokenize(tokens), torch.tensor([[0.25, 2.0]]).sinh())
    with pytest.raises(ShapeError, match="2 numbers an item"):
        several.tokenize(torch.zeros(1, 3))


def test_a_config_reaches_no_other_function_of_torch():
    with pytest.raises(ConfigError, match="a codec's function is one of"):
        functions(["load"])


def catalog(count, batch=1):
    numbers = torch.arange(count).expand(batch, -1) % 96
    shapes = torch.linspace(0, 1, count).expand(batch, -1)
    return Catalog(numbers, numbers, shapes, shapes, shapes)


@pytest.fixture
def objects():
    return CatalogCodec({name: ScalarCodec(TABLE) for name in ("SHAPE_E1", "SHAPE_E2", "SHAPE_R")})


def test_a_catalog_becomes_what_the_transformer_reads_and_comes_back(objects):
    raw = catalog(3)
    raw.SHAPE_R[0, 1] = 9999

    words = objects.tokenize(raw)
    back = objects.detokenize(words)

    assert words.shape == (1, 11)
    assert words[0, -1] == CATALOG_END
    assert bool((words[0, :-1] >= CATALOG_OFFSET).all())
    assert back.X.tolist() == [[0, 2]]
    assert objects.objects(torch.tensor([[9999] * 5])).X.tolist() == [[-1]]
    assert CATALOG_PAD not in words[0]


def test_six_hundred_objects_are_refused_in_a_sentence(objects):
    with pytest.raises(ShapeError, match="room for 102 objects"):
        objects.tokenize(catalog(600))
    with pytest.raises(ShapeError, match=r"0\.\.95"):
        objects.tokenize(Catalog(*(torch.full((1, 2), 99) for _ in range(5))))
    with pytest.raises(ShapeError, match="five an object"):
        objects.objects(torch.zeros(1, 7))


def test_folders_that_are_no_codec_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="no codec of AION-1"):
        load_codec(save_codec(tmp_path / "a", {"dim": 3}, w=torch.zeros(1)))
    with pytest.raises(CheckpointError, match="lacks a table"):
        load_codec(save_codec(tmp_path / "b", {"codebook_size": 3}, w=torch.zeros(1)))
    save_codec(tmp_path / "codecs" / "ra", {"codebook_size": 5}, **{"_quantizer.buckets": TABLE})
    found = Codecs(tmp_path)
    assert list(found) == ["tok_ra"]
    assert found["tok_ra"].vocab_size == 5
    with pytest.raises(UnknownNameError, match="no codec of 'tok_dec'"):
        found["tok_dec"]
    with pytest.raises(UnknownNameError, match="Did you mean 'tok_ra'"):
        found["tok_r"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no codecs"):
        load_codecs(tmp_path / "empty")


def test_small_images_and_values_outside_a_range():
    with pytest.raises(ShapeError, match="at least 96 x 96"):
        cropped(torch.zeros(1, 1, 64, 64))
    x, y = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 20.0, 40.0]])
    found = interpolated(x, y, torch.tensor([[0.0, 1.0, 1.5, 2.5, 3.0, 4.0]]))
    assert found.tolist() == [[0.0, 10.0, 15.0, 30.0, 40.0, 0.0]]
    assert SkyImage(torch.zeros(1), ()).bands == ()
