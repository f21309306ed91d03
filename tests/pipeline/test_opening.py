"""Opening is cheap: a file's header and config are read once, however many need something of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny_pipeline import save_pipeline

from fourm_lite.backbone.load import load_vit
from fourm_lite.cli.classify import _opened
from fourm_lite.io import checkpoint as checkpoint_module
from fourm_lite.io import weights_file
from fourm_lite.io.checkpoint import read
from fourm_lite.model.load import load_model
from fourm_lite.pipeline.pipeline import FourMPipeline
from fourm_lite.search.spaces import open_space
from fourm_lite.tokenization.load import load_tokenizer

WEIGHTS = "model.safetensors"
MODEL, VECTOR = Path("."), Path("tokenizers/vector_global")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def reads(monkeypatch):
    """How often each file's header or JSON was read."""
    found = Counter()

    def counted(module, name):
        real = getattr(module, name)

        def call(path, *args, **options):
            found[Path(path)] += 1
            return real(path, *args, **options)

        monkeypatch.setattr(module, name, call)

    counted(weights_file, "safe_open")
    counted(checkpoint_module, "read_json_object")
    return found


OPENED = {
    "a model": (load_model, {MODEL}),
    "a tokenizer": (lambda folder: load_tokenizer(folder / VECTOR), {VECTOR}),
    "a ViT": (load_vit, {MODEL}),
    "a ViT for export": (lambda folder: _opened(str(folder)), {MODEL}),
    "a pipeline": (FourMPipeline.from_pretrained, {MODEL}),
    "a space": (open_space, {MODEL, VECTOR}),
    "a space that is named": (lambda folder: open_space(str(folder)), {MODEL, VECTOR}),
    "a query": (lambda f: open_space(f).encode_query([{"caption": "a red circle"}]),
                {MODEL, VECTOR}),
}  # fmt: skip


@pytest.mark.parametrize(("opener", "places"), OPENED.values(), ids=OPENED.keys())
def test_whoever_opens_reads_each_header_and_config_once(folder, reads, opener, places):
    opener(folder)

    assert reads == {
        folder / place / name: 1 for place in places for name in ("config.json", WEIGHTS)
    }


def test_an_open_checkpoint_opens_models_that_share_no_memory(folder):
    checkpoint = read(folder)
    first, second = load_model(checkpoint), load_model(checkpoint)
    before = second.encoder_norm.weight.clone()

    with torch.no_grad():
        first.encoder_norm.weight.fill_(7)

    assert torch.equal(second.encoder_norm.weight, before)


def test_a_pipeline_keeps_what_the_config_says_beyond_the_architecture(folder):
    pipe = FourMPipeline.from_pretrained(folder)

    assert pipe.extra == read(folder).extra
    assert FourMPipeline.from_pretrained(pipe.model).extra == {}
