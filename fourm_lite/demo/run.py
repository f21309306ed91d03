"""The demo from a folder of pictures to a page: embed, index, search, rerank, generate.

Runs on the shipped model `mini`, or, where none ships yet, on a small family with random weights,
and says so.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fourm_lite.demo.examples import (
    EXAMPLES,
    SHIPPED,
    Questions,
    choose_questions,
    credit,
    example_model,
    make_gallery,
    pictures,
    shipped_records,
)
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.io.files import write_whole
from fourm_lite.modalities.pictures import decode
from fourm_lite.photos.records import Record
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.reading.regular import read_photo
from fourm_lite.search.engine import Search
from fourm_lite.search.gallery import open_index
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.loading import content_hash
from fourm_lite.search.query import Query
from fourm_lite.search.spaces import ModelSpace, open_model_space
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
    """A picture of the gallery; its caption and who made it where they are known."""

    path: Path
    picture: Image
    caption: str = ""
    credit: str = ""

    @property
    def note(self) -> str:
        """Who made it, or else the name of its file."""
        return self.credit or self.path.name

    @property
    def label(self) -> str:
        """What stands under it on the page: its name, and who made it."""
        return f"{self.path.name}: {self.credit}" if self.credit else self.path.name


def demo_model(out: Path) -> Path:
    """The model that a demo in `out` runs on."""
    return example_model(out / "random_model")


def run_demo(
    photos: Path | None, out: Path, *, dtype: str | None = None, say: Say = log.info
) -> Path:
    """Makes the page and returns its path.

    Args:
        photos: the user's folder; by default the photos that ship
        out: where the page, the gallery and the index go
        dtype: what the model's weights are held as
        say: called with what is being done

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
    model = demo_model(out)
    is_random = model.parent == out
    say(f"model: {model}" + (" (random weights)" if is_random else ""))
    pipe = FourMPipeline.from_pretrained(model, dtype=dtype)
    shown = _readable(gallery, say)
    if photos is None:
        shown = [_described(photo, shipped_records(gallery)) for photo in shown]
    say(f"embedding {len(shown)} pictures")
    space = open_model_space(pipe)
    search = Search(_index(place, shown, space), space)
    say("searching")
    asked_for = Questions(EXAMPLES) if photos is not None else _questions(search, shown)
    searches = _searches(shown, asked_for)
    first = {asked.kind: asked for asked in reversed(searches)}
    sections = [
        _search_section(search, asked, shown, command=first[asked.kind] is asked)
        for asked in searches
    ]
    made_once = f"fourm-lite index {_quoted(gallery)} -o IDX\n"
    sections[0] = replace(sections[0], command=made_once + sections[0].command)
    say("generating")
    sections.append(_generate_section(pipe, _photo_of(asked_for, shown)))
    page = out / "demo.html"
    warning = RANDOM if is_random else ""
    text = _introduction(shown)
    write_whole(page, render(TITLE, sections, text=text, warning=warning))
    return page


def _introduction(shown: Sequence[Photo]) -> str:
    chosen = (
        "The queries are captions of these photos, chosen by a rule: those whose photo comes first "
        "with the largest lead, and the one whose photo comes last. "
    )
    return (
        f"{len(shown)} photo{'s' if len(shown) > 1 else ''}, which the model sees only as pixels. "
        f"{chosen if any(p.caption for p in shown) else ''}The number under a picture is its "
        "similarity to the query."
    )


def _described(photo: Photo, known: Mapping[str, Record]) -> Photo:
    record = known[photo.path.name]
    return replace(photo, caption=record.captions[0], credit=credit(record.fields))


