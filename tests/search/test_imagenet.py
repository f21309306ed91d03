"""ImageNet in words: names and templates of the packages, photos of some classes among all."""

from __future__ import annotations

import json

import pytest
from tiny_networks import clip, save_network
from tiny_pipeline import photo

from fourm_lite.cli import main
from fourm_lite.errors import ConfigError
from fourm_lite.evaluate.photo_classes import as_imagenet, imagenet_names, templates_of
from fourm_lite.photos.labelled import read_labelled

pytest.importorskip("open_clip")
IDS = ("n01440764", "n01443537", "n02123045")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    for number, name in enumerate(IDS):
        (root / "val" / name).mkdir(parents=True)
        for i in range(2):
            photo(2 * number + i).save(root / "val" / name / f"{i}.png")
    return root


def test_names_and_templates_are_those_of_the_packages():
    names = imagenet_names()

    assert len(names) == 1000
    assert names["n01440764"] == ["tench"]
    assert len(templates_of("openai")) == 80
    assert "a photo of a {}." in templates_of("openai")
    assert len(templates_of("simple")) == 7
    with pytest.raises(ConfigError, match="Did you mean 'openai'"):
        templates_of("openia")


def test_photos_of_some_classes_are_judged_among_all(folder):
    names = imagenet_names()
    photos = read_labelled(folder, split="val")

    among = as_imagenet(photos, names)

    assert len(among.classes) == 1000
    assert [among.classes[i] for i in among.labels.tolist()] == [
        photos.classes[i] for i in photos.labels.tolist()
    ]
    with pytest.raises(ConfigError, match=r"none of ImageNet's, such as 'n01440764'"):
        as_imagenet(photos, {"n99999999": ["x"]})


def test_the_verb_measures_top_1_and_top_5(folder, tmp_path, capsys):
    network = save_network(clip, tmp_path / "clip")
    words = [
        "evaluate", "zeroshot", "--data", str(folder), "--split", "val", "--model",
        f"hf:{network}", "--classes", "imagenet", "--templates", "simple", "--json", "-",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()
    assert stopped.value.code == 0, err
    report = json.loads(out)
    assert 0 <= report["accuracy"] <= report["top_5"] <= 1
    assert len(report["per_class"]) == 1000
    for more, message in (
        (["--classes", "cifar"], "imagenet"),
        (["--labels", "tench=a fish"], "leave out --labels"),
        (["--template", "a {}"], "leave one of them out"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*words, *more])
        assert stopped.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
