"""`fourm-lite search`: ask an index, or vectors that you own, by anything the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourm_lite.cli import options as opt
from fourm_lite.cli.options import (
    dtype_of,
    file_of,
    numbers,
    open_reranker,
    pair,
    tell_precision,
    value_of,
    writable,
)
from fourm_lite.cli.output import deliver, print_table, say
from fourm_lite.errors import ConfigError

if TYPE_CHECKING:
    from fourm_lite.search.index.hits import Hits
    from fourm_lite.search.query import Query

SENTENCE = (
    "this model learned from English sentences and often finds the wrong photos for one or two "
    'words; a sentence finds more, such as "a dog runs on grass"'
)
SHOWN = 60
"""Letters of a column's value in the table."""


def search(
    index: str,
    words: Annotated[opt.Texts, typer.Argument(metavar="QUERY")] = None,
    captions: Annotated[opt.Texts, typer.Option("--caption")] = None,
    images: Annotated[opt.Texts, typer.Option("--image")] = None,
    depths: Annotated[opt.Texts, typer.Option("--depth")] = None,
    given: opt.Texts = None,
    like: str | None = None,
    not_captions: Annotated[opt.Texts, typer.Option("--not-caption")] = None,
    not_images: Annotated[opt.Texts, typer.Option("--not-image")] = None,
    not_given: opt.Texts = None,
    weights: Annotated[opt.Texts, typer.Option("--weight")] = None,
    compose: str | None = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1)] = 10,
    rerank: opt.Rerank = 0,
    rerank_weights: opt.RerankWeights = None,
    rerank_given: opt.RerankGiven = None,
    reranker: opt.RerankerName = None,
    where: str | None = None,
    model: opt.IndexModel = None,
    target: opt.Target = None,
    tokenizers: opt.Tokenizers = None,
    text_tokenizer: opt.TextTokenizer = None,
    think: opt.Think = None,
    decode: str | None = None,
    steps: int | None = None,
    key: str | None = None,
    ids: str | None = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    html: Annotated[Path | None, typer.Option(callback=writable)] = None,
    sheet: Annotated[Path | None, typer.Option(callback=writable)] = None,
    as_json: opt.Json = None,
) -> None:
    """Search an index by words, pictures, any modality, or several together.

    `fourm-lite search IDX "a dog on grass"` is the shortest form.

    Several terms go into the model together (conditioning), or are added as vectors
    (arithmetic): q = unit(sum of weight * unit(term) - sum of weight * unit(not wanted)).

    Args:
        index: What is searched: an index, or a file of vectors of your own (.npy .npz .safetensors
            .parquet .lance).
        words: What is looked for: words in quotation marks, or the name of a picture. The same as
            --caption or --image.
        captions: Search for what these words say. May be repeated.
        images: Search for what this picture shows. May be repeated.
        depths: Search for what fits this depth map.
        given: Search by any modality that the model reads: NAME=VALUE, where the value is a text or
            a file. May be repeated.
        like: Search for what is like this row of the index, by its id; no model is opened.
        not_captions: Keep away from what these words say.
        not_images: Keep away from what this picture shows.
        not_given: Keep away from this value: NAME=VALUE.
        weights: Weigh a part of the query: caption=2, not-caption=0.5. May be repeated.
        compose: Join several parts by 'conditioning' (one forward pass reads all of them) or by
            'arithmetic' (their vectors are added).
        k: Show this many hits.
        where: Keep rows that fulfil this SQL condition: 'year > 2020'.
        decode: Turn predictions into a vector by this way: expected, argmax or sample.
        steps: Decode the query in this many forward passes.
        key: Read this array of a file of vectors that holds several.
        ids: Read the ids of a file of vectors from this file.
        html: Also write the answer as one page with pictures.
        sheet: Also write the answer as a contact sheet (PNG).

    Raises:
        FourMError: the query cannot be carried out, or is of another space than the index
    """
    if like is not None:
        others = [words, captions, images, depths, given, not_captions, not_images, not_given]
        _require_alone(*others, rerank, reranker, html, sheet)
        _tell_like(index, like, k, where, as_json)
        return
    said, pictures = _asked(words or [], index)
    captions, images = [*said, *(captions or [])], [*pictures, *(images or [])]
    wanted = _named(("caption", captions), ("rgb", images), ("depth", depths), more=given)
    unwanted = _named(("caption", not_captions), ("rgb", not_images), more=not_given)
    weighed = {_renamed(n): w for n, w in numbers(weights or [], "--weight").items()}
    from fourm_lite.search.query import Query

    query = Query.of(wanted, without=unwanted, weights=weighed, compose=compose)  # type: ignore[arg-type]
    options = {
        "target": target, "tokenizers": tokenizers, "text_tokenizer": text_tokenizer,
        "decode": decode, "steps": steps, "think": think or None, "device": device,
        "dtype": dtype_of(dtype),
    }  # fmt: skip
    how = {
        "k": k, "rerank": rerank, "where": where, "rerank_given": rerank_given,
        "weights": numbers(rerank_weights or [], "--rerank-weight") or None, "reranker": reranker,
    }  # fmt: skip
    hits, facts = _ask(index, model, options, query, how, (key, ids))
    _write_pages(query, hits, html, sheet)
    facts |= {"query": query.title, "compose": query.way}
    deliver({**facts, **hits.to_json()}, as_json, lambda: _print_hits(hits))


