"""`fourm-lite pseudolabel`: what teachers and formulas say of each crop of each photo."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.cli.output import print_facts, print_json
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.words import Argument, Option


def pseudolabel(
    photos: Annotated[Path, Argument("A folder of photos, a .jsonl or .parquet list.")],
    out: Annotated[Path, Option("--out", "-o", help="Folder of the labels.")],
    split: Annotated[str | None, Option("--split", help="Of a list; without it, all.")] = None,
    labels: Annotated[
        str, Option("--labels", help="Made by formulas, separated by commas; '' for none.")
    ] = "canny_edge,color_palette,metadata",
    teacher: Annotated[
        list[str] | None,
        Option("--teacher", help="NAME=FILE.onnx#OUTPUT, a vector or a map; may be repeated."),
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

    Raises:
        ConfigError: the folder was begun with other photos, crops or seed
        FourMError: a photo or a network cannot be read
    """
    from fourm_lite.data.augment import CropPolicy
    from fourm_lite.data.pseudolabel import Labeller, LabelRun, SegmentationTeacher
    from fourm_lite.data.pseudolabel import pseudolabel as label
    from fourm_lite.data.records import read_records
    from fourm_lite.data.teachers import formulas, given_maps, onnx_teachers

    made: list[Labeller] = formulas([n.strip() for n in labels.split(",") if n.strip()])
    made += onnx_teachers(teacher or [], size=size)
    made += [_network(word, "vector") for word in embedder or []]
    made += [_network(word, "map") for word in features or []]
    if segmentation is not None:
        made.append(SegmentationTeacher(segmentation, map_size=map_size))
    if maps is not None:
        made.append(given_maps(maps, map_size=map_size))
    names = _checked([name for labeller in made for name in labeller.names])
    records = read_records(photos, split=split)
    policy = CropPolicy(size=size, scale=LabelRun().policy.scale)
    run = LabelRun(num_crops=crops, policy=policy, seed=seed, shard_size=shard_size)
    with count_progress("photos") as counts:
        label(records, made, out, run=run, workers=workers, progress=partial(counts.tell, "photos"))
    facts = {"folder": out, "photos": len(records), "crops": crops, "labels": names}
    if as_json:
        print_json(facts)
    else:
        print_facts({**facts, "labels": ", ".join(names)})


def _checked(names: list[str]) -> list[str]:
    from fourm_lite.errors import ConfigError

    if not names:
        raise ConfigError("no label is asked for; give --labels, --teacher, --embedder or others")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two sources make the label {twice[0]!r}; give one of them another name")
    return names


def _network(word: str, kind: str) -> Any:
    """An embedder as a labeller: `NAME=SPEC`."""
    from fourm_lite.data.teachers import NetworkLabeller
    from fourm_lite.embedders.load import load_embedder
    from fourm_lite.errors import ConfigError

    name, equals, spec = word.partition("=")
    if not (name and equals and spec):
        raise ConfigError(f"an embedder is written NAME=SPEC, such as dino=timm:..., got {word!r}")
    opened = load_embedder(spec)
    if kind == "map":
        return NetworkLabeller(name, opened.embed_patches)
    return NetworkLabeller(name, lambda pictures: opened.embed_image(pictures, normalize=False))
