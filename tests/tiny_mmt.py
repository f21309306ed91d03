"""Tiny folders of MMT-Retrieval with random weights: names and layout of the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

WIDTH, HIDDEN, DEPTH, FEATURES, WORDS = 24, 32, 2, 2048, 40
VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "cat", "on", "grass", "house",
    "runs", "two", "##s",
]  # fmt: skip


def bert(width: int, hidden: int, depth: int) -> dict[str, Any]:
    """Shapes by the names of BERT; a number is the width of a norm."""
    layer = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "attention.output.LayerNorm": width,
        "intermediate.dense": (hidden, width),
        "output.dense": (width, hidden),
        "output.LayerNorm": width,
    }
    return {
        "embeddings.word_embeddings.weight": (WORDS, width),
        "embeddings.position_embeddings.weight": (32, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm": width,
        **{f"encoder.layer.{i}.{n}": shape for i in range(depth) for n, shape in layer.items()},
        "pooler.dense": (width, width),
    }


def networks(
    width: int = WIDTH, hidden: int = HIDDEN, depth: int = DEPTH, features: int = FEATURES
) -> dict[str, dict[str, Any]]:
    """Shapes by the published names of each family."""
    layer = {
        "attentions.{}.q_lin": (width, width),
        "attentions.{}.k_lin": (width, width),
        "attentions.{}.v_lin": (width, width),
        "attentions.{}.out_lin": (width, width),
        "layer_norm1.{}": width,
        "ffns.{}.lin1": (hidden, width),
        "ffns.{}.lin2": (width, hidden),
        "layer_norm2.{}": width,
        "encoder_attn.{}.q_lin": (width, width),
    }
    words = bert(width, hidden, depth)
    return {
        "OSCAR": {**words, "img_embedding": (width, features + 6)},
        "UNITER": {
            **words,
            "img_embeddings.img_linear": (width, features),
            "img_embeddings.img_layer_norm": width,
            "img_embeddings.pos_linear": (width, 7),
            "img_embeddings.pos_layer_norm": width,
            "img_embeddings.mask_embedding.weight": (2, features),
            "img_embeddings.LayerNorm": width,
        },
        "M3P": {
            "embeddings.weight": (WORDS, width),
            "position_embeddings.weight": (64, width),
            "layer_norm_emb": width,
            "image_embeddings.image_embeddings": (width, features),
            "image_embeddings.image_location_embeddings": (width, 5),
            "image_embeddings.LayerNorm": width,
            **{n.format(i): shape for i in range(depth) for n, shape in layer.items()},
            "pooled_layer.dense": (width, width),
            "seq_relationship": (1, width),
        },
    }


NETWORKS = networks()
FILES = {
    "OSCAR": "pytorch_model.bin",
    "UNITER": "pytorch_model.bin",
    "M3P": "m3p_under_weights.pth",
}


def network_weights(name: str, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    """Random weights under the published names; `sizes` as `networks` takes them."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for key, shape in networks(**sizes)[name].items():
        if isinstance(shape, int):
            found[f"{key}.weight"] = 1 + 0.1 * torch.randn(shape, generator=generator)
            found[f"{key}.bias"] = 0.1 * torch.randn(shape, generator=generator)
        elif key.endswith(".weight"):
            found[key] = torch.randn(shape, generator=generator)
        else:
            found[f"{key}.weight"] = torch.randn(shape, generator=generator) / shape[1] ** 0.5
            found[f"{key}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    return found


def save_mmt(
    folder: Path, name: str = "OSCAR", *, head: str | None = "mlp", pooling: str | None = "mean"
) -> Path:
    """A folder as MultimodalTransformer.save writes it."""
    weights = network_weights(name)
    nested = {"model": weights} if name == "M3P" else weights
    modules = [("0_" + name, name)]
    config = {"num_attention_heads": 4, "layer_norm_eps": 1e-12, "hidden_size": WIDTH}
    write(
        folder / f"0_{name}" / "sentence_bert_config.json", max_seq_length=12, max_image_seq_len=6
    )
    torch.save(nested, folder / f"0_{name}" / FILES[name])
    if name == "OSCAR":
        write(folder / "0_OSCAR" / "config.json", **config)
    if name == "M3P":
        sentencepieces(folder / "0_M3P" / "tokenizer.json")
    else:
        (folder / f"0_{name}" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    if head is not None:
        modules.append(("1_ClassificationHead", "ClassificationHead"))
        write(
            folder / "1_ClassificationHead" / "sentence_bert_config.json",
            num_labels=2, input_dim=WIDTH, classifier_type=head, scaling_factor=2, dropout=0.1,
            input_key="pooled_cls_token_embeddings",
        )  # fmt: skip
        torch.save(head_weights(head), folder / "1_ClassificationHead" / "class_head.pt")
    if pooling is not None:
        modules.append((f"{len(modules)}_Pooling", "Pooling"))
        stated = {f"pooling_mode_{p}_tokens": p == pooling for p in ("mean", "max")}
        write(folder / modules[-1][0] / "config.json", **stated, pooling_mode_cls_token=False)
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"mmt_retrieval.model.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def head_weights(kind: str) -> dict[str, Tensor]:
    """A matching head of two labels."""
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "linear": {"classifier": (2, WIDTH)},
        "mlp": {"classifier.0": (2 * WIDTH, WIDTH), "classifier.2": (2, 2 * WIDTH)},
    }[kind]
    found = {}
    for key, (rows, columns) in shapes.items():
        found[f"{key}.weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        found[f"{key}.bias"] = torch.zeros(rows)
    return found


def write(path: Path, **values: Any) -> None:
    """A JSON file with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def sentencepieces(path: Path) -> None:
    """A tokenizer.json with M3P's special tokens."""
    import tokenizers

    words = ["<s>", "<pad>", "</s>", "<unk>", *VOCABULARY[5:-1]]
    table = {word: i for i, word in enumerate(words)}
    found = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
    found.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    found.save(str(path))


def regions(seed: int, count: int, features: int = FEATURES) -> dict[str, Any]:
    """A picture in the words of MMT-Retrieval's dictionary."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)
    scale = np.array([400, 300, 400, 300])
    return {
        "features": np.abs(rng.normal(size=(count, features))).astype(np.float32),
        "boxes": (corners * scale).astype(np.float32),
        "num_boxes": count,
        "img_w": 400,
        "img_h": 300,
    }


def save_regions(folder: Path, counts: dict[str, int]) -> Path:
    """A folder of .npz, as bottom-up-attention.pytorch names things."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (key, count) in enumerate(counts.items()):
        item = regions(seed, count)
        np.savez(
            folder / f"{key}.npz", x=item["features"], bbox=item["boxes"], num_bbox=count,
            image_h=300, image_w=400,
        )  # fmt: skip
    return folder
