"""What holds for joint encoders and MobileCLIP of any size and seed, without a reference.

An item alone is the item beside others; boxes have no order where a family gives them no positions;
a converted network is the same network.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_mmt import VOCABULARY, network_weights, regions, sentencepieces
from tiny_mobileclip import mobileclip_weights, words
from tiny_pipeline import photo

from fourm_lite.embedders.conversion import convert
from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.rerankers import load_reranker

# seed, width, heads, hidden, depth, width of a region's features
SIZES = (
    (1, 12, 1, 20, 1, 16), (2, 40, 5, 64, 3, 33), (3, 36, 12, 24, 2, 2048), (4, 64, 16, 16, 1, 7)
)  # fmt: skip
TEXTS = ["a red dog", "", "two cats on grass on a house on two dogs red", "a"]
COUNTS = (3, 1, 9, 5)
FILES = {"OSCAR": "oscar.bin", "UNITER": "uniter-base.pt", "M3P": "m3p_under_weights.pth"}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(params=SIZES, ids=lambda sizes: f"seed{sizes[0]}")
def sizes(request):
    return request.param


@pytest.fixture(params=FILES)
def source(request, sizes, tmp_path):
    """A file of each family with a matching head, and what opens it."""
    name, (seed, width, heads, hidden, depth, features) = request.param, sizes
    shapes = {"width": width, "hidden": hidden, "depth": depth, "features": features}
    weights = network_weights(name, seed, **shapes)
    if name == "OSCAR":
        generator = torch.Generator().manual_seed(seed)
        weights["classifier.weight"] = torch.randn(2, width, generator=generator)
        weights["classifier.bias"] = torch.zeros(2)
        weights = {k if k.startswith("classifier") else f"bert.{k}": v for k, v in weights.items()}
    if name == "UNITER":
        weights["itm_output.weight"] = torch.ones(2, width) * torch.tensor([[0.1], [0.3]])
        weights["itm_output.bias"] = torch.zeros(2)
    torch.save({"model": weights} if name == "M3P" else weights, tmp_path / FILES[name])
    if name == "M3P":
        sentencepieces(tmp_path / "tokenizer.json")
    else:
        (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return f"mmt:{tmp_path / FILES[name]}?heads={heads}"


def pictures(features):
    return [regions(seed, count, features) for seed, count in enumerate(COUNTS)]


def test_items_pairs_and_their_batches_give_one_number(source, sizes):
    twin = load_embedder(f"{source}&pooling=mean")
    items = pictures(sizes[-1])

    for embed, values in ((twin.embed_image, items), (twin.embed_text, TEXTS)):
        together = embed(values, normalize=False)
        alone = np.concatenate([embed([value], normalize=False) for value in values])
        np.testing.assert_allclose(together, alone, **CLOSE)
        np.testing.assert_allclose(embed(values[::-1], normalize=False)[::-1], together, **CLOSE)
    both = twin.embed_pairs(TEXTS, items, normalize=False)
    some = [
        twin.embed_pairs([t], [i], normalize=False)[0] for t, i in zip(TEXTS, items, strict=True)
    ]
    np.testing.assert_allclose(both, some, **CLOSE)
    cross = load_reranker(source)
    pairs = [(text, item) for text in TEXTS for item in items]
    scores = cross.score([t for t, _ in pairs], [i for _, i in pairs], 5)
    np.testing.assert_allclose(scores, [cross.score(t, i)[0] for t, i in pairs], **CLOSE)


def test_regions_have_an_order_only_where_they_have_positions(source, sizes):
    twin = load_embedder(f"{source}&pooling=mean")
    item = pictures(sizes[-1])[2]
    turned = item | {n: item[n][::-1].copy() for n in ("features", "boxes")}

    one, other = twin.embed_image([item, turned])

    assert np.allclose(one, other, atol=1e-5) == ("m3p" not in source)


def test_a_converted_network_is_the_same(source, sizes, tmp_path):
    if sizes[2] != 12:
        pytest.skip("a file alone does not say its heads, and published ones of this width have 12")
    before = load_embedder(f"{source}&pooling=mean")
    convert(source.removeprefix("mmt:").partition("?")[0], tmp_path / "OURS")
    after = load_embedder(f"mmt:{tmp_path / 'OURS'}?pooling=mean")

    items = pictures(sizes[-1])
    assert np.array_equal(before.embed_image(items), after.embed_image(items))
    assert np.array_equal(before.embed_text(TEXTS), after.embed_text(TEXTS))


@pytest.mark.parametrize(
    ("seed", "out", "width", "context", "layers"),
    [(1, 8, 32, 64, 1), (2, 20, 64, 128, 2), (3, 5, 96, 32, 3)],
)
def test_mobileclip_of_any_size_gives_an_item_its_own_vector(
    tmp_path, seed, out, width, context, layers
):
    weights = mobileclip_weights(seed, out=out, width=width, words=context, layers=layers)
    torch.save(weights, tmp_path / "mobileclip_tiny.pt")
    convert(tmp_path / "mobileclip_tiny.pt", tmp_path / "OURS")
    photos = [photo(1), photo(2, (300, 210)), photo(3, (64, 500))]
    texts = ["a dog", "two cats", "a"]

    network, folded = (
        load_embedder(f"mobileclip:{tmp_path / name}", tokenizer=words)
        for name in ("mobileclip_tiny.pt", "OURS")
    )

    for embed, values in ((network.embed_image, photos), (network.embed_text, texts)):
        together = embed(values, normalize=False)
        assert together.shape == (3, out)
        alone = np.concatenate([embed([value], normalize=False) for value in values])
        np.testing.assert_allclose(together, alone, **CLOSE)
    np.testing.assert_allclose(folded.embed_image(photos), network.embed_image(photos), atol=1e-6)
    np.testing.assert_allclose(folded.embed_text(texts), network.embed_text(texts), atol=1e-6)
