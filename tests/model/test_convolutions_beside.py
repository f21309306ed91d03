"""Convolutions beside an encoder: in a model, a ViT, a file, at the start of a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import CAPTION, GLOBAL, tiny_model

from fourm_lite.backbone.vit import FMViT
from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.model.load import load_model
from fourm_lite.training.warm_convolutions import start_convolutions, start_map

PIXELS = Modality(
    name="rgb@64", kind="pixels", channels=3, image_size=64, patch_size=16, grid=(4, 4),
    max_tokens=16, directions=IN, convolutions=True,
)  # fmt: skip
BESIDE = "encoder_embeddings.rgb@64.conv"


def made(convolutions: bool = True):
    entry = replace(PIXELS, convolutions=convolutions)
    model = tiny_model(inputs=(entry, CAPTION), outputs=(GLOBAL, CAPTION), image_size=64)
    if convolutions:
        model.encoder_embeddings["rgb@64"].init_weights()
    return model


@pytest.fixture
def pixels(generator):
    return torch.randn(2, 3, 64, 64, generator=generator)


def given(pixels, inputs=None):
    tokens = Tokens.given(pixels, length=16)
    return TokenBatch({"rgb@64": tokens if inputs is None else replace(tokens, inputs=inputs)})


@torch.no_grad()
def test_convolutions_whose_map_is_zero_change_nothing(pixels):
    model, plain = made(), made(convolutions=False)
    torch.nn.init.zeros_(model.encoder_embeddings["rgb@64"].conv_map.weight)
    torch.nn.init.zeros_(model.encoder_embeddings["rgb@64"].conv_map.bias)
    own = {n: v for n, v in model.state_dict().items() if not n.startswith(BESIDE)}
    plain.load_state_dict(own)

    batch = given(pixels)

    assert torch.equal(model.encode(batch).output, plain.encode(batch).output)


@torch.no_grad()
def test_pixels_of_patches_that_are_not_given_change_nothing(pixels):
    model = made()
    inputs = torch.ones(2, 16, dtype=torch.bool)
    inputs[:, 5] = False  # rows 16 to 32, columns 16 to 32
    other = pixels.clone()
    other[:, :, 16:32, 16:32] += 3.0

    first, second = (model.encode(given(x, inputs)).output for x in (pixels, other))

    assert torch.equal(first, second)
    assert not torch.allclose(model.encode(given(other)).output, model.encode(given(pixels)).output)


@torch.no_grad()
def test_what_lies_around_a_patch_is_seen(pixels):
    model = made()
    other = pixels.clone()
    other[:, :, 16:32, 16:32] += 3.0
    embedding = model.encoder_embeddings["rgb@64"]

    first, second = (
        embedding.beside(given(x)["rgb@64"]).view(2, 4, 4, -1) for x in (pixels, other)
    )

    assert not torch.allclose(first[:, 0, 1], second[:, 0, 1])


@torch.no_grad()
def test_a_file_holds_them_and_gives_the_same_numbers(tmp_path, pixels):
    model = made()

    again = load_model(model.save(tmp_path / "model"))

    assert again.modality("rgb@64").convolutions
    assert torch.equal(again.encode(given(pixels)).output, model.encode(given(pixels)).output)
    path = tmp_path / "model" / "model.safetensors"
    assert f"{BESIDE}olutions.first.weight" in load_file(path)


def test_they_are_for_patches_of_sixteen_pixels_alone():
    with pytest.raises(ConfigError, match=r"convolutions.*patch_size of 16.*patch_size 8"):
        replace(PIXELS, patch_size=8, grid=(8, 8), max_tokens=64)
    with pytest.raises(ConfigError, match="convolutions"):
        replace(GLOBAL, convolutions=True)


@torch.no_grad()
def test_a_vit_has_them_for_images_of_any_size(tmp_path, pixels):
    model = made()
    vit = FMViT.from_pretrained(model.save(tmp_path / "model"))

    torch.testing.assert_close(vit.forward_features(pixels), model.encode(given(pixels)).output)
    assert vit.forward_features(torch.zeros(1, 3, 32, 96)).shape == (1, 12, 16)


@torch.no_grad()
def test_timm_takes_over_those_that_a_file_shows(tmp_path):
    timm = pytest.importorskip("timm")
    import fourm_lite.backbone.timm_models  # noqa: F401

    name = "fm_vit_tiny_patch16_224"
    torch.manual_seed(0)
    plain = timm.create_model(name).eval()
    entry = replace(plain.config.pixels, convolutions=True)
    config = replace(plain.config, inputs=(entry,))
    ours = FMViT(config).init_weights().eval()
    path = ours.save(tmp_path / "vit") / "model.safetensors"
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    got = timm.create_model(name, checkpoint_path=path).eval()

    torch.testing.assert_close(got.forward_features(x), ours.forward_features(x))
    assert got.config.pixels.convolutions
    got.load_state_dict(plain.state_dict())
    assert not got.config.pixels.convolutions


def network(folder: Path, shapes=None) -> Path:
    """An ONNX file that begins as MobileNetV2 does: weights int8, pixels scaled and shifted."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    layers = made().encoder_embeddings["rgb@64"].convolutions.layers()
    generator = torch.Generator().manual_seed(0)
    nodes = [
        helper.make_node("Mul", ["pixels", "two"], ["double"]),
        helper.make_node("Add", ["double", "minus"], ["x0"]),
    ]
    values = {"two": torch.tensor(2.0), "minus": torch.tensor(-1.0)}
    for i, layer in enumerate(layers if shapes is None else layers[:shapes]):
        shape = layer.weight.shape
        values |= {
            f"q{i}": torch.randint(-9, 9, shape, generator=generator).to(torch.int8),
            f"s{i}": torch.rand(shape[0], generator=generator),
            f"z{i}": torch.full((shape[0],), 2, dtype=torch.int8),
            f"b{i}": torch.randn(shape[0], generator=generator),
        }
        names = [f"q{i}", f"s{i}", f"z{i}"]
        nodes.append(helper.make_node("DequantizeLinear", names, [f"w{i}"], axis=0))
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}", f"b{i}"], [f"x{i + 1}"]))
    constants = [numpy_helper.from_array(v.numpy(), name) for name, v in values.items()]
    model = helper.make_model(helper.make_graph(nodes, "net", [], [], constants))
    onnx.save(model, str(folder / "net.onnx"))
    return folder / "net.onnx"


