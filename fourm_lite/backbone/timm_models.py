"""FMViT as a timm model: `import fourm_lite.backbone.timm_models`, then `timm.create_model(...)`.

Importing this file registers the models; it is the only one of ours that imports timm for that, and
nothing else of ours imports it. Unusual: timm loads `checkpoint_path` after the model is built, so
the model takes over the flavour (gelu, swiglu, q/k norms) that the file's tensors show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fourm_lite.backbone.config import IMAGENET_MEAN, IMAGENET_STD, HeadConfig, ViTConfig
from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import CheckpointError, ConfigError, suggest
from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.model.config import PRESETS
from fourm_lite.nn.blocks import Block, BlockConfig, depth_rates
from fourm_lite.nn.posemb import resize_table

SIZES = ("tiny", "small", "base", "large", "xlarge")
FLAVOURS = ("gelu", "swiglu_nobias", "swiglu_qknorm_nobias")
PUBLISHED = "swiglu_nobias"
_OWN = ("encoder_embeddings.", "encoder.", "encoder_norm.", "fc_norm.", "head.", "pool.")
_HEAD = ("fc_norm.", "head.", "pool.")
_POOLS = {"avg": "avg", "map": "attentive", "": "none"}


class TimmFMViT(FMViT):
    """An FMViT that reads any 4M or FMViT state dict, as timm's loaders hand it over."""

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Takes the tensors that an FMViT needs; a file without a head leaves the head as it is."""
        state = checkpoint_filter_fn(state_dict, self)
        own = self.state_dict()
        state = {**{k: v for k, v in own.items() if k.startswith(_HEAD)}, **state}
        return super().load_state_dict(state, *args, **kwargs)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a 4M model, an ml-4m ViT or an FMViT under the names that `model` has.

    The model takes over the flavour and the class head of the tensors, and the position table is
    resized to the model's grid.

    Raises:
        CheckpointError: the tensors are of another kind of network, or of another number of classes
    """
    assert isinstance(model, FMViT)
    state = {k: v for k, v in state_dict.items() if k.startswith(_OWN)}
    key = _pixel_key(state, model)
    here = f"encoder_embeddings.{model.config.pixels.name}."
    out = {k: v for k, v in state.items() if not k.startswith("encoder_embeddings.")}
    out |= {here + k[len(key) :]: v for k, v in state.items() if k.startswith(key)}
    table, grid = out[here + "pos_emb"], model.config.pixels.grid
    assert grid is not None
    if table.shape[1] != grid[0] * grid[1]:
        side = round(table.shape[1] ** 0.5)
        out[here + "pos_emb"] = resize_table(table, (side, side), grid)
    _take_flavour(out, model)
    _check_classes(out, model)
    wanted = model.state_dict()
    return {k: v for k, v in out.items() if k in wanted or not k.startswith(_HEAD)}


def _pixel_key(state: Mapping[str, Tensor], model: FMViT) -> str:
    """The prefix of the pixel embedding in a state dict: the model's own name, or the first."""
    found = [k.removesuffix("proj.weight") for k in state if k.endswith(".proj.weight")]
    found = [k for k in found if k.startswith("encoder_embeddings.")]
    own = f"encoder_embeddings.{model.config.pixels.name}."
    if not found or "encoder_norm.weight" not in state:
        raise CheckpointError(
            "expected the weights of a 4M model that reads pixels, or of an FMViT "
            "(encoder_embeddings.rgb@224.proj.weight, encoder_norm.weight, ...); found neither"
        )
    return own if own in found else found[0]


def flavour_of(state: Mapping[str, Tensor], block: BlockConfig) -> BlockConfig:
    """The block that the tensors of a state dict show: gates, norms of q and k, biases."""
    gated = "encoder.0.mlp.fc3.weight" in state
    norms = [v for k, v in state.items() if k.startswith("encoder.") and ".norm" in k]
    biases = [v for k, v in state.items() if k.endswith(("norm1.bias", "norm2.bias"))]
    return replace(
        block,
        gated_mlp=gated,
        act_layer="SiLU" if gated else "GELU",
        qk_norm="encoder.0.attn.q_norm.weight" in state,
        qkv_bias="encoder.0.attn.qkv.bias" in state,
        proj_bias="encoder.0.attn.proj.bias" in state,
        mlp_bias="encoder.0.mlp.fc1.bias" in state,
        # A norm without a bias stores a bias of zeros
        norm_bias=not norms or any(bool(b.any()) for b in biases),
    )


