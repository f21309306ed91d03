"""Our pixels against each library's own processor, and what counts as a picture."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fourm_lite.embedders.image_configs import (
    CLIP,
    IMAGENET,
    PRESETS,
    by_size,
    from_open_clip,
    from_timm,
    from_transformers,
    preset,
)
from fourm_lite.embedders.image_transforms import ImagePreprocess
from fourm_lite.errors import ConfigError, FourMError, ShapeError
from fourm_lite.modalities.pictures import as_picture

EXACT = 1e-6

PROCESSORS = {
    "CLIPImageProcessorPil": {
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 36, "width": 36},
    },
    "BitImageProcessorPil": {
        "size": {"shortest_edge": 41},
        "crop_size": {"height": 36, "width": 34},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
    },
    "SiglipImageProcessorPil": {"size": {"height": 32, "width": 48}},
    "BlipImageProcessorPil": {"size": {"height": 40, "width": 40}},
    "ViTImageProcessorPil": {"size": {"height": 30, "width": 30}, "do_normalize": False},
    "EfficientNetImageProcessorPil": {
        "size": {"height": 44, "width": 44},
        "crop_size": {"height": 40, "width": 40},
        "do_center_crop": True,
        "rescale_offset": True,
        "rescale_factor": 1 / 127.5,
        "include_top": False,
        "do_normalize": False,
    },
}


def their_config(processor, tmp_path) -> dict:
    processor.save_pretrained(tmp_path)
    return json.loads((tmp_path / "preprocessor_config.json").read_text())


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_those_of_the_transformers_processor(name, photos, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, name)(**PROCESSORS[name])

    ours = from_transformers(their_config(theirs, tmp_path))

    for image in photos:
        want = theirs(image, return_tensors="pt")["pixel_values"]
        assert torch.allclose(ours.batch([image])["pixel_values"], want, atol=EXACT)


def test_our_own_steps_equal_those_of_transformers(photos):
    transformers = pytest.importorskip("transformers")
    crop = {"height": 37, "width": 52}  # larger than some of the pictures
    clip = transformers.CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size=crop)
    siglip = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 48}, resample=2)
    pairs = [
        (clip, ImagePreprocess(size=(30, 30), crop=(37, 52), centering="floor", **CLIP)),
        (
            siglip,
            ImagePreprocess(
                resize="squash", size=(32, 48), crop=None, interpolation="bilinear",
                mean=(0.5,) * 3, std=(0.5,) * 3,
            ),
        ),
    ]  # fmt: skip

    for theirs, ours in pairs:
        for image in photos:
            want = theirs(image, return_tensors="pt")["pixel_values"]
            assert torch.allclose(ours.batch([image])["pixel_values"], want, atol=EXACT)


@pytest.mark.parametrize("size", [(36, 36), (36, 50)])
def test_our_own_steps_equal_those_of_timm(size, photos):
    timm_data = pytest.importorskip("timm.data")
    theirs = timm_data.create_transform(input_size=(3, *size), crop_pct=0.9, is_training=False)
    resize = "shortest" if size[0] == size[1] else "cover"
    scaled = tuple(int(edge / 0.9) for edge in size)

    ours = ImagePreprocess(
        resize=resize, size=scaled, crop=size, interpolation="bilinear", **IMAGENET
    )

    for image in photos:
        assert torch.allclose(ours(image), theirs(image), atol=EXACT)


def test_pixels_equal_those_of_dinov3_which_scales_before_it_resizes(photos, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    theirs = transformers.DINOv3ViTImageProcessor(size={"height": 48, "width": 32})

    ours = from_transformers(their_config(theirs, tmp_path))

    for image in photos:
        want = theirs(image, return_tensors="pt")["pixel_values"]
        assert torch.allclose(ours.batch([image])["pixel_values"], want, atol=1e-5)


# One of each way to size a picture; all kinds of the library by hand: -m slow
KINDS = [
    "Beit", "BridgeTower", "CLIP", "ConvNext", "DPT", "DeiT", "Detr", "Flava", "GLPN", "Levit",
    "MobileNetV1", "MobileViT", "OwlViT", "Perceiver", "Pix2Struct", "PoolFormer", "Pvt",
    "Segformer", "Siglip2", "TextNet", "Tvp", "ViT", "Vilt", "Yolos", "ZoeDepth",
]  # fmt: skip


def check_kind(kind, photo):
    """Our pixels of a kind are the library's own, or it is refused before any picture is read."""
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, f"{kind}ImageProcessorPil")()
    config = json.loads(theirs.to_json_string())
    try:
        ours = from_transformers(config)
    except ConfigError:
        raise
    except FourMError:
        return  # needs more than a picture: pairs, points, masks
    config.pop("image_processor_type")
    if getattr(theirs, "apply_ocr", False):
        theirs.apply_ocr = False
    want = theirs(images=[photo], return_tensors="pt")
    want = {"pixel_values": want} if isinstance(want, torch.Tensor) else want

    got = ours._inputs([photo])

    tensors = {name: value for name, value in want.items() if isinstance(value, torch.Tensor)}
    assert set(got) == {name for name, value in tensors.items() if value.ndim}
    for name, value in got.items():
        assert torch.allclose(value.float(), want[name].float(), atol=EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_processor_gives_the_librarys_own_pixels(kind, photos):
    check_kind(kind, photos[0])


@pytest.mark.slow
def test_all_kinds_of_the_installed_library_give_its_pixels_or_are_refused(photos):
    transformers = pytest.importorskip("transformers")
    ending = "ImageProcessorPil"
    kinds = [name.removesuffix(ending) for name in dir(transformers) if name.endswith(ending)]

    for kind in kinds:
        check_kind(kind, photos[0])

    assert len(kinds) > 60


def test_a_kind_or_key_that_the_library_does_not_know_is_refused():
    pytest.importorskip("transformers")
    good = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}

    with pytest.raises(ConfigError, match="NewImageProcessor"):
        from_transformers({**good, "image_processor_type": "NewImageProcessor"})
    with pytest.raises(ConfigError, match=r"no key 'do_normalise'.*Did you mean 'do_normalize'"):
        from_transformers({**good, "do_normalise": False})
    with pytest.raises(ConfigError, match="never run"):
        from_transformers({**good, "auto_map": {"AutoImageProcessor": "code.Mine"}})
    with pytest.raises(ConfigError, match="image_processor_type"):
        from_transformers({"size": {"height": 8, "width": 8}})
    with pytest.raises(ConfigError, match="image_processor_type"):
        from_transformers({"size": 8}, model_type="no_such_model")
    for kind in ("BaseImageProcessor", "AutoImageProcessor"):
        with pytest.raises(ConfigError):
            from_transformers({"image_processor_type": kind})


