"""What a fine-tuned classifier is worth: a report on photos it has not seen, tables and curves."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import FourMError
from fourm_lite.finetune.finetune import FinetuneConfig, Finetuned
from fourm_lite.finetune.task import predict
from fourm_lite.io.files import write_json, write_whole
from fourm_lite.io.strict_json import as_object, parse_json
from fourm_lite.metrics.classification import classification_report, draw_confusion, table_csv
from fourm_lite.metrics.plots import plot_panels
from fourm_lite.photos.item import Skipped
from fourm_lite.photos.labelled import LabelledSet, Splits
from fourm_lite.reading.regular import read_bytes
from fourm_lite.training.checkpoints import checkpoints

LEFT_OUT = "skipped.json"


def begin_report(splits: Splits, out: Path) -> None:
    """Writes what a run leaves out from its start, which it goes on without when it is resumed."""
    if not checkpoints(out / "run"):
        write_json(out / LEFT_OUT, skipped(splits))


def left_out_before(out: Path) -> dict[str, str] | None:
    """What a run left out when it began: id -> why; None where none has begun.

    Raises:
        FourMError: the list is damaged
    """
    if not (out / LEFT_OUT).is_file() or not checkpoints(out / "run"):
        return None
    try:
        rows = parse_json(read_bytes(out / LEFT_OUT), LEFT_OUT)
        return {str(row["id"]): str(row["why"]) for row in rows if not row.get("in_training")}
    except (FourMError, KeyError, TypeError, AttributeError) as error:
        raise FourMError(
            f"{out / LEFT_OUT} is damaged ({error}); start afresh in another folder"
        ) from error


def write_report(
    found: Finetuned,
    splits: Splits,
    out: Path,
    data: str,
    config: FinetuneConfig,
    lost: Sequence[Skipped] = (),
) -> dict[str, Any]:
    """Measures the classifier on the test photos (else on the validation photos) and writes it.

    `lost` are photos that became unreadable while they were trained on.
    """
    part, name = (splits.val, "val") if splits.test is None else (splits.test, "test")
    left_out = skipped(splits)
    known = {row["id"] for row in left_out}
    late = [one for one in lost if one.uri not in known]
    left_out += [{"id": s.uri, "why": s.reason, "in_training": True} for s in late]
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
        "skipped": len(left_out),
    }
    report = measured(found.model, part, protocol)
    write_json(out / "report.json", report)
    write_json(out / LEFT_OUT, left_out)
    write_whole(out / "per_class.csv", table_csv(report["table"]))
    draw_confusion(report["confusion"], part.classes, out / "confusion.png")
    draw_curves(out / "run" / "log.jsonl", out / "curves.png")
    return report


def skipped(splits: Splits) -> list[dict[str, Any]]:
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
    panels = {}
    for measure in ("loss", "accuracy"):
        names = {"training": measure, "validation": f"val/{measure}"}
        lines = {w: [(row["epoch"], row[n]) for row in rows if n in row] for w, n in names.items()}
        panels[measure] = {who: points for who, points in lines.items() if points}
    if panels := {measure: lines for measure, lines in panels.items() if lines}:
        plot_panels(panels, path, title="training", x_label="epoch")
