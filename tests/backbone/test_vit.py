from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import hide_some, tiny_batch, tiny_model
from tiny_training import ClassifyTask

from fourm_lite.backbone.config import HeadConfig, ViTConfig
from fourm_lite.backbone.vit import FMViT
from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import CheckpointError, ConfigError, FourMError, ShapeError
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.modalities.codecs import codec_of, normalize
from fourm_lite.model import embeddings
from fourm_lite.model.load import load_model

EVERYTHING = ["rgb@16", "tok_depth@16", "tok_global", "caption", "t5"]


def test_the_features_are_those_of_the_models_encoder(folder, vit, images):
    batch = TokenBatch({"rgb@16": Tokens.given(images, length=16)})

    with torch.no_grad():
        want = load_model(folder).encode(batch).output
        got = vit.forward_features(images)

    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("style", ["gelu", "swiglu", "qknorm", "registers"])
@pytest.mark.parametrize("names", [EVERYTHING, ["caption"], ["tok_depth@16", "rgb@16"]])
def test_any_subset_of_modalities_is_read_as_the_model_reads_it(tmp_path, style, names):
    folder = tiny_model(style).save(tmp_path / "m")
    vit = FMViT.from_pretrained(folder, inputs=EVERYTHING, num_classes=0)
    batch = tiny_batch(names)
    registers = 2 if style == "registers" else 0

    with torch.no_grad():
        want = load_model(folder).encode(batch).output[:, registers:]
        got = vit.forward_features(batch)

    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_an_image_is_the_special_case_of_a_batch_of_pixels_alone(vit, images):
    batch = TokenBatch({"rgb@16": Tokens.given(images, length=16)})

    with torch.no_grad():
        torch.testing.assert_close(vit(batch), vit(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", ["avg", "attentive"])
def test_what_is_not_given_does_not_count(folder, pool):
    head = HeadConfig(num_classes=3, pool=pool)
    vit = FMViT.from_pretrained(folder, inputs=EVERYTHING, head=head)
    batch = tiny_batch(["rgb@16", "caption"])
    partly = batch.with_({"caption": hide_some(batch["caption"])})
    other = partly["caption"].value.clone()
    other[~partly["caption"].inputs] = 13

    with torch.no_grad():
        want = vit(partly)
        changed = Tokens(other, partly["caption"].inputs, partly["caption"].targets)
        got = vit(partly.with_({"caption": changed}))

    assert not torch.allclose(want, vit(batch))
    torch.testing.assert_close(got, want)


def test_samples_of_one_batch_may_give_different_modalities(folder):
    vit = FMViT.from_pretrained(folder, inputs=["rgb@16", "caption"], num_classes=3)
    batch = tiny_batch(["rgb@16", "caption"])
    first = torch.tensor([[True], [False]])
    mixed = TokenBatch(
        {
            "rgb@16": Tokens.given(batch["rgb@16"].value, first.expand(2, 16), length=16),
            "caption": Tokens.given(batch["caption"].value, ~first.expand(2, 6), length=6),
        }
    )

    with torch.no_grad():
        got = vit(mixed)
        photo = vit(batch.only("rgb@16").rows(slice(0, 1)))
        words = vit(batch.only("caption").rows(slice(1, 2)))

    torch.testing.assert_close(got, torch.cat([photo, words]), rtol=1e-4, atol=1e-6)


def test_a_batch_with_a_modality_that_is_not_read_is_refused(vit):
    with pytest.raises(ConfigError, match=r"is one of rgb@16, got 'caption'.*Leave it out"):
        vit(tiny_batch(["rgb@16", "caption"]))


def test_a_sample_that_gives_nothing_is_refused(vit, images):
    valid = torch.tensor([[True], [False]]).expand(2, 16)

    with pytest.raises(ConfigError, match="sample 1"):
        vit(TokenBatch({"rgb@16": Tokens.given(images, valid, length=16)}))


def test_a_model_without_pixels_says_so(tmp_path):
    config = tiny_model().config
    folder = tiny_model(inputs=tuple(m for m in config.inputs if m.kind != "pixels"))
    folder.save(tmp_path / "m")

    with pytest.raises(ConfigError, match="reads no pixels"):
        FMViT.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (20, 32)])
