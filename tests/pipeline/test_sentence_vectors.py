"""Sentence vectors that come with a caption: from an encoder beside the model, or not at all."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from tiny_networks import SMALL
from tiny_pipeline import PIXELS, VECTOR, save_pipeline, sequence, text_tokenizer
from tiny_spaces import save_sentences

from fourm_lite.cli import main
from fourm_lite.errors import FourMError
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.pipeline import caption_vectors
from fourm_lite.pipeline.caption_vectors import encoder_of
from fourm_lite.pipeline.pipeline import FourMPipeline

SENTENCE = Modality(
    name="caption_vector", kind="features", channels=SMALL["hidden_size"], max_tokens=1,
    directions=frozenset({"in"}), raw="caption", tokenizer="tiny_sentences",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that reads captions and their sentence vectors, with its encoder beside it."""
    root = tmp_path_factory.mktemp("model")
    save_pipeline(root / "plain")
    caption = sequence("caption", text_tokenizer().vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = FourMConfig(
            inputs=(PIXELS, caption, SENTENCE), outputs=(VECTOR,), dim=32, num_heads=2,
            encoder_depth=1, decoder_depth=1, image_size=32, patch_size=8,
        )  # fmt: skip
        model = FourM(config).init_weights().eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save(root / "model")
    shutil.copytree(root / "plain" / "tokenizers", root / "model" / "tokenizers")
    save_sentences(root / "model" / "tokenizers" / "tiny_sentences")
    return root / "model"


@pytest.fixture(scope="module")
def pipe(folder):
    return FourMPipeline.from_pretrained(folder)


def test_a_caption_brings_its_sentence_vector(pipe):
    batch = pipe.read({"caption": "a dog"})
    given = encoder_of(SENTENCE, pipe.tokenizers.source).embed_text("a dog")

    assert set(batch) == {"caption", "caption_vector"}
    np.testing.assert_allclose(batch["caption_vector"].value[0].numpy(), given, atol=1e-5)
    whole = pipe.embed({"caption": "a dog"})
    both = pipe.embed({"caption": "a dog", "caption_vector": given})
    np.testing.assert_allclose(whole, both, atol=1e-5)
    assert set(pipe.read({"rgb": torch.zeros(3, 32, 32) - 0.5})) == {PIXELS.name}


def test_a_caption_alone_is_read_where_the_encoder_is_not_at_hand(folder, tmp_path, pipe):
    bare = shutil.copytree(folder, tmp_path / "bare")
    shutil.rmtree(bare / "tokenizers" / "tiny_sentences")

    without = FourMPipeline.from_pretrained(bare)

    assert set(without.read({"caption": "a dog"})) == {"caption"}
    ids = pipe.read({"caption": "a dog"})["caption"].value[0].tolist()
    np.testing.assert_allclose(
        without.embed({"caption": "a dog"}), pipe.embed({"caption": ids}), atol=1e-5
    )
    assert np.abs(without.embed({"caption": "a dog"}) - pipe.embed({"caption": "a dog"})).max() > 0


def test_words_that_the_vocabulary_lacks_are_left_to_the_encoder(pipe, folder, tmp_path):
    unknown = "\u4e2d\u6587"

    assert set(pipe.read({"caption": unknown})) == {"caption_vector"}
    assert np.isfinite(pipe.embed({"caption": unknown})).all()
    bare = shutil.copytree(folder, tmp_path / "bare")
    shutil.rmtree(bare / "tokenizers" / "tiny_sentences")
    with pytest.raises(FourMError, match="holds no word"):
        FourMPipeline.from_pretrained(bare).embed({"caption": unknown})


def test_a_missing_library_leaves_the_vector_out_and_says_so(folder, monkeypatch, caplog):
    def refuse(spec):
        raise FourMError("this sentence encoder needs onnxruntime: pip install onnxruntime")

    monkeypatch.setattr(caption_vectors, "load_embedder", refuse)
    caption_vectors._opened.cache_clear()

    batch = FourMPipeline.from_pretrained(folder).read([{"caption": "a dog"}] * 2)
    caption_vectors._opened.cache_clear()

    assert set(batch) == {"caption"}
    assert caplog.text.count("pip install onnxruntime") == 1


def test_the_encoder_is_listed_among_what_belongs_to_the_model(folder, capsys):
    with pytest.raises(SystemExit):
        main(["info", str(folder), "--json"])

    assert "tiny_sentences" in capsys.readouterr().out


def test_an_encoder_of_another_width_is_refused(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "wide")
    pipe = FourMPipeline.from_pretrained(place, {"tiny_sentences": wide_encoder()})

    with pytest.raises(FourMError, match="belongs to another model"):
        pipe.read({"caption": "a dog"})


SEEN = Modality(
    name="rgb_vector", kind="features", channels=3, max_tokens=1, directions=frozenset({"in"}),
    raw=PIXELS.name, tokenizer="colours",
)  # fmt: skip


def mean_colour():
    from fourm_lite.embedders.base import NetworkEmbedder, Towers

    def see(pictures):
        return torch.tensor(np.stack([np.asarray(p).mean((0, 1)) / 255 for p in pictures])).float()

    return NetworkEmbedder("colours", Towers(image=see), identity=lambda: "colours")


def test_a_picture_brings_its_vector_and_normalised_pixels_do_not(folder, tmp_path):
    from PIL import Image

    config = FourMConfig(
        inputs=(PIXELS, SEEN), outputs=(VECTOR,), dim=32, num_heads=2, encoder_depth=1,
        decoder_depth=1, image_size=32, patch_size=8,
    )  # fmt: skip
    FourM(config).init_weights().save(tmp_path / "model")
    shutil.copytree(folder / "tokenizers", tmp_path / "model" / "tokenizers")
    seeing = FourMPipeline.from_pretrained(tmp_path / "model", {"colours": mean_colour()})
    blind = FourMPipeline.from_pretrained(tmp_path / "model")
    pixels = np.zeros((40, 32, 3), np.uint8)
    pixels[..., 1] = 255
    Image.fromarray(pixels).save(tmp_path / "green.png")

    for picture in (pixels, Image.fromarray(pixels), tmp_path / "green.png"):
        batch = seeing.read({"rgb": picture})
        assert batch["rgb_vector"].value[0].tolist() == [[0.0, 1.0, 0.0]]
        assert set(blind.read({"rgb": picture})) == {PIXELS.name}
    assert set(seeing.read({"rgb": torch.zeros(3, 32, 32) - 0.5})) == {PIXELS.name}
    own = seeing.read({"rgb": pixels, "rgb_vector": [[1.0, 0.0, 0.0]]})["rgb_vector"]
    assert own.value[0].tolist() == [[1.0, 0.0, 0.0]]


def wide_encoder():
    from fourm_lite.embedders.base import NetworkEmbedder, Towers

    towers = Towers(text=lambda texts: torch.ones(len(texts), SMALL["hidden_size"] + 1))
    return NetworkEmbedder("wide", towers, identity=lambda: "wide")
