"""What holds for AION-1 and TerraMind of any width, depth, heads, grid and seed; no reference.

An item alone is the item beside others, padded or not; the order of modalities does not count; a
saved model is the same model; the backbone, the pipeline and the plain layers give one number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_aion import STYLE as SWIGLU

from fourm_lite import FMViT, FourMPipeline, load_model
from fourm_lite.backbone.merged import MergedViT
from fourm_lite.batch import Tokens
from fourm_lite.embedders.terramind_files import convert_terramind
from fourm_lite.families.masked import TERRAMIND
from fourm_lite.modalities.forks import AION_MODALITIES, TERRAMIND_MODALITIES
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.model.likelihood import grid_log_probs, joint_logits, sequence_logits
from fourm_lite.model.load import fitted
from fourm_lite.pipeline.readers import collate
from fourm_lite.pipeline.terramind import Chain, ChainOptions

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
Item = dict[str, Tokens]


@dataclass(frozen=True)
class Shape:
    """A random model, and the grid of tokens of what it is shown."""

    seed: int
    dim: int
    heads: int
    depth: int
    decoder: int
    grid: tuple[int, int] = (2, 3)
    style: dict[str, Any] | None = None
    registers: int = 0

    def sizes(self) -> dict[str, Any]:
        return {
            "dim": self.dim, "num_heads": self.heads, "encoder_depth": self.depth,
            "decoder_depth": self.decoder, "num_register_tokens": self.registers,
            **(SWIGLU if self.style is None else self.style),
        }  # fmt: skip


PLAIN = {"norm_bias": False}
SHAPES = (
    Shape(0, 32, 1, 1, 1, (1, 1)),
    Shape(1, 48, 3, 2, 1, (1, 4), PLAIN),
    Shape(2, 64, 8, 3, 2, (5, 2)),
    Shape(3, 40, 5, 1, 3, (3, 3), {**SWIGLU, "qk_norm": True}),
    Shape(4, 96, 2, 2, 2, (7, 1), {"act_layer": "ReLU"}),
    Shape(5, 36, 3, 2, 1, (2, 5), {**SWIGLU, "mlp_ratio": 2.5}, registers=3),
)


def drawn(config: FourMConfig, seed: int) -> FourM:
    """A model whose vectors are all drawn, biases and norms too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FourM(config).init_weights()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1 or float(parameter.abs().max()) == 0:
                    parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


EARTH_IN = ("untok_sen2l2a@224", "untok_dem@224", "tok_lulc@224", "coords", "caption")
EARTH_OUT = ("tok_lulc@224", "tok_ndvi@224", "caption")
SKY_IN = ("tok_image", "tok_spectrum_desi", "tok_flux_g", "tok_z", "catalog", "tok_xp_bp")
SKY_OUT = ("tok_segmap", "tok_z", "catalog", "tok_xp_rp")


def earth(shape: Shape) -> FourM:
    inputs, outputs = (
        tuple(TERRAMIND_MODALITIES[n] for n in names) for names in (EARTH_IN, EARTH_OUT)
    )
    config = FourMConfig(inputs=inputs, outputs=outputs, **shape.sizes(), **TERRAMIND.rules)
    return drawn(config, shape.seed)


def sky(shape: Shape) -> FourM:
    """A few modalities of AION-1, the image on another grid, which need not be square."""
    sized = {"tok_image": shape.grid, "tok_segmap": shape.grid[::-1]}
    entries = {
        n: replace(m, grid=sized[n], max_tokens=sized[n][0] * sized[n][1]) if n in sized else m
        for n, m in AION_MODALITIES.items()
    }
    inputs, outputs = (tuple(entries[n] for n in names) for names in (SKY_IN, SKY_OUT))
    return drawn(FourMConfig(inputs=inputs, outputs=outputs, **shape.sizes()), shape.seed)


def earth_item(shape: Shape, seed: int, names: tuple[str, ...] = EARTH_IN) -> Item:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape.grid
    out = {}
    for name in names:
        entry = TERRAMIND_MODALITIES[name]
        if entry.kind == "pixels":
            size = (1, entry.channels or 0, rows * 16, columns * 16)
            value, count = torch.randn(size, generator=generator), rows * columns
        else:
            count = rows * columns if entry.kind == "grid" else 2 + seed % 3
            value = torch.randint(entry.vocab_size or 0, (1, count), generator=generator)
        out[name] = Tokens.given(value, length=count)
    return out


def sky_item(model: FourM, seed: int, names: tuple[str, ...] = SKY_IN) -> Item:
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name in names:
        entry = model.modality(name)
        count = entry.max_tokens if entry.kind == "grid" else 6 + 5 * (seed % 4)
        value = torch.randint(entry.vocab_size or 0, (1, count), generator=generator)
        out[name] = Tokens.given(value, length=count)
    return out


@pytest.fixture(params=SHAPES, ids=lambda shape: f"seed{shape.seed}")
def shape(request):
    return request.param


