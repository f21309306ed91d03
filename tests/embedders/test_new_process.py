"""All families at once: one new process without a network gives the libraries' own vectors.

The parent computes them with transformers, timm and onnxruntime; the child knows saved folders,
photos on the disk and texts only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import (
    OPEN_CLIP,
    align,
    clip,
    dinov2,
    dinov3,
    save_open_clip,
    save_timm,
    siglip,
    siglip2,
)

from .conftest import photo, unit
from .test_hf import image_features, mofi_features
from .test_timm_models import MODELS as TIMM

timm = pytest.importorskip("timm")
timm_data = pytest.importorskip("timm.data")
pytest.importorskip("torchvision", reason="the libraries' own transforms need it")

TEACHER = Path(__file__).parents[3] / "shared" / "data" / "teacher" / "mobilenet_v2_imagenet.onnx"
CHILD = """
import json, socket, sys
import numpy as np

def refuse(*address):
    raise SystemExit(f"the network was asked for {address}")

socket.socket.connect = socket.getaddrinfo = refuse
from fourm_lite import load_embedder

work = json.load(open("work.json"))
found = {}
for name, (spec, photos, texts) in work.items():
    embedder = load_embedder(spec)
    found[f"{name} image"] = embedder.embed_image(photos)
    found[f"{name} image single"] = np.concatenate([embedder.embed_image(p) for p in photos])
    if texts:
        found[f"{name} text"] = embedder.embed_text(texts)
        found[f"{name} text single"] = np.concatenate([embedder.embed_text(t) for t in texts])
np.savez("found.npz", **found)
"""


def twin_case(folder, build, photos, texts):
    model, processor, padding = build()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    with torch.inference_mode():
        inputs = processor(text=texts, return_tensors="pt", **padding)
        words = unit(model.get_text_features(**inputs).pooler_output)
    return image_features(model, processor, photos), words


def mofi_case(folder, photos, texts):
    model, processor, padding = clip()
    model.eval().save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)  # MOFI's folders hold no preprocessing
    with torch.inference_mode():
        inputs = processor.tokenizer(texts, return_tensors="pt", **padding)
        words = unit(model.get_text_features(**inputs).pooler_output)
    return mofi_features(model, photos), words


def dino_case(folder, build, photos):
    model, pixels = build()
    model.save_pretrained(folder)
    pixels.save_pretrained(folder)
    with torch.inference_mode():
        return unit(model(**pixels(photos, return_tensors="pt")).last_hidden_state[:, 0]), None


def timm_case(folder, name, photos):
    architecture, arguments, classes, edge = TIMM[name]
    model = timm.create_model(architecture, num_classes=classes, **arguments).eval()
    save_timm(model, architecture, arguments, edge, folder)
    config = {**model.pretrained_cfg, "input_size": (3, edge, edge)}
    resolved = timm_data.resolve_data_config({}, pretrained_cfg=config)
    transform = timm_data.create_transform(**resolved, is_training=False)
    with torch.inference_mode():
        pixels = torch.stack([transform(photo) for photo in photos])
        dino = name.startswith("dino")
        return unit(model.forward_features(pixels)[:, 0] if dino else model(pixels)), None


def open_clip_case(folder, photos, texts):
    library = pytest.importorskip("open_clip", reason="the extra [open_clip] is not installed")
    save_open_clip(OPEN_CLIP, {}, folder)
    model, _, transform = library.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = library.get_tokenizer(f"local-dir:{folder}")
    with torch.inference_mode():
        pixels = torch.stack([transform(photo) for photo in photos])
        return unit(model.eval().encode_image(pixels)), unit(model.encode_text(tokenizer(texts)))


def onnx_case(squares):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(TEACHER), providers=["CPUExecutionProvider"])
    pixels = np.stack([np.asarray(s, np.float32).transpose(2, 0, 1) / 255 for s in squares])
    return unit(torch.from_numpy(session.run(["embedding"], {"pixels": pixels})[0])), None


def saved(pictures, folder):
    folder.mkdir()
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(len(pictures))]


@pytest.mark.usefixtures("seeded")
def test_a_new_process_offline_gives_the_libraries_vectors(photos, texts, tmp_path):
    files = saved(photos, tmp_path / "photos")
    cases, work = {}, {}
    for build in (clip, siglip, siglip2, align):
        cases[build.__name__] = twin_case(tmp_path / build.__name__, build, photos, texts)
    cases["mofi"] = mofi_case(tmp_path / "mofi", photos, texts)
    for build in (dinov2, dinov3):
        cases[build.__name__] = dino_case(tmp_path / build.__name__, build, photos)
    for name, (_, words) in cases.items():
        work[name] = f"hf:{name}", files, texts if words is not None else []
    for name in ("dinov2", "dinov3", "mobileclip"):
        folder = f"timm-{name}"
        cases[folder] = timm_case(tmp_path / folder, name, photos)
        work[folder] = f"timm:{folder}", files, []
    if TEACHER.is_file():  # of its input's size, so that nothing is resized
        squares = [photo(seed, 224, 224) for seed in range(3)]
        cases["onnx"] = onnx_case(squares)
        work["onnx"] = f"onnx:{TEACHER}", saved(squares, tmp_path / "squares"), []

    compare(cases, work, tmp_path)


@pytest.mark.usefixtures("seeded")
def test_openclips_vectors_come_from_a_new_process_too(photos, texts, tmp_path):
    cases = {"zoo": open_clip_case(tmp_path / "zoo", photos, texts)}

    compare(cases, {"zoo": ("open_clip:zoo", saved(photos, tmp_path / "photos"), texts)}, tmp_path)


def compare(cases, work, folder):
    """Runs the child over `work` and holds its vectors against those of `cases`."""
    (folder / "work.json").write_text(json.dumps(work), encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=folder, capture_output=True, text=True,
        env={
            **os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "empty"),
            "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path),
        },
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(folder / "found.npz") as found:
        for name, (images, words) in cases.items():
            for kind, want in (("image", images), ("text", words)):
                if want is not None:
                    for how in ("", " single"):
                        got = found[f"{name} {kind}{how}"]
                        assert got.shape == want.shape
                        assert np.abs(got - want).max() < 1e-5, f"{name} {kind}{how}"
