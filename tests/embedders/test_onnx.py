"""ONNX files: vectors as onnxruntime gives them, with the output that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fourm_lite.embedders.load import load_embedder
from fourm_lite.errors import CheckpointError, ConfigError, FourMError

onnxruntime = pytest.importorskip("onnxruntime")

TEACHER = Path(__file__).parents[3] / "shared" / "data" / "teacher" / "mobilenet_v2_imagenet.onnx"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A mean over pixels and a pooled map, in ONNX; [B, 3, 8, 8] -> [B, 3] and [B, 3, 4, 4]."""
    onnx = pytest.importorskip("onnx", reason="onnx, which writes the file, is not installed")
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("AveragePool", ["pixels"], ["grid"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Exp", ["means"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("pixels", kinds.FLOAT, ["B", 3, 8, 8])],
        [
            helper.make_tensor_value_info("means", kinds.FLOAT, ["B", 3]),
            helper.make_tensor_value_info("embedding", kinds.FLOAT, ["B", 3]),
            helper.make_tensor_value_info("grid", kinds.FLOAT, ["B", 3, 4, 4]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    onnx.save(model, path)
    return path


def test_vectors_and_maps_equal_the_sessions_own(network, photos):
    embedder = load_embedder(f"onnx:{network}")
    pixels = embedder.preprocess.batch(photos)["pixel_values"]

    raw = embedder.embed_image(photos, batch_size=3, normalize=False)

    assert pixels.shape == (4, 3, 8, 8)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert np.allclose(raw, pixels.mean(dim=(2, 3)).exp(), atol=1e-5)
    pooled = torch.nn.functional.avg_pool2d(pixels, 2).flatten(2).transpose(1, 2)
    assert np.allclose(embedder.embed_patches(photos), pooled, atol=1e-5)


def test_the_output_is_chosen_by_name(network, photos):
    usual, means = load_embedder(f"onnx:{network}"), load_embedder(f"onnx:{network}?output=means")

    got = means.embed_image(photos, normalize=False)

    assert np.allclose(np.exp(got), usual.embed_image(photos, normalize=False), atol=1e-5)
    assert means.space.fingerprint != usual.space.fingerprint
    with pytest.raises(ConfigError, match="Did you mean 'embedding'"):
        load_embedder(f"onnx:{network}?output=embeding")


def test_a_preprocessing_file_beside_the_network_is_read(network, photos, tmp_path):
    (tmp_path / "net.onnx").write_bytes(network.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "SiglipImageProcessor", "size": {"height": 8, "width": 8}}'
    )

    embedder = load_embedder(f"onnx:{tmp_path / 'net.onnx'}")

    assert embedder.preprocess.kind == "Siglip"
    assert embedder.preprocess(photos[0]).min() < 0


def made(folder, kind="FLOAT", shape=("B", 3, 8, 8), out=("B", 3), name="pixels"):
    """A network of one input that gives the mean of each channel."""
    onnx = pytest.importorskip("onnx", reason="onnx, which writes the file, is not installed")
    helper, dtype = onnx.helper, getattr(onnx.TensorProto, kind)
    axes = [1, 2] if shape[3] == 3 else [2, 3]
    read, nodes = name, []
    if kind == "UINT8":  # such networks scale by themselves
        scale = [
            helper.make_node("Cast", [name], ["floats"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Constant", [], ["most"], value_float=255.0),
            helper.make_node("Div", ["floats", "most"], ["scaled"]),
        ]
        read, nodes = "scaled", scale
    nodes.append(helper.make_node("ReduceMean", [read], ["embedding"], axes=axes, keepdims=0))
    outputs = [
        helper.make_tensor_value_info("embedding", dtype if kind != "UINT8" else 1, list(out))
    ]
    if kind != "UINT8" and axes == [1, 2]:  # the pixels themselves, as a map
        nodes.append(helper.make_node("Identity", [name], ["feature_map"]))
        outputs.append(helper.make_tensor_value_info("feature_map", dtype, list(shape)))
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info(name, dtype, list(shape))],
        outputs,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    return f"onnx:{folder / 'net.onnx'}"


@pytest.mark.parametrize(
    ("kind", "shape", "out"),
    [
        ("FLOAT", ("B", 3, 8, 8), ("B", 3)),
        ("FLOAT16", ("B", 3, 8, 8), ("B", 3)),
        ("DOUBLE", ("B", 3, 8, 8), ("B", 3)),
        ("FLOAT", (1, 3, 8, 8), (1, 3)),
        ("FLOAT", (2, 3, 8, 8), (2, 3)),
        ("FLOAT16", (3, 3, 8, 8), (3, 3)),
        ("FLOAT", (9, 3, 8, 8), (9, 3)),
        ("FLOAT", ("batch_size", "num_channels", "height", "width"), ("batch_size", "e")),
        ("FLOAT", (None, None, None, None), (None, None)),
        ("FLOAT", ("B", 8, 8, 3), ("B", 3)),
        ("FLOAT", (None, None, None, 3), (None, None)),
        ("FLOAT16", (2, 8, 8, 3), (2, 3)),
        ("UINT8", ("B", 3, 8, 8), ("B", 3)),
        ("UINT8", (1, 8, 8, 3), (1, 3)),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_every_form_of_input_gives_the_same_vectors(
    kind, shape, out, batch_size, network, photos, tmp_path
):
    want = load_embedder(f"onnx:{network}?output=means").embed_image(photos, normalize=False)
    options = {} if shape[2] == 8 else {"image_size": 8}

    embedder = load_embedder(made(tmp_path, kind, shape, out), **options)

    got = embedder.embed_image(photos, batch_size, normalize=False)
    assert np.allclose(got, want, atol=2e-3 if kind == "FLOAT16" else 1e-6)


def test_the_map_of_a_network_with_colours_last_is_that_of_the_photo(photos, tmp_path):
    embedder = load_embedder(made(tmp_path, shape=("B", 8, 8, 3)))

    got = embedder.embed_patches(photos)

    pixels = embedder.preprocess.batch(photos)["pixel_values"]
    assert np.allclose(got, pixels.flatten(2).transpose(1, 2), atol=1e-6)


def test_an_open_size_is_that_of_the_file_beside_the_network(photos, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}'
    )
    spec = made(tmp_path, shape=("batch_size", "num_channels", "height", "width"))

    assert load_embedder(spec).embed_image(photos).shape == (4, 3)


@pytest.mark.parametrize(
    ("kind", "shape", "options", "what"),
    [
        ("INT32", ("B", 3, 8, 8), {}, "int32"),
        ("FLOAT", ("B", 1, 8, 8), {}, "one input"),
        ("FLOAT", ("B", 8, 8, 4), {}, "one input"),
        ("UINT8", ("B", 8, 8, 3), {"preprocess": "imagenet"}, "normalises by itself"),
        ("FLOAT", ("B", 3, "H", "W"), {}, "image_size"),
        ("FLOAT", ("B", 3, 8, 8), {"image_size": 16}, "image_size=16"),
        ("FLOAT", ("B", 3, 8, 8), {"device": "nonsense"}, "device"),
    ],
)
def test_networks_that_do_not_read_such_pictures_are_refused(kind, shape, options, what, tmp_path):
    with pytest.raises(ConfigError, match=what):
        load_embedder(made(tmp_path, kind, shape), **options)


def test_what_the_network_itself_refuses_is_told_in_our_words(photos, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "size": {"height": 9, "width": 9}}'
    )
    with pytest.raises(FourMError, match=r"cannot take float32\[4, 3, 9, 9\]"):
        load_embedder(made(tmp_path)).embed_image(photos)

    (tmp_path / "preprocessor_config.json").unlink()
    wrong = made(tmp_path, shape=(2, 3, 8, 8), out=(6,))
    with pytest.raises(FourMError):
        load_embedder(wrong)


def test_wrong_files_are_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("no network")

    with pytest.raises(CheckpointError, match="does not exist"):
        load_embedder(f"onnx:{tmp_path / 'missing.onnx'}")
    with pytest.raises(CheckpointError, match="cannot be read as ONNX"):
        load_embedder(f"onnx:{tmp_path / 'text.onnx'}")


@pytest.mark.skipif(not TEACHER.is_file(), reason="the teacher pack ../shared/data is absent")
def test_the_teacher_gives_vectors_logits_and_maps(photos):
    embedder = load_embedder(f"onnx:{TEACHER}")
    logits = load_embedder(f"onnx:{TEACHER}?output=logits")
    session = onnxruntime.InferenceSession(str(TEACHER), providers=["CPUExecutionProvider"])
    image = Image.new("RGB", (300, 300), (10, 200, 90))
    flat = np.asarray(image.resize((224, 224)), np.float32).transpose(2, 0, 1)[None] / 255
    want = session.run(["embedding", "logits", "feature_map"], {"pixels": flat})

    assert embedder.dim == 1280
    assert np.allclose(embedder.embed_image(image, normalize=False), want[0], atol=1e-4)
    assert np.allclose(logits.embed_image(image, normalize=False), want[1], atol=1e-3)
    assert embedder.embed_patches(photos[:2]).shape == (2, 49, 1280)
    batched, single = embedder.embed_image(photos), embedder.embed_image(photos, batch_size=1)
    assert np.allclose(batched, single, atol=1e-5)
    with pytest.raises(FourMError, match="cannot embed text"):
        embedder.embed_text("a cat")