def _require_alone(*others: Any) -> None:
    if any(others):
        raise ConfigError("--like is a whole query; only -k, --where and --json go with it")


def _tell_like(path: str, name: str, k: int, where: str | None, as_json: str | None) -> None:
    """Tells the rows nearest to one of the index; torch is not imported.

    Raises:
        ConfigError: the index has no such row, or holds codes alone
    """
    from fourm_lite.search.index.hits import Hits
    from fourm_lite.search.index.index import Index

    opened = Index.open(path)
    if opened.manifest.kind == "codes":
        raise ConfigError("--like needs vectors, this index holds only codes; search by a picture")
    numbers = opened.info()["columns"].get("id") == "int64" and name.lstrip("-").isdecimal()
    ids: list[Any] = [int(name)] if numbers else [name]
    found = opened.search(opened.vectors(ids)[0], k, where)
    hits = Hits(found.ids, found.scores, found.columns)  # calibrations are of words
    facts = {"index": path, "query": f"like {name}"}
    deliver({**facts, **hits.to_json()}, as_json, lambda: _print_hits(hits))


def _asked(query: Sequence[str], index: str = "") -> tuple[list[str], list[str]]:
    """Words and pictures of a query without an option's name.

    Raises:
        ConfigError: several words, which quotation marks should hold together; the name of a
            picture that is not there; or the index among them, and the query in its place
    """
    from fourm_lite.modalities.plain_items import is_photo

    _check_order(index, query)
    for text in query:
        is_photo(text, as_words=f'--caption "{text}"')
    pictures = [text for text in query if isinstance(value_of(text), Path)]
    words = [text for text in query if text not in pictures]
    if len(words) > 1:
        raise ConfigError(
            f"a query is one argument, got {len(words)}: {', '.join(words)}; did you mean "
            f'"{" ".join(words)}", with quotation marks around it? Several queries that are '
            "searched together are written with --caption each"
        )
    return words, pictures


def _check_order(index: str, words: Sequence[str]) -> None:
    """Refuses a query in front of its index."""
    turned = [word for word in words if _is_index(word)]
    if turned and not _is_index(index):
        raise ConfigError(
            "the index comes first, then what is asked for: "
            f'fourm-lite search {turned[0]} "{index}"'
        )


def _is_index(place: str) -> bool:
    """Words of any length are no folder."""
    try:
        return (Path(place) / "manifest.json").is_file()
    except (OSError, ValueError):
        return False


def _ask(
    path: str,
    model: str | None,
    options: dict[str, Any],
    query: Query,
    how: dict[str, Any],
    own: tuple[str | None, str | None],
) -> tuple[Hits, dict[str, Any]]:
    """The hits, and what they came from."""
    from fourm_lite.search.vectors import is_vector_file

    if is_vector_file(path):
        if any(how[name] for name in ("rerank", "reranker", "where", "weights", "rerank_given")):
            raise ConfigError(
                "--rerank, --rerank-weight, --rerank-given, --reranker and --where need an index; "
                "a file of vectors has neither photos nor codes nor columns to ask for"
            )
        return _ask_vectors(path, model, options, query, how["k"], own)
    if own != (None, None):
        raise ConfigError(
            f"--key and --ids are for files of vectors, {path} is none; an index holds its own ids"
        )
    from fourm_lite.search.engine import Search

    search = Search.open(path, model, **options)
    tell_precision(options["dtype"], model or search.index.manifest.model, options["device"])
    facts = {"index": path, "space": search.index.manifest.space, "rows": len(search.index)}
    if how["reranker"] is not None:
        facts["reranker"] = how["reranker"]
        how = how | {"reranker": open_reranker(how["reranker"], options["device"])}
    hits = search(query, **how)
    if hits.p_means is None:
        _advise(query, model or search.index.manifest.model)
    return hits, facts


