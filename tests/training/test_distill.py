"""A teacher's feature map as a goal of the encoder: cells, loss, no heads in what is saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_photos import COLOURS, picture
from tiny_training import course, read_recipe

from fourm_lite.data.labellers import MetadataLabeller, NetworkLabeller, PaletteLabeller
from fourm_lite.data.pseudolabel import LabelRun, pseudolabel
from fourm_lite.errors import ConfigError
from fourm_lite.model.load import load_model
from fourm_lite.photos.records import read_records
from fourm_lite.training.distill import DistilledFourM, Guess, as_cells, cell_means, unexplained
from fourm_lite.training.loop import fit
from fourm_lite.training.train import pretraining

RECIPE = """
text = "text_mini"
inputs = ["rgb@32", "metadata"]
outputs = ["metadata"]
[model]
dim = 16
num_heads = 2
encoder_depth = 1
decoder_depth = 1
num_register_tokens = 1
[data]
captions = "{root}/photos"
labels = "{root}/labels"
[losses]
distill = {{ map = 1.0 }}
[train]
steps = 60
out = "{root}/run"
log_every = 1
[train.optim]
lr = 3e-3
[[components]]
name = "look"
inputs = {{ "rgb@32" = 1 }}
targets = {{ metadata = 1 }}
input_budget = [10, 16]
target_budget = [8, 8]
batch_size = 4
labels = ["map"]
[[modalities]]
name = "rgb@32"
kind = "pixels"
channels = 3
image_size = 32
patch_size = 8
grid = [4, 4]
max_tokens = 16
directions = ["in"]
[[modalities]]
name = "metadata"
kind = "sequence"
vocab_size = 5120
max_tokens = 16
"""


def colours(pictures):
    """The mean colour of each quarter of a picture: float[n, 4, 3]."""
    small = [np.asarray(p.resize((2, 2)), dtype=np.float32) / 64 for p in pictures]
    return np.stack(small).reshape(len(small), 4, 3)


@pytest.fixture
def root(tmp_path):
    """Six photos with a teacher's 2 x 2 map of three channels."""
    (tmp_path / "photos").mkdir()
    for i in range(6):
        picture(list(COLOURS)[i % len(COLOURS)], i).save(tmp_path / "photos" / f"{i}.png")
    teachers = [MetadataLabeller(), PaletteLabeller(), NetworkLabeller("map", colours)]
    pseudolabel(read_records(tmp_path / "photos"), teachers, tmp_path / "labels",
                run=LabelRun(num_crops=2))  # fmt: skip
    return tmp_path


def recipe_of(root, text=RECIPE):
    return read_recipe(root, text)


