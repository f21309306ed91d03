"""The demo from a folder of pictures to a page: embed, index, search, rerank, generate.

Runs on the shipped model `mini`, or, where none ships yet, on a small family with random weights,
and says so.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fourm_lite.demo.gallery import is_drawing, make_gallery, pictures, questions
from fourm_lite.demo.models import SHIPPED, example_model
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.io.files import write_whole
from fourm_lite.modalities.pictures import decode
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.search.engine import Search
from fourm_lite.search.gallery import open_index
from fourm_lite.search.index.index import Index
from fourm_lite.search.query import Query
from fourm_lite.search.spaces import ModelSpace, open_space
from fourm_lite.show.page import Card, Section, render

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

RANDOM = (
    "These weights are random: no trained model ships with this version, so what the searches find "
    "and what is generated means nothing. Everything else is the real thing."
)
TITLE = "fourm_lite: search anything with anything"
_SHOWN, _DEPTH, _MOST = 6, 20, 500
INDEX, MARKER = "demo_index", "made_by_fourm_lite_demo.txt"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Photo:
    """A picture of the gallery."""

    path: Path
    picture: Image


def run_demo(photos: Path | None, out: Path, *, say: Say = log.info) -> Path:
    """Makes the page and returns its path.

    Args:
        photos: the user's folder; by default photos of installed packages and drawings
        out: where the page, the gallery and the index go
        say: told what is being done

    Raises:
        FourMError: the folder holds no picture that can be read, `out` is no folder, or holds a
            `demo_index` that no demo made
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out expects a folder for the page, {out} is none and cannot be made "
            f"({error.strerror}); name another"
        ) from error
    place = index_place(out / INDEX)
    gallery = make_gallery(photos, out / "gallery")
    model = example_model(out / "random_model")
    is_random = model.parent == out
    say(f"model: {model}" + (" (random weights)" if is_random else ""))
    pipe = FourMPipeline.from_pretrained(model)
    shown = _readable(gallery, say)
    say(f"embedding {len(shown)} pictures")
    space = open_space(pipe)
    assert isinstance(space, ModelSpace)
    search = Search(_index(place, shown, space), space)
    say("searching")
    sections = [
        _search_section(search, asked, shown, gallery)
        for asked in _searches(shown, questions(photos))
    ]
    say("generating")
    sections.append(_generate_section(pipe, shown[0]))
    page = out / "demo.html"
    warning = RANDOM if is_random else ""
    text = _introduction(shown, gallery)
    write_whole(page, render(TITLE, sections, text=text, warning=warning))
    return page


def _introduction(shown: Sequence[Photo], gallery: Path) -> str:
    drawn = sum(is_drawing(p.path) for p in shown)
    counts = (("photo", len(shown) - drawn), ("drawing", drawn))
    kinds = [f"{n} {word}{'s' if n > 1 else ''}" for word, n in counts if n]
    return (
        f"{' and '.join(kinds)} of {gallery.resolve()}, seen by the model as pixels alone. The "
        "commands make each part again from a terminal in which fourm-lite is installed; IDX is a "
        "folder for the index. A number under a picture is its similarity to what was asked."
    )


def _readable(gallery: Path, say: Say) -> list[Photo]:
    """The pictures that open, at most 500; the others are named."""
    found: list[Photo] = []
    for path in pictures(gallery):
        try:
            picture = decode(path)
        except (FourMError, OSError) as error:
            say(f"left out {path.name}: {error}")
            continue
        picture.thumbnail((512, 512))
        found.append(Photo(path, picture))
        if len(found) == _MOST:
            say(f"the demo takes the first {_MOST} pictures; `fourm-lite index` takes all")
            break
    if not found:
        raise FourMError(f"{gallery} holds no picture that can be read")
    return found


