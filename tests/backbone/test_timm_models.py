"""FMViT beside a ViT of timm's own: the same calls, shapes and behaviour."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

timm = pytest.importorskip("timm")

import fourm_lite.backbone.timm_models as registered  # noqa: E402
from fourm_lite.backbone.vit import FMViT  # noqa: E402
from fourm_lite.errors import CheckpointError, ConfigError  # noqa: E402
from fourm_lite.modalities.catalog import MODALITIES  # noqa: E402
from fourm_lite.model.config import PRESETS, FourMConfig  # noqa: E402
from fourm_lite.model.fourm import FourM  # noqa: E402

NAME = "fm_vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def ours():
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=7).eval()


@pytest.fixture(scope="module")
def theirs():
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"embed_dim": 384, "depth": 6, "num_heads": 6, "num_classes": 7}
    return VisionTransformer(
        **sizes, class_token=False, global_pool="avg", dynamic_img_size=True
    ).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def shapes(value):
    if isinstance(value, torch.Tensor):
        return list(value.shape)
    if isinstance(value, dict):
        return {k: shapes(v) for k, v in value.items()}
    return [shapes(v) for v in value]


CALLS = {
    "forward": lambda m, x: m(x),
    "forward_features": lambda m, x: m.forward_features(x),
    "pre_logits": lambda m, x: m.forward_head(m.forward_features(x), pre_logits=True),
    "intermediates": lambda m, x: m.forward_intermediates(x),
    "last two": lambda m, x: m.forward_intermediates(x, 2, norm=True, intermediates_only=True),
    "named": lambda m, x: m.forward_intermediates(x, [0, -1], output_fmt="NLC", stop_early=True),
    "dict": lambda m, x: m.forward_intermediates(x, 1, output_dict=True),
    "layers": lambda m, x: m.get_intermediate_layers(x, 2, reshape=True),
    "layers flat": lambda m, x: m.get_intermediate_layers(x, [1, 3], norm=True),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_give_the_shapes_of_timms_vit(ours, theirs, images, call):
    with torch.inference_mode():
        assert shapes(call(ours, images)) == shapes(call(theirs, images))


@pytest.mark.parametrize("size", [(288, 288), (240, 320)])
def test_other_sizes_give_the_shapes_of_timms_vit(ours, theirs, size):
    x = torch.randn(1, 3, *size)

    with torch.inference_mode():
        assert shapes(ours.forward_intermediates(x, 1)) == shapes(
            theirs.forward_intermediates(x, 1)
        )
        sized = copy.deepcopy(ours)
        sized.set_input_size(size)
        assert torch.equal(sized(x), ours(x))


@pytest.mark.parametrize("arguments", [(0, ""), (0,), (9, "map"), (4, "avg")])
def test_a_reset_head_behaves_like_timms(ours, theirs, images, arguments):
    a, b = copy.deepcopy(ours), copy.deepcopy(theirs)
    if "map" in arguments:  # timm cannot add a pool afterwards
        b = timm.create_model("vit_tiny_patch16_224", num_classes=9, global_pool="map").eval()
        a.reset_classifier(*arguments)
    else:
        a.reset_classifier(*arguments)
        b.reset_classifier(*arguments)

    with torch.inference_mode():
        assert a(images).shape == b(images).shape
    assert type(a.get_classifier()) is type(b.get_classifier())
    assert a.num_classes == b.num_classes


def test_a_wrong_pool_is_refused(ours):
    with pytest.raises(ConfigError, match="global_pool"):
        copy.deepcopy(ours).reset_classifier(3, "max")


@pytest.mark.parametrize("layer_decay", [None, 0.75])
def test_timms_optimizer_groups_the_layers_as_those_of_its_vit(ours, theirs, layer_decay):
    from timm.optim import create_optimizer_v2

    def scales(model):
        made = create_optimizer_v2(
            model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=layer_decay
        )
        return sorted({round(g.get("lr_scale", 1.0), 6) for g in made.param_groups})

    assert scales(ours) == scales(theirs)


def test_the_data_config_is_that_of_the_training(ours):
    from timm.data import resolve_data_config

    found = resolve_data_config({}, model=ours)

    assert found["mean"] == (0.485, 0.456, 0.406)
    assert found["std"] == (0.229, 0.224, 0.225)
    assert found["input_size"] == (3, 224, 224)
    assert (found["interpolation"], found["crop_pct"]) == ("bicubic", 1.0)


def test_our_pixels_are_those_of_timms_transform(ours, tmp_path):
    import numpy as np
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    from fourm_lite.finetune.pixels import one_photo, read_pixels

    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((448, 448))
    image.save(tmp_path / "p.png")

    theirs = create_transform(**resolve_data_config({}, model=ours))(image)

    torch.testing.assert_close(
        read_pixels(one_photo(tmp_path / "p.png"), (224, 224)), theirs, rtol=0, atol=1e-5
    )


def save_4m(folder, flavour):
    depth = MODALITIES["tok_depth@224"]
    preset = {**PRESETS[f"tiny_{flavour}"], "decoder_depth": 1}
    config = FourMConfig(inputs=(MODALITIES["rgb@224"], depth), outputs=(depth,), **preset)
    torch.manual_seed(1)
    return FourM(config).init_weights().save(folder)


@pytest.mark.parametrize("flavour", registered.FLAVOURS)
def test_a_4m_file_of_any_flavour_loads_by_its_path(tmp_path, images, flavour):
    folder = save_4m(tmp_path, flavour)
    want = FMViT.from_pretrained(folder, num_classes=0)

    by_file = timm.create_model(NAME, checkpoint_path=f"{folder}/model.safetensors").eval()
    by_folder = timm.create_model(NAME, source=folder, num_classes=0).eval()

    with torch.inference_mode():
        expected = want.forward_features(images)
        torch.testing.assert_close(by_file.forward_features(images), expected)
        torch.testing.assert_close(by_folder.forward_features(images), expected)


def test_features_only_gives_maps_of_the_named_blocks(ours, tmp_path, images):
    path = ours.save(tmp_path) / "model.safetensors"

    net = timm.create_model(NAME, checkpoint_path=path, features_only=True, out_indices=(1, 3))

    with torch.inference_mode():
        want = ours.forward_intermediates(images, [1, 3], intermediates_only=True)
        got = net.eval()(images)
    assert net.feature_info.channels() == [384, 384]
    assert net.feature_info.reduction() == [16, 16]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def features(path, images):
    """Maps of two blocks by `features_only`, and those of the same file opened by ourselves."""
    blocks = {"out_indices": (1, 3)}
    net = timm.create_model(NAME, checkpoint_path=path, features_only=True, **blocks).eval()
    whole = FMViT.from_pretrained(path, num_classes=0)
    with torch.inference_mode():
        return net(images), whole.forward_intermediates(images, [1, 3], intermediates_only=True)


@pytest.mark.parametrize("flavour", registered.FLAVOURS)
def test_features_only_takes_a_4m_file_of_any_flavour(tmp_path, images, flavour):
    path = save_4m(tmp_path, flavour) / "model.safetensors"

    torch.testing.assert_close(*features(path, images))


def test_a_saved_head_loads_and_another_number_of_classes_is_named(ours, tmp_path, images):
    path = ours.save(tmp_path) / "model.safetensors"

    again = timm.create_model(NAME, checkpoint_path=path, num_classes=7).eval()

    with torch.inference_mode():
        torch.testing.assert_close(again(images), ours(images))
    with pytest.raises(CheckpointError, match="has 7 classes, the model was made for 5"):
        timm.create_model(NAME, checkpoint_path=path, num_classes=5)


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")

    with pytest.raises(CheckpointError, match="expected the weights of a 4M model"):
        timm.create_model(NAME, checkpoint_path=tmp_path / "x.safetensors")


def saved(tmp_path, seed=0, **words):
    """A folder with a ViT of the tiny size, and its logits of some images."""
    head = registered.HeadConfig(num_classes=4, **words.pop("head", {}))
    torch.manual_seed(seed)
    config = replace(registered.build("tiny", flavour="gelu").config, head=head, **words)
    model = FMViT(config).init_weights().eval()
    if config.num_register_tokens:
        torch.nn.init.normal_(model.register_tokens)
    model.save(tmp_path)
    return tmp_path, model


HEADS = {
    "attentive": {"pool": "attentive"},
    "two layers": {"layers": 2},
    "dropout": {"dropout": 0.5},
    "all": {"pool": "attentive", "layers": 3, "dropout": 0.1},
}


CONVOLVED = replace(MODALITIES["rgb@224"], convolutions=True)
TAKEN = {
    "registers": {"num_register_tokens": 2},
    "convolutions": {"inputs": (CONVOLVED,)},
    "both": {"num_register_tokens": 3, "inputs": (CONVOLVED,)},
    **{f"a head: {name}": {"head": head} for name, head in HEADS.items()},
}


@pytest.mark.parametrize("words", TAKEN.values(), ids=TAKEN)
def test_features_only_takes_over_whatever_a_file_shows(tmp_path, images, words):
    folder, _ = saved(tmp_path, **words)

    torch.testing.assert_close(*features(folder / "model.safetensors", images))


@pytest.mark.parametrize("drop_rate", [0.0, 0.2])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_every_form_of_head_is_taken_over(tmp_path, images, head, drop_rate):
    folder, model = saved(tmp_path, head=head)

    words = {"num_classes": 4, "drop_rate": drop_rate}
    got = timm.create_model(NAME, checkpoint_path=folder / "model.safetensors", **words).eval()

    with torch.inference_mode():
        torch.testing.assert_close(got(images), model(images))


@pytest.mark.parametrize("word", ["checkpoint_path", "source"])
def test_registers_are_taken_over(tmp_path, images, word):
    folder, model = saved(tmp_path, num_register_tokens=2)

    place = folder / "model.safetensors" if word == "checkpoint_path" else folder
    got = timm.create_model(NAME, num_classes=4, **{word: place}).eval()

    with torch.inference_mode():
        torch.testing.assert_close(got(images), model(images))


@pytest.mark.parametrize(
    ("head", "pool", "word"), [("attentive", "", "global_pool='map'"), ("dropout", "map", "'avg'")]
)
def test_a_pool_that_does_not_fit_the_head_is_refused(tmp_path, head, pool, word):
    folder, _ = saved(tmp_path, head=HEADS[head])

    with pytest.raises(CheckpointError, match=word):
        timm.create_model(NAME, source=folder, num_classes=4, global_pool=pool)


def test_a_part_that_no_head_has_is_named(ours):
    state = {**ours.state_dict(), "head.norm.weight": torch.zeros(1)}

    with pytest.raises(CheckpointError, match=r"head\.norm\.weight"):
        copy.deepcopy(ours).load_state_dict(state)


def test_another_size_is_named_with_the_model_that_fits():
    state = registered.build("mini", flavour="gelu").state_dict()

    with pytest.raises(CheckpointError, match=r"width 192 and 12 blocks.*make fm_vit_mini_patch16"):
        registered.build("tiny").load_state_dict(state)


def test_other_channels_are_named(ours):
    with pytest.raises(CheckpointError, match="pass in_chans=3"):
        registered.build("tiny", in_chans=1).load_state_dict(ours.state_dict())


def test_a_table_that_is_no_square_needs_its_size(ours, tmp_path):
    wide = copy.deepcopy(ours)
    wide.set_input_size((192, 432))  # 12 x 27 places: as many as of a square
    wide.save(tmp_path)
    odd = copy.deepcopy(ours)
    odd.set_input_size((240, 320))

    again = registered.build("tiny", source=tmp_path, num_classes=7)
    want = copy.deepcopy(wide)
    want.set_input_size(224)

    torch.testing.assert_close(again.patch_embed.pos_emb, want.patch_embed.pos_emb)
    with pytest.raises(CheckpointError, match="300 places, which are no square"):
        copy.deepcopy(ours).load_state_dict(odd.state_dict())


def test_the_shipped_model_opens_by_its_name(images):
    want = FMViT.from_pretrained("mini", num_classes=0)

    got = timm.create_model("fm_vit_mini_patch16_224", source="mini", num_classes=0).eval()

    with torch.inference_mode():
        torch.testing.assert_close(got(images), want(images))


def test_timms_words_for_less_attention_are_refused(ours, images):
    assert ours.forward_intermediates(images, 1, attn_mask=None, is_causal=False)
    with pytest.raises(ConfigError, match="leave out attn_mask"):
        ours.get_intermediate_layers(images, attn_mask=torch.ones(196, 196, dtype=torch.bool))
    with pytest.raises(ConfigError, match="is_causal"):
        ours.forward_intermediates(images, is_causal=True)


def test_a_changed_model_keeps_what_timm_saves_of_it(ours, tmp_path):
    changed = copy.deepcopy(ours)
    changed.reset_classifier(3)
    changed.set_input_size(256)

    timm.models.save_for_hf(changed, tmp_path)

    told = json.loads((tmp_path / "config.json").read_text())
    assert told["architecture"] == NAME
    assert told["num_classes"] == 3
    assert changed.pretrained_cfg["input_size"] == (3, 256, 256)