def test_the_mean_of_a_cell_is_that_of_its_given_patches(root):
    task, stream = pretraining(recipe_of(root))
    batch = stream.batch(0)
    model = task.model
    encoded = model.encode(batch.batch, batch.input_budget)
    index = model.names.index("rgb@32")

    means, present = cell_means(encoded.output, encoded.packed, index, (4, 4), (2, 2))

    for b in range(4):
        for cell in range(4):
            rows = [
                encoded.output[b, n]
                for n in range(encoded.output.shape[1])
                if encoded.packed.valid[b, n] and encoded.packed.modality[b, n] == index
                and (int(encoded.packed.where[b, n]) // 8, int(encoded.packed.where[b, n]) % 4 // 2)
                == divmod(cell, 2)
            ]  # fmt: skip
            assert bool(present[b, cell]) == bool(rows)
            if rows:
                torch.testing.assert_close(means[b, cell], torch.stack(rows).mean(dim=0))


def test_the_loss_is_the_share_of_variance_that_is_left():
    features = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    rows = features.flatten(2).transpose(1, 2)
    seen = torch.ones(5, 4, dtype=torch.bool)

    assert unexplained(Guess(rows, seen), features) == 0
    mean = rows.mean(dim=(0, 1)).expand_as(rows)
    torch.testing.assert_close(unexplained(Guess(mean, seen), features), torch.tensor(1.0))
    # A cell that was not given counts for nothing.
    seen[0, 0] = False
    wrong = rows.clone()
    wrong[0, 0] += 100
    assert unexplained(Guess(wrong, seen), features) == 0


def test_a_finer_map_is_asked_for_patch_by_patch_and_a_vector_of_all_patches():
    features = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    cells = as_cells(features, 4)

    assert cells.shape == (2, 4, 12)
    assert sorted(cells[1, 2].tolist()) == sorted(features[1, :, 2:, :2].flatten().tolist())
    assert torch.equal(as_cells(features[..., 0, 0], 1), features[:, None, :, 0, 0])


def test_hints_of_inner_blocks_are_learnt_and_leave_no_trace(root):
    """A map of the encoder's own grid after block 1, one twice as fine after block 2, a vector."""
    hints = {"same": (3, 4, 4), "fine": (2, 8, 8), "all": (5,)}

    def teacher(name, shape):
        def run(pictures):
            small = [np.asarray(p.resize(shape[:0:-1] or (1, 1)), np.float32) for p in pictures]
            flat = np.stack(small).reshape(len(small), -1, 3) / 64
            wide = np.concatenate([flat, flat * flat], axis=-1)[..., : shape[0]]
            return wide if len(shape) > 1 else wide[:, 0]

        return NetworkLabeller(name, run)

    made = [teacher(name, shape) for name, shape in hints.items()]
    pseudolabel(read_records(root / "photos"), made, root / "labels", run=LabelRun(num_crops=2))
    text = RECIPE.replace("encoder_depth = 1", "encoder_depth = 2")
    text = text.replace('["map"]', '["same", "fine", "all"]').replace(
        "distill = {{ map = 1.0 }}",
        "distill = {{ same = 1.0, fine = 1.0, all = 1.0, map = 0.0 }}\n"
        "distill_after = {{ same = 1, fine = 2 }}",
    )
    recipe = recipe_of(root, text)
    task, stream = pretraining(recipe)

    fit(task, stream, recipe.train)

    widths = {name: head.out_features for name, head in task.model.distill_heads.items()}
    assert widths == {"same": 3, "fine": 8, "all": 5}
    lines = [json.loads(line) for line in (root / "run" / "log.jsonl").read_text().splitlines()]
    for name in hints:
        left = [line[f"distill/{name}"] for line in lines]
        assert np.mean(left[-10:]) < 0.7 * np.mean(left[:5]), name
    assert not load_model(root / "run" / "final").inner_blocks


def test_the_encoder_learns_the_map_and_the_saved_model_has_no_heads(root):
    recipe = recipe_of(root)
    task, stream = pretraining(recipe)

    fit(task, stream, recipe.train)

    lines = [json.loads(line) for line in (root / "run" / "log.jsonl").read_text().splitlines()]
    left = [line["distill/map"] for line in lines]
    assert np.mean(left[-10:]) < 0.7 * np.mean(left[:5])
    assert isinstance(task.model, DistilledFourM)
    saved = load_model(root / "run" / "final")
    assert set(saved.state_dict()) == set(task.model.saved_state())
    assert not any("distill" in name for name in saved.state_dict())


def test_a_resumed_run_is_the_straight_run(root):
    recipe = recipe_of(root)
    task, stream = pretraining(recipe)
    fit(task, stream, course(root / "straight", steps=6))
    expected = task.model.state_dict()

    task, stream = pretraining(recipe)
    fit(task, stream, course(root / "parts", steps=6, max_seconds=1e-9))
    task, stream = pretraining(recipe)
    result = fit(task, stream, course(root / "parts", steps=6), resume=True)

    assert result.done
    assert any("distill_heads" in name for name in expected)
    for name, value in task.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_heads_that_are_solved_know_the_map_before_the_first_step(root):
    left = {}
    for heads in (0, 8):
        text = RECIPE.replace("[losses]", f"[start]\nheads = {heads}\n[losses]")
        task, stream = pretraining(recipe_of(root, text))
        task.model.eval()
        with torch.no_grad():
            parts = [task.step(task.model, stream.batch(i), None).parts for i in range(8)]
        left[heads] = np.mean([float(p["distill/map"]) for p in parts])

    assert left[0] > 1.0
    assert left[8] < 0.7


def test_a_run_can_begin_with_a_model_that_has_no_heads(root):
    recipe = recipe_of(root)
    task, stream = pretraining(recipe)
    fit(task, stream, course(root / "first", steps=1, ema=0.0))
    start = f'[start]\nmodel = "{root}/first/final"\n[losses]'

    again, _ = pretraining(recipe_of(root, RECIPE.replace("[losses]", start)))

    for name, value in task.model.saved_state().items():
        assert torch.equal(again.model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({'labels = ["map"]': ""}, "no component has among its `labels`"),
        ({"map = 1.0": "color_palette = 1.0", '["map"]': '["color_palette"]'}, "are neither"),
        ({"map = 1.0 }}": "map = 1.0 }}\ndistill_after = {{ map = 2 }}"}, "has blocks 1 to 1"),
        ({"map = 1.0 }}": "map = 1.0 }}\ndistill_after = {{ mat = 1 }}"}, "names \\['mat'\\]"),
        ({'labels = "{root}/labels"': "", '"metadata"]': '"caption"]', "metadata": "caption"},
         "names no folder of labels"),
    ],
)  # fmt: skip
def test_what_cannot_be_distilled_is_refused(root, change, says):
    text = RECIPE
    for old, new in change.items():
        text = text.replace(old, new)

    with pytest.raises(ConfigError, match=says):
        pretraining(recipe_of(root, text))
