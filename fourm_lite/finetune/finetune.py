"""Fine-tuning an FMViT on labelled photos: a linear probe, LoRA, or all weights.

A linear head starts as the linear probe, so that early steps do not destroy the features.

Source:
    Fine-Tuning can Distort Pretrained Features (Kumar et al. 2022) for probing first
    MAE (He et al. 2022) for the layer-wise decay of the learning rate
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from fourm_lite.backbone.config import HeadConfig, Pool
from fourm_lite.backbone.heads import (
    LoraConfig,
    add_lora,
    freeze_backbone,
    merge_lora,
    merged_copy,
    trainable_share,
)
from fourm_lite.backbone.vit import FMViT
from fourm_lite.errors import ConfigError, FourMError, UnknownNameError, check_choice, check_most
from fourm_lite.finetune.pixels import PhotoAugment, PhotoStream, codec_for
from fourm_lite.finetune.probe import (
    accuracy,
    choose_linear,
    class_weights,
    photo_features,
    set_linear_head,
)
from fourm_lite.finetune.task import EarlyStop, FinetuneTask, MixConfig, Validations
from fourm_lite.io.files import alone, remove_leftovers, write_json
from fourm_lite.io.layout import CONFIG
from fourm_lite.modalities.forks import key_of
from fourm_lite.photos.labelled import LabelledSet, Splits
from fourm_lite.progress import StepProgress
from fourm_lite.training.checkpoints import begin_run, check_fresh, checkpoints
from fourm_lite.training.loop import TrainConfig, fit
from fourm_lite.training.optim import OptimConfig
from fourm_lite.training.processes import Device, chosen_device

Mode = Literal["probe", "lora", "full"]
Balance = Literal["none", "loss", "sample"]
STOPPED = "stopped.json"
"""In the folder of a run that ended before its last epoch, because it got no better."""
_DEFAULT_LR: dict[str, float] = {"probe": 1e-3, "lora": 1e-3, "full": 5e-4}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a classifier is made from a pretrained model.

    Units:
        pool, layers, dropout: the head's; the number of classes comes from the data
        lr: 0 takes the mode's own; layer_decay: factor from block to block, towards the input
        balance: "loss" weighs rare classes up, "sample" shows them as often as others
        patience: validations (one an epoch) without a rise before the run ends, 0 for never
        from_scratch: forgets the weights first, to compare with
        probe_first: a linear head starts as the linear probe
    """

    mode: Mode = "probe"
    pool: Pool = "avg"
    layers: int = 1
    dropout: float = 0.0
    epochs: int = 20
    batch_size: int = 32
    lr: float = 0.0
    weight_decay: float = 0.05
    layer_decay: float = 0.75
    warmup: float = 0.1
    smoothing: float = 0.1
    mix: MixConfig = field(default_factory=MixConfig)
    augment: PhotoAugment = field(default_factory=PhotoAugment)
    balance: Balance = "none"
    lora: LoraConfig = field(default_factory=LoraConfig)
    patience: int = 5
    input: str = ""
    drop_path: float = 0.0
    from_scratch: bool = False
    probe_first: bool = True
    seed: int = 0
    workers: int = 1
    max_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what cannot run."""
        check_choice("mode", self.mode, of=get_args(Mode))
        check_choice("balance", self.balance, of=get_args(Balance))
        check_most(1 << 20, epochs=self.epochs, batch_size=self.batch_size, patience=self.patience)
        check_most(1024, workers=self.workers, layers=self.layers)
        if min(self.epochs, self.batch_size) < 1 or not 0 < self.layer_decay <= 1:
            raise ConfigError(
                "epochs and batch_size are at least 1 and layer_decay in 0..1, got "
                f"{self.epochs}, {self.batch_size}, {self.layer_decay}"
            )
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"smoothing is at least 0 and below 1, got {self.smoothing}")

    @property
    def head(self) -> HeadConfig:
        """The head's form; its classes are those of the data."""
        return HeadConfig(pool=self.pool, layers=self.layers, dropout=self.dropout)


