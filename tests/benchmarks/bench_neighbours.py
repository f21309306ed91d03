"""Speed at published sizes, on random weights, beside what the neighbours' users run. By hand:

OMP_NUM_THREADS=2 python tests/benchmarks/bench_neighbours.py [pairs mobileclip terramind] [--cpu]

Pairs are compared with one pair at a time padded to the full lengths, MobileCLIP-S0's image tower
with open_clip's, TerraMind-base's backbone with TerraTorch's own class on the same weights. That
class runs in an environment of its own, FOURM_PEERS/terratorch (`pip install --no-deps terratorch`
and what it imports, beside this torch): its release cannot be installed beside this project.
Every part is told when it is done, so that one may be stopped; `--cpu` counts CPU seconds, which
the time of other processes does not enter.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from turns import take_turns, tell

from fourm_lite.backbone.config import ViTConfig
from fourm_lite.backbone.merged import MergedViT
from fourm_lite.backbone.vit import FMViT
from fourm_lite.embedders.features import Features
from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.mmt.batches import RegionReader, Words, join_batch
from fourm_lite.embedders.mmt.embedder import JointReranker
from fourm_lite.embedders.mmt.load import Joint
from fourm_lite.embedders.mmt.network import JointBatch, JointConfig, JointEncoder, Sizes
from fourm_lite.families.masked import TERRAMIND
from fourm_lite.modalities.forks import TERRAMIND_MODALITIES
from fourm_lite.model.config import PRESETS, FourMConfig

PAIRS, WORDS, REGIONS = 100, 70, 50
MOBILECLIP = Path(__file__).parents[3] / "shared" / "golden" / "mmt"
PEER = Path(__file__).parent / "peers" / "terratorch_vit.py"


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


def pairs(cpu: bool) -> None:
    """A query of 11 words and a hundred candidates of 10 to 50 regions."""
    joint, rng = oscar_base(), np.random.default_rng(0)
    cross = JointReranker("oscar-base", joint)
    items = []
    for _ in range(PAIRS):
        count = int(rng.integers(10, REGIONS + 1))
        boxes = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)
        features = rng.normal(size=(count, 2048)).astype(np.float32)
        items.append(Features(features, boxes.astype(np.float32), (1, 1)))
    text, kept = "dog " * 11, {}

    @torch.inference_mode()
    def one_by_one() -> None:
        scores = []
        for item in items:
            batch = padded(join_batch([joint.words.read(text)], [joint.regions(item)]))
            scores.append(joint.model.head_logits(joint.model(batch), "classifier")[:, -1])
        kept["plain"] = torch.cat(scores).numpy()

    def ours() -> None:
        kept["ours"] = cross.score(text, items, 20)

    spent = take_turns({"one by one": one_by_one, "ours": ours}, rounds=3, cpu=cpu, warm=0)
    assert np.allclose(kept["ours"], kept["plain"], atol=1e-4)
    tell("100 pairs of OSCAR-base, s", spent, unit=1)


def mobileclip(cpu: bool) -> None:
    """Image features of MobileCLIP-S0, eight pictures of 256 x 256."""
    import open_clip

    spec = importlib.util.spec_from_file_location("recipe", MOBILECLIP / "mmt_recipe.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"there is no recipe of MobileCLIP-S0 in {MOBILECLIP}")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    with tempfile.TemporaryDirectory() as folder:
        recipe.materialize(str(MOBILECLIP / "models" / "mobileclip_s0_random"), folder)
        network = load_embedder(f"mobileclip:{folder}")
    tower = network.towers.image
    assert tower is not None
    pixels = torch.rand(8, 3, 256, 256)
    pictures = [(p.permute(1, 2, 0) * 255).byte().numpy() for p in pixels]
    theirs = open_clip.create_model("MobileCLIP2-S0", pretrained=None).eval()
    cases: Mapping[str, Callable[[], object]] = {
        "open_clip": torch.inference_mode()(lambda: theirs.encode_image(pixels)),
        "ours, preprocessing included": torch.inference_mode()(lambda: tower(pictures)),
    }
    tell("8 pictures by MobileCLIP-S0, ms", take_turns(cases, rounds=8, cpu=cpu, warm=2))


def terramind(cpu: bool) -> None:
    """The backbone of TerraMind-base on eight tiles of Sentinel-2, and TerraTorch's class."""
    entry = TERRAMIND_MODALITIES["untok_sen2l2a@224"]
    config = FourMConfig(
        inputs=(entry,), outputs=(), **PRESETS["base_swiglu_nobias"], **TERRAMIND.rules
    )
    vit = FMViT(ViTConfig.of(config, None)).init_weights().eval()
    vit.reset_classifier(0)
    model, tiles = MergedViT(vit, {"S2L2A": entry.name}), torch.randn(8, 12, 224, 224)
    kept: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def ours() -> None:
        kept["ours"] = model({"S2L2A": tiles})[-1]

    python = Path(os.environ.get("FOURM_PEERS", ".")) / "terratorch" / "bin" / "python"
    if not python.exists():
        tell("8 tiles by TerraMind-base, s", take_turns({"ours": ours}, rounds=5, cpu=cpu), unit=1)
        raise SystemExit("FOURM_PEERS holds no terratorch/bin/python to compare with")
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.pt"
        torch.save({"weights": vit.state_dict(), "tiles": tiles}, given)
        peer = subprocess.Popen(
            [python, PEER, given, str(int(cpu))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            spent = _turns_with(peer, ours, cpu)
        finally:
            peer.kill()
        theirs = torch.load(given.with_suffix(".out"), weights_only=True)
    tell("8 tiles by TerraMind-base, s", spent, unit=1)
    print(f"  largest difference {float((theirs - kept['ours']).abs().max()):.1e}", flush=True)
    assert torch.allclose(theirs, kept["ours"], atol=1e-3)


def _turns_with(
    peer: subprocess.Popen[str], ours: Callable[[], None], cpu: bool
) -> dict[str, list[float]]:
    """Seconds of both in every round; the other process tells its own."""
    assert peer.stdin is not None
    assert peer.stdout is not None
    spent: dict[str, list[float]] = {"terratorch": [], "ours": []}
    for number in range(6):
        peer.stdin.write("\n")
        peer.stdin.flush()
        theirs = float(peer.stdout.readline())
        own = take_turns({"ours": ours}, rounds=1, cpu=cpu, warm=0)["ours"]
        if number:  # the first round warms both
            spent["terratorch"].append(theirs)
            spent["ours"] += own
    return spent


PARTS = {"pairs": pairs, "mobileclip": mobileclip, "terramind": terramind}


def main(words: list[str]) -> None:
    names = [word for word in words if not word.startswith("--")] or list(PARTS)
    print(f"{torch.get_num_threads()} threads, {'CPU' if '--cpu' in words else 'wall'}", flush=True)
    for name in names:
        PARTS[name]("--cpu" in words)


if __name__ == "__main__":
    main(sys.argv[1:])
