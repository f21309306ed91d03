"""Convolutions begin as a trained network's, and go on as they were trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import GLOBAL
from tiny_convolutions import PIXELS, given, made

from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.training.initial.build import build_model
from fourm_lite.training.initial.start import start_convolutions, start_map
from fourm_lite.training.loop import TrainConfig
from fourm_lite.training.recipes import DataRecipe, ModelRecipe, StartRecipe


@pytest.fixture
def pixels(generator):
    return torch.randn(2, 3, 64, 64, generator=generator)


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

    net = model.encoder_embeddings["rgb@64"].convolutions
    assert not model.encoder_embeddings["rgb@64"].conv_map.weight.any()
    # The first layer: a picture in [0, 1] normalised as ImageNet's gives what the file's would.
    from onnx import load, numpy_helper

    held = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in load(path).graph.initializer}
    weight = (held["q0"].float() - 2.0) * held["s0"].view(-1, 1, 1, 1)
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    want = torch.nn.functional.conv2d(picture * 2 - 1, weight, held["b0"], stride=2)
    got = net.first((picture - mean) / std)
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

    start_map(model, stream, 5, deviation=0.5)

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
    from fourm_lite.io.onnx_files import with_outputs

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
    with pytest.raises(FourMError, match=r"pip install onnx"):
        start_convolutions(made(), tmp_path / "net.onnx")


def test_a_recipe_adds_them_to_a_model_and_goes_on_with_trained_ones(tmp_path):
    net = network(tmp_path)
    plain = made(convolutions=False)
    config = plain.config.to_dict()
    sizes = {k: config[k] for k in ("dim", "encoder_depth", "decoder_depth", "num_heads")}
    entries = {m["name"]: m for side in ("inputs", "outputs") for m in config[side]}

    def built(folder):
        return build_model(
            ModelRecipe(
                text="text_mini", inputs=("rgb@64", "caption"), outputs=("tok_global", "caption"),
                model={**sizes, "image_size": 64, "patch_size": 4},
                modalities=tuple({**entries, "rgb@64": PIXELS.to_dict()}.values()),
                data=DataRecipe(captions=tmp_path / "captions.jsonl"), components=(),
                train=TrainConfig(steps=1, out=tmp_path / "out"),
                start=StartRecipe(model=folder, convolutions=net),
            )
        )  # fmt: skip

    first = built(plain.save(tmp_path / "plain"))
    wanted = made()
    start_convolutions(wanted, net)
    for name, value in first.state_dict().items():
        source = wanted if ".conv" in name else plain
        assert torch.equal(value, source.state_dict()[name]), name

    trained = {n: v + 1.0 for n, v in first.state_dict().items()}
    first.load_state_dict(trained)
    again = built(first.save(tmp_path / "trained"))
    assert all(torch.equal(v, trained[n]) for n, v in again.state_dict().items())


def test_a_model_without_them_does_not_go_on_where_a_recipe_has_them(tmp_path):
    with pytest.raises(ConfigError, match=r"does not fit the recipe"):
        build_model(
            ModelRecipe(
                text="text_mini", inputs=("rgb@64",), outputs=("tok_global",),
                model={"dim": 16, "encoder_depth": 2, "decoder_depth": 2, "num_heads": 2},
                modalities=(PIXELS.to_dict(), GLOBAL.to_dict()),
                data=DataRecipe(captions=tmp_path / "captions.jsonl"), components=(),
                train=TrainConfig(steps=1, out=tmp_path / "out"),
                start=StartRecipe(model=made(convolutions=False).save(tmp_path / "plain")),
            )
        )  # fmt: skip
