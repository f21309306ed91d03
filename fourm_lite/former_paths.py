"""Modules under the names that they had in 0.1, so that scripts which import them go on.

`import fourm_lite` puts one finder at the end of `sys.meta_path`; it is asked for a name below
`fourm_lite` only where there is no file of that name.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED: dict[tuple[str, str], str] = {
    ("add_embedding", "add_embedding"): "report=figures widen=model_folder",
    ("add_embedding", "training"): "stages=staged",
    ("backbone", "backbone"): "features=embed fitting=load lora=heads",
    ("cli", "cli"): (
        "add_embedding=train calibrate=finetune convert=models demo=models download=models "
        "evaluate_any2any=evaluate evaluate_retrieval=evaluate evaluate_same_class=evaluate "
        "evaluate_steps=evaluate evaluate_tokenizers=evaluate evaluate_zeroshot=evaluate_classes "
        "export=classify index_tools=index info=models mix_photos=prepare plan=generate "
        "progress=output progress_counts=output search_options=options split_features=prepare "
        "spread=finetune tokenize=prepare verbs=app"
    ),
    ("cli", "evaluate"): "classify_words=zero_shot evaluate_photos=photo_classes",
    ("cli", "show"): "generate_items=generated",
    ("data", "data"): (
        "budgets=masking claims=pseudolabel edges=palette label_provenance=pseudolabel "
        "mixtures=photo_mixing teachers=labellers word_ridge=linear"
    ),
    ("data", "modalities"): "augment=crops",
    ("data", "photos"): "records sources=records",
    ("demo", "demo"): (
        "drawings=examples gallery=examples models=examples random_weights=examples "
        "shipped_photos=examples"
    ),
    ("demo", "show"): "page",
    ("embedders", "embedders"): (
        "callables=load images=image_transforms outputs=tower_outputs terramind=terramind_files "
        "timm_models=timm_networks"
    ),
    ("embedders", "evaluate"): "zeroshot=zero_shot",
    ("embedders.mmt", "embedders.mmt"): "config=network regions=batches words=batches",
    ("evaluate", "evaluate"): "tokenizers=tokenizer_report",
    ("evaluation", "metrics"): (
        "bootstrap=measures classification generation knn=classification metrics=measures plots "
        "ranked=measures retrieval=ranking temperature=classification"
    ),
    ("families", ""): "base=families",
    ("growth", "add_embedding"): (
        "card=model_folder checks=options evaluation=figures figures model=model_folder "
        "options output=model_folder photos=extraction register tokenizer tuning "
        "vectors=extraction"
    ),
    ("growth", "training"): "stages=staged",
    ("io", "io"): "infer=ml4m keys=checkpoint metadata=weights_file onnx=onnx_files",
    ("metrics", "metrics"): "cut_lists=measures knn=classification",
    ("modalities", "modalities"): "codec_types=spec",
    ("model", "model"): "joint_targets=likelihood",
    ("model", "training"): "losses",
    ("nn", "embedders"): "class_mean=tower_outputs",
    ("nn", "nn"): (
        "empty=device half=cpu_linear int8=cpu_linear linear=layers norm=layers "
        "packed=cpu_linear rounded=cpu_linear"
    ),
    ("photos", "photos"): "tables=table_rows values=columns",
    ("pipeline", "pipeline"): (
        "collate=readers description=belongings download=belongings names=readers needs=readers "
        "pooled=embedding"
    ),
    ("pipeline", "search"): "placing=encoder_space",
    ("retrieval", "photos"): "items=item sources",
    ("retrieval", "search"): "compose=query feature_items=gallery rerank",
    ("retrieval", "search.calibration"): "calibrate confidence=probability",
    ("retrieval", "search.index"): (
        "ann codes drift exact filters handle hits index ingest manifest pins reader rows storage "
        "vectors=exact"
    ),
    ("retrieval", "show"): "report=page",
    ("sampling", "sampling"): (
        "amounts=logits autoregressive=schemes check=sampler conditioning=target cutoffs=schedule "
        "parallel=schemes"
    ),
    ("search", "evaluate"): (
        "any2any=any_to_any any2any_gallery=any_to_any_sheet evaluate=retrieval "
        "fit_model=fit_search imagenet=photo_classes packs=caption_sets pairs=pair_scores "
        "references same_class=retrieval steps=embedding_steps tokenizer_report "
        "truth=caption_sets zeroshot=zero_shot"
    ),
    ("search", "model"): "sheets=packing",
    ("search", "search"): (
        "base=space centre=whitening learnt=search_file likelihood=likelihood_scores "
        "matching=rerank retrieve_rerank=rerank spread=whitening twin=space "
        "weights=rerank_weights"
    ),
    ("search", "search.calibration"): (
        "answers=answer_features calibrate caption_confidence=captions confidence=captions "
        "confidence_features=answer_features evidence=answer_features"
    ),
    ("serve", "serve"): (
        "batches=service errors=fields limits=fields metrics=guards openapi=pages photos=service "
        "run=server"
    ),
    ("tokenization", "io"): "fetch=hub",
    ("tokenization", "tokenization"): "controlnet_keys=load",
    ("tokenization", "tokenization.vq"): (
        "backbones base=inputs config denoising diffusion distributed=quantize draws=randomness "
        "finite inputs memcodes quantize randomness unet uvit vqvae"
    ),
    ("tokenization", "tokenization.words"): "layout=spans sequences spans text wordpiece",
    ("tokenization", "training"): "losses",
    ("tokenization.words", "io"): "fetch=hub",
    ("training", "finetune"): "classify=task finetune photos=pixels probe",
    ("training", "photos"): "labelled",
    ("training", "training"): (
        "ema=optim feed=processes figures=tasks global_losses=losses joint=joint_encoder "
        "joint_losses=losses joint_space=joint_heads ledger=checkpoints noise=processes "
        "recipe_data=recipes token_jobs=recipes"
    ),
    ("training", "training.initial"): (
        "closed_form first_batches=start warm_convolutions=start warm_heads=start warm_start=start"
    ),
    ("training.initial", "training.initial"): "mobilenet=start read_out=closed_form",
}
"""What a package held and where it is now: module by module, NAME=NEW where its name is another."""

FORMER = {
    f"{package}.{name}": f"{now}.{new or name}".removeprefix(".")
    for (package, now), names in MOVED.items()
    for name, _, new in (word.partition("=") for word in names.split())
}
"""What a module was called, and where what it holds is now; both below `fourm_lite`."""

PACKAGES = frozenset(name.rpartition(".")[0] for name in FORMER)
"""Packages that may be gone; those that are still there are never asked for here."""


class FormerPaths:
    """Finds a module by its former name: the very module of today, with a DeprecationWarning."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As `importlib` asks for it; None for names that never were ours."""
        below = name.removeprefix("fourm_lite.")
        if below == name:
            return None
        if below in FORMER:
            return ModuleSpec(name, _Loader(FORMER[below]))
        return ModuleSpec(name, _Loader(), is_package=True) if below in PACKAGES else None


class _Loader(Loader):
    """Puts the module of today under the former name; an empty package where none is meant."""

    def __init__(self, now: str = "") -> None:
        self.now = now

    def create_module(self, spec: ModuleSpec) -> None:
        """The import system's own."""

    def exec_module(self, module: ModuleType) -> None:
        """Replaces what was made in `sys.modules`, which the import system then takes."""
        if not self.now:
            return
        now = f"fourm_lite.{self.now}"
        text = f"{module.__name__} is {now} now; the former name goes with the next major version"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(now)
