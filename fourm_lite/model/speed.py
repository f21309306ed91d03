"""Options that trade memory, precision or a wait for speed: packed, half, int8, compiled.

bfloat16 needs nothing from here: `load_model(..., dtype=torch.bfloat16)`, or `Sampler(...,
autocast=torch.bfloat16)`. What each gives is measured in docs/performance.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from fourm_lite.errors import FourMError
from fourm_lite.model.fourm import FourM
from fourm_lite.nn.cpu_linear import HalfLinear, Int8Linear, PackedLinear, can_pack, replace_linear
from fourm_lite.nn.layers import prefers_onednn


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
    return _with_linear(model, Int8Linear, decoding=partial(Int8Linear, few_rows=True))


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
    return _with_linear(model, HalfLinear)


def pack_weights(model: FourM) -> FourM:
    """A copy of a model whose weights lie as MKL's float32 products read them, for the CPU.

    The same numbers up to rounding, faster wherever a product has few rows: texts of several items,
    guided images. Let go of the model that is given, which does not change, to free its weights;
    while both are there the memory is twice as much. Where torch has no MKL, or multiplies plain
    weights faster by oneDNN (CPUs that are not Intel's), the model itself is returned.

    Raises:
        FourMError: the weights are not float32 on the CPU

    Example:
        >>> fast = pack_weights(load_model("mini"))  # doctest: +SKIP
    """
    worth_it = can_pack() and not prefers_onednn()
    return _with_linear(model, PackedLinear) if worth_it else model


Make = Callable[[nn.Linear], nn.Module]


def _with_linear(model: FourM, make: Make, *, decoding: Make | None = None) -> FourM:
    """A copy with other linear maps; `decoding` makes those that read what is being decoded."""
    decoding = decoding or make
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, shared).eval()  # the memo keeps every tensor from being copied
    for embedding in other.decoder_embeddings.values():
        embedding.to_logits = decoding(embedding.to_logits)  # type: ignore[arg-type]
    replace_linear(other.encoder, make)
    for block in other.decoder:
        crossing: Any = block.cross_attn
        crossing.kv = make(crossing.kv)  # it reads the whole context
    replace_linear(other.decoder, decoding)
    other.decoder_proj_context = make(other.decoder_proj_context)  # type: ignore[assignment]
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
