"""Checks of the model and its ViT view against the original's numbers."""

from __future__ import annotations

import torch
from caseinfo import CaseInfo
from legacy_batch import batch_of
from torch import Tensor

from fourm_lite import FMViT, load_model
from fourm_lite.model.fourm import FourM, Prediction
from fourm_lite.model.packing import Packed
from fourm_lite.training.losses import pretraining_loss


def close(got: Tensor, want: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """Agreement to `tolerance` of the tensor's scale."""
    assert got.shape == want.shape, f"{what}: {list(got.shape)} instead of {list(want.shape)}"
    error = (got - want).abs().max().item() if want.numel() else 0.0
    scale = max(want.abs().max().item(), 1e-3) if want.numel() else 1.0
    assert error <= tolerance * scale, f"{what}: off by {error:.2e} at scale {scale:.2e}"


def legacy_ids(model: FourM, packed: Packed) -> Tensor:
    """Modality indices as the original's numbers; -1 where padded."""
    table = [m.legacy_id for m in model.config.modalities.values()]
    ids = torch.tensor([*table, -1])[packed.modality]
    return torch.where(packed.valid, ids, -1).int()


def check_forward(case: CaseInfo) -> None:
    info, want = case.info, case.tensors
    model = load_model(case.checkpoint()[1])
    batch = batch_of(case)
    decoder_order = info["modality_order_decoder"]

    with torch.inference_mode():
        encoder_batch = batch.only(*info["modality_order_encoder"])
        encoded = model.encode(encoder_batch, info["num_encoder_tokens"])
        targets = model.pack_targets(batch, info["num_decoder_tokens"], order=decoder_order)
        y = model.decode(targets, encoded)
        predictions = {n: model._prediction(n, y, targets) for n in decoder_order}
        mod, losses = pretraining_loss(predictions, "mod", count_absent=True)
        token, _ = pretraining_loss(predictions, "token", weigh_by="logits")

    packed = encoded.packed
    close(packed.x + packed.pos, want["out.encoder_tokens_in"], "encoder input")
    assert torch.equal(~packed.valid, want["out.encoder_mask"].reshape(packed.valid.shape))
    assert torch.equal(legacy_ids(model, packed), want["out.encoder_modality_ids"].int())
    close(encoded.output, want["out.encoder"], "encoder")
    close(encoded.context.tokens, want["out.context"], "context")
    assert torch.equal(~targets.valid, want["out.decoder_mask"].reshape(targets.valid.shape))
    assert torch.equal(legacy_ids(model, targets), want["out.decoder_modality_ids"].int())
    valid = targets.valid
    assert torch.equal(targets.ids[valid], want["out.target_ids"][valid])
    assert torch.equal(~targets.attend, want["out.decoder_attention_mask"])
    close(y, want["out.decoder"], "decoder")
    close(mod[None], want["out.loss_mod"], "loss mod")
    close(token[None], want["out.loss_token"], "loss token")
    for name in decoder_order:
        close(losses[name][None], want[f"out.loss.{name}"], f"loss of {name}")
    summaries = {k for k in want if k.startswith("logits.")}
    for key in summaries:
        check_summary(key, want, predictions)
    other = set(want) - summaries - {k for k in want if k.startswith(("in.", "out."))}
    assert not other, f"unchecked: {sorted(other)}"


def check_summary(key: str, want: dict[str, Tensor], predictions: dict[str, Prediction]) -> None:
    """What a case stores of the logits: logits.<modality>.<summary>."""
    name, summary = key.removeprefix("logits.").rsplit(".", 1)
    logits = predictions[name].logits
    prefix = f"logits.{name}."
    if summary == "lse":
        close(logits.logsumexp(dim=-1), want[key], key)
    elif summary == "cols_values":
        close(logits[:, want[prefix + "cols"].long()], want[key], key)
    elif summary == "top8_values":
        close(logits.gather(1, want[prefix + "top8_ids"].long()), want[key], key)
        close(logits.topk(want[key].shape[1], dim=-1).values, want[key], key)
    else:
        assert summary in ("cols", "top8_ids"), f"no check for {key}"


def check_fmvit(case: CaseInfo) -> None:
    head = case.tensors["head.weight"]
    model = FMViT.from_pretrained(case.checkpoint()[1], num_classes=head.shape[0])
    x = case.procedural("x")

    with torch.inference_mode():
        features = model.forward_features(x)
        model.fc_norm = torch.nn.Identity()  # the case's head is a bare linear map of the mean
        model.head.weight.copy_(head)
        model.head.bias.zero_()
        logits = model(x)

    close(features, case.tensors["out.features"], "features")
    close(logits, case.tensors["out.mean_logits"], "mean logits")


CHECKS = {"fm_forward": check_forward, "fmvit": check_fmvit}