def index_place(folder: Path) -> Path:
    """A folder for the index that holds nothing but our marker; an earlier demo's index goes.

    Raises:
        ConfigError: no demo made what is there
    """
    if (folder / MARKER).is_file() and not folder.is_symlink():
        shutil.rmtree(folder)
    elif os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(
            f"the demo keeps its index in {folder}, and what is there was not made by it; move it "
            "away or name another --out"
        )
    folder.mkdir(exist_ok=True)
    (folder / MARKER).write_text("fourm-lite demo made this folder and empties it.\n")
    return folder


def _index(path: Path, shown: Sequence[Photo], space: ModelSpace) -> Index:
    index = open_index(path, space)
    vectors, codes = space.embed_pictures([p.picture for p in shown])
    uris = [str(p.path.resolve()) for p in shown]
    index.add([str(i) for i in range(len(shown))], vectors, codes=codes, uri=uris)
    return index


@dataclass(frozen=True)
class _Asked:
    """One search: what is asked, and how the hits are put in order."""

    title: str
    words: str = ""
    photo: Photo | None = None
    rerank: int = 0
    text: str = ""

    @property
    def query(self) -> Query:
        picture = {} if self.photo is None else {"rgb": self.photo.picture}
        words = {"caption": self.words} if self.words else {}
        return Query.of({**picture, **words}, compose="arithmetic" if picture and words else None)

    @property
    def flags(self) -> str:
        """The same for the command line."""
        picture = f"--image {_quoted(self.photo.path)}" if self.photo else ""
        words = f"--caption {shlex.quote(self.words)}" if self.words else ""
        both = "--compose arithmetic" if picture and words else ""
        rerank = f"--rerank {self.rerank}" if self.rerank else ""
        return " ".join(filter(None, (picture, words, both, rerank)))


def _searches(shown: Sequence[Photo], asked_for: Sequence[str]) -> list[_Asked]:
    """By words, by a picture, by both, and reranked."""
    # in our own gallery a drawing: there are others like it
    second = shown[min(1, len(shown) - 1)]
    picture, words = next((p for p in shown if is_drawing(p.path)), second), asked_for[-1]
    first, depth = asked_for[0], min(_DEPTH, len(shown))
    how = (
        f"The first {depth} hits, put in order by how well they explain the words: the numbers are "
        "log probabilities."
    )
    return [
        *(_Asked(f"By words: {w}", w) for w in asked_for),
        _Asked("By picture", photo=picture),
        _Asked(f"By both: a picture and {words}", words, picture),
        _Asked(f"Reranked: {first}", first, rerank=depth, text=how),
    ]


def _search_section(
    search: Search, asked: _Asked, shown: Sequence[Photo], gallery: Path
) -> Section:
    hits = search(asked.query, _SHOWN, rerank=asked.rerank)
    cards = [
        Card(f"{rank}. {hit.score:.3f}", shown[int(hit.id)].picture, shown[int(hit.id)].path.name)
        for rank, hit in enumerate(hits, 1)
    ]
    if asked.photo is not None:
        cards = [Card("asked with", asked.photo.picture, asked.photo.path.name), *cards]
    command = f"fourm-lite index {_quoted(gallery)} -o IDX\nfourm-lite search IDX {asked.flags}"
    return Section(asked.title, asked.text, command, cards)


def _generate_section(pipe: FourMPipeline, photo: Photo) -> Section:
    targets = [m.name for m in pipe.model.config.outputs]
    made = pipe.generate({"rgb": photo.picture}, targets, seed=0)
    cards = [Card("given: rgb", photo.picture, photo.path.name)]
    for name, result in made.items():
        sure = "" if result.confidence is None else f"mean probability {result.confidence:.2f}"
        cards.append(Card(pipe.model.modality(name).title or name, result.picture, sure))
    flags = " ".join(f"--target {name}" for name in targets)
    given = shlex.quote(f"rgb={photo.path.resolve()}")
    command = f"fourm-lite generate --model {SHIPPED} --input {given} {flags}"
    return Section("Everything else from one photo", "", command, cards)


def _quoted(path: Path) -> str:
    """A path as a command can hold it, from any folder."""
    return shlex.quote(str(path.resolve()))
