"""Every door gives one picture the same pixels, whatever holds it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import save_pipeline

from fourm_lite import FourMPipeline
from fourm_lite.embedders.image_configs import PRESETS, from_timm, from_transformers
from fourm_lite.embedders.load import load_embedder
from fourm_lite.modalities.pictures import decode, open_rgb
from fourm_lite.search.space import DualEncoderSpace

pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def files(tmp_path_factory, photos):
    """Pictures that two readers are likely to read in two ways."""
    folder, photo = tmp_path_factory.mktemp("doors"), photos[0]
    cut_out = photo.copy()
    cut_out.putalpha(Image.linear_gradient("L").resize(photo.size))
    palette, turned = photo.quantize(16), Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    cut_out.save(folder / "alpha.png")
    cut_out.convert("LA").save(folder / "grey_alpha.png")
    cut_out.save(folder / "alpha.webp", lossless=True)
    palette.save(folder / "palette.png", transparency=palette.getpixel((0, 0)))
    deep.save(folder / "deep.png")
    deep.save(folder / "deep_hidden.png", transparency=int(np.asarray(deep)[0, 0]))
    deep.save(folder / "deep.tif")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.save(folder / "turned.jpg", exif=turned)
    photo.convert("1").save(folder / "bits.png")
    photo.save(folder / "frames.gif", save_all=True, append_images=[photos[2].resize(photo.size)])
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    """What each way into the library makes of a picture, as numbers."""
    seen = []

    def network(pictures):
        seen.extend(np.asarray(picture) for picture in pictures)
        return np.ones((len(pictures), 2))

    embedder = load_embedder(network)
    pipe = FourMPipeline.from_pretrained(save_pipeline(tmp_path_factory.mktemp("doors") / "model"))
    processor = from_transformers({"image_processor_type": "CLIPImageProcessor", "size": 40})
    timm = from_timm({"input_size": (3, 32, 32), "crop_pct": 0.9})
    return {
        "embed_image": lambda form: (embedder.embed_image(form), seen[-1])[1],
        "embed_image of a list": lambda form: (embedder.embed_image([form]), seen[-1])[1],
        "a twin's query": lambda form: (
            DualEncoderSpace(embedder).encode_query([{"rgb": form}]), seen[-1]
        )[1],
        "a preset": PRESETS["imagenet"],
        "transformers": processor,
        "a batch of transformers": lambda form: processor.batch([form])["pixel_values"],
        "timm": timm,
        "the pipeline": lambda form: pipe.read({"rgb": form})["rgb@32"].value,
        "the pipeline's tokenizer": lambda form: pipe.read({"tok_rgb": form})["tok_rgb@32"].value,
    }  # fmt: skip


def test_every_door_gives_one_picture_the_same_pixels(doors, files):
    for file in files:
        want = decode(file)
        assert want.mode == "RGB"
        assert np.array_equal(np.asarray(open_rgb(file.read_bytes())), np.asarray(want))
        for name, door in doors.items():
            reference = np.asarray(door(want))
            with Image.open(file) as opened:
                for form in (file, str(file), file.read_bytes(), opened, np.asarray(want)):
                    got = np.asarray(door(form))
                    assert np.array_equal(got, reference), (file.name, name, type(form))
