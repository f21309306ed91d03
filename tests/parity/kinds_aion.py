"""Checks of AION-1: what its encoder and forward give, its codecs, its table of modalities."""

from __future__ import annotations

from typing import Any

import torch
from caseinfo import CaseInfo
from kinds_model import check_summary, close, legacy_ids
from torch import Tensor

from fourm_lite import load_model
from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.modalities.forks import AION_MODALITIES, CATALOG_OFFSET
from fourm_lite.model.fourm import FourM, Prediction
from fourm_lite.model.likelihood import joint_logits, joint_states
from fourm_lite.tokenization.aion.images import BANDS, SkyImage
from fourm_lite.tokenization.aion.load import load_codec
from fourm_lite.tokenization.aion.scalars import FIELDS, Catalog
from fourm_lite.tokenization.aion.spectra import Spectrum
from fourm_lite.tokenization.vq.finite import FiniteScalar, Signs

MARGIN = 1e-4


def same(got: Tensor, want: Tensor, what: str, margin: Tensor | None = None) -> None:
    """Equal integers, but for decisions that a margin says could flip."""
    assert got.shape == want.shape, f"{what}: {list(got.shape)} instead of {list(want.shape)}"
    wrong = got.long() != want.long()
    if margin is not None:
        wrong &= margin > MARGIN
    assert not wrong.any(), f"{what}: {int(wrong.sum())} differ"


def inputs_of(case: CaseInfo) -> TokenBatch:
    parts = {}
    for name in case.info["modality_order_encoder"]:
        value = case.tensors[f"in.{name}.tensor"].long()
        value = value[:, None] if value.ndim == 1 else value
        hidden = case.tensors.get(f"in.{name}.input_mask", torch.zeros_like(value).bool())
        parts[name] = Tokens(value, inputs=~hidden, targets=torch.zeros_like(hidden))
    return TokenBatch(parts)


def check_encode(case: CaseInfo) -> None:
    model = load_model(case.checkpoint()[1])
    with torch.inference_mode():
        encoded = model.encode(inputs_of(case), case.info["num_encoder_tokens"])
    packed, want = encoded.packed, case.tensors
    close(packed.x + packed.pos, want["out.encoder_tokens_in"], "encoder input")
    close(encoded.output, want["out.encoder"], "encoder")
    close(encoded.context.tokens, want["out.context"], "context")
    assert torch.equal(~packed.valid, want["out.encoder_mask"].reshape(packed.valid.shape))
    assert torch.equal(legacy_ids(model, packed), want["out.encoder_modality_ids"].int())


def check_forward(case: CaseInfo) -> None:
    model, info = load_model(case.checkpoint()[1]), case.info
    batch, budget = inputs_of(case), info["num_encoder_tokens"]
    order = info["modality_order_decoder"]
    with torch.inference_mode():
        context = model.encode(batch, budget).context
        y = joint_states(model, context, batch.size, order, seen=False)
        logits = joint_logits(model, batch, order, attention="uniform", budget=budget)
    close(y, case.tensors["out.decoder"], "decoder")
    ids = torch.cat(
        [torch.full((n,), AION_MODALITIES[m].legacy_id) for m, n in lengths(model, order)]
    )
    same(ids.expand(len(y), -1), case.tensors["out.decoder_modality_ids"], "ids")
    flat = {n: Prediction(v.flatten(0, 1), torch.zeros(0)) for n, v in logits.items()}
    for key in (k for k in case.tensors if k.startswith("logits.")):
        check_summary(key, case.tensors, flat)


def lengths(model: FourM, names: list[str]) -> list[tuple[str, int]]:
    return [(name, model.modality(name).max_tokens) for name in names]


def codec(case: CaseInfo) -> Any:
    return load_codec(
        case.store.get(case.info["model"], case.manifest["models"][case.info["model"]])
    )


def check_scalar(case: CaseInfo) -> None:
    found, want = codec(case), case.tensors
    same(found.tokenize(want["in.value"]), want["out.tokens"], "tokens")
    close(found.detokenize(want["out.tokens"]), want["out.value"], "values")


def check_catalog(case: CaseInfo) -> None:
    found, want = codec(case), case.tensors
    assert found.absent == case.info["mask_value"]
    raw = Catalog(*(want[f"in.{name}"] for name in FIELDS))
    codes = found.codes(raw)
    same(codes, want["out.tokens"], "tokens")
    for given, prefix in ((codes, "out."), (want["in.odd_tokens"], "out.odd.")):
        objects = found.objects(given)
        for name in FIELDS:
            close(getattr(objects, name).float(), want[prefix + name].float(), prefix + name)
    words = found.tokenize(raw)
    for row, ids in zip(words, codes, strict=True):
        kept = ids[ids != found.absent]
        assert torch.equal(row[: len(kept)], kept + CATALOG_OFFSET)


