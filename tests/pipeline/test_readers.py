"""What the pipeline takes for pixels, class maps, ids and colours, and what it refuses."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import photo, save_pipeline

from fourm_lite import FourMPipeline
from fourm_lite.errors import FourMError, ShapeError
from fourm_lite.modalities.codecs import Crop, ImageCodec
from fourm_lite.modalities.pictures import decode


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return FourMPipeline.from_pretrained(
        save_pipeline(tmp_path_factory.mktemp("readers") / "model")
    )


@pytest.fixture(scope="module")
def classes():
    return np.random.default_rng(0).integers(0, 5, (32, 32))


def tokens(pipe, name, value):
    (found,) = pipe.read({name: value}).values()
    return found.value


def png(picture) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def test_every_form_of_a_class_map_gives_the_same_tokens(pipe, classes, tmp_path):
    small = classes.astype(np.uint8)
    (tmp_path / "map.png").write_bytes(png(Image.fromarray(small)))
    forms = [
        small,
        classes.astype(np.int32),
        classes.astype(np.uint16),
        classes.astype(">i8"),
        torch.from_numpy(classes),
        torch.from_numpy(small),
        Image.fromarray(small),
        Image.fromarray(classes.astype(np.int32)),
        Image.fromarray(classes.astype(np.uint16)),
        png(Image.fromarray(small)),
        tmp_path / "map.png",
    ]

    want = tokens(pipe, "semseg", classes)

    for form in forms:
        assert torch.equal(tokens(pipe, "semseg", form), want)


def test_a_class_map_of_another_size_is_cut_and_keeps_its_classes(pipe, classes):
    large = classes.repeat(3, 0).repeat(3, 1)
    wide = np.pad(large, ((0, 0), (8, 8)))

    for form in (large, large.astype(np.uint8), wide, Image.fromarray(wide.astype(np.uint8))):
        assert torch.equal(tokens(pipe, "semseg", form), tokens(pipe, "semseg", classes))


def test_what_is_no_class_map_is_refused(pipe, classes):
    for bad in (
        classes.astype(np.float32),
        np.stack([classes] * 3, -1).astype(np.uint8),
        Image.new("RGB", (32, 32)),
        classes + 5,
        np.full((32, 32), 255, np.uint8),
    ):
        with pytest.raises(FourMError):
            tokens(pipe, "semseg", bad)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "shape"), [("rgb", (3, 32, 32)), ("tok_rgb", (3, 32, 32)), ("vector_global", (10,))]
)
def test_no_modality_takes_a_number_that_is_not_finite(pipe, name, shape, bad):
    value = np.zeros(shape, np.float32)
    value.flat[3] = bad

    for form in (value, torch.from_numpy(value)):
        with pytest.raises(FourMError, match="finite"):
            pipe.embed({name: form})


@pytest.mark.parametrize("name", ["rgb", "tok_rgb"])
def test_floats_that_are_not_normalised_are_refused(pipe, name):
    share = np.random.default_rng(0).random((3, 32, 32), np.float32)

    for value in (share, share * 255, torch.from_numpy(share)):
        with pytest.raises(ShapeError, match="normalised"):
            tokens(pipe, name, value)


def test_a_normalised_picture_equals_its_bytes(pipe):
    picture = decode(photo())
    side = Crop.center(picture.height, picture.width, 32)
    floats = ImageCodec(normalization="imagenet").from_picture(picture, side)

    want = tokens(pipe, "rgb", picture)

    assert torch.equal(tokens(pipe, "rgb", floats), want)
    assert torch.equal(tokens(pipe, "rgb", np.asarray(picture)), want)
    assert torch.equal(tokens(pipe, "rgb", np.asarray(picture).astype(np.uint16) * 257), want)


def test_a_transparent_picture_lies_on_white(pipe):
    clear = photo().copy()
    clear.putalpha(0)

    assert torch.equal(
        tokens(pipe, "rgb", clear), tokens(pipe, "rgb", Image.new("RGB", clear.size, "white"))
    )


def test_ids_beyond_the_vocabulary_are_refused(pipe):
    for ids in ([24] * 4, [-1] * 4, np.array([0, 1, 2, 99]), torch.tensor([0, 1, 2, 99])):
        with pytest.raises(ShapeError, match=r"ids 0\.\.23"):
            pipe.embed({"tok_vector_global": ids})


def test_colours_as_shares_equal_whole_colours(pipe):
    want = tokens(pipe, "color_palette", [(51, 102, 255), (0, 255, 0)])

    shares = np.array([[0.2, 0.4, 1.0], [0.0, 1.0, 0.0]])

    for form in (shares, shares.astype(np.float32), shares.tolist(), shares * 255):
        assert torch.equal(tokens(pipe, "color_palette", form), want)


@pytest.mark.parametrize(
    "bad", [(0.5, 0.2, 7.0), (0.5, 300.2, 1.0), (1, 2), (-1, 0, 0), (1, 2, 300)]
)
def test_colours_that_are_neither_are_refused(pipe, bad):
    with pytest.raises(FourMError, match="colour"):
        pipe.embed({"color_palette": [bad]})


@pytest.mark.parametrize("text", ["собака бежит", "犬", "\N{THUMBS UP SIGN}"])
@pytest.mark.parametrize("ask", ["embed", "generate", "score"])
def test_words_of_which_the_vocabulary_holds_none_are_refused(pipe, text, ask):
    asked = {
        "embed": lambda: pipe.embed({"caption": text}),
        "generate": lambda: pipe.generate({"caption": text}, ["vector_global"]),
        "score": lambda: pipe.score({"caption": ["a red circle", text]}, {"rgb": photo(0)}),
    }

    with pytest.raises(FourMError, match="holds no word of"):
        asked[ask]()


def test_a_word_that_is_not_known_is_told_and_the_others_are_read(pipe, caplog):
    found = pipe.embed({"caption": "a red 犬"})

    assert np.isfinite(found).all()
    assert "does not know '犬'" in caplog.text


@pytest.mark.parametrize("name", [["caption"], {"caption": 1}, 3, None])
def test_a_name_that_is_no_text_names_no_modality(pipe, name):
    with pytest.raises(FourMError, match="named by a text"):
        pipe.embedding_target(name) if name is not None else pipe.generate({"rgb": photo()}, [name])
