"""`fourm-lite pseudolabel`: what teachers and formulas say of each crop of each photo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fourm_lite.cli import options as opt
from fourm_lite.cli.options import dtype_of, present, tell_precision
from fourm_lite.cli.output import deliver_some, progress, require_folder
from fourm_lite.errors import ConfigError
from fourm_lite.progress import batches

BATCH = 128
"""Texts that a model reads at once."""


def pseudolabel(
    photos: opt.PhotoList,
    out: Annotated[Path, typer.Option("--out", "-o")],
    split: opt.ListSplit = None,
    labels: str = "canny_edge,color_palette,metadata",
    teacher: opt.Texts = None,
    embedder: opt.Texts = None,
    features: opt.Texts = None,
    segmentation: Annotated[Path | None, typer.Option(callback=present)] = None,
    maps: Annotated[Path | None, typer.Option(callback=present)] = None,
    sentences: opt.Texts = None,
    words: str | None = None,
    model: str | None = None,
    dtype: opt.Dtype = None,
    share: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.0,
    spread: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.0,
    map_size: Annotated[int, typer.Option(min=1)] = 56,
    crops: Annotated[int, typer.Option(min=1)] = 1,
    seed: opt.Seed = 0,
    size: Annotated[int, typer.Option(min=1)] = 224,
    workers: opt.Workers = 1,
    shard_size: Annotated[int, typer.Option(min=1)] = 256,
    as_json: opt.Json = None,
) -> None:
    """Label photos by teachers and formulas, for training.

    Writes a folder for each label and one for the crops. Only what is missing is made, so a run
    that was stopped goes on when it is started again, and a further label can be added later.
    Photos that cannot be read are left out and listed.

    Args:
        out: Write the labels into this folder.
        labels: Make these labels by formulas, with commas between them; '' makes none.
        teacher: Label by an output or an inner value of an ONNX network, a vector or a map:
            NAME=FILE.onnx#OUTPUT. May be repeated.
        embedder: Label by the vector of an embedding network: NAME=SPEC, such as dino=timm:... May
            be repeated.
        features: Label by the feature map of an embedding network: NAME=SPEC. May be repeated.
        segmentation: Label by the class map of this segmentation network, an ONNX file.
        maps: Take class maps that were made before from this .npz file of ids and maps.
        sentences: Label every caption, each a text by itself, by the vector of this network:
            NAME=SPEC, such as minilm=sentence:FOLDER. No photo is read. May be repeated.
        words: Label texts without photos: NAME=LABELS@LIST makes vectors NAME by regression from
            the words of LIST's train captions to that label in the folder LABELS. Texts that are
            those captions get a regression that has not seen their own photo.
        model: Mix in what this model predicts of a text, with --words and --share.
        share: Weigh the second opinion this much, with --words: the vector of --model or, for
            captions of LIST, of their own photo.
        spread: Whiten the vectors by this power, with --words: less of what photos vary in most. 0
            does not, 0.5 whitens fully.
        map_size: Store class maps with this many cells a side.
        crops: Label this many crops of each photo; the first is its middle.
        size: Cut crops with this side in pixels.
        shard_size: Put the labels of this many photos in a file.

    Raises:
        ConfigError: the folder was begun with other photos, crops or seed, or a label by another
            teacher
        FourMError: no photo can be read, or a network cannot
    """
    require_folder(out, "--out")
    if dtype_of(dtype) is not None and model is None:
        raise ConfigError("--dtype is for the 4M model of --model, and none is given")
    if words is not None:
        tell_precision(dtype, model)
        opinion = None if model is None else partial(_predicted, model, dtype)
        return _texts(photos, split, words, (opinion, share, spread), out, as_json)
    if sentences:
        return _sentences(photos, split, sentences, out, as_json)
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
    with progress("photos") as told:
        unread = label(
            listing.records, made, out, run=run, workers=workers, progress=told.of("photos")
        )
    return len(listing.records) - len(unread), [*listing.skipped, *unread]


def _tell(facts: dict[str, Any], left_out: list[Any], as_json: str | None) -> None:
    deliver_some(facts, left_out, as_json, labels=", ".join(facts["labels"]))


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
    mix: tuple[Callable[[str, Sequence[str]], Any] | None, float, float],
    out: Path,
    as_json: str | None,
) -> None:
    """Labels texts without photos by a regression from words."""
    from fourm_lite.data.text_labels import (
        CaptionVectors,
        label_texts,
        vectors_of_captions,
        vectors_of_texts,
    )
    from fourm_lite.photos.records import read_records, read_spoken

    name, equals, rest = words.partition("=")
    labels, at, known = rest.rpartition("@")
    if not (name and equals and labels and at and known):
        raise ConfigError(
            "--words is written NAME=LABELS@LIST, such as "
            f"dino=runs/labels/train@captions.jsonl, got {words!r}"
        )
    predicted, share, power = mix
    records = read_spoken(texts, split=split)
    said = CaptionVectors.read(Path(labels), name, read_records(known, split="train"))
    asked = [r.captions[0] for r in records]
    if asked == list(said.captions):
        vectors = vectors_of_captions(said, share=share, power=power)
    elif share and predicted is None:
        raise ConfigError(f"--share {share} needs --model: these texts have no photos of their own")
    else:
        opinion = None if predicted is None else partial(predicted, name)
        vectors = vectors_of_texts(asked, said, opinion=opinion, share=share, power=power)
    label_texts(records, name, vectors, out)
    facts = {"folder": out, "texts": len(records), "captions": len(said.captions)}
    _tell({**facts, "labels": [name]}, [], as_json)


def _sentences(
    texts: Path, split: str | None, words: Sequence[str], out: Path, as_json: str | None
) -> None:
    """Labels captions by what networks say of texts."""
    from fourm_lite.data.text_labels import label_by_encoder
    from fourm_lite.photos.records import read_spoken

    records = read_spoken(texts, split=split)
    made = [_network(word, "text") for word in words]
    _check([labeller.name for labeller in made])
    with progress("captions") as told:
        for labeller in made:
            label_by_encoder(records, labeller, out, progress=told.of(labeller.name))
    facts = {"folder": out, "texts": len(records), "labels": [la.name for la in made]}
    _tell(facts, [], as_json)


def _predicted(model: str, dtype: str | None, name: str, texts: Sequence[str]) -> Any:
    """What a model predicts of texts, of the embedding whose tokenizer is `name`.

    Of a text that is too long for the model its beginning is read: there are some in every corpus.
    """
    import numpy as np

    from fourm_lite.pipeline.pipeline import FourMPipeline
    from fourm_lite.pipeline.readers import Reader
    from fourm_lite.search.spaces import open_model_space

    pipe = FourMPipeline.from_pretrained(model, dtype=dtype)
    found = [m.name for m in pipe.model.config.outputs if m.tokenizer == name]
    if not found:
        raise ConfigError(f"{model} predicts no embedding whose tokenizer is {name!r}")
    space = open_model_space(pipe, target=found[0])
    reader, entry = Reader(pipe.tokenizers), pipe.model.modality("caption")
    items = [{"caption": reader.text_ids(entry, text)[: entry.max_tokens]} for text in texts]
    parts = []
    with progress("texts") as told:
        for part in batches(items, BATCH, told.of("texts")):
            parts.append(space.raw_queries(part)[:, 0])
    return np.concatenate(parts)


def _check(names: list[str]) -> None:
    if not names:
        raise ConfigError("no label is asked for; give --labels, --teacher, --embedder or others")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two sources make the label {twice[0]!r}; give one of them another name")


def _network(word: str, kind: str) -> Any:
    """An embedder as a labeller: `NAME=SPEC`."""
    from fourm_lite.data.labellers import NetworkLabeller
    from fourm_lite.embedders.load import load_embedder

    name, equals, spec = word.partition("=")
    if not (name and equals and spec):
        raise ConfigError(f"an embedder is written NAME=SPEC, such as dino=timm:..., got {word!r}")
    opened = load_embedder(spec)
    told = f"{kind} of {spec}"
    if kind == "text":
        return NetworkLabeller(
            name, lambda texts: opened.embed_text(texts, normalize=False), spec=told
        )
    if kind == "map":
        return NetworkLabeller(name, opened.embed_patches, spec=told)
    return NetworkLabeller(
        name, lambda pictures: opened.embed_image(pictures, normalize=False), spec=told
    )
