"""A tiny sentence encoder, a tiny image encoder, and photos whose captions name their colours."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import SMALL, save_timm

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
WORDS = ["a", "photo", "of", *COLOURS, "crimson", "thing"]


def save_sentences(folder):
    """A BERT of random weights with its tokenizer, in a folder of sentence-transformers."""
    transformers = pytest.importorskip("transformers")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = transformers.BertTokenizer(vocab={w: i for i, w in enumerate([*marks, *WORDS])})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = transformers.BertConfig(**SMALL, vocab_size=32, max_position_embeddings=32)
        model = transformers.BertModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def save_image_encoder(folder):
    """A small convolutional network of timm."""
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = timm.create_model("resnet10t", num_classes=0).eval()
    save_timm(model, "resnet10t", {}, 32, folder)
    return folder


def save_photos(folder, *, each=6):
    """Photos in three colours; two captions each, one of which names the colour."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(each * len(COLOURS)):
        name = list(COLOURS)[number % len(COLOURS)]
        noise = np.random.default_rng(number).integers(-25, 26, (32, 32, 3))
        pixels = (np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        split = "val" if number >= (each - 1) * len(COLOURS) else "train"
        captions = [f"a photo of a {name} thing", f"{name} thing"]
        rows.append({"id": str(number), "file": f"images/{number}.png", "captions": captions,
                     "split": split})  # fmt: skip
    path = folder / "captions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
