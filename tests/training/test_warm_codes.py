"""Codes of a map begin in the space of words, with what a regression knows of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_photos import COLOURS, picture
from tiny_shards import write_tokens
from tiny_training import read_recipe

from fourm_lite.data.labellers import NetworkLabeller
from fourm_lite.data.pseudolabel import LabelRun, pseudolabel
from fourm_lite.errors import ConfigError
from fourm_lite.io.hub import resolve
from fourm_lite.photos.records import read_records
from fourm_lite.tokenization.vq.config import TokenizerConfig
from fourm_lite.tokenization.vq.vqvae import VQTokenizer
from fourm_lite.tokenization.words.text import load_text_tokenizer
from fourm_lite.training.initial.build import build_model
from fourm_lite.training.initial.closed_form import start_vectors
from fourm_lite.training.initial.code_tables import code_vectors, space_of_words
from fourm_lite.training.initial.token_statistics import word_vectors

NAMES = sorted(COLOURS)
RECIPE = """
text = "text_mini"
inputs = ["caption", "tok_map"]
outputs = ["tok_vector"]
[model]
dim = 16
num_heads = 2
encoder_depth = 1
decoder_depth = 1
[data]
captions = "{root}/captions.jsonl"
labels = "{root}/labels"
tokens = "{root}/tokens"
[start]
embeddings = "vector"
codes = {{ target = "tok_vector", norms = {{ tok_map = 9.0 }}, penalty = 0.01 }}
[train]
steps = 2
out = "{root}/run"
[[components]]
name = "look"
inputs = {{ tok_map = 1 }}
targets = {{ tok_vector = 1 }}
input_budget = [4, 4]
target_budget = [4, 4]
batch_size = 4
[[modalities]]
name = "caption"
kind = "sequence"
vocab_size = 5120
max_tokens = 16
[[modalities]]
name = "tok_map"
kind = "grid"
vocab_size = 16
grid = [2, 2]
max_tokens = 4
[[modalities]]
name = "tok_vector"
kind = "grid"
vocab_size = 16
grid = [2, 2]
max_tokens = 4
tokenizer = "{root}/tokenizer"
"""


def seen(pictures):
    """A vector of 20 numbers of each picture's mean colour."""
    mean = np.stack([np.asarray(p, dtype=np.float32).mean(axis=(0, 1)) / 255 for p in pictures])
    return np.tanh(mean @ np.random.default_rng(0).normal(size=(3, 20))).astype(np.float32)


@pytest.fixture
def root(tmp_path):
    """40 photos of three colours, named in captions; codes 4 c to 4 c + 3 tell the colour c."""
    rng = np.random.default_rng(0)
    rows, tokens = [], []
    for i in range(40):
        colour = i % len(NAMES)
        picture(NAMES[colour], i).save(tmp_path / f"{i}.png")
        row = {"id": str(i), "file": f"{i}.png", "captions": [NAMES[colour]], "split": "train"}
        rows.append(json.dumps(row) + "\n")
        tokens.append(4 * colour + rng.integers(0, 4, (2, 4)))
    (tmp_path / "captions.jsonl").write_text("".join(rows))
    records = read_records(tmp_path / "captions.jsonl")
    teachers = [NetworkLabeller("vector", seen)]
    pseudolabel(records, teachers, tmp_path / "labels", run=LabelRun(num_crops=2))
    write_tokens(tmp_path / "tokens", "tok_map", [r.id for r in records], np.stack(tokens))
    mlp = "BottleneckMLP/B_1-Wi_32"
    config = TokenizerConfig(
        image_size=1, n_channels=20, enc_type=mlp, dec_type=mlp, patch_proj=False, patch_size=1,
        quant_type="memcodes", codebook_size=16, num_codebooks=4, latent_dim=12,
        mean=(0.5,), scale=2.0,
    )  # fmt: skip
    tokenizer = VQTokenizer(config).eval()
    values = torch.from_numpy(seen([r.open_image() for r in records]))
    noise = 0.1 * torch.randn(400, 20, generator=torch.Generator().manual_seed(0))
    start_vectors(tokenizer, values.repeat(10, 1) + noise, torch.Generator().manual_seed(0))
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path


def recipe_of(root, text=RECIPE):
    return read_recipe(root, text)


def test_the_vectors_of_codes_say_what_their_maps_show(generator):
    tokens = torch.randint(0, 12, (400, 9), generator=generator)
    true = torch.randn(12, 5, generator=generator)

    found = code_vectors(tokens, true[tokens].mean(dim=1), 12, 1e-6)

    # Shares sum to 1, so what all codes have in common is not told apart from the mean.
    centred = found - found.mean(dim=0)
    torch.testing.assert_close(centred, true - true.mean(dim=0), atol=1e-2, rtol=1e-2)


def test_codes_that_a_tokenizer_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="codes of 0 to 3 were expected, these maps hold 0 to 7"):
        code_vectors(torch.tensor([[0, 7]]), torch.zeros(1, 2), 4, 0.1)


def test_the_space_of_words_is_the_map_that_made_their_table(generator):
    captions = torch.randint(0, 30, (600, 4), generator=generator).tolist()
    goals = torch.randn(600, 6, generator=generator)
    linear = torch.randn(6, 8, generator=generator)
    table = word_vectors(captions, goals, 32, 3.0) @ linear + 0.5

    found = space_of_words(table, captions, goals, 3.0)

    torch.testing.assert_close(found, linear, atol=2e-2, rtol=2e-2)
    with pytest.raises(ConfigError, match="8 captions or more"):
        space_of_words(table, captions[:3], goals[:3], 3.0)


def test_a_recipe_begins_codes_near_the_words_for_what_they_show(root):
    model = build_model(recipe_of(root))

    codes = model.encoder_embeddings["tok_map"].token_emb.weight.detach()
    words = model.encoder_embeddings["caption"].token_emb.weight.detach()
    text = load_text_tokenizer(resolve("text_mini"))
    said = torch.stack([words[text.encode(name)].mean(dim=0) for name in NAMES])
    near = F.normalize(codes, dim=1) @ F.normalize(said - said.mean(dim=0), dim=1).T
    assert near[:12].argmax(dim=1).tolist() == [c for c in range(3) for _ in range(4)]
    assert codes[:12].norm(dim=1).mean() == pytest.approx(9.0, rel=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('embeddings = "vector"', "", r"start.codes needs labels .* start.embeddings"),
        ("tok_map = 9.0", "tok_vector = 9.0", "no table of tokens for 'tok_vector'"),
        ("penalty = 0.01", 'source = "trian"', "start.codes: no source 'trian'.*'train'"),
        ('tokens = "{root}/tokens"', "", "start.codes needs data.tokens"),
    ],
)
def test_what_codes_cannot_begin_from_is_refused(root, old, new, told):
    with pytest.raises(ConfigError, match=told):
        build_model(recipe_of(root, RECIPE.replace(old, new)))