@dataclass(frozen=True)
class Finetuned:
    """A classifier, and how it came about.

    Units:
        trained_share: trained weights of the backbone over all of them
        best_val: the validation accuracy of the weights that were kept
    """

    model: FMViT
    trained_share: float
    best_val: float
    stopped_early: bool = False
    done: bool = True


_UNREAD = {
    "epochs": "--epochs", "batch_size": "--batch-size", "lr": "--lr",
    "layer_decay": "--layer-decay", "smoothing": "--smoothing", "mix": "--mixup, --cutmix",
    "augment": "--augment", "patience": "--patience", "max_seconds": "--max-seconds",
}  # fmt: skip


def unread(config: FinetuneConfig) -> str:
    """What a linear probe does not read of settings that are not the usual ones, in a sentence."""
    if config.mode != "probe" or not config.head.is_linear:
        return ""
    usual = FinetuneConfig()
    names = [o for f, o in _UNREAD.items() if getattr(config, f) != getattr(usual, f)]
    names += ["--balance sample"] * (config.balance == "sample")
    if not names:
        return ""
    return f"a linear probe is solved from features and does not read {', '.join(names)}"


def finetune(
    source: str | Path,
    data: Splits,
    out: Path,
    config: FinetuneConfig | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    resume: bool = False,
    device: str | None = None,
    progress: StepProgress | None = None,
) -> Finetuned:
    """Makes a classifier of `data.train.classes` and writes it to `out`.

    Units:
        device: "cpu" or "cuda"; None for a GPU where there is one
    Raises:
        ConfigError: settings that contradict each other or the data; another device
        FourMError: `out` holds a run or a classifier and `resume` is False; another process is at
            work there; there is no GPU and one is asked for
    """
    config = config or FinetuneConfig()
    with alone(out):
        remove_leftovers(out, alone=True)
        asked: Device = chosen_device(device) if device else ""
        where = chosen_device(asked)
        if not resume:
            check_fresh(out / "run")  # before anything of it is touched
            _check_unused(out)
        model = classifier(source, data.train, config, image_size=image_size).to(where)
        if config.mode == "probe" and config.head.is_linear:
            found = _probe(model, data, out, config, progress)
        else:
            found = _train(model, data, out, config, resume, progress, asked)
        found.model.save(out, extra={"finetuned": _told(config, data)})
    return found


def _check_unused(out: Path) -> None:
    """Refuses a folder whose classifier would be replaced."""
    if (out / CONFIG).is_file():
        raise FourMError(
            f"{out} already holds a classifier ({CONFIG}), which this run would replace; choose "
            "another folder, or delete that one"
        )


def inputs_of(name: str) -> list[str] | None:
    """The modality that a name means, as its users write it ("S2L2A") or as the model does."""
    if not name:
        return None
    with contextlib.suppress(UnknownNameError):
        return [key_of(name)]
    return [name]


