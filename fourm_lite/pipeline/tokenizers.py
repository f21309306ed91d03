"""The tokenizers that belong to a model, each opened when it is first used.

Where several places name one, the first of these counts: the user, the model's config, the folder
`tokenizers/` beside the model, the family of published models that it belongs to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fourm_lite.errors import (
    CheckpointError,
    ConfigError,
    FourMError,
    NotFetchedError,
    UnknownNameError,
    suggest,
)
from fourm_lite.io.checkpoint import Checkpoint, Source
from fourm_lite.io.hub import download_command, is_hub_id, resolve, shipped
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.published import FOURM, PublishedFamily, family_of
from fourm_lite.modalities.spec import Modality
from fourm_lite.names import check_name, place_inside
from fourm_lite.tokenization.load import load_tokenizer
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.text import (
    TextTokenizer,
    find_text_tokenizer,
    load_text_tokenizer,
)

TEXT = "text"
Sources = Mapping[str, Any]
Given = Sources | str | Path | Sequence[Any] | None
"""What `tokenizers=` takes: name -> source, a folder of folders, "name=source", or several."""


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
        self._vq: dict[tuple[int, str], VQTokenizer] = {}
        self._text: TextTokenizer | None = None

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
        own = read_given(given)
        named = {n: s for n, s in named_by_config(checkpoint).items() if n not in own}
        return cls(
            own,
            {name: _resolved(checkpoint.folder, place) for name, place in named.items()},
            below(checkpoint.folder / "tokenizers"),
            family=family_of(checkpoint.config),
            model=model if is_hub_id(model) and not Path(model).exists() else None,
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

    def vq(self, entry: Modality) -> VQTokenizer:
        """The tokenizer of a grid, or of the masks or poses inside a sequence.

        Raises:
            FourMError: there is none, it is of another vocabulary, or it cannot be fetched
        """
        found = self._place(entry)
        if found is None:
            raise FourMError(self.lacks(entry))
        key, source = found
        if key not in self._vq:
            opened = source if isinstance(source, VQTokenizer) else load_tokenizer(source)
            self._vq[key] = (opened.to(self._device) if self._device else opened).eval()
        tokenizer = self._vq[key]
        if entry.kind == "grid":
            _require_fit(entry, tokenizer, key[1])
        return tokenizer

    def open(self, entries: Iterable[Modality]) -> None:
        """Opens the tokenizers that will be needed at the end, so that a wrong one is told now.

        Raises:
            FourMError: one is damaged, or of another vocabulary
        """
        for entry in entries:
            if self.has(entry):
                self.vq(entry)

    def lacks(self, entry: Modality) -> str:
        """What to say of a grid without a tokenizer."""
        name, known = entry.tokenizer or entry.stem, self.sources
        return (
            f"'{entry.name}' needs the tokenizer '{name}', and none was found. Pass "
            f"tokenizers={{'{name}': SOURCE}}, on the command line --tokenizers {name}=SOURCE (a "
            f"folder, file or hub id); known: {sorted(known) or 'none'}."
            f"{suggest(entry.stem, known)}"
        )

    def text(self) -> TextTokenizer:
        """The text tokenizer.

        Raises:
            FourMError: there is none, or it cannot be fetched
        """
        if self._text is None:
            source = self.text_source
            if source is None:
                raise FourMError(NO_TEXT)
            self._text = (
                source if isinstance(source, TextTokenizer) else load_text_tokenizer(source)
            )
        return self._text

    @property
    def text_source(self) -> Any | None:
        """Where the text tokenizer lies, or the open one; None: nowhere."""
        named = next((layer[TEXT] for layer in self._layers if TEXT in layer), None)
        return self.family.text if named is None and self.family else named

    @property
    def has_text(self) -> bool:
        """Whether there is a text tokenizer."""
        return self.text_source is not None

    def speaks(self, entry: Modality) -> bool:
        """Whether there is a text tokenizer for a sequence; a family's has one vocabulary."""
        of_family = self.family is not None and self.family.reads_text(entry)
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


