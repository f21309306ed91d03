"""OSCAR, UNITER and M3P as their toolkits leave them: vectors, scores, refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_mmt import NETWORKS, VOCABULARY, network_weights, regions, save_mmt, save_regions

from fourm_lite.cli import main
from fourm_lite.embedders.features import FeatureStore
from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.rerankers import load_reranker
from fourm_lite.errors import CheckpointError, ConfigError, FourMError, ShapeError

COUNTS = {"10": 3, "11": 1, "12": 9, "13": 5}
TEXTS = ["a red dog", "two cats on grass", "a dog runs on red grass on a house on two dogs red", ""]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return save_regions(tmp_path_factory.mktemp("regions") / "features", COUNTS)


@pytest.fixture(scope="module", params=NETWORKS)
def folder(request, tmp_path_factory):
    return save_mmt(tmp_path_factory.mktemp("mmt") / request.param, request.param)


@pytest.fixture
def oscar(tmp_path):
    return save_mmt(tmp_path / "OSCAR", "OSCAR")


def test_an_item_alone_gives_what_it_gives_in_a_padded_batch(folder, features):
    twin = load_embedder(f"mmt:{folder}", features=features)
    cross = load_reranker(f"mmt:{folder}?features={features}")
    ids = list(COUNTS)

    for embed, items in ((twin.embed_image, ids), (twin.embed_text, TEXTS)):
        alone = np.concatenate([embed([item], normalize=False) for item in items])
        assert np.allclose(embed(items, normalize=False), alone, atol=1e-5)
        assert len(np.unique(alone.round(4), axis=0)) == len(items)
    pairs = [(t, i) for t in TEXTS for i in ids]
    together = cross.score([t for t, _ in pairs], [i for _, i in pairs], 16)
    assert np.allclose(together, [cross.score(t, i)[0] for t, i in pairs], atol=1e-5)
    assert np.ptp(together) > 1e-3


def test_a_file_with_its_own_prefix_or_old_names_gives_the_same_numbers(tmp_path, features):
    """MMT-Retrieval fills a network with random numbers where UNITER's prefix stands."""
    plain = network_weights("UNITER")
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for key, value in plain.items()
    }
    written = {
        "plain": plain,
        "uniter": {f"uniter.{k}": v for k, v in plain.items()},
        "bert": {f"bert.{k}": v for k, v in plain.items()},
        "old": {f"uniter.{k}": v for k, v in old.items()},
    }
    vectors = {}
    for name, weights in written.items():
        (tmp_path / name).mkdir()
        torch.save(weights, tmp_path / name / "uniter-base.pt")
        (tmp_path / name / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
        source = f"mmt:{tmp_path / name / 'uniter-base.pt'}"
        vectors[name] = load_embedder(source, features=features).embed_image(["10", "12"])

    assert all(np.array_equal(v, vectors["plain"]) for v in vectors.values())


def test_a_folder_of_one_file_is_told_from_a_folder_of_features(tmp_path, features, capsys):
    weights = network_weights("UNITER")
    (tmp_path / "uniter").mkdir()
    torch.save({f"uniter.{k}": v for k, v in weights.items()}, tmp_path / "uniter" / "base.pt")
    (tmp_path / "uniter" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    for source, family in ((tmp_path / "uniter", "mmt (UNITER)"), (features, "features")):
        with pytest.raises(SystemExit):
            main(["convert", str(source), "-o", str(tmp_path / "out" / source.name), "--json"])
        assert json.loads(capsys.readouterr().out)["family"] == family


def test_a_weight_that_is_missing_or_unknown_is_told_by_name(tmp_path):
    for change, name in (
        (lambda w: w.pop("pooler.dense.bias"), "pooler.bias"),
        (lambda w: w.update({"encoder.strange.weight": torch.zeros(1)}), "encoder.strange"),
    ):
        weights = network_weights("OSCAR")
        change(weights)
        torch.save(weights, tmp_path / "oscar.bin")
        (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
        with pytest.raises(CheckpointError, match=name):
            load_embedder(f"mmt:{tmp_path / 'oscar.bin'}?heads=4")


def test_what_is_converted_opens_without_the_original_and_gives_the_same(
    folder, features, tmp_path, capsys
):
    copy = shutil.copytree(folder, tmp_path / "original")
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(copy), "-o", str(tmp_path / "ours"), "--json"])
    assert stopped.value.code == 0
    assert json.loads(capsys.readouterr().out)["family"].startswith("mmt")
    before = (
        load_embedder(f"mmt:{copy}", features=features),
        load_reranker(f"mmt:{copy}", features=features),
    )
    shutil.rmtree(copy)

    twin = load_embedder(f"mmt:{tmp_path / 'ours'}", features=features)
    cross = load_reranker(f"mmt:{tmp_path / 'ours'}", features=features)

    assert np.array_equal(twin.embed_image(["10"]), before[0].embed_image(["10"]))
    assert np.array_equal(twin.embed_text(TEXTS), before[0].embed_text(TEXTS))
    assert np.array_equal(
        cross.score("a dog", ["10", "12"]), before[1].score("a dog", ["10", "12"])
    )
    assert not [p for p in (tmp_path / "ours").iterdir() if p.suffix in (".bin", ".pt", ".pth")]


def test_an_index_over_feature_ids_is_searched_and_reranked(folder, features, tmp_path, capsys):
    for line in (
        ["index", str(features), "-o", str(tmp_path / "idx"), "--model", f"mmt:{folder}"],
        ["search", str(tmp_path / "idx"), "--caption", "a red dog", "--json", "--rerank", "3",
         "--reranker", f"mmt:{folder}"],
    ):  # fmt: skip
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(line)
        assert stopped.value.code == 0, capsys.readouterr()
    hits = [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]]

    twin = load_embedder(f"mmt:{folder}", features=features)
    near = np.argsort(-(twin.embed_text(["a red dog"]) @ twin.embed_image(list(COUNTS)).T)[0])
    first = [list(COUNTS)[i] for i in near]
    cross = load_reranker(f"mmt:{folder}", features=features)
    ranked = [i for i, _ in cross.rank("a red dog", first[:3], ids=first[:3])]
    assert hits == ranked + first[3:]


