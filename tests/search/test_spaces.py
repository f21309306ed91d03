import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipeline import photo

from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import ConfigError, FourMError, ShapeError, UnknownNameError
from fourm_lite.search.spaces import open_space
from fourm_lite.search.whitening import Centre, gallery_centre
from fourm_lite.unit import unit

from .conftest import network


def test_without_a_mean_the_vectors_are_those_of_the_pipeline(pipe, space):
    items = [{"rgb": photo(0)}, {"caption": "a red circle"}, {"rgb": photo(1), "caption": "dogs"}]

    vectors = space.encode_query(items)

    assert np.allclose(vectors, pipe.embed(items), atol=1e-6)
    assert space.name == "tok_vector_global"


def test_batches_do_not_change_vectors_or_codes(space):
    pictures = [photo(i) for i in range(5)]

    vectors, codes = space.encode_document(pictures, batch_size=2)
    alone = [space.encode_document([p]) for p in pictures]

    assert np.allclose(vectors, np.concatenate([v for v, _ in alone]), atol=1e-5)
    assert np.array_equal(codes, np.concatenate([c for _, c in alone]))


def test_a_gallery_by_a_network_holds_its_own_vectors_and_their_codes(pipe):
    teacher = load_embedder(network)
    space = open_space(pipe, gallery=teacher)
    pictures = [photo(i) for i in range(3)]

    vectors, codes = space.encode_document(pictures)

    raw = teacher.embed_image(pictures, normalize=False)
    assert np.allclose(vectors, teacher.embed_image(pictures), atol=1e-6)
    assert np.array_equal(codes, space.codes(raw))
    assert codes.shape == (3, 4)


def test_decoding_codes_gives_the_vectors_that_the_tokenizer_says(pipe, space):
    raw = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
    codes = space.codes(raw)

    vectors = space.decode_codes(codes.astype(np.uint16))

    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    given = pipe.embed([{"vector_global": row.tolist()} for row in codes])
    assert np.allclose(vectors, given, atol=1e-5)


def test_a_network_of_another_width_is_refused_with_both_named(pipe):
    space = open_space(pipe, gallery=load_embedder(lambda ps: np.ones((len(ps), 7), np.float32)))

    with pytest.raises(ShapeError, match=r"width 7.*'tok_vector_global' is of width 10"):
        space.encode_document([photo()])


def test_a_mean_is_taken_off_both_sides():
    raw = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32) + 5
    mean = np.full(6, 5, np.float32)

    centred = Centre(mean, "tokenizer")(raw)

    assert np.allclose(centred, unit(raw - 5), atol=1e-6)
    assert centred.min() < -0.1
    assert Centre()(raw).min() > 0


def test_a_gallery_of_unit_vectors_is_centred_among_unit_vectors():
    raw = np.random.default_rng(2).standard_normal((9, 6)).astype(np.float32) + 2

    plain, short = gallery_centre(raw), gallery_centre(unit(raw))

    assert not plain.unit_first
    assert short.unit_first
    # the same centre serves queries of any length
    assert np.allclose(short(raw * 7), short(unit(raw)), atol=1e-5)
    assert np.allclose(unit(raw).mean(0), short.mean, atol=1e-6)


@pytest.mark.parametrize(
    "option",
    [
        {"target": "tok_vector_global"},
        {"gallery": "onnx:net.onnx"},
        {"decode": "argmax"},
        {"steps": 2},
        {"samples": 2},
        {"tokenizers": "folder"},
        {"text_tokenizer": "4m"},
        {"dtype": torch.bfloat16},
    ],
)
def test_a_twin_encoder_refuses_the_options_of_4m_models_and_takes_their_defaults(option):
    embedder = load_embedder(lambda pictures: np.ones((len(pictures), 3), np.float32), name="twin")
    usual = {
        "target": None, "gallery": "model", "decode": "expected", "steps": 1, "samples": 1,
        "center": False, "tokenizers": None, "text_tokenizer": None, "dtype": None,
    }  # fmt: skip

    with pytest.raises(ConfigError, match=rf"^{next(iter(option))}: for 4M models; .*dual"):
        open_space(embedder, **option)

    assert open_space(embedder, **usual).embedder is embedder


def test_a_twin_encoder_sees_photos_of_queries_as_indexes_do(tmp_path):
    seen = []
    embedder = load_embedder(
        lambda pictures: seen.extend(pictures) or np.ones((len(pictures), 3), np.float32)
    )
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)).save(tmp_path / "deep.png")

    for name in ("clear", "deep"):
        open_space(embedder).encode_query([{"rgb": tmp_path / f"{name}.png"}])

    found = [p.getpixel((0, 0)) for p in seen if p.size == (4, 4)]  # not what tells the width
    assert found == [(255, 255, 255), (128, 128, 128)]


def test_a_twin_encoder_is_a_space_of_pictures_and_words():
    texts = {"a dog": [1.0, 0, 0], "a cat": [0, 1.0, 0]}
    embedder = load_embedder(
        lambda pictures: np.eye(3, dtype=np.float32)[: len(pictures)],
        text=lambda words: np.array([texts[w] for w in words], np.float32),
    )
    space = open_space(embedder)

    vectors = space.encode_query([{"caption": "a cat"}, {"text": "a dog"}])

    assert np.allclose(vectors, [[0, 1, 0], [1, 0, 0]])
    assert space.encode_document([photo()])[1] is None
    with pytest.raises(FourMError, match="compose"):
        space.encode_query([{"caption": "a cat", "rgb": photo()}])
    with pytest.raises(UnknownNameError, match="need a 4M model"):
        space.encode_query([{"depth": photo()}])