def _require_fit(entry: Modality, tokenizer: VQTokenizer, name: str) -> None:
    """Refuses the tokenizer of another modality: other ids, or a map in place of a vector.

    Raises:
        FourMError: see above
    """
    books = tokenizer.config.num_codebooks
    if tokenizer.vocab_size != entry.vocab_size:
        raise FourMError(
            f"'{entry.name}' has {entry.vocab_size} ids, the tokenizer {name!r} gives "
            f"{tokenizer.vocab_size}: it belongs to another model"
        )
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


def with_text(given: Given, text_tokenizer: str | Path | None) -> Given:
    """The same with another text tokenizer."""
    return given if text_tokenizer is None else [given, {TEXT: text_tokenizer}]


def read_given(given: Given) -> dict[str, Any]:
    """The sources that `tokenizers=` names, later ones in place of earlier ones.

    Raises:
        ConfigError: a word is neither a folder of tokenizers nor of the form name=source
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, str | Path):
        return _of_word(given)
    return {name: source for part in given for name, source in read_given(part).items()}


def lasting(given: Given) -> list[str]:
    """The same as words that still work from another folder; open tokenizers are left out."""
    words = {n: s for n, s in read_given(given).items() if isinstance(s, str | Path)}
    places = {name: Path(source).expanduser() for name, source in words.items()}
    return [f"{n}={p.resolve() if p.exists() else words[n]}" for n, p in places.items()]


def _of_word(word: str | Path) -> dict[str, Any]:
    folder = Path(word).expanduser()
    if folder.is_dir():
        found: dict[str, Any] = dict(below(folder))
        if found:
            return found
        raise ConfigError(
            f"{folder} holds no folders of tokenizers; name a single one: NAME={word}, where NAME "
            "is a modality or 'text'"
        )
    name, equals, source = str(word).partition("=")
    if not (equals and name.strip() and source.strip()):
        raise ConfigError(
            "tokenizers are a folder that holds one folder for each tokenizer, or NAME=SOURCE (a "
            f"folder, file or hub id), such as depth=EPFL-VILAB/4M_tokenizers_depth_8k_224-448; "
            f"{str(word)!r:.200} is no folder and names none"
        )
    return {name.strip(): source.strip()}


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
        return [] if Path(given).expanduser().is_dir() else list(_of_word(given))
    if given is None or isinstance(given, Mapping | Path):
        return []
    return [name for part in given for name in _written_names(part)]


def named_by_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The tokenizers that a model's config names, as they stand there.

    Raises:
        ConfigError: it is no table of names
    """
    named, folder = checkpoint.extra.get("tokenizers", {}), checkpoint.folder
    if not isinstance(named, Mapping):
        raise ConfigError(f"'tokenizers' in the config of {folder} should be a table of names")
    return {check_name(n, f"a tokenizer in {folder}"): place for n, place in named.items()}


def _resolved(folder: Path | None, place: Any) -> str | Path:
    """A tokenizer that a config names: beside the model, shipped, a hub id, or "4m".

    What lies elsewhere is not opened: the author of a config is not its user.

    Raises:
        ConfigError: it lies elsewhere
    """
    if folder is not None and isinstance(place, str) and (folder / place).exists():
        return place_inside(folder, place, "a tokenizer of a config (tokenizers= names others)")
    if isinstance(place, str):
        with contextlib.suppress(CheckpointError):
            return shipped(place)
        if place == "4m" or is_hub_id(place):
            return place
    raise ConfigError(
        f"the config in {folder} names the tokenizer {place!r:.80}, which is neither beside it nor "
        "shipped nor a hub id; say with tokenizers= where it is"
    )


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
    return [n for n in dict.fromkeys(names) if n]


def below(folder: Path | None) -> dict[str, Path]:
    """Sub-folders that hold a tokenizer, directly or under `weights/`."""
    if folder is None or not folder.is_dir():
        return {}
    found = {}
    for child in sorted(folder.iterdir()):
        for place in (child, child / "weights"):
            if (place / "config.json").is_file() or (place / "tokenizer.json").is_file():
                found[child.name] = place
    return found
