"""Starts without gradients do what their formulas say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.cli.train import STAGES
from fourm_lite.data.linear import kmeans, principal
from fourm_lite.errors import ConfigError
from fourm_lite.io.recipe import arguments_of, from_dict, read_toml
from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM, Prediction
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.training.initial.closed_form import start_patches, start_vectors
from fourm_lite.training.initial.start import start_from_vit
from fourm_lite.training.losses import likelihood_contrast, soft_cross_entropy, soft_targets
from fourm_lite.training.recipes import ModelRecipe
from fourm_lite.training.staged import StagedRecipe
from fourm_lite.training.tokenizer_recipes import TokenizerRecipe

ROOT = Path(__file__).parents[2]


def vector_tokenizer(generator):
    torch.manual_seed(0)
    mlp = "BottleneckMLP/B_1-Wi_32"
    config = TokenizerConfig(
        image_size=1, n_channels=20, enc_type=mlp, dec_type=mlp, patch_proj=False, patch_size=1,
        quant_type="memcodes", codebook_size=16, num_codebooks=4, latent_dim=16,
        mean=(0.5,), scale=2.0,
    )  # fmt: skip
    values = 0.5 + torch.randn(300, 6, generator=generator) @ torch.randn(
        6, 20, generator=generator
    )
    return VQTokenizer(config).eval(), values


def test_principal_components_are_those_of_the_svd(generator):
    x = torch.randn(200, 12, generator=generator) * torch.arange(1, 13)

    found = principal(x, 3, generator)

    _, size, vh = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    overlap = (found.directions.T @ vh[:3].T).abs()
    torch.testing.assert_close(overlap.diag(), torch.ones(3), atol=1e-2, rtol=0)
    torch.testing.assert_close(found.deviation, size[:3] / 199**0.5, rtol=1e-3, atol=0)


def test_more_rounds_of_kmeans_come_nearer(generator):
    x = torch.randn(200, 2, generator=generator)

    errors = [
        torch.cdist(x, kmeans(x, 8, torch.Generator().manual_seed(0), rounds=n)).min(dim=1).values
        for n in (0, 1, 5, 20)
    ]

    squares = [float(e.square().mean()) for e in errors]
    assert squares == sorted(squares, reverse=True)
    assert squares[-1] < 0.8 * squares[0]


def test_a_vector_tokenizer_starts_as_a_product_quantizer(generator):
    tokenizer, values = vector_tokenizer(generator)

    start_vectors(tokenizer, values, generator, turns=2)

    tokens = tokenizer.tokenize(values)
    error = (tokenizer.detokenize(tokens) - values).square().mean()
    assert error < 0.35 * values.var(dim=0).mean()
    # Attention to (code, -|code|^2 / 2) is the nearest code.
    latents = tokenizer.latents(values).flatten(1).view(300, 4, 4)[..., :-1]
    codes = tokenizer.quantize.tables()[1][..., :-1]
    for head in range(4):
        nearest = torch.cdist(latents[:, head], codes[head]).argmin(dim=1)
        assert (nearest == tokens[:, head]).float().mean() > 0.99


def test_a_map_tokenizer_starts_as_kmeans_of_patches(generator):
    torch.manual_seed(0)
    config = TokenizerConfig(
        image_size=8, patch_size=4, n_channels=3, n_labels=3, codebook_size=16, latent_dim=8,
        enc_type="vit_proj_enc", dec_type="vit_xs_dec", norm_codes=False,
    )  # fmt: skip
    maps = torch.randint(0, 3, (60, 2, 2), generator=generator)
    maps = maps.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    tokenizer = VQTokenizer(config).eval()

    start_patches(tokenizer, maps, generator)

    decoded = tokenizer.detokenize(tokenizer.tokenize(maps))
    decoded = decoded.argmax(dim=1) if decoded.ndim == 4 else decoded
    assert (decoded == maps).float().mean() > 0.99


def test_a_start_of_another_form_is_refused(generator):
    tokenizer, values = vector_tokenizer(generator)

    with pytest.raises(ConfigError, match="ViTs"):
        start_patches(tokenizer, values, generator)


def test_soft_targets_prefer_the_true_code_then_the_nearer(generator):
    tokenizer, values = vector_tokenizer(generator)
    start_vectors(tokenizer, values, generator, turns=1)

    soft = soft_targets(tokenizer, 0.1)

    assert torch.equal(soft.argmax(dim=-1), torch.arange(16).expand(4, -1))
    torch.testing.assert_close(soft.sum(dim=-1), torch.ones(4, 16))
    ids = torch.tensor([3, 1, 4, 1] * 2)
    sharp = torch.eye(16).expand(4, -1, -1)
    logits = torch.randn(8, 16, generator=generator)
    torch.testing.assert_close(
        soft_cross_entropy(Prediction(logits, ids), sharp),
        torch.nn.functional.cross_entropy(logits, ids),
    )


def test_contrast_is_small_when_each_row_says_its_own_tokens():
    ids = torch.tensor([0, 1, 2, 3, 4, 5])
    right = 20.0 * torch.nn.functional.one_hot(ids, 6).float()

    good = likelihood_contrast(Prediction(right, ids), 2, temperature=1.0)
    bad = likelihood_contrast(Prediction(right.roll(2, 0), ids), 2, temperature=1.0)

    assert good < 1e-3
    assert bad > 5


def model_with(width, heads):
    pixels = Modality(
        name="rgb@224", kind="pixels", channels=3, patch_size=4, image_size=8, grid=(2, 2),
        max_tokens=4, pos_embed="learned", directions=IN,
    )  # fmt: skip
    codes = Modality(
        name="codes", kind="grid", vocab_size=16, grid=(2, 2), max_tokens=4, pos_embed="learned"
    )
    config = FourMConfig(
        inputs=(pixels,), outputs=(codes,), dim=width, num_heads=heads, encoder_depth=2,
        decoder_depth=2, num_register_tokens=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return FourM(config).init_weights().eval()


def test_a_vit_goes_into_the_encoder_unchanged(generator):
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=64, depth=2, num_heads=2, num_classes=0
    ).eval()
    torch.nn.init.normal_(vit.pos_embed)
    model = model_with(64, 2)

    left = start_from_vit(model, vit.state_dict())

    x = torch.rand(2, 3, 8, 8, generator=generator)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        theirs = vit.forward_features((x - 0.5) / 0.5)
        batch = TokenBatch({"rgb@224": Tokens.given((x - mean) / std, length=4)})
        ours = model.encode(batch).output
    assert left == []
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


@pytest.mark.parametrize("path", sorted(ROOT.glob("tokenizers/*/recipe.toml")), ids=str)
def test_every_tokenizer_recipe_is_read(path):
    if path.parent.name.startswith("text"):
        pytest.skip("the text tokenizer is trained by one call")

    recipe = TokenizerRecipe.read(path)

    TokenizerConfig(**recipe.tokenizer)
    assert recipe.train.steps > 0


def test_the_recipe_of_stages_is_read_with_all_its_verbs():
    staged = StagedRecipe.of(read_toml(ROOT / "generation" / "models" / "mini.toml"))
    stages = {stage.name: staged.filled(stage) for stage in staged.stages}
    tables = stages["model"].recipe

    recipe = from_dict(ModelRecipe, {**tables, "train": {**tables["train"], "out": "model"}})

    assert set(recipe.outputs) < set(recipe.inputs)
    assert recipe.config().dim == 192
    assert {c.source for c in recipe.components} == recipe.all_sources.keys()
    for name, stage in stages.items():
        if stage.verb:
            assert arguments_of(STAGES[stage.verb], stage.options, where=name)
