"""OSCAR, UNITER and M3P: BERT over words and the regions of a picture, told apart by values.

The three are one network (`embedders/mmt/network.py`). They differ in what a region's geometry is,
how a region is embedded, which of both comes first, and what has positions.

Source: MMT-Retrieval (Geigle et al. 2021); OSCAR (Li et al. 2020), UNITER (Chen et al. 2019),
M3P (Ni et al. 2020)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fourm_lite.families import Family

Geometry = Literal["x1", "y1", "x2", "y2", "w", "h", "area"]


@dataclass(frozen=True, kw_only=True)
class JointFamily(Family):
    """A family of joint encoders of words and regions.

    Args:
        geometry: numbers that tell where a region lies, in parts of the picture's size
        joined: a weight that the file keeps for features and geometry side by side, if it does
        region_norms: which LayerNorms a region passes: of its features, of its geometry, of the sum
        region_type: the token type of regions; None: they have none
        has_types: whether words have token types
        regions_first: whether regions stand before the words
        positions: "words": words alone have positions; "sequence": all, in their order, and one
            LayerNorm is over all
        first, last: the tokens around a sentence
        cut_last: whether a sentence that is too long loses `last` too
        pairs: whether a sentence may be a pair with token types 0 and 1
        lower_case: what the vocabulary is for where no file says it
        tokenizer: the published tokenizer, where the family's files have none
        max_words, max_regions: lengths where no file says them
        heads: matching heads of the family's own files, the most wanted first, and what they read
    """

    geometry: tuple[Geometry, ...]
    joined: str | None = None
    region_norms: tuple[Literal["features", "geometry", "sum"], ...] = ()
    region_type: int | None = None
    has_types: bool = True
    regions_first: bool = False
    positions: Literal["words", "sequence"] = "words"
    first: str = "[CLS]"
    last: str = "[SEP]"
    cut_last: bool = False
    pairs: bool = False
    lower_case: bool = False
    tokenizer: str | None = None
    max_words: int = 128
    max_regions: int = 50
    heads: tuple[str, ...] = field(default=("classifier",))


_BERT = {
    r"\.gamma$": ".weight",
    r"\.beta$": ".bias",
    r"^embeddings\.word_embeddings\.": "words.",
    r"^embeddings\.position_embeddings\.": "positions.",
    r"^embeddings\.token_type_embeddings\.": "types.",
    r"^embeddings\.LayerNorm\.": "norm.",
    r"^encoder\.layer\.(\d+)\.attention\.self\.": r"blocks.\1.",
    r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.": r"blocks.\1.proj.",
    r"^encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.": r"blocks.\1.norm1.",
    r"^encoder\.layer\.(\d+)\.intermediate\.dense\.": r"blocks.\1.fc1.",
    r"^encoder\.layer\.(\d+)\.output\.dense\.": r"blocks.\1.fc2.",
    r"^encoder\.layer\.(\d+)\.output\.LayerNorm\.": r"blocks.\1.norm2.",
    r"^pooler\.dense\.": "pooler.",
    r"^classifier\.": "heads.classifier.",
}

OSCAR = JointFamily(
    name="oscar",
    title="OSCAR",
    door="mmt",
    marks=("embeddings.word_embeddings.", "img_embedding."),
    prefixes=("module.", "bert."),
    rename={
        **_BERT,
        r"^img_embedding\.": "regions.joined.",
        r"^LayerNorm\.": "regions.norms.sum.",  # VinVL
    },
    # cls.* are the heads of pre-training
    unused=(r"embeddings\.position_ids$", r"cls\."),
    geometry=("x1", "y1", "x2", "y2", "w", "h"),
    joined="regions.joined",
    pairs=True,
    lower_case=True,
)

UNITER = JointFamily(
    name="uniter",
    title="UNITER",
    door="mmt",
    marks=("embeddings.word_embeddings.", "img_embeddings.img_linear."),
    prefixes=("module.", "bert.", "uniter."),
    rename={
        r"^img_embeddings\.img_linear\.": "regions.features.",
        r"^img_embeddings\.img_layer_norm\.": "regions.norms.features.",
        r"^img_embeddings\.pos_linear\.": "regions.geometry.",
        r"^img_embeddings\.pos_layer_norm\.": "regions.norms.geometry.",
        r"^img_embeddings\.LayerNorm\.": "regions.norms.sum.",
        **_BERT,
        r"^itm_output\.": "heads.itm.",
        r"^rank_output\.": "heads.rank.",
    },
    unused=(
        r"embeddings\.position_ids$",
        r"img_embeddings\.mask_embedding\.",
        r"(cls|feat_regress|region_classifier)\.",  # heads of pre-training
    ),
    geometry=("x1", "y1", "x2", "y2", "w", "h", "area"),
    region_norms=("features", "geometry", "sum"),
    region_type=1,
    tokenizer="bert-base-cased",
    max_words=510,
    max_regions=100,
    heads=("classifier", "rank", "itm"),
)

M3P = JointFamily(
    name="m3p",
    title="M3P",
    door="mmt",
    marks=("embeddings.weight", "image_embeddings.image_embeddings."),
    prefixes=("module.",),
    rename={
        r"^embeddings\.": "words.",
        r"^position_embeddings\.": "positions.",
        r"^layer_norm_emb\.": "norm.",
        r"^image_embeddings\.image_embeddings\.": "regions.features.",
        r"^image_embeddings\.image_location_embeddings\.": "regions.geometry.",
        r"^image_embeddings\.LayerNorm\.": "regions.norms.sum.",
        r"^attentions\.(\d+)\.q_lin\.": r"blocks.\1.query.",
        r"^attentions\.(\d+)\.k_lin\.": r"blocks.\1.key.",
        r"^attentions\.(\d+)\.v_lin\.": r"blocks.\1.value.",
        r"^attentions\.(\d+)\.out_lin\.": r"blocks.\1.proj.",
        r"^layer_norm(\d)\.(\d+)\.": r"blocks.\2.norm\1.",
        r"^ffns\.(\d+)\.lin(\d)\.": r"blocks.\1.fc\2.",
        r"^pooled_layer\.dense\.": "pooler.",
        r"^seq_relationship\.": "heads.seq_relationship.",
        r"^classifier\.": "heads.classifier.",
    },
    unused=(
        r"(refine_embeddings|cross_alignment|encoder_attn|layer_norm15|mrfr_dense)\.",
        r"(transformer_obj|pred_layer|lang_embeddings|cluster_predictions)\.",
        r"image_embeddings\.image_distbution_embeddings\.",
        r"position_ids$",
    ),
    geometry=("x1", "y1", "x2", "y2", "area"),
    region_norms=("sum",),
    has_types=False,
    regions_first=True,
    positions="sequence",
    first="<s>",
    last="</s>",
    cut_last=True,
    tokenizer="xlm-roberta-base",
    heads=("classifier", "seq_relationship"),
)

JOINT_FAMILIES: dict[str, JointFamily] = {f.name: f for f in (OSCAR, UNITER, M3P)}
