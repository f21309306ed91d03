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

FORMER = {
    "add_embedding.stages": "training.staged",
    "backbone.features": "backbone.embed",
    "backbone.fitting": "backbone.load",
    "cli.add_embedding": "cli.train",
    "cli.calibrate": "cli.finetune",
    "cli.classify_words": "evaluate.zero_shot",
    "cli.convert": "cli.models",
    "cli.demo": "cli.models",
    "cli.download": "cli.models",
    "cli.evaluate_any2any": "cli.evaluate",
    "cli.evaluate_photos": "evaluate.photo_classes",
    "cli.evaluate_retrieval": "cli.evaluate",
    "cli.evaluate_same_class": "cli.evaluate",
    "cli.evaluate_steps": "cli.evaluate",
    "cli.evaluate_tokenizers": "cli.evaluate",
    "cli.evaluate_zeroshot": "cli.evaluate_classes",
    "cli.export": "cli.classify",
    "cli.generate_items": "show.generated",
    "cli.index_tools": "cli.index",
    "cli.info": "cli.models",
    "cli.mix_photos": "cli.prepare",
    "cli.plan": "cli.generate",
    "cli.progress": "cli.output",
    "cli.progress_counts": "cli.output",
    "cli.search_options": "cli.options",
    "cli.split_features": "cli.prepare",
    "cli.spread": "cli.finetune",
    "cli.tokenize": "cli.prepare",
    "cli.verbs": "cli.app",
    "data.augment": "modalities.crops",
    "data.budgets": "data.masking",
    "data.claims": "data.pseudolabel",
    "data.edges": "data.palette",
    "data.label_provenance": "data.pseudolabel",
    "data.mixtures": "data.photo_mixing",
    "data.records": "photos.records",
    "data.sources": "photos.records",
    "data.teachers": "data.labellers",
    "data.word_ridge": "data.linear",
    "demo.drawings": "demo.shipped_photos",
    "demo.gallery": "demo.shipped_photos",
    "demo.page": "show.page",
    "demo.random_weights": "demo.models",
    "embedders.callables": "embedders.load",
    "embedders.images": "embedders.image_transforms",
    "embedders.outputs": "embedders.tower_outputs",
    "embedders.timm_models": "embedders.timm_networks",
    "embedders.zeroshot": "evaluate.zero_shot",
    "evaluate.tokenizers": "evaluate.tokenizer_report",
    "evaluation.bootstrap": "metrics.measures",
    "evaluation.classification": "metrics.classification",
    "evaluation.generation": "metrics.generation",
    "evaluation.knn": "metrics.classification",
    "evaluation.metrics": "metrics.measures",
    "evaluation.plots": "metrics.plots",
    "evaluation.ranked": "metrics.measures",
    "evaluation.retrieval": "metrics.ranking",
    "evaluation.temperature": "metrics.classification",
    "growth.card": "add_embedding.model_folder",
    "growth.checks": "add_embedding.options",
    "growth.evaluation": "add_embedding.report",
    "growth.figures": "add_embedding.report",
    "growth.model": "add_embedding.widen",
    "growth.options": "add_embedding.options",
    "growth.output": "add_embedding.model_folder",
    "growth.photos": "add_embedding.extraction",
    "growth.register": "add_embedding.register",
    "growth.stages": "training.staged",
    "growth.tokenizer": "add_embedding.tokenizer",
    "growth.tuning": "add_embedding.tuning",
    "growth.vectors": "add_embedding.extraction",
    "io.infer": "io.ml4m",
    "io.keys": "io.checkpoint",
    "io.metadata": "io.weights_file",
    "io.onnx": "io.onnx_files",
    "metrics.cut_lists": "metrics.measures",
    "metrics.knn": "metrics.classification",
    "modalities.codec_types": "modalities.spec",
    "model.joint_targets": "model.likelihood",
    "model.losses": "training.losses",
    "nn.empty": "nn.device",
    "nn.half": "nn.cpu_linear",
    "nn.int8": "nn.cpu_linear",
    "nn.linear": "nn.layers",
    "nn.norm": "nn.layers",
    "nn.packed": "nn.cpu_linear",
    "nn.rounded": "nn.cpu_linear",
    "photos.tables": "photos.table_rows",
    "photos.values": "photos.columns",
    "pipeline.collate": "pipeline.readers",
    "pipeline.names": "pipeline.readers",
    "pipeline.needs": "pipeline.readers",
    "retrieval.ann": "search.index.ann",
    "retrieval.calibrate": "search.calibrate",
    "retrieval.codes": "search.index.codes",
    "retrieval.compose": "search.query",
    "retrieval.confidence": "search.index.hits",
    "retrieval.drift": "search.index.drift",
    "retrieval.exact": "search.index.exact",
    "retrieval.feature_items": "search.gallery",
    "retrieval.filters": "search.index.filters",
    "retrieval.handle": "search.index.handle",
    "retrieval.hits": "search.index.hits",
    "retrieval.index": "search.index.index",
    "retrieval.ingest": "search.index.ingest",
    "retrieval.items": "photos.item",
    "retrieval.manifest": "search.index.manifest",
    "retrieval.pins": "search.index.pins",
    "retrieval.reader": "search.index.reader",
    "retrieval.report": "show.page",
    "retrieval.rerank": "search.rerank",
    "retrieval.rows": "search.index.rows",
    "retrieval.sources": "photos.sources",
    "retrieval.storage": "search.index.storage",
    "retrieval.vectors": "search.index.exact",
    "sampling.amounts": "sampling.logits",
    "sampling.autoregressive": "sampling.schemes",
    "sampling.check": "sampling.sampler",
    "sampling.conditioning": "sampling.target",
    "sampling.cutoffs": "sampling.schedule",
    "sampling.parallel": "sampling.schemes",
    "search.answers": "search.confidence_features",
    "search.any2any": "evaluate.any_to_any",
    "search.any2any_gallery": "evaluate.any_to_any_sheet",
    "search.base": "search.space",
    "search.centre": "search.whitening",
    "search.confidence": "search.caption_confidence",
    "search.evaluate": "evaluate.retrieval",
    "search.evidence": "search.confidence_features",
    "search.fit_model": "evaluate.fit_search",
    "search.imagenet": "evaluate.photo_classes",
    "search.learnt": "search.search_file",
    "search.likelihood": "search.likelihood_scores",
    "search.matching": "search.rerank",
    "search.packs": "evaluate.caption_sets",
    "search.pairs": "evaluate.pair_scores",
    "search.references": "evaluate.references",
    "search.retrieve_rerank": "search.rerank",
    "search.same_class": "evaluate.retrieval",
    "search.sheets": "model.packing",
    "search.spread": "search.whitening",
    "search.steps": "evaluate.embedding_steps",
    "search.tokenizer_report": "evaluate.tokenizer_report",
    "search.truth": "evaluate.caption_sets",
    "search.twin": "search.space",
    "search.weights": "search.rerank_weights",
    "search.zeroshot": "evaluate.zero_shot",
    "tokenization.backbones": "tokenization.vq.backbones",
    "tokenization.base": "tokenization.vq.inputs",
    "tokenization.config": "tokenization.vq.config",
    "tokenization.controlnet_keys": "tokenization.load",
    "tokenization.denoising": "tokenization.vq.denoising",
    "tokenization.diffusion": "tokenization.vq.diffusion",
    "tokenization.distributed": "tokenization.vq.quantize",
    "tokenization.draws": "tokenization.vq.randomness",
    "tokenization.fetch": "tokenization.words.fetch",
    "tokenization.finite": "tokenization.vq.finite",
    "tokenization.inputs": "tokenization.vq.inputs",
    "tokenization.layout": "tokenization.words.spans",
    "tokenization.losses": "training.losses",
    "tokenization.memcodes": "tokenization.vq.memcodes",
    "tokenization.quantize": "tokenization.vq.quantize",
    "tokenization.randomness": "tokenization.vq.randomness",
    "tokenization.sequences": "tokenization.words.sequences",
    "tokenization.spans": "tokenization.words.spans",
    "tokenization.text": "tokenization.words.text",
    "tokenization.unet": "tokenization.vq.unet",
    "tokenization.uvit": "tokenization.vq.uvit",
    "tokenization.vqvae": "tokenization.vq.vqvae",
    "tokenization.wordpiece": "tokenization.words.wordpiece",
    "training.calibrate": "training.initial.token_statistics",
    "training.classify": "finetune.task",
    "training.closed_form": "training.initial.closed_form",
    "training.ema": "training.optim",
    "training.feed": "training.processes",
    "training.figures": "training.tasks",
    "training.finetune": "finetune.finetune",
    "training.first_batches": "training.initial.start",
    "training.global_losses": "training.losses",
    "training.joint": "training.joint_encoder",
    "training.joint_losses": "training.losses",
    "training.labelled": "photos.labelled",
    "training.ledger": "training.checkpoints",
    "training.noise": "training.processes",
    "training.photos": "finetune.pixels",
    "training.probe": "finetune.probe",
    "training.recipe_data": "training.recipes",
    "training.token_jobs": "training.recipes",
    "training.warm_codes": "training.initial.code_tables",
    "training.warm_convolutions": "training.initial.mobilenet",
    "training.warm_global": "training.initial.global_tokens",
    "training.warm_heads": "training.initial.start",
    "training.warm_start": "training.initial.start",
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
