"""Fine-tuning a joint encoder: it learns pairs, goes on exactly, and opens afterwards."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_mmt import VOCABULARY, save_mmt, save_regions

from fourm_lite.cli import main
from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.rerankers import load_reranker
from fourm_lite.errors import ConfigError
from fourm_lite.search.rerank import CROSS, caption_measures
from fourm_lite.training.joint_encoder import JointRecipe, joint_training
from fourm_lite.training.loop import fit

WORDS = VOCABULARY[5:-1]


def captions(count):
    return [f"{WORDS[i % 8]} {WORDS[i // 8 + 3]} {WORDS[(3 * i + 1) % 9]}" for i in range(count)]


@pytest.fixture
def pairs(tmp_path):
    save_regions(tmp_path / "features", {str(i): 2 + i % 4 for i in range(16)})
    rows = [{"id": str(i), "file": f"{i}.jpg", "captions": [c]} for i, c in enumerate(captions(16))]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    save_mmt(tmp_path / "oscar", head=None)
    return tmp_path


def write_recipe(root, *, out="run", steps=4, order='["twin", "match"]', more="", lr=3e-3):
    path = root / f"{out}.toml"
    path.write_text(f"""
joint = "{root / "oscar"}"
order = {order}
hard = 0.5
{more}
[data]
captions = "{root / "captions.jsonl"}"
features = "{root / "features"}"
split = ""
batch_size = 16
[train]
out = "{root / out}"
steps = {steps}
save_every = 2
log_every = 1
[train.optim]
lr = {lr}
schedule = "constant"
weight_decay = 0.0
""")
    return path


def test_vectors_learn_sixteen_pairs_while_matching_has_its_turns(pairs):
    recipe = JointRecipe.read(
        write_recipe(pairs, steps=400, more='loss = "contrastive"\ndropout = 0.0')
    )
    task, stream = joint_training(recipe)
    fit(task, stream, recipe.train)

    folder, ids = pairs / "run" / "final", [str(i) for i in range(16)]
    twin = load_embedder(f"mmt:{folder}", features=pairs / "features")
    cross = load_reranker(f"mmt:{folder}", features=pairs / "features")
    found = caption_measures(twin, cross, ids, captions(16), range(16), ks=(1,))
    assert found["mR"] > 0.9


@pytest.mark.slow
def test_sixteen_pairs_are_learnt_in_both_objectives_by_one_network(pairs):
    """Matching takes three times the steps of the vectors, and a lower rate."""
    order = '["twin", "match", "match", "match"]'
    more = 'loss = "contrastive"\ndropout = 0.0'
    recipe = JointRecipe.read(write_recipe(pairs, steps=800, order=order, more=more, lr=1e-3))
    task, stream = joint_training(recipe)
    fit(task, stream, recipe.train)

    folder, ids = pairs / "run" / "final", [str(i) for i in range(16)]
    twin = load_embedder(f"mmt:{folder}", features=pairs / "features")
    cross = load_reranker(f"mmt:{folder}", features=pairs / "features")
    for retrieve in (0, CROSS):
        found = caption_measures(
            twin, cross, ids, captions(16), range(16), ks=(1,), retrieve=retrieve
        )
        assert found["mR"] > 0.95, retrieve


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(pairs):
    for out, stops in (("whole", [4]), ("parts", [2, 4])):
        recipe = write_recipe(pairs, out=out)
        for number, steps in enumerate(stops):
            words = ["train", str(recipe), "--steps", str(steps)] + ["--resume"] * (number > 0)
            with pytest.raises(SystemExit) as stopped:
                main(words)
            assert stopped.value.code == 0

    from safetensors.torch import load_file

    whole, parts = (
        load_file(pairs / out / "final" / "model.safetensors") for out in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_recipes_that_cannot_run_are_told_apart(pairs):
    with pytest.raises(ConfigError, match="Did you mean 'match'"):
        JointRecipe.read(write_recipe(pairs, order='["mach"]'))
    rows = [{"id": i, "file": f"{i}.jpg", "captions": ["a dog"]} for i in ("99", "1")]
    (pairs / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ConfigError, match="no features of '99'"):
        joint_training(JointRecipe.read(write_recipe(pairs)))
    (pairs / "captions.jsonl").write_text(json.dumps(rows[1]))
    with pytest.raises(ConfigError, match="negatives need more"):
        joint_training(JointRecipe.read(write_recipe(pairs)))
