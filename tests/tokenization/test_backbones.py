"""Encoders and decoders: sizes by name, resizing, locality."""

from __future__ import annotations

import pytest
import torch
from vq_configs import MLP, VIT_DEC, VIT_ENC, image_config

from fourm_lite.errors import ConfigError, ShapeError
from fourm_lite.nn.posemb import sincos_2d
from fourm_lite.tokenization.vq.backbones import (
    BottleneckMLP,
    ConvNeXtBlock,
    MLPPreset,
    ViTDecoder,
    ViTEncoder,
    make_decoder,
    make_encoder,
    vit_preset,
)


def test_presets_are_those_of_the_published_tokenizers():
    sizes = {n: vit_preset(f"vit_{n}_enc") for n in "sbl"}

    assert [(p.dim, p.depth, p.num_heads) for p in sizes.values()] == [
        (512, 8, 8),
        (768, 12, 12),
        (1024, 24, 16),
    ]
    assert vit_preset("vit_64x2x4_dec").depth == 2


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("BottleneckMLP/B_6-Wi_1024", MLPPreset(6, 1024, 4)),
        ("BottleneckMLP/B_3-Wi_32-E_2", MLPPreset(3, 32, 2)),
        ("MLP/Blocks_2-Width_8", MLPPreset(2, 8, 4)),
    ],
)
def test_only_the_numbers_of_an_mlp_name_matter(name, want):
    assert MLPPreset.parse(name) == want


@pytest.mark.parametrize(
    "name", ["vit_x_enc", "resnet50", "BottleneckMLP/", "MLP/B_0-Wi_8", "MLP/B_9999-Wi_8", ""]
)
def test_an_unknown_backbone_is_refused_with_what_is_known(name):
    with pytest.raises(ConfigError, match=r"BottleneckMLP|impossible"):
        make_encoder(image_config(enc_type=name))


def test_a_misspelt_backbone_is_answered_with_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'vit_b_enc'"):
        make_encoder(image_config(enc_type="vit_bb_enc"))


@pytest.mark.parametrize("post_mlp", [True, False])
@pytest.mark.parametrize("out_conv", [True, False])
def test_a_vit_turns_patches_into_places_and_back(generator, post_mlp, out_conv):
    config = image_config(post_mlp=post_mlp, out_conv=out_conv)
    x = torch.randn(2, 3, 24, 40, generator=generator)  # neither the config's size nor square

    features = ViTEncoder(config)(x)
    image = ViTDecoder(config)(features)

    assert features.shape == (2, 32, 3, 5)
    assert image.shape == x.shape


def test_feature_maps_are_projected_without_patches(generator):
    config = image_config(patch_proj=False, n_channels=6, image_size=32)

    features = ViTEncoder(config)(torch.randn(1, 6, 5, 7, generator=generator))

    assert features.shape == (1, 32, 5, 7)
    assert ViTDecoder(config)(features).shape == (1, 6, 5, 7)


def test_encoder_and_decoder_may_have_grids_and_patches_of_their_own(generator):
    config = image_config(image_size_enc=32, image_size_dec=(16, 32), patch_size_dec=4)
    encoder, decoder = ViTEncoder(config), ViTDecoder(config)

    assert encoder.pos_emb.shape == (1, 32, 4, 4)
    assert decoder.pos_emb.shape == (1, 32, 4, 8)
    assert decoder(encoder(torch.randn(1, 3, 16, 16, generator=generator))).shape == (1, 3, 8, 8)


def test_a_fresh_position_map_tells_rows_from_columns():
    encoder = ViTEncoder(image_config(image_size=(16, 32)))
    position = encoder.pos_emb[0]  # [D, 2, 4]

    assert torch.equal(position[:16, :, 0], position[:16, :, 3])  # rows: the first half
    assert torch.equal(position[16:, 0, :], position[16:, 1, :])  # columns: the second half
    square = ViTEncoder(image_config(image_size=32)).pos_emb
    assert torch.equal(square.flatten(2)[0].T, sincos_2d(4, 4, 32)[0])


def test_position_maps_are_stored_but_not_trained():
    encoder = ViTEncoder(image_config())

    assert "pos_emb" in encoder.state_dict()
    assert "pos_emb" not in dict(encoder.named_parameters())


def test_a_batch_is_encoded_like_its_samples(generator):
    encoder = ViTEncoder(image_config()).eval()
    x = torch.randn(4, 3, 16, 16, generator=generator)

    alone = torch.cat([encoder(row) for row in x.split(1)])

    assert torch.allclose(encoder(x), alone, atol=1e-5)


def test_an_mlp_sees_each_place_by_itself(generator):
    mlp = BottleneckMLP(MLPPreset.parse(MLP), 5, 7)
    x = torch.randn(2, 5, 3, 4, generator=generator)

    out = mlp(x)

    assert out.shape == (2, 7, 3, 4)
    assert torch.allclose(out[:, :, 1:2, 2:3], mlp(x[:, :, 1:2, 2:3]), atol=1e-6)


def test_a_convnext_block_starts_near_the_identity(generator):
    x = torch.randn(1, 4, 9, 9, generator=generator)

    assert torch.allclose(ConvNeXtBlock(4)(x), x, atol=1e-4)


def test_a_size_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ShapeError, match="multiples of 8, got 20x16"):
        ViTEncoder(image_config())(torch.zeros(1, 3, 20, 16))


def test_label_decoders_give_a_score_for_each_label(generator):
    config = image_config(n_labels=9, n_channels=4)
    decoder, dim = make_decoder(config)

    assert decoder(torch.randn(1, dim, 2, 2, generator=generator)).shape == (1, 9, 16, 16)


def test_names_of_both_sides_are_read_the_same():
    config = image_config(enc_type=VIT_ENC, dec_type=VIT_DEC)

    assert make_encoder(config)[1] == make_decoder(config)[1] == 32
