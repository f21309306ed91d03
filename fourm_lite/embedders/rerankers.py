"""Cross-encoders that judge whether a text and a picture belong together: BLIP ITM, ViLT, `mmt:`.

Retrieve fast with twin vectors, rerank slowly with these: one pass a pair. A score is a
probability for BLIP (its matching head has two classes) and a logit for ViLT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fourm_lite.embedders.base import Vectors
from fourm_lite.embedders.hf import (
    find_file,
    load_model,
    load_tokenizer,
    read_preprocess,
)
from fourm_lite.embedders.image_configs import Preprocess, by_size
from fourm_lite.embedders.pairs import PairReranker
from fourm_lite.embedders.text_inputs import tokenize
from fourm_lite.errors import ConfigError
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.nn.device import usable_device

Kind = Literal["blip", "vilt"]
# model_type -> the auto class and how its output becomes one score a pair
CLASSES: dict[str, str] = {
    "blip": "BlipForImageTextRetrieval",
    "vilt": "ViltForImageAndTextRetrieval",
}
SCORES: dict[str, Callable[[Any], Tensor]] = {
    "blip": lambda output: output.itm_score.softmax(dim=1)[:, 1],
    "vilt": lambda output: output.logits[:, 0],
}


class MatchingReranker(PairReranker):
    """BLIP's matching head or ViLT; made by `load_reranker`."""

    def __init__(self, name: str, kind: str, model: Any, tokenizer: Any, prepare: Preprocess):
        super().__init__(name)
        self.kind = kind
        self._model = model
        self._tokenizer = tokenizer
        self._prepare = prepare

    def probabilities(
        self, texts: str | Sequence[str], images: Any, batch_size: int = 16
    ) -> Vectors:
        """The probability that each pair matches, float32[K]; BLIP's score is one."""
        if self.kind == "blip":
            return self.score(texts, images, batch_size)
        return super().probabilities(texts, images, batch_size)

    def _batches(self, pairs: list[Any], batch_size: int) -> Iterator[tuple[list[int], Any]]:
        for start in range(0, len(pairs), batch_size):
            some = pairs[start : start + batch_size]
            # Pictures of one input size together: padding would let neighbours change a score.
            for places, inputs in by_size(self._prepare, [picture for _, picture in some]):
                yield [start + p for p in places], ([some[p][0] for p in places], inputs)

    @torch.inference_mode()
    def _forward(self, some: tuple[list[str], dict[str, Tensor]]) -> Tensor:
        texts, pixels = some
        inputs = tokenize(self._model, self._tokenizer, texts, self._model.forward)
        inputs |= {name: value.to(self._model.device) for name, value in pixels.items()}
        # ViLT draws the order of its patches from the global generator; it is given back unchanged.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return SCORES[self.kind](self._model(**inputs))


def load_reranker(
    source: str, *, device: str = "cpu", preprocess: Preprocess | None = None, **options: Any
) -> PairReranker:
    """A matching cross-encoder from a transformers folder or Hub id, or `mmt:FOLDER`.

    An "hf:" in front is allowed. `options` are those of `mmt.reranker.load_joint_reranker`; they
    may follow a question mark too: `mmt:FOLDER?features=STORE`.

    Raises:
        ConfigError: the model is no matching cross-encoder that is known here, or lacks files
        CheckpointError: no safetensors weights
    """
    device = str(usable_device(device))
    if source.startswith("mmt:"):
        return _joint(source, {"device": device, **options})
    if options:
        raise ConfigError(f"{sorted(options)}: for mmt:FOLDER; '{source}' reads photos")
    source = source.removeprefix("hf:")
    source = str(Path(source).expanduser()) if source.startswith("~") else source
    path = find_file(source, "config.json")
    if path is None:
        raise ConfigError(
            f"expected a transformers folder or Hub id of a matching cross-encoder, '{source}' has "
            "no config.json; give one of BLIP ITM or ViLT, such as hf:Salesforce/blip-itm-base-coco"
        )
    kind = read_json_object(path).get("model_type")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ConfigError(
            f"expected a matching cross-encoder, one of {sorted(CLASSES)}, got '{kind}' in "
            f"'{source}'"
        )
    tokenizer, prepare = load_tokenizer(source), preprocess or read_preprocess(source)
    if tokenizer is None or prepare is None:
        raise ConfigError(f"'{source}' lacks its tokenizer or its preprocessor_config.json")
    model, _ = load_model(CLASSES[kind], source, device=device)
    return MatchingReranker(f"hf:{source}", kind, model, tokenizer, prepare)


def _joint(spec: str, options: dict[str, Any]) -> PairReranker:
    from fourm_lite.embedders.load import call_loader, parse_spec
    from fourm_lite.embedders.mmt.reranker import load_joint_reranker

    family, source, written = parse_spec(spec)
    found: PairReranker = call_loader(family, load_joint_reranker, source, written | options)
    return found