def _questions(search: Search, shown: Sequence[Photo]) -> Questions:
    """Which captions of the photos that ship are asked, by the rule of `choose_questions`."""
    captions = [photo.caption for photo in shown]
    scores = np.zeros((len(shown), len(shown)))
    for row, caption in enumerate(captions):
        for hit in search(caption=caption, k=len(shown)):
            scores[row, int(hit.id)] = hit.score
    return choose_questions(captions, scores)


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
    vectors, codes = space.encode_document([p.picture for p in shown])
    uris = [str(p.path.resolve()) for p in shown]
    marks = [content_hash(read_photo(p.path)) for p in shown]
    index.add(
        [str(i) for i in range(len(shown))], vectors, codes=codes, uri=uris, content_hash=marks,
        caption=[p.caption for p in shown], credit=[p.note for p in shown],
    )  # fmt: skip
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
    def kind(self) -> tuple[bool, bool, bool]:
        """What searches have in common that need no command each."""
        return bool(self.words), self.photo is not None, bool(self.rerank)

    @property
    def flags(self) -> str:
        """The same for the command line."""
        picture = f"--image {_quoted(self.photo.path)}" if self.photo else ""
        words = f"--caption {shlex.quote(self.words)}" if self.words else ""
        both = "--compose arithmetic" if picture and words else ""
        rerank = f"--rerank {self.rerank}" if self.rerank else ""
        return " ".join(filter(None, (picture, words, both, rerank)))


def _photo_of(asked_for: Questions, shown: Sequence[Photo]) -> Photo:
    """The photo of the last answered words; the first one where nothing is known of them."""
    last = asked_for.answered[-1:]
    return next((photo for photo in shown if (photo.caption,) == last), shown[0])


def _searches(shown: Sequence[Photo], asked_for: Questions) -> list[_Asked]:
    """By words, by a picture, by both, reranked, and one that fails."""
    words = asked_for.answered or EXAMPLES
    picture = _photo_of(asked_for, shown)
    depth = min(_DEPTH, len(shown))
    how = (
        f"The first {depth} hits, put in order by how well they explain the words; the numbers are "
        "sums of the cosine and log probabilities, and may be below 0."
    )
    found = [
        *(_Asked(f"By words: {w}", w) for w in words),
        _Asked("By a photo: more like this", photo=picture),
        _Asked(f"By both: a photo and the words \u201c{words[0]}\u201d", words[0], picture),
        _Asked(f"Reranked: {words[0]}", words[0], rerank=depth, text=how),
    ]
    if asked_for.failed is not None:
        failed, rank = asked_for.failed
        text = f"The photo that these words describe comes at rank {rank} of {len(shown)}."
        found.append(_Asked(f"Where it fails: {failed}", failed, text=text))
    return found


def _search_section(
    search: Search, asked: _Asked, shown: Sequence[Photo], *, command: bool
) -> Section:
    hits = search(asked.query, _SHOWN + 1, rerank=asked.rerank)
    found = [(shown[int(hit.id)], hit.score) for hit in hits]
    others = [(photo, score) for photo, score in found if photo is not asked.photo][:_SHOWN]
    cards = [
        Card(f"{rank}. {score:.3f}", photo.picture, photo.label)
        for rank, (photo, score) in enumerate(others, 1)
    ]
    if asked.photo is not None:
        cards = [Card("The query", asked.photo.picture, asked.photo.label), *cards[: _SHOWN - 1]]
    words = f"fourm-lite search IDX {asked.flags}" if command else ""
    return Section(asked.title, asked.text, words, cards)


def _generate_section(pipe: FourMPipeline, photo: Photo) -> Section:
    targets = [m.name for m in pipe.model.config.outputs]
    made = pipe.generate({"rgb": photo.picture}, targets, seed=0)
    cards = [Card("Photo", photo.picture, photo.label)]
    for result in made.values():
        sure = "" if result.confidence is None else f"mean probability {result.confidence:.2f}"
        cards.append(Card(result.title, result.picture, sure, result.legend))
    flags = " ".join(f"--target {name}" for name in targets)
    given = shlex.quote(f"rgb={photo.path.resolve()}")
    command = f"fourm-lite generate --model {SHIPPED} --input {given} {flags}"
    return Section("Any to any: every other modality from one photo", "", command, cards)


def _quoted(path: Path) -> str:
    """A path as a command can hold it, from any folder."""
    return shlex.quote(str(path.resolve()))