def check_image(case: CaseInfo) -> None:
    found, want, bands = codec(case), case.tensors, tuple(case.info["bands"])
    flux = case.procedural("flux")
    before = flux.clone()
    raw = SkyImage(flux, bands)
    close(found.latents(raw), want["out.latents"], "latents")
    margin = want["out.token_margin"]
    same(found.tokenize(raw), want["out.tokens"], "tokens", margin)
    assert torch.equal(flux, before)
    tokens = want["out.tokens"].long()
    close(found.quantizer.lookup(tokens), want["out.quant"], "quant")
    close(found.channels(tokens[:1])[..., ::2, ::2], want["out.decoded_compressed"], "decoded")
    if "out.flux" in want:
        close(found.detokenize(tokens[:1], bands=bands).flux, want["out.flux"], "flux", 1e-3)


def check_spectrum(case: CaseInfo) -> None:
    found, want = codec(case), case.tensors
    raw = Spectrum(*(want[f"in.{name}"] for name in ("flux", "ivar", "mask", "wavelength")))
    tokens = found.tokenize(raw)
    close(found.table[tokens[:, 0]], want["out.normalization"], "normalization")
    close(found.latents(raw), want["out.latents"], "latents")
    same(tokens, want["out.tokens"], "tokens")
    close(found.quantizer.lookup(tokens[:, 1:]), want["out.quant"], "quant")
    grid, seen = found.detokenize(tokens), found.detokenize(tokens, wavelength=raw.wavelength)
    for got, suffix in ((grid, ""), (seen, "_observed")):
        close(got.flux, want[f"out.flux{suffix}"], "flux")
        same(got.mask, want[f"out.mask{suffix}"], "mask")
    close(grid.wavelength, want["out.wavelength"].expand_as(grid.wavelength), "wavelength")


def check_segmap(case: CaseInfo) -> None:
    found, want, field = codec(case), case.tensors, case.procedural("field")
    close(found.latents(field), want["out.latents"], "latents")
    tokens = found.tokenize(field)
    same(tokens, want["out.tokens"], "tokens")
    close(found.quantizer.lookup(tokens), want["out.quant"], "quant")
    close(found.detokenize(tokens), want["out.field"], "field")


def check_quantizers(case: CaseInfo) -> None:
    info, want = case.info, case.tensors
    levels = {f"tanh{i}": (v, "tanh") for i, v in enumerate(info["tanh_levels"])}
    for i, text in enumerate(info["sigmoid_levels"]):
        levels[f"sigmoid{i}"] = ([int(n) for n in text.split("-")], "sigmoid")
    for key, (numbers, bound) in levels.items():
        check_quantizer(FiniteScalar(numbers, bound), want, key)
    check_quantizer(Signs(info["lfq"]["dim"]), want, "lfq")


def check_quantizer(quantizer: FiniteScalar | Signs, want: dict[str, Tensor], key: str) -> None:
    found = quantizer(want[f"{key}.in.z"])
    same(found.tokens, want[f"{key}.out.codes"], key)
    for name in ("quantized", "decoded"):
        if f"{key}.out.{name}" in want:
            close(found.latents, want[f"{key}.out.{name}"], f"{key} {name}")
            close(quantizer.lookup(found.tokens), want[f"{key}.out.{name}"], f"{key} {name}")


def check_aion_table(info: dict[str, Any]) -> None:
    kinds = {"img": "grid", "seq_token": "sequence"}
    assert set(info["modalities"]) == set(AION_MODALITIES)
    for name, facts in info["modalities"].items():
        entry = AION_MODALITIES[name]
        assert entry.kind == kinds[facts["type"]]
        assert entry.vocab_size == facts["vocab_size"]
        assert entry.legacy_id == facts["id"]
        assert entry.decoder_rows == facts["tokens"]
        assert facts.get("grid") in (None, list(entry.grid or ()))
    for name, facts in info["codecs"].items():
        assert AION_MODALITIES[name].tokenizer == facts["folder"]
    assert list(info["bands"]) == list(BANDS)
    assert info["clip"] == BANDS
    assert info["catalog_vocab_offset"] == CATALOG_OFFSET


CHECKS = {
    "aion_encode": check_encode,
    "aion_forward": check_forward,
    "aion_codec_scalar": check_scalar,
    "aion_codec_catalog": check_catalog,
    "aion_codec_image": check_image,
    "aion_codec_spectrum": check_spectrum,
    "aion_codec_segmap": check_segmap,
    "fork_quantizers": check_quantizers,
}
