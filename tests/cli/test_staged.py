"""A recipe of stages: run once, stopped anywhere, changed in the middle."""

from __future__ import annotations

import json

import pytest
from tiny_spaces import save_image_encoder, save_photos, save_sentences
from verbs import exit_code

from fourm_lite.cli import main
from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import ConfigError
from fourm_lite.io.recipe import arguments_of, read_toml
from fourm_lite.training import joint_heads
from fourm_lite.training.staged import StagedRecipe


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("staged")
    save_photos(root / "photos")
    save_image_encoder(root / "image")
    save_sentences(root / "text")
    return root


RECIPE = """
out = "{out}"
title = "tiny"
licence = "CC0-1.0"

[places]
photos = "{root}/photos"
encoders = "{root}"

[[sources]]
name = "colours"
terms = "CC0-1.0"
used_for = "photos and captions"

[[stages]]
name = "labels"
verb = "pseudolabel"
options = {{ photos = "{{photos}}/captions.jsonl", out = "{{labels}}", labels = "{labels}" }}

[[stages]]
name = "space"
[stages.recipe.joint_space]
image = "timm:{{encoders}}/image"
text = "sentence:{{encoders}}/text"
captions = "{{photos}}/captions.jsonl"
labels = "{{labels}}/vectors"
width = 16
least = 2
batch_size = 15
[stages.recipe.train]
steps = {steps}
save_every = 10
[stages.recipe.train.optim]
lr = 1e-2

[[stages]]
name = "figures"
verb = "evaluate retrieval"
[stages.options]
data = "{{photos}}"
model = "joint:{{space}}/final"
split = "val"
out = "{{figures}}/val.json"
"""


def write(root, name, *, steps=40, labels="metadata", text=RECIPE):
    path = root / f"{name}.toml"
    path.write_text(text.format(root=root, out=root / name, steps=steps, labels=labels))
    return path


def run(*words, code=0):
    assert exit_code(*words) == code


def book(root, name):
    return json.loads((root / name / "stages.json").read_text())["stages"]


def test_all_stages_run_once_and_the_card_names_every_source(place, capsys):
    recipe = write(place, "once")

    run("train", recipe)
    first = book(place, "once")
    run("train", recipe, "--json")

    assert book(place, "once") == first
    told = capsys.readouterr().out
    assert '"labels, space, figures"' in told
    found = json.loads((place / "once" / "work" / "figures" / "val.json").read_text())
    assert found["text_to_image"]["R@1"] == 1.0
    card = (place / "once" / "card.md").read_text()
    assert "| colours | CC0-1.0 | photos and captions |" in card
    assert "license_name: CC0-1.0" in card


def test_a_stopped_stage_goes_on_and_the_result_is_the_same(place, monkeypatch):
    run("train", write(place, "whole"))
    recipe, steps = write(place, "stopped"), []
    before = joint_heads.JointSpaceTask.step

    def step(self, *words):
        steps.append(1)
        if len(steps) == 25:
            raise KeyboardInterrupt
        return before(self, *words)

    monkeypatch.setattr(joint_heads.JointSpaceTask, "step", step)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        main(["train", str(recipe)])
    run("train", recipe)

    assert len(steps) == 24 + 1 + 20  # it went on behind the checkpoint of step 20
    spaces = [load_embedder(f"joint:{place / n / 'work/space/final'}")
              for n in ("whole", "stopped")]  # fmt: skip
    assert spaces[0]._weights == spaces[1]._weights


def test_a_changed_stage_is_made_anew_with_all_after_it(place):
    run("train", write(place, "changed"))
    before = book(place, "changed")

    run("train", write(place, "changed", steps=30))

    after = book(place, "changed")
    assert after["labels"] == before["labels"]
    assert after["space"]["facts"]["steps"] == 30
    assert (place / "changed" / "work" / "figures" / "val.json").is_file()


def test_a_recipe_adds_stages_to_those_of_its_base(place, tmp_path):
    base = write(place, "base")
    own = tmp_path / "own.toml"
    own.write_text(
        f'base = "{base}"\n[places]\nlist = "x"\n[[added]]\nname = "more"\nverb = "convert"\n'
        'options = { file = "{list}", out = "{space}/{more}" }\n'
    )

    found = StagedRecipe.of(read_toml(own))

    assert [s.name for s in found.stages] == ["labels", "space", "figures", "more"]
    assert found.filled(found.stages[-1]).options["file"] == "x"
    assert StagedRecipe.of(read_toml(base)).places.items() < found.places.items()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('verb = "pseudolabel"', 'verb = "pseudolable"', "Did you mean 'pseudolabel'"),
        ('verb = "pseudolabel"', 'verb = "serve"', "the verb of stage"),
        ('out = "{{labels}}", ', "", "needs the key 'out'"),
        ('labels = "{labels}" }}', "labels = 3 }}", "should be text"),
        ("options = {{ photos", "options = {{ crosp = 2, photos", "Did you mean 'crops'"),
        ('"{{photos}}/captions.jsonl", out', '"{{photo}}/captions.jsonl", out', "{photo}"),
        ('name = "space"', 'name = "labels"', "two stages"),
        ('name = "space"', 'name = "../space"', "plain name"),
        ("width = 16", "widht = 16", "Did you mean 'width'"),
    ],
)
def test_wrong_recipes_are_told(place, capsys, old, new, message):
    assert old in RECIPE
    recipe = write(place, "wrong", text=RECIPE.replace(old, new, 1))

    run("train", recipe, code=2)

    assert message in capsys.readouterr().err


def test_a_stage_knows_the_places_of_those_before_it_alone():
    stages = [{"name": "first", "verb": "convert", "options": {"source": "{second}"}},
              {"name": "second", "verb": "convert"}]  # fmt: skip

    with pytest.raises(ConfigError, match="second"):
        StagedRecipe.of({"out": "x", "stages": stages})


def test_tables_become_typed_arguments():
    def verb(count: int, names: list[str] | None = None) -> None:
        """A function as verbs are."""

    assert arguments_of(verb, {"count": 2, "names": ["a"]}) == {"count": 2, "names": ["a"]}
    with pytest.raises(ConfigError, match="an integer"):
        arguments_of(verb, {"count": "two"})
    with pytest.raises(ConfigError, match="needs the key 'count'"):
        arguments_of(verb, {})


def test_steps_and_resume_are_not_of_stages(place, capsys):
    run("train", write(place, "words"), "--steps", "3", code=2)

    assert "goes on by itself" in capsys.readouterr().err
