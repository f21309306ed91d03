"""What a model's weights are held as: one option, from opening to saving and opening again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import tiny_batch, tiny_model
from torch import Tensor, nn

from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.io.checkpoint import read, write
from fourm_lite.model.fourm import FourM
from fourm_lite.model.load import load_model, narrowed
from fourm_lite.model.speed import PRECISIONS, half_weights, linear_maps, quantize_int8
from fourm_lite.nn.cpu_linear import Int8Linear, can_int8

pytestmark = pytest.mark.skipif(not can_int8(), reason="no int8 products here")
GIVEN = ["rgb@16", "tok_depth@16", "t5"]
LEAST = {"auto": 1, "float32": 1, "bfloat16": 0.999, "float16": 0.99999, "int8": 0.99, "float64": 1}
MADE = {"int8": quantize_int8, "float16": half_weights, "bfloat16": lambda m: m.bfloat16()}


@pytest.fixture(params=["swiglu", "registers"])
def folder(request, tmp_path) -> Path:
    return tiny_model(request.param, scale=6.0, dim=64, num_heads=4).save(tmp_path / "model")


@torch.inference_mode()
def encoded(model: FourM) -> Tensor:
    return model.encode(tiny_batch(GIVEN, 3).to(model.device)).output.float()


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_every_precision_is_near_float32(folder, dtype):
    plain, model = encoded(load_model(folder)), load_model(folder, dtype=dtype)

    found = encoded(model)

    assert F.cosine_similarity(found.flatten(), plain.flatten(), dim=0) >= LEAST[dtype] - 1e-6
    assert torch.equal(found, plain) == (dtype in ("auto", "float32"))


@pytest.mark.parametrize("dtype", MADE)
def test_a_file_is_converted_into_what_an_open_model_is(folder, dtype):
    opened, made = load_model(folder, dtype=dtype), MADE[dtype](load_model(folder))

    assert torch.equal(encoded(opened), encoded(made))
    assert opened.state_dict().keys() == made.state_dict().keys()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", MADE)
def test_a_converted_model_is_saved_and_opened_again(folder, tmp_path, dtype, stored):
    half = load_model(folder).to(stored).save(tmp_path / "stored")
    model = load_model(half, dtype=dtype)

    saved = model.save(tmp_path / "again")

    again = load_model(saved, dtype=None if dtype == "int8" else dtype)
    assert torch.equal(encoded(again), encoded(model))
    assert F.cosine_similarity(
        encoded(load_model(saved, dtype="float32")).flatten(), encoded(model).flatten(), dim=0
    ) > 0.99  # fmt: skip
    assert (saved / "model.safetensors").stat().st_size < 0.8 * sizes(load_model(folder))


def sizes(model: nn.Module) -> int:
    return sum(t.nbytes for t in model.state_dict().values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_a_backbone_takes_the_same_precisions(folder, tmp_path, dtype):
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    plain = FMViT.from_pretrained(folder, num_classes=0)
    model = FMViT.from_pretrained(folder, num_classes=0, dtype=dtype)
    saved = load_model(folder, dtype="int8").save(tmp_path / "int8")

    with torch.inference_mode():
        want, found = plain(image), model(image).float()

        assert F.cosine_similarity(found, want).min() > 0.98
        if dtype == "int8":  # whether it was rounded here or when it was saved
            assert torch.equal(FMViT.from_pretrained(saved, num_classes=0)(image), found)
    again = model.save(tmp_path / "vit")
    assert sizes(FMViT.from_pretrained(again, dtype=dtype)) == sizes(model)


def test_only_maps_of_the_blocks_and_the_logits_are_rounded(folder):
    model = load_model(folder, dtype="int8")

    rounded = {n for n, m in model.named_modules() if isinstance(m, Int8Linear)}

    assert rounded == set(linear_maps(load_model(folder)))
    assert rounded > {"encoder.0.attn.qkv", "decoder_embeddings.tok_depth@16.to_logits"}


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_narrowed_model_keeps_its_rounded_maps(folder, dtype):
    model = load_model(folder, dtype=dtype)

    small = narrowed(model, outputs=["tok_depth@16"])

    assert torch.equal(encoded(small), encoded(model))
    assert small.encoder[0].attn.qkv is model.encoder[0].attn.qkv


def in_memory_of_files() -> int:
    found = re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what is in memory")
def test_converting_never_holds_the_whole_file(tmp_path):
    tensors = {f"t{i}": torch.zeros(1 << 21) for i in range(12)}  # 8 MB each
    write(tmp_path / "many", {}, tensors)
    checkpoint = read(tmp_path / "many")
    before = in_memory_of_files()

    made = checkpoint.load(dtype=torch.bfloat16)

    assert len(made) == 12
    assert in_memory_of_files() - before < 16e6


@pytest.mark.parametrize("dtype", ["int9", "half", torch.int32, "FLOAT32"])
def test_an_unknown_precision_names_the_known_ones(folder, dtype):
    with pytest.raises(ConfigError, match="auto, float32, bfloat16, float16, int8"):
        load_model(folder, dtype=dtype)


def test_int8_is_for_the_cpu(folder):
    with pytest.raises(ConfigError, match="CPU only"):
        load_model(folder, dtype="int8", device="meta")


@pytest.mark.parametrize(
    "damage",
    [
        lambda t, n: t.pop(f"{n}.weight_scale"),
        lambda t, n: t.update({f"{n}.weight_scale": torch.ones(3)}),
        lambda t, n: t.update({f"{n}.weight_scale": t[f"{n}.weight_scale"].double()}),
        lambda t, n: t.pop(f"{n}.weight"),
    ],
)
def test_int8_weights_without_fitting_scales_are_refused(folder, tmp_path, damage):
    saved = load_model(folder, dtype="int8").save(tmp_path / "again")
    tensors = load_file(saved / "model.safetensors")
    damage(tensors, "encoder.0.attn.qkv")
    save_file(tensors, saved / "model.safetensors", {"config": json.dumps({})})

    with pytest.raises(CheckpointError, match=r"qkv\.weight"):
        load_model(saved)
