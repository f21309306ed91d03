"""Zero-shot classification against transformers' own logits and against written formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_networks import clip, siglip

from fourm_lite.embedders.base import LogitScale
from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.evaluate.zero_shot import (
    PHOTO_TEMPLATES,
    ZeroShotClassifier,
    classify,
    label_vectors,
)

CLOSE = {"atol": 1e-5, "rtol": 0}


def by_letters(texts) -> np.ndarray:
    return np.array([[t.count("a") + 1, t.count("o") + 1, len(t)] for t in texts], np.float32)


@pytest.fixture
def toy():
    embedder = load_embedder(
        lambda images: np.stack([np.asarray(i).mean(axis=(0, 1)) for i in images]), text=by_letters
    )
    embedder.logit_scale = LogitScale(20.0, -3.0)
    return embedder


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("build", [clip, siglip])
def test_probabilities_are_the_librarys(build, photos, tmp_path):
    model, processor, padding = build()
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    labels = ["cat", "dog", "red house"]
    prompts = [f"a photo of a {label}" for label in labels]
    with torch.inference_mode():
        inputs = processor(text=prompts, images=photos[:3], return_tensors="pt", **padding)
        logits = model(**inputs).logits_per_image

    embedder = load_embedder(f"hf:{tmp_path}")
    got = classify(embedder, photos[:3], labels, templates=["a photo of a {}"])
    each = classify(
        embedder, photos[:3], labels, templates=["a photo of a {}"], activation="sigmoid"
    )

    assert np.allclose(got.logits, logits.numpy(), atol=1e-4)
    assert np.allclose(got.probabilities, logits.softmax(dim=1).numpy(), **CLOSE)
    assert np.allclose(each.probabilities, logits.sigmoid().numpy(), **CLOSE)
    best = [row[0][0] for row in got.top(2)]
    assert best == [labels[i] for i in logits.argmax(dim=1)]


def test_an_ensemble_is_the_unit_mean_of_unit_vectors(toy):
    labels = {"cat": ["cat", "tabby cat"], "dog": "dog"}

    got = label_vectors(toy, labels, templates=["a {}", "no {} or {}"])

    for row, names in zip(got, (["cat", "tabby cat"], ["dog"]), strict=True):
        prompts = [t for n in names for t in (f"a {n}", f"no {n} or {n}")]
        mean = toy.embed_text(prompts).mean(axis=0)
        assert np.allclose(row, mean / np.linalg.norm(mean), **CLOSE)


def test_the_order_of_labels_and_of_photos_changes_nothing(toy, photos):
    labels = ["cat", "dog", "boat"]

    first = classify(toy, photos, labels, templates=PHOTO_TEMPLATES)
    second = classify(toy, photos[::-1], labels[::-1], templates=PHOTO_TEMPLATES[::-1])

    assert np.allclose(first.probabilities, second.probabilities[::-1, ::-1], **CLOSE)
    assert np.allclose(first.probabilities.sum(axis=1), 1, **CLOSE)
    assert first.top(1)[0] == second.top(1)[-1]


def test_labels_are_embedded_once_for_many_photos(toy, photos):
    calls = []
    toy.towers = type(toy.towers)(toy.towers.image, lambda t: calls.append(t) or by_letters(t))

    classifier = ZeroShotClassifier(toy, ["cat", "dog"], scale=5.0)
    whole = classifier(photos)
    parts = [classifier(photo) for photo in photos]

    assert len(calls) == 1
    stacked = np.concatenate([part.probabilities for part in parts])
    assert np.allclose(whole.probabilities, stacked, **CLOSE)
    again = classifier.from_vectors(toy.embed_image(photos))
    assert np.allclose(whole.logits, again.logits, **CLOSE)


def test_a_network_without_scale_or_text_says_so(toy, photos):
    image_only = load_embedder(lambda images: np.ones((len(images), 3)))
    toy.logit_scale = None

    with pytest.raises(FourMError, match=r"scale=100\.0"):
        classify(toy, photos, ["cat", "dog"])
    with pytest.raises(FourMError, match="cannot embed text"):
        classify(image_only, photos, ["cat", "dog"], scale=100.0)


@pytest.mark.parametrize("labels", [[], ["cat", "cat"], {"cat": []}, "cat"])
def test_wrong_labels_are_refused(toy, photos, labels):
    with pytest.raises(ConfigError, match="label"):
        classify(toy, photos, labels)


def test_wrong_templates_vectors_and_activations_are_refused(toy, photos):
    with pytest.raises(ConfigError, match=r"holds '\{\}'"):
        classify(toy, photos, ["cat"], templates=["a photo"])
    with pytest.raises(ConfigError, match="width 3"):
        ZeroShotClassifier(toy, ["cat"]).from_vectors(np.ones((2, 5), np.float32))
    with pytest.raises(ConfigError, match="softmax or sigmoid"):
        classify(toy, photos, ["cat"], activation="relu")
