"""A model with one modality more, and its folder, which opens with nothing else named.

Its old weights are as they were, the new modality has new tables. Old tensors are written in their
own type, so that they stay those of the source. Tokenizers that ship with fourm_lite and hub ids
stay references; all others are copied beside the weights.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fourm_lite.errors import CheckpointError, ConfigError
from fourm_lite.io.checkpoint import Checkpoint, write
from fourm_lite.io.files import storage_errors, write_whole
from fourm_lite.io.hub import assets
from fourm_lite.io.layout import SPREAD
from fourm_lite.modalities.spec import Modality
from fourm_lite.model.fourm import FourM
from fourm_lite.model.load import stored_name
from fourm_lite.names import check_name
from fourm_lite.pipeline.tokenizers import Tokenizers
from fourm_lite.search.search_file import FILE as LEARNT
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.text import TextTokenizer

SIDES = ("encoder_embeddings", "decoder_embeddings")


def new_modality(name: str, tokens: int, codebook_size: int, title: str) -> Modality:
    """The entry of a global embedding of so many codes."""
    side = round(tokens**0.5)
    grid = (side, side) if side * side == tokens else (1, tokens)
    return Modality(
        name=name,
        kind="grid",
        vocab_size=codebook_size,
        grid=grid,
        max_tokens=tokens,
        pos_embed="learned",
        tokenizer=name,
        title=title or f"{name} embedding",
    )


def is_new(parameter: str, name: str) -> bool:
    """Whether a tensor belongs to the tables of a modality."""
    return any(parameter.startswith(f"{side}.{name}.") for side in SIDES)


def grow(model: FourM, entry: Modality, *, seed: int = 0) -> FourM:
    """The model with `entry` as a further input and target; all old weights are copied.

    The new tables begin at the scale of the old ones; positions begin as those of another global
    embedding with as many tokens, if the model has one.

    Raises:
        ConfigError: the model has a modality of that name
    """
    if entry.name in model.config.modalities:
        raise ConfigError(f"the model already has '{entry.name}'; choose another name")
    config = replace(
        model.config,
        inputs=(*model.config.inputs, entry),
        outputs=(*model.config.outputs, entry),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = FourM(config).init_weights()
    missing, extra = grown.load_state_dict(model.state_dict(), strict=False)
    lone = [name for name in missing if not is_new(name, entry.name)]
    if lone or extra:
        raise CheckpointError(f"the grown model does not fit the old one: {[*lone, *extra][:5]}")
    grown.tie()
    _start_tables(grown, entry)
    return grown.eval()


@torch.no_grad()
def _start_tables(model: FourM, entry: Modality) -> None:
    twin = _twin(model, entry)
    for side in SIDES:
        tables = getattr(model, side)
        new, old = tables[entry.name], [tables[n] for n in tables if n != entry.name]
        for part in ("mod_emb", "pos_emb"):
            if twin is not None:
                getattr(new, part).copy_(getattr(tables[twin], part))
            else:
                _match(getattr(new, part), [getattr(t, part) for t in old])
        grids = [t for t in old if hasattr(t, "token_emb")]
        _match(new.token_emb.weight, [t.token_emb.weight for t in grids])


def _twin(model: FourM, entry: Modality) -> str | None:
    """A global embedding of the model with as many tokens, read and predicted."""
    inputs = {m.name for m in model.config.inputs}
    for other in model.config.outputs:
        alike = (other.kind, other.pos_embed, other.max_tokens) == (
            "grid",
            "learned",
            entry.max_tokens,
        )
        if alike and other.name != entry.name and other.name in inputs:
            return other.name
    return None


def _match(table: Tensor, others: Sequence[Tensor]) -> None:
    """Scales a random table to the usual size of others."""
    sizes = [float(o.float().square().mean().sqrt()) for o in others]
    sizes = sorted(size for size in sizes if size > 0)
    if sizes:
        table.mul_(sizes[len(sizes) // 2] / table.square().mean().sqrt().clamp(min=1e-12))


FOLDER = "tokenizers"
KEPT = ("*.json", "*.safetensors", "README*", "LICENSE*", "card.md")
"""What of a tokenizer's folder is copied."""


def write_model(
    model: FourM,
    name: str,
    source: Checkpoint,
    out: Path,
    extra: Mapping[str, Any],
    *,
    frozen: bool,
) -> None:
    """Writes config and weights; with `frozen` the old tensors are the source's own.

    Raises:
        CheckpointError: the folder cannot be written
    """
    stored = {key: stored_name(key, source) for key in model.state_dict() if not is_new(key, name)}
    old = source.load(set(stored.values()))
    usual = _usual_type(old)
    weights: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if key not in stored:
            weights[key] = value.to(usual).clone()
        elif frozen:
            weights[key] = old[stored[key]].clone()
        else:
            weights[key] = value.to(old[stored[key]].dtype).clone()
    config = {**model.config.to_dict(), "extra": dict(extra)}
    write(out, config, weights)


def keep_learnt(source: Path | None, out: Path) -> None:
    """Copies what is kept beside a model about searches: spread, reranking, confidence."""
    for name in (SPREAD, LEARNT):
        if source is not None and (source / name).is_file():
            write_whole(out / name, (source / name).read_bytes())


