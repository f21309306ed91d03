"""The table of verbs. A row names a function; its module is imported when the verb is used."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """Where a verb's function is, as "package.module:function", and one line of help.

    `kept` is what a verb that is stopped before its end leaves; "" for whole files alone.
    """

    place: str
    help: str
    kept: str = ""


_SHARDS = "finished shards are kept, and the same command goes on behind them"
_CHECKPOINTS = "the last checkpoint is kept, and the same command goes on from it with --resume"


VERBS: dict[str, Verb] = {
    "info": Verb("fourm_lite.cli.info:info", "Show what a checkpoint is and what it can do."),
    "download": Verb(
        "fourm_lite.cli.download:download", "Fetch a model with its tokenizers, once."
    ),
    "demo": Verb("fourm_lite.cli.demo:demo", "Show everything on one page."),
    "generate": Verb(
        "fourm_lite.cli.generate:generate",
        "Generate any modalities from any others.",
        "finished items are kept, and the same command goes on behind them if it has --items",
    ),
    "index": Verb(
        "fourm_lite.cli.index:index",
        "Index photos, to search them.",
        "photos that were committed are kept, and the same command goes on behind them",
    ),
    "search": Verb("fourm_lite.cli.search:search", "Search by words, pictures, any modality."),
    "index-info": Verb("fourm_lite.cli.index_tools:index_info", "Show what an index is."),
    "index-check": Verb(
        "fourm_lite.cli.index_tools:index_check", "Measure the recall of approximate search."
    ),
    "index-compact": Verb(
        "fourm_lite.cli.index_tools:index_compact", "Join small files, drop old versions."
    ),
    "index-calibrate": Verb(
        "fourm_lite.cli.index_tools:index_calibrate", "Learn how sure an answer is."
    ),
    "evaluate retrieval": Verb(
        "fourm_lite.cli.evaluate_retrieval:retrieval", "Captions to photos and back."
    ),
    "evaluate same-class": Verb(
        "fourm_lite.cli.evaluate_same_class:same_class", "Photos of one class: mAP (GPR1200)."
    ),
    "evaluate zeroshot": Verb(
        "fourm_lite.cli.evaluate_zeroshot:zeroshot", "Classes in words: accuracy."
    ),
    "evaluate steps": Verb(
        "fourm_lite.cli.evaluate_steps:steps", "Quality of search against decoding steps."
    ),
    "evaluate any2any": Verb(
        "fourm_lite.cli.evaluate_any2any:any2any", "Every target from every source."
    ),
    "evaluate tokenizers": Verb(
        "fourm_lite.cli.evaluate_tokenizers:tokenizers", "What tokens keep of values."
    ),
    "mix-photos": Verb(
        "fourm_lite.cli.mix_photos:mix_photos", "Mix photos, for a teacher to label."
    ),
    "pseudolabel": Verb(
        "fourm_lite.cli.pseudolabel:pseudolabel", "Label photos by teachers and formulas.", _SHARDS
    ),
    "tokenize": Verb(
        "fourm_lite.cli.tokenize:tokenize", "Turn labels and photos into tokens.", _SHARDS
    ),
    "spread": Verb("fourm_lite.cli.spread:spread", "Learn how a model's queries are spread."),
    "calibrate": Verb(
        "fourm_lite.cli.calibrate:calibrate", "Fit how a model reranks and how sure it is."
    ),
    "train": Verb("fourm_lite.cli.train:train", "Train what a recipe describes.", _CHECKPOINTS),
    "add-embedding": Verb(
        "fourm_lite.cli.add_embedding:add_embedding",
        "Make a modality of any embedding network.",
        "finished stages and the last checkpoint are kept, and the same command goes on",
    ),
    "finetune": Verb(
        "fourm_lite.cli.finetune:finetune", "Make a classifier from labelled photos.", _CHECKPOINTS
    ),
    "export": Verb("fourm_lite.cli.export:export", "Export a ViT: ONNX, int8 and others."),
    "convert": Verb("fourm_lite.cli.convert:convert", "Turn a .pth file into safetensors."),
    "split-features": Verb(
        "fourm_lite.cli.split_features:split_features", "Cut a file of region features by item."
    ),
    "classify": Verb("fourm_lite.cli.classify:classify", "Show the most probable classes."),
    "evaluate knn": Verb(
        "fourm_lite.cli.evaluate_photos:knn", "Frozen features: nearest neighbours."
    ),
    "evaluate probe": Verb(
        "fourm_lite.cli.evaluate_photos:probe", "Frozen features: a linear map."
    ),
    "evaluate fewshot": Verb(
        "fourm_lite.cli.evaluate_photos:fewshot", "Frozen features: a few photos a class."
    ),
    "plan": Verb("fourm_lite.cli.plan:plan", "Show what a plan of generation does."),
}
"""Verb to function, in the order of the help. Two words make a group: "evaluate retrieval"."""

TOOLS = {"info", "check", "compact", "calibrate"}
"""Second words of the verb "index" that name a tool: `index check` is `index-check`."""

GROUPS: dict[str, str] = {"evaluate": "Measure a model on data."}
"""One line of help for the first word of such verbs."""
