"""`fourm-lite finetune`: a classifier from labelled photos, with a report and pictures."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fourm_lite.backbone.vit import FMViT
from fourm_lite.cli.output import print_facts, print_table, say
from fourm_lite.cli.words import Argument, Option
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.finetune.finetune import Balance, FinetuneConfig, Finetuned, Mode, unread
from fourm_lite.finetune.finetune import finetune as run_finetune
from fourm_lite.finetune.pixels import PhotoAugment, readable
from fourm_lite.finetune.task import MixConfig, predict
from fourm_lite.io.files import write_json, write_whole
from fourm_lite.io.strict_json import as_object, parse_json
from fourm_lite.metrics.classification import classification_report, draw_confusion, table_csv
from fourm_lite.metrics.plots import plot_lines
from fourm_lite.photos.labelled import LabelledSet, Splits, read_splits

_DEFAULT = FinetuneConfig()
HEADS: dict[str, dict[str, Any]] = {
    "linear": {},
    "attentive": {"pool": "attentive"},
    "mlp": {"layers": 2},
}


def finetune(
    data: Annotated[str, Argument("a folder of classes or with labels.jsonl, JSONL, Parquet, tar")],
    model: Annotated[str, Option("--model", "-m", help="A 4M model or an FMViT.")],
    out: Annotated[Path, Option("--out", "-o", help="The folder that the classifier goes to.")],
    mode: Annotated[Mode, Option(help="probe (linear, features once), lora or full.")] = "probe",
    head: Annotated[str, Option(help="linear, attentive or mlp.")] = "linear",
    epochs: Annotated[int, Option(help="Passes over the photos at most.")] = _DEFAULT.epochs,
    batch_size: Annotated[int, Option(help="Photos a step.")] = _DEFAULT.batch_size,
    lr: Annotated[float, Option(help="Peak learning rate; 0 takes the mode's own.")] = 0.0,
    layer_decay: Annotated[
        float, Option(help="Factor on the learning rate, block by block down (full).")
    ] = _DEFAULT.layer_decay,
    smoothing: Annotated[float, Option(help="Label smoothing.")] = _DEFAULT.smoothing,
    mixup: Annotated[float, Option(help="Alpha of mixup, 0 for none.")] = 0.0,
    cutmix: Annotated[float, Option(help="Alpha of cutmix, 0 for none.")] = 0.0,
    augment: Annotated[str, Option(help='A policy of timm: "rand-m9-mstd0.5-inc1".')] = "",
    balance: Annotated[Balance, Option(help="Rare classes: none, loss or sample.")] = "none",
    patience: Annotated[int, Option(help="Epochs without a rise; 0: never.")] = _DEFAULT.patience,
    image_size: Annotated[int, Option(help="Side in pixels; 0: the model's own.")] = 0,
    from_scratch: Annotated[bool, Option("--from-scratch", help="Forget the weights.")] = False,
    resume: Annotated[bool, Option("--resume", help="Go on with the run in --out.")] = False,
    max_seconds: Annotated[float, Option(help="Stop, resumably, after that time.")] = 0.0,
    device: Annotated[str, Option(help="cpu or cuda; by default a GPU where there is one.")] = "",
    seed: Annotated[int, Option(help="Of everything that is drawn.")] = 0,
) -> None:
    """Make a classifier from labelled photos.

    Writes the model, report.json, per_class.csv, confusion.png and curves.png to --out; photos that
    cannot be used are listed in skipped.json.

    Raises:
        FourMError: the data or the settings cannot be used
    """
    if head not in HEADS:
        raise ConfigError(f"--head is one of {', '.join(HEADS)}, got {head!r}")
    config = FinetuneConfig(
        mode=mode, epochs=epochs, batch_size=batch_size, lr=lr, layer_decay=layer_decay,
        smoothing=smoothing, mix=MixConfig(mixup=mixup, cutmix=cutmix),
        augment=PhotoAugment(auto=augment), balance=balance, patience=patience, seed=seed,
        from_scratch=from_scratch, max_seconds=max_seconds, **HEADS[head],
    )  # fmt: skip
    splits = _readable(read_splits(data))
    if note := unread(config):
        say(note, aside=True)
        splits = replace(splits, notes=(*splits.notes, note))
    found = run_finetune(
        model, splits, out, config,
        image_size=image_size or None, resume=resume, device=device or None,
    )  # fmt: skip
    report = write_report(found, splits, out, data, config)
    _show(report, splits, out)


def _readable(splits: Splits) -> Splits:
    test = None if splits.test is None else readable(splits.test)
    return Splits(readable(splits.train), readable(splits.val), test, splits.notes)


def write_report(
    found: Finetuned, splits: Splits, out: Path, data: str, config: FinetuneConfig
) -> dict[str, Any]:
    """Measures the classifier on the test photos (else on the validation photos) and writes it."""
    part, name = (splits.val, "val") if splits.test is None else (splits.test, "test")
    protocol = {
        "what": f"finetune, mode {config.mode}" + (", from scratch" * config.from_scratch),
        "data": data,
        "measured_on": name,
        "train_photos": len(splits.train),
        "val_photos": len(splits.val),
        "val_accuracy": found.best_val,
        "backbone_trained_share": found.trained_share,
        "stopped_early": found.stopped_early,
        "finished": found.done,
        "notes": list(splits.notes),
        "skipped": len(skipped(splits)),
    }
    report = measured(found.model, part, protocol)
    write_json(out / "report.json", report)
    write_json(out / "skipped.json", skipped(splits))
    write_whole(out / "per_class.csv", table_csv(report["table"]))
    draw_confusion(report["confusion"], part.classes, out / "confusion.png")
    draw_curves(out / "run" / "log.jsonl", out / "curves.png")
    return report


def skipped(splits: Splits) -> list[dict[str, str]]:
    """What was left out of all parts, with the reasons."""
    parts = [p for p in (splits.train, splits.val, splits.test) if p is not None]
    found = {skip.id: skip.why for part in parts for skip in part.skipped}
    return [{"id": name, "why": why} for name, why in found.items()]


def measured(model: FMViT, part: LabelledSet, protocol: dict[str, Any]) -> dict[str, Any]:
    """The report of a classifier on labelled photos."""
    logits = predict(model.eval(), part, model.input_size[1:])
    if not part.multi_label:
        truth = part.labels.numpy()
        return classification_report(
            logits.argmax(dim=-1).numpy(), truth, part.classes, protocol=protocol
        )
    first = {"accuracy_of": "the highest class of a photo, right if it is one of its labels"}
    top = logits.argmax(dim=-1)
    hit = part.labels.gather(1, top[:, None])[:, 0] > 0
    truth = top.where(hit, part.labels.argmax(dim=-1)).numpy()
    return classification_report(top.numpy(), truth, part.classes, protocol={**protocol, **first})


def draw_curves(log: Path, path: Path) -> None:
    """Loss and accuracy over the epochs of a run, where there was one."""
    rows = []
    for line in log.read_text("utf-8", "replace").splitlines() if log.is_file() else []:
        with contextlib.suppress(FourMError):  # a line cut short by a crash
            rows.append(as_object(parse_json(line, "a line"), "a line"))
    names = ("loss", "accuracy", "val/loss", "val/accuracy")
    lines = {n: [(row["epoch"], row[n]) for row in rows if n in row] for n in names}
    lines = {name: points for name, points in lines.items() if points}
    if lines:
        plot_lines(lines, path, title="training", x_label="epoch", y_label="loss, accuracy")


def _show(report: dict[str, Any], splits: Splits, out: Path) -> None:
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
