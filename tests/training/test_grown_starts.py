"""A model goes on from one of other modalities; foreign vectors begin as the words they go with."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_training import MODALITIES, tiny_fourm
from torch import nn

from fourm_lite.errors import ConfigError
from fourm_lite.modalities.spec import IN, Modality
from fourm_lite.model.config import FourMConfig
from fourm_lite.model.fourm import FourM
from fourm_lite.training.initial.build import go_on_from
from fourm_lite.training.initial.start import start_features
from fourm_lite.training.tasks import label_of

OTHER = Modality(name="other", kind="grid", vocab_size=11, grid=(3, 3), max_tokens=9)
VECTOR = Modality(name="vector", kind="features", channels=5, max_tokens=1, directions=IN)


def other_model():
    entries = (MODALITIES["pix"], MODALITIES["words"], OTHER, VECTOR)
    config = FourMConfig(
        inputs=entries, outputs=entries[1:3], dim=16, num_heads=2, encoder_depth=2, decoder_depth=1
    )
    return FourM(config).init_weights()


def test_new_modalities_begin_as_another_or_drawn_and_the_rest_is_taken_over(tmp_path):
    old, model = tiny_fourm(), other_model()
    old.save(tmp_path / "old")
    drawn = model.state_dict()["encoder_embeddings.vector.emb_proj.weight"].clone()

    go_on_from(model, tmp_path / "old", {"other": "map", "vector": ""}, new=False)

    theirs, own = old.state_dict(), model.state_dict()
    for name, value in own.items():
        if ".vector." not in name:
            torch.testing.assert_close(value, theirs[name.replace(".other.", ".map.")])
    assert torch.equal(own["encoder_embeddings.vector.emb_proj.weight"], drawn)


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({}, "does not fit the recipe"),
        ({"other": "map"}, "'encoder_embeddings.vector"),
        ({"other": "words", "vector": ""}, "does not fit the recipe"),
        ({"othre": "map"}, "Did you mean 'other'"),
    ],
)
def test_modalities_that_nothing_is_said_of_are_no_start(tmp_path, tables, told):
    tiny_fourm().save(tmp_path / "old")

    with pytest.raises(ConfigError, match=told):
        go_on_from(other_model(), tmp_path / "old", tables, new=False)


def test_a_foreign_vector_begins_as_the_words_that_it_goes_with(generator):
    table, linear = nn.Embedding(12, 8), nn.Linear(6, 8)
    signs = torch.randn(12, 6, generator=generator)
    captions = [[torch.randperm(12, generator=generator)[:3].tolist()] for _ in range(400)]
    vectors = torch.stack([signs[said[0]].mean(dim=0) for said in captions])

    with torch.no_grad():
        table.weight.copy_(signs @ torch.randn(6, 8, generator=generator))
        start_features(linear, vectors, captions, table, penalty=1e-6)
        found = linear(vectors)

    goals = torch.stack([table.weight[said[0]].mean(dim=0) for said in captions])
    assert F.cosine_similarity(found, goals).min() > 0.99
    usual = float(table.weight.detach().norm(dim=1).mean())
    assert found.norm(dim=1).mean() == pytest.approx(usual, 1e-3)


def test_tokens_are_named_for_what_their_tokenizer_learnt():
    named = {"x": "x", "runs/work/x/final": "x", "tokenizers/x/weights": "x"}

    for tokenizer, label in named.items():
        entry = Modality(name="tok", kind="grid", vocab_size=4, grid=(1, 1), max_tokens=1,
                         tokenizer=tokenizer)  # fmt: skip
        assert label_of(entry) == label
