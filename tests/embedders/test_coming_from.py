"""The page for users of other toolkits: our blocks run, and equal theirs where theirs can run."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_aion import save_aion
from tiny_mmt import save_mmt, save_regions
from tiny_mobileclip import save_mobileclip
from tiny_networks import (
    OPEN_CLIP,
    SMALL,
    align,
    bert_tokenizer,
    blip,
    clip,
    save_network,
    save_open_clip,
    save_timm,
    transformers,
)
from tiny_terramind import save_terramind_tokenizers, save_tiles, terramind_weights

from fourm_lite.cli import main
from fourm_lite.demo.examples import drawings

timm = pytest.importorskip("timm")

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
FENCE = re.compile(r"^```([^\n]+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TITLED = re.compile(r"^```(\w+) title=\"([^\"\n]*)\"$", re.MULTILINE)
SECTIONS = {
    title: FENCE.findall(text)
    for title, text in re.findall(
        r"^## ([^\n]+)\n(.*?)(?=^## |\Z)",
        TITLED.sub(r"```\1 \2", PAGE.read_text("utf-8")),
        re.MULTILINE | re.DOTALL,
    )
}
THEIRS = {
    title: (info, text)
    for title, blocks in SECTIONS.items()
    for info, text in blocks
    if info.startswith("python theirs")
}


def installed(name):
    return importlib.util.find_spec(name) is not None


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tiny networks under the names of the page, drawn photos, features and old vectors."""
    from fourm_lite.embedders.load import load_embedder

    root = tmp_path_factory.mktemp("world")
    for name, build in {
        "openai/clip-vit-base-patch32": clip,
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": clip,
        "kakaobrain/align-base": align,
        "Salesforce/blip-itm-base-coco": blip,
        "mofi-b16-hf": lambda: clip(224, 32),
    }.items():
        save_network(build, root / name)
    (root / "mofi-b16-hf" / "processor_config.json").unlink()  # MOFI's folders have none
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 64)}
        tower = timm.create_model("fastvit_mci0", num_classes=20, **sizes)
    save_timm(tower, "fastvit_mci0", sizes, 64, root / "fastvit_mci0.apple_mclip")
    if installed("sentence_transformers"):
        save_for_sentence_transformers(root)
    if installed("open_clip"):
        hub = root / "hub" / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
        save_open_clip(OPEN_CLIP, {}, hub / "snapshots" / "0123abcd")
        (hub / "refs").mkdir()
        (hub / "refs" / "main").write_text("0123abcd")
    save_mobileclip(root / "mobileclip_s0.pt")
    save_aion(root / "polymathic-ai" / "aion-base")
    rows = [{"id": str(i), "flux_g": 2.0**i, "z": i / 10} for i in range(6)]
    (root / "galaxies.jsonl").write_text("\n".join(map(json.dumps, rows)))
    torch.save(terramind_weights(), root / "TerraMind_v1_tiny.pt")
    save_terramind_tokenizers(root / "TERRAMIND" / "tokenizers")
    if installed("rasterio"):
        save_tiles(root / "TILES")
    (root / "PHOTOS").mkdir()
    for i, drawing in enumerate(drawings(6, size=96)):
        drawing.picture.save(root / "PHOTOS" / f"{i}.png")
    drawing.picture.save(root / "photo.jpg")
    save_regions(root / "features", {"0": 4, "1": 2, "2": 7})
    save_mmt(root / "oscar_join_flickr30k")
    twin = load_embedder(f"hf:{root / 'openai/clip-vit-base-patch32'}")
    vectors = twin.embed_image(sorted((root / "PHOTOS").iterdir()))
    (root / "EMBEDDINGS" / "img_emb").mkdir(parents=True)
    np.save(root / "EMBEDDINGS" / "img_emb" / "img_emb_0.npy", vectors.astype(np.float16))
    return root


def save_for_sentence_transformers(root):
    """The page's CLIP as that library saves it, and a cross-encoder of texts."""
    from sentence_transformers import SentenceTransformer

    twin = SentenceTransformer(str(root / "openai/clip-vit-base-patch32"))
    twin.save(str(root / "clip-ViT-B-32"))
    config = transformers.BertConfig(**SMALL, vocab_size=32, num_labels=1)
    folder = root / "cross-encoder/ms-marco-MiniLM-L6-v2"
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)


