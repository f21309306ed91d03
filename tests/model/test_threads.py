"""What a query waits for: passes over few tokens run on one thread, larger ones on all."""

import pytest
import torch
from tiny import tiny_batch, tiny_model

from fourm_lite.embedders.base import NetworkEmbedder, Towers
from fourm_lite.sampling.plan import Plan
from fourm_lite.sampling.sampler import Sampler
from fourm_lite.sampling.target import Target


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def watched(module, seen):
    return module.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))


@pytest.mark.parametrize(("size", "count"), [(1, 1), (32, 2)])
def test_a_generation_takes_threads_by_its_tokens(size, count):
    model, seen = tiny_model(), []
    for block in (*model.encoder, *model.decoder):
        watched(block, seen)
    batch = tiny_batch(["caption"], size).with_({})

    Sampler(model).run(batch, Plan.of(Target("tok_depth@16", steps=1)))

    assert set(seen) == {count}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("texts", "count"), [(["a dog"], 1), (["a dog"] * 8, 2)])
def test_a_text_tower_takes_threads_by_its_texts(texts, count):
    seen = []

    def tower(some):
        seen.append(torch.get_num_threads())
        return torch.eye(len(some), 8) + 1

    NetworkEmbedder("toy", Towers(text=tower), identity=lambda: "x", dim=8).embed_text(texts)

    assert seen == [count]