def test_notes_and_empty_keys_of_files_mean_nothing(photos):
    pytest.importorskip("transformers")
    good = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    noted = {**good, "_valid_processor_keys": ["images"], "processor_class": "X", "new_key": None}

    assert from_transformers(noted) == from_transformers(good)
    assert torch.equal(from_transformers(noted)(photos[0]), from_transformers(good)(photos[0]))


def test_a_file_without_a_kind_takes_that_of_its_network(photos):
    pytest.importorskip("transformers")
    size = {"shortest_edge": 32}

    by_network = from_transformers({"size": size}, model_type="resnet")
    named = from_transformers({"size": size, "feature_extractor_type": "ConvNextFeatureExtractor"})

    assert torch.equal(by_network(photos[0]), named(photos[0]))


def test_an_older_name_of_a_key_is_read_as_todays(photos):
    pytest.importorskip("transformers")
    kind = {"image_processor_type": "MobileViTImageProcessor", "size": 40, "crop_size": 32}

    flipped = from_transformers({**kind, "do_flip_channels": True})(photos[0])
    plain = from_transformers({**kind, "do_flip_channels": False})(photos[0])

    assert torch.equal(flipped.flip(0), plain)
    assert not torch.equal(flipped, plain)


def test_kinds_that_need_more_than_a_picture_are_refused_when_they_are_read():
    transformers = pytest.importorskip("transformers")
    for kind in ("SuperGlue", "VitMatte", "ImageGPT"):
        config = json.loads(getattr(transformers, f"{kind}ImageProcessorPil")().to_json_string())
        with pytest.raises(FourMError, match=kind):
            from_transformers(config)


def test_video_kinds_take_one_picture_and_refuse_a_batch(photos):
    transformers = pytest.importorskip("transformers")
    ours = from_transformers(json.loads(transformers.VideoMAEImageProcessorPil().to_json_string()))

    assert len(ours.batch(photos[:1])["pixel_values"]) == 1
    with pytest.raises(ShapeError, match="one a picture"):
        ours.batch(photos[:2])


@pytest.mark.parametrize("kind", ["Vilt", "TextNet"])
def test_a_pictures_inputs_do_not_depend_on_its_neighbours(kind, photos):
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(size={"shortest_edge": 64})
    ours = from_transformers(json.loads(processor.to_json_string()))

    found = {}
    for places, inputs in by_size(ours, photos):
        for row, place in enumerate(places):
            found[place] = {name: value[row] for name, value in inputs.items()}

    assert sorted(found) == list(range(len(photos)))
    for place, picture in enumerate(photos):
        for name, value in ours.batch([picture]).items():
            assert torch.equal(found[place][name], value[0])


def test_the_torchvision_processors_differ_by_rounding_only(photos, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    theirs = transformers.CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 36, "width": 36}, do_normalize=False
    )

    ours = from_transformers(their_config(theirs, tmp_path))

    for image in photos:
        want = theirs(image, return_tensors="pt")["pixel_values"]
        got = ours.batch([image])["pixel_values"]
        assert (got - want).abs().max() <= 1.5 / 255  # one grey level


def test_naflex_patches_equal_those_of_the_siglip2_processor(photos, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=23)

    ours = from_transformers(their_config(theirs, tmp_path))
    want, got = theirs(photos, return_tensors="pt"), ours.batch(photos)

    assert set(got) == set(want)
    assert torch.allclose(got["pixel_values"], want["pixel_values"], atol=EXACT)
    assert torch.equal(got["pixel_attention_mask"].long(), want["pixel_attention_mask"].long())
    assert torch.equal(got["spatial_shapes"], torch.as_tensor(want["spatial_shapes"]))


