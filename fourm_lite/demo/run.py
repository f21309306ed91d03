"""The demo from a folder of pictures to a page: embed, index, search, rerank, generate.

Runs on the shipped model `mini`, or, where none ships yet, on a small family with random weights,
and says so.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fourm_lite.demo.gallery import make_gallery
from fourm_lite.demo.models import SHIPPED, WORDS, example_model
from fourm_lite.demo.page import Card, Section, render
from fourm_lite.errors import FourMError
from fourm_lite.modalities.pictures import open_picture, to_rgb
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.retrieval.compose import compose
from fourm_lite.retrieval.exact import Floats
from fourm_lite.retrieval.hits import Hits
from fourm_lite.retrieval.index import Index
from fourm_lite.search.spaces import ModelSpace, open_space

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

RANDOM = (
    "These weights are random: no trained model ships with this version, so what the searches find "
    "and what is generated means nothing. Everything else is the real thing."
)
_SHOWN, _DEPTH, _MOST = 6, 20, 500
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
        FourMError: the folder holds no picture that can be read
    """
    out.mkdir(parents=True, exist_ok=True)
    model = example_model(out / "random_model")
    is_random = model.parent == out
    say(f"model: {model}" + (" (random weights)" if is_random else ""))
    pipe = FourMPipeline.from_pretrained(model)
    gallery = make_gallery(photos, out / "gallery")
    shown = _readable(gallery, say)
    say(f"embedding {len(shown)} pictures")
    space = open_space(pipe)
    assert isinstance(space, ModelSpace)
    vectors = space.embed_items([{"rgb": p.picture} for p in shown])
    index = _index(out / "index", shown, vectors, space)
    say("searching")
    sections = _search_sections(space, index, shown, gallery)
    say("generating")
    sections.append(_generate_section(pipe, shown[0]))
    page = out / "demo.html"
    warning = RANDOM if is_random else ""
    page.write_text(render("fourm_lite: search anything with anything", sections, warning=warning))
    return page


def _readable(gallery: Path, say: Say) -> list[Photo]:
    """The pictures that open, at most 500; the others are named."""
    found: list[Photo] = []
    for path in sorted(p for p in gallery.rglob("*") if p.is_file()):
        try:
            picture = to_rgb(open_picture(path.read_bytes()))
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


def _index(path: Path, shown: Sequence[Photo], vectors: Floats, space: ModelSpace) -> Index:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    index = Index.create(path, space=space.name)
    index.add([str(i) for i in range(len(shown))], vectors, name=[p.path.name for p in shown])
    return index


def _search_sections(
    space: ModelSpace, index: Index, shown: Sequence[Photo], gallery: Path
) -> list[Section]:
    prefix = f"fourm-lite index {_quoted(gallery)} -o IDX\nfourm-lite search IDX"
    sections = []
    for words in WORDS:
        hits = index.search(space.embed_items([{"caption": words}]), k=_SHOWN)
        command = f'{prefix} --caption "{words}"'
        sections.append(Section(f"By words: {words}", "", command, _cards(hits, shown)))
    picture = shown[min(1, len(shown) - 1)]
    by_picture, by_words = space.embed_items([{"rgb": picture.picture}, {"caption": WORDS[0]}])
    asked = [Card("asked with", picture.picture, picture.path.name)]
    hits = index.search(by_picture, k=_SHOWN)
    command = f"{prefix} --image {_quoted(picture.path)}"
    sections.append(Section("By picture", "", command, [*asked, *_cards(hits, shown)]))
    both = compose([by_picture, by_words])
    hits = index.search(both, k=_SHOWN)
    command = (
        f'{prefix} --image {_quoted(picture.path)} --caption "{WORDS[0]}" --compose arithmetic'
    )
    sections.append(Section("By both", "", command, [*asked, *_cards(hits, shown)]))
    sections.append(_rerank_section(space, index, shown, prefix))
    return sections


def _rerank_section(
    space: ModelSpace, index: Index, shown: Sequence[Photo], prefix: str
) -> Section:
    words = WORDS[0]
    hits = index.search(space.embed_items([{"caption": words}]), k=min(_DEPTH, len(shown)))
    pictures = [{"rgb": shown[int(i)].picture} for i in hits.ids]
    scores = space.pipe.score({"caption": words}, pictures)[:, 0]
    order = np.argsort(-scores, kind="stable")[:_SHOWN]
    cards = [
        Card(f"{rank}. log p {scores[i]:.2f}", pictures[i]["rgb"], f"was {i + 1}.")
        for rank, i in enumerate(order.tolist(), 1)
    ]
    text = f"The first {len(hits)} hits, put in order by how well they explain the words."
    return Section(
        f"Reranked: {words}", text, f'{prefix} --caption "{words}" --rerank {len(hits)}', cards
    )


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


def _cards(hits: Hits, shown: Sequence[Photo]) -> list[Card]:
    found: list[Card] = []
    for rank, hit in enumerate(hits, 1):
        photo = shown[int(hit.id)]
        found.append(Card(f"{rank}. {hit.score:.3f}", photo.picture, photo.path.name))
    return found