def test_captions_and_regions_are_evaluated_both_ways(oscar, features, tmp_path, capsys):
    rows = [
        {"id": f"{i}.jpg", "file": f"{i}.jpg", "captions": [f"a {w}"], "split": "test"}
        for i, w in zip(COUNTS, ("dog", "cat", "house", "red dog"), strict=True)
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = f"mmt:{oscar}?features={features}"
    words = ["evaluate", "retrieval", "--data", str(tmp_path), "--model", model, "--json", "-"]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()

    assert stopped.value.code == 0, err
    report = json.loads(out)
    assert report["protocol"]["queries_image"] == 4
    assert report["text_to_image"]["R@5"] == 1.0


def test_a_picture_is_an_id_features_or_the_toolkits_dictionary(oscar, features):
    store = FeatureStore.open(features)
    twin = load_embedder(f"mmt:{oscar}", features=store)

    for same in (store["10"], regions(0, 3)):
        assert np.allclose(twin.embed_image([same]), twin.embed_image(["10"]), atol=1e-6)
    assert twin.can == ("image", "text")
    assert twin.dim == twin.embed_text(["a dog"]).shape[1]


def test_regions_behind_the_longest_number_do_not_count(folder, features):
    twin = load_embedder(f"mmt:{folder}", features=features)
    whole = regions(2, 9)
    cut = {**whole, "features": whole["features"][:6], "boxes": whole["boxes"][:6]}

    assert np.array_equal(twin.embed_image([whole]), twin.embed_image([cut]))


def test_a_pair_of_texts_is_cut_at_its_longer_part(oscar):
    words = load_embedder(f"mmt:{oscar}").joint.words

    ids, types = words.read(("red " * 12, "dog cat"))

    assert len(ids) == 14
    assert types == [0] * 10 + [1] * 4 or sum(types) == 3
    assert words.read("")[0] == [words.tokenizer.token_to_id("[CLS]")]
    with pytest.raises(ConfigError, match="sentence, or a pair"):
        words.read(("a", "b", "c"))


def refuse(source, match, error=FourMError, *, load=load_embedder, **options):
    with pytest.raises(error, match=match):
        load(f"mmt:{source}", **options)


def test_folders_that_cannot_be_read_are_told_apart(tmp_path, oscar):
    modules = oscar / "modules.json"
    listed = json.loads(modules.read_text())
    modules.write_text(json.dumps([{**listed[0], "type": "mmt_retrieval.model.models.JointOSCAR"}]))
    refuse(oscar, "class JointOSCAR")
    modules.write_text(json.dumps([{**listed[0], "path": "../elsewhere"}]))
    refuse(oscar, "outside of it")
    modules.write_text(json.dumps(listed))
    (oscar / "1_ClassificationHead" / "class_head.pt").unlink()
    refuse(oscar, r"class_head\.pt")
    config = oscar / "0_OSCAR" / "config.json"
    config.write_text(json.dumps({"num_attention_heads": 4, "img_feature_type": "dis_code"}))
    refuse(oscar, "dis_code")
    refuse(tmp_path / "none", "does not exist")
    torch.save(torch.zeros(1), tmp_path / "list.pt")
    refuse(tmp_path / "list.pt", "no dictionary of tensors")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    refuse(tmp_path / "other.pt", "no network of M3P, OSCAR, UNITER")


def test_what_a_network_was_not_trained_for_is_refused(tmp_path, features):
    twin_only = save_mmt(tmp_path / "twin", head=None)
    cross_only = save_mmt(tmp_path / "cross", pooling=None)

    refuse(twin_only, "no matching head", load=load_reranker)
    refuse(cross_only, "nothing of pooling")
    assert (
        load_embedder(f"mmt:{cross_only}?pooling=mean", features=features).embed_image("10").any()
    )
    refuse(save_mmt(tmp_path / "h"), "a head of", load=load_reranker, head="rank")
    refuse(cross_only, "Did you mean 'mean'", pooling="meen")
    refuse(cross_only, "an option of 'mmt' embedders is one of", head=3)


def test_pictures_that_cannot_be_read_are_told_apart(oscar, features):
    twin = load_embedder(f"mmt:{oscar}", features=features)
    item = regions(0, 2)

    for picture, match, error in (
        ({**item, "features": item["features"][:, :7]}, "width 2048", ShapeError),
        ({k: v for k, v in item.items() if k != "boxes"}, "needs", ConfigError),
        (Image.new("RGB", (8, 8)), "need a detector", ConfigError),
        ("99", "no features for '99'", FourMError),
        (
            {**item, "features": item["features"][:0], "boxes": item["boxes"][:0]},
            "no boxes",
            FourMError,
        ),
    ):
        with pytest.raises(error, match=match):
            twin.embed_image([picture])
    with pytest.raises(ConfigError, match="features=STORE"):
        load_embedder(f"mmt:{oscar}").embed_image(["10"])
