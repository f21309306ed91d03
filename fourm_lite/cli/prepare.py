"""`fourm-lite embed`, `tokenize`, `mix-photos`, `split-features`, `name-classes`: making data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourm_lite.cli import options as opt
from fourm_lite.cli.options import cluster_of, dtype_of, present, tell_precision
from fourm_lite.cli.output import (
    deliver,
    deliver_some,
    print_facts,
    progress,
    require_folder,
)
from fourm_lite.errors import ConfigError

if TYPE_CHECKING:
    from fourm_lite.cluster import Work


def tokenize(
    source: Annotated[Path, typer.Argument(callback=present)],
    tokenizer: Annotated[list[str], typer.Option("--tokenizer", "-t")],
    out: Annotated[Path, typer.Option("--out", "-o")],
    photos: Annotated[Path | None, typer.Option(callback=present)] = None,
    split: opt.ListSplit = None,
    crops: Annotated[int, typer.Option(min=1)] = 1,
    seed: opt.Seed = 0,
    batch_size: opt.BatchSize = 64,
    device: str = "cpu",
    workers: opt.Workers = 2,
    engine: opt.Engine = "local",
    address: opt.Address = None,
    worker_cpus: opt.WorkerCpus = 1.0,
    worker_gpus: opt.WorkerGpus = 0.0,
    as_json: opt.Json = None,
) -> None:
    """Turn labels and photos into tokens, for training.

    Labels keep the crops that they were made of. Only what is missing is made, so a run that was
    stopped goes on when it is started again, and further tokenizers can be added later. Photos that
    cannot be read are left out and listed.

    Args:
        source: What becomes tokens: a folder of `fourm-lite pseudolabel`, or photos (a folder or a
            list).
        tokenizer: Use this tokenizer, [FOLDER=]NAME_OR_PATH[#LABEL]: a shipped name or a path,
            perhaps with the folder that its tokens go to and the label that it reads ('photos'
            reads the pixels). May be repeated.
        out: Write the tokens into this folder.
        photos: Read the photos of the labels here, for tokenizers of pixels.
        crops: Cut this many crops of each photo, where there are no labels.
        device: Run the tokenizers on this device, such as cuda.

    Raises:
        ConfigError: the folder was begun with other crops or another tokenizer
        FourMError: a tokenizer or a label cannot be read, or no photo
    """
    require_folder(out, "--out")
    from fourm_lite.data.pseudolabel import LabelRun
    from fourm_lite.data.shards import CROPS
    from fourm_lite.data.tokenized import parts_of_labels, parts_of_photos, tokenize_parts
    from fourm_lite.photos.records import Listing, read_listing
    from fourm_lite.training.recipes import open_job

    cluster = cluster_of(engine, address, workers, worker_cpus, worker_gpus)
    labels = source if (source / CROPS).is_dir() else None
    jobs = [open_job(word, labels, device=device) for word in tokenizer]
    given = photos if labels else source
    listing = Listing(()) if given is None else read_listing(given, split=split)
    run = LabelRun(num_crops=crops, seed=seed)
    records, left_out = listing.records, list(listing.skipped)
    parts = parts_of_labels(labels, records) if labels else parts_of_photos(records, run)
    with progress("photos") as told:
        tell = partial(told.tell, "photos", total=len(records))
        if cluster is None:
            seen = tokenize_parts(
                _noted(parts, left_out), jobs, out, batch_size=batch_size,
                progress=lambda done, _: tell(done),
            )  # fmt: skip
        else:
            opened = partial(_tokenizing, tokenizer, labels, out, batch_size, device)
            seen = 0
            with cluster.connected() as ray:
                for _, (count, lost) in cluster.started(ray, opened).run(parts):
                    seen, left_out = seen + count, left_out + lost
                    tell(seen)
    facts: dict[str, Any] = {"folder": out, "photos": seen, "tokens": [j.folder for j in jobs]}
    deliver_some(facts, left_out, as_json, tokens=", ".join(facts["tokens"]))


def _tokenizing(
    words: list[str], labels: Path | None, out: Path, batch_size: int, device: str
) -> Work:
    """What turns a part into tokens; gives how many photos it has, and those that it lacks."""
    from fourm_lite.data.tokenized import tokenize_parts
    from fourm_lite.training.recipes import open_job

    jobs = [open_job(word, labels, device=device) for word in words]

    def work(given: Any, _: Any) -> tuple[int, list[Any]]:
        left_out: list[Any] = []
        seen = tokenize_parts(_noted([given], left_out), jobs, out, batch_size=batch_size)
        return seen, left_out

    return work


def _noted(parts: Iterable[Any], left_out: list[Any]) -> Iterator[Any]:
    """The parts; what they lack is added to the list."""
    for one in parts:
        part = one() if callable(one) else one
        left_out += part.left_out
        yield part


def mix_photos(
    photos: opt.PhotoList,
    count: Annotated[int, typer.Option(min=1)],
    out: Annotated[Path, typer.Option("--out", "-o")],
    split: opt.ListSplit = None,
    blended: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.5,
    scale: Annotated[float, typer.Option(min=0.01, max=1.0)] = 0.35,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    size: Annotated[int, typer.Option(min=1)] = 224,
    as_json: opt.Json = None,
) -> None:
    """Mix photos, for a teacher to label.

    Two photos blended, or a piece of one in the other. No picture is written: the list names the
    photos and how they are joined, and `pseudolabel`, `tokenize` and `train` read it like a list of
    photos. Photos that cannot be read are left out and listed.

    Args:
        count: Make this many mixtures.
        out: Write the list into this .jsonl file.
        blended: Blend this share of the pairs; of the rest one photo holds a piece of the other.
        scale: Cut out at least this share of a photo's area.
        seed: Draw the mixtures from this seed; the same gives the same.
        size: Make mixtures with this side in pixels.

    Raises:
        ConfigError: there are fewer than two photos, or the list is there already
        FourMError: no photo can be read
    """
    if out.suffix != ".jsonl":
        raise ConfigError(f"the list of mixtures is a .jsonl file, got --out {out}")
    if out.exists():
        raise ConfigError(f"{out} is there already; choose another file, or remove it")
    from fourm_lite.data.photo_mixing import Mixing, write_mixtures
    from fourm_lite.data.unread import readable
    from fourm_lite.modalities.crops import CropPolicy
    from fourm_lite.photos.records import read_listing

    listing = read_listing(photos, split=split)
    records, unread = readable(listing.records)
    left_out = [*listing.skipped, *unread]
    mixing = Mixing(CropPolicy(size=size, scale=(scale, 1.0)), blended=blended, seed=seed)
    with progress("mixtures") as told:
        write_mixtures(
            records, out, count, mixing, split=split or "train", progress=told.of("mixtures")
        )
    facts = {"list": out, "photos": len(records), "mixtures": count}
    deliver_some(facts, left_out, as_json)


def split_features(
    file: Annotated[str, typer.Argument(callback=present)],
    out: Annotated[Path, typer.Option("--out", "-o")],
    as_json: opt.Json = None,
) -> None:
    """Cut a file of region or grid features into one .npz an item and an index.json.

    Args:
        file: The file to cut: a .tsv of bottom-up attention, or an .npz.
        out: Write a file for each item into this folder.

    Raises:
        FourMError: another kind of file, a row that cannot be read, or an id that comes twice
    """
    from fourm_lite.embedders.features import split_features as split

    with progress("items") as told:
        facts = {"folder": out, "items": len(split(file, out, told.of("items")))}
    deliver(facts, as_json, lambda: print_facts(facts))


MOST_TEXTS = 2000
"""Of a long list so many texts, evenly spaced, give the mean of all."""


def name_classes(
    classes: Annotated[Path, typer.Argument(callback=present)],
    image: Annotated[str, typer.Option("--image")],
    text: Annotated[str, typer.Option("--text")],
    texts: Annotated[Path, typer.Option("--texts", callback=present)],
    out: Annotated[Path, typer.Option("--out", "-o")],
    sharpness: Annotated[float, typer.Option(min=0.01)] = 0.4,
    evenness: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.5,
    title: str = "",
    licence: str = "",
    as_json: opt.Json = None,
) -> None:
    """Make a joint space of photos and words from a classifier and the names of its classes.

    Nothing is learnt from a caption of a photo: a photo is what the classifier sees in it, said in
    words. `joint:FOLDER` opens the space.

    Args:
        classes: The names: a text with a line for each class, in the classifier's order; tabs
            between several names of one class.
        image: See with this classifier, such as timm:FOLDER?output=projected.
        text: Read with this encoder, such as sentence:FOLDER.
        texts: Take what all texts share from these, such as will be asked for: a text with one on
            each line, or a list with captions.
        out: Write the space into this folder.
        sharpness: Multiply the classifier's logits by this; below 1 second guesses count for more.
        evenness: Shorten directions in which names differ much: 0 not at all, 1 to the most.
        title: Call the space by this name.
        licence: Write into the space that it is under this.

    Raises:
        ConfigError: the classifier has another number of classes, or there are too few texts
        FourMError: an encoder or a file cannot be opened
    """
    require_folder(out, "--out")
    from fourm_lite.embedders.class_names import read_names, space_of_classes
    from fourm_lite.photos.records import read_records

    names = read_names(classes)
    spoken = [caption for record in read_records(texts) for caption in record.captions]
    some = spoken[:: max(1, -(-len(spoken) // MOST_TEXTS))]
    told = {key: value for key, value in (("name", title), ("licence", licence)) if value}
    space_of_classes(
        image, text, names, some, out, sharpness=sharpness, evenness=evenness, facts=told
    )
    facts = {"folder": out, "classes": len(names), "texts": len(some)}
    deliver(facts, as_json, lambda: print_facts(facts))


def embed(
    inputs: Annotated[list[Path], typer.Argument(callback=present)],
    out: Annotated[Path, typer.Option("--out", "-o")],
    model: opt.AnyModel = "mini",
    gallery: opt.Gallery = "model",
    target: opt.Target = None,
    tokenizers: opt.Tokenizers = None,
    text_tokenizer: opt.TextTokenizer = None,
    think: opt.Think = None,
    decode: opt.Decode = "expected",
    center: opt.Center = False,
    workers: opt.Workers = 2,
    batch_size: opt.BatchSize = 32,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    prefix: str = "",
    engine: opt.Engine = "local",
    address: opt.Address = None,
    worker_cpus: opt.WorkerCpus = 1.0,
    worker_gpus: opt.WorkerGpus = 0.0,
    as_json: opt.Json = None,
) -> None:
    """Embed photos, texts or items: unit vectors with ids, in the order of what was given.

    The vectors are those of `FourMPipeline.embed`; `index` centers them. A run that was stopped
    goes on when it is started again. What cannot be read is listed with the reason.

    Args:
        inputs: What is embedded, all of one kind: photos (as for an index), texts (.txt, one on
            each line), or items (.jsonl of modality and value).
        out: Write the vectors to this .npy (ids go to NAME.ids.jsonl), .parquet or .lance.
        prefix: Put this text before every id.

    Raises:
        FourMError: the model or a source cannot be opened, or there is nothing to embed
    """  # fmt: skip
    from fourm_lite.search.embed_files import check_form, embed_to_file
    from fourm_lite.search.gallery import Ingest
    from fourm_lite.search.scale import Engine
    from fourm_lite.search.spaces import open_space

    check_form(out)
    tell_precision(dtype, model, device)
    cluster = cluster_of(engine, address, workers, worker_cpus, worker_gpus)
    opener = partial(
        open_space, model, target=target, gallery=gallery, decode=decode, center=center,  # type: ignore[arg-type]
        tokenizers=tokenizers, text_tokenizer=text_tokenizer, think=think or (), device=device,
        dtype=dtype_of(dtype),
    )  # fmt: skip
    how = Ingest(workers, batch_size, prefix=prefix)
    where = None if cluster is None else Engine(cluster, opener)
    with progress("embedding") as told:
        done = embed_to_file(
            inputs, out, opener(), how, engine=where,
            progress=lambda report, total: told.tell(
                "embedding", report.seen, total, f"{report.rate:.1f} a second"
            ),
        )  # fmt: skip
    facts = {"file": out, "rows": done.rows, "width": done.width, "space": done.space}
    deliver_some(facts, done.left_out, as_json)
