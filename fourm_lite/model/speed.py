"""Options that trade memory, precision or a wait for speed: packed, half, int8, compiled.

What the weights are held as is asked for where a model is opened: `load_model(..., dtype="int8")`.
What each gives is measured in docs/performance.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from fourm_lite.errors import FourMError, check_choice
from fourm_lite.model.fourm import FourM
from fourm_lite.nn.cpu_linear import HalfLinear, Int8Linear, PackedLinear, can_pack
from fourm_lite.nn.layers import prefers_onednn

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8", "float64"]
"""What weights are held as; "auto" is float32, and int8 where the file holds int8."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def precision_of(dtype: str | torch.dtype | None) -> Precision:
    """The name of what weights are to be held as.

    Raises:
        UnknownNameError: there is no such way
    """
    name = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    check_choice("a model's dtype", name, of=PRECISIONS)
    return cast(Precision, name)


def linear_maps(model: nn.Module) -> dict[str, bool]:
    """The linear maps of a model's blocks and logits, by name.

    With whether each reads what is being decoded, a few rows at a time.
    """
    found = {}
    for name, layer in model.named_modules():
        ends = name.endswith(".to_logits")
        inside = name.startswith(("encoder.", "decoder.", "decoder_proj_context"))
        if type(layer) is nn.Linear and (inside or ends):
            # the map to keys and values reads the whole context
            found[name] = ends or (name.startswith("decoder.") and not name.endswith("attn.kv"))
    return found


def quantize_int8(model: FourM) -> FourM:
    """A copy of a model with int8 linear maps in its blocks and its logits, for the CPU.

    Embeddings, norms and the patch projection stay as they are and are shared with the model that
    is given, which does not change. Let go of that one to free its weights.

    Raises:
        FourMError: the weights are not on the CPU, or torch lacks the kernels

    Example:
        >>> small = quantize_int8(load_model("mini"))  # doctest: +SKIP
    """
    if model.device.type != "cpu":
        raise FourMError(
            f"int8 weights run on the CPU only, the model is on {model.device}; "
            "use model.to(torch.bfloat16) there"
        )
    return _with_linear(model, lambda layer, few: Int8Linear(layer, few_rows=few))


def half_weights(model: FourM) -> FourM:
    """A copy of a model whose linear maps keep float16 weights and add up in float32, for the CPU.

    Half the memory, and faster than float32 with few rows and with many: a text is bound by reading
    the weights. Inputs and outputs stay float32. Embeddings, norms and the patch projection stay
    as they are and are shared with the model that is given, which does not change.

    Raises:
        FourMError: the weights are not on the CPU or beyond float16, or torch lacks the kernels

    Example:
        >>> fast = half_weights(load_model("mini"))  # doctest: +SKIP
    """
    return _with_linear(model, lambda layer, _: HalfLinear(layer))


def pack_weights(model: FourM) -> FourM:
    """A copy of a model whose weights lie as MKL's float32 products read them, for the CPU.

    The same numbers up to rounding, faster wherever a product has few rows: texts of several items,
    guided images. Let go of the model that is given, which does not change, to free its weights;
    while both are there the memory is twice as much. Where torch has no MKL, or multiplies plain
    weights faster by oneDNN (AVX-512 on CPUs that are not Intel's), the model itself is returned.

    Raises:
        FourMError: the weights are not float32 on the CPU

    Example:
        >>> fast = pack_weights(load_model("mini"))  # doctest: +SKIP
    """
    worth_it = can_pack() and not prefers_onednn()
    return _with_linear(model, lambda layer, _: PackedLinear(layer)) if worth_it else model


def _with_linear(model: FourM, make: Callable[[nn.Linear, bool], nn.Module]) -> FourM:
    """A copy with other linear maps; `make` is told whether one reads what is being decoded."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, shared).eval()  # the memo keeps every tensor from being copied
    for name, few_rows in linear_maps(other).items():
        layer: Any = other.get_submodule(name)
        other.set_submodule(name, make(layer, few_rows))
    return other


def compile_blocks(model: FourM, **options: Any) -> FourM:
    """The same model, each block compiled when it is first called; its weights are untouched.

    All blocks of a kind share one graph, and sizes are dynamic, so that a text that grows does not
    compile again with every token.

    Args:
        model: in eval mode
        options: for `torch.compile`, such as `mode` or `backend`
    """
    options = {"dynamic": True, **options}
    for block in (*model.encoder, *model.decoder):
        block.compile(**options)
    return model
