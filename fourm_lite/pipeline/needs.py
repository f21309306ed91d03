"""What a request will read and show, so that a missing tokenizer is told before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.inner_tokens import INNER
from fourm_lite.pipeline.names import find_modality
from fourm_lite.pipeline.readers import is_token_ids


def read_entries(
    items: Iterable[Mapping[str, Any]], inputs: Mapping[str, Modality]
) -> list[Modality]:
    """The modalities whose values a tokenizer must read: grids and texts that are no token ids."""
    keys = {key for item in items for key, value in item.items() if not is_token_ids(value)}
    entries = (inputs[find_modality(key, inputs, role="input")] for key in sorted(keys))
    return [m for m in entries if m.kind in ("grid", "sequence")]


def vq_entries(entries: Iterable[Modality], *, shown: bool) -> list[Modality]:
    """Those of them with a VQ tokenizer; what stands inside a text is decoded where it is shown."""
    return [m for m in entries if m.kind == "grid" or (shown and m.text_format in INNER)]
