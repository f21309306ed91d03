"""Checks of OSCAR, UNITER and M3P against the numbers of MMT-Retrieval and of UNITER's own code."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from caseinfo import CaseInfo, read_json
from safetensors.numpy import load_file
from torch.nn import functional as F

from fourm_lite.embedders.features import Features, FeatureStore
from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.mmt.embedder import JointEmbedder, JointReranker, states_of
from fourm_lite.embedders.mmt.load import Joint, open_joint
from fourm_lite.embedders.rerankers import load_reranker
from fourm_lite.search.rerank import CROSS, RetrieveRerank, caption_measures
from fourm_lite.training.losses import (
    contrastive_loss,
    hardest_triplet_loss,
    matching_loss,
    sampled_triplet_loss,
)

BATCH = 32
# what cases call some gradients, where that is not a name of the file
SHORT = {"img_embedding.bias": "regions.features.bias", "query0.bias": "blocks.0.query.bias"}


def pictures(case: CaseInfo) -> FeatureStore:
    """The regions of all pictures of the set."""
    sizes = read_json(case.folder / "cases" / "images.json")
    held = load_file(case.folder / "cases" / "images.safetensors")
    found = {
        key: Features(
            held[f"features.{key}"], held[f"boxes.{key}"], (size["height"], size["width"])
        )
        for key, size in sizes.items()
    }
    return FeatureStore({key: lambda item=item: item for key, item in found.items()})


def options(case: CaseInfo) -> dict[str, Any]:
    """What no file of the model says and its manifest entry does."""
    entry = case.manifest["models"][case.info["model"]]
    found: dict[str, Any] = {"features": pictures(case)}
    if "num_attention_heads" in entry:
        found["heads"] = entry["num_attention_heads"]
    if "tokenizer" in entry:
        found["tokenizer"] = str(case.folder / entry["tokenizer"])
    return found


def embedder(case: CaseInfo) -> JointEmbedder:
    found = load_embedder(f"mmt:{case.folder_of()}", **options(case))
    assert isinstance(found, JointEmbedder)
    config = found.joint.config
    assert config.max_words == case.info["max_seq_length"]
    assert config.max_regions == case.info["max_image_seq_len"]
    assert list(config.pooling) == case.info["pool"]
    return found


def reranker(case: CaseInfo, **more: Any) -> JointReranker:
    found = load_reranker(f"mmt:{case.folder_of()}", **options(case), **more)
    assert isinstance(found, JointReranker)
    return found


def raw_ids(joint: Joint, sentence: str) -> list[int]:
    return joint.words.tokenizer.encode(sentence, add_special_tokens=False).ids


def check_embed(case: CaseInfo) -> None:
    info, network = case.info, embedder(case)
    images, sentences = info["images"], info.get("sentences", [])
    check_geometry(case, network.joint)
    for size in (1, BATCH):
        case.close(network.embed_image(images, size, normalize=False), "out.image_single")
        if sentences:
            case.close(network.embed_text(sentences, size, normalize=False), "out.text_single")
    if sentences:
        assert [raw_ids(network.joint, s) for s in sentences] == info["token_ids"]
        with torch.inference_mode():
            text = states_of(network.joint, sentences[:1], [None])
            image = states_of(network.joint, [""], images[:1])
        case.close(text.tokens[0], "out.states_text0")
        case.close(image.tokens[0], "out.states_image0")


def check_geometry(case: CaseInfo, joint: Joint) -> None:
    """in.geometry.ID and in.regions.ID: what stands behind or beside the features."""
    for key in case.tensors:
        if key.startswith("in."):
            want = case.tensors[key]
            got = joint.regions(key.rpartition(".")[2]).geometry
            torch.testing.assert_close(got, want[: len(got)], atol=1e-6, rtol=0)
            assert not want[len(got) :].any()


def check_pairs(case: CaseInfo) -> None:
    if "pairs" in case.info:
        check_tags(case)
        return
    info = case.info
    cross = reranker(case)
    images, sentences = info["images"], info["sentences"]
    pairs = list(product(images, sentences))
    texts, ids = [s for _, s in pairs], [i for i, _ in pairs]
    assert [raw_ids(cross.joint, s) for s in sentences] == info["token_ids"]
    for size in (1, BATCH):
        logits = cross.logits(texts, ids, size)
        case.close(logits.reshape(len(images), len(sentences), -1), "out.logits_single")
        scores = cross.score(texts, ids, size)
        case.close(scores.reshape(len(images), len(sentences)), "out.score_single")
    if "out.seq_relationship_single" in case.tensors:
        own = reranker(case, head="seq_relationship").score(texts, ids)
        case.close(own.reshape(len(images), len(sentences)), "out.seq_relationship_single")
    if "converted_head" in info:
        check_head(cross, info["converted_head"])


def check_head(cross: JointReranker, stated: dict[str, Any]) -> None:
    head = cross.joint.model.heads[cross.head]
    linear = isinstance(head, torch.nn.Linear)
    assert linear == (stated["classifier_type"] == "linear")
    pooled = stated["input_key"].startswith("pooled")
    assert (cross.joint.config.head_inputs[cross.head] == "pooled") == pooled
    assert cross.joint.config.dropout == stated["dropout"]


def check_tags(case: CaseInfo) -> None:
    info, network = case.info, embedder(case)
    texts = [tuple(pair) for pair in info["pairs"]]
    for key in case.tensors:
        if key.startswith("in.pair") and key.endswith(".input_ids") and "as_is" not in key:
            name = key.removesuffix(".input_ids")
            ids, types = network.joint.words.read(texts[int(name.removeprefix("in.pair"))])
            real = case.tensors[f"{name}.attention_mask"].bool()
            assert ids == case.tensors[key][real].tolist()
            assert types == case.tensors[f"{name}.token_type_ids"][real].tolist()
    for size in (1, BATCH):
        case.close(reranker(case).logits(texts, info["images"], size), "out.logits_single")
        tagged = network.embed_pairs(info["tags"], info["images"], size, normalize=False)
        case.close(tagged, "out.image_with_tags_single")


def check_uniter(case: CaseInfo) -> None:
    info = case.info
    pairs = list(product(info["images"], info["sentences"]))
    texts, ids = [s for _, s in pairs], [i for i, _ in pairs]
    shape = (len(info["images"]), len(info["sentences"]))
    cross = reranker(case)
    assert [cross.joint.words.read(s)[0] for s in info["sentences"]] == info["input_ids"]
    for size in (1, BATCH):
        case.close(cross.score(texts, ids, size).reshape(shape), "out.rank_single")
        own = reranker(case, head="itm").logits(texts, ids, size)
        case.close(own.reshape(*shape, -1), "out.itm_single")


def check_evaluate(case: CaseInfo) -> None:
    info, twin, cross = case.info, embedder(case), reranker(case)
    captions, images = list(info["captions"].values()), info["images"]
    case.close(twin.embed_image(images, normalize=False), "out.image")
    case.close(twin.embed_text(captions, normalize=False), "out.text")
    pairs = list(product(images, captions))
    logits = cross.logits([s for _, s in pairs], [i for i, _ in pairs])
    case.close(logits.reshape(len(images), len(captions), -1), "out.logits")
    owners = {c: i for i, listed in info["imageid2captions"].items() for c in listed}
    owner = [images.index(owners[c]) for c in info["captions"]]
    for name, want in info["metrics"].items():
        ways = {
            "retrieve": want["retrieve"] or (CROSS if name == "cross_encoder" else 0),
            "scoring": want["scoring"] or "logit",
            "share": want["scoring_factor"] or 0.0,
        }
        ks = tuple(int(k) for k in want["i2t"]["recall"])
        got = caption_measures(twin, cross, images, captions, owner, ks=ks, **ways)
        assert_measures(got, want)
    check_search(case, RetrieveRerank(twin, cross, images))


def assert_measures(got: dict[str, Any], want: dict[str, Any]) -> None:
    np.testing.assert_allclose(got["mR"], want["mR"], atol=1e-9)
    for side, measures in (("image_to_text", want["i2t"]), ("text_to_image", want["t2i"])):
        for measure, by_k in measures.items():
            for k, value in by_k.items():
                np.testing.assert_allclose(
                    got[side][f"{measure}@{k}"], value, atol=1e-9, err_msg=f"{side} {measure}@{k}"
                )


def check_search(case: CaseInfo, search: RetrieveRerank) -> None:
    """The original lists the worst first; ours lists the best first."""
    told = case.info["search"]
    for query, ids, scores in zip(told["queries"], told["images"], told["scores"], strict=True):
        hits = search(query, k=told["topk"], retrieve=told["topk"])
        assert [i for i, _ in hits] == ids[::-1]
        np.testing.assert_allclose([s for _, s in hits], scores[::-1], atol=1e-4)


def check_losses(case: CaseInfo) -> None:
    info, want = case.info, case.tensors
    joint = open_joint(case.folder_of(), **options(case))
    sentences, images = info["sentences"], info["images"]
    kinds = joint.config.pooling
    for name, value in losses(joint, sentences, images, kinds).items():
        joint.model.zero_grad()
        value.backward()
        case.close(value.detach()[None], f"out.{name}.loss")
        checked = dict(joint.model.named_parameters())
        prefix = f"out.{name}.grad."
        for key in (key for key in want if key.startswith(prefix)):
            theirs = key.removeprefix(prefix)
            ours = SHORT.get(theirs) or next(iter(joint.config.layout.renamed({theirs: 0})))
            case.close(checked[ours].grad, key)


def losses(joint: Joint, sentences: list[str], images: list[str], kinds: Any) -> Any:
    """The four losses of the notes: which captions meet which pictures."""
    text = states_of(joint, sentences[:5], [None] * 5).pooled(kinds)
    image = states_of(joint, [""] * 5, images[:5]).pooled(kinds)
    rows = torch.tensor([0, 1, 2, 2, 4])
    yield_ = {"triplet": hardest_triplet_loss(text, image[rows], rows, margin=0.1)}
    text, image = text.detach(), image.detach()
    text = states_of(joint, sentences[:5], [None] * 5).pooled(kinds)
    image = states_of(joint, [""] * 5, images[:5]).pooled(kinds)
    yield_["ntxent"] = contrastive_loss(text, image[rows], scale=20.0)
    pairs = [(0, 0, 1), (0, 1, 0), (1, 1, 1), (1, 2, 0), (3, 2, 1), (3, 0, 0)]
    states = states_of(joint, [sentences[c] for c, *_ in pairs], [images[i] for _, i, _ in pairs])
    labels = torch.tensor([label for *_, label in pairs])
    yield_["cross_entropy"] = matching_loss(joint.model.head_logits(states, "classifier"), labels)
    text = states_of(joint, sentences[:5], [None] * 5).pooled(kinds)
    image = states_of(joint, [""] * 5, images[:5]).pooled(kinds)
    others = torch.tensor([[(i + 1) % 5, (i + 2) % 5] for i in range(4)])
    yield_["sampled_triplet"] = sampled_triplet_loss(
        F.normalize(text, dim=1), F.normalize(image, dim=1), torch.arange(4), others, margin=0.1
    )
    return yield_


CHECKS = {
    "mmt_embed": check_embed,
    "mmt_pairs": check_pairs,
    "mmt_evaluate": check_evaluate,
    "mmt_losses": check_losses,
    "uniter_pairs": check_uniter,
}
