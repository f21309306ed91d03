"""`fourm-lite pseudolabel`: what teachers and formulas say of each crop of each photo."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.output import left_out_facts, print_facts, print_json, say_left_out
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.words import Argument, Option

BATCH = 128
"""Texts that a model reads at once."""

Words = Annotated[
    str | None,
    Option(
        "--words",
        help="NAME=LABELS@LIST: texts alone; vectors NAME by regression from the words of LIST's "
        "train captions to that label in the folder LABELS. Where the texts are those captions, "
        "each by a regression that has not seen its photo.",
    ),
]
Model = Annotated[
    str | None, Option("--model", help="With --words and --share: whose vectors are mixed in.")
]
Share = Annotated[
    float,
    Option(
        "--share",
        help="With --words: weight of a second opinion, the vector of --model or, for captions of "
        "LIST, of their own photo.",
        min=0.0,
        max=1.0,
    ),
]

Spread = Annotated[
    float,
    Option(
        "--spread",
        help="With --words: less of what photos vary in most, for search; 0 none, 0.5 whitens.",
        min=0.0,
        max=1.0,
    ),
]


def pseudolabel(
    photos: Annotated[Path, Argument("A folder of photos, a .jsonl or .parquet list.")],
    out: Annotated[Path, Option("--out", "-o", help="Folder of the labels.")],
    split: Annotated[str | None, Option("--split", help="Of a list; without it, all.")] = None,
    labels: Annotated[
        str, Option("--labels", help="Made by formulas, separated by commas; '' for none.")
    ] = "canny_edge,color_palette,metadata",
    teacher: Annotated[
        list[str] | None,
        Option(
            "--teacher",
            help="NAME=FILE.onnx#OUTPUT, a vector or a map, of its outputs or inside; repeatable.",
        ),
    ] = None,
    embedder: Annotated[
        list[str] | None,
        Option("--embedder", help="NAME=SPEC, such as dino=timm:...: its vector; repeatable."),
    ] = None,
    features: Annotated[
        list[str] | None, Option("--features", help="NAME=SPEC: its feature map; repeatable.")
    ] = None,
    segmentation: Annotated[
        Path | None, Option("--segmentation", help="ONNX file of a segmentation network.")
    ] = None,
    maps: Annotated[
        Path | None, Option("--maps", help="Class maps made before: .npz of ids and maps.")
    ] = None,
    words: Words = None,
    model: Model = None,
    share: Share = 0.0,
    spread: Spread = 0.0,
    map_size: Annotated[int, Option("--map-size", help="Side of a class map.", min=1)] = 56,
    crops: Annotated[
        int, Option("--crops", help="Crops a photo; the first is the centre.", min=1)
    ] = 1,
    seed: Annotated[int, Option("--seed", help="Of the crops.")] = 0,
    size: Annotated[int, Option("--size", help="Side of a crop in pixels.", min=1)] = 224,
    workers: Annotated[int, Option("--workers", help="Threads, a shard each.", min=1)] = 1,
    shard_size: Annotated[int, Option("--shard-size", help="Photos a file.", min=1)] = 256,
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Label photos by teachers and formulas, for training.

    Writes a folder for each label and one for the crops. Only what is missing is made, so a run
    that was stopped goes on when it is started again, and a further label can be added later.
    Photos that cannot be read are left out and listed.

    Raises:
        ConfigError: the folder was begun with other photos, crops or seed, or a label by another
            teacher
        FourMError: no photo can be read, or a network cannot
    """
    if words is not None:
        return _texts(photos, split, words, (model, share, spread), out, as_json)
    from fourm_lite.data.labellers import Labeller, formulas, onnx_teachers
    from fourm_lite.data.pseudolabel import LabelRun
    from fourm_lite.modalities.crops import CropPolicy

    made: list[Labeller] = formulas([n.strip() for n in labels.split(",") if n.strip()])
    made += onnx_teachers(teacher or [], size=size)
    made += [_network(word, "vector") for word in embedder or []]
    made += [_network(word, "map") for word in features or []]
    made += _class_maps(segmentation, maps, map_size)
    policy = CropPolicy(size=size, scale=LabelRun().policy.scale)
    run = LabelRun(num_crops=crops, policy=policy, seed=seed, shard_size=shard_size)
    count, left_out = _photos(photos, split, made, out, run, workers)
    names = [name for labeller in made for name in labeller.names]
    facts = {"folder": out, "photos": count, "crops": crops, "labels": names}
    return _tell(facts, left_out, as_json)


def _photos(
    photos: Path, split: str | None, made: list[Any], out: Path, run: Any, workers: int
) -> tuple[int, list[Any]]:
    """Labels photos; returns how many, and what was left out."""
    from fourm_lite.data.pseudolabel import pseudolabel as label
    from fourm_lite.photos.records import read_listing

    _check([name for labeller in made for name in labeller.names])
    listing = read_listing(photos, split=split)
    with count_progress("photos") as counts:
        tell = partial(counts.tell, "photos")
        unread = label(listing.records, made, out, run=run, workers=workers, progress=tell)
    return len(listing.records) - len(unread), [*listing.skipped, *unread]


