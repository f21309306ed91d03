"""What all embedders share: lists, batches, unit length, and vectors that are refused."""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from documented import example
from safetensors.torch import save_file
from torch import nn

from fourm_lite.embedders.base import NetworkEmbedder, Towers, unit_length
from fourm_lite.embedders.image_configs import pixels_of, preset
from fourm_lite.embedders.load import FAMILIES, load_embedder
from fourm_lite.embedders.tower_outputs import as_patches, as_vectors
from fourm_lite.errors import ConfigError, FourMError, ShapeError
from fourm_lite.io.weights_file import load_tensors


def colours(images) -> np.ndarray:
    """Mean colour: a network of three numbers."""
    return np.stack([np.asarray(image).mean(axis=(0, 1)) for image in images])


class Object:
    def __init__(self, **values):
        self.__dict__.update(values)


def test_any_callable_is_an_embedder(photos):
    embedder = load_embedder(colours)

    vectors = embedder.embed_image(photos)

    assert isinstance(embedder, NetworkEmbedder)
    assert vectors.shape == (4, 3)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.allclose(embedder.embed_image(photos, normalize=False), colours(photos), atol=1e-4)
    assert np.allclose(embedder.embed_image(iter(photos), batch_size=3), vectors, atol=1e-6)
    assert np.allclose(embedder.embed_image(photos[0]), vectors[:1], atol=1e-6)
    assert embedder.embed_image([]).shape == (0, 3)


def test_loading_an_embedder_gives_it_back(photos):
    embedder = load_embedder(colours)

    assert load_embedder(embedder) is embedder


@pytest.mark.parametrize(
    "wrap",
    [
        torch.tensor,
        lambda rows: [torch.tensor(row) for row in rows],
        lambda rows: rows.astype(int).tolist(),
        lambda rows: (torch.zeros(len(rows), 5, 3), torch.tensor(rows)),
        lambda rows: {"last_hidden_state": torch.zeros(2, 5, 3), "pooler_output": rows},
        lambda rows: Object(image_embeds=torch.tensor(rows)),
        lambda rows: torch.tensor(rows)[:, :, None, None],
    ],
    ids=["tensor", "list", "numbers", "tuple", "mapping", "object", "1x1 map"],
)
def test_vectors_are_found_in_whatever_a_network_returns(wrap):
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)

    assert torch.equal(as_vectors(wrap(rows)), torch.tensor(rows))


def test_maps_become_rows_of_patches():
    grid = torch.arange(24.0).reshape(1, 2, 3, 4)

    patches = as_patches({"feature_map": grid})

    assert torch.equal(patches[0, 5], grid[0, :, 1, 1])
    assert torch.equal(as_patches((torch.zeros(1, 2), patches)), patches)
    with pytest.raises(ShapeError, match=r"\[B, L, E\]"):
        as_patches(torch.zeros(2, 3))


def test_outputs_without_vectors_are_refused():
    with pytest.raises(ShapeError, match="one vector an item"):
        as_vectors(torch.zeros(2, 3, 4))
    with pytest.raises(ShapeError, match="nothing"):
        as_vectors(Object(loss=1.0))


def test_a_changing_width_is_refused(photos):
    between_batches = load_embedder(lambda images: np.ones((len(images), images[0].width)))
    inside_a_batch = load_embedder(lambda images: [np.ones(i.width) for i in images])

    with pytest.raises(ShapeError, match="keep one width"):
        between_batches.embed_image(photos, batch_size=1)
    one_after_the_other = load_embedder(lambda images: np.ones((1, images[0].width)))
    assert one_after_the_other.embed_image(photos[0]).shape == (1, one_after_the_other.dim)
    with pytest.raises(ShapeError, match="keep one width"):
        one_after_the_other.embed_image(photos[1])
    with pytest.raises(ShapeError, match="different widths"):
        inside_a_batch.embed_image(photos)


