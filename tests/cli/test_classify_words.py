"""`classify --labels`: dual encoders, 4M models both ways, and requests that cannot be answered."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import clip, dinov2, save_network
from tiny_pipeline import photo, save_pipeline
from verbs import run

from fourm_lite import FourMPipeline
from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import ConfigError
from fourm_lite.evaluate.zero_shot import (
    EMBEDDING_TEMPERATURE,
    as_dual_encoder,
    classify,
    open_classifier,
)
from fourm_lite.modalities.pictures import open_rgb
from fourm_lite.search.spaces import open_space
from fourm_lite.search.whitening import Centre

LABELS = ["a red cat", "a dog", "the blue house"]
TEMPLATES = ["a photo of {}", "two {}"]


def chances(result):
    return [{c["label"]: c["probability"] for c in r["top"]} for r in result]


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return save_network(clip, tmp_path_factory.mktemp("twin") / "clip")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(2):
        photo(i).save(folder / f"{i}.png")
    return [folder / "0.png", folder / "1.png"]


@pytest.mark.parametrize("options", [(), ("--temperature", "0.5")])
def test_a_twin_encoder_has_its_own_scale(capsys, twin, paths, options):
    words = [word for label in LABELS for word in ("--labels", label)]
    words += [word for form in TEMPLATES for word in ("--template", form)]
    model = ("--model", f"hf:{twin}")

    code, shown, err = run(capsys, "classify", *paths, *words, *model, *options, "--json")

    assert code == 0, err
    embedder = load_embedder(f"hf:{twin}")
    sentences = [embedder.embed_text([f.format(n) for f in TEMPLATES]).mean(0) for n in LABELS]
    vectors = np.stack([v / np.linalg.norm(v) for v in sentences])
    scale = 2.0 if options else embedder.logit_scale.scale
    logits = torch.from_numpy(embedder.embed_image(paths) @ vectors.T * scale)
    for got, want in zip(chances(json.loads(shown)), logits.softmax(1).tolist(), strict=True):
        assert got == pytest.approx(dict(zip(LABELS, want, strict=True)), abs=1e-5)


def test_a_model_judges_by_its_expected_vectors(capsys, model, paths):
    words = ("--labels", *LABELS, *paths, "--template", "a photo of {}", "--top", "2")

    code, shown, err = run(capsys, "-v", "classify", *words, "--model", model, "--json")

    assert code == 0, err
    assert f"photos {len(paths)} of {len(paths)}" in err  # how far it is
    pipe = FourMPipeline.from_pretrained(model)
    texts = pipe.embed([{"caption": f"a photo of {label}"} for label in LABELS])
    logits = torch.from_numpy(
        pipe.embed([{"rgb": path} for path in paths]) @ texts.T / EMBEDDING_TEMPERATURE
    )
    for result, row in zip(json.loads(shown), logits.softmax(1), strict=True):
        best = row.argsort(descending=True).tolist()[:2]
        assert [c["label"] for c in result["top"]] == [LABELS[i] for i in best]
        found = [c["probability"] for c in result["top"]]
        assert found == pytest.approx(row[best].tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", ["transparent", "deep"])
def test_a_photo_is_seen_as_indexes_see_it(capsys, twin, tmp_path, kind):
    grey = np.asarray(photo(1).convert("L"))
    if kind == "deep":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(255 - grey)))
    picture.save(tmp_path / "a.png")
    open_rgb((tmp_path / "a.png").read_bytes()).save(tmp_path / "b.png")
    words = (tmp_path / "a.png", tmp_path / "b.png", "--labels", *LABELS)

    code, shown, err = run(capsys, "classify", *words, "--model", f"hf:{twin}", "--json")

    assert code == 0, err
    found, want = chances(json.loads(shown))
    assert found == pytest.approx(want, abs=1e-6)


def test_a_class_may_have_several_names(capsys, twin, paths):
    words = ("--labels", "cat=a red cat|the cat", "--labels", "dog")

    code, shown, err = run(capsys, "classify", *paths, *words, "--model", f"hf:{twin}", "--json")

    assert code == 0, err
    names = {"cat": ["a red cat", "the cat"], "dog": "dog"}
    want = classify(load_embedder(f"hf:{twin}"), paths, names).probabilities
    for got, row in zip(chances(json.loads(shown)), want.tolist(), strict=True):
        assert got == pytest.approx(dict(zip(names, row, strict=True)), abs=1e-5)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Seven drawings of three classes with labels.jsonl, one of them unreadable."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = []
    for i in range(7):
        photo(i).save(folder / f"{i}.png")
        rows.append({"id": str(i), "file": f"{i}.png", "label": LABELS[i % 3], "split": "test"})
    (folder / "6.png").write_text("no picture")
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.mark.parametrize("by", [None, "embedding", "likelihood"])
def test_accuracy_is_that_of_the_answers(capsys, twin, model, labelled, tmp_path, by):
    source = f"hf:{twin}" if by is None else model
    ask = ("--model", source, *(("--by", by) if by else ()), "--template", "a photo of {}")
    out = tmp_path / "report.json"

    code, _, err = run(capsys, "evaluate", "zeroshot", "--data", labelled, *ask, "--json", out)
    photos = [labelled / f"{i}.png" for i in range(6)]
    _, shown, _ = run(capsys, "classify", *photos, "--labels", *sorted(LABELS), *ask, "--json")

    assert code == 0, err
    report = json.loads(out.read_text(encoding="utf-8"))
    answers = [r["label"] for r in json.loads(shown)]
    right = [answer == LABELS[i % 3] for i, answer in enumerate(answers)]
    assert report["accuracy"] == pytest.approx(np.mean(right))
    found = [row[LABELS[i % 3]] for i, row in enumerate(chances(json.loads(shown)))]
    assert report["log_loss"] == pytest.approx(-np.log(found).mean(), abs=1e-4)
    assert report["best_temperature"] > 0
    assert [skip["id"] for skip in report["protocol"]["skipped"]] == ["6"]


def test_a_part_of_the_photos_and_other_words_can_be_asked(capsys, twin, labelled, tmp_path):
    ask = ("evaluate", "zeroshot", "--data", labelled, "--model", f"hf:{twin}")

    code, shown, err = run(
        capsys, *ask, "--limit", "3", "--labels", "a dog=dog|puppy", "--json", "-"
    )
    wrong, _, refusal = run(capsys, *ask, "--labels", "a fish=fish")

    assert code == 0, err
    assert json.loads(shown)["protocol"]["test_photos"] == 3
    assert wrong == 2
    assert "has no class 'a fish'" in " ".join(refusal.split())


def test_a_models_centre_is_taken_off(model, paths):
    space = open_space(model)
    mean = space.raw_queries([{"caption": "two birds"}]).mean(axis=(0, 1))
    centred = replace(space, centre=Centre(mean, "test"))

    plain, other = (classify(as_dual_encoder(s), paths, LABELS) for s in (space, centred))

    words = centred.encode_query([{"caption": label} for label in LABELS])
    photos = centred.encode_query([{"rgb": path} for path in paths])
    assert np.allclose(other.logits, photos @ words.T / EMBEDDING_TEMPERATURE, atol=1e-4)
    assert not np.allclose(other.logits, plain.logits, atol=1e-2)
    with pytest.raises(ConfigError, match="above 0"):
        open_classifier(str(model), LABELS, temperature=0.0)


def test_a_model_judges_by_the_likelihood_of_words(capsys, model, paths, tmp_path):
    words = ("--by", "likelihood", "--labels", *LABELS, "--model", model, "--json")
    words += tuple(word for form in TEMPLATES for word in ("--template", form))

    code, shown, err = run(capsys, "classify", *paths, tmp_path / "none.png", *words)

    assert code == 0, err
    *results, missing = json.loads(shown)
    assert "none.png" in missing["error"]
    pipe = FourMPipeline.from_pretrained(model)
    sentences = [form.format(label) for label in LABELS for form in TEMPLATES]
    grey = np.full((64, 64, 3), 128, np.uint8)
    scores = pipe.score({"caption": sentences}, [{"rgb": path} for path in [*paths, grey]])
    scores = scores[:2] - scores[2:]
    logits = torch.from_numpy(scores.reshape(2, 3, 2).mean(2))
    for got, want in zip(chances(results), logits.softmax(1).tolist(), strict=True):
        assert got == pytest.approx(dict(zip(LABELS, want, strict=True)), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "cat"], "two or more different classes"),
        (["--labels", "cat", "cat"], "two or more different classes"),
        (["--labels", "cat", "dog", "--template", "a photo"], "a template holds '{}'"),
        (["--labels", "cat", "dog", "--by", "magic"], "--by is one of embedding, likelihood"),
        (["--labels", "cat", "dog", "--temperature", "0"], "--temperature is above 0"),
        (["--template", "a {}"], "--template needs --labels"),
        (["--by", "likelihood"], "--by needs --labels"),
        ([], "--labels"),
    ],
)
def test_what_cannot_be_judged_is_said_in_one_line(capsys, model, paths, words, message):
    code, _, err = run(capsys, "classify", paths[0], "--model", model, *words)

    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_an_image_only_network_and_a_twin_with_a_models_options_are_refused(
    capsys, twin, paths, tmp_path
):
    save_network(dinov2, tmp_path / "net")
    labels = ("--labels", "cat", "dog")

    for words, message in [
        (("--model", f"hf:{tmp_path / 'net'}"), "text"),
        (("--model", f"hf:{twin}", "--by", "likelihood"), "is a dual encoder"),
    ]:
        code, _, err = run(capsys, "classify", paths[0], *labels, *words)
        assert code == 2
        assert message in err
        assert "Traceback" not in err