def test_padded_pixels_equal_those_of_the_vilt_processor(photos, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ViltImageProcessorPil(size={"shortest_edge": 64}, size_divisor=16)

    ours = from_transformers(their_config(theirs, tmp_path))
    want, got = theirs(photos, return_tensors="pt"), ours.batch(photos)

    assert torch.allclose(got["pixel_values"], want["pixel_values"], atol=EXACT)
    assert torch.equal(got["pixel_mask"], want["pixel_mask"])


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(36, 36), (36, 50)])
def test_pixels_equal_those_of_timms_evaluation_transform(mode, size, photos):
    pytest.importorskip("torchvision")
    timm_data = pytest.importorskip("timm.data")
    config = {
        "input_size": (3, *size),
        "crop_pct": 0.9,
        "crop_mode": mode,
        "interpolation": "bicubic",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
    }
    theirs = timm_data.create_transform(**config, is_training=False)

    ours = from_timm(config)

    for image in photos:
        assert torch.allclose(ours(image), theirs(image), atol=EXACT)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [36, (36, 50)])
def test_pixels_equal_those_of_open_clips_transform(mode, size, photos):
    open_clip = pytest.importorskip("open_clip", reason="the extra [open_clip] is not installed")
    if mode == "longest" and isinstance(size, int):
        size = (size, size)
    theirs = open_clip.image_transform(
        size, is_train=False, resize_mode=mode, interpolation="bicubic", fill_color=7
    )

    ours = from_open_clip({"size": size, "resize_mode": mode, "fill_color": 7})

    for image in photos:
        assert torch.allclose(ours(image), theirs(image), atol=EXACT)


@pytest.mark.parametrize("engine", ["plain", "float"])
def test_the_mofi_preset_equals_the_transform_of_its_readme(engine, photos):
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(32, antialias=engine == "float"),
            transforms.CenterCrop(32),
            transforms.Normalize(PRESETS["mofi"].mean, PRESETS["mofi"].std),
        ]
    )

    ours = replace(preset("mofi", size=32), engine=engine)

    for image in photos:
        assert torch.allclose(ours(image), theirs(image), atol=1e-5)


def test_old_clip_files_with_plain_numbers_mean_edge_and_crop(photos):
    transformers = pytest.importorskip("transformers")
    old = {
        "crop_size": 32,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 32,
    }
    theirs = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )

    want = theirs(photos[0], return_tensors="pt")["pixel_values"]

    assert torch.allclose(
        from_transformers(old).batch([photos[0]])["pixel_values"], want, atol=1e-6
    )


def test_transparency_lies_on_white_for_transformers_models(photos, tmp_path):
    transformers = pytest.importorskip("transformers")
    alpha = Image.fromarray(np.tile(np.arange(100, dtype=np.uint8) * 2, (75, 1)))
    image = photos[0].copy()
    image.putalpha(alpha)
    theirs = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})

    ours = from_transformers(their_config(theirs, tmp_path))

    want = theirs(image, return_tensors="pt")["pixel_values"]
    assert torch.allclose(ours.batch([image])["pixel_values"], want, atol=EXACT)


def test_a_picture_is_the_same_as_file_array_and_tensor(photos, tmp_path):
    image = photos[0]
    image.save(tmp_path / "photo.png")
    array = np.asarray(image)
    forms = [
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        array,
        array / 255,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
    ]

    for form in forms:
        assert np.array_equal(np.asarray(as_picture(form)), array)


def test_a_photo_on_its_side_is_turned_upright(photos, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photos[0].save(tmp_path / "turned.png", exif=exif)

    assert as_picture(tmp_path / "turned.png").size == photos[0].size[::-1]


def test_what_is_no_picture_is_refused_with_its_name(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture at all")

    with pytest.raises(FourMError, match=r"broken\.jpg"):
        as_picture(tmp_path / "broken.jpg")
    with pytest.raises(FourMError, match=r"missing\.jpg"):
        as_picture(tmp_path / "missing.jpg")
    with pytest.raises(ShapeError, match=r"\[H, W, 3\]"):
        as_picture(np.zeros((2, 3, 4, 5), np.uint8))
    with pytest.raises(ShapeError, match="uint8 or float"):
        as_picture(np.full((4, 4, 3), 200.0))


def test_pictures_of_several_sizes_need_a_crop(photos):
    with pytest.raises(ShapeError, match="one size"):
        ImagePreprocess(resize="none", crop=None).batch(photos)


def test_unknown_preprocessing_is_refused_by_name():
    with pytest.raises(ConfigError, match="Did you mean 'imagenet'"):
        preset("imagenett")


def test_an_open_picture_is_turned_upright_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held a quarter turn
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)

    with Image.open(tmp_path / "turned.jpg") as picture:
        assert as_picture(picture).size == as_picture(tmp_path / "turned.jpg").size == (4, 6)