def _take_flavour(state: Mapping[str, Tensor], model: FMViT) -> None:
    block = flavour_of(state, model.config.block)
    if block == model.config.block:
        return
    where = model.encoder_norm.weight if hasattr(model.encoder_norm, "weight") else None
    model.config = replace(model.config, block=block)
    rates = depth_rates(model.config.drop_path_rate, model.config.depth)
    model.encoder = nn.ModuleList(Block(block, drop_path=rate) for rate in rates)
    if isinstance(where, Tensor):
        model.encoder.to(where.device, where.dtype)


def _check_classes(state: Mapping[str, Tensor], model: FMViT) -> None:
    weight = state.get("head.weight")
    if weight is not None and model.num_classes and weight.shape[0] != model.num_classes:
        raise CheckpointError(
            f"the checkpoint's head has {weight.shape[0]} classes, the model was made for "
            f"{model.num_classes}; pass num_classes={weight.shape[0]}, or 0 for no head"
        )


def build(
    size: str,
    *,
    img_size: int | tuple[int, int] = 224,
    in_chans: int = 3,
    num_classes: int = 1000,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    flavour: str = PUBLISHED,
    source: str | Path | None = None,
) -> TimmFMViT:
    """The model behind `timm.create_model("fm_vit_<size>_patch16_224")`, with fresh weights.

    `source` is a folder, file, shipped name or hub id of any layout to take the weights from.
    """
    if flavour not in FLAVOURS:
        raise ConfigError(
            f"flavour is one of {FLAVOURS}, got {flavour!r}.{suggest(flavour, FLAVOURS)}"
        )
    if global_pool not in _POOLS:
        raise ConfigError(f"global_pool is one of {sorted(_POOLS)}, got {global_pool!r}")
    preset = dict(PRESETS[f"{size}_{flavour}"])
    depth = preset.pop("encoder_depth")
    del preset["decoder_depth"]
    pool: Any = _POOLS[global_pool]
    config = ViTConfig(
        inputs=(_pixels(in_chans),),
        block=BlockConfig(**preset),
        depth=depth,
        head=HeadConfig(num_classes=num_classes, pool=pool, dropout=drop_rate),
        drop_path_rate=drop_path_rate,
    )
    model = TimmFMViT(config)
    model.init_weights()
    model.set_input_size(img_size)
    if source is not None:
        from fourm_lite.io.checkpoint import read

        checkpoint = read(source)
        names = [n for n in checkpoint.tensors if n.startswith(_OWN)]
        model.load_state_dict(checkpoint.load(names, dtype=torch.float32))
    return model


def _pixels(channels: int) -> Modality:
    return Modality(
        name="rgb@224", kind="pixels", channels=channels, image_size=224, patch_size=16,
        grid=(14, 14), max_tokens=196, directions=IN, title="RGB",
    )  # fmt: skip


def _entrypoint(size: str) -> Callable[..., nn.Module]:
    from timm.models import build_model_with_cfg
    from timm.models._features import FeatureGetterNet

    class Features(FeatureGetterNet):
        """The wrapper of `features_only`, which loads the same checkpoints."""

        def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kw: Any) -> Any:
            if any(k.startswith("model.") for k in state_dict):
                return super().load_state_dict(state_dict, *args, **kw)
            inner = self.model
            own = set(inner.state_dict())
            state = checkpoint_filter_fn(state_dict, inner)
            # Blocks behind the last feature, and the last norm, were pruned
            state = {k: v for k, v in state.items() if k in own}
            return nn.Module.load_state_dict(inner, state, *args, **kw)

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        kwargs.pop("pretrained_model_args", None)
        return build_model_with_cfg(
            lambda **own: build(size, **own),
            f"fm_vit_{size}_patch16_224",
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": 3, "feature_cls": Features},
            **kwargs,
        )

    create.__name__ = f"fm_vit_{size}_patch16_224"
    create.__module__ = __name__
    create.__doc__ = f"The encoder of 4M, {size}, as a ViT with patches of 16 pixels."
    return create


def default_cfg() -> dict[str, Any]:
    """How images are prepared, in timm's words: as in 4M's training."""
    return {
        "url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": None,
        "fixed_input_size": False, "crop_pct": 1.0, "interpolation": "bicubic",
        "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "first_conv": None, "classifier": "head",
    }  # fmt: skip


def register() -> list[str]:
    """Adds the models to timm's registry, once; returns their names."""
    import sys

    from timm.models import generate_default_cfgs, is_model, register_model

    module: Any = sys.modules[__name__]
    names = [f"fm_vit_{size}_patch16_224" for size in SIZES]
    if is_model(names[0]):
        return names
    module.default_cfgs = generate_default_cfgs({name: default_cfg() for name in names})
    for size, name in zip(SIZES, names, strict=True):
        create = _entrypoint(size)
        setattr(module, name, create)
        register_model(create)
    return names


register()