@pytest.fixture
def inside(world, monkeypatch):
    """The page's names are folders and cached files; open_clip's ViT-B-32 is a tiny one."""
    monkeypatch.chdir(world)
    if installed("open_clip"):
        import open_clip.factory as zoo

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(world / "hub"))
        monkeypatch.setitem(zoo._MODEL_CONFIGS, "ViT-B-32", OPEN_CLIP)
    return world


def run_ours(title):
    """Runs our blocks of a section in order, in one namespace."""
    names: dict[str, object] = {"__name__": "page"}
    for info, text in SECTIONS[title]:
        kind, _, extra = info.partition(" with ")
        if extra and not installed(extra):
            continue
        if kind == "python":
            exec(compile(text, f"{PAGE.name}, {title}", "exec"), names)
        elif kind == "sh":
            for line in text.splitlines():
                with pytest.raises(SystemExit) as stopped:
                    main(shlex.split(line)[1:])
                assert stopped.value.code == 0, line
    return names


def has_length(vectors, count):
    return len(vectors) == count and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


CHECKS = {
    "4M's repository": lambda found: (
        has_length(found["vectors"], 2)
        and found["nearest"].ids == ["photo"]
        and isinstance(found["made"]["caption"].text, str)
        and found["logits"].shape == (1, 10)
    ),
    "MOFI": lambda found: found["ours"].shape == (2, 1) and np.ptp(found["ours"]) > 1e-4,
    "MMT-Retrieval": lambda found: (
        has_length(found["images"], 2)
        and has_length(found["words"], 2)
        and found["scores"].shape == (2, 2)
        and np.ptp(found["scores"]) > 1e-3
    ),
    "MobileCLIP and OpenCLIP": lambda found: (
        abs(found["probabilities"].sum() - 1) < 1e-5 and has_length(found["photo"], 1)
    ),
    "ALIGN in transformers": lambda found: abs(found["ours"].sum() - 1) < 1e-5,
    "sentence-transformers": lambda found: (
        found["ours"].shape == (1, 2) and sorted(i for i, _ in found["ranked"]) == [0, 1]
    ),
    "AION": lambda found: (
        found["embedding"].shape == (2, 32)
        and found["logits"].shape == (2, 1, 1025)
        and found["redshift"].shape == (2, 1)
        and has_length(found["vectors"], 2)
        and isinstance(found["guessed"], float | None)
    ),
    "TerraMind in TerraTorch": lambda found: (
        [x.shape for x in found["layers"]] == [(1, 24, 64)] * 2
        and found["made"]["NDVI"].shape == (1, 24)
        and len(found["thought"]) == 2
        and found["maps"]["tok_lulc@224"].value.shape == (64, 96)
        and found["vector"].shape == (64,)
    ),
    "clip-retrieval": lambda found: (
        [i.removesuffix(".png") for i in found["found"].ids] == list(map(str, found["same"].ids))
        and np.allclose(found["found"].scores, found["same"].scores, atol=1e-3)
    ),
}


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("title", SECTIONS)
def test_our_blocks_do_what_theirs_do(title, request):
    if any("EPFL-VILAB/" in text for _, text in SECTIONS[title]):
        request.getfixturevalue("published")
    found = run_ours(title)

    assert CHECKS[title](found)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("title", THEIRS)
def test_their_blocks_give_what_ours_give_where_they_can_run(title):
    info, text = THEIRS[title]
    _, _, reason = info.partition("unrun: ")
    if reason:
        pytest.skip(reason)
    tops = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    absent = sorted(name for name in tops if not installed(name))
    if absent:
        pytest.skip(f"{', '.join(absent)} is not installed")
    names: dict[str, object] = {}

    exec(compile(text, f"{PAGE.name}, {title}, theirs", "exec"), names)

    assert np.allclose(run_ours(title)["ours"], names["theirs"], atol=1e-5, rtol=0)


def test_the_page_has_a_section_for_each_toolkit_with_both_sides():
    assert list(SECTIONS) == list(CHECKS)
    for title, blocks in SECTIONS.items():
        kinds = {info.partition(" ")[2].split(" ")[0] for info, _ in blocks}
        assert kinds - {"with"} == {"", "theirs"}, title