def _advise(query: Query, model: str | None) -> None:
    """Says, where a model that ships is asked in one or two words, that it knows sentences."""
    from fourm_lite.io.hub import shipped_names
    from fourm_lite.search.calibration.answer_features import Question

    question = Question.of(query.item) if len(query.terms) == 1 else None
    if question is None or not question.is_short:
        return
    if str(model).removeprefix("joint:") in shipped_names():
        say(SENTENCE, aside=True)


def _ask_vectors(
    path: str,
    model: str | None,
    options: dict[str, Any],
    query: Query,
    k: int,
    own: tuple[str | None, str | None],
) -> tuple[Hits, dict[str, Any]]:
    from fourm_lite.search.spaces import open_space
    from fourm_lite.search.vectors import VectorSearch, open_vectors

    if model is None:
        say("the file names no model: asked by 'mini'; another is named with --model", aside=True)
    file = open_vectors(path, key=own[0], ids=own[1])
    chosen = {name: value for name, value in options.items() if value is not None}
    tell_precision(options["dtype"], model or "mini", options["device"])
    search = VectorSearch.of(file, open_space(model or "mini", **chosen))
    return search(query, k), search.info


def _named(
    *usual: tuple[str, Sequence[str] | None], more: Sequence[str] | None
) -> dict[str, list[Any]]:
    """Modality -> values, as typed; only captions may be plain words."""
    found: dict[str, list[Any]] = {}
    for name, values in usual:
        for text in values or []:
            value: Any = text if name == "caption" else file_of(text, f"--{_option(name)}")
            found.setdefault(name, []).append(value)
    for text in more or []:
        name, value = pair(text, "--given")
        found.setdefault(name, []).append(value_of(value))
    return found


def _option(name: str) -> str:
    return "image" if name == "rgb" else name


def _renamed(name: str) -> str:
    """The option's name for a picture is `image`, the modality's `rgb`."""
    negative = name.startswith("not-")
    plain = name.removeprefix("not-")
    return ("not-" if negative else "") + ("rgb" if plain == "image" else plain)


def _write_pages(query: Query, hits: Hits, html: Path | None, sheet: Path | None) -> None:
    if html is None and sheet is None:
        return
    from fourm_lite.io.files import replacing, write_whole
    from fourm_lite.show.page import Answer, answer_sheet, html_page

    answer = Answer(query.title, hits, _query_picture(query))
    if html is not None:
        write_whole(html, html_page([answer]))
        say(f"page   {html}", aside=True)
    if sheet is not None:
        with replacing(sheet) as draft:
            answer_sheet(answer).save(draft, "PNG")
        say(f"sheet  {sheet}", aside=True)


def _query_picture(query: Query) -> Any:
    from fourm_lite.modalities.pictures import open_rgb
    from fourm_lite.reading.regular import read_photo

    value = query.item.get("rgb")
    return open_rgb(read_photo(value)) if isinstance(value, Path) else None


def _print_hits(hits: Hits) -> None:
    from fourm_lite.search.calibration.probability import sureness

    if told := sureness(hits):
        say(told)
    if not len(hits):
        say("nothing found")
        return
    names = [n for n in hits.columns if any(v is not None for v in hits.columns[n])]
    # numbers first, the path last: what does not fit the terminal is cut from the right
    names.sort(key=lambda n: (n != "cosine", n == "uri"))
    rows = [
        (rank, _short(hit.score), hit.id, *(_cell(n, hit.columns[n]) for n in names))
        for rank, hit in enumerate(hits, start=1)
    ]
    is_reranked = "cosine" in names
    head = ("", "score" if is_reranked else "cosine", "id", *names)
    print_table(head, rows, whole=3 + is_reranked, ends={"uri"})


def _cell(name: str, value: Any) -> str:
    return str(value) if name == "uri" else _short(value)


def _short(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        value = " | ".join(map(str, value))
    if isinstance(value, float):
        return "-" if value != value else f"{value:.4f}"
    text = str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
