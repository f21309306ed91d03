"""What `register_embedding` refuses before any stage of it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from fourm_lite.embedders.base import NetworkEmbedder
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.given import TEXT


def check_new_name(name: str, known: Mapping[str, Modality], tokenizers: Iterable[str]) -> None:
    """Refuses a name that cannot be a modality's, or that something of the model already has.

    Raises:
        ConfigError: it is no identifier, or it is taken
    """
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
        raise ConfigError(
            f"a modality's name is a letter and then letters, digits and '_' (my_network), got "
            f"{name!r}"
        )
    if hasattr(nn.ModuleDict(), name):
        raise ConfigError(f"the name {name!r} means something to torch; choose another, my_{name}")
    taken = {
        word for m in known.values()
        for word in (m.name, m.stem, m.stem.removeprefix("tok_"), m.tokenizer) if word
    }  # fmt: skip
    if name in taken | set(tokenizers) | {TEXT}:
        raise ConfigError(
            f"the model already has something called {name!r} (modalities: {sorted(known)}); "
            "choose another name"
        )


def check_embedder(embedder: NetworkEmbedder) -> None:
    """Refuses a network that reads no pictures.

    Raises:
        FourMError: it embeds text alone
    """
    if "image" not in embedder.can:
        raise FourMError(
            f"'{embedder.name}' cannot embed pictures; it embeds {', '.join(embedder.can)}. Give "
            "a network with an image tower"
        )