def _usual_type(tensors: Mapping[str, Tensor]) -> torch.dtype:
    sizes: Counter[torch.dtype] = Counter()
    for value in tensors.values():
        sizes[value.dtype] += value.numel()
    return sizes.most_common(1)[0][0]


def tokenizer_references(
    tokenizers: Tokenizers, source: Checkpoint, name: str, out: Path
) -> dict[str, str]:
    """Where the new model finds each tokenizer; what lies in a folder of the user's is copied."""
    extra = source.extra
    named = extra.get("tokenizers", {})
    named = dict(named) if isinstance(named, Mapping) else {}
    found = {}
    for key, place in tokenizers.sources.items():
        found[key] = _reference(key, place, named.get(key), out)
    found[name] = f"{FOLDER}/{name}"
    return found


def _reference(key: str, place: Any, named: str | None, out: Path) -> str:
    beside = out / FOLDER / check_name(key, "a tokenizer")
    relative = f"{FOLDER}/{key}"
    if isinstance(place, VQTokenizer):
        place.save(beside)
        return relative
    if isinstance(place, TextTokenizer):
        beside.mkdir(parents=True, exist_ok=True)
        place.save(beside / "tokenizer.json")
        return relative
    path = Path(place).expanduser()
    if not path.exists():
        return str(place)  # a hub id, or the original's text tokenizer: "4m"
    inside = path.resolve()
    shelf = assets().resolve()
    if named is not None and inside.is_relative_to(shelf) and (shelf / named).exists():
        return named  # it resolves from anywhere
    _copy(path, beside)
    return relative


def _copy(path: Path, target: Path) -> None:
    with storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for file, name in _files_of(path).items():
            shutil.copyfile(file, target / name)


def _files_of(path: Path) -> dict[Path, str]:
    """The files of a tokenizer, with the names that they have in a folder of their own."""
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.is_file()]
        return {f: f.name for f in files if any(fnmatch(f.name, form) for form in KEPT)}
    names = {".json": "tokenizer.json", ".safetensors": "model.safetensors"}
    if path.suffix not in names:
        raise ConfigError(f"{path} is no tokenizer: expected a folder, .json or .safetensors")
    found, config = {path: names[path.suffix]}, path.parent / "config.json"
    if path.suffix == ".safetensors" and config.is_file():
        found[config] = config.name
    return found


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


CARD = """\
---
license: {{ licence }}
---
# {{ model }} with {{ modality.name }}

`{{ modality.name }}`: {{ modality.tokens }} codes of {{ modality.codebook_size }} for the \
{{ modality.width }}-wide vectors of {{ embedder.name }}.

- **Data.** {{ photos.train }} photos to learn from ({{ photos.captions }} captions), \
{{ photos.held_out }} held out, {{ photos.skipped }} left out, from {{ photos.sources|join(", ") }}.
- **Tokenizer.** Product quantizer without gradients, then {{ shape.steps }} steps of the decoder \
(kept: {{ shape.decoder }}); seed {{ seed }}.
- **Model.** Grown from {{ model }}; {{ tuning.steps }} steps, {{ tuning.samples }} samples, \
{{ tuning.seconds }} seconds, train={{ train }}: \
{{ "the old weights are unchanged" if train == "tables" else "all weights were trained" }}. \
Learned: {{ tuning.components|join(", ") }}.
- **Terms.** {{ licence }}. The terms of the photos, of the embedding network and of the \
model that was grown all hold for these weights.

## What the tokenizer loses

On {{ photos.held_out }} held-out photos:

| | |
| --- | --- |
{% for name, value in tokenizer.items() -%}
| {{ meaning.get(name, name) }} | {{ value }} |
{% endfor %}
{% if retrieval.caption -%}
## From a caption to the vector

{{ retrieval.queries }} captions among {{ retrieval.photos }} held-out photos; the gallery holds \
the network's own vectors (raw) or what the tokenizer leaves of them. Ridge is a regression from \
words, trained on the same photos.

| queries, gallery | R@1 | R@5 | R@10 | median rank |
| --- | --- | --- | --- | --- |
{% for name, row in retrieval.caption.items() -%}
| {{ name }} {% for k in ("R@1", "R@5", "R@10") %}| {{ "%.1f"|format(100 * row[k]) }} {% endfor -%}
| {{ "%.0f"|format(row.median_rank) }} |
{% endfor %}
{% endif -%}
{% if retrieval.pixels -%}
From pixels ({{ retrieval.pixels.photos }} held-out photos): centred cosine \
{{ retrieval.pixels.cosine_centred }}; the tokenizer itself allows \
{{ retrieval.pixels.cosine_centred_of_tokenizer }}.

{% endif -%}
## Use

```python
from fourm_lite import FourMPipeline

pipe = FourMPipeline.from_pretrained("THIS FOLDER")
vectors = pipe.embed({"rgb": "photo.jpg"}, target="{{ modality.name }}")
```
"""


def card(report: Mapping[str, Any]) -> str:
    """Markdown of a report; the licence stands in its head, where the library looks for it."""
    from jinja2 import Environment

    page = Environment(keep_trailing_newline=True).from_string(CARD)
    return page.render({**report, "licence": report["licence"] or "not stated"}, meaning=MEANING)