@pytest.fixture
def cases(shape):
    """Both families: the model for these grids, and three items of unlike modalities."""
    ground, above = earth(shape), sky(shape)
    first = [
        earth_item(shape, 1),
        earth_item(shape, 2, EARTH_IN[:1] + EARTH_IN[3:]),
        earth_item(shape, 5, EARTH_IN[1:3]),
    ]
    second = [
        sky_item(above, 1), sky_item(above, 3, SKY_IN[2:]), sky_item(above, 2, SKY_IN[:1])
    ]  # fmt: skip
    return [(fitted(ground, collate(first), EARTH_OUT), first), (above, second)]


def states(model: FourM, items: list[Item], row: int = 0) -> torch.Tensor:
    """What the decoder reads of one row, without its padding."""
    with torch.inference_mode():
        encoded = model.encode(collate(items))
    return encoded.context.tokens[row][encoded.packed.valid[row]]


def test_an_item_beside_others_and_padded_is_the_item_alone(cases):
    for model, items in cases:
        for row, item in enumerate(items):
            alone = states(model, [item])
            torch.testing.assert_close(states(model, items, row), alone, **CLOSE)
            longer = {
                n: t.padded(t.length + 7) if is_text(model, n) else t for n, t in item.items()
            }
            torch.testing.assert_close(states(model, [longer]), alone, **CLOSE)


def is_text(model: FourM, name: str) -> bool:
    return model.modality(name).kind == "sequence"


def test_the_order_of_modalities_does_not_count(cases):
    for model, items in cases:
        turned = dict(reversed(items[0].items()))
        lengths = [tokens.length for tokens in items[0].values()]
        start = model.config.num_register_tokens
        parts = states(model, [items[0]])[start:].split(lengths)
        found = states(model, [turned])[start:].split(lengths[::-1])
        for part, other in zip(parts, reversed(found), strict=True):
            torch.testing.assert_close(other, part, **CLOSE)


def test_the_fast_path_is_the_plain_one(cases):
    """Without gradients the CPU multiplies and adds otherwise; the numbers are the same."""
    for model, items in cases:
        batch = collate(items)
        with torch.enable_grad():
            plain = model.encode(batch)
            name = model.config.outputs[0].name
            said = grid_log_probs(model, name, plain.context, batch.size)
        with torch.inference_mode():
            fast = model.encode(batch)
            fast_said = grid_log_probs(model, name, fast.context, batch.size)
        valid = plain.packed.valid
        torch.testing.assert_close(fast.output[valid], plain.output[valid].detach(), **CLOSE)
        torch.testing.assert_close(fast_said, said.detach(), **CLOSE)


def test_a_budget_that_holds_all_changes_nothing_and_a_smaller_one_keeps_the_first(cases):
    for model, items in cases:
        batch, start = collate(items[:1]), model.config.num_register_tokens
        count = sum(tokens.length for tokens in items[0].values())
        with torch.inference_mode():
            whole, same, few = (model.encode(batch, budget) for budget in (None, count, 4))
        torch.testing.assert_close(same.output, whole.output, **CLOSE)
        kept = torch.cat([whole.packed.where[:, :start], whole.packed.where[:, start:][:, :4]], 1)
        assert torch.equal(few.packed.where, kept)


def test_a_saved_model_is_the_same_model(cases, tmp_path):
    for number, (model, items) in enumerate(cases):
        again = load_model(model.save(tmp_path / str(number)))

        assert again.config == model.config
        assert torch.equal(states(again, items, 1), states(model, items, 1))


def test_a_text_said_step_by_step_is_the_text_read_at_once(cases):
    for model, items in cases:
        name = model.config.outputs[-1 if model.config.tied_tables else 2].name
        batch = collate([{n: t for n, t in i.items() if n != name} for i in items[:2]])
        ids = torch.randint(5, model.modality(name).vocab_size, (2, 9))
        with torch.inference_mode():
            context = model.encode(batch).context
            whole = sequence_logits(model, name, ids, context)
            alone = [
                sequence_logits(model, name, ids[:, : n + 1], context)[:, -1] for n in range(9)
            ]
            one = sequence_logits(
                model, name, ids[1:], model.encode(batch.rows(slice(1, 2))).context
            )
        torch.testing.assert_close(torch.stack(alone, 1), whole, **CLOSE)
        torch.testing.assert_close(one, whole[1:], **CLOSE)


def test_the_logits_of_a_target_depend_on_others_only_where_all_attend_to_all(shape):
    model = sky(shape)
    items = [sky_item(model, 1), sky_item(model, 2)]

    with torch.inference_mode():
        for attention in ("own", "uniform"):
            asked = [["tok_segmap"], ["tok_segmap", "tok_xp_rp"]]
            one, two = (joint_logits(model, collate(items), n, attention=attention) for n in asked)
            alone = joint_logits(model, collate(items[1:]), asked[1], attention=attention)
            same = torch.allclose(one["tok_segmap"], two["tok_segmap"], **CLOSE)
            assert same == (attention == "own")
            for name in asked[1]:
                torch.testing.assert_close(alone[name], two[name][1:], **CLOSE)