def test_a_start_takes_the_first_layers_of_a_network(tmp_path, pixels):
    model = made()
    path = network(tmp_path)

    start_convolutions(model, path)

    stem = model.encoder_embeddings["rgb@64"].convolutions
    assert not model.encoder_embeddings["rgb@64"].conv_map.weight.any()
    # The first layer: a picture in [0, 1] normalised as ImageNet's gives what the file's would.
    from onnx import load, numpy_helper

    held = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in load(path).graph.initializer}
    weight = (held["q0"].float() - 2.0) * held["s0"].view(-1, 1, 1, 1)
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    want = torch.nn.functional.conv2d(picture * 2 - 1, weight, held["b0"], stride=2)
    got = stem.first((picture - mean) / std)
    torch.testing.assert_close(got[:, :, :3, :3], want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_is_seen_begins_as_components_of_one_spread(generator):
    model = made()
    pictures = torch.rand(5, 8, 3, 4, 4, generator=generator)
    batches = [given(torch.nn.functional.interpolate(p, 64)) for p in pictures]
    stream = SimpleNamespace(  # every other batch has no pixels
        components=[SimpleNamespace(inputs=[name]) for name in ("rgb@64", "caption")],
        turn=lambda step: (step % 2, step),
        batch=lambda step: SimpleNamespace(batch=batches[step // 2]),
    )

    start_map(model, stream, 5, spread=0.5)

    embedding = model.encoder_embeddings["rgb@64"]
    added = torch.cat([embedding.beside(b["rgb@64"]) for b in batches]).flatten(0, 1)
    torch.testing.assert_close(added.mean(dim=0), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(added.T), 0.25 * torch.eye(16), atol=5e-3, rtol=0)


def test_a_network_of_another_kind_is_refused(tmp_path):
    model = made()
    short = network(tmp_path, shapes=5)

    with pytest.raises(CheckpointError, match=r"no MobileNetV2 of width 1.*51 convolutions.*got 5"):
        start_convolutions(model, short)
    with pytest.raises(CheckpointError, match="does not exist"):
        start_convolutions(model, tmp_path / "absent.onnx")
    with pytest.raises(ConfigError, match="convolutions = true"):
        start_convolutions(made(convolutions=False), short)


@torch.no_grad()
def test_the_teacher_gives_what_its_own_runtime_gives(shared, generator):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from fourm_lite.io.onnx import with_outputs

    path = shared / "data" / "teacher" / "mobilenet_v2_imagenet.onnx"
    if not path.is_file():
        pytest.skip("the teacher pack ../shared/data is absent")
    model = made()
    start_convolutions(model, path)
    session = runtime.InferenceSession(
        with_outputs(path.read_bytes(), ["t156", "t170"]), providers=["CPUExecutionProvider"]
    )
    coarse = torch.rand(1, 3, 14, 14, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, 224, mode="bilinear")
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

    found = session.run(["t156", "t170"], {"pixels": picture.numpy()})
    got = model.encoder_embeddings["rgb@64"].convolutions((picture - mean) / std).view(14, 14, -1)

    # The borders differ a little: ours pads with ImageNet's mean colour, the network with grey
    fine, coarse = (torch.tensor(x)[0].permute(1, 2, 0) for x in found)
    fine, coarse = (torch.nn.functional.layer_norm(x, x.shape[-1:]) for x in (fine, coarse))
    assert float((got[5:9, 5:9, :96] - fine[5:9, 5:9]).abs().mean()) < 0.02
    assert float((got[6:8, 6:8, 96:] - coarse[3, 3]).abs().mean()) < 0.05


def test_without_the_package_onnx_the_start_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(FourMError, match=r"pip install 'fourm-lite\[export\]'"):
        start_convolutions(made(), tmp_path / "net.onnx")
