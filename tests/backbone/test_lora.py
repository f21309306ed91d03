from __future__ import annotations

import pytest
import torch

from fourm_lite.backbone.heads import LoraConfig, add_lora, merge_lora, merged_copy, trainable_share
from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import ConfigError


def stir(model: FMViT) -> None:
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.2)


def test_fresh_updates_change_nothing(vit, images):
    before = vit(images)

    count = add_lora(vit)

    assert count == 4
    torch.testing.assert_close(vit(images), before, rtol=0, atol=0)


def test_only_updates_and_the_head_are_trained(vit):
    add_lora(vit)

    trained = {n.rsplit(".", 1)[-1] for n, p in vit.named_parameters() if p.requires_grad}

    assert trained == {"lora_a", "lora_b", "weight", "bias"}
    assert all(not p.requires_grad for p in vit.encoder_embeddings.parameters())


@pytest.mark.parametrize("dim", [64, 128, 192, 384, 768])
def test_updates_are_less_than_two_percent_of_the_weights(dim):
    from tiny import PIXELS

    from fourm_lite.backbone.config import HeadConfig, ViTConfig
    from fourm_lite.nn.blocks import BlockConfig

    block = BlockConfig(dim=dim, num_heads=2)
    model = FMViT(ViTConfig(inputs=(PIXELS,), block=block, depth=2, head=HeadConfig(num_classes=3)))
    add_lora(model)

    assert trainable_share(model, without=("head.", "fc_norm.")) < 0.02


def test_merged_updates_give_the_same_logits(vit, images):
    names = set(vit.state_dict())
    add_lora(vit)
    stir(vit)
    want = vit(images)
    copied = merged_copy(vit)

    merged = merge_lora(vit)

    assert set(merged.state_dict()) == names == set(copied.state_dict())
    torch.testing.assert_close(merged(images), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(copied(images), merged(images))


def test_names_that_are_not_there_are_refused(vit):
    with pytest.raises(ConfigError, match="nothing"):
        add_lora(vit, LoraConfig(targets=("nothing",)))