def test_the_backbone_the_vit_and_the_pipeline_give_one_vector(shape, tmp_path):
    if shape.registers:
        pytest.skip("TerraMind has no registers")
    folder = earth(shape).save(tmp_path / "EARTH")
    items = [earth_item(shape, seed, EARTH_IN[:3]) for seed in (1, 2)]
    names = {name: name for name in EARTH_IN[:3]}
    given = {n: torch.cat([i[n].value for i in items]) for n in names}
    rows, columns = shape.grid
    given["tok_lulc@224"] = given["tok_lulc@224"].unflatten(1, (rows, columns))

    with torch.inference_mode():
        backbone = MergedViT.from_pretrained(folder, names, merge="none")(given)
        whole = MergedViT.from_pretrained(folder, names, merge="mean")(given)[-1]
    pipe = FourMPipeline.from_pretrained(folder)
    vectors = pipe.embed(
        [
            {n: v[row] if v.ndim == 4 else v[row].flatten() for n, v in given.items()}
            for row in (0, 1)
        ]
    )

    mean = backbone[-1].mean(1)
    np.testing.assert_allclose(vectors, torch.nn.functional.normalize(mean).numpy(), atol=1e-5)
    torch.testing.assert_close(whole.mean(1), mean, **CLOSE)
    vit = FMViT.from_pretrained(folder, inputs=["untok_dem@224"], num_classes=0)
    alone = MergedViT.from_pretrained(folder, {"DEM": "untok_dem@224"})
    with torch.inference_mode():
        heights = given["untok_dem@224"]
        torch.testing.assert_close(vit.forward_features(heights), alone(heights)[-1], **CLOSE)
        every = vit.forward_intermediates(heights, output_fmt="NLC", intermediates_only=True)
        for one, other in zip(every[:-1], alone(heights)[:-1], strict=True):
            torch.testing.assert_close(one, other, **CLOSE)


def test_items_of_unlike_sizes_and_modalities_are_embedded_and_made_as_alone(shape, tmp_path):
    pipe = FourMPipeline(earth(shape), FourMPipeline.from_pretrained(earth(shape)).tokenizers)
    other = replace(shape, grid=(2, 2))
    items = [
        {"S2L2A": earth_item(one, seed)["untok_sen2l2a@224"].value[0], **more}
        for one, seed, more in (
            (shape, 1, {}),
            (other, 2, {}),
            (shape, 3, {"LULC": earth_item(shape, 3)["tok_lulc@224"].value[0]}),
            (other, 4, {"coords": [7, 8, 9]}),
        )
    ] + [{"LULC": list(range(4))}, {"LULC": list(range(9))}]

    together = pipe.embed(items, batch_size=5)
    thought = pipe.embed(items[:4], think=["LULC"], seed=3)
    made = pipe.generate(items[:4], ["LULC"], seed=3, allow_tokens=True)

    for row, item in enumerate(items):
        np.testing.assert_allclose(together[row], pipe.embed(item), atol=2e-5)
    for row, item in enumerate(items[:4]):
        np.testing.assert_allclose(
            thought[row], pipe.embed(item, think=["LULC"], seed=3), atol=2e-5
        )
        alone = pipe.generate(item, ["LULC"], seed=3, allow_tokens=True)["tok_lulc@224"]
        assert made[row]["tok_lulc@224"].tokens.tolist() == alone.tokens.tolist()


def test_a_chain_of_two_pictures_is_that_of_each(shape):
    model = earth(replace(shape, registers=0))
    given = torch.cat([earth_item(shape, seed)["untok_dem@224"].value for seed in (1, 2)])
    greedy = Chain(model, ["LULC", "caption", "NDVI"], ChainOptions(temperature=0.0, top_p=0.0))

    both = greedy.tokens({"DEM": given})

    for row in (0, 1):
        alone = greedy.tokens({"DEM": given[row : row + 1]})
        for name in ("LULC", "NDVI"):
            assert torch.equal(both[name][row], alone[name][0])
        ends = min(both["caption"].shape[1], alone["caption"].shape[1])
        assert torch.equal(both["caption"][row, :ends], alone["caption"][0, :ends])


@pytest.mark.parametrize(("dim", "depth", "decoder"), [(64, 1, 2), (128, 2, 1), (192, 3, 3)])
def test_a_converted_file_has_the_sizes_of_its_tensors(tmp_path, dim, depth, decoder):
    for style in (SWIGLU, PLAIN):
        model = earth(Shape(dim, dim, dim // 64, depth, decoder, style=style))
        convert_terramind(dict(model.state_dict()), tmp_path / str(len(style)))
        found = load_model(tmp_path / str(len(style)))

        assert found.config.block == model.config.block
        item = earth_item(SHAPES[0], 1)
        few = fitted(model, collate([item]), []), fitted(found, collate([item]), [])
        assert torch.equal(states(few[0], [item]), states(few[1], [item]))
