"""Opening an FMViT from a 4M model, an ml-4m ViT file, or our own format; filling one of timm's.

Unusual: timm loads weights after the model is built, so there the model takes over what the tensors
show (flavour, convolutions, registers, pool and layers of the head); what cannot be taken over is
an error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fourm_lite.backbone.config import HeadConfig, ViTConfig
from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import CheckpointError
from fourm_lite.model.embeddings import PixelEncoder
from fourm_lite.model.load import fill, model_config
from fourm_lite.nn.blocks import Block, BlockConfig, depth_rates
from fourm_lite.nn.device import usable_device, without_storage
from fourm_lite.nn.posemb import resize_table

if TYPE_CHECKING:
    from fourm_lite.io.checkpoint import Checkpoint, Source

log = logging.getLogger(__name__)
UNTRAINED = (
    "%s holds no classifier, so the head of %d classes is untrained and its logits mean nothing "
    "yet: give num_classes= to train one of yours, or num_classes=0 for features"
)


def load_vit(
    source: Source,
    *,
    num_classes: int | None = None,
    inputs: Iterable[str] | None = None,
    head: HeadConfig | None = None,
    dtype: str | torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> FMViT:
    """See `FMViT.from_pretrained`."""
    from fourm_lite.io.checkpoint import read

    device = usable_device(device)
    checkpoint = read(source)
    config = vit_config(checkpoint, inputs)
    wanted = _wanted_head(config.head, num_classes, head)
    keeps_head = wanted == config.head and is_classifier(checkpoint)
    empty = HeadConfig(num_classes=0)
    with without_storage():
        model = FMViT(replace(config, head=config.head if keeps_head else empty))
    fill(model, checkpoint, dtype=dtype, device=device)
    _align(model)
    unused = set(checkpoint.tensors) - set(model.state_dict())
    log.info("%s: %d tensors of other parts were left out", checkpoint.source, len(unused))
    if not keeps_head:
        if num_classes is None and head is None:
            log.warning(UNTRAINED, checkpoint.source, wanted.num_classes)
        model.reset_classifier(wanted.num_classes, head=wanted)
    return model.eval()


def _align(model: torch.nn.Module) -> None:
    """Copies tensors that a file holds at an odd address.

    Matrix products sum in another order there, and a saved model would differ in the last bit.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def is_classifier(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is an FMViT that was saved here, its head included."""
    return checkpoint.config.get("kind") == "fmvit"


def vit_config(checkpoint: Checkpoint, inputs: Iterable[str] | None = None) -> ViTConfig:
    """The config of the ViT inside a checkpoint."""
    if is_classifier(checkpoint):
        config = ViTConfig.from_dict(checkpoint.config)
        _check_sizes(config, checkpoint)
        return config.only(inputs)
    return ViTConfig.of(model_config(checkpoint), inputs)


def _check_sizes(config: ViTConfig, checkpoint: Checkpoint) -> None:
    """Refuses a config whose sizes are not the file's, before anything of them is built."""
    from fourm_lite.io.checkpoint import check_sizes

    sizes = {
        "dim": config.block.dim,
        "mlp_ratio": config.block.mlp_ratio,
        "gated_mlp": config.block.gated_mlp,
        "encoder_depth": config.depth,
        "decoder_depth": 0,
        "num_register_tokens": config.num_register_tokens,
        "inputs": [entry.to_dict() for entry in config.inputs],
    }
    check_sizes(sizes, checkpoint.tensors)


def _wanted_head(saved: HeadConfig, num_classes: int | None, head: HeadConfig | None) -> HeadConfig:
    if head is not None:
        return head
    if num_classes in (None, saved.num_classes):
        return saved
    assert num_classes is not None
    return replace(saved, num_classes=num_classes, class_names=())


HEAD = ("fc_norm.", "head.", "pool.")
OWN = ("encoder_embeddings.", "encoder.", "encoder_norm.", "register_tokens", *HEAD)


def fit(
    state_dict: Mapping[str, Any], model: FMViT, *, depth: int, known: Mapping[str, tuple[int, int]]
) -> dict[str, Tensor]:
    """The tensors that the model needs, under its names; the model takes over what they show.

    Units:
        depth: blocks of the whole network; the model may have fewer, pruned to give features
        known: size name -> (width, depth), for the advice in an error
    Raises:
        CheckpointError: another kind of network, size, number of classes or head
    """
    state = {k: v for k, v in state_dict.items() if k.startswith(OWN)}
    key = _pixel_key(state, model)
    here = f"encoder_embeddings.{model.config.pixels.name}."
    out = {k: v for k, v in state.items() if not k.startswith("encoder_embeddings.")}
    out |= {here + k[len(key) :]: v for k, v in state.items() if k.startswith(key)}
    _check_depth(out, model, depth, known)
    _check_channels(out[here + "proj.weight"], model)
    out[here + "pos_emb"] = _table(out[here + "pos_emb"], model)
    _take_convolutions(here + "conv_map.weight" in out, model)
    _take_flavour(out, model)
    _take_registers(out, model)
    return _with_head(out, model)


def _pixel_key(state: Mapping[str, Tensor], model: FMViT) -> str:
    """The prefix of the pixel embedding in a state dict: the model's own name, or the first."""
    found = [k.removesuffix("proj.weight") for k in state if k.endswith(".proj.weight")]
    found = [k for k in found if k.startswith("encoder_embeddings.") and k + "pos_emb" in state]
    own = f"encoder_embeddings.{model.config.pixels.name}."
    if not found or "encoder_norm.weight" not in state:
        raise CheckpointError(
            "expected the weights of a 4M model that reads pixels, or of an FMViT "
            "(encoder_embeddings.rgb@224.proj.weight, encoder_norm.weight, ...); found neither"
        )
    return own if own in found else found[0]


def _check_depth(
    state: Mapping[str, Tensor], model: FMViT, depth: int, known: Mapping[str, tuple[int, int]]
) -> None:
    width = len(state["encoder_norm.weight"])
    blocks = len({k.split(".")[1] for k in state if k.startswith("encoder.")})
    if width == model.num_features and blocks in (depth, model.config.depth):
        return
    fitting = [name for name, size in known.items() if size == (width, blocks)]
    advice = f"make {fitting[0]}" if fitting else "open it with FMViT.from_pretrained"
    raise CheckpointError(
        f"the checkpoint has width {width} and {blocks} blocks, this model width "
        f"{model.num_features} and {depth} blocks; {advice}"
    )


def _check_channels(weight: Tensor, model: FMViT) -> None:
    entry = model.config.pixels
    assert entry.patch_size is not None
    channels = weight.shape[1] // entry.patch_size**2
    if channels != entry.channels:
        raise CheckpointError(
            f"the checkpoint reads images of {channels} channels, this model of {entry.channels}; "
            f"pass in_chans={channels}"
        )


def _table(table: Tensor, model: FMViT) -> Tensor:
    """A position table of the model's grid, or of a square one resized to it."""
    grid = model.config.pixels.grid
    assert grid is not None
    count = table.shape[1]
    side = round(count**0.5)
    if count == grid[0] * grid[1]:
        return table
    if side * side != count:
        raise CheckpointError(
            f"the checkpoint's position table has {count} places, which are no square, this model "
            f"{grid[0]}x{grid[1]}; pass the checkpoint's own img_size=(height, width), or its "
            "folder as source="
        )
    return resize_table(table, (side, side), grid)


def _take_convolutions(there: bool, model: FMViT) -> None:
    entry = model.config.pixels
    if there == entry.convolutions:
        return
    taken = replace(entry, convolutions=there)
    entries = tuple(taken if m is entry else m for m in model.config.inputs)
    where = model.patch_embed.proj.weight
    model.config = replace(model.config, inputs=entries)
    made = PixelEncoder(taken, model.num_features)
    model.encoder_embeddings[entry.name] = made.to(where.device, where.dtype)


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
    model.config = replace(model.config, block=block)
    rates = depth_rates(model.config.drop_path_rate, model.config.depth)
    model.encoder = nn.ModuleList(Block(block, drop_path=rate) for rate in rates)
    where = model.patch_embed.proj.weight
    model.encoder.to(where.device, where.dtype)


def _take_registers(state: Mapping[str, Tensor], model: FMViT) -> None:
    found = state.get("register_tokens")
    count = 0 if found is None else found.shape[1]
    if count == model.config.num_register_tokens:
        return
    model.config = replace(model.config, num_register_tokens=count)
    if found is None:
        del model.register_tokens
    else:
        where = model.patch_embed.proj.weight
        model.register_tokens = nn.Parameter(found.detach().to(where.device, where.dtype).clone())


def _with_head(state: dict[str, Tensor], model: FMViT) -> dict[str, Tensor]:
    """The state with the head's tensors under the model's names, or without, where it has none."""
    if not model.num_classes:
        wanted = model.state_dict()
        return {k: v for k, v in state.items() if k in wanted or not k.startswith(HEAD)}
    maps = _maps(state)
    if maps:
        _check_classes(state[maps[-1] + "weight"], model)
    _take_head(state, model, len(maps))
    wanted = model.state_dict()
    last = _maps(wanted)[-1]
    if maps:  # a dropout before the last map shifts its number
        moved = {k: k.replace(maps[-1], last, 1) for k in state if k.startswith(maps[-1])}
        state = {moved.get(k, k): v for k, v in state.items()}
    unused = sorted(k for k in state if k.startswith(HEAD) and k not in wanted)
    if unused:
        raise CheckpointError(
            f"the checkpoint's head has {', '.join(unused)}, which no head of an FMViT has; "
            "pass num_classes=0 to do without its head"
        )
    return state


def _maps(state: Mapping[str, Tensor]) -> list[str]:
    """The prefixes of the head's linear maps, in their order."""
    found = [k.removesuffix("weight") for k in state if re.fullmatch(r"head\.(\d+\.)?weight", k)]
    return sorted(found, key=lambda k: int("0" + k[5:-1]))


def _check_classes(weight: Tensor, model: FMViT) -> None:
    if weight.shape[0] != model.num_classes:
        raise CheckpointError(
            f"the checkpoint's head has {weight.shape[0]} classes, the model was made for "
            f"{model.num_classes}; pass num_classes={weight.shape[0]}, or 0 for no head"
        )


def _take_head(state: Mapping[str, Tensor], model: FMViT, num_maps: int) -> None:
    """Gives the model the pool and the number of maps of the tensors; its dropout stays."""
    head = model.config.head
    attentive = "pool.query" in state
    if attentive and head.pool == "none":
        raise CheckpointError(
            "the checkpoint pools tokens by attention, this model gives tokens; "
            "pass global_pool='map', or num_classes=0 to do without its head"
        )
    if num_maps and not attentive and head.pool == "attentive":
        raise CheckpointError(
            "the checkpoint's head reads the mean of the tokens, this model pools by attention; "
            "pass global_pool='avg', or num_classes=0 to do without its head"
        )
    pool = "attentive" if attentive else head.pool
    taken = replace(head, pool=pool, layers=num_maps or head.layers)
    if taken != head:
        model.reset_classifier(head.num_classes, head=taken)