def classifier(
    source: str | Path,
    data: LabelledSet,
    config: FinetuneConfig,
    *,
    image_size: int | tuple[int, int] | None = None,
) -> FMViT:
    """The model with a fresh head for the classes of the data."""
    head = replace(
        config.head,
        num_classes=len(data.classes),
        class_names=data.classes,
        multi_label=data.multi_label,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = FMViT.from_pretrained(source, head=head, inputs=inputs_of(config.input))
        if config.from_scratch:
            model.init_weights()
    if image_size is not None:
        model.set_input_size(image_size)
    if config.drop_path:
        rated = replace(model.config, drop_path_rate=config.drop_path)
        weights, model = model.state_dict(), FMViT(rated)
        model.load_state_dict(weights)
    return model


def _class_weights(data: LabelledSet, config: FinetuneConfig) -> Tensor | None:
    return class_weights(data.counts) if config.balance == "loss" else None


def _probe(
    model: FMViT,
    data: Splits,
    out: Path,
    config: FinetuneConfig,
    progress: StepProgress | None = None,
) -> Finetuned:
    """Solves the linear head; `progress` counts the photos whose features are there."""
    model.eval()
    tell = None if progress is None else lambda done, total: progress(done, total, {})
    sets = [data.train, data.val]
    parts = [
        (photo_features(model, s, cache=out / "features", progress=tell), s.labels) for s in sets
    ]
    weights = _class_weights(data.train, config)
    linear = choose_linear(parts[0], parts[1], model.num_classes, weights=weights)
    set_linear_head(model, linear)
    best = accuracy(linear(parts[1][0]), parts[1][1])
    return Finetuned(model, 0.0, best)


def _train(
    model: FMViT,
    data: Splits,
    out: Path,
    config: FinetuneConfig,
    resume: bool,
    progress: StepProgress | None,
    device: Device,
) -> Finetuned:
    run = out / "run"
    goes_on = resume and bool(checkpoints(run))  # then all weights come from there
    if config.probe_first and config.head.is_linear and not (config.from_scratch or goes_on):
        _probe(model, data, out, config, progress)
    if config.mode == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + 1)
            add_lora(model, config.lora)
    elif config.mode == "probe":
        freeze_backbone(model)
    share = trainable_share(model)
    size = model.input_size[1:]
    stream = PhotoStream(
        data=data.train, size=size, batch_size=min(config.batch_size, len(data.train)),
        augment=config.augment, balanced=config.balance == "sample", seed=config.seed,
        codec=codec_for(model),
    )  # fmt: skip
    task = FinetuneTask(
        model, data.val, size, run / "best", smoothing=config.smoothing, mix=config.mix,
        weights=_class_weights(data.train, config), patience=config.patience,
        save_best=lambda folder: merged_copy(model).save(folder),
    )  # fmt: skip
    settings = replace(_train_config(stream, config, model, run), device=device)
    done = True
    stopped = resume and (run / STOPPED).is_file()
    if stopped and not _has_best(run):
        raise FourMError(f"{run} has ended and its best weights are gone; choose another --out")
    if not stopped:
        if not resume:
            begin_run(run)
        try:
            done = fit(task, stream, settings, resume=resume, progress=progress).done
        except EarlyStop as error:
            stopped = True
            write_json(run / STOPPED, {"why": str(error)})
    best = Validations.read(run / "best").best
    kept = FMViT.from_pretrained(run / "best") if _has_best(run) else merge_lora(model)
    assert isinstance(kept, FMViT)
    return Finetuned(kept, share, best, stopped, done)


def _has_best(run: Path) -> bool:
    return (run / "best" / "model.safetensors").is_file()


def _train_config(
    stream: PhotoStream, config: FinetuneConfig, model: FMViT, run: Path
) -> TrainConfig:
    steps = config.epochs * stream.per_epoch
    decays = layer_scales(model, config.layer_decay) if config.mode == "full" else {}
    optim = OptimConfig(
        lr=config.lr or _DEFAULT_LR[config.mode],
        betas=(0.9, 0.999),
        weight_decay=config.weight_decay,
        warmup_steps=int(config.warmup * steps),
        clip=1.0,
        lr_scale=decays,
    )
    return TrainConfig(
        steps=steps, out=run, optim=optim, seed=config.seed, keep=1, workers=config.workers,
        log_every=max(1, stream.per_epoch // 4), eval_every=stream.per_epoch,
        save_every=stream.per_epoch, max_seconds=config.max_seconds,
    )  # fmt: skip


def layer_scales(model: FMViT, decay: float) -> dict[str, float]:
    """Factors on the learning rate by prefix: 1 for the head, `decay` times less a block down."""
    depth = len(model.encoder)
    scales = {f"encoder.{i}.": decay ** (depth - i) for i in range(depth)}
    scales["encoder_embeddings."] = decay ** (depth + 1)
    if model.config.num_register_tokens:
        scales["register_tokens"] = decay ** (depth + 1)
    return scales


def _told(config: FinetuneConfig, data: Splits) -> dict[str, object]:
    return {
        "mode": config.mode,
        "seed": config.seed,
        "train_photos": len(data.train),
        "val_photos": len(data.val),
        "from_scratch": config.from_scratch,
    }
