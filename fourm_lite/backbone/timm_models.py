"""FMViT as a timm model: `import fourm_lite.backbone.timm_models`, then `timm.create_model(...)`.

Importing this file registers the models; it is the only one of ours that imports timm for that, and
nothing else of ours imports it. Unusual: timm loads `checkpoint_path` after the model is built, so
the model takes over what the file's tensors show; see `load.fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fourm_lite.backbone.config import TIMM_CFG, HeadConfig, ViTConfig, pool_of
from fourm_lite.backbone.load import HEAD, OWN, fit, vit_config
from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import CheckpointError, check_choice
from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.model.config import PRESETS
from fourm_lite.nn.blocks import BlockConfig
from fourm_lite.nn.posemb import resize_table

SIZES = ("mini", "tiny", "small", "base", "large", "xlarge")
FLAVOURS = ("gelu", "swiglu_nobias", "swiglu_qknorm_nobias")
PUBLISHED = "swiglu_nobias"
MINI = {"encoder_depth": 12, "dim": 192, "num_heads": 3}


class TimmFMViT(FMViT):
    """An FMViT that reads any 4M or FMViT state dict, as timm's loaders hand it over."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.full_depth = config.depth

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Takes the tensors that an FMViT needs; a file without a head leaves the head as it is."""
        state = checkpoint_filter_fn(state_dict, self)
        own = self.state_dict()
        state = {**{k: v for k, v in own.items() if k.startswith(HEAD)}, **state}
        return super().load_state_dict(state, *args, **kwargs)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a 4M model, an ml-4m ViT or an FMViT under the names that `model` has.

    The model takes over the flavour, the registers and the form of the head that the tensors show,
    and the position table is resized to the model's grid. Without classes (`num_classes=0`) the
    file's head is left out, and the model's own pool stands.

    Raises:
        CheckpointError: another kind of network, size, number of classes or head
    """
    assert isinstance(model, TimmFMViT)
    return fit(state_dict, model, depth=model.full_depth, known=_known())


def _known() -> dict[str, tuple[int, int]]:
    shapes = {size: _shape(size, PUBLISHED) for size in SIZES}
    return {_name(size): (s["dim"], s["encoder_depth"]) for size, s in shapes.items()}


def _name(size: str) -> str:
    return f"fm_vit_{size}_patch16_224"


def _shape(size: str, flavour: str) -> dict[str, Any]:
    """Depth, and the words of a `BlockConfig`."""
    preset = (
        {**PRESETS[f"tiny_{flavour}"], **MINI} if size == "mini" else PRESETS[f"{size}_{flavour}"]
    )
    return {k: v for k, v in preset.items() if k != "decoder_depth"}


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
    check_choice("flavour", flavour, of=FLAVOURS)
    shape = _shape(size, flavour)
    depth = shape.pop("encoder_depth")
    config = ViTConfig(
        inputs=(_pixels(in_chans),),
        block=BlockConfig(**shape),
        depth=depth,
        head=HeadConfig(num_classes=num_classes, pool=pool_of(global_pool), dropout=drop_rate),
        drop_path_rate=drop_path_rate,
    )
    model = TimmFMViT(config)
    model.init_weights()
    model.set_input_size(img_size)
    if source is not None:
        _load(model, source)
    return model


def _load(model: TimmFMViT, source: str | Path) -> None:
    """Fills a model from a checkpoint whose config holds what its tensors do not show."""
    from fourm_lite.io.checkpoint import read

    checkpoint = read(source)
    config = vit_config(checkpoint)
    heads, own = config.block.num_heads, model.config.block.num_heads
    if config.block.dim == model.num_features and heads != own:
        raise CheckpointError(
            f"the checkpoint has {heads} attention heads a block, this model {own}; "
            "open it with FMViT.from_pretrained"
        )
    pixels = f"encoder_embeddings.{config.pixels.name}."
    own_keys = (*(k for k in OWN if k != "encoder_embeddings."), pixels)
    names = [n for n in checkpoint.tensors if n.startswith(own_keys)]
    state = checkpoint.load(names, dtype=torch.float32)
    grid, here = config.pixels.grid, model.config.pixels.grid
    assert grid is not None
    assert here is not None
    state[pixels + "pos_emb"] = resize_table(state[pixels + "pos_emb"], grid, here)
    model.load_state_dict(state)


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
            state = checkpoint_filter_fn(state_dict, inner)
            own = inner.state_dict()  # after it took over what the file shows
            # Blocks behind the last feature, and the last norm, were pruned
            state = {k: v for k, v in state.items() if k in own}
            return nn.Module.load_state_dict(inner, state, *args, **kw)

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        kwargs.pop("pretrained_model_args", None)
        return build_model_with_cfg(
            lambda **own: build(size, **own),
            _name(size),
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": 3, "feature_cls": Features},
            **kwargs,
        )

    create.__name__ = _name(size)
    create.__module__ = __name__
    create.__doc__ = f"The encoder of 4M, {size}, as a ViT with patches of 16 pixels."
    return create


def register() -> list[str]:
    """Adds the models to timm's registry, once; returns their names."""
    import sys

    from timm.models import generate_default_cfgs, is_model, register_model

    module: Any = sys.modules[__name__]
    names = [_name(size) for size in SIZES]
    if is_model(names[0]):
        return names
    usual = {**TIMM_CFG, "num_classes": 1000, "input_size": (3, 224, 224)}
    module.default_cfgs = generate_default_cfgs({name: dict(usual) for name in names})
    for size, name in zip(SIZES, names, strict=True):
        create = _entrypoint(size)
        setattr(module, name, create)
        register_model(create)
    return names


register()
