"""Checks of text, sequence formats, masking and input transforms against the original's values.

Everything in a case file is looked at; a section that is not known here fails. Random sections
draw from `ThreeSources`, which reproduces the original's generators.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from caseinfo import CaseInfo
from modality_table import check_ids, check_table
from PIL import Image
from torch import Tensor

from fourm_lite.data.masking import give, mask_grid, mask_sequence, want
from fourm_lite.modalities import codecs
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.spec import Crop, Modality
from fourm_lite.modalities.values import Box, Person, PointQuery, Segment, crop_boxes
from fourm_lite.tokenization.vq.randomness import ThreeSources
from fourm_lite.tokenization.words import instances, metadata
from fourm_lite.tokenization.words import metadata as color_palette
from fourm_lite.tokenization.words.spans import (
    MaskedTokens,
    custom_text,
    empty_text,
    mask_chunk_spans,
    mask_spans,
    merge_spans,
    split_spans,
    wanted_grid,
)
from fourm_lite.tokenization.words.text import TextTokenizer, load_text_tokenizer

TOKENIZER_FILE = "text_tokenizer_4m_wordpiece_30k.json"


def same_ids(got: Any, want: Any, what: str) -> None:
    assert list(got) == list(want), f"{what}: {list(got)} instead of {list(want)}"


def same_positions(got: Tensor, want: list[int], what: str) -> None:
    same_ids(got.nonzero().flatten().tolist(), want, what)


def close(got: Tensor, want: Tensor, what: str, tolerance: float = 1e-4) -> None:
    assert got.shape == want.shape, f"{what}: {list(got.shape)} instead of {list(want.shape)}"
    error = (got - want).abs().max().item() if want.numel() else 0.0
    scale = max(want.abs().max().item(), 1e-3) if want.numel() else 1.0
    assert error <= tolerance * scale, f"{what}: off by {error:.2e} at scale {scale:.2e}"


def same_words(got: str, want: str, what: str) -> None:
    """Equal but for blanks: the original leaves one at the end of each person."""
    assert got.split() == want.split(), f"{what}: {got!r} instead of {want!r}"


# --- text and spans


def check_special(text: TextTokenizer, want: dict[str, Any]) -> None:
    got = {"pad": text.pad, "unk": text.unk, "sos": text.sos, "eos": text.eos}
    assert got == {key: want[key] for key in got}
    assert text.vocab_size == want["vocab_size"]
    assert len(text.sentinels) == want["n_sentinels"]
    assert {k: text.sentinels[int(k)] for k in want["sentinels"]} == want["sentinels"]
    assert {word: text.id_of(word) for word in want["coord"]} == want["coord"]


def check_encode(text: TextTokenizer, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        ids = text.encode(case["text"])
        same_ids(ids, case["ids"], case["text"])
        assert text.decode(ids) == case["decoded"]
        assert text.decode(ids, skip_special_tokens=True) == case["decoded_skip"]


def check_note(text: TextTokenizer, note: str) -> None:
    assert text.decode(text.encode(note)) == note


def check_merging(text: TextTokenizer, cases: list[dict[str, Any]]) -> None:
    sentinels = set(text.sentinels)
    for case in cases:
        same_ids(
            merge_spans(case["input"], case["decoder"], sentinels), case["merged"], "merged spans"
        )
        split = split_spans(case["decoder"], sentinels)
        assert [[key, ids] for key, ids in split.items()] == case["split"]


def check_span_masking(text: TextTokenizer, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        keep = drawn_keep(case, len(case["sequence"]))
        spans = mask_spans(case["sequence"], keep, text.marks)
        same_ids(spans.inputs, case["input"], "span input")
        same_ids(spans.targets, case["target"], "span target")


def check_chunk_span_masking(text: TextTokenizer, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        keep = drawn_keep(case, len(case["chunks"]))
        spans = mask_chunk_spans(case["chunks"], keep, text.marks)
        same_ids(spans.inputs, case["input"], "chunk span input")
        same_ids(spans.targets, case["target"], "chunk span target")


def drawn_keep(case: dict[str, Any], n: int) -> list[bool]:
    drawn = ThreeSources.seeded(case["torch_seed"]).uniforms(n) < case["keep_prob"]
    assert drawn.tolist() == case["keep"]
    return case["keep"]


# --- masks of training


def encoded(text: TextTokenizer, sequence: str | list[str]) -> list[int] | list[list[int]]:
    if isinstance(sequence, str):
        return text.encode(sequence)
    return [text.encode(chunk) for chunk in sequence]


def check_sequence_mask(text: TextTokenizer, section: dict[str, Any]) -> None:
    for case in section["cases"]:
        masked = mask_sequence(
            encoded(text, case["sequence"]),
            max_tokens=case["max_tokens"],
            input_budget=case["input_budget"],
            target_budget=case["target_budget"],
            marks=text.marks,
            source=ThreeSources.seeded(case["seed"]),
            keep=case["keep_scheme"],
        )
        what = f"sequence mask of seed {case['seed']}"
        assert len(masked.value) == case["length"]
        same_ids(masked.value[masked.inputs].tolist(), case["input_ids"], f"{what}, input")
        same_ids(masked.value[masked.targets].tolist(), case["target_ids"], f"{what}, target")
        assert int(masked.groups.sum()) == case["decoder_attention_mask_sum"]
        if masked.targets.any():
            assert int(masked.targets.int().argmax()) == case["target_start"]


def check_image_mask(text: TextTokenizer, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        masked = mask_grid(
            torch.zeros(case["n"]),
            case["n"],
            case["input_budget"],
            case["target_budget"],
            ThreeSources.seeded(case["torch_seed"]),
        )
        same_positions(masked.inputs, case["input_positions"], "image input")
        same_positions(masked.targets, case["target_positions"], "image target")
        same_ids(masked.groups.tolist(), case["decoder_attention_mask"], "image groups")


def check_transfer_mask(text: TextTokenizer, section: dict[str, Any]) -> None:
    limit = section["max_tokens"]
    caption = Modality(name="text", kind="sequence", max_tokens=limit, vocab_size=text.vocab_size)
    n = len(section["target_image"]["tensor"])
    grid = Modality(name="grid", kind="grid", max_tokens=n, grid=(1, n), vocab_size=2)
    ids = text.encode(section["text"])
    image = torch.tensor(section["target_image"]["tensor"])

    same_masked(give(ids, caption, text.marks), section["input_sequence"], "transfer input")
    same_masked(want(ids, caption, text.marks), section["target_sequence"], "transfer target")
    same_masked(want(image, grid, text.marks), section["target_image"], "transfer image")


def same_masked(got: MaskedTokens, want: Mapping[str, list[Any]], what: str) -> None:
    """The original's masks are True where a token is *not* used."""
    same_ids(got.value.tolist(), want["tensor"], f"{what}: ids")
    same_ids((~got.inputs).int().tolist(), want["input_mask"], f"{what}: inputs")
    same_ids((~got.targets).int().tolist(), want["target_mask"], f"{what}: targets")
    if "decoder_attention_mask" in want:
        same_ids(got.groups.tolist(), want["decoder_attention_mask"], f"{what}: groups")