def _tell(facts: dict[str, Any], left_out: list[Any], as_json: bool) -> None:
    if as_json:
        print_json({**facts, "left_out": left_out_facts(left_out)})
        return
    count = len(left_out) or None
    print_facts({**facts, "labels": ", ".join(facts["labels"]), "left out": count})
    say_left_out(left_out)


def _class_maps(segmentation: Path | None, maps: Path | None, size: int) -> list[Any]:
    """The labellers of class maps that are asked for."""
    from fourm_lite.data.labellers import SegmentationTeacher, given_maps

    made: list[Any] = []
    if segmentation is not None:
        made.append(SegmentationTeacher(segmentation, map_size=size))
    if maps is not None:
        made.append(given_maps(maps, map_size=size))
    return made


def _texts(
    texts: Path,
    split: str | None,
    words: str,
    mix: tuple[str | None, float, float],
    out: Path,
    as_json: bool,
) -> None:
    """Labels texts without photos by a regression from words."""
    from fourm_lite.data.text_labels import (
        CaptionVectors,
        label_texts,
        vectors_of_captions,
        vectors_of_texts,
    )
    from fourm_lite.errors import ConfigError
    from fourm_lite.photos.records import read_records, read_spoken

    name, equals, rest = words.partition("=")
    labels, at, known = rest.rpartition("@")
    if not (name and equals and labels and at and known):
        raise ConfigError(
            "--words is written NAME=LABELS@LIST, such as "
            f"dino=runs/labels/train@captions.jsonl, got {words!r}"
        )
    model, share, power = mix
    records = read_spoken(texts, split=split)
    said = CaptionVectors.read(Path(labels), name, read_records(known, split="train"))
    asked = [r.captions[0] for r in records]
    if asked == list(said.captions):
        vectors = vectors_of_captions(said, share=share, power=power)
    elif share and model is None:
        raise ConfigError(f"--share {share} needs --model: these texts have no photos of their own")
    else:
        opinion = None if model is None else partial(_predicted, model, name)
        vectors = vectors_of_texts(asked, said, opinion=opinion, share=share, power=power)
    label_texts(records, name, vectors, out)
    facts = {"folder": out, "texts": len(records), "captions": len(said.captions)}
    _tell({**facts, "labels": [name]}, [], as_json)


def _predicted(model: str, name: str, texts: Sequence[str]) -> Any:
    """What a model predicts of texts, of the embedding whose tokenizer is `name`.

    Of a text that is too long for the model its beginning is read: there are some in every corpus.
    """
    import numpy as np

    from fourm_lite.errors import ConfigError
    from fourm_lite.pipeline.pipeline import FourMPipeline
    from fourm_lite.pipeline.readers import Reader
    from fourm_lite.search.spaces import ModelSpace, open_space

    pipe = FourMPipeline.from_pretrained(model)
    found = [m.name for m in pipe.model.config.outputs if m.tokenizer == name]
    if not found:
        raise ConfigError(f"{model} predicts no embedding whose tokenizer is {name!r}")
    space = open_space(pipe, target=found[0])
    assert isinstance(space, ModelSpace)
    reader, entry = Reader(pipe.tokenizers), pipe.model.modality("caption")
    items = [{"caption": reader.text_ids(entry, text)[: entry.max_tokens]} for text in texts]
    parts = []
    with count_progress("texts") as counts:
        for start in range(0, len(items), BATCH):
            parts.append(space.raw_items(items[start : start + BATCH])[:, 0])
            counts.tell("texts", min(start + BATCH, len(items)), len(items))
    return np.concatenate(parts)


def _check(names: list[str]) -> None:
    from fourm_lite.errors import ConfigError

    if not names:
        raise ConfigError("no label is asked for; give --labels, --teacher, --embedder or others")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two sources make the label {twice[0]!r}; give one of them another name")


def _network(word: str, kind: str) -> Any:
    """An embedder as a labeller: `NAME=SPEC`."""
    from fourm_lite.data.labellers import NetworkLabeller
    from fourm_lite.embedders.load import load_embedder
    from fourm_lite.errors import ConfigError

    name, equals, spec = word.partition("=")
    if not (name and equals and spec):
        raise ConfigError(f"an embedder is written NAME=SPEC, such as dino=timm:..., got {word!r}")
    opened = load_embedder(spec)
    told = f"{kind} of {spec}"
    if kind == "map":
        return NetworkLabeller(name, opened.embed_patches, spec=told)
    return NetworkLabeller(
        name, lambda pictures: opened.embed_image(pictures, normalize=False), spec=told
    )
