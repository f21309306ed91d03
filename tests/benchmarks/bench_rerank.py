"""Time of log p(words | photo) a pair, packed and with a row a pair. Run by hand:

OMP_NUM_THREADS=1 python -m pytest -m bench -s tests/benchmarks/bench_rerank.py
"""

import json
import time

import numpy as np
import pytest
import torch

from fourm_lite.demo.examples import drawings
from fourm_lite.model.likelihood import sequence_logits
from fourm_lite.search.likelihood_scores import Likelihood
from fourm_lite.search.spaces import open_space

pytestmark = pytest.mark.bench

PHOTOS, TEXTS, DEPTH, CHUNK = 80, 200, 20, 128


@pytest.fixture(scope="module")
def likelihood():
    return Likelihood.of(open_space("mini"))


def a_row_a_pair(likelihood, texts, candidates, pairs):
    """The plain way: every pair reads its candidate anew; texts of alike length together."""
    out = np.empty(len(pairs), np.float32)
    order = np.argsort([len(texts[t]) for t in pairs[:, 0]], kind="stable")
    for start in range(0, len(order), CHUNK):
        some = order[start : start + CHUNK]
        chosen = [texts[t] for t in pairs[some, 0]]
        ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        context = candidates.context.select(torch.from_numpy(pairs[some, 1]))
        model = likelihood.space.pipe.model
        logits = sequence_logits(model, likelihood.text, ids[:, :-1], context)
        log_p = logits.log_softmax(dim=-1).gather(2, ids[:, 1:, None])[..., 0]
        count = torch.tensor([len(text) - 1 for text in chosen])
        there = torch.arange(log_p.shape[1])[None] < count[:, None]
        out[some] = ((log_p * there).sum(dim=1) / count).numpy()
    return out


@pytest.mark.parametrize("given", ["codes", "pixels", "both"])
def test_texts_that_share_rows_are_not_slower(likelihood, given):
    rng = np.random.default_rng(0)
    photos = [drawing.picture for drawing in drawings(PHOTOS)]
    target = likelihood.space.target
    codes = rng.integers(0, target.vocab_size, (PHOTOS, target.max_tokens))
    words = ["a dog runs", "two children play in the green grass", "a man on a red bicycle jumps"]
    items = [{"caption": " and ".join(rng.choice(words, 1 + i % 3))} for i in range(TEXTS)]
    texts = [t for item in items for t in likelihood.texts(likelihood.space.pipe.read([item]))]
    pairs = np.array([(t, c) for t in range(TEXTS) for c in rng.permutation(PHOTOS)[:DEPTH]])
    ready = likelihood.candidates(codes, lambda part: photos[part], given=given)

    start = time.process_time()
    packed = likelihood.text_scores(texts, ready, pairs)
    middle = time.process_time()
    with torch.inference_mode():
        plain = a_row_a_pair(likelihood, texts, ready, pairs)
    end = time.process_time()

    each = 1000 / len(pairs)
    figures = {"packed_ms": (middle - start) * each, "row_a_pair_ms": (end - middle) * each}
    print(json.dumps({"bench": f"say {given}", "pairs": len(pairs), **figures}), flush=True)
    assert np.allclose(packed, plain, atol=1e-4)
    assert middle - start < 1.3 * (end - middle)
