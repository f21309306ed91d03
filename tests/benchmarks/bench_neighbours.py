"""Speed at published sizes, on random weights, beside what the neighbours' users run. By hand:

OMP_NUM_THREADS=2 python -m pytest -m bench -s tests/benchmarks/bench_neighbours.py

Pairs are compared with one pair at a time padded to the full lengths, MobileCLIP-S0's image tower
with open_clip's (where that is installed). TerraTorch's release needs another Python: for its own
figure run this file's picture through TerraMindViT in an environment of its own.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fourm_lite.backbone.config import ViTConfig
from fourm_lite.backbone.merged import MergedViT
from fourm_lite.backbone.vit import FMViT
from fourm_lite.embedders.features import Features
from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.mmt.config import JointConfig, Sizes
from fourm_lite.embedders.mmt.load import Joint
from fourm_lite.embedders.mmt.network import JointBatch, JointEncoder
from fourm_lite.embedders.mmt.regions import RegionReader, join_batch
from fourm_lite.embedders.mmt.reranker import JointReranker
from fourm_lite.embedders.mmt.words import Words
from fourm_lite.families.masked import TERRAMIND
from fourm_lite.modalities.forks import TERRAMIND_MODALITIES
from fourm_lite.model.config import PRESETS, FourMConfig

pytestmark = pytest.mark.bench

PAIRS, WORDS, REGIONS, REPEATS = 100, 70, 50, 3
MOBILECLIP = Path(__file__).parents[3] / "shared" / "golden" / "mmt"


def best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def told(**facts: object) -> None:
    print(json.dumps({"threads": torch.get_num_threads(), **facts}), flush=True)


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def oscar_base() -> Joint:
    import tokenizers

    words = {w: i for i, w in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog"))}
    model = tokenizers.models.WordLevel(words, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    config = JointConfig(
        family="oscar", num_heads=12, max_words=WORDS, max_regions=REGIONS,
        head_inputs={"classifier": "pooled"},
    )  # fmt: skip
    sizes = Sizes(30522, 512, 2, 768, 3072, 12, 2048)
    heads = {"classifier": torch.nn.Linear(768, 2)}
    network = JointEncoder(config, sizes, heads).eval()
    family = config.layout
    reader = RegionReader(family.geometry, 2048, REGIONS)
    return Joint(network, Words(tokenizer, family, WORDS), reader)


def padded(batch: JointBatch) -> JointBatch:
    """One pair at the full lengths."""

    def fill(x: torch.Tensor, length: int) -> torch.Tensor:
        widths = (0, 0) * (x.ndim - 2) + (0, length - x.shape[1])
        return torch.nn.functional.pad(x, widths)

    lengths = dict.fromkeys(("ids", "types", "words"), WORDS + 2)
    lengths |= dict.fromkeys(("features", "geometry", "regions"), REGIONS)
    return JointBatch(**{name: fill(getattr(batch, name), n) for name, n in lengths.items()})


def test_a_query_and_a_hundred_candidates():
    joint, rng = oscar_base(), np.random.default_rng(0)
    cross = JointReranker("oscar-base", joint)
    items = []
    for _ in range(PAIRS):
        count = int(rng.integers(10, REGIONS + 1))
        boxes = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)
        features = rng.normal(size=(count, 2048)).astype(np.float32)
        items.append(Features(features, boxes.astype(np.float32), (1, 1)))
    text = "dog " * 11

    def one_by_one() -> np.ndarray:
        scores = []
        for item in items:
            batch = padded(join_batch([joint.words.read(text)], [joint.regions(item)]))
            with torch.inference_mode():
                scores.append(joint.model.head_logits(joint.model(batch), "classifier")[:, -1])
        return torch.cat(scores).numpy()

    ours, plain = best(lambda: cross.score(text, items, 20)), best(one_by_one)

    told(bench="mmt pairs", ours=PAIRS / ours, one_by_one=PAIRS / plain, ratio=plain / ours)
    assert np.allclose(cross.score(text, items, 20), one_by_one(), atol=1e-4)


@pytest.mark.skipif(not importlib.util.find_spec("open_clip"), reason="open_clip is not installed")
def test_image_features_of_mobileclip_s0(tmp_path):
    import open_clip

    spec = importlib.util.spec_from_file_location("recipe", MOBILECLIP / "mmt_recipe.py")
    if spec is None or spec.loader is None or not MOBILECLIP.is_dir():
        pytest.skip("no golden recipe of MobileCLIP-S0")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    recipe.materialize(str(MOBILECLIP / "models" / "mobileclip_s0_random"), str(tmp_path))
    network = load_embedder(f"mobileclip:{tmp_path}")
    pixels = torch.rand(8, 3, 256, 256)
    theirs = open_clip.create_model("MobileCLIP2-S0", pretrained=None).eval()
    towers = {"ours": network.towers.image, "open_clip": theirs.encode_image}
    found = {}
    with torch.inference_mode():
        pictures = [(p.permute(1, 2, 0) * 255).byte().numpy() for p in pixels]
        found["ours"] = 8 / best(lambda: towers["ours"](pictures))
        found["open_clip"] = 8 / best(lambda: towers["open_clip"](pixels))

    told(bench="mobileclip-s0 images", **found, ratio=found["ours"] / found["open_clip"])


def test_the_backbone_of_terramind_base():
    entry = TERRAMIND_MODALITIES["untok_sen2l2a@224"]
    config = FourMConfig(
        inputs=(entry,), outputs=(), **PRESETS["base_swiglu_nobias"], **TERRAMIND.rules
    )
    vit = FMViT(ViTConfig.of(config, None)).init_weights().eval()
    vit.reset_classifier(0)
    model = MergedViT(vit, {"S2L2A": entry.name})
    x = torch.randn(8, 12, 224, 224)

    with torch.inference_mode():
        seconds = best(lambda: model({"S2L2A": x}))

    told(bench="terramind-base, batch 8", pictures=8 / seconds)
