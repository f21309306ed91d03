"""`register_embedding`: any embedding network becomes a modality of a model, in one call.

Photos are listed, their vectors extracted, a tokenizer trained and measured, a checkpoint grown and
tuned, and the card written. Each stage is skipped when it is done, and goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fourm_lite.add_embedding.extraction import (
    Listing,
    Vectors,
    extract,
    list_photos,
    probe,
    read_listing,
    read_vectors,
    source_paths,
)
from fourm_lite.add_embedding.figures import model_metrics, tokenized, tokenizer_metrics
from fourm_lite.add_embedding.model_folder import (
    card,
    is_new,
    keep_learnt,
    new_modality,
    tokenizer_references,
    write_model,
)
from fourm_lite.add_embedding.options import MIN_PHOTOS, Options, check_embedder, check_new_name
from fourm_lite.add_embedding.tokenizer import tokenizer_shape, train_tokenizer
from fourm_lite.add_embedding.tuning import Sources, aligned_samples, changed_weights, tune
from fourm_lite.embedders.base import NetworkEmbedder
from fourm_lite.embedders.load import Spec, load_embedder
from fourm_lite.errors import ConfigError
from fourm_lite.io.checkpoint import Checkpoint, read
from fourm_lite.io.files import alone, remove_leftovers, write_json, write_whole
from fourm_lite.modalities.spec import Modality
from fourm_lite.pipeline.given import Given
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.progress import StageProgress
from fourm_lite.search.spaces import open_model_space
from fourm_lite.tokenization.load import load_tokenizer
from fourm_lite.training.checkpoints import remove_checkpoints
from fourm_lite.training.staged import Stages

REPORT, CARD = "report.json", "card.md"


@dataclass(frozen=True)
class AddedEmbedding:
    """A model that has one modality more.

    Units:
        folder: opens with `FourMPipeline.from_pretrained`, also after it was moved
        report: the content of its `report.json`: photos, figures of tokenizer and model
        skipped: stages that were done before this call
    """

    folder: Path
    modality: Modality
    report: Mapping[str, Any]
    skipped: tuple[str, ...] = ()


def register_embedding(
    name: str,
    embedder: Spec,
    photos: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    model: str | Path = "mini",
    tokenizers: Given = None,
    options: Options | None = None,
    progress: StageProgress | None = None,
    **changes: Any,
) -> AddedEmbedding:
    """Makes a modality of an embedding network and adds it to a 4M checkpoint.

    Call it again with the same arguments to go on after a stop; what is done is skipped.

    Args:
        name: of the new modality, an identifier
        embedder: a specification of `load_embedder` ("onnx:net.onnx", "hf:..."), or a callable
        photos: folders, a folder with captions.jsonl, .tar, .parquet or .jsonl files. Captions, if
            there are any and the model reads them, are learned as inputs
        out: a new folder, or one that such a call began
        model: the 4M checkpoint to grow; it is not changed
        tokenizers: as `FourMPipeline.from_pretrained`
        options: numbers of the run
        progress: called with (stage, done, in all)
        **changes: single options: `train="all"`, `steps=1000`

    Raises:
        ConfigError: a wrong name or option, too few photos, or another run's folder
        FourMError: the network gives NaN, one vector for all photos, or reads no pictures; or
            another process is at work in `out`
        ShapeError: the width of its vectors changes

    Example:
        >>> from fourm_lite import register_embedding
        >>> added = register_embedding(
        ...     "my_net", "onnx:net.onnx", "photos", out="grown")  # doctest: +SKIP
    """
    chosen = (options or Options()).changed(**changes)
    folder = Path(out).expanduser()
    source = read(model)
    if source.source.resolve() == folder.resolve():
        raise ConfigError(f"the grown model needs a folder of its own, got {folder} for both")
    with alone(folder):
        remove_leftovers(folder, alone=True)
        stages = Stages.open(folder)
        pipe = FourMPipeline.from_pretrained(source, tokenizers)
        check_new_name(name, pipe.model.config.modalities, pipe.tokenizers.sources)
        network = load_embedder(embedder)
        check_embedder(network)
        tell = progress or (lambda what, done, total: None)
        run = _Run(name, network, str(model), source, pipe, chosen, stages, tell)
        return run.all(source_paths(photos))


@dataclass(frozen=True)
class _Run:
    """One call: what was asked for, and its stages."""

    name: str
    embedder: NetworkEmbedder
    model: str
    source: Checkpoint
    pipe: FourMPipeline
    options: Options
    stages: Stages
    tell: StageProgress

    def all(self, paths: Sequence[Path]) -> AddedEmbedding:
        """Every stage in turn."""
        o, stages = self.options, self.stages
        photos = {"name": self.name, "sources": [str(p) for p in paths]}
        photos |= {n: getattr(o, n) for n in ("split", "held_out", "max_held_out", "seed")}
        self._same("photos", photos)
        network = {"embedder": str(self.embedder.space)}
        former = lambda: [{"embedder": str(s)} for s in self.embedder.former_spaces]  # noqa: E731
        stages.renew("vectors", former, network)
        self._same("vectors", network)
        stages.run("photos", photos, lambda place: self._list(paths, place))
        stages.run("vectors", network, self._extract)
        shape = stages.run(
            "tokenizer",
            {n: getattr(o, n) for n in ("tokens", "codebook_size", "tokenizer_steps", "seed")},
            self._tokenizer,
        )
        remove_checkpoints(stages.folder / "tokenizer" / "run")  # now that it is noted as done
        names = ("train", "steps", "lr", "trunk_lr", "batch_size", "seed", "title", "licence")
        grown = {"model": self.model, "fingerprint": fingerprint(self.source)}
        tuning = stages.run("model", grown | {n: getattr(o, n) for n in names}, self._model)
        remove_checkpoints(stages.folder / "model" / "run")
        retrieval = stages.run("figures", {}, lambda _: self._metrics())
        report = stages.run("report", {}, lambda _: self._report(paths, shape, tuning, retrieval))
        return AddedEmbedding(stages.out, self.entry, report, tuple(stages.skipped))

    def _same(self, stage: str, settings: Mapping[str, Any]) -> None:
        """Other photos or another network are another run: its hours are not thrown away."""
        before = self.stages.settings(stage)
        if before is not None and dict(before) != json.loads(json.dumps(settings)):
            changed = [k for k in settings if before.get(k) != settings[k]]
            raise ConfigError(
                f"{self.stages.out} was begun with another "
                + ", ".join(f"{k} ({before.get(k)!r}, now {settings[k]!r})" for k in changed)
                + "; choose another folder"
            )

    def _list(self, paths: Sequence[Path], place: Path) -> dict[str, Any]:
        listing = list_photos(paths, self.options, place, self.tell)
        captions = sum(len(r.captions) for r in listing.part("train"))
        Sources.of(self.pipe.model.config, self.pipe.tokenizers, captions)
        width = probe(self.embedder, listing.records)
        tokenizer_shape(len(listing.part("train")), width, self.options)
        return {"photos": len(listing.records), "captions": captions}

    def _extract(self, place: Path) -> dict[str, Any]:
        extract(
            self.listing, self.embedder, place, batch_size=self.options.embed_batch, tell=self.tell
        )
        found = read_vectors(self.listing, place)
        if len(found.train.records) < MIN_PHOTOS:
            raise ConfigError(
                f"expected at least {MIN_PHOTOS} readable photos to learn from, got "
                f"{len(found.train.records)}; the first that is not: {found.skipped[0].reason}"
            )
        return {"photos": len(found.records), "width": int(found.values.shape[1])}

    def _tokenizer(self, place: Path) -> dict[str, Any]:
        values, held_out = self.vectors.train.values, self.vectors.held_out.values
        shape = train_tokenizer(values, self.options, place, self.tokenizer_folder, self.tell)
        metrics = tokenizer_metrics(load_tokenizer(self.tokenizer_folder), values, held_out)
        return {**shape, "figures": metrics}

    def _model(self, place: Path) -> dict[str, Any]:
        tokenizer = load_tokenizer(self.tokenizer_folder)
        train, model = self.vectors.train, self.pipe.model
        codes, _ = tokenized(tokenizer, train.values)
        sources, entry = self.sources, self.entry
        samples = aligned_samples(train, codes, entry, sources, self.pipe.tokenizers)
        tuned, facts = tune(
            model, entry, tokenizer, samples, sources, self.pipe.tokenizers, self.options,
            place, self.tell,
        )  # fmt: skip
        frozen = self.options.train == "tables"
        old = [key for key in model.state_dict() if not is_new(key, self.name)]
        assert not frozen or not changed_weights(model, tuned, old)
        out = self.stages.out
        extra = self._extra(facts)
        extra["tokenizers"] = tokenizer_references(
            self.pipe.tokenizers, self.source, self.name, out
        )
        write_model(tuned, self.name, self.source, out, extra, frozen=frozen)
        if frozen:  # the same weights are searched and reranked as before
            keep_learnt(self.pipe.folder, out)
        return facts

    def _metrics(self) -> dict[str, Any]:
        space = open_model_space(FourMPipeline.from_pretrained(self.stages.out), target=self.name)
        found = self.vectors
        return model_metrics(space, self.sources, found.train, found.held_out, self.tell)

    def _extra(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        extra = dict(self.source.extra)
        if (family := self.pipe.tokenizers.family) is not None:
            extra["family"] = family.name
        if self.options.train != "tables":
            extra.pop("rerank", None)  # weights that were fitted for the old weights of the model
        before = extra.get("added", [])
        this = {
            "modality": self.name,
            "embedder": self.embedder.name,
            "space": str(self.embedder.space),
            "photos": len(self.vectors.train.records),
            "train": self.options.train,
            "steps": facts["steps"],
            "grown_from": self.model,
        }
        extra["added"] = [*(before if isinstance(before, list) else []), this]
        if self.options.licence:
            extra["licence"] = self.options.licence
        return extra

    def _report(
        self,
        paths: Sequence[Path],
        shape: Mapping[str, Any],
        tuning: Mapping[str, Any],
        retrieval: Mapping[str, Any],
    ) -> dict[str, Any]:
        train, held_out = self.vectors.train, self.vectors.held_out
        space = self.embedder.space
        entry = self.entry
        licence = self.options.licence or str(self.source.extra.get("licence", ""))
        report = {
            "modality": {"name": self.name, "tokens": entry.max_tokens,
                         "codebook_size": entry.vocab_size, "width": shape["width"]},
            "embedder": {"name": self.embedder.name, "space": space.name,
                         "fingerprint": space.fingerprint},
            "model": self.model,
            "train": self.options.train,
            "seed": self.options.seed,
            "licence": " ".join(licence.split()),
            "photos": {
                "sources": [p.name for p in paths],
                "train": len(train.records),
                "captions": sum(len(r.captions) for r in train.records),
                "held_out": len(held_out.records),
                "skipped": len(self.vectors.skipped),
                "unreadable": [{"uri": s.uri, "reason": s.reason} for s in self.vectors.skipped],
            },
            "shape": {k: v for k, v in shape.items() if k != "figures"},
            "tokenizer": shape["figures"],
            "tuning": tuning,
            "retrieval": retrieval,
        }  # fmt: skip
        write_json(self.stages.out / REPORT, report)
        write_whole(self.stages.out / CARD, card(report))
        return report

    @property
    def tokenizer_folder(self) -> Path:
        return self.stages.out / "tokenizers" / self.name

    @cached_property
    def listing(self) -> Listing:
        return read_listing(self.stages.folder / "photos")

    @cached_property
    def vectors(self) -> Vectors:
        return read_vectors(self.listing, self.stages.folder / "vectors")

    @cached_property
    def sources(self) -> Sources:
        captions = sum(len(r.captions) for r in self.vectors.train.records)
        return Sources.of(self.pipe.model.config, self.pipe.tokenizers, captions)

    @cached_property
    def entry(self) -> Modality:
        config = load_tokenizer(self.tokenizer_folder).config
        return new_modality(
            self.name, config.num_codebooks, config.codebook_size, self.options.title
        )


def fingerprint(source: Checkpoint) -> str:
    """Tells a checkpoint from another, by its config and the size and time of its files."""
    paths = {file.path for file in source.files.values()}
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in paths)
    text = json.dumps([source.config, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