def test_any_multiple_of_the_patch_is_read(vit, size):
    images = torch.randn(1, 3, *size)

    with torch.no_grad():
        features = vit.forward_features(images)
        sized = copy.deepcopy(vit)
        sized.set_input_size(size)
        fixed = sized.forward_features(images)

    assert features.shape == (1, size[0] * size[1] // 16, 16)
    assert sized.input_size == (3, *size)
    assert torch.equal(features, fixed)


@pytest.mark.parametrize("shape", [(1, 3, 18, 16), (1, 1, 16, 16), (3, 16, 16), (1, 3, 0, 16)])
def test_images_that_have_no_whole_patches_are_refused(vit, shape):
    with pytest.raises(ShapeError, match="multiples of 4"):
        vit(torch.zeros(shape))


def test_a_resized_model_keeps_its_size_when_saved(vit, tmp_path):
    vit.set_input_size((20, 32))
    vit.save(tmp_path / "v")

    assert FMViT.from_pretrained(tmp_path / "v").input_size == (3, 20, 32)


HEADS = {
    "linear": HeadConfig(num_classes=3, class_names=("a", "b", "c")),
    "attentive": HeadConfig(num_classes=3, pool="attentive"),
    "two layers, multi-label": HeadConfig(num_classes=5, layers=2, multi_label=True, dropout=0.1),
    "attentive, three layers": HeadConfig(num_classes=2, pool="attentive", layers=3),
    "none": HeadConfig(num_classes=0),
    "tokens": HeadConfig(num_classes=0, pool="none"),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_saved_head_comes_back_bit_for_bit(folder, tmp_path, images, head):
    vit = FMViT.from_pretrained(folder, head=head)
    vit.save(tmp_path / "v")

    again = FMViT.from_pretrained(tmp_path / "v")

    with torch.no_grad():
        assert torch.equal(again(images), vit(images))
    assert again.config == vit.config


def test_a_saved_head_gives_the_same_logits_in_a_new_process(vit, tmp_path, images):
    vit.save(tmp_path / "v")
    save_file({"x": images, "y": vit(images).detach()}, tmp_path / "io.safetensors")
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from safetensors.torch import load_file\n"
        "from fourm_lite import FMViT\n"
        "io = load_file(sys.argv[2])\n"
        "y = FMViT.from_pretrained(sys.argv[1])(io['x'])\n"
        "print((y - io['y']).abs().max().item())"
    )
    arguments = [str(tmp_path / "v"), str(tmp_path / "io.safetensors")]

    out = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)

    assert out.stdout.strip() == "0.0", out.stderr


def test_the_names_of_the_classes_are_kept_and_a_new_head_drops_them(folder, tmp_path):
    vit = FMViT.from_pretrained(folder, head=HEADS["linear"])
    vit.save(tmp_path / "v")

    assert FMViT.from_pretrained(tmp_path / "v").config.head.name_of(1) == "b"
    assert FMViT.from_pretrained(tmp_path / "v", num_classes=3).config.class_names == (
        "a",
        "b",
        "c",
    )
    assert FMViT.from_pretrained(tmp_path / "v", num_classes=4).config.class_names == ()


def test_a_4m_model_gets_a_thousand_classes_and_it_is_said_that_they_are_untrained(
    folder, images, caplog
):
    assert FMViT.from_pretrained(folder)(images).shape == (2, 1000)

    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "the head of 1000 classes is untrained" in caplog.text
    assert "num_classes=0 for features" in caplog.text


def test_a_saved_head_and_one_that_was_asked_for_bring_no_warning(folder, tmp_path, caplog):
    asked = [{"num_classes": 1000}, {"num_classes": 0}, {"head": HEADS["linear"]}]
    vits = [FMViT.from_pretrained(folder, **one) for one in asked]
    FMViT.from_pretrained(vits[-1].save(tmp_path / "v"))

    assert not caplog.records


def test_probabilities_are_of_one_class_or_of_each(folder, images):
    one = FMViT.from_pretrained(folder, num_classes=3)
    each = FMViT.from_pretrained(folder, head=HEADS["two layers, multi-label"])

    torch.testing.assert_close(one.probabilities(one(images)).sum(dim=-1), torch.ones(2))
    assert each.probabilities(each(images)).sum(dim=-1).max() > 1


def test_a_head_of_another_number_of_classes_than_its_config_says_is_refused(vit, tmp_path):
    folder = vit.save(tmp_path / "v")
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "head.weight": torch.zeros(9, 16)}, path)

    with pytest.raises(CheckpointError, match=r"'head.weight' should have shape \[3, 16\]"):
        FMViT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_classes": -1}, "num_classes >= 0"),
        ({"pool": "mean"}, "avg"),
        ({"num_classes": 2, "class_names": ("a",)}, "1 class names for num_classes=2"),
        ({"layers": 0}, "1 to 64 layers"),
    ],
)
def test_heads_that_cannot_be_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        HeadConfig(**values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depht": 3}, "depht.*depth"),
        ({"format": 9}, "format 1"),
        ({"head": {"num_clases": 2}}, "num_clases.*num_classes"),
        ({"inputs": []}, "at least one modality"),
        ({"block": {"dim": 16}}, "num_heads"),
    ],
)
def test_configs_that_say_something_else_are_refused(vit, change, message):
    with pytest.raises(ConfigError, match=message):
        ViTConfig.from_dict({**vit.config.to_dict(), **change})


