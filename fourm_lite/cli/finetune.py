"""`fourm-lite finetune`, `calibrate`, `spread`: fitted to photos of your own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourm_lite.cli import options as opt
from fourm_lite.cli.options import dtype_of, present, tell_precision
from fourm_lite.cli.output import (
    Told,
    deliver,
    print_facts,
    print_table,
    progress,
    require_folder,
    require_model_folder,
    say,
)
from fourm_lite.errors import check_choice

if TYPE_CHECKING:
    from fourm_lite.finetune.finetune import FinetuneConfig
    from fourm_lite.photos.labelled import Splits

HEADS: dict[str, dict[str, Any]] = {
    "linear": {},
    "attentive": {"pool": "attentive"},
    "mlp": {"layers": 2},
}


def finetune(
    data: Annotated[str, typer.Argument(callback=present)],
    model: Annotated[str, typer.Option("--model", "-m")],
    out: Annotated[Path, typer.Option("--out", "-o")],
    mode: str = "probe",
    head: str = "linear",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    layer_decay: float | None = None,
    smoothing: float | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    augment: str = "",
    balance: str = "none",
    patience: int | None = None,
    input: str = "",
    image_size: int = 0,
    from_scratch: Annotated[bool, typer.Option("--from-scratch")] = False,
    resume: Annotated[bool, typer.Option("--resume")] = False,
    max_seconds: float | None = None,
    device: str = "",
    seed: opt.Seed = 0,
    as_json: opt.Json = None,
) -> None:
    """Make a classifier from labelled photos.

    Writes the model, report.json, per_class.csv, confusion.png and curves.png to --out; photos that
    cannot be used are listed in skipped.json. Each epoch is told with its figures when it ends.

    Args:
        data: The labelled photos: a folder of classes or one with a labels.jsonl, a JSONL or
            Parquet list, or a tar.
        model: Start from this 4M model or FMViT.
        out: Write the classifier into this folder.
        mode: Train this much: 'probe' a linear map of fixed features, 'lora' small additions to the
            weights, 'full' all weights.
        head: Put this head on the backbone: linear, attentive or mlp.
        epochs: Pass over the photos at most this often; by default 20.
        batch_size: Train on this many photos a step; by default 32.
        lr: Set the peak learning rate; by default the mode's own.
        layer_decay: Multiply the learning rate by this from block to block, downwards (mode full);
            by default 0.75.
        smoothing: Smooth labels by this much; by default 0.1.
        mixup: Mix photos with this alpha of mixup; 0 does not.
        cutmix: Paste photos with this alpha of cutmix; 0 does not.
        augment: Augment by this policy of timm, such as rand-m9-mstd0.5-inc1.
        balance: Help rare classes by 'loss' (they weigh more) or 'sample' (they are shown more
            often), or not: 'none'.
        patience: Stop after this many epochs that brought nothing, 0 never; by default 5.
        input: Read the photos as this modality, where a model reads several: S2L2A.
        image_size: Read photos with this side in pixels; 0 takes the model's own.
        from_scratch: Forget the weights first, to compare with.
        resume: Go on with the run that is in --out.
        max_seconds: Stop after this many seconds; --resume goes on later.
        device: Run on cpu or cuda; by default on a GPU where there is one.

    Raises:
        FourMError: the data or the settings cannot be used
    """
    check_choice("--head", head, of=HEADS)
    require_folder(out, "--out")
    from fourm_lite.finetune.finetune import FinetuneConfig, unread
    from fourm_lite.finetune.finetune import finetune as run_finetune
    from fourm_lite.finetune.pixels import PhotoAugment
    from fourm_lite.finetune.report import begin_report, write_report
    from fourm_lite.finetune.task import MixConfig
    from fourm_lite.photos.records import hearing

    given: dict[str, Any] = {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "layer_decay": layer_decay,
        "smoothing": smoothing, "patience": patience, "max_seconds": max_seconds,
    }  # fmt: skip
    config = FinetuneConfig(
        mode=mode, balance=balance, mix=MixConfig(mixup=mixup, cutmix=cutmix),  # type: ignore[arg-type]
        augment=PhotoAugment(auto=augment), seed=seed, from_scratch=from_scratch, input=input,
        **HEADS[head],
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    splits = _readable(data, out if resume else None, model, input)
    if note := unread(config):
        say(note, aside=True)
        splits = replace(splits, notes=(*splits.notes, note))
    begin_report(splits, out)
    with progress("steps") as told, hearing() as lost:
        found = run_finetune(
            model, splits, out, config, image_size=image_size or None, resume=resume,
            device=device or None, progress=_epochs(told, config),
        )  # fmt: skip
    report = write_report(found, splits, out, data, config, lost)
    deliver(report, as_json, lambda: _show(report, splits, out))


def _readable(data: str, resumed: Path | None, model: str, input: str) -> Splits:
    """The splits less what cannot be read; a resumed run trains on the photos it began with."""
    from fourm_lite.backbone.vit import FMViT
    from fourm_lite.finetune.finetune import inputs_of
    from fourm_lite.finetune.pixels import codec_for, readable, without
    from fourm_lite.finetune.report import left_out_before
    from fourm_lite.photos.labelled import Splits, read_splits

    splits = read_splits(data)
    codec = codec_for(FMViT.from_pretrained(model, num_classes=0, inputs=inputs_of(input)))
    before = None if resumed is None else left_out_before(resumed)
    train = readable(splits.train, codec) if before is None else without(splits.train, before)
    test = None if splits.test is None else readable(splits.test, codec)
    return Splits(train, readable(splits.val, codec), test, splits.notes)


def _epochs(told: Told, config: FinetuneConfig) -> Any:
    """Photos, then steps, for the bar; and a line for each epoch that has ended."""

    def tell(step: int, steps: int, numbers: Mapping[str, float]) -> None:
        if not numbers:  # features of photos, for the linear head
            told.tell("photos", step, steps)
            return
        told.step(step, steps, numbers)
        names = [n for n in ("loss", "accuracy", "val/loss", "val/accuracy") if n in numbers]
        if "val/accuracy" in names:
            figures = "  ".join(f"{name} {numbers[name]:.3f}" for name in names)
            say(f"epoch {step * config.epochs // steps} of {config.epochs}: {figures}", aside=True)

    return tell


def _show(report: dict[str, Any], splits: Splits, out: Path) -> None:
    from fourm_lite.finetune.report import skipped

    low, high = report["interval"]
    protocol = report["protocol"]
    left_out = skipped(splits)
    print_facts(
        {
            "accuracy": f"{report['accuracy']:.4f} [{low:.4f}, {high:.4f}]",
            "measured on": f"{protocol['test_photos']} {protocol['measured_on']} photos",
            "trained": f"{100 * protocol['backbone_trained_share']:.2f} % of the backbone",
            "notes": "; ".join(splits.notes) or None,
            "written to": out,
        }
    )
    rows = [(n, r["photos"], _shown(r["recall"]), _shown(r["precision"])) for n, r in
            report["table"].items()]  # fmt: skip
    print_table(("class", "photos", "recall", "precision"), rows)
    if left_out:
        say(f"{len(left_out)} photos were left out:")
        print_table(("photo", "why"), [(s["id"], s["why"]) for s in left_out[:10]])


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def calibrate(
    model: opt.OwnModel,
    data: opt.Data,
    split: opt.Split = "val",
    rerank: Annotated[int, typer.Option(min=2)] = 100,
    target: opt.Target = None,
    batch_size: opt.BatchSize = 32,
    tokenizers: opt.Tokenizers = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    as_json: opt.Json = None,
) -> None:
    """Fit how a model's hits are reranked and how sure its answers are.

    Both are learnt from photos with captions that the model was not trained on, and kept beside it
    as search.json: searches and evaluations read them from there. An index may have its own
    (fourm-lite index calibrate).

    Args:
        rerank: Learn to rerank this many of the first hits.

    Raises:
        FourMError: the model or the data cannot be used
    """
    require_model_folder(model)
    from fourm_lite.evaluate.fit_search import fit_model, told
    from fourm_lite.search.spaces import open_model_space

    tell_precision(dtype, model, device)
    space = open_model_space(
        model, target=target, tokenizers=tokenizers, device=device, dtype=dtype_of(dtype)
    )
    with progress("photos") as shown:
        learnt = fit_model(
            space, data, split, depth=rerank, batch_size=batch_size, progress=shown.tell
        )
    facts = {"file": learnt.save(model), **told(learnt)}
    deliver(facts, as_json, lambda: print_facts(facts))


def spread(
    labels: Annotated[Path, typer.Argument(callback=present)],
    name: Annotated[str, typer.Option("--label")],
    model: opt.OwnModel,
    target: str | None = None,
    power: Annotated[float, typer.Option(min=0, max=1)] = 0.3,
    axes: Annotated[int, typer.Option(min=1)] = 64,
    as_json: opt.Json = None,
) -> None:
    """Learn what photos vary in most, so that queries hold less of it (partial whitening).

    A query that a model predicts lies mostly in the directions that photos vary in most, and finds
    what is common. Searches with this model divide those by their variance to a power, which is
    chosen by `fourm-lite evaluate retrieval --spread`. Galleries stay as they are.

    Args:
        labels: The vectors to learn from, in a folder of `fourm-lite pseudolabel`.
        name: Read these vectors of it, such as dinov2_global.
        target: Whiten queries in this embedding of the model; its first by default.
        power: Divide by the variance to this power: 0 not at all, 0.5 fully.
        axes: Keep this many directions of most variance.

    Raises:
        FourMError: the labels or the model cannot be read
    """
    require_model_folder(model)
    from fourm_lite.data.label_rows import read_vectors
    from fourm_lite.pipeline.pipeline import FourMPipeline
    from fourm_lite.search.spaces import tokenizer_centre
    from fourm_lite.search.whitening import fit_whitening

    pipe = FourMPipeline.from_pretrained(model)
    entry = pipe.embedding_target(target)
    ids, values = read_vectors(labels, name)
    vectors = tokenizer_centre(pipe.tokenizers.vq(entry))(values[:, 0])
    path = fit_whitening(vectors, entry.name, axes=axes, power=power).save(model)
    facts = {"file": path, "photos": len(ids), "target": entry.name, "axes": axes, "power": power}
    deliver(facts, as_json, lambda: print_facts(facts))
