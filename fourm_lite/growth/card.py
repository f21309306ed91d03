"""The card of a grown model: data, steps, figures, terms, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEANING = {
    "cosine": "cosine of raw and tokenized vectors",
    "cosine_centred": "the same, the mean of the training photos taken off",
    "codes_used": "share of the codes that training photos use",
    "perplexity": "perplexity of their use, mean over the code books",
    "neighbours_kept": "share of the 10 nearest photos that both agree on",
    "nearest_R@1": "nearest other photo found first in the tokenized gallery (raw: 1)",
    "nearest_R@10": "nearest other photo among the first 10 (raw: 1)",
    "own_photo_R@1": "a raw vector finds its own tokenized one first",
}


def card(report: Mapping[str, Any]) -> str:
    """Markdown of a report; the licence stands in its head, where the library looks for it."""
    modality, photos = report["modality"], report["photos"]
    licence = report["licence"] or "not stated"
    lines = [
        "---",
        f"license: {licence}",
        "---",
        f"# {report['model']} with {modality['name']}",
        "",
        f"`{modality['name']}`: {modality['tokens']} codes of {modality['codebook_size']} for the "
        f"{modality['width']}-wide vectors of {report['embedder']['name']}.",
        "",
        *_facts(report, photos, licence),
        "",
        "## What the tokenizer loses",
        "",
        f"On {photos['held_out']} held-out photos:",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {MEANING.get(k, k)} | {v} |" for k, v in report["tokenizer"].items()),
        "",
        *_model_lines(report),
        "## Use",
        "",
        "```python",
        "from fourm_lite import FourMPipeline",
        "",
        'pipe = FourMPipeline.from_pretrained("THIS FOLDER")',
        f'vectors = pipe.embed({{"rgb": "photo.jpg"}}, target="{modality["name"]}")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _facts(report: Mapping[str, Any], photos: Mapping[str, Any], licence: str) -> list[str]:
    tuning, trained = report["tuning"], report["train"]
    kept = "the old weights are unchanged" if trained == "tables" else "all weights were trained"
    return [
        f"- **Data.** {photos['train']} photos to learn from ({photos['captions']} captions), "
        f"{photos['held_out']} held out, {photos['skipped']} left out, from "
        f"{', '.join(photos['sources'])}.",
        f"- **Tokenizer.** Product quantizer without gradients, then {report['shape']['steps']} "
        f"steps of the decoder (kept: {report['shape']['decoder']}); seed {report['seed']}.",
        f"- **Model.** Grown from {report['model']}; {tuning['steps']} steps, "
        f"{tuning['samples']} samples, {tuning['seconds']} seconds, train={trained}: {kept}. "
        f"Learned: {', '.join(tuning['components'])}.",
        f"- **Terms.** {licence}. The terms of the photos, of the embedding network and of the "
        "model that was grown all hold for these weights.",
    ]


def _model_lines(report: Mapping[str, Any]) -> list[str]:
    found = report["retrieval"]
    lines: list[str] = []
    if "caption" in found:
        lines += [
            "## From a caption to the vector",
            "",
            f"{found['queries']} captions among {found['photos']} held-out photos; the gallery "
            "holds the network's own vectors (raw) or what the tokenizer leaves of them. Ridge is "
            "a regression from words, trained on the same photos.",
            "",
            "| queries, gallery | R@1 | R@5 | R@10 | median rank |",
            "| --- | --- | --- | --- | --- |",
            *(
                f"| {name} | {100 * row['R@1']:.1f} | {100 * row['R@5']:.1f} | "
                f"{100 * row['R@10']:.1f} | {row['median_rank']:.0f} |"
                for name, row in found["caption"].items()
            ),
            "",
        ]
    if "pixels" in found:
        seen = found["pixels"]
        lines += [
            f"From pixels ({seen['photos']} held-out photos): centred cosine "
            f"{seen['cosine_centred']}; the tokenizer itself allows "
            f"{seen['cosine_centred_of_tokenizer']}.",
            "",
        ]
    return lines