def test_a_config_survives_its_own_words(vit, tmp_path):
    vit.save(tmp_path / "v", extra={"licence": "CC0"})
    written = read_json_object(tmp_path / "v" / "config.json")

    assert ViTConfig.from_dict(written) == vit.config
    assert written["extra"] == {"licence": "CC0"}


def test_intermediates_are_the_features_of_the_named_blocks(vit, images):
    with torch.no_grad():
        final, maps = vit.forward_intermediates(images)
        tokens = vit.get_intermediate_layers(images, [0, -1], norm=True)
        first = vit.forward_intermediates(images, [0], stop_early=True, intermediates_only=True)

    assert [list(m.shape) for m in maps] == [[2, 16, 4, 4]] * 2
    assert torch.equal(final, vit.forward_features(images))
    assert torch.equal(tokens[1], final)
    assert torch.equal(first[0], maps[0])
    assert torch.equal(maps[0][0, :, 1, 2], vit.get_intermediate_layers(images, [0])[0][0, 6])


@pytest.mark.parametrize("indices", [0, 3, [2], [-3], []])
def test_blocks_that_are_not_there_are_refused(vit, images, indices):
    with pytest.raises(ConfigError, match="there are 2 blocks"):
        vit.forward_intermediates(images, indices)


def test_maps_of_a_batch_of_modalities_are_refused(folder):
    vit = FMViT.from_pretrained(folder, inputs=["caption"], num_classes=0)

    with pytest.raises(ShapeError, match="form no map"):
        vit.forward_intermediates(tiny_batch(["caption"]))


def test_checkpointing_gives_the_same_gradients(vit, images):
    other = copy.deepcopy(vit)
    other.set_grad_checkpointing()
    for model in (vit, other):
        model.train()(images).sum().backward()

    for (name, a), (_, b) in zip(vit.named_parameters(), other.named_parameters(), strict=True):
        assert a.grad is not None or name.startswith("unused")
        torch.testing.assert_close(a.grad, b.grad)


def test_decay_is_not_for_positions_and_modality_vectors(vit):
    assert vit.no_weight_decay() == {"encoder_embeddings.rgb@16.mod_emb"}


def test_an_unknown_modality_is_named_with_its_neighbour(folder):
    with pytest.raises(FourMError, match="Did you mean 'caption'"):
        FMViT.from_pretrained(folder, inputs=["captoin"])


@pytest.mark.parametrize("names", [["caption"], ["tok_depth@16", "caption"]])
def test_a_classifier_of_other_modalities_learns(folder, names, tmp_path):
    vit = FMViT.from_pretrained(folder, inputs=EVERYTHING, num_classes=2)
    batch, labels = tiny_batch(names, 6, seed=4), torch.tensor([0, 1, 0, 1, 0, 1])
    task = ClassifyTask(vit)
    optimizer = torch.optim.AdamW(vit.parameters(), lr=3e-3)

    for _ in range(25):
        losses = task.step(vit, (batch, labels), torch.Generator())
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()

    assert losses.parts["accuracy"] == 1
    vit.save(tmp_path / "v")
    again = FMViT.from_pretrained(tmp_path / "v")
    with torch.no_grad():
        assert torch.equal(again(batch), vit.eval()(batch))


def test_bytes_are_a_picture_and_floats_are_normalised(vit):
    picture = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    entry = vit.config.pixels
    floats = normalize(picture / 255, codec_of(entry).normalization)
    batch = {dtype: TokenBatch({entry.name: Tokens.given(x, length=16)})
             for dtype, x in (("uint8", picture), ("float", floats))}  # fmt: skip

    with torch.no_grad():
        want = vit(floats)
        torch.testing.assert_close(vit(picture), want)
        torch.testing.assert_close(vit(batch["uint8"]), vit(batch["float"]))


@pytest.mark.parametrize("most", [1, 255])
def test_floats_that_are_a_picture_are_told_of(vit, caplog, most):
    picture = most * torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    embeddings._told.clear()

    with torch.no_grad():
        vit(picture)
        vit(picture)

    assert len([line for line in caplog.messages if "floats that are normalised" in line]) == 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.bool])
def test_whole_numbers_that_are_no_bytes_are_refused(vit, dtype):
    with pytest.raises(ShapeError, match="uint8"):
        vit(torch.ones(1, 3, 16, 16).to(dtype))
