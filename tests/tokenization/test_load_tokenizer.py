"""Opening and saving tokenizers: the original's configs and ours, names of weights, bad files."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from vq_configs import diffusion_config, global_config, image_config

from fourm_lite.errors import CheckpointError, ConfigError, FourMError
from fourm_lite.tokenization.load import load_tokenizer, tokenizer_from_state
from fourm_lite.tokenization.vq.config import TokenizerConfig, guess_kind, parse_config
from fourm_lite.tokenization.vq.vqvae import VQTokenizer

SORTS = {
    "image": image_config(),
    "euclidean": image_config(norm_codes=False),
    "two heads": image_config(num_codebooks=2),
    "labels": image_config(n_labels=5, post_mlp=True, out_conv=True, label_names=tuple("abcde")),
    "global": global_config(),
    "centred": global_config(mean=tuple(float(i) for i in range(12)), scale=0.25),
    "encoder": image_config(kind="VQ"),
    "diffusion": diffusion_config(),
    "uvit": diffusion_config(dec_type="uvit_32x1x2_p4_f16", cls_free_guidance_dropout=0.1),
    "cross": diffusion_config(dec_type="uvit_32x1x2_p4_f8", conditioning="xattn"),
}


def original_config(config: TokenizerConfig) -> dict:
    """A config as the original writes it: no class, no format, training arguments in between."""
    raw = {k: v for k, v in config.to_dict().items() if v is not None}
    for key in ("format", "class", "codebook_dim"):
        raw.pop(key, None)
    return {**raw, "sync_codebook": True, "ckpt_path": None, "ignore_keys": ["x"], "blr": 1e-4}


def weights_of(config: TokenizerConfig) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in VQTokenizer(config).state_dict().items()}


def values_of(config: TokenizerConfig, generator) -> torch.Tensor:
    if config.n_labels:
        return torch.randint(config.n_labels, (2, 32, 32), generator=generator)
    if config.quant_type == "memcodes":
        return torch.randn(2, config.n_channels, generator=generator)
    return torch.randn(2, config.n_channels, 32, 32, generator=generator)


@pytest.mark.parametrize("sort", SORTS)
def test_saving_then_loading_changes_nothing(tmp_path, generator, sort):
    tokenizer = VQTokenizer(SORTS[sort])
    x = values_of(SORTS[sort], generator)
    tokenizer.save(tmp_path / "t")

    again = load_tokenizer(tmp_path / "t")

    assert again.config == tokenizer.config
    assert not again.training
    assert not any(p.is_meta for p in (*again.parameters(), *again.buffers()))
    old, new = tokenizer.state_dict(), again.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[k], new[k]) for k in old)
    assert torch.equal(again.tokenize(x), tokenizer.tokenize(x))


@pytest.mark.parametrize("sort", SORTS)
def test_an_original_config_is_understood_without_a_class(generator, sort):
    config = SORTS[sort]
    weights = weights_of(config)

    tokenizer = tokenizer_from_state(original_config(config), weights)

    assert tokenizer.config.kind == config.kind
    assert all(torch.equal(v, weights[k]) for k, v in tokenizer.state_dict().items())
    assert tokenizer.config.to_dict()["class"] == config.kind


def test_a_single_file_with_text_metadata_opens(tmp_path, generator):
    config = image_config()
    path = tmp_path / "tokenizer.safetensors"
    save_file(weights_of(config), path, {k: str(v) for k, v in original_config(config).items()})

    tokenizer = load_tokenizer(path)

    assert tokenizer.config.enc_type == config.enc_type
    assert tokenizer.tokenize(values_of(config, generator)).shape == (2, 4, 4)


def test_loaded_tokenizers_can_be_trained_further(tmp_path, generator):
    VQTokenizer(image_config()).save(tmp_path)
    stored = (tmp_path / "model.safetensors").read_bytes()
    tokenizer = load_tokenizer(tmp_path).train()
    before = tokenizer.quantize._codebook.embed.clone()

    step = tokenizer(values_of(image_config(), generator), generator=generator)
    step.output.sum().backward()

    assert tokenizer.encoder.proj.weight.grad is not None
    assert not torch.equal(tokenizer.quantize._codebook.embed, before)
    assert (tmp_path / "model.safetensors").read_bytes() == stored


def test_half_precision_spares_the_codebook(tmp_path, generator):
    tokenizer = VQTokenizer(image_config()).eval()
    tokenizer.save(tmp_path)
    half = load_tokenizer(tmp_path, dtype=torch.bfloat16)
    tokens = torch.randint(24, (1, 2, 2), generator=generator)

    assert half.dtype == torch.bfloat16
    assert torch.equal(half.lookup(tokens), tokenizer.lookup(tokens))
    assert half.detokenize(tokens).shape == (1, 3, 16, 16)
    assert half.tokenize(torch.zeros(1, 3, 16, 16)).shape == (1, 2, 2)


def test_memcodes_count_is_read_from_the_weights_where_the_config_is_silent():
    raw = original_config(global_config())
    for key in ("num_codebooks", "codebook_size"):
        raw.pop(key)

    assert tokenizer_from_state(raw, weights_of(global_config())).config.num_codebooks == 4


@pytest.mark.parametrize("dropped", ["conv", "Conv2d_0"])
def test_a_tensor_stored_under_one_of_its_two_names_is_found(dropped):
    config = SORTS["uvit"]
    weights = weights_of(config)
    kept = {k: v for k, v in weights.items() if f"downsample_mid.{dropped}." not in k}
    assert len(kept) == len(weights) - 2

    tokenizer = tokenizer_from_state(original_config(config), kept)

    assert tokenizer.state_dict().keys() == weights.keys()


def test_names_of_older_checkpoints_are_translated():
    weights = weights_of(image_config())
    old = {
        k.replace("post_quant_proj.", "post_quant_conv.0.").replace("quant_proj.", "quant_conv."): v
        for k, v in weights.items()
    }
    assert old.keys() != weights.keys()

    tokenizer = tokenizer_from_state(original_config(image_config()), old)

    assert tokenizer.config.kind == "VQVAE"
    assert torch.equal(tokenizer.post_quant_proj.weight, weights["post_quant_proj.weight"])


def test_a_controlnet_checkpoint_gives_its_tokenizer_and_lists_the_rest(
    tmp_path, generator, caplog
):
    config = image_config(kind="VQ")
    foreign = {"controlnet.conv_in.weight": torch.zeros(2, 2), "unet.bias": torch.zeros(3)}
    raw = {**original_config(config), "sd_path": "runwayml/stable-diffusion-v1-5"}
    weights = weights_of(config)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_file({**weights, **foreign}, tmp_path / "model.safetensors")

    with caplog.at_level(logging.INFO):
        tokenizer = load_tokenizer(tmp_path)

    assert tokenizer.config.kind == "VQControlNet"
    assert tokenizer.unused_weights == tuple(sorted(foreign))
    assert "2 weights" in caplog.text
    x = values_of(config, generator)
    assert torch.equal(tokenizer.tokenize(x), tokenizer_from_state(raw, weights).tokenize(x))
    with pytest.raises(ConfigError, match="Stable Diffusion"):
        tokenizer.detokenize(tokenizer.tokenize(x))
    del weights["quant_proj.bias"]
    with pytest.raises(CheckpointError, match="missing"):
        tokenizer_from_state(raw, {**weights, **foreign})


def test_missing_and_unexpected_weights_are_named_with_their_nearest():
    weights = weights_of(image_config())
    weights["encoder.proj.wieght"] = weights.pop("encoder.proj.weight")

    with pytest.raises(CheckpointError) as error:
        tokenizer_from_state(image_config().to_dict(), weights)

    assert "1 missing, the first 'encoder.proj.weight'" in str(error.value)
    assert "Did you mean 'encoder.proj.wieght'" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:-1], "should have shape"),
        (lambda t: t.long(), "floating-point"),
    ],
)
def test_a_weight_of_another_shape_or_kind_is_refused(change, message):
    weights = weights_of(image_config())
    weights["quantize._codebook.embed"] = change(weights["quantize._codebook.embed"])

    with pytest.raises(CheckpointError, match=message):
        tokenizer_from_state(image_config().to_dict(), weights)


def test_a_truncated_file_is_a_clear_error(tmp_path):
    VQTokenizer(image_config()).save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path)


def test_our_own_config_is_strict_and_the_originals_is_not(caplog):
    own, original = image_config().to_dict(), original_config(image_config())

    with pytest.raises(ConfigError, match="Did you mean 'patch_size'"):
        parse_config({**own, "patch_sise": 4})
    with pytest.raises(ConfigError, match="update fourm_lite"):
        parse_config({**own, "format": 99})
    with caplog.at_level(logging.DEBUG):
        assert parse_config({**original, "anything": [1]}) == parse_config(original)
    assert "anything" in caplog.text


def test_defaults_are_those_of_the_original():
    config = parse_config({})

    assert (config.kind, config.enc_type, config.dec_type) == ("VQVAE", "vit_b_enc", "vit_b_dec")
    assert (config.codebook_size, config.latent_dim, config.patch_size) == (16384, 32, 16)
    assert parse_config({"dec_type": None}) == config
    diffusion = parse_config({"prediction_type": "sample"})
    assert (diffusion.kind, diffusion.dec_type) == ("DiVAE", "unet_patched")


def test_the_class_is_guessed_from_names_before_the_config():
    assert guess_kind({"dec_type": "unet_patched"}) == "DiVAE"
    assert guess_kind({"dec_type": "vit_b_dec"}) == "VQVAE"
    assert guess_kind({}, ["encoder.x", "quant_proj.x"]) == "VQ"
    assert guess_kind({}, ["encoder.x", "decoder.x"]) == "DiVAE"
    assert guess_kind({}, ["encoder.x", "decoder.x", "post_quant_proj.x"]) == "VQVAE"
    assert guess_kind({"sd_path": "x"}, ["encoder.x"]) == "VQControlNet"
    with pytest.raises(ConfigError, match="Did you mean 'VQVAE'"):
        parse_config({"class": "VQVAEE"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patch_size", "sixteen"),
        ("patch_size", True),
        ("patch_size", 0),
        ("patch_proj", 1),
        ("quant_type", "lucide"),
        ("ema_decay", "fast"),
        ("ema_decay", float("nan")),
        ("image_size", [1, 2, 3]),
        ("codebook_size", 10**12),
        ("scale", 0),
        ("mean", [1.0, 2.0]),
        ("mean", "0"),
        ("n_channels", -3),
        ("undo_std", "yes"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(key, value):
    with pytest.raises(ConfigError, match=key):
        parse_config({key: value})


def test_numbers_written_as_text_are_read():
    config = parse_config({"ema_decay": "1e-05", "image_size": [224, 448], "commitment_weight": 1})

    assert config.ema_decay == 1e-5
    assert config.grid() == (14, 28)
    assert isinstance(config.commitment_weight, float)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from(["", "vit_b_enc", "MLP/a_1-b_2", "unet_patched", "lucid", "memcodes", "1e9"]),
    st.text(max_size=8),
    st.lists(st.integers(-3, 300), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
KEYS = st.sampled_from([*image_config().to_dict(), "blr", "class", "sd_path"])


@settings(max_examples=150, deadline=2000)
@given(raw=st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_config_gives_a_tokenizer_or_one_of_our_errors(raw):
    small = {"enc_type": "BottleneckMLP/B_1-Wi_4", "dec_type": "BottleneckMLP/B_1-Wi_4"}

    with pytest.raises(FourMError):  # at the latest, the weights do not fit
        tokenizer_from_state({**small, **raw}, {"encoder.linear_in.weight": torch.zeros(4, 3)})