def test_nan_infinite_and_zero_vectors_are_refused_by_position(photos):
    def broken(value):
        return load_embedder(lambda images: np.stack([np.full(4, value, np.float32)] * len(images)))

    for value in (np.nan, np.inf):
        with pytest.raises(FourMError, match="NaN or infinite values for item 0"):
            broken(value).embed_image(photos)
    with pytest.raises(FourMError, match="zero"):
        broken(0.0).embed_image(photos)
    assert not broken(0.0).embed_image(photos, normalize=False).any()

    late = load_embedder(lambda images: np.log(colours(images) - 127 + 500 * (len(images) == 3)))
    with np.errstate(invalid="ignore"), pytest.raises(FourMError, match="item 3"):
        late.embed_image([*photos[:3], np.zeros((8, 8, 3), np.uint8)], batch_size=3)


def test_a_wrong_number_of_vectors_is_refused(photos):
    with pytest.raises(ShapeError, match="4 items and gave 1"):
        load_embedder(lambda images: np.ones((1, 3))).embed_image(photos)


def test_a_module_gets_prepared_pixels_and_leaves_training(photos):
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.9))

    embedder = load_embedder(module, preprocess="unit", name="mean")

    assert not module.training
    assert np.allclose(embedder.embed_image(photos), embedder.embed_image(photos), atol=0)
    assert embedder.space.name == "callable:mean"
    with pytest.raises(ConfigError, match="imagenet"):
        load_embedder(module)


def test_functions_for_text_and_patches_complete_a_twin(photos):
    embedder = load_embedder(
        colours,
        text=lambda texts: np.array([[len(t), 1.0, 0.0] for t in texts]),
        patches=lambda images: np.ones((len(images), 4, 3)),
    )

    assert embedder.can == ("image", "text", "patches")
    assert embedder.embed_text("abc").shape == (1, 3)
    assert embedder.embed_patches(photos).shape == (4, 4, 3)
    with pytest.raises(FourMError, match=r"cannot embed text.*it embeds image"):
        load_embedder(colours).embed_text("abc")
    with pytest.raises(ConfigError, match="strings"):
        embedder.embed_text([1])


def test_progress_counts_items(photos):
    seen = []

    load_embedder(colours).embed_image(photos, batch_size=3, progress=seen.append)

    assert seen == [3, 4]


def test_unit_length_is_exact_for_tiny_vectors():
    tiny = np.full((2, 3), 1e-30, np.float32)

    assert np.allclose(np.linalg.norm(unit_length(tiny), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("spec", ["", "clip", "hf:", "hff:model", 3])
def test_what_is_no_specification_is_refused(spec):
    with pytest.raises(ConfigError, match="embedder"):
        load_embedder(spec)


def test_unknown_options_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'output'"):
        load_embedder("onnx:net.onnx?outputs=logits")
    with pytest.raises(ConfigError, match="batch_size"):
        load_embedder(colours).embed_image([], batch_size=0)


def test_what_holds_no_pictures_or_texts_is_refused():
    embedder = load_embedder(lambda pictures: np.ones((len(pictures), 2)), text=len)

    for bad in (5, None, 2.5):
        with pytest.raises(ConfigError, match="expected one picture or text"):
            embedder.embed_image(bad)
        with pytest.raises(ConfigError, match="expected one picture or text"):
            embedder.embed_text(bad)


def test_the_documented_family_is_one_function_and_one_row(tmp_path, monkeypatch, photos):
    module = ModuleType("fourm_lite.embedders.linear_map")
    module.load_linear_map = example(
        "load_linear_map",
        Path=Path, Towers=Towers, NetworkEmbedder=NetworkEmbedder, load_tensors=load_tensors,
        pixels_of=pixels_of, preset=preset, sha256=sha256,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(FAMILIES, "linear_map", ("linear_map", "load_linear_map"))
    weight = torch.randn(5, 192, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, tmp_path / "map.safetensors")

    embedder = load_embedder(f"linear_map:{tmp_path / 'map.safetensors'}")

    pixels = pixels_of(preset("unit", size=8), photos)
    want = torch.nn.functional.normalize(pixels.flatten(1) @ weight.T, dim=-1)
    assert np.allclose(embedder.embed_image(photos), want, atol=1e-5)
    assert embedder.space.name == "linear_map"
