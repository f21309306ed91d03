"""Checks of MobileCLIP's towers, pixels and words against Apple's own code."""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from caseinfo import CaseInfo

from fourm_lite.embedders.load import load_embedder
from fourm_lite.embedders.mobileclip.load import clip_tokens


def check_mobileclip(case: CaseInfo) -> None:
    info, given = case.info, case.tensors
    ids = given["in.token_ids"]
    known = dict(zip(info["texts"], ids, strict=True))
    network = load_embedder(
        f"mobileclip:{case.folder_of()}",
        tokenizer=lambda texts: torch.stack([known[text] for text in texts]),
    )
    if importlib.util.find_spec("open_clip"):
        length = info["config"]["text_cfg"]["context_length"]
        assert torch.equal(clip_tokens(None, length)(info["texts"]), ids)
    images = [given[key].numpy() for key in sorted(given) if key.startswith("in.image")]

    pixels = network.preprocess.batch(images)["pixel_values"]
    image, text = (
        np.concatenate([embed([item], normalize=False) for item in items])
        for embed, items in ((network.embed_image, images), (network.embed_text, info["texts"]))
    )

    if "out.pixels" in given:
        case.close(pixels, "out.pixels")
    if "out.pixels_corner" in given:
        edge = given["out.pixels_corner"].shape[-1]
        case.close(pixels[:, :, :edge, :edge], "out.pixels_corner")
    case.close(image, "out.image_features")
    case.close(text, "out.text_features")
    case.close(network.embed_image(images, normalize=False), "out.image_features")
    assert network.logit_scale is not None
    np.testing.assert_allclose(network.logit_scale.scale, info["scale"], rtol=1e-6)
    cosines = network.embed_image(images) @ network.embed_text(info["texts"]).T
    for scale, key in ((100.0, "out.text_probs"), (info["scale"], "out.text_probs_own_scale")):
        case.close(torch.from_numpy(scale * cosines).softmax(dim=-1), key)


CHECKS = {"mobileclip": check_mobileclip}