def check_custom_text(text: TextTokenizer, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        got = custom_text(text.encode(case["text"]), case["target_max_len"], text.marks)
        keys = ("tensor", "input_mask", "target_mask", "decoder_attention_mask")
        same_masked(got, {key: case[key][0] for key in keys}, case["text"])


def check_empty_targets(text: TextTokenizer, section: dict[str, Any]) -> None:
    for name, want_ in section.items():
        length = want_["tensor"]["shape"][1]
        is_text = MODALITIES[name].kind == "sequence"
        got = empty_text(length, text.marks) if is_text else wanted_grid(length)
        same_masked(got, {key: value["values"][0] for key, value in want_.items()}, name)


# --- structured sequences


def check_metadata(text: TextTokenizer, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        chunks = metadata.metadata_to_chunks(case["metadata"])
        assert chunks == case["chunks"]
        assert metadata.metadata_to_text(case["metadata"]) == case["string"]
        ids = text.encode(case["string"])
        same_ids(ids, case["ids"], "metadata ids")
        decoded = metadata.text_to_metadata(text.decode(ids), original=True)
        assert decoded.keys() == case["decoded"].keys()
        for name, value in case["decoded"].items():
            assert abs(decoded[name] - value) <= 1e-9 * max(abs(value), 1), name


def check_metadata_types(text: TextTokenizer, want: dict[str, str]) -> None:
    assert {name: f"v1={k}" for k, name in enumerate(metadata.FIELDS)} == want


def check_det(text: TextTokenizer, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        top, left, height, width = case["crop_top_left_h_w"]
        whole = tuple(case["orig_h_w"])
        crop = Crop(top=top, left=left, height=height, width=width, hflip=case["flip"], whole=whole)
        raw = [Box(*i["boxes"], i["class_name"], i["score"]) for i in case["instances"]]
        string = instances.boxes_to_text(crop_boxes(raw, crop))
        same_words(string, case["string"], "boxes")
        same_ids(text.encode(string), case["ids"], "box ids")
        decoded = instances.text_to_boxes(text.decode(case["ids"]))
        assert [box.name for box in decoded] == [row[4] for row in case["decoded_boxes"]]
        got = [[box.xmin, box.ymin, box.xmax, box.ymax] for box in decoded]
        want = [row[:4] for row in case["decoded_boxes"]]
        close(torch.tensor(got), torch.tensor(want), "decoded boxes", 1e-6)


def check_human_poses(text: TextTokenizer, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        person = Person(
            box=tuple(case["bbox"]),
            pose=tuple(case["pose"]),
            rotation=tuple(case["global"]),
            camera=tuple(case["camera"]),
            shape=tuple(case["shape"]),
        )
        string = instances.people_to_text([person], order=case["group_order"])
        same_words(string, case["string"], "human poses")
        same_ids(text.encode(string), case["ids"], "human pose ids")
        (read,) = instances.text_to_people(text.decode(case["ids"]))
        assert read.pose == person.pose


def check_color_palette(text: TextTokenizer, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        flat = case["values"]
        colors = list(zip(flat[0::3], flat[1::3], flat[2::3], strict=True))
        string = color_palette.palette_to_text(colors)
        same_words(string, case["string"], "palette")
        same_ids(text.encode(string), case["ids"], "palette ids")
        assert list(color_palette.text_to_palette(text.decode(case["ids"]))) == colors


def check_sam_instance(text: TextTokenizer, case: dict[str, Any]) -> None:
    queries = [
        PointQuery(x, y, tuple(map(sam_segment, found)))
        for (x, y), found in zip(case["query_points_xy"], case["instances"], strict=True)
    ]
    source = ThreeSources.seeded(case["python_random_seed"])
    string = instances.points_to_text(queries, source=source)
    if all(len(query.segments) <= 1 for query in queries):
        same_words(string, case["string"], "sam instances")
        same_ids(text.encode(string), case["ids"], "sam instance ids")
    # The order of several things at one point is random, so they are compared as a set.
    want_ = instances.text_to_points(case["string"])
    assert [(q.x, q.y, set(q.segments)) for q in want_] == [
        (q.x, q.y, set(q.segments)) for q in queries
    ]
    same_ids(text.encode(case["string"]), case["ids"], "sam instance ids")
    side = round(len(case["grid_points"]) ** 0.5)
    assert [list(point) for point in instances.grid_points(side)] == case["grid_points"]


def sam_segment(instance: dict[str, Any]) -> Segment:
    ymin, xmin, ymax, xmax = instance["bbox_ymin_xmin_ymax_xmax"]
    return Segment((xmin, ymin, xmax, ymax), tuple(instance["tokens"]))


SECTIONS: dict[str, Callable[[TextTokenizer, Any], None]] = {
    "special": check_special,
    "encode": check_encode,
    "note_decode": check_note,
    "merge_span_masking": check_merging,
    "span_masking": check_span_masking,
    "chunk_span_masking": check_chunk_span_masking,
    "sequence_mask": check_sequence_mask,
    "image_mask": check_image_mask,
    "transfer_mask": check_transfer_mask,
    "metadata": check_metadata,
    "metadata_types": check_metadata_types,
    "det": check_det,
    "human_poses": check_human_poses,
    "color_palette": check_color_palette,
    "sam_instance": check_sam_instance,
    "custom_text": check_custom_text,
    "empty_targets": check_empty_targets,
    "modality_ids": lambda _, ids: check_ids(ids),
    "modalities": lambda _, table: check_table(table),
}


def check_sequences(case: CaseInfo) -> None:
    text = load_text_tokenizer(case.golden_root / TOKENIZER_FILE)
    for name, section in case.info.items():
        assert name in SECTIONS, f"nothing checks the section '{name}'"
        SECTIONS[name](text, section)


# --- transforms


def png_of(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def check_transforms(case: CaseInfo) -> None:
    """Every tensor of the case is either an input of one of these or an answer."""
    t, info = case.tensors, case.info
    rgb = png_of(t["rgb_u8"].numpy())
    depth = png_of(t["depth_u16"].numpy().astype(np.uint16))
    inception = codecs.ImageCodec()
    answers = {
        "rgb_imagenet": codecs.ImageCodec(normalization="imagenet").read(rgb),
        "rgb_inception": inception.read(rgb),
        "denormalized": codecs.denormalize(t["rgb_inception"], "inception"),
        "rgb_crop_resize_bilinear": codecs.ImageCodec(resample="bilinear").read(
            rgb, the_crop(info, t["rgb_crop_resize_bilinear"], hflip=info["flip_for_bilinear"])
        ),
        "rgb_crop_resize_default": inception.read(
            rgb, the_crop(info, t["rgb_crop_resize_default"])
        ),
        "depth_std": codecs.DepthCodec().read(depth),
        "depth_plain": codecs.DepthCodec(standardize=False).read(depth),
        "normal": codecs.NormalCodec().read(rgb),
        "normal_flip": codecs.NormalCodec().read(rgb, whole_flipped(t["rgb_u8"])),
        "semseg_labels": codecs.LabelCodec(num_labels=256).read(png_of(t["semseg_u8"].numpy())),
    }
    unchecked = t.keys() - answers.keys() - {"rgb_u8", "depth_u16", "semseg_u8"}
    assert not unchecked, f"nothing checks {sorted(unchecked)}"
    for name, got in answers.items():
        assert got.dtype == t[name].dtype, name
        close(got, t[name], name)


def the_crop(info: dict[str, Any], answer: Tensor, *, hflip: bool = False) -> Crop:
    top, left, height, width = info["crop_top_left_h_w"]
    # The original hands (height, width) to Pillow, which takes (width, height): its answer to a
    # size that is not square is turned. Ours is not, so we ask for the size that came out.
    size = tuple(answer.shape[1:])
    assert sorted(size) == sorted(info["target_size"])
    return Crop(top=top, left=left, height=height, width=width, hflip=hflip, size=size)


def whole_flipped(image: Tensor) -> Crop:
    height, width = image.shape[:2]
    return Crop(top=0, left=0, height=height, width=width, hflip=True)


CHECKS: dict[str, Callable[[CaseInfo], None]] = {
    "sequences": check_sequences,
    "transforms": check_transforms,
}
