"""`sentence:FOLDER`: sentence encoders, one vector a text, of sentence-transformers' folders.

A folder holds tokenizer.json and the network, as model.onnx (run by onnxruntime: int8 weights stay
int8) or as a transformers model in safetensors. The vector is the mean of the last states, or the
first of them where 1_Pooling/config.json says so, of unit length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm_lite.embedders.base import NetworkEmbedder, Towers, fingerprint_module
from fourm_lite.errors import CheckpointError, ConfigError, foreign_errors
from fourm_lite.io.hub import resolve
from fourm_lite.io.onnx_files import open_session
from fourm_lite.io.strict_json import read_json_object
from fourm_lite.reading.regular import read_bytes

ONNX, TOKENIZER, POOLING = "model.onnx", "tokenizer.json", "1_Pooling/config.json"
LONGEST = 256
"""Tokens of a text that are read, as sentence-transformers does for this family."""
Inputs = Mapping[str, Any]
States = Callable[[Inputs], Tensor]


def load_sentences(source: str, *, device: str = "cpu") -> NetworkEmbedder:
    """An embedder of texts from the folder of a sentence encoder.

    Raises:
        CheckpointError: the folder holds no network or no tokenizer, or one cannot be read
        ConfigError: its pooling is none that is known here
    """
    folder = resolve(source)
    words = _tokenizer(folder)
    first = _takes_first(folder)
    states, identity = _onnx(folder / ONNX) if (folder / ONNX).is_file() else _torch(folder, device)

    def embed(texts: list[str]) -> Tensor:
        inputs = _inputs(words, texts)
        rows = states(inputs)
        kept = torch.from_numpy(inputs["attention_mask"])[..., None].to(rows)
        pooled = rows[:, 0] if first else (rows * kept).sum(1) / kept.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(pooled, dim=-1)

    return NetworkEmbedder(
        f"sentence:{source}",
        Towers(text=embed),
        identity=identity,
        facts={"pooling": "first" if first else "mean", "tokens": _digest(folder / TOKENIZER)},
        label="sentence",
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    if not path.is_file():
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise CheckpointError(
            f"the folder of a sentence encoder holds {TOKENIZER} and {ONNX} or model.safetensors, "
            f"'{folder}' holds {found}"
        )
    with foreign_errors(CheckpointError, f"'{path}' is no tokenizer: {{error}}"):
        words = Tokenizer.from_str(read_bytes(path).decode("utf-8"))
    words.no_padding()
    words.enable_truncation(LONGEST)
    return words


def _takes_first(folder: Path) -> bool:
    """Whether the vector is the first state, and not the mean of all."""
    path = folder / POOLING
    if not path.is_file():
        return False
    told = read_json_object(path)
    modes = [key for key, value in told.items() if key.startswith("pooling_mode") and value is True]
    if modes == ["pooling_mode_cls_token"]:
        return True
    if modes not in ([], ["pooling_mode_mean_tokens"]):
        raise ConfigError(f"'{path}' asks for {modes}; known are the mean and the first token")
    return False


def _inputs(words: Any, texts: list[str]) -> dict[str, Any]:
    """Ids and masks int64[B, L], padded to the longest text."""
    rows = [encoding.ids for encoding in words.encode_batch(texts)]
    ids = np.zeros((len(rows), max(1, *map(len, rows), 1)), np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def _onnx(path: Path) -> tuple[States, Callable[[], str]]:
    session = open_session(path, threads=torch.get_num_threads(), fold=False)
    names = {entry.name for entry in session.get_inputs()}

    def states(inputs: Inputs) -> Tensor:
        given = {name: value for name, value in inputs.items() if name in names}
        found = session.run(None, given)[0]
        if found.ndim != 3:
            raise CheckpointError(f"'{path}' gives {list(found.shape)}, expected states [B, L, E]")
        return torch.from_numpy(found)

    return states, lambda: _digest(path)


def _torch(folder: Path, device: str) -> tuple[States, Callable[[], str]]:
    from fourm_lite.embedders.hf import load_model

    model, _ = load_model("AutoModel", str(folder), device=device)

    def states(inputs: Inputs) -> Tensor:
        given = {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}
        return model(**given).last_hidden_state.float()

    return states, lambda: fingerprint_module(model)
