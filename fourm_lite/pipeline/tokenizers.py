"""The tokenizers that belong to a model, each opened when it is first used.

Where several places name one, the first of these counts: the user, the model's config, the folder
`tokenizers/` beside the model, the family of published models that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fourm_lite.errors import (
    FourMError,
    NotFetchedError,
    UnknownNameError,
    suggest,
)
from fourm_lite.families.masked import fork_of_config, published_for
from fourm_lite.io.checkpoint import Checkpoint, Source, read
from fourm_lite.io.hub import download_command, is_hub_id, resolve
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.forks import CODECS
from fourm_lite.modalities.published import FOURM, PublishedFamily
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.given import (
    TEXT,
    Given,
    Sources,
    below,
    named_by_config,
    read_given,
    resolved,
)
from fourm_lite.tokenization.aion.load import is_codec, load_codec
from fourm_lite.tokenization.load import load_tokenizer
from fourm_lite.tokenization.vq.inputs import Tokenizer
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.text import (
    TextTokenizer,
    find_text_tokenizer,
    load_text_tokenizer,
)

Opened = VQTokenizer | Tokenizer[Any]
"""What turns a modality's values into tokens: a VQ tokenizer, or a codec of values."""


class Tokenizers:
    """Where each tokenizer lies; `vq(entry)` and `text()` open them once.

    Args:
        layers: name -> folder, file, hub id or an open tokenizer; earlier layers count first. A
            name is a modality, its stem, or the `tokenizer` of its entry; "text" is the text
            tokenizer.
        family: where those of published models lie that no layer names
        model: the hub id of the model, for what an error advises
        device: where the networks run
    """

    def __init__(
        self,
        *layers: Sources,
        family: PublishedFamily | None = None,
        model: str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._layers = tuple(dict(layer) for layer in layers)
        self.family = family
        self._model, self._device = model, device
        self._opened: dict[tuple[int, str], Opened] = {}
        self._texts: dict[str, TextTokenizer] = {}

    @classmethod
    def of_model(
        cls,
        model: Source,
        checkpoint: Checkpoint,
        given: Given = None,
        *,
        device: torch.device | str | None = None,
    ) -> Tokenizers:
        """The tokenizers of a checkpoint: those given, else its own, else its family's.

        Args:
            model: what the checkpoint was opened by
            checkpoint: whose config and folder are searched
            given: what the user names
            device: where the networks run
        """
        own, is_remote = read_given(given), is_hub_id(model) and not Path(model).exists()
        named = {n: s for n, s in named_by_config(checkpoint).items() if n not in own}
        return cls(
            own,
            {name: resolved(checkpoint.folder, place) for name, place in named.items()},
            below(checkpoint.folder / "tokenizers"),
            below(checkpoint.folder / CODECS),
            _on_hub(str(model), checkpoint.config) if is_remote else {},
            family=published_for(checkpoint.config),
            model=str(model) if is_remote else None,
            device=device,
        )

    @property
    def sources(self) -> dict[str, Any]:
        """What is named for this model, the family's left out: name -> source."""
        return {name: s for layer in reversed(self._layers) for name, s in layer.items()}

    def has(self, entry: Modality) -> bool:
        """Whether there is one for a grid, or for the masks or poses inside a sequence."""
        return self.source(entry) is not None

    def source(self, entry: Modality) -> Any | None:
        """Where the tokenizer of a modality lies, or the open tokenizer; None: nowhere."""
        found = self._place(entry)
        return None if found is None else found[1]

    def _place(self, entry: Modality) -> tuple[tuple[int, str], Any] | None:
        """The key of a tokenizer and its source."""
        for number, layer in enumerate(self._layers):
            for name in _names(entry):
                if name in layer:
                    return (number, name), layer[name]
        published = self.family and self.family.tokenizer(entry)
        return None if not published else ((-1, published.source), published.source)

    def opened(self, entry: Modality) -> Opened:
        """The tokenizer of a modality: a VQ tokenizer, or a codec of values (AION-1).

        Raises:
            FourMError: there is none, it is of another vocabulary, or it cannot be fetched
        """
        found = self._place(entry)
        if found is None:
            raise FourMError(self.lacks(entry))
        key, source = found
        if key not in self._opened:
            self._opened[key] = self._open(source)
        tokenizer = self._opened[key]
        if entry.kind == "grid":
            _require_fit(entry, tokenizer, key[1])
        return tokenizer

    def _open(self, source: Any) -> Opened:
        if isinstance(source, str | Path | Checkpoint):
            checkpoint = read(source)
            if is_codec(checkpoint.config):
                return load_codec(checkpoint)
            source = load_tokenizer(checkpoint)
        if isinstance(source, VQTokenizer):
            return (source.to(self._device) if self._device else source).eval()
        opened: Opened = source
        return opened

    def vq(self, entry: Modality) -> VQTokenizer:
        """The VQ tokenizer of a grid, or of the masks or poses inside a sequence.

        Raises:
            FourMError: as `opened`, or it is a codec of values
        """
        found = self.opened(entry)
        if not isinstance(found, VQTokenizer):
            raise FourMError(f"'{entry.name}' is a value, not the tokens of a map or of a vector")
        return found

    def open(self, entries: Iterable[Modality]) -> None:
        """Opens the tokenizers that will be needed at the end, so that a wrong one is told now.

        Raises:
            FourMError: one is damaged, or of another vocabulary
        """
        for entry in entries:
            if self.has(entry):
                self.opened(entry)

    def lacks(self, entry: Modality) -> str:
        """What to say of a grid without a tokenizer."""
        name, known = (entry.tokenizer or entry.stem).rpartition("/")[2], self.sources
        return (
            f"'{entry.name}' needs the tokenizer '{name}', and none was found. Pass "
            f"tokenizers={{'{name}': SOURCE}}, on the command line --tokenizers {name}=SOURCE (a "
            f"folder, file or hub id); known: {sorted(known) or 'none'}."
            f"{suggest(entry.stem, known)}"
        )

    def text(self, entry: Modality | None = None) -> TextTokenizer:
        """The text tokenizer, or that of a sequence with a vocabulary of its own.

        Raises:
            FourMError: there is none, or it cannot be fetched
        """
        name = vocabulary(entry)
        if name not in self._texts:
            source = self.text_source if name == TEXT else self._named(name)
            if source is None:
                raise FourMError(NO_TEXT if name == TEXT else no_words(name))
            opened = source if isinstance(source, TextTokenizer) else load_text_tokenizer(source)
            self._texts[name] = opened
        return self._texts[name]

    def _named(self, name: str) -> Any | None:
        return next((layer[name] for layer in self._layers if name in layer), None)

    @property
    def text_source(self) -> Any | None:
        """Where the text tokenizer lies, or the open one; None: nowhere."""
        named = self._named(TEXT)
        return self.family.text if named is None and self.family else named

    @property
    def has_text(self) -> bool:
        """Whether there is a text tokenizer."""
        return self.text_source is not None

    def speaks(self, entry: Modality) -> bool:
        """Whether there is a text tokenizer for a sequence; a family's has one vocabulary."""
        of_family = self.family is not None and self.family.reads_text(entry)
        if vocabulary(entry) != TEXT:
            return self._named(vocabulary(entry)) is not None
        return entry.kind == "sequence" and (self.names_text or of_family)

    @property
    def names_text(self) -> bool:
        """Whether the text tokenizer is one that is named for this model, not its family's."""
        return any(TEXT in layer for layer in self._layers)

    def require(self, entries: Iterable[Modality], *, text: bool) -> dict[str, Path]:
        """Sees to it that tokenizers are here before any work, and fetches what is not.

        Args:
            entries: whose values will be read or shown
            text: whether texts will be

        Returns:
            what was found where; open tokenizers and modalities without one are left out

        Raises:
            NotFetchedError: some are not here; it names all of them, and the command for them
        """
        wanted = {m.name: s for m in entries if (s := self.source(m)) is not None}
        found: dict[str, Path] = {}
        missing: dict[str, NotFetchedError] = {}
        for name, source in wanted.items():
            _locate(name, source, resolve, found, missing)
        if text and (source := self.text_source) is not None:
            _locate(TEXT, source, find_text_tokenizer, found, missing)
        if missing:
            raise self._absent(missing)
        return found

    def _absent(self, missing: Mapping[str, NotFetchedError]) -> NotFetchedError:
        sources = list(dict.fromkeys(error.source for error in missing.values()))
        parts = ", ".join(f"'{name}' needs {e.source}" for name, e in missing.items())
        whole = "" if self._model is None else (
            f"; all that the model needs: `{download_command(self._model)}`"
        )  # fmt: skip
        return NotFetchedError(
            f"{parts}: not here, and not to be fetched now ({next(iter(missing.values())).cause}). "
            f"Fetch once where there is a network: `{download_command(*sources)}`{whole}",
            sources[0],
        )


NO_TEXT = (
    "text needs a text tokenizer, and none was found. Pass tokenizers={'text': 'tokenizer.json'}, "
    "or 'text': '4m' for the original's; on the command line --text-tokenizer"
)


def no_words(name: str) -> str:
    """What to say of a sequence whose vocabulary is not here."""
    return (
        f"'{name}' has a vocabulary of its own, and none was found. Pass tokenizers={{'{name}': "
        f"'tokenizer.json'}}, on the command line --tokenizers {name}=FILE, or put the file into "
        f"tokenizers/{name}/ beside the model"
    )


def vocabulary(entry: Modality | None) -> str:
    """The name of the text tokenizer that says a sequence; most share one."""
    return TEXT if entry is None or entry.vocab in ("own", TEXT) else entry.vocab


def is_said_by_codec(entry: Modality) -> bool:
    """Whether the tokens of a sequence are no words but those of a codec (AION-1's catalogs)."""
    return entry.kind == "sequence" and entry.tokenizer is not None


def _on_hub(model: str, config: Mapping[str, Any]) -> dict[str, str]:
    """The codecs that lie in the repository of a model, which are fetched one by one."""
    entries = fork_of_config(config).modalities.values()
    names = [m.tokenizer for m in entries if m.tokenizer and m.tokenizer.startswith(f"{CODECS}/")]
    return {name: f"{model}/{name}" for name in names}


def _require_fit(entry: Modality, tokenizer: Opened, name: str) -> None:
    """Refuses the tokenizer of another modality: other ids, or a map in place of a vector.

    Raises:
        FourMError: see above
    """
    is_vq = isinstance(tokenizer, VQTokenizer)
    # a model may have ids that a codec of values never gives
    if tokenizer.vocab_size != entry.vocab_size and (
        is_vq or tokenizer.vocab_size > (entry.vocab_size or 0)
    ):
        raise FourMError(
            f"'{entry.name}' has {entry.vocab_size} ids, the tokenizer {name!r} gives "
            f"{tokenizer.vocab_size}: it belongs to another model"
        )
    if not isinstance(tokenizer, VQTokenizer):
        return
    books = tokenizer.config.num_codebooks
    is_vector = entry.pos_embed == "learned" and entry.max_tokens > 1
    if entry.max_tokens % books or (is_vector and books == 1):
        raise FourMError(
            f"'{entry.name}' is {'a vector' if is_vector else 'a map'} of {entry.max_tokens} "
            f"tokens, the tokenizer {name!r} gives {books} for each place: it belongs to another "
            "modality"
        )


def _locate(
    name: str, source: Any, find: Any, found: dict[str, Path], missing: dict[str, NotFetchedError]
) -> None:
    if not isinstance(source, str | Path):
        return
    try:
        found[name] = find(source)
    except NotFetchedError as error:
        missing[name] = error


def check_names(given: Given, entries: Iterable[Modality]) -> None:
    """Refuses a name=source whose name is that of no modality; folders may hold more than is used.

    Raises:
        UnknownNameError: see above
    """
    known = {n for m in (*entries, *MODALITIES.values()) for n in _names(m)} | {TEXT}
    for name in _written_names(given):
        if name not in known:
            raise UnknownNameError(
                f"no tokenizer is called {name!r}: the name is a modality of the model, without "
                f"tok_ and size, or 'text'.{suggest(name, known)}"
            )


def _written_names(given: Given) -> list[str]:
    """The names of the words name=source."""
    if isinstance(given, str):
        return [] if Path(given).expanduser().is_dir() else list(read_given(given))
    if given is None or isinstance(given, Mapping | Path):
        return []
    return [name for part in given for name in _written_names(part)]


def places(entry: Modality, tokenizer: VQTokenizer) -> tuple[int, int] | None:
    """The grid on which a modality's flat tokens lie.

    Several codebooks say one vector: their tokens lie on no grid of places, so it is None.
    """
    return entry.grid if tokenizer.config.num_codebooks == 1 else None


def _names(entry: Modality) -> list[str]:
    """What a tokenizer may be called: by its modality, or as its folder on the hub."""
    published = FOURM.tokenizer(entry)
    on_hub = None if published is None else published.source.rpartition("/")[2]
    names = [entry.name, entry.stem, entry.tokenizer, entry.stem.removeprefix("tok_"), on_hub]
    if entry.tokenizer and "/" in entry.tokenizer:  # the folder beside the model
        names.insert(3, entry.tokenizer.rpartition("/")[2])
    return [n for n in dict.fromkeys(names) if n]
