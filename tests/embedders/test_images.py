"""Our pixels against each library's own processor, and what counts as a picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fourm_lite.embedders.image_configs import (
    PRESETS,
    from_open_clip,
    from_timm,
    from_transformers,
    preset,
)
from fourm_lite.embedders.images import ImagePreprocess, as_rgb, open_image
from fourm_lite.errors import ConfigError, FourMError, ShapeError

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


def test_a_crop_larger_than_the_picture_is_padded_as_transformers_pads(photos, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 30}, crop_size={"height": 37, "width": 52}
    )

    ours = from_transformers(their_config(theirs, tmp_path))

    for image in photos:
        want = theirs(image, return_tensors="pt")["pixel_values"]
        assert torch.allclose(ours.batch([image])["pixel_values"], want, atol=EXACT)


def test_pixels_equal_those_of_dinov3_which_scales_before_it_resizes(photos, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    theirs = transformers.DINOv3ViTImageProcessor(size={"height": 48, "width": 32})

    ours = from_transformers(their_config(theirs, tmp_path))

    for image in photos:
        want = theirs(image, return_tensors="pt")["pixel_values"]
        assert torch.allclose(ours.batch([image])["pixel_values"], want, atol=1e-5)


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


def test_the_mofi_preset_equals_the_transform_of_its_readme(photos):
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(32, antialias=False),
            transforms.CenterCrop(32),
            transforms.Normalize(PRESETS["mofi"].mean, PRESETS["mofi"].std),
        ]
    )

    ours = preset("mofi", size=32)

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


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_sixteen_bits_become_eight_and_are_not_cut_off(kind):
    deep = Image.fromarray(np.full((2, 2), 100 * 257, kind))

    assert as_rgb(deep).getpixel((0, 0)) == (100, 100, 100)


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
        assert np.array_equal(np.asarray(open_image(form)), array)


def test_a_photo_on_its_side_is_turned_upright(photos, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photos[0].save(tmp_path / "turned.png", exif=exif)

    assert open_image(tmp_path / "turned.png").size == photos[0].size[::-1]


def test_what_is_no_picture_is_refused_with_its_name(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture at all")

    with pytest.raises(FourMError, match=r"broken\.jpg"):
        open_image(tmp_path / "broken.jpg")
    with pytest.raises(FourMError, match=r"missing\.jpg"):
        open_image(tmp_path / "missing.jpg")
    with pytest.raises(ShapeError, match=r"\[H, W, 3\]"):
        open_image(np.zeros((2, 3, 4, 5), np.uint8))
    with pytest.raises(ShapeError, match="uint8 or float"):
        open_image(np.full((4, 4, 3), 200.0))


def test_pictures_of_several_sizes_need_a_crop(photos):
    with pytest.raises(ShapeError, match="one size"):
        ImagePreprocess(resize="none", crop=None).batch(photos)


def test_unknown_preprocessing_is_refused_by_name():
    with pytest.raises(ConfigError, match="Did you mean 'imagenet'"):
        preset("imagenett")
    with pytest.raises(ConfigError, match="image_mean"):
        from_transformers({"image_processor_type": "NewImageProcessor", "size": 32})
    with pytest.raises(ConfigError, match="longest_edge"):
        from_transformers(
            {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": 32, "longest_edge": 64},
            }
        )


def test_an_open_picture_is_turned_upright_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held a quarter turn
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)

    with Image.open(tmp_path / "turned.jpg") as picture:
        assert open_image(picture).size == open_image(tmp_path / "turned.jpg").size == (4, 6)
