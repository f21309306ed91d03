"""Sentence vectors from a folder, against the network's own states."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_spaces import save_sentences

from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import CheckpointError, ConfigError, FourMError

TEXTS = ["a photo of a red thing", "blue thing", "a"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_sentences(tmp_path_factory.mktemp("sentences") / "tiny")


@torch.no_grad()
def states_of(model, tokenizer, text):
    inputs = {k: torch.tensor([v]) for k, v in tokenizer(text).items()}
    return model(**inputs).last_hidden_state[0]


def unit(vector):
    return (vector / vector.norm()).numpy()


def test_a_text_is_the_mean_of_its_states_and_a_batch_is_its_single_texts(encoder):
    folder, model, tokenizer = encoder

    embedder = load_embedder(f"sentence:{folder}")
    together = embedder.embed_text(TEXTS)

    assert embedder.can == ("text",)
    for text, found in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(
            found, unit(states_of(model, tokenizer, text).mean(0)), atol=1e-5
        )
        np.testing.assert_allclose(embedder.embed_text(text)[0], found, atol=1e-5)


def test_the_first_state_is_taken_where_the_folder_says_so(encoder, tmp_path):
    folder, model, tokenizer = save_sentences(tmp_path / "first")
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True}))

    found = load_embedder(f"sentence:{folder}").embed_text(TEXTS[0])[0]

    np.testing.assert_allclose(found, unit(states_of(model, tokenizer, TEXTS[0])[0]), atol=1e-5)
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ConfigError, match="pooling_mode_max_tokens"):
        load_embedder(f"sentence:{folder}")


def test_an_onnx_file_gives_the_vectors_of_the_network_that_it_was_made_of(encoder, tmp_path):
    pytest.importorskip("onnxruntime")
    folder, model, _ = encoder
    ids = torch.ones(1, 4, dtype=torch.int64)
    place = tmp_path / "onnx"
    place.mkdir()
    (place / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    export(model, ids, place / "model.onnx")

    plain, other = (load_embedder(f"sentence:{p}") for p in (folder, place))

    np.testing.assert_allclose(other.embed_text(TEXTS), plain.embed_text(TEXTS), atol=1e-4)
    assert plain.space.fingerprint != other.space.fingerprint


def export(model, ids, path):
    class States(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]

    axes = {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")}
    with pytest.warns():
        torch.onnx.export(
            States(), (ids, ids), str(path), dynamo=False, dynamic_axes=axes,
            input_names=list(axes), output_names=["states"],
        )  # fmt: skip


def test_pictures_and_folders_of_something_else_are_refused(encoder, tmp_path):
    folder, *_ = encoder
    (tmp_path / "empty").mkdir()

    with pytest.raises(FourMError, match="cannot embed pictures"):
        load_embedder(f"sentence:{folder}").embed_image([np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_embedder(f"sentence:{tmp_path / 'empty'}")


def test_a_network_has_one_fingerprint_however_often_it_is_opened(encoder):
    folder, *_ = encoder  # its pooler has no weights in the file

    first, second = (load_embedder(f"sentence:{folder}") for _ in range(2))

    assert first.space.fingerprint == second.space.fingerprint
