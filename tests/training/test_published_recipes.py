"""The recipes of the published models say what is known of them, and their models are of that size.

The figures are those of the published files and of 4M's own description.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fourm_lite.errors import FourMError
from fourm_lite.model.fourm import FourM
from fourm_lite.nn.device import without_storage
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.training.losses import LOSSES
from fourm_lite.training.recipes import ModelRecipe
from fourm_lite.training.tokenizer_recipes import TokenizerRecipe, tokenizer_training
from fourm_lite.training.train import pretraining

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "generation" / "models"
TOKENIZERS = ROOT / "tokenizers" / "published"
# name: dim, depth, millions of parameters without embeddings, GB of the file in float32
SIZES = {
    "4m7_b": (768, 12, 198, None),
    "4m7_l": (1024, 24, 705, None),
    "4m7_xl": (2048, 24, 2800, None),
    "4m21_b": (768, 12, 198, 3.37),
    "4m21_l": (1024, 24, 705, 6.26),
    "4m21_xl": (2048, 24, 2800, 18.2),
}
# name: class, channels, codes, tokens of its smallest picture
CODES = {
    "rgb_16k": ("DiVAE", 3, 16384, 196),
    "depth_8k": ("DiVAE", 1, 8192, 196),
    "normal_8k": ("DiVAE", 3, 8192, 196),
    "edge_8k": ("DiVAE", 1, 8192, 196),
    "semseg_4k": ("VQVAE", 64, 4096, 196),
    "clip_b16_8k": ("VQVAE", 512, 8192, 196),
    "dinov2_b14_8k": ("VQVAE", 768, 8192, 256),
    "imagebind_h14_8k": ("VQVAE", 1280, 8192, 256),
    "dinov2_b14_global_8k_16": ("VQVAE", 768, 8192, 16),
    "imagebind_h14_global_8k_16": ("VQVAE", 1280, 8192, 16),
    "sam_instance_1k_64": ("VQVAE", 1, 1024, 16),
    "human_poses_1k_8": ("VQVAE", 207, 1024, 8),
}
BASES = {"base", "diffusion"}


def test_every_published_model_and_tokenizer_has_its_recipe():
    assert {p.stem for p in MODELS.glob("4m*.toml")} == set(SIZES)
    assert {p.stem for p in TOKENIZERS.glob("*.toml")} == set(CODES) | BASES


@pytest.mark.parametrize("name", SIZES)
def test_a_published_model_is_of_the_published_size(name):
    dim, depth, millions, gigabytes = SIZES[name]

    config = ModelRecipe.read(MODELS / f"{name}.toml").config()
    with without_storage():
        model = FourM(config)

    assert (config.dim, config.encoder_depth, config.decoder_depth) == (dim, depth, depth)
    assert config.dim // config.num_heads == 64
    core = sum(p.numel() for n, p in model.named_parameters() if "_embeddings." not in n)
    assert core == pytest.approx(millions * 1e6, rel=0.01)
    if gigabytes is not None:
        stored = 4 * sum(value.numel() for value in model.state_dict().values())
        assert stored == pytest.approx(gigabytes * 1e9, rel=0.005)


@pytest.mark.parametrize("name", SIZES)
def test_a_published_model_is_trained_as_published(name):
    recipe = ModelRecipe.read(MODELS / f"{name}.toml")

    (component,), train = recipe.components, recipe.train
    batch = component.batch_size * train.accumulate
    small = name.startswith("4m7")
    assert (batch, component.input_budget) == ((8192, (128, 128)) if small else (4096, (256, 256)))
    assert component.target_budget == component.input_budget
    tokens = batch * (component.input_budget[0] + component.target_budget[0])
    assert train.steps * tokens == pytest.approx(500e9, rel=1e-5)
    assert train.optim.warmup_steps * tokens == pytest.approx(10e9, rel=1e-3)
    base_rate = 2e-5 if name.endswith("xl") else 1e-4
    assert train.optim.lr == pytest.approx(base_rate * batch / 256)
    assert train.optim.clip == (0.0 if name.endswith("_b") else 3.0)
    assert set(component.inputs) == set(recipe.inputs)
    assert set(component.targets) == set(recipe.outputs)
    assert (len(recipe.inputs), len(recipe.outputs)) == ((8, 7) if small else (19, 17))


@pytest.mark.parametrize("name", CODES)
def test_a_published_tokenizer_is_of_the_published_kind(name):
    kind, channels, codes, tokens = CODES[name]

    recipe = TokenizerRecipe.read(TOKENIZERS / f"{name}.toml")
    config = TokenizerConfig(**recipe.tokenizer)
    with without_storage():
        tokenizer = VQTokenizer(config)

    assert (config.kind, config.n_channels, tokenizer.vocab_size) == (kind, channels, codes)
    assert recipe.loss in LOSSES
    cells = config.grid()[0] * config.grid()[1]
    if config.quant_type == "memcodes":
        assert config.num_codebooks == tokens
    else:
        assert cells == tokens
        rare = recipe.batch_size * cells / codes / 32
        assert config.threshold_ema_dead_code == pytest.approx(rare)
    assert recipe.train.ema == (0.9999 if kind == "DiVAE" else 0.99)
    if name == "dinov2_b14_8k":  # the file is of 729 MB; its position maps may be of 448 pixels
        stored = 4 * sum(value.numel() for value in tokenizer.state_dict().values())
        assert stored == pytest.approx(729e6, rel=0.01)


def test_a_run_without_the_data_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(FourMError, match="data/4m/text_tokenizer_4m_wordpiece_30k"):
        pretraining(ModelRecipe.read(MODELS / "4m21_xl.toml"))
    with pytest.raises(FourMError, match="expected labels 'depth' in data/4m/labels"):
        tokenizer_training(TokenizerRecipe.read(TOKENIZERS / "depth_8k.toml"))
    with pytest.raises(FourMError, match=r"found no file at data/4m/captions\.jsonl"):
        tokenizer_training(TokenizerRecipe.read(TOKENIZERS / "rgb_16k.toml"))


def test_photos_that_are_missing_are_told_before_the_model_is_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = ROOT / "tokenizers" / "text_mini" / "text_tokenizer.json"
    folder = tmp_path / "data" / "4m"
    folder.mkdir(parents=True)
    (folder / "text_tokenizer_4m_wordpiece_30k.json").write_bytes(text.read_bytes())

    # 11 GB of weights would be drawn first
    with pytest.raises(FourMError, match=r"no file or folder data/4m/captions\.jsonl"):
        pretraining(ModelRecipe.read(MODELS / "4m7_xl.toml"))
